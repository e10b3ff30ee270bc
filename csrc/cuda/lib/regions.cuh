// Which elements of a tile a box holds, and which come from which image of a cell-wise mixture.
#pragma once

#include "core/boxes.h"
#include "core/patch_mix.h"
#include "cuda/lib/reduce.cuh"
#include "cuda/lib/tile.cuh"

namespace fastmix {

template <typename K>
FASTMIX_DEVICE uint32_t inside(const ImageOutputs& a, const Place& p, const Box& box) {
  const int pixel = a.shape.pixel;
  uint32_t bits = 0;
  for_each_row<K>(a.grid, p, [&](int begin, int length, int row, int column) {
    if (row < box.top || row >= box.bottom) return;
    const int low = box.left * pixel - column, high = box.right * pixel - column;
    bits |= element_bits(low > 0 ? low : 0, high < length ? high : length) << begin;
  });
  return bits;
}

// A cell-wise mixture of images of a shape, and what it divides by.
struct CellTiling : CellMix<int> {
  Divisor by_height, by_width;  // of a cell, in rows and in elements of a row; set by set_cell_size

  FASTMIX_METHOD int cells() const { return h * w; }
};

inline void set_cell_size(CellTiling& a, const ImageShape& s) {
  if (a.cells() == 0 || s.plane_elements() == 0) return;  // nothing is launched
  a.by_height = Divisor(s.height / a.h);
  a.by_width = Divisor(s.row_elements() / a.w);
}

// Which elements of a place are the image's own, and which its partner's; lambda is for the others.
struct CellShares {
  uint32_t own, other;
};

template <typename K>
FASTMIX_DEVICE CellShares shares_of(const TileGrid& grid, const Place& p, const CellTiling& cells, const uint8_t* mask,
                                    const uint8_t* other, float lam) {
  CellShares shares{0, 0};
  for_each_row<K>(grid, p, [&](int begin, int length, int row, int column) {
    int done;
    int cell = cells.by_height.divide(row) * cells.w + cells.by_width.divide(column, done);
    int left = cells.by_width.value() - done;  // of the cell
#pragma unroll 1
    for (int at = 0; at < length; ++cell) {
      const int run = left < length - at ? left : length - at;
      const float a = own_share(mask[cell] != 0, other[cell] != 0, lam);
      const uint32_t bits = element_bits(begin + at, begin + at + run);
      if (a == 1.0f) shares.own |= bits;
      if (a == 0.0f) shares.other |= bits;
      at += run;
      left = cells.by_width.value();
    }
  });
  return shares;
}

// weight[n] = (mean of a, the rest), by the whole block; NaN of a partner that is not valid.
FASTMIX_DEVICE void write_weight(const uint8_t* mask, const uint8_t* other, float lam, bool valid, int cells,
                                 float* weight) {
  __shared__ ReduceBuffer<int, kTileThreads, 2> buffer;
  int counts[2] = {0, 0};  // cells of the image alone, mixed cells
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += kTileThreads) {
    counts[0] += mask[i] != 0 && other[i] == 0;
    counts[1] += (mask[i] != 0) == (other[i] != 0);
  }
  int turn = 0;
  reduce<kTileThreads>(counts, 0, Plus(), buffer, turn);
  if (threadIdx.x != 0) return;
  const float mean = valid ? mean_share(counts[0], counts[1], cells, lam) : NAN;
  weight[0] = mean;
  weight[1] = 1.0f - mean;
}

}  // namespace fastmix
