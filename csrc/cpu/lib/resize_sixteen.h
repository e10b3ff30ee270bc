// resized_crop and its gradient with AVX-512, sixteen columns at a time, for crop.simd.cpp. Include inside no
// namespace.
//
// The elements between which sixteen neighbours lie are within 32 consecutive ones of a row unless the window shrinks.
// They are loaded straight from the rows of the image, masked so that the background takes the place of what lies
// outside, blended down the column first, then moved to their places by one or two permutations. What depends on the
// columns alone stays in registers for all rows of a strip; no row is resized into a buffer and read again.
//
// Floor: each shown byte read, each byte of the output written, at the rate of a clone. Prediction for 32 x 32 floats:
// 16 instructions for sixteen elements, 2.5 ns where a clone in the second-level cache takes 1.3, so twice the clone
// before its own overhead. Measured, one thread of a busy machine (process time): 62 us for 100 x 3 x 32 x 32 against a
// clone of 26 (216 before: rows were copied with a border, resized, and blended); 4.0 ms for 64 x 3 x 224 x 224 against
// 2.5, bfloat16 3.1 against 1.1 (the rounding to 16 bits is 7 instructions more).
#pragma once

#include "core/resize.h"
#include "cpu/crop.h"
#include "cpu/lib/sixteen.h"

#ifdef FASTMIX_SIXTEEN
namespace fastmix {

// Rows of a strip: as many of the images' rows stay in the first-level cache while the columns go by.
FASTMIX_INLINE int64_t strip_rows(int64_t length) { return length <= 128 ? 32 : 8; }

// Sixteen elements of an output row.
struct Sixteen {
  __m512i first, second;  // lanes of the 32 elements
  __m512 weight;          // of the second
  __mmask16 weighs, low, high, written;
  bool two, whole;  // whether they exceed 16, and whether all lie inside the image
  int64_t at;       // where the 32 begin in a row of the image; may be outside
};

// What an image's rows and columns come to: edges are the output rows from which on the lower of the two rows lies in
// the image, the upper one does, the lower one no longer does, nor the upper one.
struct ResizePlan {
  int64_t edges[4];
  const Sixteen* columns;
};

// False if sixteen neighbours lie farther apart than 32 elements.
FASTMIX_INLINE bool plan_resize(const CropArgs& a, const CropScratch& scratch, int64_t row, int64_t stop,
                                ResizePlan* plan) {
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel;
  Sixteen* columns = static_cast<Sixteen*>(scratch.sixteens);
  for (int64_t e = 0; e < length; e += 16) {
    const int64_t last = e + 15 < length ? e + 15 : length - 1;
    // Of whole pixels, so that the background's colours begin with the first channel.
    int64_t at = scratch.first[e] - e % a.pixel;
    const int64_t end = scratch.second[last] - last % a.pixel + a.pixel;
    if (end - at > 32) return false;
    const bool two = end - at > 16;
    // At the right edge a little earlier where that keeps all 16 or 32 inside.
    const int64_t latest = row_length + 1 - (two ? 32 : 16);
    if (a.pixel == 1 && end <= row_length + 1 && latest >= 1 && at > latest) at = latest;
    const __m512i base = _mm512_set1_epi32(static_cast<int>(at));
    const __m512 weight = _mm512_loadu_ps(static_cast<const float*>(scratch.weight) + e);
    const int64_t begin = at - a.pixel;  // columns are counted from one pixel to the left
    const __mmask16 low = lanes(-begin, row_length - begin), high = lanes(-begin - 16, row_length - begin - 16);
    *columns++ = {_mm512_sub_epi32(_mm512_loadu_si512(scratch.first + e), base),
                  _mm512_sub_epi32(_mm512_loadu_si512(scratch.second + e), base),
                  weight,
                  _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ),
                  low,
                  high,
                  lanes(0, length - e),
                  two,
                  low == 0xffff && (!two || high == 0xffff),
                  begin};
  }
  const int64_t lines[] = {-1, 0, a.height - 1, a.height};
  for (int64_t i = 0, r = row; i < 4; ++i) {
    while (r < stop && scratch.line[r] < lines[i]) ++r;
    plan->edges[i] = r;
  }
  plan->columns = static_cast<const Sixteen*>(scratch.sixteens);
  return true;
}

// first + weight (second - first) where the mask is set, else first.
FASTMIX_INLINE __m512 towards(__m512 first, __m512 second, __m512 weight, __mmask16 mask) {
  return _mm512_mask3_fmadd_ps(weight, _mm512_sub_ps(second, first), first, mask);
}

// Rows [begin, end) of the output, all between rows of the image of which the upper, the lower or both are shown.
// kWhole: the loads lie inside the image. Masked loads do not start the processor's prefetching (measured: 9 ms instead
// of 4 for 64 x 3 x 224 x 224), so whole ones are plain, and all rows of the next strip are asked for.
template <bool kTwo, bool kWhole, typename T>
static void resize_sixteen(const Sixteen& columns, const CropScratch& scratch, const T* src, int64_t row_length, T* dst,
                           int64_t length, int64_t begin, int64_t end, bool upper, bool lower) {
  const Sixteen k = columns;  // of this function alone, so that no store can change it
  const int32_t* lines = scratch.line;
  const int64_t ahead = strip_rows(length) * row_length;  // the rows of the next strip
  const __mmask16 low = upper ? k.low : 0, high = upper ? k.high : 0;
  const __mmask16 low_below = lower ? k.low : 0, high_below = lower ? k.high : 0;
  const __m512 background = _mm512_loadu_ps(static_cast<const float*>(scratch.background));
  const __m512 background_high = _mm512_loadu_ps(static_cast<const float*>(scratch.background) + 16);
  const float* shares = static_cast<const float*>(scratch.share);
  const auto row = [](const T* from, __mmask16 mask, __m512 behind) {
    if constexpr (kWhole) return load_sixteen(from);
    return load_sixteen(behind, mask, from);
  };
  for (int64_t r = begin; r < end; ++r) {
    const T* above = src + (lines[r] * row_length + k.at);
    _mm_prefetch(reinterpret_cast<const char*>(above + ahead), _MM_HINT_T0);
    const __m512 share = _mm512_set1_ps(shares[r]);
    const __mmask16 shared = _mm512_cmp_ps_mask(share, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    __m512 v = towards(row(above, low, background), row(above + row_length, low_below, background), share, shared);
    __m512 w;
    if constexpr (kTwo) {
      const __m512 next = towards(row(above + 16, high, background_high),
                                  row(above + row_length + 16, high_below, background_high), share, shared);
      w = _mm512_permutex2var_ps(v, k.second, next);
      v = _mm512_permutex2var_ps(v, k.first, next);
    } else {
      w = _mm512_permutexvar_ps(k.second, v);
      v = _mm512_permutexvar_ps(k.first, v);
    }
    store_sixteen(k.written, dst + r * length, towards(v, w, k.weight, k.weighs));
  }
}

// Rows [row, stop) of a plane; background holds its colour.
template <typename T>
FASTMIX_INLINE void resize_plane(const CropArgs& a, const CropScratch& scratch, const ResizePlan& plan, const T* src,
                                 T* dst, int64_t row, int64_t stop) {
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel, strip = strip_rows(length);
  const auto behind = [&](int64_t begin, int64_t end) {
    const float* background = static_cast<const float*>(scratch.background);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t e = 0; e < length; e += 16) {
        store_sixteen(lanes(0, length - e), dst + r * length + e, _mm512_loadu_ps(background + e));
      }
    }
  };
  behind(row, plan.edges[0]);
  for (int part = 0; part < 3; ++part) {
    for (int64_t begin = plan.edges[part]; begin < plan.edges[part + 1]; begin += strip) {
      const int64_t end = begin + strip < plan.edges[part + 1] ? begin + strip : plan.edges[part + 1];
      for (int64_t e = 0; e < length; e += 16) {
        const Sixteen& k = plan.columns[e / 16];
        const auto go = part == 1 && k.whole ? (k.two ? resize_sixteen<true, true, T> : resize_sixteen<false, true, T>)
                        : k.two              ? resize_sixteen<true, false, T>
                                             : resize_sixteen<false, false, T>;
        go(k, scratch, src, row_length, dst + e, length, begin, end, part > 0, part < 2);
      }
    }
  }
  behind(plan.edges[3], stop);
}

// ---------------------------------------------------------------- the gradient

// For every pixel of an axis of the image the pixels of the gradient that it is a neighbour of: those from first on,
// with their shares, kMost at most. Returns how many the fullest has, 0 if that is more than kMost.
constexpr int64_t kMost = 8;

FASTMIX_INLINE int64_t taps_of(const ResizeAxis& axis, int64_t grads, int64_t pixels, int32_t* before, float* weight,
                               int32_t* first, float* shares, int64_t stride) {
  for (int64_t j = 0; j < grads; ++j) {
    const SamplePosition p = axis.position(j);
    before[j] = static_cast<int32_t>(p.before);
    weight[j] = static_cast<float>(p.weight);
  }
  int64_t most = 1;
  for (int64_t x = 0, j = 0; x < pixels; ++x) {
    while (j < grads && before[j] < x - 1) ++j;
    first[x] = static_cast<int32_t>(j);
    for (int64_t t = 0; t < kMost; ++t) shares[t * stride + x] = 0;
    int64_t t = 0;
    for (; j + t < grads && before[j + t] <= x; ++t) {
      if (t == kMost) return 0;
      shares[t * stride + x] = before[j + t] == x ? 1 - weight[j + t] : weight[j + t];
    }
    if (t > most) most = t;
  }
  return most;
}

// Tables of an image, from its box. False if a pixel has too many neighbours, or sixteen pixels too wide a range.
FASTMIX_INLINE bool adjoint_tables(const CropArgs& a, const CropScratch& scratch, const double* box,
                                   AdjointTaps* taps) {
  const int64_t length = a.out_width * a.pixel;
  taps->rows = taps_of(ResizeAxis(box[0], box[2], a.height, a.out_height), a.height, a.out_height, scratch.line,
                       static_cast<float*>(scratch.share), scratch.tap_line, scratch.line_shares, a.out_height);
  int32_t* first = a.pixel == 1 ? scratch.first : scratch.spare;
  float* shares = a.pixel == 1 ? scratch.column_shares : scratch.pixel_shares;
  const int64_t stride = a.pixel == 1 ? scratch.row : a.out_width;
  taps->columns = taps_of(ResizeAxis(box[1], box[3], a.width, a.out_width), a.width, a.out_width, scratch.second,
                          static_cast<float*>(scratch.weight), first, shares, stride);
  if (taps->rows == 0 || taps->columns == 0) return false;
  for (int64_t e = 0; e < length; e += 16) {
    const int64_t begin = e / a.pixel, last = (e + 15 < length ? e + 15 : length - 1) / a.pixel;
    if ((first[last] + taps->columns - first[begin]) * a.pixel > 32) return false;
    // Earlier where that keeps all 32 inside.
    const int64_t at = first[begin] * a.pixel, latest = a.width * a.pixel - 32;
    scratch.block[e / 16] = static_cast<int32_t>(at <= latest ? at : latest >= 0 ? latest : at);
  }
  if (a.pixel == 1) return true;
  for (int64_t x = 0, e = 0; x < a.out_width; ++x) {
    for (int64_t c = 0; c < a.pixel; ++c, ++e) {
      scratch.first[e] = static_cast<int32_t>(first[x] * a.pixel + c);
      for (int64_t t = 0; t < kMost; ++t) scratch.column_shares[t * scratch.row + e] = shares[t * stride + x];
    }
  }
  return true;
}

// Rows [row, stop) of the gradient of a plane; kTaps at least taps.columns. Rows are summed first, then moved. kWhole:
// a row of the gradient has 32 elements, so no load needs a mask.
template <int kTaps, bool kWhole, typename T>
static void adjoint_plane(const CropArgs& a, const CropScratch& scratch, const AdjointTaps& taps, const T* grad, T* dst,
                          int64_t row, int64_t stop) {
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel, strip = strip_rows(length);
  const int32_t* tap_line = scratch.tap_line;
  const float* line_shares = scratch.line_shares;
  const int64_t ahead = strip * row_length;
  const __m512 none = _mm512_setzero_ps();
  for (; row < stop; row += strip) {
    const int64_t end = row + strip < stop ? row + strip : stop;
    for (int64_t e = 0; e < length; e += 16) {
      const int64_t at = scratch.block[e / 16];
      const __mmask16 low = lanes(0, row_length - at), high = lanes(0, row_length - at - 16);
      const __mmask16 written = lanes(0, length - e);
      __m512i from[kTaps];
      __m512 share[kTaps];
      __mmask16 weighs[kTaps];
      from[0] = _mm512_sub_epi32(_mm512_loadu_si512(scratch.first + e), _mm512_set1_epi32(static_cast<int>(at)));
      for (int t = 0; t < kTaps; ++t) {
        if (t > 0) from[t] = _mm512_add_epi32(from[t - 1], _mm512_set1_epi32(static_cast<int>(a.pixel)));
        share[t] = _mm512_loadu_ps(scratch.column_shares + t * scratch.row + e);
        weighs[t] = _mm512_cmp_ps_mask(share[t], _mm512_setzero_ps(), _CMP_NEQ_UQ);
      }
      for (int64_t y = row; y < end; ++y) {
        __m512 sums = _mm512_setzero_ps(), sums_high = sums, out = sums;
        for (int64_t t = 0; t < taps.rows; ++t) {
          // A row that weighs nothing does not count: it may be infinite, or beyond the gradient's last.
          const __m512 part = _mm512_set1_ps(line_shares[t * a.out_height + y]);
          const __mmask16 seen = _mm512_cmp_ps_mask(part, _mm512_setzero_ps(), _CMP_NEQ_UQ);
          const int64_t i = tap_line[y] + t < a.height ? tap_line[y] + t : a.height - 1;
          const T* line = grad + (i * row_length + at);
          if (t == 0) _mm_prefetch(reinterpret_cast<const char*>(line + ahead), _MM_HINT_T0);
          const __m512 v = kWhole ? load_sixteen(line) : load_sixteen(none, low, line);
          const __m512 w = kWhole ? load_sixteen(line + 16) : load_sixteen(none, high, line + 16);
          sums = _mm512_mask3_fmadd_ps(part, v, sums, seen);
          sums_high = _mm512_mask3_fmadd_ps(part, w, sums_high, seen);
        }
        for (int t = 0; t < kTaps; ++t) {
          const __m512 moved = _mm512_permutex2var_ps(sums, from[t], sums_high);
          out = _mm512_mask3_fmadd_ps(moved, share[t], out, weighs[t]);
        }
        store_sixteen(written, dst + y * length + e, out);
      }
    }
  }
}

template <bool kWhole, typename T>
FASTMIX_INLINE auto adjoint_of(const AdjointTaps& taps) {
  return taps.columns <= 2   ? adjoint_plane<2, kWhole, T>
         : taps.columns == 3 ? adjoint_plane<3, kWhole, T>
         : taps.columns == 4 ? adjoint_plane<4, kWhole, T>
                             : adjoint_plane<kMost, kWhole, T>;
}

}  // namespace fastmix
#endif
