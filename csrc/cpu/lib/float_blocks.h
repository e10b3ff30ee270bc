// Blocks of floats from and to any storage type, for *.simd.cpp. Include inside no namespace; everything has
// internal linkage (see core/common.h). Loops are plain: the compiler vectorises them for the file's instruction set.
#pragma once

#include <cstdint>

#include "core/float_types.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastmix {

// Elements converted at a time: 2 KB of floats stay in the first-level cache.
constexpr int64_t kBlock = 512;

// n <= kBlock elements of src as floats: src itself for float and double, else converted into buffer.
template <typename T>
FASTMIX_INLINE const accumulator_t<T>* load_block(const T* src, accumulator_t<T>* buffer, int64_t n) {
  for (int64_t i = 0; i < n; ++i) buffer[i] = to_float(src[i]);
  return buffer;
}
FASTMIX_INLINE const float* load_block(const float* src, float*, int64_t) { return src; }
FASTMIX_INLINE const double* load_block(const double* src, double*, int64_t) { return src; }

template <typename T>
FASTMIX_INLINE void store_block(T* dst, const accumulator_t<T>* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(dst + i, values[i]);
}

#if defined(__F16C__)
FASTMIX_INLINE const float* load_block(const f16* src, float* buffer, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
  for (; i < n; ++i) buffer[i] = to_float(src[i]);
  return buffer;
}
FASTMIX_INLINE void store_block(f16* dst, const float* values, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  for (; i < n; ++i) store(dst + i, values[i]);
}
#endif

}  // namespace fastmix
