// One way to launch a kernel: <<<>>> under nvcc, threads on the CPU under FASTMIX_SIMT (tests/backends/simt/simt.h).
#pragma once

#include <cstdint>
#include <stdexcept>

#include "core/common.h"

#ifdef FASTMIX_SIMT
#include "simt.h"
#define FASTMIX_DEVICE static inline __attribute__((always_inline))
// Shared memory whose size the launch gives.
#define FASTMIX_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())
#else
#include <cuda_runtime.h>
#define FASTMIX_DEVICE static __device__ __forceinline__
#define FASTMIX_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char fastmix_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(fastmix_dynamic_shared)
#endif

// Internal linkage: two sources may instantiate the same kernel with other helpers.
#define FASTMIX_KERNEL static __global__

namespace fastmix {

#ifdef FASTMIX_SIMT
using Stream = void*;
#else
using Stream = cudaStream_t;
#endif

struct LaunchShape {
  int64_t blocks;
  int threads;
  size_t shared = 0;  // dynamic, in bytes
};

// Multiprocessors of the current device. Under FASTMIX_SIMT few, so that loops over the grid take several turns.
inline int multiprocessors() {
#ifdef FASTMIX_SIMT
  return 1;
#else
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
#endif
}

// What a block of the current device may have, static and dynamic together.
inline size_t max_shared_bytes() {
#ifdef FASTMIX_SIMT
  return 64 * 1024;
#else
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
#endif
}

constexpr size_t kUnaskedShared = 48 * 1024;     // what a block may have without opting in, static and dynamic together
constexpr size_t kMostStaticShared = 32 * 1024;  // of any kernel; tests/backends/test_cuda_build.py holds them to it

#ifndef FASTMIX_SIMT
// Lets a kernel have more than a block gets unasked. The runtime is asked only where it may be so.
template <typename... P>
void opt_in(void (*kernel)(P...), size_t dynamic) {
  if (dynamic <= kUnaskedShared - kMostStaticShared) return;
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return;
  if (attributes.sharedSizeBytes + dynamic <= kUnaskedShared) return;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(dynamic));
}
#endif

// An empty grid launches nothing. Errors of the launch itself are the caller's to check, with the name of its op.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), const LaunchShape& shape, Stream stream, const A&... arguments) {
  if (shape.blocks <= 0) return;
  if (shape.blocks > INT32_MAX) throw std::length_error("the grid has more than 2^31 - 1 blocks");
#ifdef FASTMIX_SIMT
  (void)stream;
  simt::launch(kernel, static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads), shape.shared,
               arguments...);
#else
  opt_in(kernel, shape.shared);
  // clang-format off
  kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, shape.shared, stream>>>(arguments...);
  // clang-format on
#endif
}

}  // namespace fastmix
