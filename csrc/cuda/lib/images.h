// Batches of images as the CUDA image kernels see them, from tensors.
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
  s.width = static_cast<int>(sizes[3]);
  s.pixel = rows.channels_last ? static_cast<int>(channels) : 1;
  return s;
}

inline void set_images(ImageParams& a, const char* op, const RowsLike& rows) {
  a.src = rows.in.data;
  a.src_stride = rows.in.stride;
  a.dst = rows.out();
  a.shape = image_shape(op, rows.in);
}

}  // namespace fastmix
