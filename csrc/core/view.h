// How an image of bytes is seen (fastmix.View): which source pixel an output pixel shows, and the normalisation.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastmix {

// Output (i, j) is pixel (i + down, first + step * j) of the source, inside rows and columns [0, side) alone.
struct ViewTransform {
  int32_t down, first, step;
};

// flip, shift: of this image, or null. A shift beyond the sides is clamped: everything is outside either way.
FASTMIX_INLINE ViewTransform view_transform(const uint8_t* flip, const int64_t* shift, int64_t height, int64_t width) {
  const int32_t down = shift == nullptr ? 0 : static_cast<int32_t>(clamp_between(shift[0], -height, height));
  const int32_t right = shift == nullptr ? 0 : static_cast<int32_t>(clamp_between(shift[1], -width, width));
  const bool is_flipped = flip != nullptr && *flip != 0;
  return {down, is_flipped ? static_cast<int32_t>(width) - 1 - right : right, is_flipped ? -1 : 1};
}

// (byte / 255 - mean) / std = scale * byte + offset
template <typename A>
FASTMIX_INLINE A view_scale(float std) {
  return A(1) / (A(255) * static_cast<A>(std));
}
template <typename A>
FASTMIX_INLINE A view_offset(float mean, float std) {
  return -static_cast<A>(mean) / static_cast<A>(std);
}

}  // namespace fastmix
