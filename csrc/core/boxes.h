// Boxes on an image: clipping, and the spans of a row that show one image each. Box k covers boxes before it.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

// Rows [top, bottom) and columns [left, right), inside the image; empty if bottom <= top or right <= left.
struct Box {
  int32_t top, left, bottom, right;
};

// box is (top, left, height, width). 64 bits: top + height of two int32 may not fit 32.
FASTMIX_INLINE Box clip_box(const int32_t* box, int64_t height, int64_t width) {
  const int64_t top = box[0], left = box[1];
  return {static_cast<int32_t>(clamp_between(top, 0, height)), static_cast<int32_t>(clamp_between(left, 0, width)),
          static_cast<int32_t>(clamp_between(top + box[2], 0, height)),
          static_cast<int32_t>(clamp_between(left + box[3], 0, width))};
}

// Columns [begin, end) of a row that show image `owner`: 0 is the canvas, k the image seen through boxes[k - 1].
struct Span {
  int64_t begin, end, owner;
};

// The span that starts at column `begin` of row `row`. Its end is the right side of the box that shows there, or
// where a box above it begins.
FASTMIX_INLINE Span span_at(const Box* boxes, int64_t count, int64_t row, int64_t begin, int64_t width) {
  Span span{begin, width, 0};
  for (int64_t k = count; k > 0; --k) {
    const Box& box = boxes[k - 1];
    if (row < box.top || row >= box.bottom || begin >= box.right || box.left >= box.right) continue;
    if (begin >= box.left) {
      span.owner = k;
      if (box.right < span.end) span.end = box.right;
      break;
    }
    if (box.left < span.end) span.end = box.left;
  }
  return span;
}

// The first row below `row`, at most `end`, whose spans may differ: a box begins or ends there.
FASTMIX_INLINE int64_t band_end(const Box* boxes, int64_t count, int64_t row, int64_t end) {
  for (int64_t k = 0; k < count; ++k) {
    if (boxes[k].top > row && boxes[k].top < end) end = boxes[k].top;
    if (boxes[k].bottom > row && boxes[k].bottom < end) end = boxes[k].bottom;
  }
  return end;
}

}  // namespace fastmix
