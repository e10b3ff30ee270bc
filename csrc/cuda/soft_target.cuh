// soft_target on the GPU: loss and gradient of a row, and in the last block to finish their sum or mean: one launch.
// Soft Augmentation Eq. 12-15. Not yet run on a GPU.
//
// bytes: N*J*size read once, N*J*size written once with a gradient; flops: 8 an element, two of them exp.
// Instructions an element of bfloat16 (SASS of sm_90, a block that stages its rows, no base): copy 0.7, maximum 0.6,
// sum 5.4 (to float, subtract, scale, ex2, add), gradient 4.3 (to float, multiply-add, ex2, half a rounding): 10.8, and
// with a base 12.8. The floor of two exponentials, a conversion for each, one maximum and one addition is 8. Four
// schedulers of 132 multiprocessors issue them in 0.3 of the time that the memory takes; the two ex2 take 0.45 of it.
// A row is read once from memory. Short rows stay in registers as they lie in memory (16 bytes a load, all loads of a
// thread in flight together, bfloat16 in half the registers of its floats); exp is taken twice rather than kept. Long
// rows are copied to shared memory past the registers, the whole row under way at once, each thread reading back only
// what it copied, so no barrier is needed: 256 threads and 44 KB (21841 bfloat16) leave room for three blocks, whose
// loads and arithmetic overlap. Rows that do not fit there (beyond 32768 classes, or less shared memory) are read three
// times, twice from the second-level cache.
// Shape: a warp for a row of up to 8 packs a lane (1024 float32, 2048 halves: 4 rows a block, no barrier), 256 threads
// beyond. Blocks walk over rows (grid at most what fits the device), so each counts the rows that are not ignored once:
// a mean needs the count before the first gradient is written. Where that would read more than the rows, a launch of
// one block counts first. Rows whose address is not a multiple of 16 have a head and a tail of single elements. Pixels:
// soft_target_pixels.cuh.
#pragma once

#include "cuda/lib/batch_loss.cuh"
#include "cuda/lib/soft_target_pixels.cuh"

namespace fastmix {

constexpr int kSoftTargetBlock = 256;
// What the registers of a thread leave room for: none of these spills.
template <typename T, TargetKind kKind, int kKept>
constexpr int blocks_per_sm() {
  if (sizeof(T) == 8) return 1;
  if (kKept > 0 || kKind == TargetKind::kDense) return 2;
  return sizeof(T) == 2 && kKind == TargetKind::kSigmoid ? 2 : 3;
}

template <typename T, TargetKind kKind, int kThreads, int kKept, int kBlock>
FASTMIX_KERNEL void __launch_bounds__(kBlock, (blocks_per_sm<T, kKind, kKept>()))
    soft_target_rows(const __grid_constant__ SoftTargetParams a) {
  using A = accumulator_t<T>;
  constexpr int kSums = kKind == TargetKind::kSparse ? 2 : kKind == TargetKind::kDense ? 5 : 1;
  __shared__ ReduceBuffer<A, kThreads, kSums> sums_buffer;
  __shared__ ReduceBuffer<A, kThreads, 1> max_buffer;
  FASTMIX_DYNAMIC_SHARED(T, staging);
  constexpr int kGroups = kBlock / kThreads;
  __shared__ BatchTotals totals;
  __shared__ double losses[kGroups];  // of the rows of each group, by its first thread: a register would be spilled
  const BatchTotals found = batch_totals<kBlock>(a);
  if (threadIdx.x == 0) totals = found;
  __syncthreads();
  RowContext<T, kThreads, kSums> x{
      max_buffer, sums_buffer, totals, staging, static_cast<int>(threadIdx.x) % kThreads, 0, 0};
  if (x.t == 0) losses[threadIdx.x / kThreads] = 0;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kThreads; n < a.rows;
       n += static_cast<int64_t>(gridDim.x) * kGroups) {
    const T* z = static_cast<const T*>(a.logits) + n * a.row_stride;
    T* grad = a.grad != nullptr ? static_cast<T*>(a.grad) + n * a.classes : nullptr;
    double loss = 0;
    if (a.classes > 0) {
      if constexpr (kKind == TargetKind::kSigmoid) {
        loss = sigmoid_row<kThreads>(a, n, z, grad, x);
      } else if constexpr (kKind == TargetKind::kDense) {
        loss = dense_row<kThreads>(a, n, z, grad, x);
      } else {
        loss = sparse_row<kThreads, kKept>(a, n, z, grad, x);
      }
    }
    if (x.t == 0) {
      losses[threadIdx.x / kThreads] += loss;
      if (a.reduction == kNone) static_cast<A*>(a.out)[n] = static_cast<A>(loss);
    }
  }
  if (a.reduction != kNone) finish_block<kBlock, A>(a, x.t == 0 ? losses[threadIdx.x / kThreads] : 0.0, totals);
}

// One block: what all rows amount to.
FASTMIX_KERNEL void __launch_bounds__(kSoftTargetBlock, 1)
    soft_target_count(const __grid_constant__ SoftTargetParams a) {
  const BatchTotals totals = count_rows<kSoftTargetBlock>(a);
  if (threadIdx.x != 0) return;
  a.totals[0] = totals.divisor;
  a.totals[1] = totals.confidence;
}

template <typename T, TargetKind kKind, int kThreads, int kKept, int kBlock>
void launch_rows(const SoftTargetParams& a, Stream stream, size_t shared = 0) {
  // 2048 threads fill a multiprocessor; more blocks would only count the rows more often.
  const int64_t resident = static_cast<int64_t>(multiprocessors()) * (2048 / kBlock);
  const int64_t wanted = ceil_div(a.rows, kBlock / kThreads);
  launch_with_reduction<kBlock, accumulator_t<T>>(soft_target_rows<T, kKind, kThreads, kKept, kBlock>, a,
                                                  wanted < resident ? wanted : resident, shared, stream);
}

// Packs of a thread: of a warp that has a row, and of a block.
constexpr int kWarpPacks = 8, kBlockPacks = 4;
constexpr int kStagedClasses = 32768;

template <typename T>
void sparse_rows(const SoftTargetParams& a, Stream stream) {
  constexpr TargetKind kKind = TargetKind::kSparse;
  if constexpr (sizeof(T) < 8) {
    if (a.classes <= 32 * kWarpPacks * kPack<T>) return launch_rows<T, kKind, 32, kWarpPacks, 128>(a, stream);
    if (a.classes <= 256 * kBlockPacks * kPack<T>) return launch_rows<T, kKind, 256, kBlockPacks, 256>(a, stream);
    const size_t bytes = static_cast<size_t>(a.classes) * sizeof(T);
    if (a.classes <= kStagedClasses && bytes + 1024 <= max_shared_bytes()) {
      return launch_rows<T, kKind, 256, kStaged, 256>(a, stream, bytes);
    }
  }
  launch_rows<T, kKind, 256, kReadAgain, 256>(a, stream);
}

// Whether a class that a row does not name may have a target.
inline bool has_base(const SoftTargetParams& a) {
  return a.base != nullptr || a.confidence != nullptr || a.smoothing != 0;
}

// A warp where it reads a row in a few turns.
template <typename T, TargetKind kKind>
void looped_rows(const SoftTargetParams& a, Stream stream) {
  if (sizeof(T) < 8 && a.classes <= 32 * kBlockPacks * kPack<T>) {
    launch_rows<T, kKind, 32, kReadAgain, 256>(a, stream);
  } else {
    launch_rows<T, kKind, 256, kReadAgain, 256>(a, stream);
  }
}

template <typename T>
void soft_target(const SoftTargetParams& a, Stream stream) {
  if (a.totals != nullptr) launch(soft_target_count, {1, kSoftTargetBlock}, stream, a);
  if (a.pixels > 0) {
    soft_target_pixels<T>(a, stream);
  } else if (a.loss == kBce) {
    looped_rows<T, TargetKind::kSigmoid>(a, stream);
  } else if (a.index == nullptr || (a.class_weight != nullptr && has_base(a))) {
    looped_rows<T, TargetKind::kDense>(a, stream);
  } else {
    sparse_rows<T>(a, stream);
  }
}

// Whether `totals` is needed: of a mean over rows that may be ignored, more of them than a block should read.
inline bool soft_target_counts_first(const SoftTargetParams& a) {
  return a.index != nullptr && a.rows > kCountInBlock && (a.reduction == kMean || a.weighting == kByBatchMean);
}

}  // namespace fastmix
