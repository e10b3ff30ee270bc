// The q-th percentile of an image's cells as a mask, by one block.
//
// Bit search: the threshold is the largest integer key that at least n - rank keys reach, found from its highest bit
// down with a count of the block for each bit. No sort, no atomics; equal keys stay together. Keys live in registers:
// 1 a thread up to 256 cells (a barrier that counts, 32 times: about a microsecond), 4 up to 1024, 16 of 1024 threads
// up to 16384. Larger maps are counted from memory, 32 passes over values that the second-level cache holds.
#pragma once

#include <type_traits>

#include "core/order_keys.h"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

// order_key as an unsigned integer of the same order.
FASTMIX_INLINE uint32_t search_key(float v) { return static_cast<uint32_t>(order_key(v)) ^ 0x80000000u; }
FASTMIX_INLINE uint64_t search_key(double v) { return static_cast<uint64_t>(order_key(v)) ^ (uint64_t{1} << 63); }

template <typename A>
using search_key_t = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;

// The percentiles asked for: one for all images, or one each.
struct Percentile {
  const void* q;
  bool is_double;
  int step;

  FASTMIX_METHOD int64_t rank(int64_t n, int64_t cells) const {
    const double value = is_double ? static_cast<const double*>(q)[n * step]
                                   : static_cast<double>(static_cast<const float*>(q)[n * step]);
    return percentile_rank(value, cells);
  }
};

// mask[i] = values[i] >= the one of this rank, for n values. kKeys: keys a thread keeps, 0: reads them each time.
// All kThreads threads call it; what wrote `values` is ordered before by a barrier.
template <int kThreads, int kKeys, typename A>
FASTMIX_DEVICE void percentile_mask(const A* values, int n, int64_t rank, uint8_t* mask) {
  using Key = search_key_t<A>;
  const int t = static_cast<int>(threadIdx.x), wanted = static_cast<int>(n - rank);
  Key keys[kKeys > 0 ? kKeys : 1];
#pragma unroll
  for (int i = 0; i < kKeys; ++i) keys[i] = t + i * kThreads < n ? search_key(values[t + i * kThreads]) : 0;
  __shared__ ReduceBuffer<int, kThreads, 1> buffer;
  int turn = 0;
  Key threshold = 0;
  for (int bit = static_cast<int>(sizeof(Key)) * 8 - 1; bit >= 0; --bit) {
    const Key tried = threshold | Key{1} << bit;  // never 0, so the missing keys never reach it
    int count;
    if constexpr (kKeys == 1) {
      count = __syncthreads_count(keys[0] >= tried);
    } else {
      int counts[1] = {0};
      if constexpr (kKeys > 0) {
#pragma unroll
        for (int i = 0; i < kKeys; ++i) counts[0] += keys[i] >= tried;
      } else {
        for (int i = t; i < n; i += kThreads) counts[0] += search_key(values[i]) >= tried;
      }
      reduce<kThreads>(counts, 0, Plus(), buffer, turn);
      count = counts[0];
    }
    if (count >= wanted) threshold = tried;
  }
  if constexpr (kKeys > 0) {
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      if (t + i * kThreads < n) mask[t + i * kThreads] = keys[i] >= threshold;
    }
  } else {
    for (int i = t; i < n; i += kThreads) mask[i] = search_key(values[i]) >= threshold;
  }
}

struct PercentileParams {
  const void* values;  // (images, cells)
  uint8_t* mask;
  int64_t images;
  int cells;
  Percentile q;
};

template <typename A, int kThreads, int kKeys>
FASTMIX_KERNEL void __launch_bounds__(kThreads) percentile_kernel(const __grid_constant__ PercentileParams a) {
  const int64_t n = blockIdx.x;
  percentile_mask<kThreads, kKeys>(static_cast<const A*>(a.values) + n * a.cells, a.cells, a.q.rank(n, a.cells),
                                   a.mask + n * a.cells);
}

constexpr int kMostKeys = 16384;  // that a block keeps in registers

template <typename A>
void percentile(const PercentileParams& a, Stream stream) {
  if (a.cells <= 256) {
    launch(percentile_kernel<A, 256, 1>, {a.images, 256}, stream, a);
  } else if (a.cells <= 1024) {
    launch(percentile_kernel<A, 256, 4>, {a.images, 256}, stream, a);
  } else if (a.cells <= kMostKeys) {
    launch(percentile_kernel<A, 1024, 16>, {a.images, 1024}, stream, a);
  } else {
    launch(percentile_kernel<A, 1024, 0>, {a.images, 1024}, stream, a);
  }
}

}  // namespace fastmix
