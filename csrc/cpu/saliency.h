// What the registration hands to the kernels of saliency.
#pragma once

#include <cstdint>

#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct SaliencyArgs {
  const void* grad;      // (N, C, H, W), or the map (N, h, w) of percentile_mask
  int64_t image_stride;  // elements between images of grad
  int64_t channels;      // C
  int64_t height;        // H
  int64_t width;         // W
  bool channels_last;    // images are (H, W, C), else (C, H, W)
  int64_t h;             // rows of cells, divides H
  int64_t w;             // cells in a row, divides W
  const void* q;         // (N) or 0-d
  bool q_is_double;      // else float
  int64_t q_step;        // 0 for a 0-d q, else 1
  void* out;             // map (N, h, w) in the accumulation type, mask (N, h, w) of bytes, or peak (N, 2) int64
};

// Accumulation-type elements that a kernel wants as scratch memory.
inline int64_t saliency_scratch(const SaliencyArgs& a) { return a.width + 2 * a.h * a.w; }

using SaliencyImages = void (*)(const SaliencyArgs&, int64_t begin, int64_t end, void* scratch);

struct SaliencyKernels {
  SaliencyImages map[kFloatTypes];
  SaliencyImages mask[kFloatTypes];
  SaliencyImages peak[kFloatTypes];
  SaliencyImages percentile[kFloatTypes];  // null for the half types
};

FASTMIX_DECLARE_KERNELS(SaliencyKernels, saliency)

}  // namespace fastmix
