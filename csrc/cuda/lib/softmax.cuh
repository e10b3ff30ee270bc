// The arithmetic of a softmax on packs as they lie in memory: largest values, and exponentials beside a maximum.
//
// Of a 16-bit type a maximum takes half an instruction an element (two values in one), an exponential of a gradient two
// beside the conversion: one multiply-add, ex2. Those of the sum take three, so that the largest is exactly 1.
#pragma once

#include <cmath>

#include "core/soft_target.h"
#include "cuda/lib/pack.cuh"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

// N times -inf.
template <typename T, int N>
FASTMIX_DEVICE Words<T, N> lowest_words() {
  Elements<T, N> e;
#pragma unroll
  for (int l = 0; l < N; ++l) store(&e.v[l], -static_cast<accumulator_t<T>>(INFINITY));
  return to_words(e);
}

// The largest of what it has taken. NaN counts as smallest: it shows in the sums that follow.
template <typename T>
struct Largest {
  using A = accumulator_t<T>;
  static constexpr bool kPaired = sizeof(T) == 2;
  A one = -static_cast<A>(INFINITY);
  Words<T, kPaired ? 2 : 1> two = lowest_words<T, (kPaired ? 2 : 1)>();  // of 16 bits: the even and the odd elements

  template <int N>
  FASTMIX_METHOD void take(const Words<T, N>& v) {
    if constexpr (kPaired) {
#pragma unroll
      for (int i = 0; i < Words<T, N>::kWords; ++i) two.w[0] = larger(two.w[0], N == 1 ? v.w[i] * 0x10001u : v.w[i]);
    } else {
#pragma unroll
      for (int l = 0; l < N; ++l) one = Larger()(one, element<T, N>(v, l));
    }
  }
  FASTMIX_METHOD A value() const {
    if constexpr (kPaired) {
      return Larger()(element<T, 2>(two, 0), element<T, 2>(two, 1));
    } else {
      return one;
    }
  }

 private:
  // Of each half.
  FASTMIX_METHOD static uint32_t larger(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    uint32_t result;
    if constexpr (std::is_same_v<T, bf16>) {
      asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    } else {
      asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    }
    return result;
#else
    const Words<T, 2> x{{a}}, y{{b}};
    uint32_t result = 0;
    for (int l = 0; l < 2; ++l) {
      // A NaN that has been taken first (the largest starts at -inf) is never kept.
      const bool is_second = element<T, 2>(y, l) > element<T, 2>(x, l);
      result |= (is_second ? b : a) & 0xffffu << (16 * l);
    }
    return result;
#endif
  }
};

// c exp(z - m) for values z up to m, as 2^(log2(e) z - shift) times a factor: shift is log2(e) m rounded, and the
// factor takes back what the rounding has moved. Beyond |m| = 2^30 the neighbours of m are 64 and more away, where
// every exponential is 0 to any base: so 2 serves, and nothing overflows.
template <typename A>
struct ScaledExponential {
  A scale, shift, factor;

  FASTMIX_METHOD ScaledExponential(A m, A c) : scale(1), shift(m), factor(c) {
    if constexpr (sizeof(A) == 4) {
      if (std::fabs(m) > 0x1p30f) return;
      scale = 1.44269504088896341f;
      shift = m * scale;
      factor = c * raise(-std::fma(m, scale, -shift));
    }
  }
  // Of a positive factor: it goes into the exponent, which rounds it to 2^-17 where |shift| < 128.
  FASTMIX_METHOD void fold() {
    shift -= std::log2(factor);
    factor = 1;
  }
  // The exponential without the factor.
  FASTMIX_METHOD A plain(A z) const {
    if constexpr (sizeof(A) == 4) return raise(std::fma(z, scale, -shift));
    return std::exp(z - shift);
  }
  FASTMIX_METHOD A operator()(A z) const { return plain(z) * factor; }

 private:
  FASTMIX_METHOD static A raise(A power) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(A) == 4) {
      float result;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
      return result;
    }
#endif
    return std::exp2(power);
  }
};

// Sum of a pack, as a tree.
template <int N, typename A>
FASTMIX_DEVICE A sum_of(const A (&v)[N]) {
  A sums[N];
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = v[i];
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace fastmix
