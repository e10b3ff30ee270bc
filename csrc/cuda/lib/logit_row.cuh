// A row of logits as the threads of a warp or block read it: 16 bytes at a time between its edges, kept in registers,
// staged in shared memory, or read again.
#pragma once

#include "cuda/lib/softmax.cuh"

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

// Where the packs of a row are once they have been read: that many of each thread in its registers, or
constexpr int kReadAgain = 0;  // in memory,
constexpr int kStaged = -1;    // or copied to shared memory, where each thread reads back what it has copied.

// The part of a row that one thread keeps: packs (-inf where the row has fewer), and an edge.
template <typename T, int kKept>
struct RowCache {
  Words<T, kPack<T>> packs[kKept > 0 ? kKept : 1];
  Words<T, 1> edge;
};

// All loads of a thread are issued together. Staged packs are on their way until `wait_for_row`.
template <int kThreads, int kKept, typename T>
FASTMIX_DEVICE void load_row(const RowView<T>& row, int t, RowCache<T, kKept>& cache, T* staging) {
  const T* packs = row.data + row.head;
  if constexpr (kKept > 0) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int pack = i * kThreads + t;
      cache.packs[i] = load_words<T, kPack<T>>(packs + pack * kPack<T>, pack < row.packs, lowest_words<T, kPack<T>>());
    }
  } else if constexpr (kKept == kStaged) {
    copy_packs_async<kThreads>(staging + t * kPack<T>, packs + t * kPack<T>, row.packs - t);
  }
  if (t < row.edges) cache.edge = load_words<T, 1>(row.data + row.edge(t), true);
}

template <int kKept>
FASTMIX_DEVICE void wait_for_row() {
  if constexpr (kKept == kStaged) wait_for_copies();
}

template <typename T, int N>
FASTMIX_DEVICE void to_accumulators(const Words<T, N>& words, accumulator_t<T> (&v)[N]) {
#pragma unroll
  for (int l = 0; l < N; ++l) v[l] = element<T, N>(words, l);
}

// f(j, words) for what thread t owns of the row: packs, then edges; words hold elements j and beyond. kPadded: f is
// called as well for packs of -inf behind the row's, which spares a condition a pack. kTogether: packs of a turn, where
// they are not in registers.
template <int kThreads, int kKept, bool kPadded = false, int kTogether = 2, typename T, typename F>
FASTMIX_DEVICE void visit_words(const RowView<T>& row, int t, const RowCache<T, kKept>& cache, const T* staging,
                                const F& f) {
  if constexpr (kKept > 0) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int pack = i * kThreads + t;
      if ((kPadded ? i * kThreads : pack) < row.packs) f(row.head + pack * kPack<T>, cache.packs[i]);
    }
  } else {
    const T* packs = kKept == kStaged ? staging : row.data + row.head;
#pragma unroll kTogether
    for (int pack = t; pack < row.packs; pack += kThreads) {
      f(row.head + pack * kPack<T>, to_words(load_elements<T, kPack<T>>(packs + pack * kPack<T>)));
    }
  }
  if (t < row.edges) f(row.edge(t), cache.edge);
}

// f(j, v) likewise, with values: v[i] is element j + i.
template <int kThreads, int kKept, bool kPadded = false, typename T, typename F>
FASTMIX_DEVICE void visit(const RowView<T>& row, int t, const RowCache<T, kKept>& cache, const T* staging, const F& f) {
  visit_words<kThreads, kKept, kPadded>(row, t, cache, staging, [&](int j, const auto& words) {
    constexpr int kCount = sizeof(words) >= 16 ? kPack<T> : 1;
    accumulator_t<T> v[kCount];
    to_accumulators<T, kCount>(words, v);
    f(j, v);
  });
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

// kAligned: the packs of logits lie at multiples of 16 bytes in this row too.
template <bool kAligned, typename T, int N>
FASTMIX_DEVICE void store_beside(T* row, int j, const accumulator_t<T> (&v)[N]) {
  if constexpr (kAligned && N * sizeof(T) == 16) {
    store_words<T, N>(row + j, rounded<T, N>(v));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) store(row + j + i, v[i]);
  }
}

// f(is_aligned) with a compile-time answer to whether the packs of logits are whole packs of the gradient as well.
template <typename T, typename F>
FASTMIX_DEVICE void with_alignment(const RowView<T>& row, const T* grad, const F& f) {
  if (is_aligned(grad + row.head)) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
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
