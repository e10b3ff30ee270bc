// What the registration hands to the kernels of crop and resized_crop.
#pragma once

#include <cstdint>

#include "cpu/lib/image_rows.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct CropArgs : ImageArgs {
  int64_t out_height, out_width;
  const int64_t* shift;  // crop: (N, 2)
  const double* box;     // resized_crop: (N, 4)
  const void* fill;      // (N, planes * pixel) in the type of src
  int64_t fill_stride;   // elements between images of fill
};

// Working memory of a thread. crop takes the background alone, as elements of src. A row is that of the output or of
// the image, the longer one, with a pixel of background at both ends; sums are what elements are added in.
struct CropScratch {
  int64_t row;                           // elements of a row of these tables
  void* background;                      // a row of the output, or more: what is read at a time
  int32_t *first, *second;               // output element -> elements of a padded row between which it lies
  void* weight;                          // output element -> the weight of the second
  int32_t* line;                         // output row -> the first of the rows of the image between which it lies
  void* share;                           // output row -> the weight of the second
  void* sixteens;                        // 16 output elements -> what resize_sixteen.h keeps of them, 256 bytes
  int32_t* block;                        // 16 elements of the image -> where those of the gradient begin
  int32_t* spare;                        // a row
  void* spare_weight;                    // a row
  void* padded;                          // a row of the image with a pixel of background at both ends
  void* resized;                         // a row
  static constexpr int64_t kSlack = 64;  // elements past the end of each, for whole vectors
  // The gradient, with AVX-512: image row -> the first row of the gradient that it has a share in, and the shares.
  int32_t* tap_line;
  float *line_shares, *column_shares, *pixel_shares;
};

// How many rows and columns of the gradient a pixel of the image has a share in, at most.
struct AdjointTaps {
  int64_t rows, columns;
};

// Items are the rows of all outputs: n * out_height + row.
using CropRows = void (*)(const CropArgs&, const CropScratch&, int64_t begin, int64_t end);

struct CropKernels {
  CropRows move;                 // any element size
  CropRows resize[kFloatTypes];  // float, bfloat16, half, double
  CropRows
      resize_adjoint[kFloatTypes];  // src is the gradient of the output, dst that of the image: out_height x out_width
};

FASTMIX_DECLARE_KERNELS(CropKernels, crop)

}  // namespace fastmix
