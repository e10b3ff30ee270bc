// View on the CPU: bytes to mixed, normalised images in one pass.
//
// A tile of rows is staged as bytes, flipped, shifted and laid out like the output (view_bytes.h), a quarter of what
// is written and in the first-level cache; paste composes its spans there. Then it is mixed and normalised in
// registers: the mixed byte times scale plus offset, exact for a pixel of one source. Floor: every byte read once a
// source that shows it, every output element written once.

#include "cpu/view.h"

#include <type_traits>

#include "cpu/lib/float_blocks.h"
#include "cpu/lib/image_rows.h"
#include "cpu/lib/view_bytes.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

// dst[i] = value(i), rounded once.
template <typename T, typename F>
FASTMIX_INLINE void write(T* dst, int64_t n, const F& value) {
  if constexpr (std::is_same_v<T, f16>) {  // halves have instructions of their own, a block at a time
    float buffer[kBlock];
    for (int64_t at = 0; at < n; at += kBlock) {
      const int64_t m = smaller(n - at, kBlock);
#pragma omp simd
      for (int64_t i = 0; i < m; ++i) buffer[i] = value(at + i);
      store_block(dst + at, buffer, m);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) store(dst + i, value(i));
  }
}

// Elements [0, n) of a tile's plane, or of all its pixels: mixed(i) is the mixed byte, total the sum of its weights.
template <typename T, typename F, typename A = accumulator_t<T>>
FASTMIX_INLINE void normalise(const ViewArgs& a, int64_t plane, T* dst, int64_t n, A total, const F& mixed) {
  const A* scales = static_cast<const A*>(a.scale);
  const A* offsets = static_cast<const A*>(a.offset);
  if (!a.dst_last) {
    const A scale = scales[plane], offset = offsets[plane] * total;
    write(dst, n, [&](int64_t i) { return scale * mixed(i) + offset; });
    return;
  }
  for (int64_t at = 0; at < n; at += a.period) {
    write(dst + at, smaller(n - at, a.period),
          [&](int64_t i) { return scales[i] * mixed(at + i) + offsets[i] * total; });
  }
}

// f(plane, elements of it, first element of dst, first byte of a tile) for the planes of a tile.
template <typename F>
FASTMIX_INLINE void for_each_plane(const ViewArgs& a, int64_t n, int64_t row, int64_t stop, const F& f) {
  const int64_t line = a.width * (a.dst_last ? a.channels : 1), planes = a.dst_last ? 1 : a.channels;
  for (int64_t plane = 0; plane < planes; ++plane) {
    f(plane, (stop - row) * line, ((n * planes + plane) * a.height + row) * line);
  }
}

template <int kCount, typename T, typename A = accumulator_t<T>>
void blend_tile(const ViewArgs& a, int64_t n, int64_t row, int64_t stop, const TileBytes* tiles, const float* weights) {
  A weight[kCount], total = 0;
  for (int k = 0; k < kCount; ++k) total += weight[k] = static_cast<A>(weights[k]);
  for_each_plane(a, n, row, stop, [&](int64_t plane, int64_t count, int64_t to) {
    const uint8_t* v[kCount];
    for (int k = 0; k < kCount; ++k) v[k] = tiles[k].data + plane * tiles[k].plane;
    normalise(a, plane, static_cast<T*>(a.dst) + to, count, total, [&](int64_t i) {
      A sum = 0;
      for (int k = 0; k < kCount; ++k) sum += weight[k] * static_cast<A>(v[k][i]);
      return sum;
    });
  });
}

// Any number of sources, through a block of sums.
template <typename T, typename A = accumulator_t<T>>
void blend_many(const ViewArgs& a, int64_t n, int64_t row, int64_t stop, const TileBytes* tiles, const float* weights,
                A* sums) {
  A total = 0;
  for (int64_t k = 0; k < a.k; ++k) total += static_cast<A>(weights[k]);
  const int64_t block = a.dst_last ? a.period : kViewBlock;  // normalise begins with the first element of a period
  for_each_plane(a, n, row, stop, [&](int64_t plane, int64_t count, int64_t to) {
    for (int64_t at = 0; at < count; at += block) {
      const int64_t m = smaller(count - at, block);
      for (int64_t i = 0; i < m; ++i) sums[i] = 0;
      for (int64_t k = 0; k < a.k; ++k) {
        const uint8_t* v = tiles[k].data + plane * tiles[k].plane + at;
        const A weight = static_cast<A>(weights[k]);
#pragma omp simd
        for (int64_t i = 0; i < m; ++i) sums[i] += weight * static_cast<A>(v[i]);
      }
      normalise(a, plane, static_cast<T*>(a.dst) + to + at, m, total, [&](int64_t i) { return sums[i]; });
    }
  });
}

template <typename T>
void blend(const ViewArgs& a, const ViewScratch& scratch, int64_t begin, int64_t end) {
  const int64_t tile = a.tile_rows * a.width * a.channels;
  TileBytes* tiles = static_cast<TileBytes*>(scratch.more);
  for_each_rows(begin, end, a.height, a.tile_rows, [&](int64_t n, int64_t row, int64_t stop) {
    const float* weight = a.weight + n * a.k;
    for (int64_t k = 0; k < a.k; ++k) {
      tiles[k] = tile_bytes(a, a.index[n * a.k + k], row, stop, scratch.tiles + k * tile, scratch.row);
    }
    switch (a.k) {
      default:
        return blend_many<T>(a, n, row, stop, tiles, weight, reinterpret_cast<accumulator_t<T>*>(tiles + a.k));
      case 1:
        return blend_tile<1, T>(a, n, row, stop, tiles, weight);
      case 2:
        return blend_tile<2, T>(a, n, row, stop, tiles, weight);
      case 3:
        return blend_tile<3, T>(a, n, row, stop, tiles, weight);
    }
  });
}

template <typename T, typename A = accumulator_t<T>>
void write_tile(const ViewArgs& a, int64_t n, int64_t row, int64_t stop, const TileBytes& bytes) {
  for_each_plane(a, n, row, stop, [&](int64_t plane, int64_t count, int64_t to) {
    const uint8_t* v = bytes.data + plane * bytes.plane;
    normalise(a, plane, static_cast<T*>(a.dst) + to, count, A(1), [&](int64_t i) { return static_cast<A>(v[i]); });
  });
}

template <typename T>
void paste(const ViewArgs& a, const ViewScratch& scratch, int64_t begin, int64_t end) {
  for_each_rows(begin, end, a.height, a.tile_rows, [&](int64_t n, int64_t row, int64_t stop) {
    const Box* boxes = a.boxes + n * (a.k - 1);
    const int64_t* index = a.index == nullptr ? &n : a.index + n * a.k;
    for (int64_t at = row, next; at < stop; at = next) {
      next = band_end(boxes, a.k - 1, at, stop);
      const Span first = span_at(boxes, a.k - 1, at, 0, a.width);
      if (first.end == a.width && at == row && next == stop) {
        return write_tile<T>(a, n, row, stop, tile_bytes(a, index[first.owner], row, stop, scratch.tiles, scratch.row));
      }
      for (Span span = first;; span = span_at(boxes, a.k - 1, at, span.end, a.width)) {
        const int64_t m = index[span.owner];
        const ViewTransform transform = transform_of(a, m);
        stage(a, m, transform, at, next, span.begin, span.end, row, scratch.tiles, scratch.row);
        if (span.end == a.width) break;
      }
    }
    write_tile<T>(a, n, row, stop, {scratch.tiles, a.tile_rows * a.width});
  });
}

// The share that image n keeps of every element of rows [row, stop).
template <typename A>
void lay_out_shares(const ViewArgs& a, int64_t n, int64_t row, int64_t stop, A* shares) {
  const int64_t line = a.width * (a.dst_last ? a.channels : 1), cell = line / a.w, cell_height = a.height / a.h;
  const A lam = static_cast<A>(a.lam[n * a.lam_step]);
  for (int64_t i = row; i < stop; ++i, shares += line) {
    if (i > row && i % cell_height != 0) {
      std::memcpy(shares, shares - line, static_cast<size_t>(line) * sizeof(A));
      continue;
    }
    const int64_t cells = (n * a.h + i / cell_height) * a.w, others = (a.index[n] * a.h + i / cell_height) * a.w;
    for (int64_t c = 0; c < a.w; ++c) {
      const A share = own_share(a.mask[cells + c], a.mask[others + c], lam);
      for (int64_t e = c * cell; e < (c + 1) * cell; ++e) shares[e] = share;
    }
  }
}

template <typename T, typename A = accumulator_t<T>>
void patch_mix(const ViewArgs& a, const ViewScratch& scratch, int64_t begin, int64_t end) {
  A* shares = static_cast<A*>(scratch.more);
  const int64_t tile = a.tile_rows * a.width * a.channels;
  for_each_rows(begin, end, a.height, a.tile_rows, [&](int64_t n, int64_t row, int64_t stop) {
    lay_out_shares(a, n, row, stop, shares);
    const TileBytes own = tile_bytes(a, n, row, stop, scratch.tiles, scratch.row);
    const TileBytes other = tile_bytes(a, a.index[n], row, stop, scratch.tiles + tile, scratch.row);
    for_each_plane(a, n, row, stop, [&](int64_t plane, int64_t count, int64_t to) {
      const uint8_t *x = own.data + plane * own.plane, *y = other.data + plane * other.plane;
      // A share of 1 or 0 gives that byte exactly, and bytes are finite: nothing can leak in.
      normalise(a, plane, static_cast<T*>(a.dst) + to, count, A(1), [&](int64_t i) {
        return static_cast<A>(y[i]) + shares[i] * (static_cast<A>(x[i]) - static_cast<A>(y[i]));
      });
    });
  });
}

}  // namespace

extern const ViewKernels view = {FASTMIX_BY_FLOAT_TYPE(blend), FASTMIX_BY_FLOAT_TYPE(paste),
                                 FASTMIX_BY_FLOAT_TYPE(patch_mix)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
