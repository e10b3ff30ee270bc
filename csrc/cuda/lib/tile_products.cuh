// Products of tiles in shared memory, added up by the warps of a block: 64 x 64 results, 16 deep at a time.
//
// float: tensor cores, and still float32. An operand is split into two TF32 numbers, a = high + low, of 11 and 12 bits;
// three products, low high + high low + high high, leave out low low: 2^-22 |a b|. Tensor cores cut sums off instead of
// rounding them, which would pull a long sum one way, so every 16 terms are added up from 0 and rounded into the sum.
// Against float64, on an emulator that cuts at 24 bits: below 8e-7 of sum |a b| at any depth up to 2048, 1.2e-7 of it
// one way, where a chain of float32 multiply-adds reaches 2.6e-6 (tests/backends/test_simt.py). Infinity gives NaN.
// double: plain multiply-adds.
//
// Floor, per 32 x 32 x 16 of a warp: 48 HMMA, and 3 instructions for each of 32 numbers of a lane that are split.
#pragma once

#include "cuda/lib/pack.cuh"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

constexpr int kProductSide = 64, kProductDepth = 16, kProductThreads = 128;

// A tile of kProductSide x kProductDepth numbers. kDeepRows: depth lies side by side, else side does. Lane 4 g + t of a
// warp reads four numbers of one depth group 4 t at side g: no two lanes meet in a bank, in either order.
template <typename A, bool kDeepRows>
struct SharedTile {
  static constexpr int kPitch = kDeepRows ? kProductDepth : kProductSide + 2;
  alignas(16) A v[(kDeepRows ? kProductSide : kProductDepth) * kPitch];

  FASTMIX_METHOD A at(int side, int k) const { return v[kDeepRows ? side * kPitch + k : k * kPitch + side]; }
  // Four numbers that lie side by side.
  FASTMIX_METHOD void put(int row, int column, const A (&from)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[row * kPitch + column + i] = from[i];
  }
};

// What a warp adds up: (i, j, e) is the element at row(i, e), column(j, e) of the block's 64 x 64.
template <typename A>
struct TileSums {
  A v[2][4][4];

  FASTMIX_METHOD static int row(int thread, int i, int e) {
    return thread / (2 * kWarpSize) * 32 + i * 16 + e / 2 * 8 + thread % kWarpSize / 4;
  }
  FASTMIX_METHOD static int column(int thread, int j, int e) {
    return thread / kWarpSize % 2 * 32 + j * 8 + thread % 4 * 2 + e % 2;
  }
};

struct Same {
  template <typename A>
  FASTMIX_METHOD A operator()(A v) const {
    return v;
  }
};

struct Square {
  template <typename A>
  FASTMIX_METHOD A operator()(A v) const {
    return v * v;
  }
};

// d += a b in TF32: a is 16 x 8, b 8 x 8, spread over the lanes of a warp as PTX says of mma.m16n8k8.
FASTMIX_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef FASTMIX_SIMT
  simt::mma_tf32(d, a, b);
#elif defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The nearest TF32 number, and what is left; tensor cores do not look at the last 13 bits.
FASTMIX_DEVICE void split(float v, uint32_t& high, uint32_t& low) {
  high = (bit_cast<uint32_t>(v) + 0x1000u) & 0xffffe000u;
  low = bit_cast<uint32_t>(v - bit_cast<float>(high));
}

// sums += a f(b) over the depth of the tiles.
template <typename TA, typename TB, typename F>
FASTMIX_DEVICE void add_products(TileSums<float>& sums, const TA& a, const TB& b, const F& f) {
  const int thread = static_cast<int>(threadIdx.x), k = thread % 4 * 4;
  // Depth 4 t + {0, 1} of the tile stands for t, t + 4 of the first product, 4 t + {2, 3} for those of the second.
  uint32_t high[2][2][4], low[2][2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = TileSums<float>::row(thread, i, 2 * half);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        split(a.at(row, k + d), high[i][d / 2][half + d % 2 * 2], low[i][d / 2][half + d % 2 * 2]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int column = thread / kWarpSize % 2 * 32 + j * 8 + thread % kWarpSize / 4;
    uint32_t b_high[2][2], b_low[2][2];
#pragma unroll
    for (int d = 0; d < 4; ++d) split(f(b.at(column, k + d)), b_high[d / 2][d % 2], b_low[d / 2][d % 2]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float part[4] = {};
#pragma unroll
      for (int step = 0; step < 2; ++step) mma_tf32(part, low[i][step], b_high[step]);
#pragma unroll
      for (int step = 0; step < 2; ++step) mma_tf32(part, high[i][step], b_low[step]);
#pragma unroll
      for (int step = 0; step < 2; ++step) mma_tf32(part, high[i][step], b_high[step]);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.v[i][j][e] += part[e];
    }
  }
}

template <typename TA, typename TB, typename F>
FASTMIX_DEVICE void add_products(TileSums<double>& sums, const TA& a, const TB& b, const F& f) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int k = 0; k < kProductDepth; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums.v[i][j][e] +=
              a.at(TileSums<double>::row(thread, i, e), k) * f(b.at(TileSums<double>::column(thread, j, e), k));
        }
      }
    }
  }
}

// Row i of a matrix, null for a negative one.
template <typename A>
FASTMIX_DEVICE const A* row_of(const A* matrix, int64_t i, int width) {
  return i < 0 ? nullptr : matrix + i * width;
}

// Four numbers of a row that begins at `row`, from k on; 0 from end on, and where the row is null. packed: rows begin
// at multiples of 16 bytes and have whole packs.
template <typename A>
FASTMIX_DEVICE void load_four(const A* row, int k, int end, bool packed, A (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = A(0);
  if (row == nullptr) return;
  if constexpr (sizeof(A) == 4) {
    if (packed) {
      if (k < end) {
        const Elements<A, 4> e = load_input<A, 4>(row + k);
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = e.v[i];
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (k + i < end) to[i] = row[k + i];
  }
}

}  // namespace fastmix
