// Sixteen elements of any storage type as one vector of floats, for *.simd.cpp. Include inside no namespace.
//
// Masked loads and stores touch no byte outside their mask, so a vector may reach over the edge of a row or a tensor.
#pragma once

#include "core/float_types.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define FASTMIX_SIXTEEN 1
#include <immintrin.h>

namespace fastmix {

// Lanes [begin, end); both may lie outside.
FASTMIX_INLINE __mmask16 lanes(int64_t begin, int64_t end) {
  const auto below = [](int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1; };
  return static_cast<__mmask16>(below(end) & ~below(begin));
}

// What the mask leaves out is that of behind.
FASTMIX_INLINE __m512 load_sixteen(__m512 behind, __mmask16 mask, const float* from) {
  return _mm512_mask_loadu_ps(behind, mask, from);
}
FASTMIX_INLINE __m512 load_sixteen(__m512 behind, __mmask16 mask, const bf16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_mask_mov_ps(behind, mask, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
}
FASTMIX_INLINE __m512 load_sixteen(__m512 behind, __mmask16 mask, const f16* from) {
  return _mm512_mask_mov_ps(behind, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from)));
}
FASTMIX_INLINE __m512 load_sixteen(const float* from) { return _mm512_loadu_ps(from); }
FASTMIX_INLINE __m512 load_sixteen(const bf16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
FASTMIX_INLINE __m512 load_sixteen(const f16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

FASTMIX_INLINE void store_sixteen(__mmask16 mask, float* to, __m512 v) {
  if (mask == 0xffff) {
    _mm512_storeu_ps(to, v);
  } else {
    _mm512_mask_storeu_ps(to, mask, v);
  }
}
FASTMIX_INLINE void store_halves(__mmask16 mask, void* to, __m256i v) {
  if (mask == 0xffff) {  // masked stores of 16 bits are slow on some processors
    _mm256_storeu_si256(static_cast<__m256i*>(to), v);
  } else {
    _mm256_mask_storeu_epi16(to, mask, v);
  }
}
FASTMIX_INLINE void store_sixteen(__mmask16 mask, bf16* to, __m512 v) {
  // As store() rounds one.
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  high = _mm512_mask_mov_epi32(high, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  store_halves(mask, to, _mm512_cvtepi32_epi16(high));
}
FASTMIX_INLINE void store_sixteen(__mmask16 mask, f16* to, __m512 v) {
  store_halves(mask, to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace fastmix
#endif
