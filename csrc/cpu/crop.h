// What the registration hands to the kernels of crop and resized_crop.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastmix {

// An image is `planes` of height x width pixels of `pixel` elements side by side: NCHW has C planes of one-element
// pixels, NHWC one plane of C-element pixels.
struct CropArgs {
  const void* src;
  int64_t src_stride;  // elements between images of src
  void* dst;           // images follow each other
  int64_t planes, height, width, pixel;
  int64_t out_height, out_width;
  int64_t element_size;
  const int64_t* shift;  // crop: (N, 2)
  const double* box;     // resized_crop: (N, 4)
  const void* fill;      // (N, planes * pixel) in the type of src
  int64_t fill_stride;   // elements between images of fill
};

// Working memory of a thread. crop takes the background alone, as elements of src.
struct CropScratch {
  void* background;                      // a row of the output
  int32_t *first, *second;               // output element -> elements of a padded row between which it lies
  int32_t* block;                        // 16 output elements -> where the 32 elements begin that hold them all, or -1
  void* weight;                          // output element -> the weight of the second
  void* padded;                          // a row of the image with a pixel of background at both ends
  void* between[2];                      // rows of the image resized to the width of the output
  static constexpr int64_t kSlack = 64;  // elements past the end of each, for whole vectors
};

// Items are the rows of all outputs: n * out_height + row.
using CropRows = void (*)(const CropArgs&, const CropScratch&, int64_t begin, int64_t end);

struct CropKernels {
  CropRows move;               // any element size
  CropRows resize[4];          // float, bfloat16, half, double
  CropRows resize_adjoint[4];  // src is the gradient of the output, dst that of the image: out_height x out_width
};

FASTMIX_DECLARE_KERNELS(CropKernels, crop)

}  // namespace fastmix
