// paste on the GPU, and its backward. K-image mixing Eq. 4-5. Not yet run on a GPU.
//
// bytes: N*C*H*W*size read once (one source per pixel) and written once; no flops. Backward the same, K - 1 partial
// packs along box edges apart, after a launch that inverts the index (by_source.cuh). Images that several show come
// from the second-level cache: 0.72 batches are read from memory at K = 5 (`python -m fastmix bench traffic`). Shape:
// 128 threads, pieces as in tile.cuh. Which elements of a piece a box holds is a set of bits, found once for all
// planes; from the last box to the canvas the first two sources with a bit are loaded for all pieces before any is used
// (6 loads for 3 planes), and the few pieces that show more sources loop over those. Boxes are clipped once a block,
// into shared memory.
//
// sm_90: 8 instructions an element of 16 bits, 16 of 32 (17 and 31 with channels last), and about 20 a thread for each
// box; the memory leaves time for 31 and 61 an element (cuda_budget.json, docs/gpu.md).
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/regions.cuh"

namespace fastmix {

struct PasteParams : ImageParams {
  int k;
  const int64_t* index;  // (N, K)
  const int32_t* boxes;  // (N, K - 1, 4)
  Divisor by_k;          // set by the launchers
};

// The next source that shows in a place, from k on towards the canvas 0: its elements, which leave `left`.
template <typename K>
FASTMIX_DEVICE uint32_t next_shown(const ImageOutputs& a, const Place& p, const Box* boxes, int& k, uint32_t& left) {
  uint32_t bits = left;
#pragma unroll 1
  for (; k > 0 && left != 0; --k) {
    bits = inside<K>(a, p, boxes[k - 1]) & left;
    if (bits != 0) break;
    bits = left;
  }
  left &= ~bits;
  return bits;
}

// T: an unsigned integer of the element's size; bits are copied, never values.
template <typename T, typename K>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 8) paste_kernel(const __grid_constant__ PasteParams a) {
  constexpr int N = K::kElements;
  FASTMIX_DYNAMIC_SHARED(Box, boxes);
  const ImageShape& s = a.shape;
  const Tile<K> t = tile_of<K>(a);
  const int64_t* index = a.index + t.image * a.k;
  int bad = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.k; k += kTileThreads) {
    bad |= static_cast<uint64_t>(index[k]) >= static_cast<uint64_t>(s.images);
    if (k > 0) boxes[k - 1] = clip_box(a.boxes + (t.image * (a.k - 1) + k - 1) * 4, s.height, s.width);
  }
  bad = __syncthreads_or(bad);
  if (!t.place[0].exists) return;
  T* out = static_cast<T*>(a.dst) + t.image * a.grid.image_elements;
  if (bad) return fill_tile<T, K>(a, t, out, nan_of<T>());
  // Nearly every piece shows one source or two: both are loaded before either is used.
  const T *x = static_cast<const T*>(a.src), *from[2][K::kPlaces];
  uint32_t bits[2][K::kPlaces], left[K::kPlaces];
  int k[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) {
    k[i] = a.k - 1;
    left[i] = t.place[i].exists ? kAllElements<N> : 0;
#pragma unroll
    for (int source = 0; source < 2; ++source) {
      bits[source][i] = next_shown<K>(a, t.place[i], boxes, k[i], left[i]);
      from[source][i] = x + (bits[source][i] != 0 ? index[k[i]] * a.src_stride : 0);
    }
  }
  Pieces<T, K> shown, second;
  load_pieces<T, K>(a.grid, t, from[0], bits[0], shown);
  load_pieces<T, K>(a.grid, t, from[1], bits[1], second);
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) shown[i] = chosen(mask_of<T, N>(bits[0][t.at(i)]), shown[i], second[i]);
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) {
#pragma unroll 1
    while (left[i] != 0) {
      bits[0][i] = next_shown<K>(a, t.place[i], boxes, k[i], left[i]);
      const Words<T, N> mask = mask_of<T, N>(bits[0][i]);
#pragma unroll
      for (int piece = i; piece < (K::kRows ? i + 1 : K::kPieces); ++piece) {
        const T* at = x + index[k[i]] * a.src_stride + t.offset + t.step(a.grid, piece);
        shown[piece] = chosen(mask, load_words<T, N>(at, t.has(piece)), shown[piece]);
      }
    }
  }
  store_pieces<T, K>(a.grid, t, out, shown);
}

// Image m of the gradient: what every image that shows m passes on, in the order of (n, k).
template <typename T, typename K>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 8) paste_backward_kernel(const __grid_constant__ PasteParams a) {
  constexpr int N = K::kElements;
  const ImageShape& s = a.shape;
  const Tile<K> t = tile_of<K>(a);
  if (!t.place[0].exists) return;
  accumulator_t<T> sums[K::kPieces][N] = {};
  for (int r = a.begin[t.image], end = a.begin[t.image + 1]; r < end; ++r) {
    int shown;
    const int n = a.by_k.divide(a.readers[r], shown);
    const int32_t* boxes = a.boxes + static_cast<int64_t>(n) * (a.k - 1) * 4;
    uint32_t bits[K::kPlaces], any = 0;
#pragma unroll
    for (int i = 0; i < K::kPlaces; ++i) {
      bits[i] = t.place[i].exists ? kAllElements<N> : 0;
#pragma unroll 1
      for (int k = a.k - 1; k >= shown && k > 0 && bits[i] != 0; --k) {
        const uint32_t boxed = inside<K>(a, t.place[i], clip_box(boxes + (k - 1) * 4, s.height, s.width));
        bits[i] &= k == shown ? boxed : ~boxed;
      }
      any |= bits[i];
    }
    if (any == 0) continue;
    add_pieces<T, K>(
        a.grid, t, static_cast<const T*>(a.src) + n * a.src_stride, bits, [](int, int) { return accumulator_t<T>(1); },
        sums);
  }
  store_sums<T, K>(a.grid, t, static_cast<T*>(a.dst) + t.image * a.grid.image_elements, sums);
}

template <typename T>
void paste(PasteParams a, Stream stream) {
  with_pieces<T, 2>(a.shape, a.src, a.src_stride, a.dst, [&](auto kind) {
    using K = decltype(kind);
    const LaunchShape shape = tile_shape<K>(a, static_cast<size_t>(a.k - 1) * sizeof(Box));
    launch(paste_kernel<T, K>, shape, stream, a);
  });
}

// a.begin and a.readers come from find_readers before.
template <typename T>
void paste_backward(PasteParams a, Stream stream) {
  a.by_k = Divisor(a.k);
  with_pieces<T, 2>(a.shape, a.src, a.src_stride, a.dst, [&](auto kind) {
    using K = decltype(kind);
    const LaunchShape shape = tile_shape<K>(a);
    launch(paste_backward_kernel<T, K>, shape, stream, a);
  });
}

}  // namespace fastmix
