// What the registration hands to the kernels of view, view_blend, view_paste and view_patch_mix.
#pragma once

#include <cstdint>

#include "core/boxes.h"
#include "core/patch_mix.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct ViewArgs : CellMix<int64_t> {
  const uint8_t* src;
  int64_t src_stride;  // bytes between images of src
  bool src_last, dst_last;
  int64_t channels, height, width;
  const uint8_t* flip;   // (N), or null
  const int64_t* shift;  // (N, 2), or null
  void* dst;             // images follow each other
  int64_t tile_rows;     // rows of an image made at a time
  // In the accumulation type: one value a channel, or with dst_last `period` elements of pixels side by side.
  const void* scale;
  const void* offset;
  int64_t period;
  int64_t k;
  const int64_t* index;  // (N, K); null: every image itself
  const float* weight;   // view_blend: (N, K)
  const Box* boxes;      // view_paste: (N, K - 1), clipped
};

// Rows whose bytes, a source, stay in the first-level cache with what is made of them.
constexpr int64_t kViewTile = 4096;
// Elements normalised at a time by tables: whole pixels of 1, 2, 3 and 4 channels, whole vectors.
constexpr int64_t kViewBlock = 480;

// What a thread needs: tiles of bytes (k, 2 for view_patch_mix), a row of bytes, 2 k spans; shares of a tile, or the
// places of k tiles and a block of sums.
struct ViewScratch {
  uint8_t* tiles;
  uint8_t* row;
  Span* spans;
  void* more;
};

// Items are the rows of all images: n * height + row.
using ViewRows = void (*)(const ViewArgs&, const ViewScratch&, int64_t begin, int64_t end);

struct ViewKernels {
  ViewRows blend[kFloatTypes];
  ViewRows paste[kFloatTypes];  // and the view alone
  ViewRows patch_mix[kFloatTypes];
};

FASTMIX_DECLARE_KERNELS(ViewKernels, view)

}  // namespace fastmix
