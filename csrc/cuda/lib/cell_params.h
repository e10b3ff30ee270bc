// Gradients and percentiles as the CUDA saliency kernels see them.
#pragma once

#include "cuda/lib/binding.h"
#include "cuda/lib/cells.cuh"
#include "cuda/lib/percentile.cuh"

namespace fastmix {

inline CellParams cells_of(const char* op, const Rows& grad, int64_t h, int64_t w) {
  const Dims sizes = grad.tensor.sizes();
  STD_TORCH_CHECK(sizes[2] * sizes[3] * (grad.channels_last ? sizes[1] : 1) < (int64_t{1} << 31) - 65536, op,
                  ": an image plane has more than 2^31 elements");
  CellParams a{};
  a.grad = grad.data;
  a.image_stride = grad.stride;
  a.channels = static_cast<int>(sizes[1]);
  a.height = static_cast<int>(sizes[2]);
  a.width = static_cast<int>(sizes[3]);
  a.channel_stride = grad.channels_last ? 1 : sizes[2] * sizes[3];
  a.pixel_stride = grad.channels_last ? sizes[1] : 1;
  a.h = static_cast<int>(h);
  a.w = static_cast<int>(w);
  return a;
}

inline Percentile percentile_of(const Tensor& q) {
  return {q.const_data_ptr(), q.scalar_type() == ScalarType::Double, q.dim() == 0 ? 0 : 1};
}

}  // namespace fastmix
