// Loss and gradient of one row of soft_target by the threads that share it: sparse, dense, and sigmoid targets.
#pragma once

#include <cmath>

#include "core/soft_target.h"
#include "cuda/lib/logit_row.cuh"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

struct SoftTargetParams : SoftTargetRowData {
  int64_t rows;  // N
  int classes;   // J
  Reduction reduction;
  int64_t* counted;  // one element of workspace where the rows are counted first, else null
  void* out;         // () or (N) in the accumulation type
  bool staged;       // set by the launcher: rows are copied to shared memory
};

// Sums over a row's named classes are taken by every warp for itself: K is small, and no barrier is needed.
FASTMIX_DEVICE double sum_named(const NamedClasses& named, int lane) {
  double weight = 0;
  for (int64_t i = lane; i < named.k; i += kWarpSize) weight += named_weight(named, i);
  return warp_reduce(weight, Plus());
}

FASTMIX_DEVICE bool any_out_of_range(const NamedClasses& named, int classes, int lane) {
  int bad = 0;
  for (int64_t i = lane; i < named.k; i += kWarpSize) {
    bad |= static_cast<uint64_t>(named.index[i]) >= static_cast<uint64_t>(classes);
  }
  return __any_sync(kAllLanes, bad) != 0;
}

// sum_k w_k (z[index_k] - shift), by one warp.
template <typename T>
FASTMIX_DEVICE double dot_named(const NamedClasses& named, const T* z, double shift, int lane) {
  double dot = 0;
  for (int64_t i = lane; i < named.k; i += kWarpSize) {
    dot += weighted(named_weight(named, i), static_cast<double>(to_float(z[named.index[i]])) - shift);
  }
  return warp_reduce(dot, Plus());
}

// sum_j t_j log t_j of base and named classes, by one warp.
FASTMIX_DEVICE double entropy_named(const NamedClasses& named, double base, int classes, int lane) {
  double entropy = 0, distinct = 0;
  for (int64_t i = lane; i < named.k; i += kWarpSize) {
    if (!is_first_of_class(named, i)) continue;
    distinct += 1;
    entropy += xlogx(base + class_weight(named, i));
  }
  entropy = warp_reduce(entropy, Plus());
  distinct = warp_reduce(distinct, Plus());
  return entropy + (classes - distinct) * xlogx(base);
}

enum class TargetKind { kSparse, kDense, kSigmoid };

// What the row functions share. scale: 1 / divisor of the gradients.
template <typename T, int kThreads, int kSums>
struct RowContext {
  ReduceBuffer<accumulator_t<T>, kThreads, 1>& max;
  ReduceBuffer<accumulator_t<T>, kThreads, kSums>& sums;
  T* staging;  // shared memory for a row, or null
  double scale;
  int t;
  int turn, max_turn;
};

// The row functions return the row's loss without its sample weight, in the first warp of the group.

template <int kThreads, int kCached, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double sparse_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                 RowContext<T, kThreads, 2>& x) {
  const int t = x.t;
  const double weight_sum = sum_named(named_classes(a, n), t % kWarpSize);
  if (any_out_of_range(named_classes(a, n), a.classes, t % kWarpSize)) {
    if (grad != nullptr) fill_row<kThreads>(grad, a.classes, t, nan_of<T>());
    return NAN;
  }
  const RowView<T> row(z, a.classes);
  RowCache<T, kCached> cache;
  load_row<kThreads, kCached>(row, t, cache);
  const T* packs = z + row.head;
  if (kCached == 0 && x.staging != nullptr) packs = stage_row<kThreads>(row, t, x.staging);
  A max[1] = {-INFINITY};
  visit<kThreads, kCached>(row, packs, t, cache, [&](int, const auto& v) {
    for (const A value : v) max[0] = Larger()(max[0], value);
  });
  reduce<kThreads>(max, -static_cast<A>(INFINITY), Larger(), x.max, x.max_turn);
  const A m = max[0];
  A sums[2] = {0, 0};  // exp(z - m), z - m
  visit<kThreads, kCached>(row, packs, t, cache, [&](int, const auto& v) {
    for (const A value : v) {
      sums[0] += exp_nonpositive(value - m);
      sums[1] += value - m;
    }
  });
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);

  if (grad != nullptr) {
    const double s = x.scale * sample_weight_of(a, n), base = base_of(a, n, a.classes);
    const A c = static_cast<A>(s * (weight_sum + base * a.classes)) / sums[0];
    const A b = static_cast<A>(s * base);
    visit<kThreads, kCached>(row, packs, t, cache, [&](int j, const auto& v) {
      constexpr int kCount = sizeof(v) / sizeof(v[0]);
      A g[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] = exp_nonpositive(v[i] - m) * c - b;
      store_beside(grad, j, g);
    });
    // The named classes once more, rounded once, by other threads than wrote them just now.
    group_barrier<kThreads>();
    const NamedClasses named = named_classes(a, n);
    for (int64_t i = t; i < named.k; i += kThreads) {
      if (!is_first_of_class(named, i)) continue;
      const int64_t j = named.index[i];
      const A e = exp_nonpositive(static_cast<A>(to_float(z[j])) - m);
      store(grad + j, static_cast<A>(e * c - static_cast<A>(s * (base + class_weight(named, i)))));
    }
  }
  if (t >= kWarpSize) return 0;
  const NamedClasses named = named_classes(a, n);
  const double base = base_of(a, n, a.classes);
  const double loss = (weight_sum + base * a.classes) * std::log(static_cast<double>(sums[0])) -
                      weighted(base, sums[1]) - dot_named(named, z, m, t);
  return a.loss == kKl ? loss + entropy_named(named, base, a.classes, t) : loss;
}

template <int kThreads, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double dense_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                RowContext<T, kThreads, 4>& x) {
  const int t = x.t;
  const A* target = static_cast<const A*>(a.target) + n * a.classes;
  const RowView<T> row(z, a.classes);
  RowCache<T, 0> cache;
  load_row<kThreads, 0>(row, t, cache);
  const T* packs = z + row.head;
  A max[1] = {-INFINITY};
  visit<kThreads, 0>(row, packs, t, cache, [&](int, const auto& v) {
    for (const A value : v) max[0] = Larger()(max[0], value);
  });
  reduce<kThreads>(max, -static_cast<A>(INFINITY), Larger(), x.max, x.max_turn);
  const A m = max[0];
  const A keep = static_cast<A>(1.0 - a.smoothing), floor = static_cast<A>(a.smoothing / a.classes);
  A sums[4] = {0, 0, 0, 0};  // exp(z - m), w, w (z - m), w log w
  visit<kThreads, 0>(row, packs, t, cache, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
    A w[kCount];
    load_beside(target, j, w);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const A weight = w[i] * keep + floor;
      sums[0] += exp_nonpositive(v[i] - m);
      sums[1] += weight;
      sums[2] += weight == 0 ? A(0) : weight * (v[i] - m);
      if (a.loss == kKl) sums[3] += weight == 0 ? A(0) : weight * std::log(weight);
    }
  });
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);
  if (grad != nullptr) {
    const A s = static_cast<A>(x.scale * sample_weight_of(a, n)), c = s * sums[1] / sums[0];
    visit<kThreads, 0>(row, packs, t, cache, [&](int j, const auto& v) {
      constexpr int kCount = sizeof(v) / sizeof(v[0]);
      A g[kCount];
      load_beside(target, j, g);
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] = exp_nonpositive(v[i] - m) * c - s * (g[i] * keep + floor);
      store_beside(grad, j, g);
    });
  }
  return static_cast<double>(sums[1]) * std::log(static_cast<double>(sums[0])) - sums[2] + sums[3];
}

// softplus(z) - t z, gradient sigmoid(z) - t: one pass over the row.
template <int kThreads, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double sigmoid_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                  RowContext<T, kThreads, 1>& x) {
  const int t = x.t;
  if (a.index != nullptr && any_out_of_range(named_classes(a, n), a.classes, t % kWarpSize)) {
    if (grad != nullptr) fill_row<kThreads>(grad, a.classes, t, nan_of<T>());
    return NAN;
  }
  const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const RowView<T> row(z, a.classes);
  RowCache<T, 0> cache;
  load_row<kThreads, 0>(row, t, cache);
  const A base = target == nullptr ? static_cast<A>(base_of(a, n, a.classes)) : A(0), s = static_cast<A>(x.scale);
  A sums[1] = {0};
  visit<kThreads, 0>(row, z + row.head, t, cache, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
    A w[kCount];
    if (target != nullptr) {
      load_beside(target, j, w);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) w[i] = base;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const A e = exp_nonpositive(v[i] > 0 ? -v[i] : v[i]);
      sums[0] += (v[i] > 0 ? v[i] : A(0)) + log1p_unit(e) - (w[i] == 0 ? A(0) : w[i] * v[i]);
      w[i] = s * ((v[i] >= 0 ? A(1) : e) / (A(1) + e) - w[i]);
    }
    if (grad != nullptr) store_beside(grad, j, w);
  });
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);
  if (a.index == nullptr) return sums[0];
  const NamedClasses named = named_classes(a, n);
  if (grad != nullptr) {
    // The barrier of the sum orders these stores of a block after those above; a warp's shuffles do not.
    if constexpr (kThreads == kWarpSize) __syncwarp();
    for (int64_t i = t; i < named.k; i += kThreads) {
      if (!is_first_of_class(named, i)) continue;
      const int64_t j = named.index[i];
      const A logit = static_cast<A>(to_float(z[j])), e = exp_nonpositive(logit > 0 ? -logit : logit);
      store(grad + j, static_cast<A>(x.scale * ((logit >= 0 ? A(1) : e) / (A(1) + e) - base_of(a, n, a.classes) -
                                                class_weight(named, i))));
    }
  }
  return t < kWarpSize ? sums[0] - dot_named(named, z, 0.0, t) : 0.0;
}
}  // namespace fastmix
