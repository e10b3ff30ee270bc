// Sums and maxima over the threads that share a row: a warp, or a whole block. The order is fixed, so equal inputs
// give equal bits.
#pragma once

#include "cuda/lib/launch.h"

namespace fastmix {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Plus {
  template <typename A>
  FASTMIX_METHOD A operator()(A a, A b) const {
    return a + b;
  }
};

// NaN counts as smallest: it shows in the sums that follow.
struct Larger {
#ifdef __CUDA_ARCH__
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }  // one instruction
#endif
  template <typename A>
  FASTMIX_METHOD A operator()(A a, A b) const {
    return b > a ? b : a;
  }
};

template <typename A, typename Op>
FASTMIX_DEVICE A warp_reduce(A v, Op op) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) v = op(v, __shfl_xor_sync(kAllLanes, v, lanes));
  return v;
}

// What a reduction needs in shared memory. Two buffers in turn: a thread that writes one has passed the barrier after
// which nobody reads it any more.
template <typename A, int kThreads, int kValues>
struct ReduceBuffer {
  A partial[2][kValues][kThreads / kWarpSize];
};

// Reduces v over kThreads threads, who all get the result. kThreads == 32: the warp, without shared memory.
template <int kThreads, int kValues, typename A, typename Op>
FASTMIX_DEVICE void reduce(A (&v)[kValues], A none, Op op, ReduceBuffer<A, kThreads, kValues>& buffer, int& turn) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) v[i] = warp_reduce(v[i], op);
  if constexpr (kThreads > kWarpSize) {
    constexpr int kWarps = kThreads / kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) buffer.partial[turn][i][warp] = v[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = warp_reduce(lane < kWarps ? buffer.partial[turn][i][lane] : none, op);
    turn ^= 1;
  }
}

// What another block has written, past this multiprocessor's own cache.
FASTMIX_DEVICE double load_coherent(const double* from) {
#ifdef __CUDA_ARCH__
  return __ldcg(from);
#else
  return *from;
#endif
}

// Orders the group's memory accesses.
template <int kThreads>
FASTMIX_DEVICE void group_barrier() {
  if constexpr (kThreads > kWarpSize) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

}  // namespace fastmix
