// The readers of every image of a batch, for the registrations of backward passes. Apart from images.h, because what
// includes by_source.cuh compiles its kernel.
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/images.h"

namespace fastmix {

// Sets a.begin and a.readers to those that read each image of the batch by index, contiguous (N, K) or (N). Returns
// their memory: begin (N + 1), then readers (N * K).
inline Tensor readers_of_images(ImageParams& a, const char* op, const Tensor& index, const OnDevice& device) {
  const int64_t k = index.dim() == 1 ? 1 : index.size(1), sources = a.shape.images;
  const int rows = to_int32(op, "the number of images", index.size(0));
  const int entries =
      to_int32(op, "the number of indices", index.size(0) * k + sources + 1) - static_cast<int>(sources + 1);
  Tensor memory = allocate(index, {sources + 1 + entries}, ScalarType::Int);
  int* begin = static_cast<int*>(memory.mutable_data_ptr());
  const SourceReaders found{static_cast<const int64_t*>(index.const_data_ptr()),
                            rows,
                            static_cast<int>(k),
                            static_cast<int>(sources),
                            begin,
                            begin + sources + 1};
  find_readers(found, device.stream());
  a.begin = found.begin;
  a.readers = found.readers;
  return memory;
}

}  // namespace fastmix
