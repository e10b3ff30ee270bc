// Division of what a thread computes by what a launch fixes: a multiplication and a shift.
#pragma once

#include "cuda/lib/launch.h"

namespace fastmix {

// Divides n in [0, 2^31) by d in [1, 2^31). Granlund and Montgomery 1994: 2^32 (2^shift - d) / d + 1 with
// the least shift so that 2^shift >= d; q = (high half of multiplier * n, plus n) >> shift, whose sum stays below 2^32.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t d) : divisor_(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
  }

  FASTMIX_METHOD int divide(int n) const {
    const uint32_t u = static_cast<uint32_t>(n);
#ifdef __CUDA_ARCH__
    const uint32_t high = __umulhi(multiplier_, u);
#else
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(multiplier_) * u) >> 32);
#endif
    return static_cast<int>((high + u) >> shift_);
  }

  // n / d, and in `rest` what is left.
  FASTMIX_METHOD int divide(int n, int& rest) const {
    const int quotient = divide(n);
    rest = n - quotient * static_cast<int>(divisor_);
    return quotient;
  }

  FASTMIX_METHOD int value() const { return static_cast<int>(divisor_); }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace fastmix
