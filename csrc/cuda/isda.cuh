// isda_logits on the GPU, diagonal and identity covariance: the table added to rows or pixels of logits, and the
// weight's gradient. ISDA Eq. 7. Not yet run on a GPU.
//
// bytes: N*J*size read + written, 16 at a time; backward N*J*size read, J A written. flops backward: 6 U J A, three
// products of tiles on tensor cores. Shape: lines of elements side by side (the classes of a row, the pixels of a
// plane) are divided among blocks; the gradient's sums are taken over the samples of a class in their order, without
// atomics. Launches: 3 forward, 4 backward; 2 more each where there are more than kFewLabels labels.
#pragma once

#include "cuda/lib/isda_gradient.cuh"
#include "cuda/lib/logit_row.cuh"

namespace fastmix {

// Parts of the table added up: strength/2 v^T Sigma v.
template <typename A>
FASTMIX_DEVICE A table_entry(const IsdaParams& a, int slot, int j) {
  const A* at = static_cast<const A*>(a.table) + static_cast<int64_t>(slot) * a.classes + j;
  A sum = 0;
  for (int part = 0; part < a.parts; ++part) sum += at[static_cast<int64_t>(part) * a.slots * a.classes];
  return sum;
}

template <typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE T augmented(const IsdaParams& a, T z, int64_t y, int j, A half) {
  if (y == a.ignore_index || y == j) return z;
  if (!a.is_class(y)) return nan_of<T>();
  T out;
  store(&out, to_float(z) + half * table_entry<A>(a, a.slot[y], j));
  return out;
}

constexpr int kLineElements = 2048;  // of a block

// kPlanes: a line is a plane (n, j) of pixels, else a row n of classes.
template <typename T, bool kPlanes>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads, 4) isda_add_kernel(const __grid_constant__ IsdaParams a) {
  using A = accumulator_t<T>;
  constexpr int N = kPack<T>;
  const int64_t length = kPlanes ? a.pixels : a.classes;
  const int64_t chunks = (length + kLineElements - 1) / kLineElements, line = blockIdx.x / chunks;
  const int64_t n = kPlanes ? line / a.classes : line;
  const int plane = kPlanes ? static_cast<int>(line % a.classes) : 0;
  const int64_t begin = blockIdx.x % chunks * kLineElements;
  const int count = static_cast<int>(length - begin < kLineElements ? length - begin : kLineElements);
  const T* z = static_cast<const T*>(a.in) + n * a.image_stride + plane * a.class_stride + begin;
  T* out = static_cast<T*>(a.out) + line * length + begin;
  const int64_t* labels = a.labels + (kPlanes ? n * a.pixels + begin : n);
  const A half = static_cast<A>(0.5 * a.strength_value());
  const auto value = [&](T from, int i) {
    return augmented(a, from, labels[kPlanes ? i : 0], kPlanes ? plane : static_cast<int>(begin) + i, half);
  };
  const RowView<T> row(z, count);
  for (int pack = static_cast<int>(threadIdx.x); pack < row.packs; pack += kIsdaThreads) {
    const int at = row.head + pack * N;
    Elements<T, N> e = load_elements<T, N>(z + at);
#pragma unroll
    for (int i = 0; i < N; ++i) e.v[i] = value(e.v[i], at + i);
    if (is_aligned(out + at)) {
      store_elements<T, N>(out + at, e);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) out[at + i] = e.v[i];
    }
  }
  if (static_cast<int>(threadIdx.x) < row.edges) {
    const int at = row.edge(static_cast<int>(threadIdx.x));
    out[at] = value(z[at], at);
  }
}

// ---------------------------------------------------------------- backward

// sums[u, j] = strength * the gradients of class c's samples added up, 0 for j = c. A thread has a class j; a warp
// looks for the class's samples 32 labels at a time.
template <typename T>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_sum_rows_kernel(const __grid_constant__ IsdaParams a) {
  using A = accumulator_t<T>;
  const int chunks = (a.classes + kIsdaThreads - 1) / kIsdaThreads, u = static_cast<int>(blockIdx.x) / chunks;
  const int c = a.present[u], j = static_cast<int>(blockIdx.x) % chunks * kIsdaThreads + static_cast<int>(threadIdx.x);
  if (c < 0) return;
  A sum = 0;
  for (int64_t start = 0; start < a.images; start += kWarpSize) {
    const int64_t mine = start + static_cast<int>(threadIdx.x) % kWarpSize;
    unsigned hits = __ballot_sync(kAllLanes, mine < a.images && a.labels[mine] == c);
    for (; hits != 0; hits &= hits - 1) {
      const int64_t n = start + __ffs(static_cast<int>(hits)) - 1;
      if (j < a.classes) sum += to_float(static_cast<const T*>(a.in)[n * a.image_stride + j]);
    }
  }
  if (j < a.classes) {
    static_cast<A*>(a.sums)[static_cast<int64_t>(u) * a.classes + j] =
        j == c ? A(0) : sum * static_cast<A>(a.strength_value());
  }
}

constexpr int kPlanesTogether = 8;

// The same of pixels: a block has some planes, and adds up what its threads found.
template <typename T>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_sum_pixels_kernel(const __grid_constant__ IsdaParams a) {
  using A = accumulator_t<T>;
  __shared__ ReduceBuffer<A, kIsdaThreads, kPlanesTogether> buffer;
  const int chunks = (a.classes + kPlanesTogether - 1) / kPlanesTogether, u = static_cast<int>(blockIdx.x) / chunks;
  const int c = a.present[u], first = static_cast<int>(blockIdx.x) % chunks * kPlanesTogether;
  if (c < 0) return;
  A sums[kPlanesTogether] = {};
  for (int64_t n = 0; n < a.images; ++n) {
    const T* image = static_cast<const T*>(a.in) + n * a.image_stride;
    for (int64_t p = threadIdx.x; p < a.pixels; p += kIsdaThreads) {
      if (a.labels[n * a.pixels + p] != c) continue;
#pragma unroll
      for (int i = 0; i < kPlanesTogether; ++i) {
        if (first + i < a.classes) sums[i] += to_float(image[(first + i) * a.class_stride + p * a.pixel_stride]);
      }
    }
  }
  int turn = 0;
  reduce<kIsdaThreads>(sums, A(0), Plus(), buffer, turn);
  if (threadIdx.x != 0) return;
  const A strength = static_cast<A>(a.strength_value());
#pragma unroll
  for (int i = 0; i < kPlanesTogether; ++i) {
    const int j = first + i;
    if (j < a.classes) {
      static_cast<A*>(a.sums)[static_cast<int64_t>(u) * a.classes + j] = j == c ? A(0) : sums[i] * strength;
    }
  }
}

// ---------------------------------------------------------------- launchers

template <typename T>
void isda_logits(const IsdaParams& a, Stream stream) {
  isda_table<accumulator_t<T>>(a, stream);
  if (a.pixels > 1) {
    const int64_t chunks = ceil_div(a.pixels, kLineElements);
    launch(isda_add_kernel<T, true>, {a.images * a.classes * chunks, kIsdaThreads}, stream, a);
  } else {
    launch(isda_add_kernel<T, false>, {a.images * ceil_div(a.classes, kLineElements), kIsdaThreads}, stream, a);
  }
}

template <typename T>
void isda_logits_backward(const IsdaParams& a, Stream stream) {
  using A = accumulator_t<T>;
  isda_classes<A>(a, stream);
  if (a.pixels > 1) {
    launch(isda_sum_pixels_kernel<T>, {a.slots * ceil_div(a.classes, kPlanesTogether), kIsdaThreads}, stream, a);
  } else {
    launch(isda_sum_rows_kernel<T>, {a.slots * ceil_div(a.classes, kIsdaThreads), kIsdaThreads}, stream, a);
  }
  isda_gradient<A>(a, stream);
}

}  // namespace fastmix
