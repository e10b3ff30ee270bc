// patch_mix on the GPU, and its backward. R-Mix Eq. 5-7. Not yet run on a GPU.
//
// bytes: N*C*H*W*size written once; read once per cell of one source, twice per mixed cell (the second image from the
// second-level cache where the batch fits it); flops: 3 per mixed element.
// Shape: as paste. A pack's shares are two sets of bits, own and other; the rest is mixed with lambda. A source without
// a bit is not read, so an inf or NaN of it cannot leak in. The first block of an image counts its cells for the
// weight.
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/regions.cuh"

namespace fastmix {

struct PatchMixParams : ImageParams, CellMix<int> {
  const int64_t* partner;  // (N)
  float* weight;           // (N, 2)
};

template <typename T, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE void mix_tile(const ImageShape& s, const Tile& t, const T* own, const T* other, const CellShares& shares,
                             T* out) {
  const A a = static_cast<A>(shares.lam);
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i >= s.planes) continue;
    Elements<T, N> x{}, y{};
    if (shares.other != kAllElements<N>) x = load_input<T, N>(own + t.offset(s, i));
    if (shares.own != kAllElements<N>) y = load_input<T, N>(other + t.offset(s, i));
#pragma unroll
    for (int l = 0; l < N; ++l) {
      if (shares.own >> l & 1u) continue;
      if (shares.other >> l & 1u) {
        x.v[l] = y.v[l];
      } else {
        store(&x.v[l], a * to_float(x.v[l]) + (A(1) - a) * to_float(y.v[l]));
      }
    }
    store_elements<T, N>(out + t.offset(s, i), x);
  }
}

template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 8) patch_mix_kernel(const __grid_constant__ PatchMixParams a) {
  const ImageShape& s = a.shape;
  const Tile t = tile_of<N>(s, a.per_image);
  const int64_t n = t.image, partner = a.partner[n];
  const bool valid = partner >= 0 && partner < s.images;
  const float lam = a.lam[n * a.lam_step];
  const int64_t cells = static_cast<int64_t>(a.h) * a.w;
  const uint8_t *mask = a.mask + n * cells, *other = a.mask + (valid ? partner : 0) * cells;
  if (t.is_first_block) {
    write_weight(mask, other, lam, valid, static_cast<int>(cells), a.weight + 2 * n);
  }
  if (t.first >= s.plane_elements()) return;
  const T* x = static_cast<const T*>(a.src);
  T* out = static_cast<T*>(a.dst) + n * s.image_elements();
  if (!valid) return fill_tile<T, N>(s, t, out, nan_of<T>());
  mix_tile<T, N>(s, t, x + n * a.src_stride, x + partner * a.src_stride, shares_of<N>(s, t, mask, other, lam, a.h, a.w),
                 out);
}

// dx[m] = a_m g[m] + the sum of (1 - a_n) g[n] over the images n whose partner is m, in their order.
template <typename T, int N>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 5)
    patch_mix_backward_kernel(const __grid_constant__ PatchMixParams a) {
  using A = accumulator_t<T>;
  const ImageShape& s = a.shape;
  const Tile t = tile_of<N>(s, a.per_image);
  if (t.first >= s.plane_elements()) return;
  const int64_t m = t.image, partner = a.partner[m], cells = static_cast<int64_t>(a.h) * a.w;
  const T* g = static_cast<const T*>(a.src);
  A sums[kTilePlanes][N] = {};
  if (partner >= 0 && partner < s.images) {
    const CellShares own =
        shares_of<N>(s, t, a.mask + m * cells, a.mask + partner * cells, a.lam[m * a.lam_step], a.h, a.w);
    const uint32_t mixed = kAllElements<N> & ~own.own & ~own.other;
    if (own.own != 0) add_tile<T, N>(s, t, g + m * a.src_stride, own.own, A(1), sums);
    if (mixed != 0) add_tile<T, N>(s, t, g + m * a.src_stride, mixed, static_cast<A>(own.lam), sums);
  }
  for (int n = a.first[m]; n >= 0; n = a.next[n]) {
    const CellShares theirs =
        shares_of<N>(s, t, a.mask + n * cells, a.mask + m * cells, a.lam[n * a.lam_step], a.h, a.w);
    const uint32_t mixed = kAllElements<N> & ~theirs.own & ~theirs.other;
    if (theirs.other != 0) add_tile<T, N>(s, t, g + n * a.src_stride, theirs.other, A(1), sums);
    if (mixed != 0) add_tile<T, N>(s, t, g + n * a.src_stride, mixed, A(1) - static_cast<A>(theirs.lam), sums);
  }
  store_tile<T, N>(s, t, static_cast<T*>(a.dst) + m * s.image_elements(), sums);
}

// backward: src is the gradient, and a.first and a.next are linked by link_sources before.
template <typename T>
void patch_mix(PatchMixParams a, bool backward, Stream stream) {
  with_pack<T>(a.shape, a.src, a.src_stride, a.dst, [&](auto n) {
    constexpr int kN = decltype(n)::value;
    const LaunchShape shape = tile_shape<kN>(a);
    if (backward) {
      launch(patch_mix_backward_kernel<T, kN>, shape, stream, a);
    } else {
      launch(patch_mix_kernel<T, kN>, shape, stream, a);
    }
  });
}

}  // namespace fastmix
