// rmix on the GPU: saliency mask and patch mix of small images in one launch. R-Mix Eq. 2-7. Not yet run on a GPU.
//
// bytes: the gradient N*C*H*W*size read twice, the second time from the second-level cache (as an image's own, and as
// a partner's), the images as patch_mix; flops: 2 C + a square root per pixel and gradient.
// Shape: a block an image. It computes the masks of its image and of its partner, both in shared memory, then mixes.
// Against saliency and patch_mix one after the other that saves a launch and the wait for its last block, and costs the
// partner's mask a second time: worth it at most where a launch takes longer than an image. Which is faster has to be
// measured (bench/device_times.py).
#pragma once

#include "cuda/patch_mix.cuh"
#include "cuda/saliency.cuh"

namespace fastmix {

struct RmixParams {
  CellParams image;  // of the gradient
  Percentile q;
  PatchMixParams mix;  // its mask is not read
  uint8_t* mask;       // (N, h * w), written
};

template <typename T, PixelLoad kLoad>
FASTMIX_DEVICE void mask_of(const RmixParams& a, int64_t n, accumulator_t<T>* columns, accumulator_t<T>* cells,
                            uint8_t* mask) {
  const int count = a.image.cells();
  sum_cells<T, kLoad>(a.image, static_cast<const T*>(a.image.grad) + n * a.image.image_stride, 0, a.image.h, columns,
                      cells);
  __syncthreads();
  if (count <= kCellThreads) {
    percentile_mask<kCellThreads, 1>(cells, count, a.q.rank(n, count), mask);
  } else {
    percentile_mask<kCellThreads, 4>(cells, count, a.q.rank(n, count), mask);
  }
  __syncthreads();  // the mask is read, and cells and columns are written again
}

template <typename T, PixelLoad kLoad, int N>
FASTMIX_KERNEL void __launch_bounds__(kCellThreads, 3) rmix_kernel(const __grid_constant__ RmixParams a) {
  using A = accumulator_t<T>;
  FASTMIX_DYNAMIC_SHARED(A, shared);
  const PatchMixParams& p = a.mix;
  const ImageShape& s = p.shape;
  const int64_t n = blockIdx.x, partner = p.partner[n];
  const bool valid = partner >= 0 && partner < s.images;
  const int count = a.image.cells();
  A* const cells = shared + a.image.slots * a.image.width;
  uint8_t* const own = reinterpret_cast<uint8_t*>(cells + count);
  uint8_t* const other = own + count;
  mask_of<T, kLoad>(a, n, shared, cells, own);
  mask_of<T, kLoad>(a, valid ? partner : n, shared, cells, other);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCellThreads) a.mask[n * count + i] = own[i];

  const float lam = p.lam[n * p.lam_step];
  write_weight<kCellThreads>(own, other, lam, valid, count, p.weight + 2 * n);
  const T* x = static_cast<const T*>(p.src);
  T* out = static_cast<T*>(p.dst) + n * s.image_elements();
  Tile t{};
  t.image = n;
  for (t.plane = 0; t.plane < s.planes; t.plane += kTilePlanes) {
    for (t.first = static_cast<int>(threadIdx.x) * N; t.first < s.plane_elements(); t.first += kCellThreads * N) {
      t.row = t.first / s.row_elements;
      t.column = t.first - t.row * s.row_elements;
      if (valid) {
        mix_tile<T, N>(s, t, x + n * p.src_stride, x + partner * p.src_stride,
                       shares_of<N>(s, t, own, other, lam, p.h, p.w), out);
      } else {
        fill_tile<T, N>(s, t, out, nan_of<T>());
      }
    }
  }
}

// Whether a block can take an image: else saliency and patch_mix.
template <typename T>
bool rmix_fits(const CellParams& a) {
  return is_whole<T>(a);
}

template <typename T>
void rmix(RmixParams a, Stream stream) {
  using A = accumulator_t<T>;
  with_pixel_load<T>(a.image, [&](auto load) {
    constexpr PixelLoad kLoad = decltype(load)::value;
    plan_cells<T, kLoad>(a.image);
    const size_t count = static_cast<size_t>(a.image.cells());
    const LaunchShape shape{a.mix.shape.images, kCellThreads, column_bytes<A>(a.image) + count * sizeof(A) + 2 * count};
    with_pack<T>(a.mix.shape, a.mix.src, a.mix.src_stride, a.mix.dst,
                 [&](auto n) { launch(rmix_kernel<T, kLoad, decltype(n)::value>, shape, stream, a); });
  });
}

}  // namespace fastmix
