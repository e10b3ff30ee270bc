// crop and resized_crop on the CPU, and the transposed interpolation.
//
// crop: a row of the output is a span of the image between two spans of background; with byte masks (AVX-512) the
// three are one load. resized_crop: the rows of the image between which output rows lie are resized to the output's
// width once each, from a padded copy that holds the background outside, then blended in pairs. Floor of both: every
// output element written once, every shown element read once. The gradient of resized_crop sums the output rows that
// touch a row of the image, then moves the sums to their columns: no order depends on threads.

#include "cpu/crop.h"

#include <cstring>
#include <type_traits>

#include "core/boxes.h"
#include "core/window.h"
#include "cpu/simd.h"
#include "cpu/spans.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// A row of `width` pixels of background from `colour`, one pixel.
void fill_row(char* row, const char* colour, int64_t pixel_bytes, int64_t width) {
  const int64_t bytes = width * pixel_bytes;
  int64_t done = pixel_bytes < bytes ? pixel_bytes : bytes;
  std::memcpy(row, colour, static_cast<size_t>(done));
  for (; done < bytes; done *= 2)
    std::memcpy(row + done, row, static_cast<size_t>(done < bytes - done ? done : bytes - done));
}

// ---------------------------------------------------------------- crop

#if defined(__AVX512BW__)
FASTMIX_INLINE __mmask64 bytes_below(int64_t n) { return n <= 0 ? 0 : n >= 64 ? ~0ull : (1ull << n) - 1; }

// Bytes [begin, end) of a row from src, which points at the same column, the others from background.
FASTMIX_INLINE void move_row(char* dst, const char* src, const char* background, int64_t begin, int64_t end,
                             int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    const __mmask64 shown = bytes_below(end - at) & ~bytes_below(begin - at), row = bytes_below(bytes - at);
    const __m512i behind = _mm512_maskz_loadu_epi8(row & ~shown, background + at);
    _mm512_mask_storeu_epi8(dst + at, row, _mm512_mask_loadu_epi8(behind, shown, src + at));
  }
}
#else
FASTMIX_INLINE void move_row(char* dst, const char* src, const char* background, int64_t begin, int64_t end,
                             int64_t bytes) {
  copy_span(dst, background, begin);
  copy_span(dst + begin, src + begin, end - begin);
  copy_span(dst + end, background, bytes - end);
}
#endif

void move(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  const int64_t pixel = a.pixel * a.element_size, row_bytes = a.width * pixel, plane_bytes = a.height * row_bytes;
  const char* fill = static_cast<const char*>(a.fill);
  char* background = static_cast<char*>(scratch.background);
  bool filled = false;
  while (item < end) {
    const int64_t n = item / a.height, row = item % a.height;
    const int64_t stop = a.height - row < end - item ? a.height : row + end - item;
    item += stop - row;
    // Clamped first: adding a row's number to any int64 could wrap.
    const int64_t down = clamp_between(a.shift[2 * n], -a.height, a.height);
    const int64_t right = clamp_between(a.shift[2 * n + 1], -a.width, a.width);
    // Rows [top, bottom) and bytes [begin, limit) of a row of the output show the image.
    const int64_t top = clamp_between(-down, row, stop), bottom = clamp_between(a.height - down, top, stop);
    const int64_t begin = (right < 0 ? -right : 0) * pixel, limit = row_bytes - (right > 0 ? right : 0) * pixel;
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      if (!filled || a.fill_stride > 0) {  // a number is the same for every channel
        fill_row(background, fill + (n * a.fill_stride + plane * a.pixel) * a.element_size, pixel, a.width);
        filled = true;
      }
      const char* src =
          static_cast<const char*>(a.src) + n * a.src_stride * a.element_size + plane * plane_bytes + right * pixel;
      char* dst = static_cast<char*>(a.dst) + (n * a.planes + plane) * plane_bytes;
      for (int64_t r = row; r < top; ++r) copy_span(dst + r * row_bytes, background, row_bytes);
      if (begin == 0 && limit == row_bytes && bottom > top) {
        std::memcpy(dst + top * row_bytes, src + (top + down) * row_bytes,
                    static_cast<size_t>((bottom - top) * row_bytes));
      } else {
        for (int64_t r = top; r < bottom; ++r) {
          move_row(dst + r * row_bytes, src + (r + down) * row_bytes, background, begin, limit, row_bytes);
        }
      }
      for (int64_t r = bottom; r < stop; ++r) copy_span(dst + r * row_bytes, background, row_bytes);
    }
  }
}

// ---------------------------------------------------------------- resized_crop

FASTMIX_INLINE bool is_finite(const double* box) {
  for (int i = 0; i < 4; ++i) {
    // The exponent, so that no option of the compiler can reason a NaN away.
    if ((bit_cast<uint64_t>(box[i]) >> 52 & 0x7ff) == 0x7ff) return false;
  }
  return true;
}

template <typename A>
FASTMIX_INLINE A between(A a, A b, A weight) {
  return weight == 0 ? a : a + weight * (b - a);  // not even a NaN of b where it weighs nothing
}

// n elements of from in the type of sums; load_block converts any number of them.
template <typename T, typename A>
void load_row(A* to, const T* from, int64_t n) {
  if constexpr (std::is_same_v<T, A>) {
    copy_span(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), n * static_cast<int64_t>(sizeof(A)));
  } else {
    load_block(from, to, n);
  }
}

template <typename T, typename A>
void store_row(T* to, const A* from, int64_t n) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(A));
  } else {
    store_block(to, from, n);
  }
}

// Fills scratch.first, second, block and weight for a window's columns. They need the elements [left, right) of a row.
template <typename A>
FASTMIX_INLINE void columns_of(const CropArgs& a, const CropScratch& scratch, const double* box, int64_t* left,
                               int64_t* right) {
  A* weight = static_cast<A*>(scratch.weight);
  const int64_t length = a.out_width * a.pixel;
  const Axis columns(box[1], box[3], a.out_width, a.width);
  for (int64_t j = 0, e = 0; j < a.out_width; ++j) {
    const Position p = columns.position(j);
    // Pixel 0 of the padded row is the background to the left.
    const int64_t first = clamp_between(p.before + 1, 0, a.width + 1);
    const int64_t second = clamp_between(p.before + 2, 0, a.width + 1);
    for (int64_t c = 0; c < a.pixel; ++c, ++e) {
      scratch.first[e] = static_cast<int32_t>(first * a.pixel + c);
      scratch.second[e] = static_cast<int32_t>(second * a.pixel + c);
      weight[e] = static_cast<A>(p.weight);
    }
  }
  // Columns never fall from one pixel of the output to the next.
  *left = (clamp_between(scratch.first[0] / a.pixel, 1, a.width + 1) - 1) * a.pixel;
  *right = clamp_between(scratch.second[length - 1] / a.pixel, 0, a.width) * a.pixel;
  if (*right < *left) *right = *left;
  for (int64_t e = 0; e < length; e += 16) {
    int32_t low = scratch.first[e], high = low;
    for (int64_t i = e; i < length && i < e + 16; ++i) {
      if (scratch.first[i] < low) low = scratch.first[i];
      if (scratch.second[i] > high) high = scratch.second[i];
    }
    scratch.block[e / 16] = high - low < 32 ? low : -1;
  }
}

template <typename A>
FASTMIX_INLINE void resize_row(const CropScratch& scratch, A* to, int64_t length) {
  const A* row = static_cast<const A*>(scratch.padded);
  const A* weight = static_cast<const A*>(scratch.weight);
  const int32_t *first = scratch.first, *second = scratch.second;
  int64_t e = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    // Sixteen neighbours lie within two vectors unless the window shrinks: permuting those beats gathering.
    for (; e + 16 <= length; e += 16) {
      const int32_t at = scratch.block[e / 16];
      __m512i i = _mm512_loadu_si512(first + e), j = _mm512_loadu_si512(second + e);
      __m512 v, w;
      if (at >= 0) {
        const __m512 low = _mm512_loadu_ps(row + at), high = _mm512_loadu_ps(row + at + 16);
        const __m512i base = _mm512_set1_epi32(at);
        v = _mm512_permutex2var_ps(low, _mm512_sub_epi32(i, base), high);
        w = _mm512_permutex2var_ps(low, _mm512_sub_epi32(j, base), high);
      } else {
        v = _mm512_i32gather_ps(i, row, 4);
        w = _mm512_i32gather_ps(j, row, 4);
      }
      const __m512 part = _mm512_loadu_ps(weight + e);
      const __mmask16 some = _mm512_cmp_ps_mask(part, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      _mm512_storeu_ps(to + e, _mm512_mask3_fmadd_ps(part, _mm512_sub_ps(w, v), v, some));
    }
  }
#endif
#pragma omp simd
  for (int64_t k = e; k < length; ++k) to[k] = between(row[first[k]], row[second[k]], weight[k]);
}

template <typename T>
void resize(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel;
  A* padded = static_cast<A*>(scratch.padded);
  A* background = static_cast<A*>(scratch.background);
  while (item < end) {
    const int64_t n = item / a.out_height, row = item % a.out_height;
    const int64_t stop = a.out_height - row < end - item ? a.out_height : row + end - item;
    item += stop - row;
    const double* box = a.box + 4 * n;
    const bool finite = is_finite(box);
    int64_t left = 0, right = 0;
    if (finite) columns_of<A>(a, scratch, box, &left, &right);
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      const T* src = static_cast<const T*>(a.src) + n * a.src_stride + plane * a.height * row_length;
      T* dst = static_cast<T*>(a.dst) + ((n * a.planes + plane) * a.out_height + row) * length;
      const T* fill = static_cast<const T*>(a.fill) + n * a.fill_stride + plane * a.pixel;
      for (int64_t c = 0; c < a.pixel; ++c) {
        const A colour = finite ? to_float(fill[c]) : bit_cast<float>(0x7fc00000u);
        for (int64_t j = 0; j < a.out_width; ++j) background[j * a.pixel + c] = colour;
        padded[c] = padded[a.pixel + row_length + c] = colour;
      }
      if (!finite) {
        for (int64_t r = row; r < stop; ++r, dst += length) store_row(dst, background, length);
        continue;
      }
      const Axis lines(box[0], box[2], a.out_height, a.height);
      int64_t held[2] = {-9, -9};
      for (int64_t r = row; r < stop; ++r, dst += length) {
        const Position p = lines.position(r);
        const A weight = static_cast<A>(p.weight);
        const A* rows[2];
        for (int i = 0; i < 2; ++i) {
          const int64_t y = p.before + i;
          if (i == 1 && weight == 0) {
            rows[1] = rows[0];
          } else if (y < 0 || y >= a.height) {
            rows[i] = background;
          } else {
            // Neighbouring rows take turns, so the pair of one output row never shares a place.
            A* kept = static_cast<A*>(scratch.between[y & 1]);
            if (held[y & 1] != y) {
              load_row(padded + a.pixel + left, src + y * row_length + left, right - left);
              resize_row(scratch, kept, length);
              held[y & 1] = y;
            }
            rows[i] = kept;
          }
        }
        if constexpr (std::is_same_v<T, f16>) {  // halves have instructions of their own, a block at a time
          A values[kBlock];
          for (int64_t at = 0; at < length; at += kBlock) {
            const int64_t m = length - at < kBlock ? length - at : kBlock;
#pragma omp simd
            for (int64_t e = 0; e < m; ++e) values[e] = between(rows[0][at + e], rows[1][at + e], weight);
            store_block(dst + at, values, m);
          }
        } else {
#pragma omp simd
          for (int64_t e = 0; e < length; ++e) store(dst + e, between(rows[0][e], rows[1][e], weight));
        }
      }
    }
  }
}

// The share of a line in an output line at p: it is the one before, the next, or neither.
FASTMIX_INLINE double share_of(int64_t line, const Position& p) {
  return p.before == line ? 1 - p.weight : p.before + 1 == line ? p.weight : 0;
}

template <typename T, typename A>
void add_scaled(A* to, const T* from, A factor, int64_t n) {
  A buffer[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    const A* v = load_block(from + at, buffer, m);
#pragma omp simd
    for (int64_t i = 0; i < m; ++i) to[at + i] += factor * v[i];
  }
}

// src: the gradient, height x width; dst: that of the images, out_height x out_width.
template <typename T>
void resize_adjoint(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel;
  A* sums = static_cast<A*>(scratch.between[0]);
  A* moved = static_cast<A*>(scratch.between[1]);
  A* weight = static_cast<A*>(scratch.weight);
  for (int64_t held = -1; item < end; ++item) {
    const int64_t n = item / a.out_height, y = item % a.out_height;
    const double* box = a.box + 4 * n;
    const bool finite = is_finite(box);
    if (finite && held != n) {
      const Axis columns(box[1], box[3], a.width, a.out_width);
      for (int64_t j = 0; j < a.width; ++j) {
        const Position p = columns.position(j);
        scratch.first[j] = static_cast<int32_t>(p.before);
        weight[j] = static_cast<A>(p.weight);
      }
      held = n;
    }
    const Axis lines(box[0], box[2], a.height, a.out_height);
    // Positions never fall from one row of the gradient to the next.
    int64_t first = 0, last = 0;
    if (finite) {
      const auto lines_before = [&](int64_t line) {
        int64_t low = 0, high = a.height;
        while (low < high) {
          const int64_t middle = (low + high) / 2;
          if (lines.position(middle).before < line) {
            low = middle + 1;
          } else {
            high = middle;
          }
        }
        return low;
      };
      first = lines_before(y - 1);
      last = lines_before(y + 1);
    }
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      const T* grad = static_cast<const T*>(a.src) + n * a.src_stride + plane * a.height * row_length;
      T* dst = static_cast<T*>(a.dst) + ((n * a.planes + plane) * a.out_height + y) * length;
      std::memset(moved, 0, static_cast<size_t>(length) * sizeof(A));
      bool touched = false;
      for (int64_t i = first; i < last; ++i) {
        const A share = static_cast<A>(share_of(y, lines.position(i)));
        if (share == 0) continue;
        if (!touched) std::memset(sums, 0, static_cast<size_t>(row_length) * sizeof(A));
        touched = true;
        add_scaled(sums, grad + i * row_length, share, row_length);
      }
      if (touched) {
        for (int64_t j = 0; j < a.width; ++j) {
          const int64_t x = scratch.first[j];
          for (int64_t c = 0; c < a.pixel; ++c) {
            const A g = sums[j * a.pixel + c];
            if (x >= 0 && x < a.out_width) moved[x * a.pixel + c] += (1 - weight[j]) * g;
            if (x >= -1 && x + 1 < a.out_width && weight[j] != 0) moved[(x + 1) * a.pixel + c] += weight[j] * g;
          }
        }
      }
      store_row(dst, moved, length);
    }
  }
}

}  // namespace

extern const CropKernels crop = {
    move,
    {resize<float>, resize<bf16>, resize<f16>, resize<double>},
    {resize_adjoint<float>, resize_adjoint<bf16>, resize_adjoint<f16>, resize_adjoint<double>}};

}  // namespace FASTMIX_ISA
}  // namespace fastmix
