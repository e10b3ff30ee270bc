// patch_mix on the CPU: every output element written once, from its own image and its partner.
//
// The shares of a row of cells are laid out once per element and serve every row and channel of the cells. Both
// images are then read without a branch and chosen by comparing the share with 1 and 0: cells of 4 to 56 pixels are
// too narrow to copy one by one. (A share is compared, not multiplied: 0 * inf must not leak in.)
//
// Floor: x read once, the output written once, at the rate of a clone of x. Measured with the gradient's read by
// saliency_mask added (1.5 clones; two threads on a busy machine, so ratios of minima): 100x3x32x32 3.2 (11 us are the
// two calls themselves), 128x3x64x64 2.1 (every image is read twice, as itself and as a partner), 64x3x224x224 0.5
// (the output comes in huge pages, that of clone does not). Following the chain of partners, so that a partner is found
// in the cache, changed nothing. Walking through a batch beyond the caches tile by tile did: 64x3x224x224 in memory
// that was written before 1.26 clones against 1.4 to 1.7 (tiles of 1.5 MB of one plane; of 0.5 MB, or of all planes:
// 1.3 to 1.4).

#include "cpu/patch_mix.h"

#include "cpu/lib/float_blocks.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

// Elements whose shares are laid out at a time; longer rows go in pieces.
constexpr int64_t kShares = 2048;
// Rows shorter than this are laid out several times side by side, to be mixed in one run.
constexpr int64_t kRun = 128;

// Elements [from, from + count) of the rows of a plane in the cell row r, laid out `rows` times side by side; `at` is
// where their shares begin in the buffer.
struct Piece {
  int64_t r, from, count, rows, at;
};

// The shares that image n keeps of a piece, or lends from its partner.
template <typename A>
void lay_out_shares(const PatchMixArgs& a, int64_t n, const Piece& p, bool lent, A* shares) {
  const int64_t cells = a.h * a.w, cell = a.row / a.w;
  const uint8_t* own = a.mask + n * cells + p.r * a.w;
  const uint8_t* other = a.mask + a.partner[n] * cells + p.r * a.w;
  const A lam = static_cast<A>(a.lam[n * a.lam_step]);
  A* share = shares + p.at;
  if (cell == 1) {
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) {
      const A kept = own_share(own[p.from + i], other[p.from + i], lam);
      share[i] = lent ? A(1) - kept : kept;
    }
  } else {
    int64_t at = 0;
    for (int64_t j = p.from / cell; at < p.count; ++j) {
      const A kept = own_share(own[j], other[j], lam);
      const A v = lent ? A(1) - kept : kept;
      const int64_t end = smaller((j + 1) * cell - p.from, p.count);
      for (; at < end; ++at) share[at] = v;
    }
  }
  for (int64_t y = 1; y < p.rows; ++y) {
    A* copy = share + y * p.count;
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) copy[i] = share[i];
  }
}

// Rows [top, bottom) of planes [plane, plane_end).
struct PlaneRows {
  int64_t plane, plane_end, top, bottom;
};

// lay_out(piece), then run(piece, element, count) for every run of elements of the tile that its shares cover. As many
// cell rows as the buffer holds are laid out together, so that planes are walked through in the order of memory
// (256x3x64x64 after a saliency_mask, one thread: 1.5 ms against 1.9 ms with one cell row at a time).
template <typename LayOut, typename Run>
void for_each_run(const PatchMixArgs& a, const PlaneRows& tile, const LayOut& lay_out, const Run& run) {
  if (tile.top == tile.bottom) return;
  const int64_t cell_height = a.height / a.h;
  const int64_t rows = a.row < kRun && a.row > 0 ? smaller(cell_height, (kRun + a.row - 1) / a.row) : 1;
  const int64_t together = a.row > 0 && a.row < kShares ? kShares / (rows * a.row) : 1;
  const int64_t end = (tile.bottom + cell_height - 1) / cell_height;
  for (int64_t first = tile.top / cell_height; first < end; first += together) {
    const int64_t last = smaller(first + together, end);
    for (int64_t from = 0; from < a.row; from += kShares) {
      const int64_t count = smaller(a.row - from, kShares);
      const auto piece = [&](int64_t r) { return Piece{r, from, count, rows, (r - first) * rows * count}; };
      for (int64_t r = first; r < last; ++r) lay_out(piece(r));
      for (int64_t plane = tile.plane; plane < tile.plane_end; ++plane) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t stop = smaller((r + 1) * cell_height, tile.bottom);
          for (int64_t y = r * cell_height > tile.top ? r * cell_height : tile.top; y < stop; y += rows) {
            run(piece(r), (plane * a.height + y) * a.row + from, count * smaller(stop - y, rows));
          }
        }
      }
    }
  }
}

// share * x + (1 - share) * y, and where the share is 1 or 0 the bits of x or y.
template <typename A>
void mix(const A* x, const A* y, const A* share, int64_t n, A* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    A v = share[i] * x[i] + (A(1) - share[i]) * y[i];
    v = share[i] == A(0) ? y[i] : v;
    out[i] = share[i] == A(1) ? x[i] : v;
  }
}

void mix(const bf16* x, const bf16* y, const float* share, int64_t n, bf16* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    bf16 mixed;
    store(&mixed, share[i] * to_float(x[i]) + (1.0f - share[i]) * to_float(y[i]));
    out[i].bits = share[i] == 1.0f ? x[i].bits : share[i] == 0.0f ? y[i].bits : mixed.bits;
  }
}

// Halves have instructions of their own, a block at a time.
void mix(const f16* x, const f16* y, const float* share, int64_t n, f16* out) {
  float x_buffer[kBlock], y_buffer[kBlock], mixed[kBlock];
  f16 rounded[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = smaller(n - at, kBlock);
    const float* xs = load_block(x + at, x_buffer, m);
    const float* ys = load_block(y + at, y_buffer, m);
    const float* s = share + at;
#pragma omp simd
    for (int64_t i = 0; i < m; ++i) mixed[i] = s[i] * xs[i] + (1.0f - s[i]) * ys[i];
    store_block(rounded, mixed, m);
#pragma omp simd
    for (int64_t i = 0; i < m; ++i) {
      out[at + i].bits = s[i] == 1.0f ? x[at + i].bits : s[i] == 0.0f ? y[at + i].bits : rounded[i].bits;
    }
  }
}

template <typename T, typename A = accumulator_t<T>>
void forward(const PatchMixArgs& a, int64_t begin, int64_t end) {
  A share[kShares];
  const int64_t per_plane = a.height > 0 ? (a.height + a.tile_rows - 1) / a.tile_rows : 1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item % a.images, place = item / a.images;
    const int64_t plane = place / per_plane * a.tile_planes, top = place % per_plane * a.tile_rows;
    const PlaneRows tile{plane, smaller(plane + a.tile_planes, a.planes), top, smaller(top + a.tile_rows, a.height)};
    const int64_t cells = a.h * a.w;
    if (place == 0) {
      write_patch_weight(a.mask + n * cells, a.mask + a.partner[n] * cells, cells, a.lam[n * a.lam_step],
                         a.weight + 2 * n);
    }
    const T* x = static_cast<const T*>(a.src) + n * a.src_stride;
    const T* y = static_cast<const T*>(a.src) + a.partner[n] * a.src_stride;
    T* out = static_cast<T*>(a.dst) + n * a.planes * a.height * a.row;
    for_each_run(
        a, tile, [&](const Piece& p) { lay_out_shares(a, n, p, false, share); },
        [&](const Piece& p, int64_t at, int64_t count) { mix(x + at, y + at, share + p.at, count, out + at); });
  }
}

// sum (+)= share * g, where a share of 0 counts nothing, not even times infinity.
template <typename T, typename A = accumulator_t<T>>
void add_part(const T* g, const A* share, int64_t n, bool first, A* sum) {
  A buffer[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = smaller(n - at, kBlock);
    const A* v = load_block(g + at, buffer, m);
    const A* s = share + at;
    A* to = sum + at;
    if (first) {
#pragma omp simd
      for (int64_t i = 0; i < m; ++i) to[i] = s[i] == A(0) ? A(0) : s[i] * v[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < m; ++i) to[i] += s[i] == A(0) ? A(0) : s[i] * v[i];
    }
  }
}

// dx[n] = own share * g[n] + sum over the images that borrow from n of (1 - their own share) * their g.
template <typename T, typename A = accumulator_t<T>>
void backward(const PatchMixArgs& a, int64_t begin, int64_t end) {
  constexpr bool kInPlace = sizeof(T) == sizeof(A);  // sums are kept in the output, else rounded into it once
  A own[kShares], lent[kShares], buffer[kInPlace ? 1 : kShares];
  const T* all = static_cast<const T*>(a.src);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t* borrower = a.borrower + a.borrower_offset[n];
    const int64_t borrowers = a.borrower_offset[n + 1] - a.borrower_offset[n];
    const T* g = all + n * a.src_stride;
    T* out = static_cast<T*>(a.dst) + n * a.planes * a.height * a.row;
    for_each_run(
        a, PlaneRows{0, a.planes, 0, a.height},
        [&](const Piece& p) {
          lay_out_shares(a, n, p, false, own);
          if (borrowers == 1) lay_out_shares(a, borrower[0], p, true, lent);
        },
        [&](const Piece& p, int64_t at, int64_t count) {
          A* sum = buffer;
          if constexpr (kInPlace) sum = out + at;
          add_part(g + at, own + p.at, count, true, sum);
          for (int64_t b = 0; b < borrowers; ++b) {
            // A permutation has one borrower an image, whose shares lie ready; more are laid out for every run.
            if (borrowers > 1) lay_out_shares(a, borrower[b], p, true, lent);
            add_part(all + borrower[b] * a.src_stride + at, lent + p.at, count, false, sum);
          }
          if constexpr (!kInPlace) store_block(out + at, sum, count);
        });
  }
}

}  // namespace

extern const PatchMixKernels patch_mix = {FASTMIX_BY_FLOAT_TYPE(forward), FASTMIX_BY_FLOAT_TYPE(backward)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
