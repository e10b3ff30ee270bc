// The readers of every image of a batch, for the registrations of backward passes. Apart from images.h, because what
// includes by_source.cuh compiles its kernel.
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/images.h"

namespace fastmix {

// Sets a.first and a.next to the lists of those that read each image of the batch by index, contiguous (N, K) or (N).
// Returns their memory: first (N), then next (N * K).
inline Tensor link_readers(ImageParams& a, const char* op, const Tensor& index, const OnDevice& device) {
  const int64_t k = index.dim() == 1 ? 1 : index.size(1), sources = a.shape.images;
  const int rows = to_int32(op, "the number of images", index.size(0));
  const int entries = to_int32(op, "the number of indices", index.size(0) * k + sources) - static_cast<int>(sources);
  Tensor memory = allocate(index, {sources + entries}, ScalarType::Int);
  int* first = static_cast<int*>(memory.mutable_data_ptr());
  const SourceChains chains{static_cast<const int64_t*>(index.const_data_ptr()),
                            rows,
                            static_cast<int>(k),
                            static_cast<int>(sources),
                            first,
                            first + sources};
  link_sources(chains, device.stream());
  a.first = chains.first;
  a.next = chains.next;
  return memory;
}

}  // namespace fastmix
