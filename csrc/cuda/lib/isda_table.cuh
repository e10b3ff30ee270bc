// isda_logits on the GPU, diagonal and identity covariance: the present classes and the table of quadratic forms.
// Not yet run on a GPU.
//
// T[u, j] = sum_a sigma_ca (w_ja - w_ca)^2 for the u-th present class c: U J entries, as two products of tiles,
//
//     T = sigma (x^2)^T + (-2 sigma x_c) x^T + sum_a sigma x_ca^2,     x = w - centre,
//
// 4 U J A flops on tensor cores. What all weights have in common is gone with the centre, the mean of some of them;
// what cancels then is of the size of the differences themselves. Differences one by one would take three instructions
// of a thread for each of U J A, 4.5 with their loads; this takes 0.3 (docs/gpu.md). bytes: 2 U A + J A read from
// memory once, a tile's from the second-level cache. Shape: a block has 64 classes c times 64 rows j of a part of the
// features.
#pragma once

#include "cuda/lib/tile_products.cuh"

namespace fastmix {

struct IsdaParams {
  // logits, or the incoming gradient: element strides of (N, J, P)
  const void* in;
  int64_t image_stride, class_stride, pixel_stride;
  int64_t images, pixels;
  int classes, width;     // J, A
  const int64_t* labels;  // (N, P)
  int64_t ignore_index;
  const void* weight;    // (J, A) in the accumulation type, as all below
  const void* cov;       // (J, A), null: identity
  const void* strength;  // one float or double, null: 1
  bool strength_is_double;
  double scale;
  int* present;  // (slots) ids of the classes in the batch, ascending, -1 beyond
  int* slot;     // (J) place in present, -1 of a class that is not there
  int slots;
  void* centre;  // (A) in the accumulation type: the mean of some rows of the weight
  void* table;   // (parts, slots, J), added up by its reader
  int parts, part_width;
  void* sums;  // (slots, J), backward
  void* pull;  // (pull_parts, slots, A), backward, added up by its reader
  int pull_parts, pull_depth;
  void* out;  // logits (N, J, P), or the weight's gradient (J, A)

  FASTMIX_METHOD int64_t rows() const { return images * pixels; }
  FASTMIX_METHOD bool is_class(int64_t y) const {
    return y != ignore_index && static_cast<uint64_t>(y) < static_cast<uint64_t>(classes);
  }
  FASTMIX_METHOD double strength_value() const {
    if (strength == nullptr) return scale;
    return scale * (strength_is_double ? *static_cast<const double*>(strength)
                                       : static_cast<double>(*static_cast<const float*>(strength)));
  }
  // Whether rows of weight and cov are whole packs.
  FASTMIX_METHOD bool packed() const { return width % 4 == 0 && is_aligned(weight) && is_aligned(cov); }
};

constexpr int kIsdaThreads = 256;
constexpr int kCentreRows = 16;

// The mean of kCentreRows rows of the weight, or of all where there are fewer. A thread has a feature.
template <typename A>
FASTMIX_DEVICE void write_centre(const IsdaParams& a, int k) {
  if (k >= a.width || a.classes == 0) return;
  const int rows = a.classes < kCentreRows ? a.classes : kCentreRows;
  const int64_t step = static_cast<int64_t>(a.classes / rows) * a.width;
  const A* weight = static_cast<const A*>(a.weight) + k;
  A v[kCentreRows], sum = 0;
#pragma unroll
  for (int i = 0; i < kCentreRows; ++i) v[i] = i < rows ? weight[i * step] : A(0);
#pragma unroll
  for (int i = 0; i < kCentreRows; ++i) sum += v[i];
  static_cast<A*>(a.centre)[k] = sum / static_cast<A>(rows);
}

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_clear_kernel(const __grid_constant__ IsdaParams a) {
  const int i = static_cast<int>(blockIdx.x * kIsdaThreads + threadIdx.x);
  if (i < a.classes) a.slot[i] = 0;
  write_centre<A>(a, i);
}

// slot[c] counts the labels of class c: integers, whose sums depend on no order. A thread adds once for a run of equal
// labels, of which images have many.
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_mark_kernel(const __grid_constant__ IsdaParams a) {
  const int64_t share = (a.rows() + gridDim.x * static_cast<int64_t>(kIsdaThreads) - 1) / (gridDim.x * kIsdaThreads);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kIsdaThreads + threadIdx.x) * share;
  const int64_t end = begin + share < a.rows() ? begin + share : a.rows();
  int64_t last = -1;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t y = a.labels[r];
    if (y == last || !a.is_class(y)) continue;
    atomicAdd(a.slot + y, 1);
    last = y;
  }
}

// One block numbers the marked classes.
FASTMIX_DEVICE void number_classes(const IsdaParams& a) {
  __shared__ int warps[2][kIsdaThreads / kWarpSize];
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarpSize, warp = t / kWarpSize;
  int found = 0, turn = 0;
  for (int start = 0; start < a.classes; start += kIsdaThreads, turn ^= 1) {
    const int c = start + t;
    const bool here = c < a.classes && a.slot[c] > 0;
    const unsigned bits = __ballot_sync(kAllLanes, here);
    if (lane == 0) warps[turn][warp] = __popc(bits);
    __syncthreads();
    int before = found;
    for (int w = 0; w < kIsdaThreads / kWarpSize; ++w) {
      before += w < warp ? warps[turn][w] : 0;
      found += warps[turn][w];
    }
    const int u = before + __popc(bits & ((1u << lane) - 1));
    if (c < a.classes) a.slot[c] = here ? u : -1;
    if (here) a.present[u] = c;
  }
  for (int u = found + t; u < a.slots; u += kIsdaThreads) a.present[u] = -1;
}

FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_number_kernel(const __grid_constant__ IsdaParams a) {
  number_classes(a);
}

// All of it in one launch, for few labels: the first block has the classes, the others the centre.
template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_few_kernel(const __grid_constant__ IsdaParams a) {
  const int t = static_cast<int>(threadIdx.x);
  if (blockIdx.x > 0) return write_centre<A>(a, static_cast<int>(blockIdx.x - 1) * kIsdaThreads + t);
  for (int c = t; c < a.classes; c += kIsdaThreads) a.slot[c] = 0;
  __syncthreads();
  for (int64_t r = t; r < a.rows(); r += kIsdaThreads) {
    const int64_t y = a.labels[r];
    if (a.is_class(y)) atomicAdd(a.slot + y, 1);
  }
  __syncthreads();
  number_classes(a);
}

constexpr int64_t kFewLabels = 2048;

// Fills present, slot and centre.
template <typename A>
void isda_classes(const IsdaParams& a, Stream stream) {
  if (a.rows() <= kFewLabels) {
    return launch(isda_few_kernel<A>, {1 + ceil_div(a.width, kIsdaThreads), kIsdaThreads}, stream, a);
  }
  const int64_t blocks = ceil_div(a.rows(), kIsdaThreads * 4), most = a.classes > a.width ? a.classes : a.width;
  launch(isda_clear_kernel<A>, {ceil_div(most, kIsdaThreads), kIsdaThreads}, stream, a);
  launch(isda_mark_kernel, {blocks < 256 ? blocks : 256, kIsdaThreads}, stream, a);
  launch(isda_number_kernel, {1, kIsdaThreads}, stream, a);
}

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kProductThreads, 2) isda_table_kernel(const __grid_constant__ IsdaParams a) {
  __shared__ SharedTile<A, true> sigma_tile, pull_tile, weight_tile;
  __shared__ A own_sums[kProductSide];
  const int t = static_cast<int>(threadIdx.x), row_blocks = (a.classes + kProductSide - 1) / kProductSide;
  const int part = static_cast<int>(blockIdx.x % a.parts), block = static_cast<int>(blockIdx.x / a.parts);
  const int first_slot = block / row_blocks * kProductSide, first_row = block % row_blocks * kProductSide;
  if (a.present[first_slot] < 0) return;  // the empty ones are the last
  const A *weight = static_cast<const A*>(a.weight), *cov = static_cast<const A*>(a.cov);
  const bool packed = a.packed();
  const int begin = part * a.part_width, stop = begin + a.part_width, end = stop < a.width ? stop : a.width;
  // A thread brings four features of rows t / 4 and t / 4 + 32 of both sides.
  const int own_row = t / 4, feature = t % 4 * 4;
  int c[2], j[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int u = first_slot + own_row + 32 * i;
    c[i] = u < a.slots ? a.present[u] : -1;
    j[i] = first_row + own_row + 32 * i < a.classes ? first_row + own_row + 32 * i : -1;
  }
  A sigma[2][4], other[2][4], w[2][4], own[2] = {};
  const auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_four(row_of(cov, cov == nullptr ? -1 : c[i], a.width), k, end, packed, sigma[i]);
      load_four(row_of(weight, c[i], a.width), k, end, packed, other[i]);
      load_four(row_of(weight, j[i], a.width), k, end, packed, w[i]);
    }
  };
  TileSums<A> sums{};
  fetch(begin + feature);
  for (int start = begin; start < end; start += kProductDepth) {
    A centre[4];
    load_four(static_cast<const A*>(a.centre), start + feature, end, packed, centre);
    if (start > begin) __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      A pull[4];
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        if (cov == nullptr) sigma[i][d] = c[i] >= 0 && start + feature + d < end ? A(1) : A(0);
        const A x = other[i][d] - centre[d];
        pull[d] = A(-2) * sigma[i][d] * x;
        own[i] += sigma[i][d] * x * x;
        w[i][d] -= centre[d];
      }
      sigma_tile.put(own_row + 32 * i, feature, sigma[i]);
      pull_tile.put(own_row + 32 * i, feature, pull);
      weight_tile.put(own_row + 32 * i, feature, w[i]);
    }
    __syncthreads();
    if (start + kProductDepth < end) fetch(start + kProductDepth + feature);
    add_products(sums, sigma_tile, weight_tile, Square());
    add_products(sums, pull_tile, weight_tile, Same());
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    own[i] += __shfl_xor_sync(kAllLanes, own[i], 1);
    own[i] += __shfl_xor_sync(kAllLanes, own[i], 2);
    if (t % 4 == 0) own_sums[own_row + 32 * i] = own[i];
  }
  __syncthreads();
  A* table = static_cast<A*>(a.table) + static_cast<int64_t>(part) * a.slots * a.classes;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = TileSums<A>::row(t, i, e);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first_row + TileSums<A>::column(t, j, e);
        if (first_slot + row < a.slots && column < a.classes) {
          table[static_cast<int64_t>(first_slot + row) * a.classes + column] = sums.v[i][j][e] + own_sums[row];
        }
      }
    }
  }
}

// How many parts the table comes in: enough blocks at J = 1000, A = 2048; one where pixels read it often.
inline void plan_table(IsdaParams& a) {
  const int64_t blocks = ceil_div(a.slots, kProductSide) * ceil_div(a.classes, kProductSide);
  const int64_t most = a.pixels > 1 ? 1 : ceil_div(a.width, 256), wanted = ceil_div(1024, blocks > 0 ? blocks : 1);
  const int64_t parts = wanted < most ? wanted : most;
  a.part_width = static_cast<int>(ceil_div(ceil_div(a.width, parts > 0 ? parts : 1), kProductDepth) * kProductDepth);
  a.parts = a.width > 0 ? static_cast<int>(ceil_div(a.width, a.part_width)) : 1;
}

// present, slot and table are filled; plan_table was called before table was allocated.
template <typename A>
void isda_table(const IsdaParams& a, Stream stream) {
  isda_classes<A>(a, stream);
  const int64_t blocks = ceil_div(a.slots, kProductSide) * ceil_div(a.classes, kProductSide);
  launch(isda_table_kernel<A>, {blocks * a.parts, kProductThreads}, stream, a);
}

}  // namespace fastmix
