// The inverse of a gather, for backward passes: for every source its readers in the order of (n, k), as a linked list.
//
// One launch without sort, scan or atomics: each entry looks for the next one of the same source, about N reads of
// an index array that lies in the first-level cache. Sums that follow the lists have a fixed order.
#pragma once

#include "cuda/lib/launch.h"

namespace fastmix {

constexpr int kChainThreads = 128;

struct SourceChains {
  const int64_t* index;  // (rows, k), values in [0, sources)
  int rows, k, sources;
  int* first;  // (sources): the first entry n * k + column that reads it, -1: none
  int* next;   // (rows * k): the next entry of the same source
};

FASTMIX_KERNEL void __launch_bounds__(kChainThreads) chain_kernel(const __grid_constant__ SourceChains a) {
  const int i = static_cast<int>(blockIdx.x) * kChainThreads + static_cast<int>(threadIdx.x);
  const int entries = a.rows * a.k;
  if (i >= a.sources + entries) return;
  const int64_t source = i < a.sources ? i : a.index[i - a.sources];
  int found = -1;
  for (int e = i < a.sources ? 0 : i - a.sources + 1; e < entries; ++e) {
    if (a.index[e] != source) continue;
    // A row with an index out of range is NaN as a whole: it depends on no source.
    bool valid = true;
    for (int c = 0; c < a.k; ++c) {
      const int64_t other = a.index[e / a.k * a.k + c];
      valid = valid && other >= 0 && other < a.sources;
    }
    if (!valid) continue;
    found = e;
    break;
  }
  (i < a.sources ? a.first[i] : a.next[i - a.sources]) = found;
}

inline void link_sources(const SourceChains& a, Stream stream) {
  const int64_t threads = a.sources + static_cast<int64_t>(a.rows) * a.k;
  launch(chain_kernel, {ceil_div(threads, kChainThreads), kChainThreads}, stream, a);
}

}  // namespace fastmix
