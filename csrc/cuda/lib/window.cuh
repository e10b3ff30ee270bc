// The bytes that places of a tile show of an image which is moved and mirrored (core/view.h).
//
// Elements of one row follow each other in memory, or mirrored pixels do: aligned words that hold them are loaded, all
// of a tile's first, and shifted and permuted into place. Bytes beside them come along and are masked; the words lie
// inside the batch. Elsewhere, where the layouts differ or a place runs over the end of a row, a byte at a time.
#pragma once

#include "core/view.h"
#include "cuda/lib/bytes.cuh"
#include "cuda/lib/tile.cuh"

namespace fastmix {

// Images of bytes that are seen moved and mirrored.
struct ByteImages {
  const uint8_t* src;
  int64_t src_stride;                       // bytes between images of src
  int64_t src_channel, src_row, src_pixel;  // bytes between channels, rows and pixels of an image
  int channels, width;
  const uint8_t* flip;   // (N), or null
  const int64_t* shift;  // (N, 2), or null
  // set by set_words
  Divisor by_pixel;    // elements of a pixel of the output
  int plane_bytes;     // what a plane of src holds; an image, where its channels lie side by side
  bool same_layout;    // as the output
  bool images_follow;  // bytes beside an image are of the batch, but before the first and behind the last
};

inline void set_words(ByteImages& a, const ImageShape& s) {
  if (s.plane_elements() == 0 || a.channels == 0) return;  // nothing is launched
  const int64_t image = static_cast<int64_t>(a.channels) * s.height * a.width;
  a.by_pixel = Divisor(s.pixel);
  a.same_layout = a.src_pixel == s.pixel && a.src_row == s.row_elements();
  a.plane_bytes = s.plane_elements();
  a.images_follow = a.src_stride >= image && image >= 16;
}

// An image as it is seen.
struct ViewSource {
  const uint8_t* image;
  ViewTransform transform;
  bool before, behind;  // whether there are 16 bytes of the batch on either side
};

FASTMIX_DEVICE ViewSource source_of(const ByteImages& a, const ImageShape& s, int64_t m) {
  return {a.src + m * a.src_stride,
          view_transform(a.flip == nullptr ? nullptr : a.flip + m, a.shift == nullptr ? nullptr : a.shift + 2 * m,
                         s.height, a.width),
          a.images_follow && m > 0, a.images_follow && m + 1 < s.images};
}

// What a tile shows of a source: the elements of each place, and how their bytes are got. Byte `low` of a plane is the
// first that the first piece needs, of `length`; the other pieces' lie a row or a plane further each.
template <typename K>
struct Window {
  uint32_t shown[K::kPlaces];
  int low, length;
  bool in_words;
  uint32_t select[2], last;  // how words are made of two from `low` on; last: and how the third comes into the first
};

template <typename K>
FASTMIX_DEVICE Window<K> window_of(const ByteImages& a, const ImageOutputs& out, const Tile<K>& t,
                                   const ViewSource& source, const uint32_t (&wanted)[K::kPlaces]) {
  constexpr int N = K::kElements;
  const ViewTransform& w = source.transform;
  const int pixel = out.shape.pixel, height = out.shape.height;
  const Place& p = t.place[0];
  // The source's columns are those of the output from here on, counted against their order where it is mirrored.
  const int begin_of_row = (w.step > 0 ? -w.first : w.first + 1 - a.width) * pixel;
  Window<K> v{};
  if constexpr (K::kRows) {
    const int low = begin_of_row - p.column, high = low + out.grid.row_elements;
    const uint32_t shown = element_bits(low > 0 ? low : 0, high < N ? high : N);
#pragma unroll
    for (int i = 0; i < K::kPlaces; ++i) {
      const int row = t.place[i].row + w.down;
      v.shown[i] = row >= 0 && row < height ? shown & wanted[i] : 0;
    }
  } else {
    for_each_row<K>(out.grid, p, [&](int begin, int length, int row, int column) {
      if (row + w.down < 0 || row + w.down >= height) return;
      const int low = begin_of_row - column, high = low + out.grid.row_elements;
      v.shown[0] |= element_bits(low > 0 ? low : 0, high < length ? high : length) << begin;
    });
    v.shown[0] &= wanted[0];
  }
  if constexpr (N >= 4) {
    const bool turned = w.step < 0;
    bool known = a.same_layout && (K::kRows || p.column + N <= out.grid.row_elements);
    v.length = N;
    v.last = 0x3210u;
    if (!K::kRows || pixel == 1) {
      v.low = turned ? w.first - (p.column + N - 1) : w.first + p.column;
      v.select[0] = !turned ? 0x3210u : N == 8 ? 0x4567u : 0x0123u;
      v.select[1] = turned ? 0x0123u : 0x7654u;
      known = known && pixel == 1;
    } else if (!turned) {
      v.low = w.first * pixel + p.column;
      v.select[0] = 0x3210u;
      v.select[1] = 0x7654u;
    } else {
      // Pixels of three bytes in reverse order, by the channel of the first element.
      int channel;
      const int at = a.by_pixel.divide(p.column, channel), pixels = (channel + N + 2) / 3;
      known = known && pixel == 3;
      v.length = pixels * 3;
      v.low = (w.first - (at + pixels - 1)) * 3;
      if constexpr (N == 8) {
        v.select[0] = channel == 0 ? 0x3076u : channel == 1 ? 0x4307u : 0x0760u;
        v.last = channel == 0 ? 0x3410u : channel == 1 ? 0x3240u : 0x4217u;
        v.select[1] = channel == 0 ? 0x1054u : channel == 1 ? 0x2105u : 0x0543u;
      } else {
        v.select[0] = channel == 0 ? 0x0543u : channel == 1 ? 0x1054u : 0x2105u;
      }
    }
    v.low += (p.row + w.down) * out.grid.row_elements;
    const int behind = v.low + (K::kPlaces - 1) * out.grid.row_elements + v.length + 3;
    v.in_words = known && (v.low >= 3 || source.before) && (behind <= a.plane_bytes || source.behind);
  }
  return v;
}

// Aligned words from the one that holds the first byte of each piece on, and the lowest bits of that byte's address.
template <typename K>
struct RawWords {
  static constexpr int kWords = K::kElements < 4 ? 1 : K::kElements / 4 + (K::kRows ? 2 : 1);
  uint32_t w[K::kPieces][kWords], low[K::kPieces];
};

template <typename K>
FASTMIX_DEVICE void load_raw(const ByteImages& a, const ImageOutputs& out, const Tile<K>& t, const ViewSource& source,
                             const Window<K>& v, RawWords<K>& raw) {
  if constexpr (K::kElements >= 4) {
    const uintptr_t step = static_cast<uintptr_t>(K::kRows ? out.grid.row_elements : a.src_channel);
    uintptr_t low = reinterpret_cast<uintptr_t>(source.image) + static_cast<uintptr_t>(static_cast<intptr_t>(v.low));
    if (!K::kRows) low += static_cast<uintptr_t>(t.plane * a.src_channel);
#pragma unroll
    for (int i = 0; i < K::kPieces; ++i) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(low & ~uintptr_t{3});
      const bool wanted = v.in_words && v.shown[t.at(i)] != 0 && t.has(i);
      raw.low[i] = static_cast<uint32_t>(low);
#pragma unroll
      for (int l = 0; l < RawWords<K>::kWords; ++l) {
        // All but the last ones hold a byte that is needed wherever those begin in the first.
        const bool reached = l < K::kElements / 4 || 4 * l < static_cast<int>(raw.low[i] & 3) + v.length;
        raw.w[i][l] = load_word(words + l, wanted && reached);
      }
      low += step;
    }
  }
}

// A byte at a time, by what an element and its successor are apart.
template <typename K>
FASTMIX_DEVICE Bytes<K::kElements> walk(const ByteImages& a, const ImageOutputs& out, const Place& p, int plane,
                                        const ViewSource& source, uint32_t shown) {
  constexpr int N = K::kElements;
  const ViewTransform& w = source.transform;
  int row = p.row, column = p.column, channel;
  int at = a.by_pixel.divide(column, channel);
  Bytes<N> bytes{};
#pragma unroll
  for (int l = 0; l < N; ++l) {
    if (shown >> l & 1u) {
      const uint8_t* byte = source.image + (plane + channel) * a.src_channel + (row + w.down) * a.src_row +
                            (w.first + w.step * at) * a.src_pixel;
      bytes.w[l / 4] |= static_cast<uint32_t>(*byte) << (8 * (l % 4));
    }
    if (++channel < out.shape.pixel) continue;
    channel = 0;
    if (++at < a.width) continue;
    at = 0;
    ++row;
  }
  return bytes;
}

// bytes |= the bytes of a tile's pieces, 0 of elements that are not shown, from raw words or by walking.
template <typename K>
FASTMIX_DEVICE void add_shown(const ByteImages& a, const ImageOutputs& out, const Tile<K>& t, const ViewSource& source,
                              const Window<K>& v, const RawWords<K>& raw, Bytes<K::kElements> (&bytes)[K::kPieces]) {
  constexpr int N = K::kElements, kWords = RawWords<K>::kWords;
  if (N < 4 || !v.in_words) {
#pragma unroll
    for (int i = 0; i < K::kPieces; ++i) {
      if (v.shown[t.at(i)] == 0 || !t.has(i)) continue;
      const Bytes<N> found = walk<K>(a, out, t.place[t.at(i)], K::kRows ? 0 : t.plane + i, source, v.shown[t.at(i)]);
#pragma unroll
      for (int l = 0; l < Bytes<N>::kWords; ++l) bytes[i].w[l] |= found.w[l];
    }
    return;
  }
  if constexpr (N >= 4) {
#pragma unroll
    for (int i = 0; i < K::kPieces; ++i) {
      const Bytes<N> mask = byte_mask<N>(v.shown[t.at(i)]);
      uint32_t x[3] = {};
#pragma unroll
      for (int l = 0; l + 1 < kWords; ++l) x[l] = funnel_right(raw.w[i][l], raw.w[i][l + 1], raw.low[i] * 8 % 32);
#pragma unroll
      for (int l = 0; l < Bytes<N>::kWords; ++l) {
        uint32_t word = byte_perm(x[0], x[1], v.select[l]);
        if (K::kRows && N == 8 && l == 0) word = byte_perm(word, x[2], v.last);
        bytes[i].w[l] |= word & mask.w[l];
      }
    }
  }
}

}  // namespace fastmix
