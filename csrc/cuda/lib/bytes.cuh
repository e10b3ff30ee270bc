// Bytes in words of 4, the first one lowest: moved, turned round and made numbers without taking words apart.
#pragma once

#include "cuda/lib/pack.cuh"

namespace fastmix {

// Bytes chosen of a (0 to 3) and b (4 to 7), by the digits of the selector from the lowest on.
FASTMIX_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
#endif
}

// The 4 bytes that begin `shift` bits, below 32, into low and high.
FASTMIX_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(low, high, shift);
#else
  return static_cast<uint32_t>((low | static_cast<uint64_t>(high) << 32) >> shift);
#endif
}

// A word of what the kernel does not write where `wanted`; anything elsewhere, which the caller masks.
FASTMIX_DEVICE uint32_t load_word(const uint32_t* from, bool wanted) {
  uint32_t word;
#ifdef __CUDA_ARCH__
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %2, 0;\n\t@p ld.global.nc.b32 %0, [%1];\n\t}"
               : "=r"(word)
               : "l"(from), "r"(static_cast<int>(wanted)));
#else
  word = wanted ? *from : 0xa5a5a5a5u;
#endif
  return word;
}

// Words of N bytes; N below 4 leaves bytes unused.
template <int N>
struct Bytes {
  static constexpr int kWords = (N + 3) / 4;
  uint32_t w[kWords];
};

// All bits of the bytes in a set of elements: a bit is carried to the lowest of each byte, and fills it.
template <int N>
FASTMIX_DEVICE Bytes<N> byte_mask(uint32_t bits) {
  Bytes<N> mask;
#pragma unroll
  for (int i = 0; i < Bytes<N>::kWords; ++i) mask.w[i] = ((bits >> (4 * i) & 0xfu) * 0x00204081u & 0x01010101u) * 0xffu;
  return mask;
}

// Byte l as a number: below a float's 2^23 its lowest bits are a whole number.
template <typename A, int N>
FASTMIX_DEVICE A byte_of(const Bytes<N>& bytes, int l) {
  const uint32_t bits = byte_perm(bytes.w[l / 4], 0x4b000000u, 0x7440u + static_cast<uint32_t>(l % 4));
  return static_cast<A>(bit_cast<float>(bits) - 8388608.0f);
}

}  // namespace fastmix
