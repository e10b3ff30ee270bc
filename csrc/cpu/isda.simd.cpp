// isda_logits on the CPU: the table of quadratic forms (w_j - w_c)^T Sigma_c (w_j - w_c) over the present classes c,
// and its gradient.
//
// full: the product V Sigma_c lives in register tiles and is reduced against V at once. Sigma_c is symmetric, so a tile
// takes the rows above its diagonal block twice and those below not at all: a little over half the arithmetic.
// diag, shared, identity: differences are formed on the fly; two GEMMs on w^2 and w would cancel.

#include "cpu/isda.h"

#include "cpu/lib/float_blocks.h"
#include "cpu/lib/gemm_tile.h"
#include "cpu/lib/isda_rows.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

template <typename T>
void pack(const void* w, int64_t rows, int64_t k, void* packed) {
  pack_rows(static_cast<const T*>(w), k, rows, k, static_cast<T*>(packed));
}

template <typename T>
void multiply_rows(const void* packed, int64_t rows, int64_t k, const void* b, int64_t width, void* out, void* panel) {
  multiply(packed_operand(static_cast<const T*>(packed), k), rows, k, static_cast<const T*>(b), width, width,
           static_cast<T*>(out), width, false, static_cast<T*>(panel));
}

template <typename T>
void full_table(const IsdaArgs& a, const void* packed_of, int64_t begin, int64_t end, void* table_of, void* scratch) {
  constexpr int kLanes = Simd<T>::kLanes, kColumns = Simd<T>::kColumns;
  const T* packed = static_cast<const T*>(packed_of);
  const T* weight = static_cast<const T*>(a.weight);
  const int64_t blocks = (a.classes + kTileRows - 1) / kTileRows, width = a.width;
  T* v = static_cast<T*>(scratch);
  T* panel = v + blocks * kTileRows * width;
  T* sums = panel + width * kColumns;  // a vector for every row
  for (int64_t u = begin; u < end; ++u) {
    const T* own = weight + a.present[u] * width;
    const T* sigma = static_cast<const T*>(a.cov) + a.present[u] * width * width;
    for (int64_t i = 0; i < blocks; ++i) {
      const T* from = packed + i * kTileRows * width;
      T* to = v + i * kTileRows * width;
      for (int64_t k = 0; k < width; ++k) {
        for (int r = 0; r < kTileRows; ++r) to[k * kTileRows + r] = from[k * kTileRows + r] - own[k];
      }
    }
    for (int64_t i = 0; i < a.classes * kLanes; ++i) sums[i] = 0;
    for (int64_t b = 0; b < width; b += kColumns) {
      const int64_t left = width - b, last = left < kColumns ? width : b + kColumns;
      pack_columns(sigma + b, width, last, left, panel);
      Vec<T> own_vec[kTileVectors];
      for (int x = 0; x < kTileVectors; ++x) own_vec[x] = load_part(own + b + x * kLanes, left - x * kLanes);
      for (int64_t i = 0; i < blocks; ++i) {
        const T* rows = v + i * kTileRows * width;
        RegisterTile<T> t;
        clear(t);
        accumulate(t, rows, kTileRows, panel, kColumns, b, left);
        scale(t, T(2));
        accumulate(t, rows + b * kTileRows, kTileRows, panel + b * kColumns, kColumns, last - b, left);
        const int64_t first = i * kTileRows;
        if (a.classes - first >= kTileRows && left >= kColumns) {
#pragma GCC unroll 8
          for (int r = 0; r < kTileRows; ++r) {
            const T* w = weight + (first + r) * width + b;
            Vec<T> s = load_vec(sums + (first + r) * kLanes);
#pragma GCC unroll 4
            for (int x = 0; x < kTileVectors; ++x) s += t.at[r][x] * (load_vec(w + x * kLanes) - own_vec[x]);
            store_vec(sums + (first + r) * kLanes, s);
          }
        } else {
          for (int64_t r = 0; r < kTileRows && first + r < a.classes; ++r) {
            const T* w = weight + (first + r) * width + b;
            Vec<T> s = load_vec(sums + (first + r) * kLanes);
            for (int x = 0; x < kTileVectors; ++x) {
              s += t.at[r][x] * (load_part(w + x * kLanes, left - x * kLanes) - own_vec[x]);
            }
            store_vec(sums + (first + r) * kLanes, s);
          }
        }
      }
    }
    T* out = static_cast<T*>(table_of) + u * a.classes;
    for (int64_t j = 0; j < a.classes; ++j) out[j] = sum_lanes<T>(load_vec(sums + j * kLanes));
  }
}

template <typename T>
void full_gradient(const IsdaArgs& a, const void* packed_of, const void* e_of, int64_t begin, int64_t end,
                   void* grad_of, void* scratch) {
  constexpr int kColumns = Simd<T>::kColumns;
  const T* packed = static_cast<const T*>(packed_of);
  const T* weight = static_cast<const T*>(a.weight);
  T* grad = static_cast<T*>(grad_of);
  const int64_t blocks = (a.classes + kTileRows - 1) / kTileRows, width = a.width;
  T* m = static_cast<T*>(scratch);  // e_cj (w_j - w_c), packed; minus their sum in row c
  T* panel = m + blocks * kTileRows * width;
  T* total = panel + width * kColumns;
  for (int64_t u = 0; u < a.slots; ++u) {
    const int64_t c = a.present[u];
    const T* own = weight + c * width;
    const T* e = static_cast<const T*>(e_of) + u * a.classes;
    for (int64_t k = 0; k < width; ++k) total[k] = 0;
    for (int64_t j = 0; j < a.classes; ++j) {
      const T* w = weight + j * width;
      for (int64_t k = 0; k < width; ++k) total[k] += e[j] * (w[k] - own[k]);
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const T* from = packed + i * kTileRows * width;
      T* to = m + i * kTileRows * width;
      T factor[kTileRows];
      for (int r = 0; r < kTileRows; ++r) factor[r] = i * kTileRows + r < a.classes ? e[i * kTileRows + r] : T(0);
      for (int64_t k = 0; k < width; ++k) {
        for (int r = 0; r < kTileRows; ++r) {
          to[k * kTileRows + r] = factor[r] * (from[k * kTileRows + r] - own[k]);
        }
      }
    }
    T* row = m + c / kTileRows * kTileRows * width + c % kTileRows;
    for (int64_t k = 0; k < width; ++k) row[k * kTileRows] = -total[k];
    const T* sigma = static_cast<const T*>(a.cov) + c * width * width;
    for (int64_t b = begin * kColumns; b < end * kColumns && b < width; b += kColumns) {
      const int64_t left = width - b < kColumns ? width - b : kColumns;
      multiply(packed_operand<T>(m, width), a.classes, width, sigma + b, width, left, grad + b, width, u > 0, panel);
    }
  }
}

enum PairForm { kWeighted, kPlain, kTwoMatrices };

// acc[c][r] += sum over [a0, a1) of the terms of classes own[c] and rows w[r].
template <typename T, PairForm kForm, int C, int R>
FASTMIX_INLINE void pair_block(const IsdaArgs& a, const int64_t* own, int64_t j, int64_t a0, int64_t a1, T* table) {
  constexpr int kLanes = Simd<T>::kLanes;
  const T *wc[C], *sc[C], *wj[R], *pj[R];
  for (int c = 0; c < C; ++c) {
    wc[c] = static_cast<const T*>(a.weight) + own[c] * a.width;
    sc[c] = static_cast<const T*>(kForm == kWeighted ? a.cov
                                  : kForm == kPlain  ? a.weight
                                                     : a.product) +
            own[c] * a.width;
  }
  for (int r = 0; r < R; ++r) {
    wj[r] = static_cast<const T*>(a.weight) + (j + r) * a.width;
    pj[r] = kForm == kTwoMatrices ? static_cast<const T*>(a.product) + (j + r) * a.width : wj[r];
  }
  Vec<T> acc[C][R] = {};
  auto step = [&](int64_t at, auto load) __attribute__((always_inline)) {
    Vec<T> w[R], p[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      w[r] = load(wj[r] + at);
      if (kForm == kTwoMatrices) p[r] = load(pj[r] + at);
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const Vec<T> mine = load(wc[c] + at), other = kForm == kPlain ? mine : load(sc[c] + at);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> d = w[r] - mine;
        acc[c][r] += d * (kForm == kWeighted ? d * other : kForm == kPlain ? d : p[r] - other);
      }
    }
  };
  int64_t at = a0;
  for (; at + kLanes <= a1; at += kLanes) step(at, [](const T* p) { return load_vec(p); });
  if (at < a1) step(at, [n = a1 - at](const T* p) { return load_part(p, n); });
  for (int c = 0; c < C; ++c) {
    for (int r = 0; r < R; ++r) table[c * a.classes + j + r] += sum_lanes<T>(acc[c][r]);
  }
}

template <typename T, PairForm kForm, int C>
FASTMIX_INLINE void pair_strip(const IsdaArgs& a, int64_t u, int64_t j0, int64_t j1, int64_t a0, int64_t a1, T* table) {
  int64_t j = j0;
  for (; j + 4 <= j1; j += 4) pair_block<T, kForm, C, 4>(a, a.present + u, j, a0, a1, table + u * a.classes);
  for (; j < j1; ++j) pair_block<T, kForm, C, 1>(a, a.present + u, j, a0, a1, table + u * a.classes);
}

template <typename T, PairForm kForm>
void pair_table_of(const IsdaArgs& a, int64_t begin, int64_t end, T* table) {
  // 32 rows and 62 classes of 4 KB (with their variances) stay in the second-level cache.
  constexpr int64_t kChunk = 4096 / static_cast<int64_t>(sizeof(T)), kRows = 32;
  constexpr int C = kVectorBytes == 64 ? 4 : 2;
  for (int64_t u = 0; u < a.slots; ++u) {
    for (int64_t j = begin; j < end; ++j) table[u * a.classes + j] = 0;
  }
  for (int64_t a0 = 0; a0 < a.width; a0 += kChunk) {
    const int64_t a1 = a0 + kChunk < a.width ? a0 + kChunk : a.width;
    for (int64_t j0 = begin; j0 < end; j0 += kRows) {
      const int64_t j1 = j0 + kRows < end ? j0 + kRows : end;
      int64_t u = 0;
      for (; u + C <= a.slots; u += C) pair_strip<T, kForm, C>(a, u, j0, j1, a0, a1, table);
      for (; u < a.slots; ++u) pair_strip<T, kForm, 1>(a, u, j0, j1, a0, a1, table);
    }
  }
}

template <typename T>
void pair_table(const IsdaArgs& a, int64_t begin, int64_t end, void* table_of) {
  T* table = static_cast<T*>(table_of);
  if (a.kind == kDiag) return pair_table_of<T, kWeighted>(a, begin, end, table);
  if (a.kind == kIdentity) return pair_table_of<T, kPlain>(a, begin, end, table);
  pair_table_of<T, kTwoMatrices>(a, begin, end, table);
}

// kWeighted: Sigma is diagonal and enters here; else the caller multiplies by it (or it is 1).
template <typename T, bool kWeightedPair>
void pair_gradient_of(const IsdaArgs& a, const T* e, int64_t begin, int64_t end, T* grad, T* scratch) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t kWide = kPairBytes / static_cast<int64_t>(sizeof(T));
  T* own = scratch;                   // rows of the present classes, [slot][kWide]
  T* sigma = own + a.slots * kWide;   // their variances
  T* pull = sigma + a.slots * kWide;  // sum_j e_cj (w_j - w_c)
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t b = block * kWide, wide = a.width - b < kWide ? a.width - b : kWide;
    for (int64_t u = 0; u < a.slots; ++u) {
      const int64_t from = a.present[u] * a.width + b;
      for (int64_t i = 0; i < kWide; ++i) {
        own[u * kWide + i] = i < wide ? weight[from + i] : T(0);
        if (kWeightedPair) sigma[u * kWide + i] = i < wide ? static_cast<const T*>(a.cov)[from + i] : T(0);
        pull[u * kWide + i] = 0;
      }
    }
    for (int64_t j = 0; j < a.classes; j += 4) {
      const int64_t rows = a.classes - j < 4 ? a.classes - j : 4;
      const T* factor = e + j * a.slots;
      for (int64_t x = 0; x < wide; x += kLanes) {
        Vec<T> w[4], acc[4] = {};
        for (int r = 0; r < 4; ++r) {
          w[r] = r < rows ? load_part(weight + (j + r) * a.width + b + x, wide - x) : Vec<T>{};
        }
        for (int64_t u = 0; u < a.slots; ++u) {
          const Vec<T> mine = load_vec(own + u * kWide + x);
          Vec<T> s = load_vec(pull + u * kWide + x);
          Vec<T> variance{};
          if (kWeightedPair) variance = load_vec(sigma + u * kWide + x);
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) {
            const Vec<T> d = factor[u * 4 + r] * (w[r] - mine);
            s += d;
            acc[r] += kWeightedPair ? d * variance : d;
          }
          store_vec(pull + u * kWide + x, s);
        }
        for (int64_t r = 0; r < rows; ++r) store_part(grad + (j + r) * a.width + b + x, acc[r], wide - x);
      }
    }
    for (int64_t u = 0; u < a.slots; ++u) {
      T* row = grad + a.present[u] * a.width + b;
      for (int64_t i = 0; i < wide; ++i) {
        row[i] -= kWeightedPair ? pull[u * kWide + i] * sigma[u * kWide + i] : pull[u * kWide + i];
      }
    }
  }
}

template <typename T>
void pair_gradient(const IsdaArgs& a, const void* e, int64_t begin, int64_t end, void* grad, void* scratch) {
  if (a.kind == kDiag) {
    pair_gradient_of<T, true>(a, static_cast<const T*>(e), begin, end, static_cast<T*>(grad), static_cast<T*>(scratch));
  } else {
    pair_gradient_of<T, false>(a, static_cast<const T*>(e), begin, end, static_cast<T*>(grad),
                               static_cast<T*>(scratch));
  }
}

}  // namespace

extern const IsdaKernels isda = {{Simd<float>::kColumns, Simd<double>::kColumns},
                                 {pack<float>, pack<double>},
                                 {multiply_rows<float>, multiply_rows<double>},
                                 {full_table<float>, full_table<double>},
                                 {full_gradient<float>, full_gradient<double>},
                                 {pair_table<float>, pair_table<double>},
                                 {pair_gradient<float>, pair_gradient<double>},
                                 FASTMIX_BY_FLOAT_TYPE(add_rows),
                                 FASTMIX_BY_FLOAT_TYPE(add_pixels),
                                 FASTMIX_BY_FLOAT_TYPE(sum_rows),
                                 find_runs,
                                 FASTMIX_BY_FLOAT_TYPE(sum_runs),
                                 FASTMIX_BY_FLOAT_TYPE(sum_pixels)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
