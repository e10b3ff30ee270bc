// A row of logits as the threads of a warp or block read it: 16 bytes at a time between its edges, kept in registers,
// staged in shared memory, or read again.
#pragma once

#include "cuda/lib/pack.cuh"

namespace fastmix {

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
}  // namespace fastmix
