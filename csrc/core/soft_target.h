// exp and log1p as branch-free polynomials, and the terms of a soft-target row.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/enums.h"
#include "core/float_types.h"

namespace fastmix {

// What the rows are and where results go: common to the CPU and CUDA kernels, which add what only they need.
struct SoftTargetRowData {
  const void* logits;          // (N, J), classes contiguous
  int64_t row_stride;          // elements between rows of logits
  const int64_t* index;        // (N, K), or null: dense target
  int64_t k;                   // K
  const float* weight;         // (N, K) or null: 1
  const float* base;           // (N) or null: 0
  const void* target;          // (N, J) in the accumulation type, when index is null
  const float* sample_weight;  // (N) or null: 1
  double smoothing;            // eps
  int64_t ignore_index;
  Loss loss;
  double* row_loss;  // (N); of the GPU: workspace of mean and sum
  void* grad;        // (N, J) contiguous, or null: not wanted
};

// exp(x) for x <= 0, within 1 ulp; 0 below -87.3 (exp(-inf) is exactly 0); NaN stays NaN.
FASTMIX_INLINE float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
  return __expf(x);  // its absolute error stays below 1 ulp of 1; the polynomial would cost more than the memory
#else
  const float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer kept in the low mantissa bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  // ln 2 in two parts, so that the product with n is exact in the first.
  float r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t exponent = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kMagic) + 127u;
  const float result = p * bit_cast<float>(exponent << 23);
  return x < -87.3f ? 0.0f : result;
#endif
}
FASTMIX_INLINE double exp_nonpositive(double x) { return std::exp(x); }

// log(1 + u) for u in [0, 1], relative error below 2 ulp: 2 atanh(u / (2 + u)) as a series.
FASTMIX_INLINE float log1p_unit(float u) {
  const float s = u / (2.0f + u);
  const float s2 = s * s;
  float p = 1.0f / 17.0f;
  p = p * s2 + 1.0f / 15.0f;
  p = p * s2 + 1.0f / 13.0f;
  p = p * s2 + 1.0f / 11.0f;
  p = p * s2 + 1.0f / 9.0f;
  p = p * s2 + 1.0f / 7.0f;
  p = p * s2 + 1.0f / 5.0f;
  p = p * s2 + 1.0f / 3.0f;
  return 2.0f * s + 2.0f * s * (s2 * p);
}
FASTMIX_INLINE double log1p_unit(double u) { return std::log1p(u); }

// t log t with 0 log 0 = 0.
FASTMIX_INLINE double xlogx(double t) { return t == 0.0 ? 0.0 : t * std::log(t); }

// The named classes of one row: index and weight (K) or null for 1, with keep = 1 - smoothing.
struct NamedClasses {
  const int64_t* index;
  const float* weight;
  int64_t k;
  double keep;
};
FASTMIX_INLINE double named_weight(const NamedClasses& t, int64_t i) {
  return t.keep * (t.weight != nullptr ? static_cast<double>(t.weight[i]) : 1.0);
}
FASTMIX_INLINE bool is_first_of_class(const NamedClasses& t, int64_t i) {
  for (int64_t j = 0; j < i; ++j) {
    if (t.index[j] == t.index[i]) return false;
  }
  return true;
}
// Weight of the class index[i], repetitions added up.
FASTMIX_INLINE double class_weight(const NamedClasses& t, int64_t i) {
  double sum = 0;
  for (int64_t j = 0; j < t.k; ++j) sum += t.index[j] == t.index[i] ? named_weight(t, j) : 0.0;
  return sum;
}

// Of row n.
FASTMIX_INLINE NamedClasses named_classes(const SoftTargetRowData& a, int64_t n) {
  return {a.index + n * a.k, a.weight != nullptr ? a.weight + n * a.k : nullptr, a.k, 1.0 - a.smoothing};
}
// What every class of row n has: base after smoothing, eps / J included.
FASTMIX_INLINE double base_of(const SoftTargetRowData& a, int64_t n, int64_t classes) {
  const double base = a.base != nullptr ? static_cast<double>(a.base[n]) : 0.0;
  return base * (1.0 - a.smoothing) + a.smoothing / static_cast<double>(classes);
}
FASTMIX_INLINE double sample_weight_of(const SoftTargetRowData& a, int64_t n) {
  return a.sample_weight != nullptr ? static_cast<double>(a.sample_weight[n]) : 1.0;
}

// weight * value where a weight of 0 counts nothing, not even times infinity.
FASTMIX_INLINE double weighted(double weight, double value) { return weight == 0.0 ? 0.0 : weight * value; }

}  // namespace fastmix
