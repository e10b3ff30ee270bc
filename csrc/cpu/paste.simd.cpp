// paste on the CPU: spans of rows copied whole, and their gradient: spans added to the image they came from.
//
// Rows between two box edges (a band) have the same spans, at most 2 K - 1. Floor forward: every output element
// written once, every shown element read once. Backward: dx written once, grad read once, since each of its pixels
// shows one image.

#include "cpu/paste.h"

#include <cstring>
#include <type_traits>

#include "cpu/lib/float_blocks.h"
#include "cpu/lib/image_rows.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

void copy(const PasteArgs& a, const PasteScratch& scratch, int64_t item, int64_t end) {
  const int64_t pixel = a.pixel * a.element_size, row_bytes = a.width * pixel, plane_bytes = a.height * row_bytes;
  const char* src = static_cast<const char*>(a.src);
  for_each_rows(item, end, a.height, a.height, [&](int64_t n, int64_t row, int64_t stop) {
    const Box* boxes = a.boxes + n * (a.k - 1);
    const int64_t* index = a.index + n * a.k;
    char* dst = static_cast<char*>(a.dst) + n * a.planes * plane_bytes;
    for (int64_t next; row < stop; row = next) {
      next = band_end(boxes, a.k - 1, row, stop);
      int64_t count = 0;
      for (int64_t at = 0; at < a.width; at = scratch.spans[count++].end) {
        scratch.spans[count] = span_at(boxes, a.k - 1, row, at, a.width);
      }
      for (int64_t plane = 0; plane < a.planes; ++plane) {
        for (int64_t i = 0; i < count; ++i) {
          const Span& span = scratch.spans[i];
          const char* image = src + index[span.owner] * a.src_stride * a.element_size;
          int64_t at = plane * plane_bytes + row * row_bytes + span.begin * pixel;
          if (count == 1) {
            std::memcpy(dst + at, image + at, static_cast<size_t>((next - row) * row_bytes));
            break;
          }
          const int64_t bytes = (span.end - span.begin) * pixel;
          for (int64_t r = row; r < next; ++r, at += row_bytes) copy_span(dst + at, image + at, bytes);
        }
      }
    }
  });
}

template <typename T, typename A = accumulator_t<T>>
void add_span(A* to, const T* from, int64_t n) {
  if constexpr (std::is_same_v<T, f16>) {  // halves have instructions of their own, a block at a time
    float buffer[kBlock];
    for (int64_t at = 0; at < n; at += kBlock) {
      const int64_t m = n - at < kBlock ? n - at : kBlock;
      const float* v = load_block(from + at, buffer, m);
#pragma omp simd
      for (int64_t i = 0; i < m; ++i) to[at + i] += v[i];
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] += to_float(from[i]);
  }
}

// Adds to sums, rows [row, stop) of image m with sum_plane elements between planes, what place (n, k) shows of it.
template <typename T, typename A = accumulator_t<T>>
void add_place(const PasteArgs& a, int64_t place, int64_t row, int64_t stop, A* sums, int64_t sum_plane) {
  const int64_t n = place / a.k, owner = place % a.k, length = a.width * a.pixel;
  const Box* boxes = a.boxes + n * (a.k - 1);
  const T* grad = static_cast<const T*>(a.src) + n * a.src_stride;
  const int64_t first = row;
  if (owner > 0) {
    if (boxes[owner - 1].top > row) row = boxes[owner - 1].top;
    if (boxes[owner - 1].bottom < stop) stop = boxes[owner - 1].bottom;
  }
  for (int64_t next; row < stop; row = next) {
    next = band_end(boxes, a.k - 1, row, stop);
    for (int64_t at = 0; at < a.width;) {
      const Span span = span_at(boxes, a.k - 1, row, at, a.width);
      at = span.end;
      if (span.owner != owner) continue;
      const bool whole = span.end - span.begin == a.width;  // then the rows of the band are one span
      const int64_t elements = whole ? (next - row) * length : (span.end - span.begin) * a.pixel;
      for (int64_t plane = 0; plane < a.planes; ++plane) {
        A* to = sums + plane * sum_plane + (row - first) * length + span.begin * a.pixel;
        const T* from = grad + (plane * a.height + row) * length + span.begin * a.pixel;
        for (int64_t r = whole ? next - 1 : row; r < next; ++r, to += length, from += length) {
          add_span(to, from, elements);
        }
      }
    }
  }
}

template <typename T>
void add(const PasteArgs& a, const PasteScratch& scratch, int64_t item, int64_t end) {
  using A = accumulator_t<T>;
  constexpr bool kDirect = sizeof(T) == sizeof(A);
  const int64_t length = a.width * a.pixel, plane_elements = a.height * length, tile = tile_rows(a);
  for_each_rows(item, end, a.height, tile, [&](int64_t m, int64_t row, int64_t stop) {
    T* dst = static_cast<T*>(a.dst) + m * a.planes * plane_elements + row * length;
    A* sums = static_cast<A*>(scratch.sums);
    int64_t sum_plane = tile * length;
    if constexpr (kDirect) {
      sums = dst;
      sum_plane = plane_elements;
    }
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      std::memset(sums + plane * sum_plane, 0, static_cast<size_t>((stop - row) * length) * sizeof(A));
    }
    for (int64_t i = a.offset[m]; i < a.offset[m + 1]; ++i) add_place<T>(a, a.places[i], row, stop, sums, sum_plane);
    if constexpr (!kDirect) {
      for (int64_t plane = 0; plane < a.planes; ++plane) {
        store_block(dst + plane * plane_elements, sums + plane * sum_plane, (stop - row) * length);
      }
    }
  });
}

}  // namespace

extern const PasteKernels paste = {copy, FASTMIX_BY_FLOAT_TYPE(add)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
