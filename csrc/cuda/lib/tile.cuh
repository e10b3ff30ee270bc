// How image kernels divide a batch: a block has a tile of one image, a thread a few pieces of 16 bytes of it.
//
// Blocks run with the images innermost: those in flight cover the same tile of every image, so an image that several
// show is read once from memory and then from the second-level cache (`python -m fastmix bench traffic` counts).
// PlanePieces: a piece is the same pack of each of 3 or 4 planes; box and cell arithmetic is done once for all of them.
// RowPieces, for images of one plane: the same pack of rows that follow each other; what depends on its column is done
// once. paste and patch_mix issue the loads of both sources of all pieces before they use one, which a test holds them
// to (loads_first in tests/backends/cuda_budget.json).
#pragma once

#include <type_traits>

#include "cuda/lib/divide.cuh"
#include "cuda/lib/pack.cuh"

namespace fastmix {

constexpr int kTileThreads = 128;  // 32 x 32 pixels of bfloat16 are one block, of float two

// What a thread has: kPieces pieces of N elements, at kPlaces places of a plane. kAll: always so many pieces.
// PlanePieces: 3, of images that have a multiple of them, or up to 4. RowPieces: rows are whole packs.
template <int N, int kCount>
struct PlanePieces {
  static constexpr int kElements = N, kPieces = kCount, kPlaces = 1;
  static constexpr bool kRows = false, kAll = kCount == 3;
};
template <int N, int kCount>
struct RowPieces {
  static constexpr int kElements = N, kPieces = kCount, kPlaces = kCount;
  static constexpr bool kRows = true, kAll = false;
};

// `images` of `planes` planes of `height` rows of `width` pixels of `pixel` elements: NCHW has C planes and pixels of
// one element, NHWC one plane and pixels of C.
struct ImageShape {
  int64_t images;
  int planes, height, width, pixel;

  FASTMIX_METHOD int row_elements() const { return width * pixel; }
  FASTMIX_METHOD int plane_elements() const { return height * row_elements(); }
  FASTMIX_METHOD int64_t image_elements() const { return static_cast<int64_t>(planes) * plane_elements(); }
};

// What a launch knows of a shape, so that no thread divides by it or multiplies it out.
struct TileGrid {
  int row_elements, plane_elements;
  int64_t image_elements;
  Divisor by_images, by_groups, by_row;  // groups: of planes; rows in elements, or with RowPieces in packs
};

// Images that a kernel writes.
struct ImageOutputs {
  void* dst;  // images follow each other
  ImageShape shape;
  TileGrid grid;  // set by tile_shape
};

// Images that a kernel makes of others of the same shape.
struct ImageParams : ImageOutputs {
  const void* src;
  int64_t src_stride;          // elements between images of src
  const int *begin, *readers;  // backward: see SourceReaders
};

// kElements elements of a plane in row `row` from column `column` on (counted in elements); of PlanePieces they may run
// over the end of the row. exists: they lie in the plane.
struct Place {
  int row, column;
  bool exists;
};

template <typename K>
struct Tile {
  int64_t image;
  int plane, planes;    // the first piece's, and how many from there on
  bool is_first_block;  // of the image
  Place place[K::kPlaces];
  int64_t offset;  // of the first piece, in elements of its image

  // The place of a piece.
  static constexpr int at(int piece) { return K::kRows ? piece : 0; }
  // Whether there is such a piece, of a thread whose first place exists.
  FASTMIX_METHOD bool has(int piece) const { return K::kAll || (K::kRows ? place[at(piece)].exists : piece < planes); }
  // Where a piece lies, in elements from the first one.
  FASTMIX_METHOD int64_t step(const TileGrid& grid, int piece) const {
    return static_cast<int64_t>(piece) * (K::kRows ? grid.row_elements : grid.plane_elements);
  }
};

template <typename T, typename K>
using Pieces = Words<T, K::kElements>[K::kPieces];

// The launch of a kernel on tiles of a.shape, by blocks with `shared` bytes; sets a.grid.
template <typename K>
LaunchShape tile_shape(ImageOutputs& a, size_t shared = 0) {
  const ImageShape& s = a.shape;
  const int64_t groups = ceil_div(K::kRows ? s.height : s.planes, K::kPieces);
  const int64_t packs = (K::kRows ? groups * s.row_elements() : s.plane_elements()) / K::kElements;
  const int64_t per_image = ceil_div(packs, kTileThreads) * (K::kRows ? 1 : groups), blocks = per_image * s.images;
  if (blocks > 0 && blocks <= INT32_MAX) {  // else nothing is launched
    a.grid = {s.row_elements(),
              s.plane_elements(),
              s.image_elements(),
              Divisor(s.images),
              Divisor(K::kRows ? 1 : groups),
              Divisor(s.row_elements() / (K::kRows ? K::kElements : 1))};
  }
  return {blocks, kTileThreads, shared};
}

template <typename K>
FASTMIX_DEVICE Tile<K> tile_of(const ImageOutputs& a) {
  const TileGrid& grid = a.grid;
  Tile<K> t;
  int image, chunk = grid.by_images.divide(static_cast<int>(blockIdx.x), image);
  t.image = image;
  t.is_first_block = chunk == 0;
  t.plane = 0;
  if constexpr (!K::kRows) {
    chunk = grid.by_groups.divide(chunk, t.plane);
    t.plane *= K::kPieces;
  }
  t.planes = a.shape.planes - t.plane;
  const int pack = chunk * kTileThreads + static_cast<int>(threadIdx.x);
  if constexpr (K::kRows) {
    int column;
    const int row = grid.by_row.divide(pack, column) * K::kPieces;
    column *= K::kElements;
#pragma unroll
    for (int i = 0; i < K::kPlaces; ++i) t.place[i] = {row + i, column, row + i < a.shape.height};
    t.offset = static_cast<int64_t>(row) * grid.row_elements + column;
  } else {
    const int first = pack * K::kElements;
    Place& p = t.place[0];
    p.row = grid.by_row.divide(first, p.column);
    p.exists = first < grid.plane_elements;
    t.offset = static_cast<int64_t>(t.plane) * grid.plane_elements + first;
  }
  return t;
}

template <int N>
constexpr uint32_t kAllElements = (1u << N) - 1;

// f(begin, length, row, column) for the parts of a place's N elements that lie in one row each.
template <typename K, typename F>
FASTMIX_DEVICE void for_each_row(const TileGrid& grid, const Place& p, const F& f) {
  constexpr int N = K::kElements;
  if (K::kRows || N == 1 || p.column + N <= grid.row_elements) return f(0, N, p.row, p.column);
  int row = p.row, column = p.column;
#pragma unroll 1
  for (int begin = 0; begin < N;) {
    const int left = grid.row_elements - column, length = left < N - begin ? left : N - begin;
    f(begin, length, row, column);
    begin += length;
    column = 0;
    ++row;
  }
}

// Bits [low, high) of a set of elements.
FASTMIX_INLINE uint32_t element_bits(int low, int high) { return high > low ? (1u << high) - (1u << low) : 0u; }

// f(a PlanePieces or RowPieces): packs of T where images of both tensors start at multiples of 16 bytes and planes are
// whole packs, else one element at a time. kRows: rows together in images of one plane.
template <typename T, int kRows, typename F>
void with_pieces(const ImageShape& s, const void* a, int64_t a_stride, const void* b, const F& f) {
  constexpr int N = kPack<T>;
  const bool packed = is_aligned(a) && is_aligned(b) && a_stride % N == 0 && s.plane_elements() % N == 0;
  if (packed && s.planes == 1 && s.row_elements() % N == 0) {
    f(RowPieces<N, kRows>());
  } else if (packed && sizeof(T) < 8 && s.planes % 3 == 0) {
    f(PlanePieces<N, sizeof(T) < 8 ? 3 : 4>());
  } else if (packed) {
    f(PlanePieces<N, 4>());
  } else {
    f(PlanePieces<1, 4>());
  }
}

template <typename T, typename K>
FASTMIX_DEVICE void store_pieces(const TileGrid& grid, const Tile<K>& t, T* image, const Pieces<T, K>& e) {
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    if (t.has(i)) store_words<T, K::kElements>(image + t.offset + t.step(grid, i), e[i]);
  }
}

// Rarely called: kept small.
template <typename T, typename K>
FASTMIX_DEVICE void fill_tile(const ImageOutputs& a, const Tile<K>& t, T* image, T value) {
  Elements<T, K::kElements> e;
#pragma unroll
  for (int l = 0; l < K::kElements; ++l) e.v[l] = value;
#pragma unroll 1
  for (int i = 0; i < K::kPieces; ++i) {
    if (K::kRows ? t.place[0].row + i < a.shape.height : i < t.planes) {
      store_elements<T, K::kElements>(image + t.offset + t.step(a.grid, i), e);
    }
  }
}

// The pieces, of an image for each place, of which some element is wanted, bits[place] of a place; else 0.
template <typename T, typename K>
FASTMIX_DEVICE void load_pieces(const TileGrid& grid, const Tile<K>& t, const T* const (&images)[K::kPlaces],
                                const uint32_t (&bits)[K::kPlaces], Pieces<T, K>& e) {
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    const int place = t.at(i);
    e[i] = load_words<T, K::kElements>(images[place] + t.offset + t.step(grid, i), bits[place] != 0 && t.has(i));
  }
}
template <typename T, typename K>
FASTMIX_DEVICE void load_pieces(const TileGrid& grid, const Tile<K>& t, const T* image,
                                const uint32_t (&bits)[K::kPlaces], Pieces<T, K>& e) {
  const T* images[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) images[i] = image;
  load_pieces<T, K>(grid, t, images, bits, e);
}

// sums += weight(place, element) * image on the elements in `bits`; nothing of the others leaks in, not even 0 * inf.
template <typename T, typename K, typename W, typename A = accumulator_t<T>>
FASTMIX_DEVICE void add_pieces(const TileGrid& grid, const Tile<K>& t, const T* image,
                               const uint32_t (&bits)[K::kPlaces], const W& weight,
                               A (&sums)[K::kPieces][K::kElements]) {
  constexpr int N = K::kElements;
  Pieces<T, K> e;
  load_pieces<T, K>(grid, t, image, bits, e);
  Words<T, N> mask[K::kPlaces];
#pragma unroll
  for (int i = 0; i < K::kPlaces; ++i) mask[i] = mask_of<T, N>(bits[i]);
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) {
    const Words<T, N> own = chosen(mask[t.at(i)], e[i], Words<T, N>{});  // zeros add nothing
#pragma unroll
    for (int l = 0; l < N; ++l) sums[i][l] += weight(t.at(i), l) * element(own, l);
  }
}

template <typename T, typename K, typename A = accumulator_t<T>>
FASTMIX_DEVICE void store_sums(const TileGrid& grid, const Tile<K>& t, T* image,
                               const A (&sums)[K::kPieces][K::kElements]) {
  Pieces<T, K> e;
#pragma unroll
  for (int i = 0; i < K::kPieces; ++i) e[i] = rounded<T, K::kElements>(sums[i]);
  store_pieces<T, K>(grid, t, image, e);
}

}  // namespace fastmix
