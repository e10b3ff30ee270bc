// soft_target on the GPU: loss and gradient of a row, then the reduction over rows. Soft Augmentation
// Eq. 12-15. Not yet run on a GPU.
//
// bytes: N*J*size read once, N*J*size written once with a gradient; flops: about 20 N*J (two exp).
// A row is read once from memory. Short rows stay in registers as they lie in memory (16 bytes a load, all loads of a
// thread in flight together, bfloat16 in half the registers of its floats); exp is taken twice rather than kept. Long
// rows are staged in shared memory, each thread reading back only what it copied, so no barrier is needed: 512 threads
// and 44 KB (21841 bfloat16) leave room for two blocks, whose loads and arithmetic overlap. Rows that do not fit
// there (beyond 32768 classes, or less shared memory) are read three times, twice from the second-level cache.
// Shape: a warp for a row of up to 4 packs a lane (8 rows a block, no barrier), 256 threads up to 4 packs a thread,
// 512 threads beyond. Blocks walk over rows (grid at most what fits the device), so each counts the rows that are not
// ignored once: a mean needs the count before the first gradient is written. Where that would read more than the rows,
// a launch of one block counts first.
// Rows whose address is not a multiple of 16 have a head and a tail of single elements.
#pragma once

#include "cuda/lib/soft_target_rows.cuh"

namespace fastmix {

constexpr int kSoftTargetBlock = 256;
// Rows up to which every block counts for itself.
constexpr int64_t kCountInBlock = 8192;

template <int kBlock>
FASTMIX_DEVICE int64_t count_rows(const SoftTargetParams& a) {
  __shared__ ReduceBuffer<int64_t, kBlock, 1> buffer;
  int64_t count[1] = {0};
  for (int64_t n = threadIdx.x; n < a.rows; n += kBlock) count[0] += a.index[n * a.k] != a.ignore_index;
  int turn = 0;
  reduce<kBlock>(count, int64_t{0}, Plus(), buffer, turn);
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

template <typename T, TargetKind kKind, int kThreads, int kCached, int kBlock>
FASTMIX_KERNEL void __launch_bounds__(kBlock, sizeof(T) == 8  ? 1
                                              : kBlock == 256 ? 3
                                                              : 2)
    soft_target_rows(const __grid_constant__ SoftTargetParams a) {
  using A = accumulator_t<T>;
  constexpr int kSums = kKind == TargetKind::kSparse ? 2 : kKind == TargetKind::kDense ? 4 : 1;
  __shared__ ReduceBuffer<A, kThreads, kSums> sums_buffer;
  __shared__ ReduceBuffer<A, kThreads, 1> max_buffer;
  FASTMIX_DYNAMIC_SHARED(T, staging);
  constexpr int kGroups = kBlock / kThreads;
  const double scale = a.reduction == kMean && a.grad != nullptr ? 1.0 / mean_divisor<kBlock>(a) : 1.0;
  RowContext<T, kThreads, kSums> x{
      max_buffer, sums_buffer, a.staged ? staging : nullptr, scale, static_cast<int>(threadIdx.x) % kThreads, 0, 0};
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
  __shared__ ReduceBuffer<double, kSoftTargetBlock, 1> buffer;
  double sum[1] = {0};
  for (int64_t n = threadIdx.x; n < a.rows; n += kSoftTargetBlock) sum[0] += a.row_loss[n];
  int turn = 0;
  reduce<kSoftTargetBlock>(sum, 0.0, Plus(), buffer, turn);
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

}  // namespace fastmix
