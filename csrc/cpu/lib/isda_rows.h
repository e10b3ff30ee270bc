// The table of isda_logits on its way into the logits and its gradient's way back, for isda.simd.cpp: rows (N, J),
// pixels (N, J, P).
//
// Pixels, diag, 2 x 19 x 97 x 97, A = 512, one thread of an EPYC 9005, all in the second-level cache; a clone of the
// logits takes 30 us, a read of them 15. Forward: 30 + labels 2 + table 5 = 37 predicted, 56 measured. Backward: the
// gradient of the logits is the incoming one itself; 15 + labels 2 + table's gradient 12 = 29 predicted, 48 measured
// (runs of 1 to 16 pixels: unaligned loads, a mispredicted length each). Python and autograd add 50. Together 160,
// against 60 for two clones; before blocks and runs it was 340. Labels without runs: 67 and 190. A gradient in
// channels_last is transposed first, 130 by itself.
#pragma once

#include "cpu/isda.h"
#include "cpu/lib/float_blocks.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

template <typename S, typename T = accumulator_t<S>>
void add_rows(const void* logits, int64_t row_stride, int64_t classes, const int32_t* slot, const void* table,
              int64_t begin, int64_t end, void* out_of) {
  for (int64_t n = begin; n < end; ++n) {
    const S* z = static_cast<const S*>(logits) + n * row_stride;
    S* out = static_cast<S*>(out_of) + n * classes;
    if (slot[n] < 0) {
      for (int64_t j = 0; j < classes; ++j) out[j] = z[j];
      continue;
    }
    const T* row = static_cast<const T*>(table) + slot[n] * classes;
    for (int64_t j = 0; j < classes; ++j) store(out + j, static_cast<T>(to_float(z[j]) + row[j]));
  }
}

template <typename S, typename T = accumulator_t<S>>
void add_pixels(const void* logits, const IsdaPixels& a, const void* table, int64_t begin, int64_t end, void* out_of) {
  const int64_t blocks = (a.pixels + kPixelBlock - 1) / kPixelBlock;
  int32_t mine[kPixelBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t n = block / blocks, first = block % blocks * kPixelBlock;
    const int64_t count = a.pixels - first < kPixelBlock ? a.pixels - first : kPixelBlock;
    const int64_t* labels = a.labels + n * a.pixels + first;
    for (int64_t p = 0; p < count; ++p) {
      const auto label = static_cast<uint64_t>(labels[p]), classes = static_cast<uint64_t>(a.classes);
      mine[p] = a.place[label < classes ? label : classes];
    }
    for (int64_t j = 0; j < a.classes; ++j) {
      const int64_t at = (n * a.classes + j) * a.pixels + first;
      const S* z = static_cast<const S*>(logits) + at;
      S* out = static_cast<S*>(out_of) + at;
      const T* of_class = static_cast<const T*>(table) + j * (a.slots + 1);
      int64_t p = 0;
#if defined(__AVX512F__)
      if constexpr (sizeof(S) == 4) {
        if (a.slots < 32) {  // the row of the table fits two registers: a permutation, not a gather
          const __m512 low = reinterpret_cast<__m512>(load_part(of_class, a.slots + 1));
          const __m512 high = reinterpret_cast<__m512>(load_part(of_class + 16, a.slots + 1 - 16));
          for (; p + 16 <= count; p += 16) {
            const __m512 added = _mm512_permutex2var_ps(low, _mm512_loadu_si512(mine + p), high);
            _mm512_storeu_ps(out + p, _mm512_add_ps(_mm512_loadu_ps(z + p), added));
          }
        }
      }
#endif
      for (; p < count; ++p) store(out + p, static_cast<T>(to_float(z[p]) + of_class[mine[p]]));
    }
  }
}

template <typename S, typename T = accumulator_t<S>>
void sum_rows(const void* grad, int64_t row_stride, int64_t rows, int64_t classes, const int32_t* slot, int64_t slots,
              int64_t begin, int64_t end, void* sums_of) {
  T* sums = static_cast<T*>(sums_of);
  for (int64_t u = 0; u < slots; ++u) {
    for (int64_t j = begin; j < end; ++j) sums[u * classes + j] = 0;
  }
  for (int64_t n = 0; n < rows; ++n) {
    if (slot[n] < 0) continue;
    const S* g = static_cast<const S*>(grad) + n * row_stride;
    T* row = sums + slot[n] * classes;
    for (int64_t j = begin; j < end; ++j) row[j] += to_float(g[j]);
  }
}

// n elements in the lanes of a vector, the others 0.
template <typename S, typename T = accumulator_t<S>>
FASTMIX_INLINE Vec<T> load_lanes(const S* p, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load_part(p, n);
  } else {
    Vec<T> v{};
    for (int i = 0; i < Simd<T>::kLanes && i < n; ++i) v[i] = to_float(p[i]);
    return v;
  }
}

int64_t find_runs(const int64_t* labels, int64_t images, int64_t pixels, int64_t* start, int64_t* label) {
  int64_t count = 0;
  start[0] = 0;
  for (int64_t n = 0; n < images; ++n) {
    const int64_t last = (n + 1) * pixels - 1;
    int64_t i = n * pixels;
#if defined(__AVX512F__)
    const __m512i step = _mm512_set_epi64(8, 7, 6, 5, 4, 3, 2, 1);
    for (; i + 8 <= last; i += 8) {
      const __m512i own = _mm512_loadu_si512(labels + i);
      const __mmask8 ends = _mm512_cmpneq_epi64_mask(own, _mm512_loadu_si512(labels + i + 1));
      const __m512i next = _mm512_add_epi64(_mm512_set1_epi64(i), step);
      _mm512_storeu_si512(start + count + 1, _mm512_maskz_compress_epi64(ends, next));
      _mm512_storeu_si512(label + count, _mm512_maskz_compress_epi64(ends, own));
      count += __builtin_popcount(ends);
    }
#endif
    for (; i <= last; ++i) {  // without branches
      start[count + 1] = i + 1;
      label[count] = labels[i];
      count += i == last || labels[i + 1] != labels[i] ? 1 : 0;
    }
  }
  return count;
}

template <typename S, typename T = accumulator_t<S>>
void sum_runs(const void* grad, const IsdaPixels& a, const IsdaRuns& runs, int64_t begin, int64_t end, void* sums_of,
              void* lanes_of) {
  constexpr int kLanes = Simd<T>::kLanes;
  T* sums = static_cast<T*>(sums_of);
  T* lanes = static_cast<T*>(lanes_of);
  const int64_t columns = end - begin;
  for (int64_t i = 0; i < a.slots * columns * kLanes; ++i) lanes[i] = 0;
  int64_t image = 0;
  for (int64_t r = 0; r < runs.count; ++r) {
    const int64_t first = runs.start[r], length = runs.start[r + 1] - first;
    if (first >= (image + 1) * a.pixels) ++image;
    if (runs.slot[r] == a.slots) continue;
    // All classes of a run, then the next run: its length is predicted once.
    const S* g = static_cast<const S*>(grad) + (image * a.classes + begin) * a.pixels + first - image * a.pixels;
    T* to = lanes + runs.slot[r] * columns * kLanes;
    if (length <= kLanes) {
      for (int64_t j = 0; j < columns; ++j) {
        store_vec(to + j * kLanes, load_vec<T>(to + j * kLanes) + load_lanes(g + j * a.pixels, length));
      }
      continue;
    }
    const int64_t whole = length / kLanes * kLanes;
    for (int64_t j = 0; j < columns; ++j, g += a.pixels) {
      Vec<T> s = load_vec<T>(to + j * kLanes) + load_lanes(g + whole, length - whole);
      for (int64_t p = 0; p < whole; p += kLanes) s += load_lanes(g + p, kLanes);
      store_vec(to + j * kLanes, s);
    }
  }
  for (int64_t u = 0; u < a.slots; ++u) {
    for (int64_t j = begin; j < end; ++j, lanes += kLanes) {
      double s = 0;
      for (int l = 0; l < kLanes; ++l) s += static_cast<double>(lanes[l]);
      sums[u * a.classes + j] = static_cast<T>(s);
    }
  }
}

template <typename S, typename T = accumulator_t<S>>
void sum_pixels(const void* grad, const IsdaPixels& a, const int32_t* slot, int64_t begin, int64_t end, void* sums_of,
                void* banks_of) {
  // Eight banks, so that an addition does not wait for the one before it.
  constexpr int kBanks = 8;
  T* sums = static_cast<T*>(sums_of);
  T* banks = static_cast<T*>(banks_of);
  const int64_t wide = a.slots + 1;
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = 0; i < kBanks * wide; ++i) banks[i] = 0;
    for (int64_t n = 0; n < a.images; ++n) {
      const S* g = static_cast<const S*>(grad) + (n * a.classes + j) * a.pixels;
      const int32_t* mine = slot + n * a.pixels;
      int64_t p = 0;
      for (; p + kBanks <= a.pixels; p += kBanks) {
#pragma GCC unroll 8
        for (int k = 0; k < kBanks; ++k) banks[k * wide + mine[p + k]] += to_float(g[p + k]);
      }
      for (; p < a.pixels; ++p) banks[mine[p]] += to_float(g[p]);
    }
    for (int64_t u = 0; u < a.slots; ++u) {
      double s = 0;
      for (int k = 0; k < kBanks; ++k) s += static_cast<double>(banks[k * wide + u]);
      sums[u * a.classes + j] = static_cast<T>(s);
    }
  }
}

}  // namespace
}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
