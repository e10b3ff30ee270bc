// exp and log1p as branch-free polynomials, and the terms of a soft-target row.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/enums.h"
#include "core/float_types.h"

namespace fastmix {

// What the rows are and where results go: common to the CPU and CUDA kernels, which add what only they need.
//
// A row is what has a target of its own: a row of logits (N, J), or with `pixels` = P a pixel of logits (N, J, P),
// which are contiguous: row n * P + p has class j at ((n * J) + j) * P + p.
struct SoftTargetRowData {
  const void* logits;  // (N, J), classes side by side, or (N, J, P)
  int64_t row_stride;  // elements between rows of logits (N, J)
  int64_t pixels;      // P, or 0
  // The target: index, or target where index is null.
  const int64_t* index;     // (N, K)
  int64_t k;                // K
  const float* weight;      // (N, K) or null: 1, or with confidence what makes a class as sure
  const float* base;        // (N) or null: 0, or with confidence what is left for every other class
  const float* confidence;  // (N) or null: of the label that is the only class named
  const void* target;       // (N, J) or (N, J, P) in the accumulation type
  // What rows and classes count.
  const float* sample_weight;  // (N) or null: 1
  const float* class_weight;   // (J) or null: 1
  Weighting weighting;
  double smoothing;  // eps
  int64_t ignore_index;
  Loss loss;
  const void* row_grad;   // incoming gradient in the accumulation type, or null: 1
  int64_t row_grad_step;  // 1: of every row, 0: one for all
  double* row_loss;       // (N), of the CPU
  void* grad;             // like logits, contiguous, or null: not wanted
};

// exp(x) for x <= 0, within 1 ulp; 0 below -87.3 (exp(-inf) is exactly 0); NaN stays NaN.
FASTMIX_INLINE float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
  // Two instructions, where __expf takes care of denormal results and the polynomial would cost more than the memory.
  // The absolute error stays below 1 ulp of 1.
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504088896341f));
  return result;
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

// a / b for a b that is neither 0 nor denormal, to within a few units in the last place. On a GPU a division calls a
// function, and what a kernel keeps in registers meanwhile would be spilled.
FASTMIX_INLINE double quotient(double a, double b) {
#ifdef __CUDA_ARCH__
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));
  r = fma(r, fma(-b, r, 1.0), r);
  r = fma(r, fma(-b, r, 1.0), r);
  r = fma(r, fma(-b, r, 1.0), r);
  return a * r;
#else
  return a / b;
#endif
}
FASTMIX_INLINE float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  return a * r;
#else
  return a / b;
#endif
}

// log(1 + u) for u in [0, 1], relative error below 2 ulp: 2 atanh(u / (2 + u)) as a series.
FASTMIX_INLINE float log1p_unit(float u) {
  const float s = quotient(u, 2.0f + u);
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

// The classes that one row names. Slots that hold ignore_index count nothing.
struct NamedClasses {
  const int64_t* index;
  const float* weight;  // or null: `unit`
  const float* class_weight;
  int64_t k, ignore_index;
  double unit;
  double factor;  // of every weight: 1 - smoothing
};
FASTMIX_INLINE bool is_counted(const NamedClasses& t, int64_t i) { return t.index[i] != t.ignore_index; }
// As the target has it.
FASTMIX_INLINE double given_weight(const NamedClasses& t, int64_t i) {
  return t.weight != nullptr ? static_cast<double>(t.weight[i]) : t.unit;
}
FASTMIX_INLINE double weight_of_class(const NamedClasses& t, int64_t i) {
  return t.class_weight != nullptr ? static_cast<double>(t.class_weight[t.index[i]]) : 1.0;
}
// As the loss counts it. The class exists, or is ignored.
FASTMIX_INLINE double named_weight(const NamedClasses& t, int64_t i) {
  return is_counted(t, i) ? t.factor * given_weight(t, i) * weight_of_class(t, i) : 0.0;
}
FASTMIX_INLINE bool is_first_of_class(const NamedClasses& t, int64_t i) {
  if (!is_counted(t, i)) return false;
  for (int64_t j = 0; j < i; ++j) {
    if (t.index[j] == t.index[i]) return false;
  }
  return true;
}
// The target of the class index[i], which counts, without base and class weight: repetitions added up.
FASTMIX_INLINE double class_target(const NamedClasses& t, int64_t i) {
  double sum = 0;
  for (int64_t j = 0; j < t.k; ++j) sum += t.index[j] == t.index[i] ? given_weight(t, j) : 0.0;
  return sum * t.factor;
}

// What row n names, before anything is added up over it.
FASTMIX_INLINE NamedClasses named_classes(const SoftTargetRowData& a, int64_t n) {
  return {
      a.index + n * a.k, a.weight != nullptr ? a.weight + n * a.k : nullptr, a.class_weight, a.k, a.ignore_index, 1.0,
      1.0 - a.smoothing};
}

// The target of one row: named classes, and what every class has beside them, class weights left out.
struct RowTarget {
  NamedClasses named;
  double base;
  double share;  // of the row that is not ignored: 1 where nothing is
  double scale;  // of loss and gradient: sample weight and weighting
};

// given: the sum of the given weights; kept: of those that count; counted: how many do.
FASTMIX_INLINE RowTarget row_target(const SoftTargetRowData& a, int64_t n, int64_t classes, double given, double kept,
                                    int64_t counted, double batch_confidence) {
  RowTarget t{named_classes(a, n), 0, 1, 1};
  double base = a.base != nullptr ? static_cast<double>(a.base[n]) : 0.0;
  double confidence = given + base;
  if (a.confidence != nullptr) {
    confidence = static_cast<double>(a.confidence[n]);
    base = classes > 1 ? quotient(1.0 - confidence, static_cast<double>(classes - 1)) : 0.0;
    t.named.unit = confidence - base;
  }
  if (counted < a.k)
    t.share = given != 0 ? quotient(kept, given) : quotient(static_cast<double>(counted), static_cast<double>(a.k));
  if (a.weighting == kByWeight) {
    base = 0;
    if (a.confidence != nullptr) {
      t.named.unit = 1;
    } else if (given != 0) {
      t.named.factor = quotient(t.named.factor, given);
    } else {
      t.named.weight = nullptr;
      t.named.factor = quotient(t.named.factor, static_cast<double>(a.k));
    }
  }
  t.base = base * (1.0 - a.smoothing) + quotient(t.share * a.smoothing, static_cast<double>(classes));
  if (a.sample_weight != nullptr) t.scale = static_cast<double>(a.sample_weight[n]);
  if (a.weighting == kBySample || a.weighting == kByWeight) t.scale *= confidence;
  if (a.weighting == kByBatchMean) t.scale *= batch_confidence;
  return t;
}

// weight * value where a weight of 0 counts nothing, not even times infinity.
FASTMIX_INLINE double weighted(double weight, double value) { return weight == 0.0 ? 0.0 : weight * value; }

}  // namespace fastmix
