// 16 bytes at a time: what a thread loads and stores in one instruction. Raw pointers, no torch.
#pragma once

#include "core/float_types.h"
#include "cuda/lib/launch.h"

namespace fastmix {

// Elements of one pack.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

FASTMIX_INLINE bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// N elements of T as they lie in memory; 16 bytes move in one instruction.
template <typename T, int N>
struct alignas(N * sizeof(T) >= 16 ? 16 : sizeof(T)) Elements {
  T v[N];
};

template <typename T, int N>
FASTMIX_DEVICE Elements<T, N> load_elements(const T* from) {
  if constexpr (N * sizeof(T) == 16) {
    return bit_cast<Elements<T, N>>(*reinterpret_cast<const uint4*>(from));
  } else {
    Elements<T, N> e;
#pragma unroll
    for (int i = 0; i < N; ++i) e.v[i] = from[i];
    return e;
  }
}

// The same of memory that the kernel does not write. A plain load of 16 bytes whose elements are used under different
// conditions may be split into conditional loads of 4 (seen for sm_100); this one stays whole.
template <typename T, int N>
FASTMIX_DEVICE Elements<T, N> load_input(const T* from) {
#ifdef __CUDA_ARCH__
  if constexpr (N * sizeof(T) == 16) {
    uint4 v;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return bit_cast<Elements<T, N>>(v);
  }
#endif
  return load_elements<T, N>(from);
}

template <typename T, int N>
FASTMIX_DEVICE void store_elements(T* to, const Elements<T, N>& e) {
  if constexpr (N * sizeof(T) == 16) {
    *reinterpret_cast<uint4*>(to) = bit_cast<uint4>(e);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = e.v[i];
  }
}

// A NaN of every float type: all exponent bits set, and the mantissa.
template <typename T>
FASTMIX_DEVICE T nan_of() {
  T v;
  unsigned char bytes[sizeof(T)];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) bytes[i] = 0xff;
  std::memcpy(&v, bytes, sizeof(T));
  return v;
}

}  // namespace fastmix
