// View on the GPU: bytes to mixed, normalised images in one pass. Not yet run on a GPU.
//
// bytes: N*C*H*W read once a source that shows them (again from the second-level cache), N*C*H*W*size written once.
// Shape: as paste, by packs of 16 bytes of the output, whose bytes are aligned words moved into place (window.cuh). The
// mixed byte is normalised once, by a table of scales and offsets that each block makes in shared memory.
//
// sm_90, bfloat16: 6 or 7 instructions a byte to get it wherever it lies, 15 or 16 in all (blend of two 26, patch_mix
// 31 or 33); the memory leaves time for 26, so patch_mix is bound by its arithmetic (cuda_budget.json, docs/gpu.md).
#pragma once

#include "cuda/lib/regions.cuh"
#include "cuda/lib/window.cuh"

namespace fastmix {

enum class ViewMix { kPaste, kBlend, kPatch };  // kPaste is the view alone as well

// shape: of the output.
struct ViewParams : ImageOutputs, ByteImages, CellTiling {
  const float *mean, *std;  // (C)
  int k;
  const int64_t* index;  // (N, K); null: every image itself
  const int32_t* boxes;  // (N, K - 1, 4)
  const float* weight;   // view_blend: (N, K)
  float* shares;         // view_patch_mix: (N, 2)
};

template <typename T, typename K>
using Mixed = accumulator_t<T>[K::kPieces][K::kElements];

// mixed byte -> scale * byte + total * offset, total the sum of the weights that it was mixed with.
template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE void store_normalised(const ViewParams& a, const Tile<K>& t, const A* scale, const A* offset, A total,
                                     const Mixed<T, K>& mixed) {
  constexpr int N = K::kElements;
  T* image = static_cast<T*>(a.dst) + t.image * a.grid.image_elements + t.offset;
  int channel = 0;  // of the first element
  if (a.shape.pixel > 1) a.by_pixel.divide(t.place[0].column, channel);
  // What follows each other in a row of pixels of three.
  A scales[3] = {}, offsets[3] = {};
  const bool three = K::kRows && a.shape.pixel == 3;
  if (three) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      scales[c] = scale[channel];
      offsets[c] = offset[channel] * total;
      channel = channel < 2 ? channel + 1 : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    if (!t.has(i)) continue;
    A value[N];
    if (three) {
#pragma unroll
      for (int l = 0; l < N; ++l) value[l] = scales[l % 3] * mixed[i][l] + offsets[l % 3];
    } else if (a.shape.pixel == 1) {  // a plane is a channel
      const int c = K::kRows ? 0 : t.plane + i;
      const A of_plane = scale[c], shift = offset[c] * total;
#pragma unroll
      for (int l = 0; l < N; ++l) value[l] = of_plane * mixed[i][l] + shift;
    } else {
      int of = channel;
#pragma unroll
      for (int l = 0; l < N; ++l) {
        const int c = (K::kRows ? 0 : t.plane + i) + of;  // one of the two is 0
        value[l] = scale[c] * mixed[i][l] + offset[c] * total;
        of = of + 1 < a.shape.pixel ? of + 1 : 0;
      }
    }
    store_words<T, N>(image + t.step(a.grid, i), rounded<T, N>(value));
  }
}

// All elements of the places that exist.
template <typename K>
FASTMIX_DEVICE void all_elements(const Tile<K>& t, uint32_t (&bits)[K::kPlaces]) {
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) bits[i] = t.place[i].exists ? kAllElements<K::kElements> : 0;
}

// What a tile shows of a source, its loads under way.
template <typename K>
struct Seen {
  ViewSource source;
  Window<K> window;
  RawWords<K> raw;
};

template <typename K>
FASTMIX_DEVICE void look(const ViewParams& a, const Tile<K>& t, int64_t m, const uint32_t (&wanted)[K::kPlaces],
                         Seen<K>& seen) {
  seen.source = source_of(a, a.shape, m);
  seen.window = window_of<K>(a, a, t, seen.source, wanted);
  load_raw<K>(a, a, t, seen.source, seen.window, seen.raw);
}

// bytes |= what was looked for.
template <typename K>
FASTMIX_DEVICE void take(const ViewParams& a, const Tile<K>& t, const Seen<K>& seen,
                         Bytes<K::kElements> (&bytes)[K::kPieces]) {
  add_shown<K>(a, a, t, seen.source, seen.window, seen.raw, bytes);
}

// Bytes of the sources that show, one after the other.
template <typename T, typename K>
FASTMIX_DEVICE void paste_bytes(const ViewParams& a, const Tile<K>& t, const int64_t* index, const Box* boxes,
                                Mixed<T, K>& mixed) {
  constexpr int N = K::kElements;
  Bytes<N> bytes[K::kPieces] = {};
  uint32_t left[K::kPlaces];
  all_elements<K>(t, left);
#pragma unroll 1
  for (int k = a.k - 1; k >= 0; --k) {
    uint32_t bits[K::kPlaces], any = 0, rest = 0;
#pragma unroll
    for (int i = 0; i < K::kPlaces; ++i) {
      bits[i] = k > 0 ? inside<K>(a, t.place[i], boxes[k - 1]) & left[i] : left[i];
      left[i] &= ~bits[i];
      any |= bits[i];
      rest |= left[i];
    }
    if (any != 0) {
      Seen<K> seen;
      look<K>(a, t, index == nullptr ? t.image : index[k], bits, seen);
      take<K>(a, t, seen, bytes);
    }
    if (rest == 0) break;
  }
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
#pragma unroll
    for (int l = 0; l < N; ++l) mixed[i][l] = byte_of<accumulator_t<T>, N>(bytes[i], l);
  }
}

// Returns the sum of the weights.
template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE A blend_bytes(const ViewParams& a, const Tile<K>& t, const int64_t* index, Mixed<T, K>& mixed) {
  constexpr int N = K::kElements;
  uint32_t all[K::kPlaces];
  all_elements<K>(t, all);
  A total = 0;
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
#pragma unroll
    for (int l = 0; l < N; ++l) mixed[i][l] = 0;
  }
#pragma unroll 1
  for (int k = 0; k < a.k; ++k) {
    const A weight = static_cast<A>(a.weight[t.image * a.k + k]);
    total += weight;
    Seen<K> seen;
    look<K>(a, t, index[k], all, seen);
    Bytes<N> bytes[K::kPieces] = {};
    take<K>(a, t, seen, bytes);
#pragma unroll
    for (int i = 0; i < K::kPieces; ++i) {
#pragma unroll
      for (int l = 0; l < N; ++l) mixed[i][l] += weight * byte_of<A, N>(bytes[i], l);
    }
  }
  return total;
}

template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE void mix_cells_of_bytes(const ViewParams& a, const Tile<K>& t, int64_t partner, const uint8_t* mask,
                                       const uint8_t* other, float lam, Mixed<T, K>& mixed) {
  constexpr int N = K::kElements;
  CellShares shares[K::kPlaces];
  uint32_t read[K::kPlaces], read_other[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) {
    shares[i] = {kAllElements<N>, kAllElements<N>};
    if (t.place[i].exists) shares[i] = shares_of<K>(a.grid, t.place[i], a, mask, other, lam);
    read[i] = kAllElements<N> & ~shares[i].other;
    read_other[i] = kAllElements<N> & ~shares[i].own;
  }
  Seen<K> own, theirs;
  look<K>(a, t, t.image, read, own);
  look<K>(a, t, partner, read_other, theirs);
  Bytes<N> x[K::kPieces] = {}, y[K::kPieces] = {};
  take<K>(a, t, own, x);
  take<K>(a, t, theirs, y);
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    const CellShares& of = shares[t.at(i)];
#pragma unroll
    for (int l = 0; l < N; ++l) {
      // Exact where the share is 1 or 0: bytes are finite.
      const A share = of.own >> l & 1u ? A(1) : of.other >> l & 1u ? A(0) : static_cast<A>(lam);
      const A first = byte_of<A, N>(x[i], l), second = byte_of<A, N>(y[i], l);
      mixed[i][l] = second + share * (first - second);
    }
  }
}

// Blocks: what leaves registers enough for none to be spilled.
template <typename T, typename K, ViewMix kMix>
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, kMix == ViewMix::kPaste               ? 6
                                                    : kMix == ViewMix::kBlend && K::kRows ? 4
                                                                                          : 5)
    view_kernel(const __grid_constant__ ViewParams a) {
  using A = accumulator_t<T>;
  FASTMIX_DYNAMIC_SHARED(A, scale);
  A* offset = scale + a.channels;
  Box* boxes = reinterpret_cast<Box*>(offset + a.channels);
  const ImageShape& s = a.shape;
  const Tile<K> t = tile_of<K>(a);
  const int64_t* index = a.index == nullptr ? nullptr : a.index + t.image * a.k;
  for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += kTileThreads) {
    scale[c] = view_scale<A>(a.std[c]);
    offset[c] = view_offset<A>(a.mean[c], a.std[c]);
  }
  int bad = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.k && index != nullptr; k += kTileThreads) {
    bad |= static_cast<uint64_t>(index[k]) >= static_cast<uint64_t>(s.images);
    if (kMix == ViewMix::kPaste && k > 0) {
      boxes[k - 1] = clip_box(a.boxes + (t.image * (a.k - 1) + k - 1) * 4, s.height, s.width);
    }
  }
  bad = __syncthreads_or(bad);
  const uint8_t *own_mask = nullptr, *other_mask = nullptr;
  float lam = 0;
  if constexpr (kMix == ViewMix::kPatch) {
    lam = a.lam[t.image * a.lam_step];
    own_mask = a.mask + t.image * a.cells();
    other_mask = bad ? own_mask : a.mask + index[0] * a.cells();
    if (t.is_first_block) write_weight(own_mask, other_mask, lam, !bad, a.cells(), a.shares + 2 * t.image);
  }
  if (!t.place[0].exists) return;
  if (bad) return fill_tile<T, K>(a, t, static_cast<T*>(a.dst) + t.image * a.grid.image_elements, nan_of<T>());
  Mixed<T, K> mixed;
  A total = 1;
  if constexpr (kMix == ViewMix::kBlend) {
    total = blend_bytes<T, K>(a, t, index, mixed);
  } else if constexpr (kMix == ViewMix::kPatch) {
    mix_cells_of_bytes<T, K>(a, t, index[0], own_mask, other_mask, lam, mixed);
  } else {
    paste_bytes<T, K>(a, t, index, boxes, mixed);
  }
  store_normalised<T, K>(a, t, scale, offset, total, mixed);
}

// Scales, offsets and clipped boxes of a block, in bytes.
template <typename T>
size_t view_shared(const ViewParams& a) {
  return 2 * static_cast<size_t>(a.channels) * sizeof(accumulator_t<T>) + static_cast<size_t>(a.k - 1) * sizeof(Box);
}

template <typename T, ViewMix kMix>
void view(ViewParams a, Stream stream) {
  set_words(a, a.shape);
  if (kMix == ViewMix::kPatch) set_cell_size(a, a.shape);
  with_pieces<T, 4>(a.shape, a.dst, 0, a.dst, [&](auto kind) {
    using K = decltype(kind);
    const LaunchShape shape = tile_shape<K>(a, view_shared<T>(a));
    launch(view_kernel<T, K, kMix>, shape, stream, a);
  });
}

}  // namespace fastmix
