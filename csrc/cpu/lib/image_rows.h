// Batches of images as the kernels that move their rows see them: arguments, walks over rows, copies of short spans.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/common.h"

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

// run(image, row, stop) for the items [begin, end), n * height + row: at most `most` rows of one image at a time.
template <typename F>
FASTMIX_INLINE void for_each_rows(int64_t begin, int64_t end, int64_t height, int64_t most, const F& run) {
  while (begin < end) {
    const int64_t n = begin / height, row = begin % height;
    const int64_t stop = row + smaller(smaller(height - row, most), end - begin);
    run(n, row, stop);
    begin += stop - row;
  }
}

#if defined(__AVX512F__)
constexpr int64_t kVector = 64;
#elif defined(__AVX2__)
constexpr int64_t kVector = 32;
#else
constexpr int64_t kVector = 16;
#endif

// kBytes <= n <= 2 kBytes: two copies that may overlap.
template <int64_t kBytes>
FASTMIX_INLINE void copy_ends(char* dst, const char* src, int64_t n) {
  char head[kBytes], tail[kBytes];
  std::memcpy(head, src, kBytes);
  std::memcpy(tail, src + n - kBytes, kBytes);
  std::memcpy(dst, head, kBytes);
  std::memcpy(dst + n - kBytes, tail, kBytes);
}

// Spans are short (a row of a 32 x 32 image: 128 bytes at most), where a call of memcpy costs more than the copy.
FASTMIX_INLINE void copy_span(char* dst, const char* src, int64_t n) {
  if (n > 1024) {
    std::memcpy(dst, src, static_cast<size_t>(n));
  } else if (n >= kVector) {
    for (int64_t i = 0; i + kVector < n; i += kVector) std::memcpy(dst + i, src + i, kVector);
    std::memcpy(dst + n - kVector, src + n - kVector, kVector);
  } else if (n >= 32) {
    copy_ends<32>(dst, src, n);
  } else if (n >= 16) {
    copy_ends<16>(dst, src, n);
  } else if (n >= 8) {
    copy_ends<8>(dst, src, n);
  } else if (n >= 4) {
    copy_ends<4>(dst, src, n);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = src[i];
  }
}

}  // namespace fastmix
