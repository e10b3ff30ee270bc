// isda_logits on the GPU, diagonal and identity covariance: the present classes and the table of quadratic forms.
// Not yet run on a GPU.
//
// T[u, j] = sum_a sigma_ca (w_ja - w_ca)^2 for the u-th present class c: U J entries, differences taken one by one, so
// that what is common to all weights cancels exactly. bytes: 2 U A + J A read, a tile's from the second-level cache;
// flops: 4 U J A. Shape: a block has 16 classes c times 64 rows j of a part of the features, in shared memory.
#pragma once

#include "cuda/lib/reduce.cuh"

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
  void* table;  // (parts, slots, J), added up by its reader
  int parts, part_width;
  void* sums;  // (slots, J), backward
  void* out;   // logits (N, J, P), or the weight's gradient (J, A)

  FASTMIX_METHOD int64_t rows() const { return images * pixels; }
  FASTMIX_METHOD bool is_class(int64_t y) const {
    return y != ignore_index && static_cast<uint64_t>(y) < static_cast<uint64_t>(classes);
  }
  FASTMIX_METHOD double strength_value() const {
    if (strength == nullptr) return scale;
    return scale * (strength_is_double ? *static_cast<const double*>(strength)
                                       : static_cast<double>(*static_cast<const float*>(strength)));
  }
};

constexpr int kIsdaThreads = 256;

FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_clear_kernel(const __grid_constant__ IsdaParams a) {
  for (int c = static_cast<int>(blockIdx.x * kIsdaThreads + threadIdx.x); c < a.classes;
       c += static_cast<int>(gridDim.x) * kIsdaThreads) {
    a.slot[c] = 0;
  }
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
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads) isda_number_kernel(const __grid_constant__ IsdaParams a) {
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

inline void isda_classes(const IsdaParams& a, Stream stream) {
  const int64_t blocks = ceil_div(a.rows(), kIsdaThreads * 4);
  launch(isda_clear_kernel, {ceil_div(a.classes, kIsdaThreads), kIsdaThreads}, stream, a);
  launch(isda_mark_kernel, {blocks < 256 ? blocks : 256, kIsdaThreads}, stream, a);
  launch(isda_number_kernel, {1, kIsdaThreads}, stream, a);
}

constexpr int kTableSlots = 16, kTableRows = 64, kTableDepth = 32;

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kIsdaThreads, 4) isda_table_kernel(const __grid_constant__ IsdaParams a) {
  // A column more than is read: neighbours in a column lie in different banks.
  __shared__ A own[kTableSlots][kTableDepth + 1], sigma[kTableSlots][kTableDepth + 1];
  __shared__ A rows[kTableRows][kTableDepth + 1];
  const int t = static_cast<int>(threadIdx.x), row_blocks = (a.classes + kTableRows - 1) / kTableRows;
  const int part = static_cast<int>(blockIdx.x % a.parts), block = static_cast<int>(blockIdx.x / a.parts);
  const int first_slot = block / row_blocks * kTableSlots, first_row = block % row_blocks * kTableRows;
  if (a.present[first_slot] < 0) return;  // the empty ones are the last
  const A *weight = static_cast<const A*>(a.weight), *cov = static_cast<const A*>(a.cov);
  const int u = t / 16, j = t % 16;
  A sums[kTableRows / 16] = {};
  const int begin = part * a.part_width, stop = begin + a.part_width, end = stop < a.width ? stop : a.width;
  for (int start = begin; start < end; start += kTableDepth) {
    for (int i = t; i < kTableSlots * kTableDepth; i += kIsdaThreads) {
      const int s = i / kTableDepth, k = i % kTableDepth;
      const int c = first_slot + s < a.slots ? a.present[first_slot + s] : -1;
      const bool inside = c >= 0 && start + k < end;
      const int64_t at = static_cast<int64_t>(c) * a.width + start + k;
      own[s][k] = inside ? weight[at] : A(0);
      sigma[s][k] = !inside ? A(0) : cov != nullptr ? cov[at] : A(1);
    }
    for (int i = t; i < kTableRows * kTableDepth; i += kIsdaThreads) {
      const int r = first_row + i / kTableDepth, k = i % kTableDepth;
      rows[i / kTableDepth][k] =
          r < a.classes && start + k < end ? weight[static_cast<int64_t>(r) * a.width + start + k] : A(0);
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kTableDepth; ++k) {
      const A w = own[u][k], s = sigma[u][k];
#pragma unroll
      for (int i = 0; i < kTableRows / 16; ++i) {
        const A d = rows[j + i * 16][k] - w;
        sums[i] += d * d * s;
      }
    }
    __syncthreads();
  }
  if (first_slot + u >= a.slots) return;
  A* table = static_cast<A*>(a.table) + (static_cast<int64_t>(part) * a.slots + first_slot + u) * a.classes;
#pragma unroll
  for (int i = 0; i < kTableRows / 16; ++i) {
    if (first_row + j + i * 16 < a.classes) table[first_row + j + i * 16] = sums[i];
  }
}

// How many parts the table comes in: enough blocks at J = 1000, A = 2048; one where pixels read it often.
inline void plan_table(IsdaParams& a) {
  const int64_t blocks = ceil_div(a.slots, kTableSlots) * ceil_div(a.classes, kTableRows);
  const int64_t most = a.pixels > 1 ? 1 : ceil_div(a.width, 256), wanted = ceil_div(1024, blocks > 0 ? blocks : 1);
  const int64_t parts = wanted < most ? wanted : most;
  a.part_width = static_cast<int>(ceil_div(ceil_div(a.width, parts > 0 ? parts : 1), kTableDepth) * kTableDepth);
  a.parts = a.width > 0 ? static_cast<int>(ceil_div(a.width, a.part_width)) : 1;
}

// present, slot and table are filled; plan_table was called before table was allocated.
template <typename A>
void isda_table(const IsdaParams& a, Stream stream) {
  isda_classes(a, stream);
  const int64_t blocks = ceil_div(a.slots, kTableSlots) * ceil_div(a.classes, kTableRows);
  launch(isda_table_kernel<A>, {blocks * a.parts, kIsdaThreads}, stream, a);
}

}  // namespace fastmix
