// Bytes of images as they are seen, flipped and shifted, in the layout of the output: tiles for view.simd.cpp.
//
// A tile holds rows of one image, planes of rows or rows of pixels, and stays in the first-level cache. An image that
// is neither flipped nor shifted and lies like the output is read where it is.
#pragma once

#include <cstring>

#include "core/view.h"
#include "cpu/view.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#endif

namespace fastmix {

// Rows of an image in the layout of the output: planes `plane` bytes apart.
struct TileBytes {
  const uint8_t* data;
  int64_t plane;
};

// Of image m.
FASTMIX_INLINE ViewTransform transform_of(const ViewArgs& a, int64_t m) {
  return view_transform(a.flip == nullptr ? nullptr : a.flip + m, a.shift == nullptr ? nullptr : a.shift + 2 * m,
                        a.height, a.width);
}

// to's pixel t is from's pixel -t.
template <int kPixel>
FASTMIX_INLINE void reverse_pixels(uint8_t* to, const uint8_t* from, int64_t count, int64_t pixel) {
  const int64_t size = kPixel > 0 ? kPixel : pixel;
  int64_t t = 0;
#if defined(__SSSE3__)
  if constexpr (kPixel == 1 || kPixel == 3) {
    // 16 bytes at a time: 16 pixels, or 5 and a byte that the next ones cover.
    constexpr int kTogether = 16 / kPixel;
    const __m128i order = kPixel == 1 ? _mm_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
                                      : _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
    for (; t + kTogether + (kPixel == 3) <= count; t += kTogether) {
      const uint8_t* end = from - t * kPixel + kPixel;
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(end - 16));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + t * kPixel), _mm_shuffle_epi8(v, order));
    }
  }
#endif
  for (; t < count; ++t) {
    for (int64_t c = 0; c < size; ++c) to[t * size + c] = from[c - t * size];
  }
}

FASTMIX_INLINE void reverse_any(uint8_t* to, const uint8_t* from, int64_t count, int64_t pixel) {
  if (pixel == 1) return reverse_pixels<1>(to, from, count, pixel);
  if (pixel == 3) return reverse_pixels<3>(to, from, count, pixel);
  if (pixel == 4) return reverse_pixels<4>(to, from, count, pixel);
  reverse_pixels<0>(to, from, count, pixel);
}

// Pixels side by side to planes `plane` bytes apart.
FASTMIX_INLINE void to_planes(uint8_t* to, int64_t plane, const uint8_t* from, int64_t count, int64_t channels) {
  if (channels == 3) {
    uint8_t *red = to, *green = to + plane, *blue = to + 2 * plane;
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) {
      red[t] = from[3 * t];
      green[t] = from[3 * t + 1];
      blue[t] = from[3 * t + 2];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < count; ++t) to[c * plane + t] = from[t * channels + c];
  }
}

// Planes to pixels side by side.
FASTMIX_INLINE void to_pixels(uint8_t* to, const uint8_t* from, int64_t plane, int64_t count, int64_t channels) {
  if (channels == 3) {
    const uint8_t *red = from, *green = from + plane, *blue = from + 2 * plane;
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) {
      to[3 * t] = red[t];
      to[3 * t + 1] = green[t];
      to[3 * t + 2] = blue[t];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < count; ++t) to[t * channels + c] = from[c * plane + t];
  }
}

// Columns [left, right) of rows [row, stop) of an output that shows image m alone, into a tile that begins with row
// `top`. row_buffer: bytes of one row of all channels.
FASTMIX_INLINE void stage(const ViewArgs& a, int64_t m, const ViewTransform& transform, int64_t row, int64_t stop,
                          int64_t left, int64_t right, int64_t top, uint8_t* tile, uint8_t* row_buffer) {
  const int64_t channels = a.channels, width = a.width;
  const int64_t src_pixel = a.src_last ? channels : 1, dst_pixel = a.dst_last ? channels : 1;
  const int64_t src_plane = a.height * width, dst_plane = a.tile_rows * width;
  const int64_t dst_planes = a.dst_last ? 1 : channels;
  const bool flipped = transform.step < 0;
  // Columns [begin, end) show the image, the others its padding.
  int64_t begin = flipped ? transform.first - width + 1 : -static_cast<int64_t>(transform.first);
  int64_t end = flipped ? transform.first + 1 : width - transform.first;
  begin = clamp_between(begin, left, right);
  end = clamp_between(end, begin, right);
  const int64_t count = end - begin;
  // The leftmost byte of the source that is shown, and where a mirrored run starts.
  const int64_t lowest = flipped ? transform.first - (end - 1) : transform.first + begin;
  const int64_t highest = flipped ? transform.first - begin : lowest;
  const uint8_t* image = a.src + m * a.src_stride;
  for (int64_t i = row; i < stop; ++i) {
    const int64_t from = i + transform.down;
    uint8_t* to = tile + (i - top) * width * dst_pixel;
    const bool outside = from < 0 || from >= a.height || count == 0;
    for (int64_t plane = 0; plane < dst_planes; ++plane) {
      uint8_t* line = to + plane * dst_plane;
      if (outside) {
        std::memset(line + left * dst_pixel, 0, static_cast<size_t>((right - left) * dst_pixel));
        continue;
      }
      if (begin > left) std::memset(line + left * dst_pixel, 0, static_cast<size_t>((begin - left) * dst_pixel));
      if (right > end) std::memset(line + end * dst_pixel, 0, static_cast<size_t>((right - end) * dst_pixel));
    }
    if (outside) continue;
    const uint8_t* line = image + from * width * src_pixel;
    if (a.src_last == a.dst_last) {
      for (int64_t plane = 0; plane < dst_planes; ++plane, line += src_plane) {
        uint8_t* at = to + plane * dst_plane + begin * dst_pixel;
        if (flipped) {
          reverse_any(at, line + highest * src_pixel, count, src_pixel);
        } else {
          std::memcpy(at, line + lowest * src_pixel, static_cast<size_t>(count * src_pixel));
        }
      }
    } else if (a.src_last) {
      const uint8_t* pixels = line + lowest * channels;
      if (flipped) {
        reverse_any(row_buffer, line + highest * channels, count, channels);
        pixels = row_buffer;
      }
      to_planes(to + begin, dst_plane, pixels, count, channels);
    } else if (flipped) {
      to_pixels(row_buffer, line + lowest, src_plane, count, channels);
      reverse_any(to + begin * channels, row_buffer + (count - 1) * channels, count, channels);
    } else {
      to_pixels(to + begin * channels, line + lowest, src_plane, count, channels);
    }
  }
}

// Rows [row, stop) of image m: where they are, or staged in tile.
FASTMIX_INLINE TileBytes tile_bytes(const ViewArgs& a, int64_t m, int64_t row, int64_t stop, uint8_t* tile,
                                    uint8_t* row_buffer) {
  const ViewTransform transform = transform_of(a, m);
  const bool whole = transform.down == 0 && transform.first == 0 && transform.step == 1;
  if (whole && a.src_last == a.dst_last) {
    const int64_t pixel = a.src_last ? a.channels : 1;
    return {a.src + m * a.src_stride + row * a.width * pixel, a.height * a.width};
  }
  stage(a, m, transform, row, stop, 0, a.width, row, tile, row_buffer);
  return {tile, a.tile_rows * a.width};
}

}  // namespace fastmix
