// soft_target on the GPU: loss and gradient of a row, then the reduction over rows. Not yet run on a GPU.
//
// bytes: N*J*size read once, N*J*size written once with a gradient; flops: about 20 N*J (two exp).
// A row is read once from memory. Short rows stay in registers as they lie in memory (16 bytes a load, all loads of a
// thread in flight together, bfloat16 in half the registers of its floats); exp is taken twice rather than kept. Long
// rows are staged in shared memory, each thread reading back only what it copied, so no barrier is needed: 512 threads
// and 44 KB (21841 bfloat16) leave room for four blocks, whose loads and arithmetic overlap. Rows that do not fit
// there (beyond 32768 classes, or less shared memory) are read three times, twice from the second-level cache.
// Shape: a warp for a row of up to 4 packs a lane (8 rows a block, no barrier), 256 threads up to 4 packs a thread,
// 512 threads beyond. Blocks walk over rows (grid at most what fits the device), so each counts the rows that are not
// ignored once: a mean needs the count before the first gradient is written. Where that would read more than the rows,
// a launch of one block counts first.
// Rows whose address is not a multiple of 16 have a head and a tail of single elements.
#pragma once

#include <cmath>

#include "core/soft_target.h"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace fastmix {

struct SoftTargetParams {
  const void* logits;          // (N, J), classes contiguous
  int64_t row_stride;          // elements between rows of logits
  int64_t rows;                // N
  int classes;                 // J
  const int64_t* index;        // (N, K), or null: dense target
  int64_t k;                   // K
  const float* weight;         // (N, K) or null: 1
  const float* base;           // (N) or null: 0
  const void* target;          // (N, J) in the accumulation type, when index is null
  const float* sample_weight;  // (N) or null: 1
  double smoothing;            // eps
  int64_t ignore_index;
  SoftTargetLoss loss;
  Reduction reduction;
  double* row_loss;  // (N), workspace of mean and sum
  int64_t* counted;  // one element of workspace where the rows are counted first, else null
  void* out;         // () or (N) in the accumulation type
  void* grad;        // (N, J) contiguous, or null: not wanted
  bool staged;       // set by the launcher: rows are copied to shared memory
};

constexpr int kSoftTargetBlock = 256;
// Rows up to which every block counts for itself.
constexpr int64_t kCountInBlock = 8192;

template <int kBlock>
FASTMIX_DEVICE int64_t count_rows(const SoftTargetParams& a) {
  __shared__ Scratch<int64_t, kBlock, 1> scratch;
  int64_t count[1] = {0};
  for (int64_t n = threadIdx.x; n < a.rows; n += kBlock) count[0] += a.index[n * a.k] != a.ignore_index;
  int turn = 0;
  reduce<kBlock>(count, int64_t{0}, Plus(), scratch, turn);
  return count[0];
}

// What a mean divides by; at least 1.
template <int kBlock>
FASTMIX_DEVICE double mean_divisor(const SoftTargetParams& a) {
  double divisor = static_cast<double>(a.rows);
  if (a.loss == kBce) {
    divisor *= a.classes;
  } else if (a.index != nullptr) {
    divisor = static_cast<double>(a.counted != nullptr ? *a.counted : count_rows<kBlock>(a));
  }
  return divisor > 0 ? divisor : 1.0;
}

// A row in memory: `head` elements up to a 16-byte boundary, whole packs, a tail. Head and tail are `edges`.
template <typename T>
struct RowView {
  const T* data;
  int head, packs, edges;

  FASTMIX_METHOD RowView(const T* row, int classes) : data(row) {
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16);
    const int to_boundary = past == 0 ? 0 : (16 - past) / static_cast<int>(sizeof(T));
    head = to_boundary < classes ? to_boundary : classes;
    packs = (classes - head) / kPack<T>;
    edges = classes - packs * kPack<T>;
  }
  FASTMIX_METHOD int edge(int i) const { return i < head ? i : packs * kPack<T> + i; }
};

// The part of a row that one thread keeps: kCached packs (0: none, they are read again), and an edge.
template <typename T, int kCached>
struct RowCache {
  Elements<T, kPack<T>> packs[kCached > 0 ? kCached : 1];
  Elements<T, 1> edge;
};

template <int kThreads, int kCached, typename T>
FASTMIX_DEVICE void load_row(const RowView<T>& row, int t, RowCache<T, kCached>& cache) {
  if constexpr (kCached > 0) {
#pragma unroll
    for (int i = 0; i < kCached; ++i) {
      const int pack = i * kThreads + t;
      if (pack < row.packs) cache.packs[i] = load_elements<T, kPack<T>>(row.data + row.head + pack * kPack<T>);
    }
  }
  if (t < row.edges) cache.edge.v[0] = row.data[row.edge(t)];
}

// Copies the packs of thread t to shared memory, where the same thread reads them again.
template <int kThreads, typename T>
FASTMIX_DEVICE const T* stage_row(const RowView<T>& row, int t, T* shared) {
#pragma unroll 4
  for (int pack = t; pack < row.packs; pack += kThreads) {
    store_elements<T, kPack<T>>(shared + pack * kPack<T>,
                                load_elements<T, kPack<T>>(row.data + row.head + pack * kPack<T>));
  }
  return shared;
}

template <typename T, int N>
FASTMIX_DEVICE void to_accumulators(const Elements<T, N>& e, accumulator_t<T> (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = to_float(e.v[i]);
}

// f(j, v) for all elements of the row that thread t owns: v[i] is element j + i. packs: where the first pack lies.
template <int kThreads, int kCached, typename T, typename F>
FASTMIX_DEVICE void visit(const RowView<T>& row, const T* packs, int t, const RowCache<T, kCached>& cache, const F& f) {
  accumulator_t<T> v[kPack<T>];
  if constexpr (kCached > 0) {
#pragma unroll
    for (int i = 0; i < kCached; ++i) {
      const int pack = i * kThreads + t;
      if (pack < row.packs) {
        to_accumulators(cache.packs[i], v);
        f(row.head + pack * kPack<T>, v);
      }
    }
  } else {
#pragma unroll 2
    for (int pack = t; pack < row.packs; pack += kThreads) {
      to_accumulators(load_elements<T, kPack<T>>(packs + pack * kPack<T>), v);
      f(row.head + pack * kPack<T>, v);
    }
  }
  if (t < row.edges) {
    accumulator_t<T> edge[1];
    to_accumulators(cache.edge, edge);
    f(row.edge(t), edge);
  }
}

// Values j .. j + N of a row of T that need not be aligned as the logits are.
template <typename T, int N>
FASTMIX_DEVICE void load_beside(const T* row, int j, accumulator_t<T> (&v)[N]) {
  if constexpr (N % kPack<T> == 0) {
    if (is_aligned(row + j)) {
#pragma unroll
      for (int i = 0; i < N; i += kPack<T>) {
        const Elements<T, kPack<T>> e = load_elements<T, kPack<T>>(row + j + i);
#pragma unroll
        for (int l = 0; l < kPack<T>; ++l) v[i + l] = to_float(e.v[l]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = to_float(row[j + i]);
}

template <typename T, int N>
FASTMIX_DEVICE void store_beside(T* row, int j, const accumulator_t<T> (&v)[N]) {
  Elements<T, N> e;
#pragma unroll
  for (int i = 0; i < N; ++i) store(&e.v[i], v[i]);
  if (N * sizeof(T) == 16 && is_aligned(row + j)) {
    store_elements<T, N>(row + j, e);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) row[j + i] = e.v[i];
  }
}

// The whole row gets one value, in the layout of the gradient itself.
template <int kThreads, typename T>
FASTMIX_DEVICE void fill_row(T* grad, int classes, int t, T value) {
  const RowView<T> row(grad, classes);
  Elements<T, kPack<T>> pack;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) pack.v[i] = value;
  for (int i = t; i < row.packs; i += kThreads) store_elements<T, kPack<T>>(grad + row.head + i * kPack<T>, pack);
  if (t < row.edges) grad[row.edge(t)] = value;
}

FASTMIX_DEVICE NamedClasses named_classes(const SoftTargetParams& a, int64_t n) {
  return {a.index + n * a.k, a.weight != nullptr ? a.weight + n * a.k : nullptr, a.k, 1.0 - a.smoothing};
}

FASTMIX_DEVICE double base_of(const SoftTargetParams& a, int64_t n) {
  return smoothed_base(a.base != nullptr ? static_cast<double>(a.base[n]) : 0.0, a.smoothing, a.classes);
}

FASTMIX_DEVICE double sample_weight_of(const SoftTargetParams& a, int64_t n) {
  return a.sample_weight != nullptr ? static_cast<double>(a.sample_weight[n]) : 1.0;
}

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
  Scratch<accumulator_t<T>, kThreads, 1>& max;
  Scratch<accumulator_t<T>, kThreads, kSums>& sums;
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
    const double s = x.scale * sample_weight_of(a, n), base = base_of(a, n);
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
  const double base = base_of(a, n);
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
  const A base = target == nullptr ? static_cast<A>(base_of(a, n)) : A(0), s = static_cast<A>(x.scale);
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
      store(grad + j,
            static_cast<A>(x.scale * ((logit >= 0 ? A(1) : e) / (A(1) + e) - base_of(a, n) - class_weight(named, i))));
    }
  }
  return t < kWarpSize ? sums[0] - dot_named(named, z, 0.0, t) : 0.0;
}

template <typename T, TargetKind kKind, int kThreads, int kCached, int kBlock>
FASTMIX_KERNEL void __launch_bounds__(kBlock, sizeof(T) == 8  ? 1
                                              : kBlock == 256 ? 3
                                                              : 2)
    soft_target_rows(const __grid_constant__ SoftTargetParams a) {
  using A = accumulator_t<T>;
  constexpr int kSums = kKind == TargetKind::kSparse ? 2 : kKind == TargetKind::kDense ? 4 : 1;
  __shared__ Scratch<A, kThreads, kSums> sums_scratch;
  __shared__ Scratch<A, kThreads, 1> max_scratch;
  FASTMIX_DYNAMIC_SHARED(T, staging);
  constexpr int kGroups = kBlock / kThreads;
  const double scale = a.reduction == kMean && a.grad != nullptr ? 1.0 / mean_divisor<kBlock>(a) : 1.0;
  RowContext<T, kThreads, kSums> x{
      max_scratch, sums_scratch, a.staged ? staging : nullptr, scale, static_cast<int>(threadIdx.x) % kThreads, 0, 0};
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kThreads; n < a.rows;
       n += static_cast<int64_t>(gridDim.x) * kGroups) {
    const T* z = static_cast<const T*>(a.logits) + n * a.row_stride;
    T* grad = a.grad != nullptr ? static_cast<T*>(a.grad) + n * a.classes : nullptr;
    double loss = 0;
    if (a.classes == 0 || (a.index != nullptr && a.index[n * a.k] == a.ignore_index)) {
      if (grad != nullptr) fill_row<kThreads>(grad, a.classes, x.t, T{});
    } else if constexpr (kKind == TargetKind::kSigmoid) {
      loss = sigmoid_row<kThreads>(a, n, z, grad, x);
    } else if constexpr (kKind == TargetKind::kDense) {
      loss = sample_weight_of(a, n) * dense_row<kThreads>(a, n, z, grad, x);
    } else {
      loss = sample_weight_of(a, n) * sparse_row<kThreads, kCached>(a, n, z, grad, x);
    }
    if (x.t == 0) {
      if (a.reduction == kNone) {
        static_cast<A*>(a.out)[n] = static_cast<A>(loss);
      } else {
        a.row_loss[n] = loss;
      }
    }
  }
}

// One block: the rows that count.
FASTMIX_KERNEL void __launch_bounds__(kSoftTargetBlock) soft_target_count(const __grid_constant__ SoftTargetParams a) {
  const int64_t count = count_rows<kSoftTargetBlock>(a);
  if (threadIdx.x == 0) *a.counted = count;
}

// One block: sum or mean of the row losses, in a fixed order.
template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kSoftTargetBlock) soft_target_reduce(const __grid_constant__ SoftTargetParams a) {
  __shared__ Scratch<double, kSoftTargetBlock, 1> scratch;
  double sum[1] = {0};
  for (int64_t n = threadIdx.x; n < a.rows; n += kSoftTargetBlock) sum[0] += a.row_loss[n];
  int turn = 0;
  reduce<kSoftTargetBlock>(sum, 0.0, Plus(), scratch, turn);
  const double divisor = a.reduction == kMean ? mean_divisor<kSoftTargetBlock>(a) : 1.0;
  if (threadIdx.x == 0) *static_cast<A*>(a.out) = static_cast<A>(sum[0] / divisor);
}

template <typename T, TargetKind kKind, int kThreads, int kCached, int kBlock>
void launch_rows(const SoftTargetParams& a, Stream stream, size_t shared = 0) {
  // 2048 threads fill a multiprocessor; more blocks would only count the rows more often.
  const int64_t resident = static_cast<int64_t>(multiprocessors()) * (2048 / kBlock);
  const int64_t wanted = ceil_div(a.rows, kBlock / kThreads);
  launch(soft_target_rows<T, kKind, kThreads, kCached, kBlock>, {wanted < resident ? wanted : resident, kBlock, shared},
         stream, a);
}

constexpr int kCachedPacks = 4;  // of a thread
constexpr int kStagedClasses = 32768;

template <typename T>
void sparse_rows(SoftTargetParams a, Stream stream) {
  if constexpr (sizeof(T) < 8) {
    if (a.classes <= 32 * kCachedPacks * kPack<T>) {
      return launch_rows<T, TargetKind::kSparse, 32, kCachedPacks, 256>(a, stream);
    }
    if (a.classes <= 256 * kCachedPacks * kPack<T>) {
      return launch_rows<T, TargetKind::kSparse, 256, kCachedPacks, 256>(a, stream);
    }
    const size_t bytes = static_cast<size_t>(a.classes) * sizeof(T);
    a.staged = a.classes <= kStagedClasses && bytes + 1024 <= max_shared_bytes();
    launch_rows<T, TargetKind::kSparse, 512, 0, 512>(a, stream, a.staged ? bytes : 0);
  } else {
    launch_rows<T, TargetKind::kSparse, 256, 0, 256>(a, stream);
  }
}

// A warp where it reads a row in a few turns.
template <typename T, TargetKind kKind>
void looped_rows(const SoftTargetParams& a, Stream stream) {
  if (sizeof(T) < 8 && a.classes <= 32 * kCachedPacks * kPack<T>) {
    launch_rows<T, kKind, 32, 0, 256>(a, stream);
  } else {
    launch_rows<T, kKind, 256, 0, 256>(a, stream);
  }
}

template <typename T>
void soft_target(const SoftTargetParams& a, Stream stream) {
  using A = accumulator_t<T>;
  if (a.counted != nullptr) launch(soft_target_count, {1, kSoftTargetBlock}, stream, a);
  if (a.loss == kBce) {
    looped_rows<T, TargetKind::kSigmoid>(a, stream);
  } else if (a.index == nullptr) {
    looped_rows<T, TargetKind::kDense>(a, stream);
  } else {
    sparse_rows<T>(a, stream);
  }
  if (a.reduction != kNone) launch(soft_target_reduce<A>, {1, kSoftTargetBlock}, stream, a);
}

// Whether `counted` is needed: a mean over rows that may be ignored, more of them than a block should read.
inline bool soft_target_counts_first(const SoftTargetParams& a) {
  return a.reduction == kMean && a.loss != kBce && a.index != nullptr && a.rows > kCountInBlock;
}

// ---------------------------------------------------------------- grad *= g

// Backward: the stored gradient times the incoming one, which nearly always is 1: then nothing is read or written.
struct ScaleParams {
  void* grad;     // (N, J) contiguous
  const void* g;  // () or (N) in the accumulation type
  int64_t rows, row_elements;
  bool per_row;
};

template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kSoftTargetBlock) scale_gradient_kernel(const __grid_constant__ ScaleParams a) {
  using A = accumulator_t<T>;
  const A* g = static_cast<const A*>(a.g);
  if (!a.per_row && *g == A(1)) return;
  const int64_t elements = a.rows * a.row_elements;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSoftTargetBlock * N;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kSoftTargetBlock + threadIdx.x) * N; i < elements; i += step) {
    T* at = static_cast<T*>(a.grad) + i;
    Elements<T, N> e = load_elements<T, N>(at);
#pragma unroll
    for (int l = 0; l < N; ++l) {
      store(&e.v[l], static_cast<A>(to_float(e.v[l]) * g[a.per_row ? (i + l) / a.row_elements : 0]));
    }
    store_elements<T, N>(at, e);
  }
}

template <typename T>
void scale_gradient(const ScaleParams& a, Stream stream) {
  const int64_t elements = a.rows * a.row_elements;
  const bool packed = is_aligned(a.grad) && elements % kPack<T> == 0;
  const int64_t wanted = ceil_div(elements, kSoftTargetBlock * (packed ? kPack<T> : 1));
  const int64_t resident = static_cast<int64_t>(multiprocessors()) * 8;
  const LaunchShape shape{wanted < resident ? wanted : resident, kSoftTargetBlock};
  if (packed) {
    launch(scale_gradient_kernel<T, kPack<T>>, shape, stream, a);
  } else {
    launch(scale_gradient_kernel<T, 1>, shape, stream, a);
  }
}

}  // namespace fastmix
