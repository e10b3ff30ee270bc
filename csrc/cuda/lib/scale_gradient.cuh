// grad *= g on the GPU. Not yet run on a GPU.
#pragma once

#include "cuda/lib/pack.cuh"

namespace fastmix {

constexpr int kScaleThreads = 256;

// Backward: the stored gradient times the incoming one, which nearly always is 1: then nothing is read or written.
struct ScaleParams {
  void* grad;     // (N, J) contiguous
  const void* g;  // () or (N) in the accumulation type
  int64_t rows, row_elements;
  bool per_row;
};

template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kScaleThreads) scale_gradient_kernel(const __grid_constant__ ScaleParams a) {
  using A = accumulator_t<T>;
  const A* g = static_cast<const A*>(a.g);
  if (!a.per_row && *g == A(1)) return;
  const int64_t elements = a.rows * a.row_elements;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kScaleThreads * N;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kScaleThreads + threadIdx.x) * N; i < elements; i += step) {
    T* at = static_cast<T*>(a.grad) + i;
    Elements<T, N> e = load_elements<T, N>(at);
#pragma unroll
    for (int l = 0; l < N; ++l) {
      store(&e.v[l], static_cast<A>(to_float(e.v[l]) * g[a.per_row ? (i + l) / a.row_elements : 0]));
    }
    store_elements<T, N>(at, e);
  }
}

template <typename T>
void scale_gradient(const ScaleParams& a, Stream stream) {
  const int64_t elements = a.rows * a.row_elements;
  const bool packed = is_aligned(a.grad) && elements % kPack<T> == 0;
  const int64_t wanted = ceil_div(elements, kScaleThreads * (packed ? kPack<T> : 1));
  const int64_t resident = static_cast<int64_t>(multiprocessors()) * 8;
  const LaunchShape shape{wanted < resident ? wanted : resident, kScaleThreads};
  if (packed) {
    launch(scale_gradient_kernel<T, kPack<T>>, shape, stream, a);
  } else {
    launch(scale_gradient_kernel<T, 1>, shape, stream, a);
  }
}

}  // namespace fastmix
