// saliency_map, saliency_mask, saliency_peak on the GPU. R-Mix Eq. 2-4. Not yet run on a GPU.
//
// bytes: N*C*H*W*size read once, cells and masks are small; flops: 2 C + a square root per pixel.
// Shape: a small image is one block's, cells in shared memory, one launch. A large one is divided by cell rows among
// blocks, whose cell sums a second launch ranks or normalises. The means of Eq. 2-3 are left out where a positive
// factor changes nothing: a mask does not see it, a map is normalised.
#pragma once

#include "cuda/lib/cells.cuh"
#include "cuda/lib/percentile.cuh"

namespace fastmix {

struct SaliencyParams {
  CellParams image;
  int64_t images;
  Percentile q;
  bool whole;      // one block an image, and the result in one launch
  bool is_map;     // out is the map, else the mask
  int block_rows;  // cell rows of a block, when not whole
  int row_blocks;  // blocks of an image, when not whole
  void* cells;     // (N, h * w) workspace, when not whole and for a map: may be out
  void* out;       // (N, h * w): map in the accumulation type, or bool
};

constexpr int kWholeCells = 1024;           // 4 keys of 256 threads
constexpr int64_t kWholeBytes = 64 * 1024;  // of a gradient that one block reads
constexpr int64_t kBlockBytes = 32 * 1024;  // of a gradient that a block reads at least, where rows of cells allow

// map = cells / (their sum * pixels of a cell), 1 / pixels where the sum is 0.
template <typename A>
FASTMIX_DEVICE void write_map(const A* cells, int count, int pixels, A* map) {
  __shared__ ReduceBuffer<double, kCellThreads, 1> buffer;
  double sum[1] = {0};
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCellThreads) sum[0] += cells[i];
  int turn = 0;
  reduce<kCellThreads>(sum, 0.0, Plus(), buffer, turn);
  const double total = sum[0] * (pixels / count);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCellThreads) {
    map[i] = static_cast<A>(sum[0] == 0 ? 1.0 / pixels : cells[i] / total);
  }
}

template <typename T, PixelLoad kLoad>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads, 4) saliency_cells_kernel(const __grid_constant__ SaliencyParams a) {
  using A = accumulator_t<T>;
  FASTMIX_DYNAMIC_SHARED(A, shared);
  const CellParams& c = a.image;
  const int count = c.cells();
  if (!a.whole) {
    const int64_t n = blockIdx.x / a.row_blocks;
    const int begin = static_cast<int>(blockIdx.x % a.row_blocks) * a.block_rows;
    const int end = begin + a.block_rows < c.h ? begin + a.block_rows : c.h;
    sum_cells<T, kLoad>(c, static_cast<const T*>(c.grad) + n * c.image_stride, begin, end, shared,
                        static_cast<A*>(a.cells) + n * count);
    return;
  }
  const int64_t n = blockIdx.x;
  A* cells = shared + c.slots * c.width;
  sum_cells<T, kLoad>(c, static_cast<const T*>(c.grad) + n * c.image_stride, 0, c.h, shared, cells);
  __syncthreads();
  if (a.is_map) {
    write_map(cells, count, c.height * c.width, static_cast<A*>(a.out) + n * count);
  } else if (count <= kCellThreads) {
    percentile_mask<kCellThreads, 1>(cells, count, a.q.rank(n, count), static_cast<uint8_t*>(a.out) + n * count);
  } else {
    percentile_mask<kCellThreads, 4>(cells, count, a.q.rank(n, count), static_cast<uint8_t*>(a.out) + n * count);
  }
}

template <typename A>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads) saliency_map_kernel(const __grid_constant__ SaliencyParams a) {
  const int count = a.image.cells();
  const int64_t n = blockIdx.x;
  write_map(static_cast<const A*>(a.cells) + n * count, count, a.image.height * a.image.width,
            static_cast<A*>(a.out) + n * count);
}

// ---------------------------------------------------------------- peak

// Largest key, then lowest pixel.
struct Peak {
  int64_t key;
  int pixel;

  FASTMIX_METHOD void take(int64_t other_key, int other_pixel) {
    if (other_key > key || (other_key == key && other_pixel < pixel)) {
      key = other_key;
      pixel = other_pixel;
    }
  }
};

struct PeakParams {
  CellParams image;
  int64_t images;
  int blocks;     // of an image
  int64_t* keys;  // (images, blocks) workspace when blocks > 1
  int* pixels;    // the same
  int64_t* out;   // (images, 2)
};

constexpr int kPeakPixels = 16 * 1024;  // a block reads at least this many

FASTMIX_DEVICE Peak warp_peak(Peak p) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const int64_t key = __shfl_xor_sync(kAllLanes, p.key, lanes);
    p.take(key, __shfl_xor_sync(kAllLanes, p.pixel, lanes));
  }
  return p;
}

FASTMIX_DEVICE void write_peak(const PeakParams& a, int64_t n, const Peak& p) {
  a.out[2 * n] = p.pixel / a.image.width;
  a.out[2 * n + 1] = p.pixel % a.image.width;
}

// The squares order as their roots do, with fewer ties.
template <typename T, PixelLoad kLoad>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads) saliency_peak_kernel(const __grid_constant__ PeakParams a) {
  constexpr int N = kPixels<T, kLoad>;
  __shared__ int64_t keys[kCellThreads / kWarpSize];
  __shared__ int pixels[kCellThreads / kWarpSize];
  const int64_t n = blockIdx.x / a.blocks;
  const int block = static_cast<int>(blockIdx.x % a.blocks), t = static_cast<int>(threadIdx.x);
  const T* image = static_cast<const T*>(a.image.grad) + n * a.image.image_stride;
  const int count = a.image.height * a.image.width;
  Peak peak{-1, 0};
  for (int at = (block * kCellThreads + t) * N; at < count; at += a.blocks * kCellThreads * N) {
    accumulator_t<T> s[N];
    sum_squares<T, kLoad>(a.image, image, at, s);
#pragma unroll
    for (int i = 0; i < N; ++i) peak.take(order_key(s[i]), at + i);
  }
  peak = warp_peak(peak);
  if (t % kWarpSize == 0) {
    keys[t / kWarpSize] = peak.key;
    pixels[t / kWarpSize] = peak.pixel;
  }
  __syncthreads();
  if (t != 0) return;
  for (int i = 1; i < kCellThreads / kWarpSize; ++i) peak.take(keys[i], pixels[i]);
  if (a.blocks == 1) return write_peak(a, n, peak);
  a.keys[blockIdx.x] = peak.key;
  a.pixels[blockIdx.x] = peak.pixel;
}

// A warp for an image.
FASTMIX_KERNEL void __launch_bounds__(kWarpSize) saliency_peak_reduce_kernel(const __grid_constant__ PeakParams a) {
  const int64_t n = blockIdx.x;
  Peak peak{-1, 0};
  for (int i = static_cast<int>(threadIdx.x); i < a.blocks; i += kWarpSize) {
    peak.take(a.keys[n * a.blocks + i], a.pixels[n * a.blocks + i]);
  }
  peak = warp_peak(peak);
  if (threadIdx.x == 0) write_peak(a, n, peak);
}

// ---------------------------------------------------------------- launchers

// f(load) with how images can be read: load is an integral_constant of PixelLoad.
template <typename T, typename F>
void with_pixel_load(const CellParams& a, const F& f) {
  if constexpr (sizeof(T) < 8) {
    // Rows of whole packs, at multiples of 16 bytes.
    const bool rows = is_aligned(a.grad) && a.image_stride % kPack<T> == 0 && a.width % kPack<T> == 0;
    if (rows && a.pixel_stride == 1 && a.channel_stride % kPack<T> == 0) {
      return f(std::integral_constant<PixelLoad, PixelLoad::kPlanes>{});
    }
    if (rows && a.channels == 3 && a.pixel_stride == 3 && a.channel_stride == 1) {
      return f(std::integral_constant<PixelLoad, PixelLoad::kThree>{});
    }
  }
  f(std::integral_constant<PixelLoad, PixelLoad::kSingle>{});
}

// Whether the image is one block's: no workspace is needed.
template <typename T>
bool is_whole(const CellParams& a) {
  return a.cells() <= kWholeCells &&
         static_cast<int64_t>(a.channels) * a.height * a.width * static_cast<int64_t>(sizeof(T)) <= kWholeBytes;
}

// The shared memory that columns take in the worst of plans, without the cells.
template <typename T>
size_t widest_row_bytes(const CellParams& a) {
  const size_t pixels = static_cast<size_t>(a.width) + kCellThreads * kPack<T>;
  return pixels * sizeof(accumulator_t<T>);
}

// out is the map (is_map) or the mask. cells: (N, h * w) workspace unless is_whole; out itself for a map.
template <typename T>
void saliency(SaliencyParams a, Stream stream) {
  using A = accumulator_t<T>;
  a.whole = is_whole<T>(a.image);
  with_pixel_load<T>(a.image, [&](auto load) {
    constexpr PixelLoad kLoad = decltype(load)::value;
    CellParams& c = a.image;
    plan_cells<T, kLoad>(c);
    size_t shared = column_bytes<A>(c);
    if (a.whole) {
      shared += static_cast<size_t>(c.cells()) * sizeof(A);
      return launch(saliency_cells_kernel<T, kLoad>, {a.images, kCellThreads, shared}, stream, a);
    }
    const int64_t row_bytes = static_cast<int64_t>(c.height / c.h) * c.width * c.channels * sizeof(T);
    const int64_t rows = ceil_div(ceil_div(kBlockBytes, row_bytes > 0 ? row_bytes : 1), c.bands) * c.bands;
    a.block_rows = rows < c.h ? static_cast<int>(rows) : c.h;
    a.row_blocks = static_cast<int>(ceil_div(c.h, a.block_rows));
    launch(saliency_cells_kernel<T, kLoad>, {a.images * a.row_blocks, kCellThreads, shared}, stream, a);
  });
  if (a.whole) return;
  if (a.is_map) {
    launch(saliency_map_kernel<A>, {a.images, kCellThreads}, stream, a);
  } else {
    percentile<A>({a.cells, static_cast<uint8_t*>(a.out), a.images, a.image.cells(), a.q}, stream);
  }
}

// Blocks of an image; more than one need (images, blocks) of workspace.
inline int peak_blocks(const CellParams& a) {
  return static_cast<int>(ceil_div(static_cast<int64_t>(a.height) * a.width, kPeakPixels));
}

template <typename T>
void saliency_peak(const PeakParams& a, Stream stream) {
  with_pixel_load<T>(a.image, [&](auto load) {
    launch(saliency_peak_kernel<T, decltype(load)::value>, {a.images * a.blocks, kCellThreads}, stream, a);
  });
  if (a.blocks > 1) launch(saliency_peak_reduce_kernel, {a.images, kWarpSize}, stream, a);
}

// ---------------------------------------------------------------- one of several grids

// The mask of the grid that was drawn on the device, each cell repeated up to the least common grid. Blocks look up the
// grid and sum its cells as above: the same mask, bit for bit, and the gradient is read once whatever the number of
// grids, in one launch (small images) or two.

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
