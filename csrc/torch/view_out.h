// The output of a view, for the CPU and the CUDA registrations.
#pragma once

#include "torch/tensor.h"

namespace fastmix {

// Images shaped like x; dtype as dtype_slot counts, strides as torch gives the memory format.
inline Tensor empty_view(const Tensor& x, int64_t dtype, bool channels_last) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};
  STD_TORCH_CHECK(dtype >= 0 && dtype < 4, "view: dtype is ", dtype, ", want 0 to 3");
  const Dims s = x.sizes();
  if (!channels_last) return empty_beside(x, {s[0], s[1], s[2], s[3]}, kTypes[dtype]);
  const int64_t strides[] = {s[1] * s[3] * s[2], 1, s[1] * s[3], s[1]};
  return empty_strided_beside(x, s, Dims(strides, 4), kTypes[dtype]);
}

}  // namespace fastmix
