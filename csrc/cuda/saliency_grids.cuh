// saliency_mask_of_grid on the GPU: the mask of one of several grids, chosen on the device. R-Mix Eq. 2-4. Not yet run
// on a GPU.
//
// bytes: N*C*H*W*size read once, whatever the number of grids; N side^2 written. The blocks look up which grid was
// drawn, and sum its cells as saliency_mask does: the same mask, bit for bit. One launch for small images, else two.
#pragma once

#include "cuda/saliency.cuh"

namespace fastmix {

constexpr int kMostGrids = 4;

struct GridPlan {
  int side;                    // cells in a row and in a column
  int slots, bands, groups;    // as CellParams
  int block_rows, row_blocks;  // as SaliencyParams
};

struct GridParams {
  CellParams image;  // its grid the finest, to be replaced by the one that was drawn
  int64_t images;
  Percentile q;
  const int64_t* grid;  // one number
  GridPlan plans[kMostGrids];
  int grids, side, most_cells;
  bool whole;
  int row_blocks;    // blocks of an image, when not whole
  int most_columns;  // elements of shared memory before the cells
  void* cells;       // (N, most_cells) workspace, when not whole
  uint8_t* out;      // (N, side, side)
};

FASTMIX_DEVICE const GridPlan& drawn_grid(const GridParams& a) {
  const int64_t number = *a.grid;
  return a.plans[number > 0 && number < a.grids ? number : 0];
}

// The mask of an image's cells, each repeated. By all threads of a block; a barrier orders what wrote cells before.
template <typename A>
FASTMIX_DEVICE void write_repeated(const GridParams& a, int64_t n, int p, const A* cells, uint8_t* mask) {
  const int count = p * p, times = a.side / p;
  if (count <= kCellThreads) {
    percentile_mask<kCellThreads, 1>(cells, count, a.q.rank(n, count), mask);
  } else {
    percentile_mask<kCellThreads, 4>(cells, count, a.q.rank(n, count), mask);
  }
  __syncthreads();
  uint8_t* out = a.out + n * a.side * a.side;
  for (int i = static_cast<int>(threadIdx.x); i < a.side * a.side; i += kCellThreads) {
    out[i] = mask[i / a.side / times * p + i % a.side / times];
  }
}

template <typename T, PixelLoad kLoad>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads, 4) saliency_grid_kernel(const __grid_constant__ GridParams a) {
  using A = accumulator_t<T>;
  FASTMIX_DYNAMIC_SHARED(A, shared);
  __shared__ uint8_t mask[kWholeCells];
  const GridPlan& plan = drawn_grid(a);
  CellParams c = a.image;
  c.h = c.w = plan.side;
  c.slots = plan.slots;
  c.bands = plan.bands;
  c.groups = plan.groups;
  if (!a.whole) {
    const int64_t n = blockIdx.x / a.row_blocks;
    const int block = static_cast<int>(blockIdx.x % a.row_blocks), begin = block * plan.block_rows;
    const int end = begin + plan.block_rows < c.h ? begin + plan.block_rows : c.h;
    if (block >= plan.row_blocks) return;
    sum_cells<T, kLoad>(c, static_cast<const T*>(c.grad) + n * c.image_stride, begin, end, shared,
                        static_cast<A*>(a.cells) + n * a.most_cells);
    return;
  }
  const int64_t n = blockIdx.x;
  A* cells = shared + a.most_columns;
  sum_cells<T, kLoad>(c, static_cast<const T*>(c.grad) + n * c.image_stride, 0, c.h, shared, cells);
  __syncthreads();
  write_repeated(a, n, c.h, cells, mask);
}

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads) saliency_grid_mask_kernel(const __grid_constant__ GridParams a) {
  __shared__ uint8_t mask[kWholeCells];
  const int64_t n = blockIdx.x;
  write_repeated(a, n, drawn_grid(a).side, static_cast<const A*>(a.cells) + n * a.most_cells, mask);
}

// plans have their sides, and image the finest of them; cells is there unless is_whole.
template <typename T>
void saliency_mask_of_grid(GridParams a, Stream stream) {
  using A = accumulator_t<T>;
  a.whole = is_whole<T>(a.image);
  a.row_blocks = 1;
  a.most_columns = 0;
  with_pixel_load<T>(a.image, [&](auto load) {
    constexpr PixelLoad kLoad = decltype(load)::value;
    for (int i = 0; i < a.grids; ++i) {
      GridPlan& plan = a.plans[i];
      CellParams c = a.image;
      c.h = c.w = plan.side;
      plan_cells<T, kLoad>(c);
      plan.slots = c.slots;
      plan.bands = c.bands;
      plan.groups = c.groups;
      const int64_t row_bytes = static_cast<int64_t>(c.height / c.h) * c.width * c.channels * sizeof(T);
      const int64_t rows = ceil_div(ceil_div(kBlockBytes, row_bytes > 0 ? row_bytes : 1), c.bands) * c.bands;
      plan.block_rows = rows < c.h ? static_cast<int>(rows) : c.h;
      plan.row_blocks = static_cast<int>(ceil_div(c.h, plan.block_rows));
      a.row_blocks = plan.row_blocks > a.row_blocks ? plan.row_blocks : a.row_blocks;
      a.most_columns = c.slots * c.width > a.most_columns ? c.slots * c.width : a.most_columns;
    }
    a.image.packs = static_cast<int>(ceil_div(a.image.width, kPixels<T, kLoad>));
    const size_t shared = static_cast<size_t>(a.most_columns + (a.whole ? a.most_cells : 0)) * sizeof(A);
    launch(saliency_grid_kernel<T, kLoad>, {a.whole ? a.images : a.images * a.row_blocks, kCellThreads, shared}, stream,
           a);
  });
  if (!a.whole) launch(saliency_grid_mask_kernel<A>, {a.images, kCellThreads}, stream, a);
}

}  // namespace fastmix
