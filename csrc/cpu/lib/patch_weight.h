// The realised label weights of patch_mix, for *.simd.cpp.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

// weight = (mean, 1 - mean) of the own share over the cells of two masks.
FASTMIX_INLINE void write_patch_weight(const uint8_t* own, const uint8_t* other, int64_t cells, float lam,
                                       float* weight) {
  int64_t equal = 0, kept = 0;
#pragma omp simd reduction(+ : equal, kept)
  for (int64_t i = 0; i < cells; ++i) {
    equal += own[i] == other[i];
    kept += own[i] > other[i];
  }
  // A lam that no cell uses counts nothing, not even as NaN.
  const double mixed = equal > 0 ? static_cast<double>(lam) * static_cast<double>(equal) : 0.0;
  const float share = static_cast<float>((mixed + static_cast<double>(kept)) / static_cast<double>(cells));
  weight[0] = share;
  weight[1] = 1.0f - share;
}

}  // namespace fastmix
