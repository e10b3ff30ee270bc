// Image batches as the CUDA image kernels see them.
#pragma once

#include "cuda/lib/binding.h"
#include "cuda/lib/tile.cuh"

namespace fastmix {

// The shape of rows as kernels read them; throws for planes that int32 positions cannot count.
inline ImageShape image_shape(const char* op, const Rows& rows) {
  const Dims sizes = rows.tensor.sizes();
  const int64_t channels = sizes[1], row = sizes[3] * (rows.channels_last ? channels : 1);
  // A little room: the last block's positions run past the plane.
  STD_TORCH_CHECK(sizes[2] * row < (int64_t{1} << 31) - 65536 && channels < (int64_t{1} << 31), op,
                  ": an image plane has more than 2^31 elements");
  ImageShape s{};
  s.images = sizes[0];
  s.planes = rows.channels_last ? 1 : static_cast<int>(channels);
  s.height = static_cast<int>(sizes[2]);
  s.row_elements = static_cast<int>(row);
  s.pixel = rows.channels_last ? static_cast<int>(channels) : 1;
  return s;
}

// Lists of readers (by_source.cuh) in one tensor: first (sources), then next (rows * k).
struct Links {
  Tensor memory;
  int *first, *next;
};

template <typename Link>
Links linked(const char* op, const Tensor& index, int64_t sources, const Link& link) {
  const int64_t k = index.dim() == 1 ? 1 : index.size(1);
  const int rows = to_int32(op, "the number of images", index.size(0));
  const int entries = to_int32(op, "the number of indices", index.size(0) * k + sources) - static_cast<int>(sources);
  Tensor memory = empty_beside(index, {sources + entries}, ScalarType::Int);
  int* first = static_cast<int*>(memory.mutable_data_ptr());
  link(static_cast<const int64_t*>(index.const_data_ptr()), rows, static_cast<int>(k), static_cast<int>(sources), first,
       first + sources);
  return {memory, first, first + sources};
}

}  // namespace fastmix
