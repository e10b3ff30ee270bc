// What the kernels of soft_target read of a row's target: named classes and the rest. For *.simd.cpp.
#pragma once

#include <cmath>

#include "cpu/soft_target.h"

namespace fastmix {

FASTMIX_INLINE RowTarget target_of(const SoftTargetArgs& a, int64_t n) {
  const NamedClasses named = named_classes(a, n);
  double given = 0, kept = 0;
  int64_t counted = 0;
  for (int64_t i = 0; i < a.k; ++i) {
    const double weight = given_weight(named, i);
    given += weight;
    if (!is_counted(named, i)) continue;
    kept += weight;
    ++counted;
  }
  return row_target(a, n, a.classes, given, kept, counted, a.batch_confidence);
}

// Gradients of a row are multiplied by this.
template <typename T>
FASTMIX_INLINE double gradient_scale(const SoftTargetArgs& a, int64_t n, double row_scale) {
  using A = accumulator_t<T>;
  const double g = a.row_grad != nullptr ? static_cast<const A*>(a.row_grad)[n * a.row_grad_step] : A(1);
  return a.scale * row_scale * g;
}

FASTMIX_INLINE double sum_named(const NamedClasses& named) {
  double sum = 0;
  for (int64_t i = 0; i < named.k; ++i) sum += named_weight(named, i);
  return sum;
}

// sum_j of class weight times t_j log t_j, for a row that names classes.
FASTMIX_INLINE double entropy_of(const SoftTargetArgs& a, const RowTarget& t) {
  double entropy = 0, rest = a.class_weight_sum;
  for (int64_t i = 0; i < t.named.k; ++i) {
    if (!is_first_of_class(t.named, i)) continue;
    const double weight = weight_of_class(t.named, i);
    rest -= weight;
    entropy += weight * xlogx(t.base + class_target(t.named, i));
  }
  return entropy + rest * xlogx(t.base);
}

FASTMIX_INLINE RowTarget dense_target_of(const SoftTargetArgs& a, int64_t n) {
  const double floor = a.loss == kBce ? 0.0 : a.smoothing / static_cast<double>(a.classes);
  return {NamedClasses{}, floor, 1.0, a.sample_weight != nullptr ? static_cast<double>(a.sample_weight[n]) : 1.0};
}

FASTMIX_INLINE bool is_ignored(const SoftTargetArgs& a, int64_t n) {
  for (int64_t i = 0; i < a.k; ++i) {
    if (a.index[n * a.k + i] != a.ignore_index) return false;
  }
  return a.index != nullptr;
}

// What every class of a row has as target: of a dense target, or base times the class weights.
template <typename A>
struct ClassTargets {
  const A* target;  // or null: base
  const float* class_weight;
  A keep, base;

  // w[i]: target of class at + i, times its weight. plain[i]: without it.
  FASTMIX_METHOD void load(int64_t at, int64_t n, A* w, A* plain) const {
    if (target != nullptr) {
      for (int64_t i = 0; i < n; ++i) plain[i] = target[at + i] * keep + base;
    } else {
      for (int64_t i = 0; i < n; ++i) plain[i] = base;
    }
    if (class_weight != nullptr) {
      for (int64_t i = 0; i < n; ++i) w[i] = plain[i] * static_cast<A>(class_weight[at + i]);
    } else {
      for (int64_t i = 0; i < n; ++i) w[i] = plain[i];
    }
  }
};

}  // namespace fastmix
