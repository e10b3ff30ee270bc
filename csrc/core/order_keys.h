// Integers that order as floats do, and the rank of a percentile.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/float_types.h"

namespace fastmix {

// Signed integers with the order of the values: -0 equals +0, every NaN is the one largest key.
FASTMIX_INLINE int32_t order_key(float v) {
  const int32_t bits = bit_cast<int32_t>(v);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t key = bits < 0 ? -magnitude : magnitude;
  return magnitude > 0x7f800000 ? 0x7fffffff : key;
}
FASTMIX_INLINE int64_t order_key(double v) {
  const int64_t bits = bit_cast<int64_t>(v);
  const int64_t magnitude = bits & 0x7fffffffffffffff;
  const int64_t key = bits < 0 ? -magnitude : magnitude;
  return magnitude > 0x7ff0000000000000 ? 0x7fffffffffffffff : key;
}

// Position of the q-th percentile among n sorted values: the upper neighbour of a linear interpolation, which a
// value reaches exactly if it reaches the interpolated one. q that is NaN or negative counts as 0, above 1 as 1.
FASTMIX_INLINE int64_t percentile_rank(double q, int64_t n) {
  const double rank = std::ceil(q * static_cast<double>(n - 1));
  if (!(rank > 0)) return 0;
  return rank < static_cast<double>(n - 1) ? static_cast<int64_t>(rank) : n - 1;
}

}  // namespace fastmix
