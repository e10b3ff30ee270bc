// Batches of images as the kernels that move their rows see them.
#pragma once

#include <cstdint>

namespace fastmix {

// An image is `planes` of height x width pixels of `pixel` elements side by side: NCHW has C planes of one-element
// pixels, NHWC one plane of C-element pixels.
struct ImageArgs {
  const void* src;
  int64_t src_stride;  // elements between images of src
  void* dst;           // images follow each other
  int64_t planes, height, width, pixel;
  int64_t element_size;
};

}  // namespace fastmix
