// Which elements of a tile a box holds, and which come from which image of a cell-wise mixture.
#pragma once

#include "core/boxes.h"
#include "core/patch_mix.h"
#include "cuda/lib/reduce.cuh"
#include "cuda/lib/tile.cuh"

namespace fastmix {

template <int N>
FASTMIX_DEVICE uint32_t inside(const ImageShape& s, const Tile& t, const Box& box) {
  uint32_t bits = 0;
  for_each_row<N>(s, t, [&](int begin, int length, int row, int column) {
    if (row < box.top || row >= box.bottom) return;
    const int low = box.left * s.pixel - column, high = box.right * s.pixel - column;
    bits |= element_bits(low > 0 ? low : 0, high < length ? high : length) << begin;
  });
  return bits;
}

// Which elements of a tile are the image's own, and which its partner's; lambda is for the others.
struct CellShares {
  uint32_t own, other;
  float lam;
};

template <int N>
FASTMIX_DEVICE CellShares shares_of(const ImageShape& s, const Tile& t, const uint8_t* mask, const uint8_t* other,
                                    float lam, int h, int w) {
  CellShares shares{0, 0, lam};
  const int cell_height = s.height / h, cell_width = s.row_elements / w;
  for_each_row<N>(s, t, [&](int begin, int length, int row, int column) {
    const int line = row / cell_height * w;
    int cell = column / cell_width;
    for (int at = 0; at < length; ++cell) {
      const int left = (cell + 1) * cell_width - column - at, run = left < length - at ? left : length - at;
      const float a = own_share(mask[line + cell] != 0, other[line + cell] != 0, lam);
      const uint32_t bits = element_bits(begin + at, begin + at + run);
      if (a == 1.0f) shares.own |= bits;
      if (a == 0.0f) shares.other |= bits;
      at += run;
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
