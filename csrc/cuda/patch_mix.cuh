// patch_mix on the GPU, and its backward. R-Mix Eq. 5-7. Not yet run on a GPU.
//
// bytes: N*C*H*W*size written once; read once per cell of one source, twice per mixed cell, of which the cache serves
// what was read before: 0.87 batches come from memory (`python -m fastmix bench traffic`); flops: 3 per mixed element.
// Shape: as paste. A piece's shares are two sets of bits, own and other; the rest is mixed with lambda. Both sources of
// all pieces are loaded before any is used (6 loads for 3 planes), mixed as if every element were, and chosen by words
// of bits. A source without a bit is not read, so an inf or NaN of it cannot leak in. The first block of an image
// counts its cells for the weight.
//
// sm_90: 14 instructions an element of 16 bits, 21 of 32 (23 and 34 with channels last); the memory leaves time for 33
// and 66 (cuda_budget.json, docs/gpu.md).
#pragma once

#include "cuda/lib/by_source.cuh"
#include "cuda/lib/regions.cuh"

namespace fastmix {

struct PatchMixParams : ImageParams, CellTiling {
  const int64_t* partner;  // (N)
  float* weight;           // (N, 2)
};

template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE void mix_tile(const PatchMixParams& a, const Tile<K>& t, int64_t partner, const uint8_t* mask,
                             const uint8_t* other, float lam, T* out) {
  constexpr int N = K::kElements;
  Words<T, N> own[K::kPlaces], theirs[K::kPlaces];
  uint32_t read[K::kPlaces], read_other[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) {
    CellShares shares{kAllElements<N>, kAllElements<N>};  // of a place that does not exist: nothing is read
    if (t.place[i].exists) shares = shares_of<K>(a.grid, t.place[i], a, mask, other, lam);
    read[i] = kAllElements<N> & ~shares.other;
    read_other[i] = kAllElements<N> & ~shares.own;
    own[i] = mask_of<T, N>(shares.own);
    theirs[i] = mask_of<T, N>(shares.other);
  }
  const T* x = static_cast<const T*>(a.src);
  Pieces<T, K> first, second;
  load_pieces<T, K>(a.grid, t, x + t.image * a.src_stride, read, first);
  load_pieces<T, K>(a.grid, t, x + partner * a.src_stride, read_other, second);
  const A share = static_cast<A>(lam), rest = A(1) - share;
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    A mixed[N];
#pragma unroll
    for (int l = 0; l < N; ++l) mixed[l] = share * element(first[i], l) + rest * element(second[i], l);
    first[i] = chosen(own[t.at(i)], first[i], chosen(theirs[t.at(i)], second[i], rounded<T, N>(mixed)));
  }
  store_pieces<T, K>(a.grid, t, out, first);
}

template <typename T, typename K>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 6) patch_mix_kernel(const __grid_constant__ PatchMixParams a) {
  const Tile<K> t = tile_of<K>(a);
  const int64_t n = t.image, partner = a.partner[n];
  const bool valid = partner >= 0 && partner < a.shape.images;
  const float lam = a.lam[n * a.lam_step];
  const uint8_t *mask = a.mask + n * a.cells(), *other = a.mask + (valid ? partner : 0) * a.cells();
  if (t.is_first_block) write_weight(mask, other, lam, valid, a.cells(), a.weight + 2 * n);
  if (!t.place[0].exists) return;
  T* out = static_cast<T*>(a.dst) + n * a.grid.image_elements;
  if (!valid) return fill_tile<T, K>(a, t, out, nan_of<T>());
  mix_tile<T, K>(a, t, partner, mask, other, lam, out);
}

// sums += share of an element * g[from]: what image `from` of the gradient, whose masks are `own` and `other`, passes
// on to itself (is_own) or to its partner.
template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE void add_shares(const PatchMixParams& a, const Tile<K>& t, int64_t from, int64_t other, bool is_own,
                               A (&sums)[K::kPieces][K::kElements]) {
  constexpr int N = K::kElements;
  const float lam = a.lam[from * a.lam_step];
  const A share = is_own ? static_cast<A>(lam) : A(1) - static_cast<A>(lam);
  uint32_t mixed[K::kPlaces], bits[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) {
    CellShares shares{kAllElements<N>, kAllElements<N>};
    if (t.place[i].exists) {
      shares = shares_of<K>(a.grid, t.place[i], a, a.mask + from * a.cells(), a.mask + other * a.cells(), lam);
    }
    bits[i] = kAllElements<N> & ~(is_own ? shares.other : shares.own);
    mixed[i] = bits[i] & ~shares.own & ~shares.other;
  }
  // A lam that no element uses, as NaN, counts nothing.
  add_pieces<T, K>(
      a.grid, t, static_cast<const T*>(a.src) + from * a.src_stride, bits,
      [&](int place, int l) { return mixed[place] >> l & 1u ? share : A(1); }, sums);
}

// dx[m] = a_m g[m] + the sum of (1 - a_n) g[n] over the images n whose partner is m, in their order.
template <typename T, typename K>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 5)
    patch_mix_backward_kernel(const __grid_constant__ PatchMixParams a) {
  const Tile<K> t = tile_of<K>(a);
  if (!t.place[0].exists) return;
  const int64_t m = t.image, partner = a.partner[m];
  accumulator_t<T> sums[K::kPieces][K::kElements] = {};
  if (partner >= 0 && partner < a.shape.images) add_shares<T, K>(a, t, m, partner, true, sums);
  for (int r = a.begin[m], end = a.begin[m + 1]; r < end; ++r) add_shares<T, K>(a, t, a.readers[r], m, false, sums);
  store_sums<T, K>(a.grid, t, static_cast<T*>(a.dst) + m * a.grid.image_elements, sums);
}

// backward: src is the gradient, and a.begin and a.readers come from find_readers before.
template <typename T>
void patch_mix(PatchMixParams a, bool backward, Stream stream) {
  set_cell_size(a, a.shape);
  with_pieces<T, 2>(a.shape, a.src, a.src_stride, a.dst, [&](auto kind) {
    using K = decltype(kind);
    const LaunchShape shape = tile_shape<K>(a);
    if (backward) {
      launch(patch_mix_backward_kernel<T, K>, shape, stream, a);
    } else {
      launch(patch_mix_kernel<T, K>, shape, stream, a);
    }
  });
}

}  // namespace fastmix
