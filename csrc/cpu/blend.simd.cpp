// blend on the CPU: weighted sums of rows, forward and backward alike.
//
// Up to four sources are added in registers, in their order and from 0; more go through a block of sums in the
// first-level cache. Floor: every source row read once, every output element written once. A random permutation reads
// the batch K times; a batch beyond the caches is therefore mixed column by column (64x3x224x224 float32, K = 2, as a
// share of a clone into memory that was written before: 1.18 against 1.4 row by row).

#include "cpu/blend.h"

#include <type_traits>

#include "cpu/lib/float_blocks.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

constexpr int64_t kTogether = 4;

// to = (from or 0) + weight[0] * v[0] + ... + weight[kCount - 1] * v[kCount - 1]
template <int kCount, typename To, typename T, typename A>
void add_rows(To* to, const A* from, const T* const* v, const A* weight, int64_t n) {
  if (from == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      A sum = 0;
      for (int k = 0; k < kCount; ++k) sum += weight[k] * to_float(v[k][i]);
      store(to + i, sum);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      A sum = from[i];
      for (int k = 0; k < kCount; ++k) sum += weight[k] * to_float(v[k][i]);
      store(to + i, sum);
    }
  }
}

template <typename To, typename T, typename A>
void add_up_to_four(int64_t count, To* to, const A* from, const T* const* v, const A* weight, int64_t n) {
  switch (count) {
    case 1:
      return add_rows<1>(to, from, v, weight, n);
    case 2:
      return add_rows<2>(to, from, v, weight, n);
    case 3:
      return add_rows<3>(to, from, v, weight, n);
    default:
      return add_rows<4>(to, from, v, weight, n);
  }
}

template <typename T, typename A = accumulator_t<T>>
void piece(const BlendArgs& a, T* dst, int64_t first, int64_t last, int64_t at, int64_t end) {
  // Halves have instructions of their own, a block at a time; the other types convert inside the loop.
  constexpr bool kConverted = std::is_same_v<T, f16>;
  using V = std::conditional_t<kConverted, A, T>;
  const T* src = static_cast<const T*>(a.src);
  A sums[kBlock], buffers[kConverted ? kTogether : 1][kBlock];
  for (; at < end; at += kBlock) {
    const int64_t n = end - at < kBlock ? end - at : kBlock;
    for (int64_t i = first; i < last; i += kTogether) {
      const int64_t count = last - i < kTogether ? last - i : kTogether;
      const V* v[kTogether];
      A weight[kTogether];
      for (int64_t k = 0; k < count; ++k) {
        const T* row = src + a.source[i + k] * a.src_stride + at;
        if constexpr (kConverted) {
          v[k] = load_block(row, buffers[k], n);
        } else {
          v[k] = row;
        }
        weight[k] = static_cast<A>(a.weight[i + k]);
      }
      const A* from = i == first ? nullptr : sums;
      if (!kConverted && i + count == last) {
        add_up_to_four(count, dst + at, from, v, weight, n);
      } else {
        add_up_to_four(count, sums, from, v, weight, n);
      }
    }
    if constexpr (kConverted) store_block(dst + at, sums, n);
  }
}

template <typename T>
void pieces(const BlendArgs& a, int64_t begin, int64_t end) {
  const int64_t per_row = (a.elements + a.piece - 1) / a.piece;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t m = a.across ? item % a.rows : item / per_row;
    const int64_t at = (a.across ? item / a.rows : item % per_row) * a.piece;
    const int64_t stop = a.elements - at < a.piece ? a.elements : at + a.piece;
    const int64_t first = a.offset != nullptr ? a.offset[m] : m * a.k;
    const int64_t last = a.offset != nullptr ? a.offset[m + 1] : first + a.k;
    T* dst = static_cast<T*>(a.dst) + m * a.elements;
    if (first == last) {
      for (int64_t i = at; i < stop; ++i) store(dst + i, accumulator_t<T>(0));
    } else {
      piece(a, dst, first, last, at, stop);
    }
  }
}

}  // namespace

extern const BlendKernels blend = {FASTMIX_BY_FLOAT_TYPE(pieces)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
