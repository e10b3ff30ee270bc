// bfloat16 and IEEE half as storage: branch-free conversions that a compiler vectorises, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/common.h"

namespace fastmix {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

FASTMIX_INLINE float to_float(float v) { return v; }
FASTMIX_INLINE double to_float(double v) { return v; }
FASTMIX_INLINE float to_float(bf16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

FASTMIX_INLINE float to_float(f16 v) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(v.bits));
  return result;
#else
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7fffu;
  // Exponent and mantissa moved to their float places, then rebiased by a multiplication, which also turns
  // half denormals (exponent 0) into normal floats. Infinity and NaN (exponent 31) get exponent 255 by the or.
  const float rebiased = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(rebiased) | special | sign);
#endif
}

FASTMIX_INLINE void store(float* to, float v) { *to = v; }
FASTMIX_INLINE void store(double* to, double v) { *to = v; }

FASTMIX_INLINE void store(bf16* to, float v) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(v));
#else
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // NaN stays NaN: rounding could carry its mantissa into infinity.
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}

FASTMIX_INLINE void store(f16* to, float v) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(v));
#else
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal halves: rebias and round to nearest even on the 13 bits that fall away; a carry out of 65504 makes
  // infinity by itself, anything larger is clamped to it.
  const uint32_t clamped = magnitude > 0x47800000u ? 0x47800000u : magnitude;
  const uint32_t normal = (clamped - 0x38000000u + 0xfffu + ((clamped >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 lets the float adder align and round the denormal mantissa.
  const uint32_t denormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  to->bits = static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : finite));
#endif
}

// float for every type but double: what sums are kept in.
template <typename T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename accumulator<T>::type;

}  // namespace fastmix
