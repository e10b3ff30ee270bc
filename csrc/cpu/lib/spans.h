// Copies of short runs of bytes, for *.simd.cpp: parts of image rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/common.h"

namespace fastmix {

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
