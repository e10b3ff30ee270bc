// How image kernels divide a batch: a block has one image, and a thread the same pack of elements in a few planes.
// Box and cell arithmetic is done once for all of them, and their loads are in flight together.
#pragma once

#include <type_traits>

#include "cuda/lib/pack.cuh"

namespace fastmix {

constexpr int kTileThreads = 128;  // 32 x 32 pixels of bfloat16 are one block, of float two
constexpr int kTilePlanes = 4;

// `images` of `planes` planes of height rows; a row has `row_elements`, `pixel` of them to a pixel: NCHW has C planes
// and pixels of one element, NHWC one plane and pixels of C.
struct ImageShape {
  int64_t images;
  int planes, height, row_elements, pixel;

  FASTMIX_METHOD int plane_elements() const { return height * row_elements; }
  FASTMIX_METHOD int64_t image_elements() const { return static_cast<int64_t>(planes) * plane_elements(); }
  FASTMIX_METHOD int plane_groups() const { return (planes + kTilePlanes - 1) / kTilePlanes; }
};

// Images that a kernel writes.
struct ImageOutputs {
  void* dst;  // images follow each other
  ImageShape shape;
  int per_image;  // blocks of an image; set by the launcher
};

// Images that a kernel makes of others of the same shape.
struct ImageParams : ImageOutputs {
  const void* src;
  int64_t src_stride;       // elements between images of src
  const int *first, *next;  // backward: see SourceChains
};

// Elements [first, first + N) of planes [plane, plane + kTilePlanes) of an image; they may run over the end of a row.
struct Tile {
  int64_t image;
  int first, plane, row, column;
  bool is_first_block;  // of the image

  FASTMIX_METHOD int64_t offset(const ImageShape& s, int i) const {
    return static_cast<int64_t>(plane + i) * s.plane_elements() + first;
  }
};

// The launch of a kernel on tiles of a.shape, by blocks with `shared` bytes; tells them how many an image has.
template <int N>
LaunchShape tile_shape(ImageOutputs& a, size_t shared = 0) {
  const int64_t per_image = ceil_div(a.shape.plane_elements() / N, kTileThreads) * a.shape.plane_groups();
  a.per_image = static_cast<int>(per_image);
  return {per_image * a.shape.images, kTileThreads, shared};
}

// first >= plane_elements(): this thread has none.
template <int N>
FASTMIX_DEVICE Tile tile_of(const ImageShape& s, int per_image) {
  Tile t;
  t.image = blockIdx.x / per_image;
  const int block = static_cast<int>(blockIdx.x % per_image), groups = s.plane_groups();
  t.is_first_block = block == 0;
  t.plane = block % groups * kTilePlanes;
  t.first = (block / groups * kTileThreads + static_cast<int>(threadIdx.x)) * N;
  t.row = t.first / s.row_elements;
  t.column = t.first - t.row * s.row_elements;
  return t;
}

template <int N>
constexpr uint32_t kAllElements = (1u << N) - 1;

// f(begin, length, row, column) for the parts of a tile's N elements that lie in one row each.
template <int N, typename F>
FASTMIX_DEVICE void for_each_row(const ImageShape& s, const Tile& t, const F& f) {
  int row = t.row, column = t.column;
  for (int begin = 0; begin < N;) {
    const int left = s.row_elements - column, length = left < N - begin ? left : N - begin;
    f(begin, length, row, column);
    begin += length;
    column = 0;
    ++row;
  }
}

// Bits [low, high) of a set of elements.
FASTMIX_INLINE uint32_t element_bits(int low, int high) { return high > low ? (1u << high) - (1u << low) : 0u; }

// f(elements that a thread takes at a time, an integral constant): packs of T where rows of both tensors start at
// multiples of 16 bytes and planes are whole packs, else one.
template <typename T, typename F>
void with_pack(const ImageShape& s, const void* a, int64_t a_stride, const void* b, const F& f) {
  if (is_aligned(a) && is_aligned(b) && a_stride % kPack<T> == 0 && s.plane_elements() % kPack<T> == 0) {
    f(std::integral_constant<int, kPack<T>>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

template <typename T, int N>
FASTMIX_DEVICE void fill_tile(const ImageShape& s, const Tile& t, T* image, T value) {
  Elements<T, N> e;
#pragma unroll
  for (int l = 0; l < N; ++l) e.v[l] = value;
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i < s.planes) store_elements<T, N>(image + t.offset(s, i), e);
  }
}

// f(plane, element, value) for a tile's elements in `bits`; all of them are loaded.
template <typename T, int N, typename F>
FASTMIX_DEVICE void for_each_input(const ImageShape& s, const Tile& t, const T* image, uint32_t bits, const F& f) {
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i >= s.planes) continue;
    const Elements<T, N> e = load_input<T, N>(image + t.offset(s, i));
#pragma unroll
    for (int l = 0; l < N; ++l) {
      if (bits >> l & 1u) f(i, l, e.v[l]);
    }
  }
}

// to's elements in `bits` from the planes of an image.
template <typename T, int N>
FASTMIX_DEVICE void load_tile(const ImageShape& s, const Tile& t, const T* image, uint32_t bits,
                              Elements<T, N> (&to)[kTilePlanes]) {
  for_each_input<T, N>(s, t, image, bits, [&](int i, int l, T value) { to[i].v[l] = value; });
}

// sums += weight * image on the elements in `bits`; nothing of the others leaks in, not even 0 * inf.
template <typename T, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE void add_tile(const ImageShape& s, const Tile& t, const T* image, uint32_t bits, A weight,
                             A (&sums)[kTilePlanes][N]) {
  for_each_input<T, N>(s, t, image, bits, [&](int i, int l, T value) { sums[i][l] += weight * to_float(value); });
}

template <typename T, int N, typename A = accumulator_t<T>>
FASTMIX_DEVICE void store_tile(const ImageShape& s, const Tile& t, T* image, const A (&sums)[kTilePlanes][N]) {
#pragma unroll
  for (int i = 0; i < kTilePlanes; ++i) {
    if (t.plane + i >= s.planes) continue;
    Elements<T, N> e;
#pragma unroll
    for (int l = 0; l < N; ++l) store(&e.v[l], sums[i][l]);
    store_elements<T, N>(image + t.offset(s, i), e);
  }
}

}  // namespace fastmix
