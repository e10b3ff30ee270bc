// 16 bytes at a time: what a thread loads and stores in one instruction. Raw pointers, no torch.
#pragma once

#include <type_traits>

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

// N elements of T as 32-bit words: how kernels hold what they have loaded. As elements of 16 bits the compiler would
// keep each in a register of its own, and take it apart as soon as it arrives.
template <typename T, int N>
struct Words {
  static constexpr int kWords = static_cast<int>(N * sizeof(T) + 3) / 4;
  uint32_t w[kWords];
};

template <typename T, int N>
FASTMIX_DEVICE Words<T, N> to_words(const Elements<T, N>& e) {
  Words<T, N> v{};
  std::memcpy(v.w, e.v, sizeof(e.v));
  return v;
}

// Every kThreads-th of the packs from `from` on, while fewer than `packs`, from device to the same place in shared
// memory, past the registers. They are there once the thread has waited for its copies.
template <int kThreads, typename T>
FASTMIX_DEVICE void copy_packs_async(T* shared, const T* from, int packs) {
#ifdef __CUDA_ARCH__
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
#pragma unroll 4
  for (; packs > 0; packs -= kThreads) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
    to += kThreads * 16;
    from += kThreads * kPack<T>;
  }
#else
  for (int i = 0; i < packs; i += kThreads) std::memcpy(shared + i * kPack<T>, from + i * kPack<T>, 16);
#endif
}
FASTMIX_DEVICE void wait_for_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// What a kernel does not write, at `from` where `wanted`, else v. No branch: loads that follow each other are issued
// together.
template <typename T, int N>
FASTMIX_DEVICE Words<T, N> load_words(const T* from, bool wanted, Words<T, N> v = {}) {
#ifdef __CUDA_ARCH__
  if constexpr (N * sizeof(T) == 16) {
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t@p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+r"(v.w[0]), "+r"(v.w[1]), "+r"(v.w[2]), "+r"(v.w[3])
                 : "l"(from), "r"(static_cast<int>(wanted)));
    return v;
  }
#endif
  if (wanted) std::memcpy(v.w, from, N * sizeof(T));
  return v;
}

// In one instruction: the compiler splits a plain store of words that it has computed apart.
template <typename T, int N>
FASTMIX_DEVICE void store_words(T* to, const Words<T, N>& v) {
#ifdef __CUDA_ARCH__
  if constexpr (N * sizeof(T) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
                 : "memory");
    return;
  }
#endif
  std::memcpy(to, v.w, N * sizeof(T));
}

// Element l of the words, in the type of sums.
template <typename T, int N>
FASTMIX_DEVICE accumulator_t<T> element(const Words<T, N>& v, int l) {
  if constexpr (sizeof(T) == 8) {
    const uint64_t bits = v.w[2 * l] | static_cast<uint64_t>(v.w[2 * l + 1]) << 32;
    return to_float(bit_cast<T>(bits));
  } else if constexpr (sizeof(T) == 4) {
    return to_float(bit_cast<T>(v.w[l]));
  } else if constexpr (std::is_same_v<T, bf16>) {
    return bit_cast<float>(l % 2 == 0 ? v.w[l / 2] << 16 : v.w[l / 2] & 0xffff0000u);
  } else {
    return to_float(bit_cast<T>(static_cast<uint16_t>(v.w[l / 2] >> (16 * (l % 2)))));
  }
}

// Sums in the type of storage, two at a time where one instruction rounds two.
template <typename T, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE Words<T, N> rounded(const A (&sums)[N]) {
  Words<T, N> v{};
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if constexpr (std::is_same_v<T, bf16>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v.w[i]) : "f"(sums[2 * i + 1]), "f"(sums[2 * i]));
      } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v.w[i]) : "f"(sums[2 * i + 1]), "f"(sums[2 * i]));
      }
    }
    return v;
  }
#endif
  Elements<T, N> e;
#pragma unroll
  for (int l = 0; l < N; ++l) store(&e.v[l], sums[l]);
  std::memcpy(v.w, e.v, sizeof(e.v));
  return v;
}

// All bits of the elements in a set.
template <typename T, int N>
FASTMIX_DEVICE Words<T, N> mask_of(uint32_t bits) {
  constexpr int kWords = Words<T, N>::kWords;
  Words<T, N> mask;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if constexpr (sizeof(T) == 2 && N > 1) {
      mask.w[i] = (bits >> (2 * i) & 1u) * 0xffffu | (bits >> (2 * i + 1) & 1u) * 0xffff0000u;
    } else {
      mask.w[i] = 0u - (bits >> (i * N / kWords) & 1u);
    }
  }
  return mask;
}

// a where the mask has a bit, b elsewhere.
template <typename T, int N>
FASTMIX_DEVICE Words<T, N> chosen(const Words<T, N>& mask, const Words<T, N>& a, const Words<T, N>& b) {
  Words<T, N> v;
#pragma unroll
  for (int i = 0; i < Words<T, N>::kWords; ++i) v.w[i] = (a.w[i] & mask.w[i]) | (b.w[i] & ~mask.w[i]);
  return v;
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
