// The mixing rule of R-Mix (Eq. 5-7): how much of a cell an image keeps of itself, and the label weights that follow.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

// The masks and weights of a cell-wise mixture. Int: what the kernels count cells in.
template <typename Int>
struct CellMix {
  const uint8_t* mask;  // (N, h, w) of 0 and 1
  const float* lam;     // (N) or 0-d
  Int lam_step;         // 0 for a 0-d lam, else 1
  Int h, w;             // rows of cells, and cells in a row
};

// own, other: 1 where the cell is salient in the image and in its partner, else 0. No branch: it vectorises.
template <typename A>
FASTMIX_INLINE A own_share(uint8_t own, uint8_t other, A lam) {
  return own == other ? lam : static_cast<A>(own);
}

// The mean of the own share over `cells` cells, of which `kept` are the image's own and `equal` are mixed.
template <typename Int>
FASTMIX_INLINE float mean_share(Int kept, Int equal, Int cells, float lam) {
  // A lam that no cell uses counts nothing, not even as NaN.
  const double mixed = equal > 0 ? static_cast<double>(lam) * static_cast<double>(equal) : 0.0;
  return static_cast<float>((mixed + static_cast<double>(kept)) / static_cast<double>(cells));
}

// weight = (mean, 1 - mean) of the own share over the cells of two masks.
FASTMIX_INLINE void write_patch_weight(const uint8_t* own, const uint8_t* other, int64_t cells, float lam,
                                       float* weight) {
  int64_t equal = 0, kept = 0;
#pragma omp simd reduction(+ : equal, kept)
  for (int64_t i = 0; i < cells; ++i) {
    equal += own[i] == other[i];
    kept += own[i] > other[i];
  }
  weight[0] = mean_share(kept, equal, cells, lam);
  weight[1] = 1.0f - weight[0];
}

}  // namespace fastmix
