// paste on the GPU, and its backward. K-image mixing Eq. 4-5. Not yet run on a GPU.
//
// bytes: N*C*H*W*size read once (one source per pixel) and written once; no flops. Backward the same, K - 1 partial
// packs along box edges apart, after a launch that inverts the index (by_source.cuh).
// Shape: 128 threads, 16 bytes of up to 4 planes each. Which elements of a pack a box holds is a set of bits, found
// once for all planes; a source is read only where its bits are not empty, so inside a box or outside all of them a
// pack costs one load a plane. Boxes are clipped once a block, into shared memory.
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/regions.cuh"

namespace fastmix {

struct PasteParams : ImageParams {
  int k;
  const int64_t* index;  // (N, K)
  const int32_t* boxes;  // (N, K - 1, 4)
};

// T: an unsigned integer of the element's size; bits are copied, never values.
template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads) paste_kernel(const __grid_constant__ PasteParams a) {
  FASTMIX_DYNAMIC_SHARED(Box, boxes);
  const ImageShape& s = a.shape;
  const Tile t = tile_of<N>(s, a.per_image);
  const int64_t* index = a.index + t.image * a.k;
  int bad = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.k; k += kTileThreads) {
    bad |= static_cast<uint64_t>(index[k]) >= static_cast<uint64_t>(s.images);
    if (k > 0) {
      boxes[k - 1] = clip_box(a.boxes + (t.image * (a.k - 1) + k - 1) * 4, s.height, s.row_elements / s.pixel);
    }
  }
  bad = __syncthreads_or(bad);
  if (t.first >= s.plane_elements()) return;
  T* out = static_cast<T*>(a.dst) + t.image * s.image_elements();
  if (bad) return fill_tile<T, N>(s, t, out, nan_of<T>());
  Elements<T, N> v[kTilePlanes];
  uint32_t left = kAllElements<N>;
  for (int k = a.k - 1; k >= 0 && left != 0; --k) {
    const uint32_t bits = k > 0 ? inside<N>(s, t, boxes[k - 1]) & left : left;
    if (bits == 0) continue;
    left &= ~bits;
    load_tile<T, N>(s, t, static_cast<const T*>(a.src) + index[k] * a.src_stride, bits, v);
  }
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i < s.planes) store_elements<T, N>(out + t.offset(s, i), v[i]);
  }
}

// Image m of the gradient: what every image that shows m passes on, in the order of (n, k).
template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads) paste_backward_kernel(const __grid_constant__ PasteParams a) {
  const ImageShape& s = a.shape;
  const Tile t = tile_of<N>(s, a.per_image);
  if (t.first >= s.plane_elements()) return;
  accumulator_t<T> sums[kTilePlanes][N] = {};
  for (int e = a.first[t.image]; e >= 0; e = a.next[e]) {
    const int n = e / a.k, shown = e - n * a.k;
    const int32_t* boxes = a.boxes + static_cast<int64_t>(n) * (a.k - 1) * 4;
    uint32_t bits = kAllElements<N>;
    for (int k = a.k - 1; k >= shown && k > 0 && bits != 0; --k) {
      const uint32_t boxed = inside<N>(s, t, clip_box(boxes + (k - 1) * 4, s.height, s.row_elements / s.pixel));
      bits &= k == shown ? boxed : ~boxed;
    }
    if (bits == 0) continue;
    add_tile<T, N>(s, t, static_cast<const T*>(a.src) + n * a.src_stride, bits, accumulator_t<T>(1), sums);
  }
  store_tile<T, N>(s, t, static_cast<T*>(a.dst) + t.image * s.image_elements(), sums);
}

template <typename T>
void paste(PasteParams a, Stream stream) {
  with_pack<T>(a.shape, a.src, a.src_stride, a.dst, [&](auto n) {
    constexpr int kN = decltype(n)::value;
    const LaunchShape shape = tile_shape<kN>(a, static_cast<size_t>(a.k - 1) * sizeof(Box));
    launch(paste_kernel<T, kN>, shape, stream, a);
  });
}

// a.first and a.next are linked by link_sources before.
template <typename T>
void paste_backward(PasteParams a, Stream stream) {
  with_pack<T>(a.shape, a.src, a.src_stride, a.dst, [&](auto n) {
    constexpr int kN = decltype(n)::value;
    const LaunchShape shape = tile_shape<kN>(a);
    launch(paste_backward_kernel<T, kN>, shape, stream, a);
  });
}

}  // namespace fastmix
