// Sums of the channel norm over the cells of an image: what saliency maps and masks are made of.
//
// Threads own packs of columns, as many rows at a time as the block has threads for; column sums go to shared memory
// and from there, by the lanes of a warp, to cells. Every cell is summed in the same order, so cells of equal content
// get equal sums and stay ties.
#pragma once

#include <cmath>

#include "cuda/lib/pack.cuh"
#include "cuda/lib/reduce.cuh"

namespace fastmix {

constexpr int kCellThreads = 256;

// Images of `channels` channels on a grid of h x w cells. Element strides: images may lie anywhere.
struct CellParams {
  const void* grad;
  int64_t image_stride, channel_stride, pixel_stride;
  int channels, height, width;
  int h, w;
  // set by plan_cells
  int packs;   // of a row
  int slots;   // rows that the block reads at a time
  int bands;   // cell rows among them
  int groups;  // slots of one cell row

  FASTMIX_METHOD int cells() const { return h * w; }
};

// How a thread reads pixels: planes in packs, (H, W, 3) in three packs, or anything one element at a time.
enum class PixelLoad { kPlanes, kThree, kSingle };

template <typename T, PixelLoad kLoad>
constexpr int kPixels = kLoad == PixelLoad::kSingle ? 1 : kPack<T>;

// s[i] = sum_c g_c^2 of pixels [pixel, pixel + N) of an image; pixels count in rows.
template <typename T, PixelLoad kLoad, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE void sum_squares(const CellParams& a, const T* image, int pixel, A (&s)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) s[i] = 0;
  if constexpr (kLoad == PixelLoad::kThree) {
    Words<T, N> words[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) words[c] = load_words<T, N>(image + static_cast<int64_t>(pixel) * 3 + c * N, true);
#pragma unroll
    for (int i = 0; i < 3 * N; ++i) {
      const A v = element<T, N>(words[i / N], i % N);
      s[i / 3] += v * v;
    }
  } else {
    const T* at = image + pixel * a.pixel_stride;
    // The loads of three channels are issued before the first is used; those that an image has not are 0.
    constexpr int kTogether = 3;
    for (int first = 0; first < a.channels; first += kTogether, at += kTogether * a.channel_stride) {
      Words<T, N> words[kTogether];
#pragma unroll
      for (int c = 0; c < kTogether; ++c) {
        words[c] = load_words<T, N>(at + c * a.channel_stride, first + c < a.channels);
      }
#pragma unroll
      for (int c = 0; c < kTogether; ++c) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A v = element<T, N>(words[c], i);
          s[i] += v * v;
        }
      }
    }
  }
}

template <typename T, PixelLoad kLoad>
inline void plan_cells(CellParams& a) {
  a.packs = static_cast<int>(ceil_div(a.width, kPixels<T, kLoad>));
  a.slots = a.packs < kCellThreads ? kCellThreads / a.packs : 1;
  const int cell_height = a.height / a.h;
  a.groups = a.slots < cell_height ? a.slots : cell_height;
  a.bands = a.slots / a.groups < a.h ? a.slots / a.groups : a.h;
  a.slots = a.bands * a.groups;
}

template <typename A>
size_t column_bytes(const CellParams& a) {
  return static_cast<size_t>(a.slots) * a.width * sizeof(A);
}

// cells[r * w + c] for cell rows [begin, end), by a block of kCellThreads. columns: shared memory of column_bytes. The
// caller puts a barrier before it reads cells.
template <typename T, PixelLoad kLoad, typename A = accumulator_t<T>>
FASTMIX_DEVICE void sum_cells(const CellParams& a, const T* image, int begin, int end, A* columns, A* cells) {
  constexpr int N = kPixels<T, kLoad>;
  const int t = static_cast<int>(threadIdx.x);
  const int cell_height = a.height / a.h, cell_width = a.width / a.w;
  const int slot = t / a.packs, band = slot / a.groups, group = slot - band * a.groups;
  // Lanes that share a cell: a power of two.
  int lanes = kWarpSize;
  while (lanes > cell_width) lanes /= 2;
  const int lane = t % kWarpSize;
  for (int row = begin; row < end; row += a.bands) {
    if (slot < a.slots && row + band < end) {
      for (int pack = a.slots > 1 ? t - slot * a.packs : t; pack < a.packs; pack += kCellThreads) {
        A sums[N] = {};
        for (int y = group; y < cell_height; y += a.groups) {
          A s[N];
          sum_squares<T, kLoad>(a, image, ((row + band) * cell_height + y) * a.width + pack * N, s);
#pragma unroll
          for (int i = 0; i < N; ++i) sums[i] += std::sqrt(s[i]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) columns[slot * a.width + pack * N + i] = sums[i];
      }
    }
    __syncthreads();
    const int rows = end - row < a.bands ? end - row : a.bands, count = rows * a.w;
    for (int first = t / kWarpSize * (kWarpSize / lanes); first < count; first += kCellThreads / lanes) {
      const int cell = first + lane / lanes;
      A sum = 0;
      if (cell < count) {
        const int b = cell / a.w;
        const A* from = columns + b * a.groups * a.width + (cell - b * a.w) * cell_width;
        for (int g = 0; g < a.groups; ++g) {
          for (int x = lane % lanes; x < cell_width; x += lanes) sum += from[g * a.width + x];
        }
      }
      for (int d = lanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
      if (lane % lanes == 0 && cell < count) cells[row * a.w + cell] = sum;
    }
    if (row + a.bands < end) __syncthreads();  // the next band writes columns again
  }
}

}  // namespace fastmix
