// What the registration hands to the kernels of paste.
#pragma once

#include <cstdint>

#include "core/boxes.h"
#include "cpu/lib/image_rows.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct PasteArgs : ImageArgs {
  int64_t k;
  const int64_t* index;  // (N, K)
  const Box* boxes;      // (N, K - 1), clipped
  // backward: places[offset[m]] to places[offset[m + 1]] are the n * k + column that show image m
  const int64_t* offset;
  const int64_t* places;
};

// What a thread needs beside its stack: 2 k spans, and tile_rows(a) rows of all planes in the accumulation type.
struct PasteScratch {
  Span* spans;
  void* sums;
};

// Rows of an image summed at a time in backward: 32 KB of floats stay in the first-level cache.
inline int64_t tile_rows(const PasteArgs& a) {
  const int64_t rows = 8192 / (a.planes * a.width * a.pixel);
  return rows < 1 ? 1 : rows < a.height ? rows : a.height;
}

// Items are the rows of all images: n * height + row.
using PasteRows = void (*)(const PasteArgs&, const PasteScratch&, int64_t begin, int64_t end);

struct PasteKernels {
  PasteRows copy;  // any element size
  PasteRows add[kFloatTypes];
};

FASTMIX_DECLARE_KERNELS(PasteKernels, paste)

}  // namespace fastmix
