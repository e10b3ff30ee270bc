// Walks over the rows of a batch of images, for *.simd.cpp.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

FASTMIX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// run(image, row, stop) for the items [begin, end), n * height + row: at most `most` rows of one image at a time.
template <typename F>
FASTMIX_INLINE void for_each_rows(int64_t begin, int64_t end, int64_t height, int64_t most, const F& run) {
  while (begin < end) {
    const int64_t n = begin / height, row = begin % height;
    const int64_t stop = row + smaller(smaller(height - row, most), end - begin);
    run(n, row, stop);
    begin += stop - row;
  }
}

}  // namespace fastmix
