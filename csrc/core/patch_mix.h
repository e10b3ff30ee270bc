// The mixing rule of R-Mix (Eq. 5-6): how much of a cell an image keeps of itself.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

// own, other: 1 where the cell is salient in the image and in its partner, else 0. No branch: it vectorises.
template <typename A>
FASTMIX_INLINE A own_share(uint8_t own, uint8_t other, A lam) {
  return own == other ? lam : static_cast<A>(own);
}

}  // namespace fastmix
