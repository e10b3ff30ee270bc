// crop and resized_crop on the CPU, and the transposed interpolation.
//
// crop: a row of the output is a span of the image between two spans of background; with byte masks (AVX-512) the
// three are one load. Floor: every output element written once, every shown element read once. Measured, one thread of
// a busy machine (process time) against a clone: 64 x 3 x 224 x 224 1.2 to 1.5 times (2.1 before: masked loads do not
// start the processor's prefetching), 100 x 64 x 32 x 32 with gradient 1.4 (2.9), 100 x 3 x 32 x 32 1.7 (1.8), of which
// a quarter is the call's own overhead.
//
// resized_crop and its gradient: resize_sixteen.h where there is AVX-512 and sixteen columns are close together, else
// the plain loops here, row by row: the two rows of the image are blended, then resized to the output's width. The
// gradient sums the output rows that touch a row of the image, then moves the sums to their columns: no order depends
// on threads.

#include "cpu/crop.h"

#include <cstring>
#include <type_traits>

#include "core/resize.h"
#include "cpu/lib/float_blocks.h"
#include "cpu/lib/image_rows.h"
#include "cpu/lib/resize_sixteen.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
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

// Bytes [begin, end) of `rows` rows from src, which points at the same column, the others from background. Sixty-four
// bytes at a time down some rows, so that masks are made once; the last of a row overlap, if it has as many.
FASTMIX_INLINE void move_rows(char* dst, const char* src, const char* background, int64_t begin, int64_t end,
                              int64_t bytes, int64_t rows) {
  constexpr int64_t kRows = 16;
  for (; rows > 0; rows -= kRows, src += kRows * bytes, dst += kRows * bytes) {
    const int64_t some = rows < kRows ? rows : kRows;
    for (int64_t next = 0; next < bytes; next += 64) {
      const int64_t at = next + 64 <= bytes || bytes < 64 ? next : bytes - 64;
      const __mmask64 shown = bytes_below(end - at) & ~bytes_below(begin - at), all = bytes_below(bytes - at);
      const __m512i behind = _mm512_maskz_loadu_epi8(all, background + at);
      if (bytes < 64) {
        for (int64_t r = 0; r < some; ++r) {
          _mm512_mask_storeu_epi8(dst + r * bytes, all, _mm512_mask_loadu_epi8(behind, shown & all, src + r * bytes));
        }
      } else if (shown == ~0ull) {  // masked loads do not start the processor's prefetching
        for (int64_t r = 0; r < some; ++r) std::memcpy(dst + r * bytes + at, src + r * bytes + at, 64);
      } else {
        for (int64_t r = 0; r < some; ++r) {
          _mm512_storeu_si512(dst + r * bytes + at, _mm512_mask_loadu_epi8(behind, shown, src + r * bytes + at));
        }
      }
    }
  }
}
#else
FASTMIX_INLINE void move_rows(char* dst, const char* src, const char* background, int64_t begin, int64_t end,
                              int64_t bytes, int64_t rows) {
  for (; rows > 0; --rows, src += bytes, dst += bytes) {
    copy_span(dst, background, begin);
    copy_span(dst + begin, src + begin, end - begin);
    copy_span(dst + end, background, bytes - end);
  }
}
#endif

void move(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  const int64_t pixel = a.pixel * a.element_size, row_bytes = a.width * pixel, plane_bytes = a.height * row_bytes;
  const char* fill = static_cast<const char*>(a.fill);
  char* background = static_cast<char*>(scratch.background);
  bool filled = false;
  for_each_rows(item, end, a.height, a.height, [&](int64_t n, int64_t row, int64_t stop) {
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
        move_rows(dst + top * row_bytes, src + (top + down) * row_bytes, background, begin, limit, row_bytes,
                  bottom - top);
      }
      for (int64_t r = bottom; r < stop; ++r) copy_span(dst + r * row_bytes, background, row_bytes);
    }
  });
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

template <typename T, typename A>
void store_row(T* to, const A* from, int64_t n) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(A));
  } else {
    store_block(to, from, n);
  }
}

// Pixels [begin, end) of an axis.
template <typename A>
void positions(const ResizeAxis& axis, int64_t begin, int64_t end, int32_t* before, A* weight) {
  for (int64_t i = begin; i < end; ++i) {
    const SamplePosition p = axis.position(i);
    before[i] = static_cast<int32_t>(p.before);
    weight[i] = static_cast<A>(p.weight);
  }
}

// Fills scratch.first, second and weight for a window's columns. They need the elements [left, right) of a row.
template <typename A>
void columns_of(const CropArgs& a, const CropScratch& scratch, const double* box, int64_t* left, int64_t* right) {
  const int32_t pixel = static_cast<int32_t>(a.pixel), end = static_cast<int32_t>(a.width) + 1;
  const int64_t length = a.out_width * a.pixel;
  A* weight = static_cast<A*>(scratch.weight);
  int32_t* before = pixel == 1 ? scratch.second : scratch.spare;
  A* each = pixel == 1 ? weight : static_cast<A*>(scratch.spare_weight);
  positions(ResizeAxis(box[1], box[3], a.out_width, a.width), 0, a.out_width, before, each);
  // Pixel 0 of the padded row is the background to the left.
  const auto column = [end](int32_t x) { return x < 0 ? 0 : x > end ? end : x; };
  if (pixel == 1) {
    for (int64_t j = 0; j < a.out_width; ++j) {
      const int32_t x = before[j];
      scratch.first[j] = column(x + 1);
      scratch.second[j] = column(x + 2);
    }
  } else {
    for (int64_t j = 0, e = 0; j < a.out_width; ++j) {
      for (int32_t c = 0; c < pixel; ++c, ++e) {
        scratch.first[e] = column(before[j] + 1) * pixel + c;
        scratch.second[e] = column(before[j] + 2) * pixel + c;
        weight[e] = each[j];
      }
    }
  }
  // Columns never fall from one pixel of the output to the next.
  *left = (clamp_between(scratch.first[0] / a.pixel, 1, a.width + 1) - 1) * a.pixel;
  *right = clamp_between(scratch.second[length - 1] / a.pixel, 0, a.width) * a.pixel;
  if (*right < *left) *right = *left;
}

template <typename A>
FASTMIX_INLINE void resize_row(const CropScratch& scratch, A* to, int64_t length) {
  const A* row = static_cast<const A*>(scratch.padded);
  const A* weight = static_cast<const A*>(scratch.weight);
  const int32_t *first = scratch.first, *second = scratch.second;
#pragma omp simd
  for (int64_t k = 0; k < length; ++k) to[k] = between(row[first[k]], row[second[k]], weight[k]);
}

// Rows [row, stop) of a plane, where a vector holds too few of the columns, or there are no vectors. Blended down the
// column first, as by resize_sixteen.h: both give the same bits.
template <typename T, typename A = accumulator_t<T>>
void resize_plane_by_row(const CropArgs& a, const CropScratch& scratch, const T* src, T* dst, int64_t row, int64_t stop,
                         int64_t left, int64_t right) {
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel;
  A* padded = static_cast<A*>(scratch.padded);
  A* resized = static_cast<A*>(scratch.resized);
  const A* background = static_cast<const A*>(scratch.background);
  for (int64_t c = 0; c < a.pixel; ++c) padded[c] = padded[a.pixel + row_length + c] = background[c];
  A buffers[2][kBlock];
  for (int64_t r = row; r < stop; ++r) {
    const A weight = static_cast<const A*>(scratch.share)[r];
    const int64_t y = scratch.line[r];
    const bool upper = y >= 0 && y < a.height, lower = weight != 0 && y >= -1 && y + 1 < a.height;
    if (!upper && !lower) {
      store_row(dst + r * length, background, length);
      continue;
    }
    for (int64_t at = left; at < right; at += kBlock) {
      const int64_t m = right - at < kBlock ? right - at : kBlock;
      const A* first = upper ? load_block(src + y * row_length + at, buffers[0], m) : background + at % a.pixel;
      const A* second = lower ? load_block(src + (y + 1) * row_length + at, buffers[1], m) : background + at % a.pixel;
      A* to = padded + a.pixel + at;
      if (weight == 0) {
        std::memcpy(to, first, static_cast<size_t>(m) * sizeof(A));
      } else {
#pragma omp simd
        for (int64_t e = 0; e < m; ++e) to[e] = first[e] + weight * (second[e] - first[e]);
      }
    }
    resize_row(scratch, resized, length);
    store_row(dst + r * length, resized, length);
  }
}

template <typename T>
void resize(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t length = a.out_width * a.pixel;
  A* background = static_cast<A*>(scratch.background);
  bool filled = false;
  for_each_rows(item, end, a.out_height, a.out_height, [&](int64_t n, int64_t row, int64_t stop) {
    const double* box = a.box + 4 * n;
    const bool finite = is_finite(box);
#ifdef FASTMIX_SIXTEEN
    ResizePlan plan;
    bool sixteen = false;
#endif
    int64_t left = 0, right = 0;
    if (finite) {
      columns_of<A>(a, scratch, box, &left, &right);
      positions(ResizeAxis(box[0], box[2], a.out_height, a.height), row, stop, scratch.line,
                static_cast<A*>(scratch.share));
#ifdef FASTMIX_SIXTEEN
      sixteen = std::is_same_v<A, float> && plan_resize(a, scratch, row, stop, &plan);
#endif
    }
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      const T* src = static_cast<const T*>(a.src) + n * a.src_stride + plane * a.height * a.width * a.pixel;
      T* dst = static_cast<T*>(a.dst) + (n * a.planes + plane) * a.out_height * length;
      const T* fill = static_cast<const T*>(a.fill) + n * a.fill_stride + plane * a.pixel;
      if (!filled || !finite || a.fill_stride > 0) {  // a number is the same for every channel
        // As much as a block or a vector reads of it.
        for (int64_t e = 0; e < length || e < kBlock + a.pixel; e += a.pixel) {
          for (int64_t c = 0; c < a.pixel; ++c) {
            background[e + c] = finite ? A(to_float(fill[c])) : A(bit_cast<float>(0x7fc00000u));
          }
        }
        filled = finite;
      }
      if (!finite) {
        for (int64_t r = row; r < stop; ++r) store_row(dst + r * length, background, length);
        continue;
      }
#ifdef FASTMIX_SIXTEEN
      if constexpr (std::is_same_v<A, float>) {
        if (sixteen) {
          resize_plane(a, scratch, plan, src, dst, row, stop);
          continue;
        }
      }
#endif
      resize_plane_by_row(a, scratch, src, dst, row, stop, left, right);
    }
  });
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

// Rows [row, stop) of the gradient of a plane, one after the other, from the positions of the gradient's pixels.
template <typename T, typename A = accumulator_t<T>>
void adjoint_plane_by_row(const CropArgs& a, const CropScratch& scratch, const T* grad, T* dst, int64_t row,
                          int64_t stop) {
  const int64_t row_length = a.width * a.pixel, length = a.out_width * a.pixel;
  A* sums = static_cast<A*>(scratch.padded);
  A* moved = static_cast<A*>(scratch.resized);
  const A *weight = static_cast<const A*>(scratch.weight), *share = static_cast<const A*>(scratch.share);
  int64_t first = 0;
  for (int64_t y = row; y < stop; ++y) {
    while (first < a.height && scratch.line[first] < y - 1) ++first;
    std::memset(moved, 0, static_cast<size_t>(length) * sizeof(A));
    bool touched = false;
    for (int64_t i = first; i < a.height && scratch.line[i] <= y; ++i) {
      const A part = scratch.line[i] == y ? 1 - share[i] : share[i];
      if (part == 0) continue;
      if (!touched) std::memset(sums, 0, static_cast<size_t>(row_length) * sizeof(A));
      touched = true;
      add_scaled(sums, grad + i * row_length, part, row_length);
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
    store_row(dst + y * length, moved, length);
  }
}

// src: the gradient, height x width; dst: that of the images, out_height x out_width.
template <typename T>
void resize_adjoint(const CropArgs& a, const CropScratch& scratch, int64_t item, int64_t end) {
  using A = accumulator_t<T>;
  for_each_rows(item, end, a.out_height, a.out_height, [&](int64_t n, int64_t row, int64_t stop) {
    const double* box = a.box + 4 * n;
    const T* grad = static_cast<const T*>(a.src) + n * a.src_stride;
    T* dst = static_cast<T*>(a.dst) + n * a.planes * a.out_height * a.out_width * a.pixel;
    const int64_t grad_plane = a.height * a.width * a.pixel, plane = a.out_height * a.out_width * a.pixel;
    if (!is_finite(box)) {
      for (int64_t p = 0; p < a.planes; ++p) {
        std::memset(dst + p * plane + row * a.out_width * a.pixel, 0,
                    static_cast<size_t>((stop - row) * a.out_width * a.pixel) * sizeof(T));
      }
      return;
    }
#ifdef FASTMIX_SIXTEEN
    if constexpr (std::is_same_v<A, float>) {
      AdjointTaps taps;
      if (adjoint_tables(a, scratch, box, &taps)) {
        const auto go = a.width * a.pixel >= 32 ? adjoint_of<true, T>(taps) : adjoint_of<false, T>(taps);
        for (int64_t p = 0; p < a.planes; ++p) go(a, scratch, taps, grad + p * grad_plane, dst + p * plane, row, stop);
        return;
      }
    }
#endif
    positions(ResizeAxis(box[0], box[2], a.height, a.out_height), 0, a.height, scratch.line,
              static_cast<A*>(scratch.share));
    positions(ResizeAxis(box[1], box[3], a.width, a.out_width), 0, a.width, scratch.first,
              static_cast<A*>(scratch.weight));
    for (int64_t p = 0; p < a.planes; ++p) {
      adjoint_plane_by_row(a, scratch, grad + p * grad_plane, dst + p * plane, row, stop);
    }
  });
}

}  // namespace

extern const CropKernels crop = {move, FASTMIX_BY_FLOAT_TYPE(resize), FASTMIX_BY_FLOAT_TYPE(resize_adjoint)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
