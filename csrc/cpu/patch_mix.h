// What the registration hands to the kernels of patch_mix.
#pragma once

#include <cstdint>

#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct PatchMixArgs {
  const void* x;                   // (N, C, H, W) images, or their gradients
  int64_t image_stride;            // elements between images of x
  int64_t planes;                  // C; 1 for channels_last images, whose pixels hold all channels
  int64_t height;                  // H
  int64_t row;                     // elements in a row of a plane: W, or W * C
  const int64_t* partner;          // (N), checked
  const uint8_t* mask;             // (N, h, w) of 0 and 1
  int64_t h;                       // rows of cells, divides H
  int64_t w;                       // cells in a row, divides row
  const float* lam;                // (N) or 0-d
  int64_t lam_step;                // 0 for a 0-d lam, else 1
  int64_t images;                  // N
  int64_t tile_planes, tile_rows;  // what an item of the forward covers of an image
  // Backward: the images whose partner is n, borrower[borrower_offset[n]] to borrower[borrower_offset[n + 1]].
  const int64_t* borrower;
  const int64_t* borrower_offset;  // (N + 1)
  void* out;                       // packed like the images of x
  float* weight;                   // (N, 2), forward only
};

// Items of the forward are tiles: the first of all N images, then the next of all. Those of the backward are images.
constexpr int64_t kPatchMixTile = int64_t{1536} << 10;  // bytes of a tile of all images, see cache.h
using PatchMixItems = void (*)(const PatchMixArgs&, int64_t begin, int64_t end);

struct PatchMixKernels {
  PatchMixItems forward[4];  // float, bfloat16, half, double
  PatchMixItems backward[4];
};

FASTMIX_DECLARE_KERNELS(PatchMixKernels, patch_mix)

}  // namespace fastmix
