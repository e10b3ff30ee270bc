// What the registration hands to the kernels of blend.
#pragma once

#include <cstdint>

#include "cpu/lib/instruction_set.h"

namespace fastmix {

// Row m of dst is the sum of weight[i] * row source[i] of src, over i in [offset[m], offset[m + 1]).
struct BlendArgs {
  const void* src;
  int64_t src_stride;  // elements between rows
  void* dst;           // rows follow each other
  int64_t rows, elements;
  int64_t piece;          // elements that an item covers
  bool across;            // items: a piece of every row, then the next piece; else all pieces of a row, then the next
  const int64_t* offset;  // null: [m * k, (m + 1) * k)
  int64_t k;
  const int64_t* source;
  const float* weight;
};

// Work is split into pieces of a row, so that a small batch of large rows keeps every thread busy.
constexpr int64_t kBlendPiece = 8192;
constexpr int64_t kBlendTile = int64_t{512} << 10;  // bytes of the pieces of all rows, see across_images

using BlendPieces = void (*)(const BlendArgs&, int64_t begin, int64_t end);

struct BlendKernels {
  BlendPieces pieces[kFloatTypes];
};

FASTMIX_DECLARE_KERNELS(BlendKernels, blend)

}  // namespace fastmix
