// From the losses of rows to the loss of a batch: what all rows amount to, and their sum or mean in a fixed order.
#pragma once

#include "cuda/lib/soft_target_rows.cuh"

namespace fastmix {

// Rows up to which every block counts for itself.
constexpr int64_t kCountInBlock = 8192;

template <int kBlock>
FASTMIX_DEVICE BatchTotals count_rows(const SoftTargetParams& a) {
  __shared__ ReduceBuffer<double, kBlock, 3> buffer;
  double sums[3] = {0, 0, 0};  // rows that count, their class weights, their confidence
  for (int64_t n = threadIdx.x; n < a.rows; n += kBlock) {
    const NamedClasses named = named_classes(a, n);
    bool counts = false;
    double confidence = a.base != nullptr ? static_cast<double>(a.base[n]) : 0.0;
    for (int64_t i = 0; i < a.k; ++i) {
      counts |= is_counted(named, i);
      if (a.weighting == kByBatchMean) confidence += given_weight(named, i);
    }
    if (!counts) continue;
    sums[0] += 1;
    if (a.class_weight != nullptr && static_cast<uint64_t>(named.index[0]) < static_cast<uint64_t>(a.classes)) {
      sums[1] += weight_of_class(named, 0);
    }
    sums[2] += a.confidence != nullptr ? static_cast<double>(a.confidence[n]) : confidence;
  }
  int turn = 0;
  reduce<kBlock>(sums, 0.0, Plus(), buffer, turn);
  const bool labels = a.weight == nullptr && a.confidence == nullptr && a.loss != kBce;
  return {labels && a.class_weight != nullptr ? sums[1] : sums[0], sums[0] > 0 ? quotient(sums[2], sums[0]) : 0.0};
}

template <int kBlock>
FASTMIX_DEVICE BatchTotals batch_totals(const SoftTargetParams& a) {
  BatchTotals totals{static_cast<double>(a.rows), 0};
  if (a.index != nullptr && (a.reduction == kMean || a.weighting == kByBatchMean)) {
    totals = a.totals != nullptr ? BatchTotals{a.totals[0], a.totals[1]} : count_rows<kBlock>(a);
  }
  if (a.loss == kBce) totals.divisor *= a.classes;
  if (totals.divisor == 0) totals.divisor = 1;
  return totals;
}

// Sum or mean of the blocks' losses, by one block, in a fixed order.
template <int kBlock, typename A>
FASTMIX_DEVICE void reduce_blocks(const SoftTargetParams& a, int blocks, double divisor) {
  __shared__ ReduceBuffer<double, kBlock, 1> buffer;
  double sum[1] = {0};
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kBlock) sum[0] += load_coherent(a.block_loss + i);
  int turn = 0;
  reduce<kBlock>(sum, 0.0, Plus(), buffer, turn);
  if (threadIdx.x == 0) *static_cast<A*>(a.out) = static_cast<A>(quotient(sum[0], divisor));
}

// A block that has done its rows hands in its threads' losses; the last block to do so sums them up. (With one counter
// a launch, 0 before and afterwards. Where there is none, `soft_target_reduce` does it.)
template <int kBlock, typename A>
FASTMIX_DEVICE void finish_block(const SoftTargetParams& a, double loss, const BatchTotals& totals) {
  __shared__ ReduceBuffer<double, kBlock, 1> buffer;
  __shared__ bool is_last;
  double sum[1] = {loss};
  int turn = 0;
  reduce<kBlock>(sum, 0.0, Plus(), buffer, turn);
  const int blocks = static_cast<int>(gridDim.x);
  if (threadIdx.x == 0) {
    a.block_loss[blockIdx.x] = sum[0];
    is_last = blocks == 1;
    if (blocks > 1 && a.finished != nullptr) {
      __threadfence();  // the loss is there before it is counted
      is_last = atomicAdd(a.finished, 1u) + 1 == static_cast<unsigned>(blocks);
      __threadfence();  // and what others have counted is there for this block
      if (is_last) *a.finished = 0;
    }
  }
  __syncthreads();
  if (is_last) reduce_blocks<kBlock, A>(a, blocks, a.reduction == kMean ? totals.divisor : 1.0);
}

template <int kBlock, typename A>
FASTMIX_KERNEL void __launch_bounds__(kBlock)
    soft_target_reduce(const __grid_constant__ SoftTargetParams a, const __grid_constant__ int blocks) {
  const double divisor = a.reduction == kMean ? batch_totals<kBlock>(a).divisor : 1.0;
  reduce_blocks<kBlock, A>(a, blocks, divisor);
}

// Launches a kernel of blocks that call `finish_block`, and the reduction where they cannot do it.
template <int kBlock, typename A>
void launch_with_reduction(void (*kernel)(SoftTargetParams), const SoftTargetParams& a, int64_t blocks, size_t shared,
                           Stream stream) {
  launch(kernel, {blocks, kBlock, shared}, stream, a);
  if (a.reduction != kNone && (blocks == 0 || (blocks > 1 && a.finished == nullptr))) {
    launch(soft_target_reduce<kBlock, A>, {1, kBlock}, stream, a, static_cast<int>(blocks));
  }
}

}  // namespace fastmix
