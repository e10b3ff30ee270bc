// The mixing rule of R-Mix (Eq. 5-6): how much of a cell an image keeps of itself.
#pragma once

#include "core/inline.h"

namespace fastmix {

// own, other: whether the cell is salient in the image and in its partner.
template <typename A>
FASTMIX_INLINE A own_share(bool own, bool other, A lam) {
  return own == other ? lam : own ? A(1) : A(0);
}

}  // namespace fastmix
