// The register tile of a matrix product, on packed operands: kTileRows x (kTileVectors vectors) accumulators. For
// *.simd.cpp. torch's BLAS is MKL, which takes its AVX2 path on AMD and cannot form its operand on the fly: the
// products of ISDA are small (100 x 640 by 640 x 640), symmetric, and their result is reduced at once, never stored.
#pragma once

#include <cstdint>

#include "core/common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastmix {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8, kTileVectors = 3;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 4, kTileVectors = 3;  // 12 of 16
#else
constexpr int kVectorBytes = 16, kTileRows = 4, kTileVectors = 2;
#endif

template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  static constexpr int kColumns = kLanes * kTileVectors;  // of a tile
};
template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
FASTMIX_INLINE Vec<T> load_vec(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
// The first n elements, the others 0.
template <typename T>
FASTMIX_INLINE Vec<T> load_part(const T* p, int64_t n) {
  Vec<T> v{};
  if (n >= Simd<T>::kLanes) return load_vec(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const auto mask = static_cast<__mmask16>(n > 0 ? (1u << n) - 1u : 0u);
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(mask, p));
  }
#endif
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];  // n <= 0: none
  return v;
}
template <typename T>
FASTMIX_INLINE void store_vec(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
template <typename T>
FASTMIX_INLINE void store_part(T* p, Vec<T> v, int64_t n) {
  if (n >= Simd<T>::kLanes) return store_vec(p, v);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
template <typename T>
FASTMIX_INLINE Vec<T> splat(T v) {
  return v - Vec<T>{};
}
template <typename T>
FASTMIX_INLINE T sum_lanes(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#endif
  T s = 0;
  for (int i = 0; i < Simd<T>::kLanes; ++i) s += v[i];
  return s;
}
template <typename T>
struct RegisterTile {
  Vec<T> at[kTileRows][kTileVectors];
};

template <typename T>
FASTMIX_INLINE void clear(RegisterTile<T>& t) {
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) t.at[r][v] = Vec<T>{};
  }
}

// whole: the tile lies inside the matrix; else only `rows` rows and `width` columns of it do.
template <typename T>
FASTMIX_INLINE void load_tile(RegisterTile<T>& t, const T* corner, int64_t ld, bool whole, int64_t rows,
                              int64_t width) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (whole) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) t.at[r][v] = load_vec(corner + r * ld + v * kLanes);
    }
    return;
  }
  clear(t);
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) t.at[r][v] = load_part(corner + r * ld + v * kLanes, width - v * kLanes);
  }
}
template <typename T>
FASTMIX_INLINE void store_tile(const RegisterTile<T>& t, T* corner, int64_t ld, bool whole, int64_t rows,
                               int64_t width) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (whole) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) store_vec(corner + r * ld + v * kLanes, t.at[r][v]);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) store_part(corner + r * ld + v * kLanes, t.at[r][v], width - v * kLanes);
  }
}

template <typename T>
FASTMIX_INLINE void add_tile(RegisterTile<T>& t, const RegisterTile<T>& other) {
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) t.at[r][v] += other.at[r][v];
  }
}

// t *= factor.
template <typename T>
FASTMIX_INLINE void scale(RegisterTile<T>& t, T factor) {
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) t.at[r][v] *= factor;
  }
}

// t += sum over k of a[k][row] * b[k][column] in the first kVectors vectors; a_step and b_step elements lie between
// two k.
template <typename T, int kVectors>
FASTMIX_INLINE void accumulate_vectors(RegisterTile<T>& t, const T* a, int64_t a_step, const T* b, int64_t b_step,
                                       int64_t k) {
  RegisterTile<T> acc = t;
  for (; k > 0; --k, a += a_step, b += b_step) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = load_vec(b + v * Simd<T>::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc.at[r][v] += a[r] * columns[v];
    }
  }
  t = acc;
}

// All columns, or only the vectors that hold the first `width`: the last panel of A = 640 is one of three wide.
template <typename T>
FASTMIX_INLINE void accumulate(RegisterTile<T>& t, const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t k,
                               int64_t width) {
  if (width <= Simd<T>::kLanes) return accumulate_vectors<T, 1>(t, a, a_step, b, b_step, k);
  if (width <= 2 * Simd<T>::kLanes) return accumulate_vectors<T, 2>(t, a, a_step, b, b_step, k);
  accumulate_vectors<T, kTileVectors>(t, a, a_step, b, b_step, k);
}

// Rows of src (ld apart) as [block of kTileRows][k][row]; missing rows of the last block are 0.
template <typename T>
FASTMIX_INLINE void pack_rows(const T* src, int64_t ld, int64_t rows, int64_t k, T* packed) {
  for (int64_t row = 0; row < rows; row += kTileRows) {
    for (int r = 0; r < kTileRows; ++r) {
      const T* from = src + (row + r) * ld;
      if (row + r < rows) {
        for (int64_t i = 0; i < k; ++i) packed[i * kTileRows + r] = from[i];
      } else {
        for (int64_t i = 0; i < k; ++i) packed[i * kTileRows + r] = T(0);
      }
    }
    packed += k * kTileRows;
  }
}

// Columns [0, width) of src (k rows, ld apart) as [k][kColumns]; missing columns are 0.
template <typename T>
FASTMIX_INLINE void pack_columns(const T* src, int64_t ld, int64_t k, int64_t width, T* packed) {
  constexpr int kColumns = Simd<T>::kColumns;
  for (int64_t i = 0; i < k; ++i, src += ld, packed += kColumns) {
    if (width >= kColumns) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        store_vec(packed + v * Simd<T>::kLanes, load_vec(src + v * Simd<T>::kLanes));
      }
    } else {
      for (int64_t j = 0; j < kColumns; ++j) packed[j] = j < width ? src[j] : T(0);
    }
  }
}

// The left operand of multiply: row blocks of kTileRows, `block` elements apart, whose columns are `step` apart. Packed
// by pack_rows, or a symmetric matrix as it lies (its last block reads up to kTileRows elements beyond the end).
template <typename T>
struct LeftOperand {
  const T* data;
  int64_t block, step;
};
template <typename T>
FASTMIX_INLINE LeftOperand<T> packed_operand(const T* packed, int64_t k) {
  return {packed, k * kTileRows, kTileRows};
}
template <typename T>
FASTMIX_INLINE LeftOperand<T> symmetric_operand(const T* matrix, int64_t k) {
  return {matrix, kTileRows, k};
}

// out (rows, width) = [out +] A b with b (k, width) row-major. panel: k * kColumns of scratch. lower: only the tiles
// that reach the diagonal or lie below it.
template <typename T>
FASTMIX_INLINE void multiply(LeftOperand<T> a, int64_t rows, int64_t k, const T* b, int64_t b_ld, int64_t width, T* out,
                             int64_t out_ld, bool add, T* panel, bool lower = false) {
  constexpr int kColumns = Simd<T>::kColumns;
  static_assert(kColumns % kTileRows == 0, "a panel begins with a block of rows");
  for (int64_t column = 0; column < width; column += kColumns) {
    const int64_t left = width - column;
    pack_columns(b + column, b_ld, k, left, panel);
    for (int64_t row = lower ? column : 0; row < rows; row += kTileRows) {
      const int64_t tall = rows - row < kTileRows ? rows - row : kTileRows;
      const bool whole = tall == kTileRows && left >= kColumns;
      T* corner = out + row * out_ld + column;
      RegisterTile<T> t;
      clear(t);
      accumulate(t, a.data + row / kTileRows * a.block, a.step, panel, kColumns, k, left);
      if (add) {  // last: sums of sums round less than one long sum
        RegisterTile<T> before;
        load_tile(before, corner, out_ld, whole, tall, left);
        add_tile(t, before);
      }
      store_tile(t, corner, out_ld, whole, tall, left);
    }
  }
}

}  // namespace fastmix
