// What every other header builds on: how functions for host and device are declared, bits, and arithmetic on whole
// numbers.
#pragma once

#include <cstdint>
#include <cstring>

// Internal linkage: the CPU sources are compiled once per instruction set, and a weak symbol of the AVX-512 build could
// otherwise be linked into the portable one.
#ifdef __CUDACC__
#define FASTMIX_INLINE static __host__ __device__ __forceinline__
#define FASTMIX_METHOD __host__ __device__ __forceinline__
#else
#define FASTMIX_INLINE static inline __attribute__((always_inline))
#define FASTMIX_METHOD inline __attribute__((always_inline))
#endif

namespace fastmix {

template <typename To, typename From>
FASTMIX_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast wants equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

FASTMIX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

FASTMIX_INLINE int64_t clamp_between(int64_t v, int64_t low, int64_t high) {
  return v < low ? low : v > high ? high : v;
}

// a / b rounded up, for a >= 0 and b > 0.
FASTMIX_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastmix
