// What the registration hands to the kernels of patch_mix.
#pragma once

#include <cstdint>

#include "core/patch_mix.h"
#include "cpu/lib/image_rows.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

// src: images, or their gradients.
struct PatchMixArgs : ImageArgs, CellMix<int64_t> {
  int64_t row;                     // elements in a row of a plane
  const int64_t* partner;          // (N), checked
  int64_t images;                  // N
  int64_t tile_planes, tile_rows;  // what an item of the forward covers of an image
  // Backward: the images whose partner is n, borrower[borrower_offset[n]] to borrower[borrower_offset[n + 1]].
  const int64_t* borrower;
  const int64_t* borrower_offset;  // (N + 1)
  float* weight;                   // (N, 2), forward only
};

// Items of the forward are tiles: the first of all N images, then the next of all. Those of the backward are images.
constexpr int64_t kPatchMixTile = int64_t{1536} << 10;  // bytes of a tile of all images, see across_images
using PatchMixItems = void (*)(const PatchMixArgs&, int64_t begin, int64_t end);

struct PatchMixKernels {
  PatchMixItems forward[kFloatTypes];
  PatchMixItems backward[kFloatTypes];
};

FASTMIX_DECLARE_KERNELS(PatchMixKernels, patch_mix)

}  // namespace fastmix
