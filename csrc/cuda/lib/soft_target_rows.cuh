// Loss and gradient of one row of soft_target by the threads that share it: sparse, dense, and sigmoid targets.
#pragma once

#include <cmath>

#include "core/soft_target.h"
#include "cuda/lib/logit_row.cuh"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

struct SoftTargetParams : SoftTargetRowData {
  int64_t rows;  // N, or N * P
  int classes;   // J
  Reduction reduction;
  double* totals;      // two elements of workspace where the rows are counted first (BatchTotals), else null
  void* out;           // () or (N) in the accumulation type
  double* block_loss;  // workspace of mean and sum: one element a block, at most one a row
  unsigned* finished;  // blocks that have handed in their loss, 0 before the launch; or null (finished.h)
};

// What all rows amount to. divisor: of a mean, at least 1 row; confidence: mean over the rows that count.
struct BatchTotals {
  double divisor, confidence;
};

// A row's target as the threads that share the row read it.
struct RowOf {
  RowTarget target;
  double named_sum;  // of the named weights
  bool in_range;     // every class that counts exists
  bool ignored;
};

// By one warp: K is small, and no barrier is needed. A single named class is read by every lane for itself.
FASTMIX_DEVICE RowOf row_of(const SoftTargetParams& a, int64_t n, double batch_confidence, int lane) {
  const NamedClasses named = named_classes(a, n);
  const int64_t first = a.k == 1 ? 0 : lane, step = a.k == 1 ? 1 : kWarpSize;
  double given = 0, kept = 0;
  int counted = 0, bad = 0;
  for (int64_t i = first; i < a.k; i += step) {
    const double weight = given_weight(named, i);
    given += weight;
    if (!is_counted(named, i)) continue;
    ++counted;
    kept += weight;
    bad |= static_cast<uint64_t>(named.index[i]) >= static_cast<uint64_t>(a.classes);
  }
  if (a.k > 1) {
    given = warp_reduce(given, Plus());
    kept = warp_reduce(kept, Plus());
    counted = warp_reduce(counted, Plus());
    bad = __any_sync(kAllLanes, bad);
  }
  RowOf row{row_target(a, n, a.classes, given, kept, counted, batch_confidence), 0, bad == 0, counted == 0};
  if (row.in_range) {
    for (int64_t i = first; i < a.k; i += step) row.named_sum += named_weight(row.target.named, i);
    if (a.k > 1) row.named_sum = warp_reduce(row.named_sum, Plus());
  }
  return row;
}

// Of a dense target.
FASTMIX_DEVICE RowOf dense_row_of(const SoftTargetParams& a, int64_t n) {
  const double floor = a.loss == kBce ? 0.0 : quotient(a.smoothing, a.classes);
  return {{{}, floor, 1.0, a.sample_weight != nullptr ? static_cast<double>(a.sample_weight[n]) : 1.0}, 0, true, false};
}

// Gradients of row n are multiplied by this.
template <typename A>
FASTMIX_DEVICE double gradient_scale(const SoftTargetParams& a, int64_t n, const RowOf& row,
                                     const BatchTotals& totals) {
  const double divided = a.reduction == kMean ? quotient(1.0, totals.divisor) : 1.0;
  const double g = a.row_grad != nullptr ? static_cast<const A*>(a.row_grad)[n * a.row_grad_step] : A(1);
  return divided * row.target.scale * g;
}

// sum_k w_k (z[index_k] - shift), by one warp.
template <typename T>
FASTMIX_DEVICE double dot_named(const NamedClasses& named, const T* z, double shift, int lane) {
  double dot = 0;
  for (int64_t i = lane; i < named.k; i += kWarpSize) {
    if (!is_counted(named, i)) continue;
    dot += weighted(named_weight(named, i), static_cast<double>(to_float(z[named.index[i]])) - shift);
  }
  return warp_reduce(dot, Plus());
}

// sum_j of class weight times t_j log t_j of base and named classes, by one warp. weights: sum of the class weights.
FASTMIX_DEVICE double entropy_named(const RowTarget& t, double weights, int lane) {
  double entropy = 0, distinct = 0;
  for (int64_t i = lane; i < t.named.k; i += kWarpSize) {
    if (!is_first_of_class(t.named, i)) continue;
    const double weight = weight_of_class(t.named, i);
    distinct += weight;
    entropy += weight * xlogx(t.base + class_target(t.named, i));
  }
  entropy = warp_reduce(entropy, Plus());
  distinct = warp_reduce(distinct, Plus());
  return entropy + (weights - distinct) * xlogx(t.base);
}

// Named classes and one base; a target of every class, dense or base times class weights; BCE of either.
enum class TargetKind { kSparse, kDense, kSigmoid };

// What the row functions share.
template <typename T, int kThreads, int kSums>
struct RowContext {
  ReduceBuffer<accumulator_t<T>, kThreads, 1>& max;
  ReduceBuffer<accumulator_t<T>, kThreads, kSums>& sums;
  const BatchTotals& totals;  // in shared memory
  T* staging;                 // shared memory for a row
  int t;
  int turn, max_turn;
};

// What the loops over a row need of its target. The rest is read again after them: kept, it would cost them registers.
struct RowStart {
  double base, share, named_sum, scale;  // scale: of gradients
  bool in_range, ignored;
};

// The row's target, read once more.
FASTMIX_DEVICE RowOf row_again(const SoftTargetParams& a, int64_t n, const BatchTotals& totals, int lane) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(n));  // else the compiler keeps what it has read before
#endif
  return a.index != nullptr ? row_of(a, n, totals.confidence, lane) : dense_row_of(a, n);
}

template <typename A>
FASTMIX_DEVICE RowStart row_start(const SoftTargetParams& a, int64_t n, const BatchTotals& totals, int lane) {
  const RowOf of = row_again(a, n, totals, lane);
  const double scale = a.grad != nullptr ? gradient_scale<A>(a, n, of, totals) : 0.0;
  return {of.target.base, of.target.share, of.named_sum, scale, of.in_range, of.ignored};
}

// The row functions return the row's loss, in the first warp of the group.

// A row that is ignored counts nothing, one with a class that does not exist is NaN.
template <int kThreads, int kKept, typename T>
FASTMIX_DEVICE double skipped_row(const SoftTargetParams& a, const RowStart& start, T* grad, int t) {
  wait_for_row<kKept>();
  if (grad != nullptr) fill_row<kThreads>(grad, a.classes, t, start.ignored ? T{} : nan_of<T>());
  return start.ignored ? 0.0 : NAN;
}

// The gradient of the named classes once more, rounded once, by other threads than wrote it before the barrier that
// precedes the call: value(class, base, its target beside base, its weight).
template <int kThreads, typename T, typename F>
FASTMIX_DEVICE void write_named(const RowTarget& target, T* grad, int t, const F& value) {
  const NamedClasses& named = target.named;
  for (int64_t i = t; i < named.k; i += kThreads) {
    if (!is_first_of_class(named, i)) continue;
    const int64_t j = named.index[i];
    store(grad + j,
          static_cast<accumulator_t<T>>(value(j, target.base, class_target(named, i), weight_of_class(named, i))));
  }
}

template <int kThreads, int kKept, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE A largest_of_row(const RowView<T>& row, const RowCache<T, kKept>& cache, const T* staging, int t,
                                ReduceBuffer<A, kThreads, 1>& buffer, int& turn) {
  Largest<T> largest;
  visit_words<kThreads, kKept, true, 4>(
      row, t, cache, staging, [&](int, const auto& v) { largest.template take<(sizeof(v) >= 16 ? kPack<T> : 1)>(v); });
  A max[1] = {largest.value()};
  reduce<kThreads>(max, -static_cast<A>(INFINITY), Larger(), buffer, turn);
  return max[0];
}

template <int kThreads, int kKept, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double sparse_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                 RowContext<T, kThreads, 2>& x) {
  const int t = x.t;
  const RowView<T> row(z, a.classes);
  RowCache<T, kKept> cache;
  load_row<kThreads, kKept>(row, t, cache, x.staging);
  const RowStart start = row_start<A>(a, n, x.totals, t % kWarpSize);
  if (!start.in_range || start.ignored) return skipped_row<kThreads, kKept>(a, start, grad, t);
  wait_for_row<kKept>();
  const A m = largest_of_row<kThreads, kKept>(row, cache, x.staging, t, x.max, x.max_turn);
  A sums[2] = {0, 0};  // exp(z - m), and where base asks for it z - m
  if (start.base == 0) {
    visit<kThreads, kKept, true>(row, t, cache, x.staging, [&](int, const auto& v) {
      constexpr int kCount = sizeof(v) / sizeof(v[0]);
      A e[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) e[i] = exp_nonpositive(v[i] - m);
      sums[0] += sum_of(e);
    });
  } else {
    visit<kThreads, kKept>(row, t, cache, x.staging, [&](int, const auto& v) {
      constexpr int kCount = sizeof(v) / sizeof(v[0]);
      A e[kCount], d[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        d[i] = v[i] - m;
        e[i] = exp_nonpositive(d[i]);
      }
      sums[0] += sum_of(e);
      sums[1] += sum_of(d);
    });
  }
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);

  const A c = static_cast<A>(start.scale * (start.named_sum + start.base * a.classes)) / sums[0];
  if (grad != nullptr) {
    const A b = static_cast<A>(start.scale * start.base);
    ScaledExponential<A> exponential(m, c);
    with_alignment(row, grad, [&](auto aligned) {
      // Without base the exponential is the gradient; 16 bits of it do not see how its factor is rounded.
      if (sizeof(T) == 2 && aligned && b == 0 && c > 0 && std::fabs(exponential.shift) < 128) {
        exponential.fold();
        visit<kThreads, kKept>(row, t, cache, x.staging, [&](int j, const auto& v) {
          constexpr int kCount = sizeof(v) / sizeof(v[0]);
          A g[kCount];
#pragma unroll
          for (int i = 0; i < kCount; ++i) g[i] = exponential.plain(v[i]);
          store_beside<true>(grad, j, g);
        });
        return;
      }
      visit<kThreads, kKept>(row, t, cache, x.staging, [&](int j, const auto& v) {
        constexpr int kCount = sizeof(v) / sizeof(v[0]);
        A g[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) g[i] = exponential(v[i]) - b;
        store_beside<decltype(aligned)::value>(grad, j, g);
      });
    });
    group_barrier<kThreads>();
  }
  const RowOf of = row_again(a, n, x.totals, t % kWarpSize);
  if (grad != nullptr) {
    write_named<kThreads>(of.target, grad, t, [&](int64_t j, double common, double named, double weight) {
      return exp_nonpositive(static_cast<A>(to_float(z[j])) - m) * c -
             static_cast<A>(start.scale * (common + named * weight));
    });
  }
  if (t >= kWarpSize) return 0;
  const double base = of.target.base, total = of.named_sum + base * a.classes;
  double loss = total * std::log(static_cast<double>(sums[0])) - weighted(base, sums[1]);
  loss -= dot_named(of.target.named, z, m, t);
  if (a.loss == kKl) loss += entropy_named(of.target, a.classes, t);
  return of.target.scale * loss;
}

// What every class has as target: of a dense row, or base; and the class weights.
template <typename A>
struct ClassTargets {
  const A* target;  // or null
  const float* class_weight;
  A keep, base;

  // plain: targets of classes j .. j + N; weight: of these classes.
  template <int N>
  FASTMIX_METHOD void load(int j, A (&plain)[N], A (&weight)[N]) const {
    if (target != nullptr) {
      load_beside(target, j, plain);
#pragma unroll
      for (int i = 0; i < N; ++i) plain[i] = plain[i] * keep + base;
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) plain[i] = base;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) weight[i] = class_weight != nullptr ? static_cast<A>(class_weight[j + i]) : A(1);
  }
};

template <int kThreads, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double dense_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                RowContext<T, kThreads, 5>& x) {
  const int t = x.t;
  const RowView<T> row(z, a.classes);
  RowCache<T, kReadAgain> cache;
  load_row<kThreads>(row, t, cache, x.staging);
  const RowStart start = row_start<A>(a, n, x.totals, t % kWarpSize);
  if (!start.in_range || start.ignored) return skipped_row<kThreads, kReadAgain>(a, start, grad, t);
  const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const ClassTargets<A> targets{target, a.class_weight, static_cast<A>(1.0 - a.smoothing), static_cast<A>(start.base)};
  const A m = largest_of_row<kThreads>(row, cache, x.staging, t, x.max, x.max_turn);
  A sums[5] = {0, 0, 0, 0, 0};  // exp(z - m), w, w (z - m), and of class weights c: c t log t, c
  visit<kThreads>(row, t, cache, x.staging, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
    A plain[kCount], weight[kCount];
    targets.load(j, plain, weight);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const A w = plain[i] * weight[i];
      sums[0] += exp_nonpositive(v[i] - m);
      sums[1] += w;
      sums[2] += w == 0 ? A(0) : w * (v[i] - m);
      if (a.loss == kKl && target != nullptr) {
        sums[3] += plain[i] == 0 ? A(0) : weight[i] * plain[i] * std::log(plain[i]);
      }
      sums[4] += weight[i];
    }
  });
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);
  const RowOf of = row_again(a, n, x.totals, t % kWarpSize);
  const double total = sums[1] + of.named_sum;
  if (grad != nullptr) {
    const double scale = start.scale;
    const A s = static_cast<A>(scale), c = static_cast<A>(scale * total) / sums[0];
    const ScaledExponential<A> exponential(m, c);
    with_alignment(row, grad, [&](auto aligned) {
      visit<kThreads>(row, t, cache, x.staging, [&](int j, const auto& v) {
        constexpr int kCount = sizeof(v) / sizeof(v[0]);
        A g[kCount], weight[kCount];
        targets.load(j, g, weight);
#pragma unroll
        for (int i = 0; i < kCount; ++i) g[i] = exponential(v[i]) - s * (g[i] * weight[i]);
        store_beside<decltype(aligned)::value>(grad, j, g);
      });
    });
    if (target == nullptr) {
      group_barrier<kThreads>();
      write_named<kThreads>(of.target, grad, t, [&](int64_t j, double common, double named, double weight) {
        return exp_nonpositive(static_cast<A>(to_float(z[j])) - m) * c -
               static_cast<A>(scale * ((common + named) * weight));
      });
    }
  }
  double loss = total * std::log(static_cast<double>(sums[0])) - sums[2] + sums[3];
  if (target == nullptr && t < kWarpSize) {
    loss -= dot_named(of.target.named, z, m, t);
    if (a.loss == kKl) loss += entropy_named(of.target, sums[4], t);
  }
  return of.target.scale * loss;
}

// softplus(z) - t z, gradient sigmoid(z) - t, of the share that counts and times the class weights: one pass.
template <int kThreads, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double sigmoid_row(const SoftTargetParams& a, int64_t n, const T* z, T* grad,
                                  RowContext<T, kThreads, 1>& x) {
  const int t = x.t;
  const RowView<T> row(z, a.classes);
  RowCache<T, kReadAgain> cache;
  load_row<kThreads>(row, t, cache, x.staging);
  const RowStart start = row_start<A>(a, n, x.totals, t % kWarpSize);
  if (!start.in_range || start.ignored) return skipped_row<kThreads, kReadAgain>(a, start, grad, t);
  const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const ClassTargets<A> targets{target, a.class_weight, A(1), static_cast<A>(start.base)};
  const A share = static_cast<A>(start.share), s = static_cast<A>(start.scale);
  A sums[1] = {0};
  with_alignment(row, grad, [&](auto aligned) {
    visit<kThreads>(row, t, cache, x.staging, [&](int j, const auto& v) {
      constexpr int kCount = sizeof(v) / sizeof(v[0]);
      A w[kCount], weight[kCount];
      targets.load(j, w, weight);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const A e = exp_nonpositive(-std::fabs(v[i])), wanted = w[i] * weight[i], kept = share * weight[i];
        sums[0] += kept * ((v[i] > 0 ? v[i] : A(0)) + log1p_unit(e)) - (wanted == 0 ? A(0) : wanted * v[i]);
        w[i] = s * (kept * quotient(v[i] >= 0 ? A(1) : e, A(1) + e) - wanted);
      }
      if (grad != nullptr) store_beside<decltype(aligned)::value>(grad, j, w);
    });
  });
  reduce<kThreads>(sums, A(0), Plus(), x.sums, x.turn);
  const RowOf of = row_again(a, n, x.totals, t % kWarpSize);
  if (a.index == nullptr) return of.target.scale * sums[0];
  if (grad != nullptr) {
    const double scale = gradient_scale<A>(a, n, of, x.totals);
    // The barrier of the sum orders these stores of a block after those above; a warp's shuffles do not.
    if constexpr (kThreads == kWarpSize) __syncwarp();
    write_named<kThreads>(of.target, grad, t, [&](int64_t j, double common, double named, double weight) {
      const A logit = static_cast<A>(to_float(z[j])), e = exp_nonpositive(-std::fabs(logit));
      return scale * weight * (of.target.share * (logit >= 0 ? A(1) : e) / (A(1) + e) - common - named);
    });
  }
  return t < kWarpSize ? of.target.scale * (sums[0] - dot_named(of.target.named, z, 0.0, t)) : 0.0;
}
}  // namespace fastmix
