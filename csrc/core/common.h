// Functions that CPU and CUDA kernels share. Internal linkage: the CPU sources are compiled once per instruction
// set, and a weak symbol of the AVX-512 build could otherwise be linked into the portable one.
#pragma once

#ifdef __CUDACC__
#define FASTMIX_INLINE static __host__ __device__ __forceinline__
#define FASTMIX_METHOD __host__ __device__ __forceinline__
#else
#define FASTMIX_INLINE static inline __attribute__((always_inline))
#define FASTMIX_METHOD inline __attribute__((always_inline))
#endif
