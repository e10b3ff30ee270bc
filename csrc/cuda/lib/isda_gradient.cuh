// The weight's gradient of isda_logits on the GPU, diagonal and identity covariance. Not yet run on a GPU.
//
// With e[u, j] = strength * the incoming gradient added up over the samples of the u-th present class c, and x = w -
// centre as in the table,
//
//     dw_j = x_j (e^T sigma)_j - (e^T sigma x_c)_j - [j present] sigma_j pull_j,   pull_c = (e x)_c - sum_j e[c, j] x_c
//
// three products of tiles, 6 U J A flops. bytes: 2 (U J + J A) + U A read from memory once, J A written.
// Shape: a block has 64 classes times 64 features; pull comes in parts of the classes, so that there are enough blocks.
#pragma once

#include "cuda/lib/isda_table.cuh"

namespace fastmix {

// Four columns of rows t / 16 and t / 16 + 8: what a thread brings of a tile whose side lies side by side.
constexpr int kWideRows = kProductThreads / (kProductSide / 4);

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kProductThreads, 3) isda_pull_kernel(const __grid_constant__ IsdaParams a) {
  __shared__ SharedTile<A, true> sums_tile;
  __shared__ SharedTile<A, false> weight_tile;
  __shared__ A row_sums[kProductSide];
  const int t = static_cast<int>(threadIdx.x), columns = (a.width + kProductSide - 1) / kProductSide;
  const int part = static_cast<int>(blockIdx.x % a.pull_parts), block = static_cast<int>(blockIdx.x / a.pull_parts);
  const int first_slot = block / columns * kProductSide, first_column = block % columns * kProductSide;
  if (a.present[first_slot] < 0) return;  // the empty ones are the last
  const A *weight = static_cast<const A*>(a.weight), *e = static_cast<const A*>(a.sums);
  const bool packed = a.packed(), packed_sums = a.classes % 4 == 0;
  const int begin = part * a.pull_depth, stop = begin + a.pull_depth, end = stop < a.classes ? stop : a.classes;
  const int slot_row = t / 4, deep = t % 4 * 4, wide_row = t / 16, column = t % 16 * 4;
  const A* rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int u = first_slot + slot_row + 32 * i;
    rows[i] = u < a.slots && a.present[u] >= 0 ? e + static_cast<int64_t>(u) * a.classes : nullptr;
  }
  A centre[4], of_sums[2][4], of_weight[2][4], own[2] = {};
  load_four(static_cast<const A*>(a.centre), first_column + column, a.width, packed, centre);
  const auto fetch = [&](int start) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = start + wide_row + kWideRows * i;
      load_four(rows[i], start + deep, end, packed_sums, of_sums[i]);
      load_four(j < end ? weight + static_cast<int64_t>(j) * a.width : nullptr, first_column + column, a.width, packed,
                of_weight[i]);
    }
  };
  TileSums<A> sums{};
  fetch(begin);
  for (int start = begin; start < end; start += kProductDepth) {
    if (start > begin) __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = start + wide_row + kWideRows * i < end;
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        own[i] += of_sums[i][d];
        of_weight[i][d] = inside ? of_weight[i][d] - centre[d] : A(0);
      }
      sums_tile.put(slot_row + 32 * i, deep, of_sums[i]);
      weight_tile.put(wide_row + kWideRows * i, column, of_weight[i]);
    }
    __syncthreads();
    if (start + kProductDepth < end) fetch(start + kProductDepth);
    add_products(sums, sums_tile, weight_tile, Same());
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    own[i] += __shfl_xor_sync(kAllLanes, own[i], 1);
    own[i] += __shfl_xor_sync(kAllLanes, own[i], 2);
    if (t % 4 == 0) row_sums[slot_row + 32 * i] = own[i];
  }
  __syncthreads();
  A* pull = static_cast<A*>(a.pull) + static_cast<int64_t>(part) * a.slots * a.width;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int row = TileSums<A>::row(t, i, n), u = first_slot + row;
      const int64_t c = u < a.slots ? a.present[u] : -1;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = first_column + TileSums<A>::column(t, j, n);
        if (c < 0 || k >= a.width) continue;
        const A x = weight[c * a.width + k] - static_cast<const A*>(a.centre)[k];
        pull[static_cast<int64_t>(u) * a.width + k] = sums.v[i][j][n] - row_sums[row] * x;
      }
    }
  }
}

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kProductThreads, 2) isda_gradient_kernel(const __grid_constant__ IsdaParams a) {
  __shared__ SharedTile<A, false> sums_tile, sigma_tile, product_tile;
  const int t = static_cast<int>(threadIdx.x), columns = (a.width + kProductSide - 1) / kProductSide;
  const int first_row = static_cast<int>(blockIdx.x) / columns * kProductSide;
  const int first_column = static_cast<int>(blockIdx.x) % columns * kProductSide;
  const A *weight = static_cast<const A*>(a.weight), *cov = static_cast<const A*>(a.cov);
  const A* e = static_cast<const A*>(a.sums);
  const bool packed = a.packed(), packed_sums = a.classes % 4 == 0;
  const int wide_row = t / 16, column = t % 16 * 4, k = first_column + column;
  A centre[4], of_sums[2][4], sigma[2][4], w[2][4];
  load_four(static_cast<const A*>(a.centre), k, a.width, packed, centre);
  const auto fetch = [&](int start) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int u = start + wide_row + kWideRows * i;
      const int64_t c = u < a.slots ? a.present[u] : -1;
      load_four(c < 0 ? nullptr : e + static_cast<int64_t>(u) * a.classes, first_row + column, a.classes, packed_sums,
                of_sums[i]);
      load_four(c < 0 || cov == nullptr ? nullptr : cov + c * a.width, k, a.width, packed, sigma[i]);
      load_four(c < 0 ? nullptr : weight + c * a.width, k, a.width, packed, w[i]);
#pragma unroll
      for (int d = 0; d < 4 && cov == nullptr; ++d) sigma[i][d] = c < 0 ? A(0) : A(1);
    }
  };
  TileSums<A> weighed{}, theirs{};
  fetch(0);
  for (int start = 0; start < a.slots && a.present[start] >= 0; start += kProductDepth) {
    if (start > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int d = 0; d < 4; ++d) w[i][d] = sigma[i][d] * (w[i][d] - centre[d]);
      sums_tile.put(wide_row + kWideRows * i, column, of_sums[i]);
      sigma_tile.put(wide_row + kWideRows * i, column, sigma[i]);
      product_tile.put(wide_row + kWideRows * i, column, w[i]);
    }
    __syncthreads();
    if (start + kProductDepth < a.slots) fetch(start + kProductDepth);
    add_products(weighed, sums_tile, sigma_tile, Same());
    add_products(theirs, sums_tile, product_tile, Same());
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int j = first_row + TileSums<A>::row(t, i, n);
      const int u = j < a.classes ? a.slot[j] : -1;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int f = first_column + TileSums<A>::column(t, m, n);
        if (j >= a.classes || f >= a.width) continue;
        const int64_t at = static_cast<int64_t>(j) * a.width + f;
        A pull = 0;
#pragma unroll 1
        for (int part = 0; u >= 0 && part < a.pull_parts; ++part) {
          pull += static_cast<const A*>(a.pull)[(static_cast<int64_t>(part) * a.slots + u) * a.width + f];
        }
        if (u >= 0 && cov != nullptr) pull *= cov[at];
        const A x = weight[at] - static_cast<const A*>(a.centre)[f];
        static_cast<A*>(a.out)[at] = x * weighed.v[i][m][n] - theirs.v[i][m][n] - pull;
      }
    }
  }
}

// How many parts pull comes in: enough blocks at J = 1000, A = 2048.
inline void plan_pull(IsdaParams& a) {
  const int64_t blocks = ceil_div(a.slots, kProductSide) * ceil_div(a.width, kProductSide);
  const int64_t most = ceil_div(a.classes, 128), wanted = ceil_div(512, blocks > 0 ? blocks : 1);
  const int64_t parts = wanted < most ? wanted : most;
  a.pull_depth = static_cast<int>(ceil_div(ceil_div(a.classes, parts > 0 ? parts : 1), kProductDepth) * kProductDepth);
  a.pull_parts = a.classes > 0 ? static_cast<int>(ceil_div(a.classes, a.pull_depth)) : 1;
}

// sums is filled; plan_pull was called before pull was allocated.
template <typename A>
void isda_gradient(const IsdaParams& a, Stream stream) {
  const int64_t columns = ceil_div(a.width, kProductSide);
  launch(isda_pull_kernel<A>, {ceil_div(a.slots, kProductSide) * columns * a.pull_parts, kProductThreads}, stream, a);
  launch(isda_gradient_kernel<A>, {ceil_div(a.classes, kProductSide) * columns, kProductThreads}, stream, a);
}

}  // namespace fastmix
