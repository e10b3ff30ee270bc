// The inverse of a gather, for backward passes: for every source its readers in the order of (n, k).
//
// One launch without sort, scan or atomics: a reader's place among them all is the number of those that come before it,
// of a smaller source or earlier with the same one. The lanes of a warp count for kRankedAtOnce of them over keys that
// the block holds in shared memory, one load for all: 1536 items of a batch of 256 at K = 5 take 1280 / 32 turns of 3
// instructions an item. Sums that follow the order are the same every time.
#pragma once

#include "cuda/lib/reduce.cuh"

namespace fastmix {

constexpr int kRankThreads = 128, kRankedAtOnce = 8, kRankKeys = 2048;

struct SourceReaders {
  const int64_t* index;  // (rows, k), values in [0, sources)
  int rows, k, sources;
  int* begin;    // (sources + 1): readers[begin[m]] .. readers[begin[m + 1]] read source m
  int* readers;  // (rows * k): entries n * k + column, by source
};

// What entry e reads; `sources` where it reads nothing: a row with an index out of range is NaN as a whole.
FASTMIX_DEVICE int source_of(const SourceReaders& a, int e) {
  const int64_t* row = a.index + static_cast<int64_t>(e / a.k) * a.k;
  bool valid = true;
  for (int c = 0; c < a.k; ++c) valid = valid && row[c] >= 0 && row[c] < a.sources;
  return valid ? static_cast<int>(a.index[e]) : a.sources;
}

// Items: the entries, then the bounds of the sources.
FASTMIX_KERNEL void __launch_bounds__(kRankThreads) rank_kernel(const __grid_constant__ SourceReaders a) {
  __shared__ int keys[kRankKeys];
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarpSize;
  const int entries = a.rows * a.k, items = entries + a.sources + 1;
  const int first = (static_cast<int>(blockIdx.x) * (kRankThreads / kWarpSize) + t / kWarpSize) * kRankedAtOnce;
  int key[kRankedAtOnce], place[kRankedAtOnce], before[kRankedAtOnce] = {};
#pragma unroll
  for (int i = 0; i < kRankedAtOnce; ++i) {
    const int item = first + i;
    key[i] = item < entries ? source_of(a, item) : item - entries;
    place[i] = item < entries ? item : 0;
  }
  for (int from = 0; from < entries; from += kRankKeys) {
    const int count = entries - from < kRankKeys ? entries - from : kRankKeys;
    if (from > 0) __syncthreads();  // the keys before have been read
    for (int i = t; i < count; i += kRankThreads) keys[i] = source_of(a, from + i);
    __syncthreads();
    for (int e = lane; e < count; e += kWarpSize) {
      const int other = keys[e];
#pragma unroll
      for (int i = 0; i < kRankedAtOnce; ++i) {
        before[i] += other < key[i] || (other == key[i] && from + e < place[i]) ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRankedAtOnce; ++i) {
    const int rank = warp_reduce(before[i], Plus()), item = first + i;
    if (lane != 0 || item >= items) continue;
    if (item < entries) {
      a.readers[rank] = item;
    } else {
      a.begin[item - entries] = rank;
    }
  }
}

inline void find_readers(const SourceReaders& a, Stream stream) {
  const int64_t items = static_cast<int64_t>(a.rows) * a.k + a.sources + 1;
  const int in_block = kRankThreads / kWarpSize * kRankedAtOnce;
  launch(rank_kernel, {ceil_div(items, in_block), kRankThreads}, stream, a);
}

}  // namespace fastmix
