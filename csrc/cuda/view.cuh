// View on the GPU: bytes to mixed, normalised images in one pass. Not yet run on a GPU.
//
// bytes: N*C*H*W read once a source that shows them (again from the second-level cache), N*C*H*W*size written once.
// Shape: as paste, by packs of 16 bytes of the output. Their bytes are one load of 2 to 8 where the source is a whole
// number of such words off, a byte at a time elsewhere and along its edges. The mixed byte is normalised once, by a
// table of scales and offsets that each block makes in shared memory.
#pragma once

#include "core/view.h"
#include "cuda/lib/regions.cuh"

namespace fastmix {

enum class ViewMix { kPaste, kBlend, kPatch };  // kPaste is the view alone as well

// shape: of the output.
struct ViewParams : ImageOutputs, CellMix<int> {
  const uint8_t* src;
  int64_t src_stride;                       // bytes between images of src
  int64_t src_channel, src_row, src_pixel;  // bytes between channels, rows and pixels of an image
  int channels, width;
  const float *mean, *std;  // (C)
  const uint8_t* flip;      // (N), or null
  const int64_t* shift;     // (N, 2), or null
  int k;
  const int64_t* index;  // (N, K); null: every image itself
  const int32_t* boxes;  // (N, K - 1, 4)
  const float* weight;   // view_blend: (N, K)
  float* shares;         // view_patch_mix: (N, 2)
};

// N bytes, the first one lowest.
template <int N>
using Word = std::conditional_t<N == 1, uint8_t,
                                std::conditional_t<N == 2, uint16_t, std::conditional_t<N == 4, uint32_t, uint64_t>>>;

template <typename A, int N>
FASTMIX_DEVICE A byte_of(Word<N> word, int l) {
  return static_cast<A>(static_cast<uint8_t>(word >> (8 * l)));
}

// An image as it is seen.
struct ViewSource {
  const uint8_t* image;
  ViewTransform transform;
};

FASTMIX_DEVICE ViewSource source_of(const ViewParams& a, int64_t m) {
  return {a.src + m * a.src_stride,
          view_transform(a.flip == nullptr ? nullptr : a.flip + m, a.shift == nullptr ? nullptr : a.shift + 2 * m,
                         a.shape.height, a.width)};
}

// The bytes that a tile's elements in `bits` show of a source in plane `plane`; 0 of all others and of the padding.
template <int N>
FASTMIX_DEVICE Word<N> load_bytes(const ViewParams& a, const Tile& t, int plane, const ViewSource& source,
                                  uint32_t bits) {
  const ImageShape& s = a.shape;
  const ViewTransform& w = source.transform;
  const uint8_t* image = source.image + plane * a.src_channel;
  int row = t.row, column = t.column / s.pixel, channel = t.column - column * s.pixel;
  if constexpr (N > 1) {
    // One row, and bytes that follow each other in memory, or one channel of a mirrored row.
    const bool in_order = a.src_pixel == s.pixel && (w.step > 0 || s.pixel == 1);
    const int last = (t.column + N - 1) / s.pixel, from = row + w.down;
    const int begin = w.first + w.step * column, end = w.first + w.step * last;
    const bool whole = t.column + N <= s.row_elements && from >= 0 && from < s.height && begin >= 0 && end >= 0 &&
                       begin < a.width && end < a.width;
    if (in_order && whole) {
      const int64_t low = w.step > 0 ? begin * a.src_pixel + channel : end;
      const uint8_t* p = image + from * a.src_row + low;
      if (reinterpret_cast<uintptr_t>(p) % N == 0) {
        const Word<N> loaded = *reinterpret_cast<const Word<N>*>(p);
        Word<N> word = 0;
#pragma unroll
        for (int l = 0; l < N; ++l) {
          const Word<N> byte = static_cast<uint8_t>(loaded >> (8 * (w.step > 0 ? l : N - 1 - l)));
          if (bits >> l & 1u) word |= static_cast<Word<N>>(byte << (8 * l));
        }
        return word;
      }
    }
  }
  Word<N> word = 0;
#pragma unroll
  for (int l = 0; l < N; ++l) {
    const int i = row + w.down, j = w.first + w.step * column;
    if ((bits >> l & 1u) && i >= 0 && i < s.height && j >= 0 && j < a.width) {
      const Word<N> byte = image[i * a.src_row + j * a.src_pixel + channel * a.src_channel];
      word |= static_cast<Word<N>>(byte << (8 * l));
    }
    if (++channel < s.pixel) continue;
    channel = 0;
    if (++column < a.width) continue;
    column = 0;
    ++row;
  }
  return word;
}

// mixed byte -> scale * byte + total * offset, total the sum of the weights that it was mixed with.
template <typename T, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE void store_normalised(const ViewParams& a, const Tile& t, const A* scale, const A* offset, A total,
                                     const A (&mixed)[kTilePlanes][N]) {
  const ImageShape& s = a.shape;
  T* image = static_cast<T*>(a.dst) + t.image * s.image_elements();
  int channel = t.column % s.pixel;
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i >= s.planes) continue;
    Elements<T, N> e;
#pragma unroll
    for (int l = 0; l < N; ++l) {
      const int c = t.plane + i + channel;  // one of the two is 0
      store(&e.v[l], scale[c] * mixed[i][l] + offset[c] * total);
      channel = channel + 1 < s.pixel ? channel + 1 : 0;
    }
    store_elements<T, N>(image + t.offset(s, i), e);
  }
}

template <typename T, int N, ViewMix kMix>
// 5 blocks: left to itself ptxas spills 8 or 16 bytes of several of these kernels to fit one more.
FASTMIX_KERNEL void __launch_bounds__(kTileThreads, 5) view_kernel(const __grid_constant__ ViewParams a) {
  using A = accumulator_t<T>;
  FASTMIX_DYNAMIC_SHARED(A, scale);
  A* offset = scale + a.channels;
  Box* boxes = reinterpret_cast<Box*>(offset + a.channels);
  const ImageShape& s = a.shape;
  const Tile t = tile_of<N>(s, a.per_image);
  const int64_t* index = a.index == nullptr ? nullptr : a.index + t.image * a.k;
  for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += kTileThreads) {
    scale[c] = view_scale<A>(a.std[c]);
    offset[c] = view_offset<A>(a.mean[c], a.std[c]);
  }
  int bad = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.k && index != nullptr; k += kTileThreads) {
    bad |= static_cast<uint64_t>(index[k]) >= static_cast<uint64_t>(s.images);
    if (kMix == ViewMix::kPaste && k > 0) {
      boxes[k - 1] = clip_box(a.boxes + (t.image * (a.k - 1) + k - 1) * 4, s.height, a.width);
    }
  }
  bad = __syncthreads_or(bad);
  const uint8_t *own_mask = nullptr, *other_mask = nullptr;
  float lam = 0;
  if constexpr (kMix == ViewMix::kPatch) {
    const int64_t cells = static_cast<int64_t>(a.h) * a.w;
    lam = a.lam[t.image * a.lam_step];
    own_mask = a.mask + t.image * cells;
    other_mask = bad ? own_mask : a.mask + index[0] * cells;
    if (t.is_first_block) {
      write_weight(own_mask, other_mask, lam, !bad, a.h * a.w, a.shares + 2 * t.image);
    }
  }
  if (t.first >= s.plane_elements()) return;
  if (bad) {
    return fill_tile<T, N>(s, t, static_cast<T*>(a.dst) + t.image * s.image_elements(), nan_of<T>());
  }
  A mixed[kTilePlanes][N] = {};
  A total = 1;
  if constexpr (kMix == ViewMix::kBlend) {
    total = 0;
    for (int k = 0; k < a.k; ++k) {
      const ViewSource source = source_of(a, index[k]);
      const A weight = static_cast<A>(a.weight[t.image * a.k + k]);
      total += weight;
#pragma unroll
      for (int i = 0; i < kTilePlanes; ++i) {
        if (t.plane + i >= s.planes) continue;
        const Word<N> word = load_bytes<N>(a, t, t.plane + i, source, kAllElements<N>);
#pragma unroll
        for (int l = 0; l < N; ++l) mixed[i][l] += weight * byte_of<A, N>(word, l);
      }
    }
  } else if constexpr (kMix == ViewMix::kPatch) {
    const CellShares shares = shares_of<N>(s, t, own_mask, other_mask, lam, a.h, a.w);
    const ViewSource own = source_of(a, t.image), other = source_of(a, index[0]);
#pragma unroll
    for (int i = 0; i < kTilePlanes; ++i) {
      if (t.plane + i >= s.planes) continue;
      const Word<N> x = load_bytes<N>(a, t, t.plane + i, own, kAllElements<N> & ~shares.other);
      const Word<N> y = load_bytes<N>(a, t, t.plane + i, other, kAllElements<N> & ~shares.own);
#pragma unroll
      for (int l = 0; l < N; ++l) {
        const A first = byte_of<A, N>(x, l), second = byte_of<A, N>(y, l);
        const A blended = second + static_cast<A>(lam) * (first - second);
        mixed[i][l] = shares.own >> l & 1u ? first : shares.other >> l & 1u ? second : blended;
      }
    }
  } else {
    Word<N> words[kTilePlanes] = {};
    uint32_t left = kAllElements<N>;
    for (int k = a.k - 1; k >= 0 && left != 0; --k) {
      const uint32_t bits = k > 0 ? inside<N>(s, t, boxes[k - 1]) & left : left;
      if (bits == 0) continue;
      left &= ~bits;
      const ViewSource source = source_of(a, index == nullptr ? t.image : index[k]);
#pragma unroll
      for (int i = 0; i < kTilePlanes; ++i) {
        if (t.plane + i < s.planes) words[i] |= load_bytes<N>(a, t, t.plane + i, source, bits);
      }
    }
#pragma unroll
    for (int i = 0; i < kTilePlanes; ++i) {
#pragma unroll
      for (int l = 0; l < N; ++l) mixed[i][l] = byte_of<A, N>(words[i], l);
    }
  }
  store_normalised<T, N>(a, t, scale, offset, total, mixed);
}

// Scales, offsets and clipped boxes of a block, in bytes.
template <typename T>
size_t view_shared(const ViewParams& a) {
  return 2 * static_cast<size_t>(a.channels) * sizeof(accumulator_t<T>) + static_cast<size_t>(a.k - 1) * sizeof(Box);
}

template <typename T, ViewMix kMix>
void view(ViewParams a, Stream stream) {
  with_pack<T>(a.shape, a.dst, 0, a.dst, [&](auto n) {
    constexpr int kN = decltype(n)::value;
    const LaunchShape shape = tile_shape<kN>(a, view_shared<T>(a));
    launch(view_kernel<T, kN, kMix>, shape, stream, a);
  });
}

}  // namespace fastmix
