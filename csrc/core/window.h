// Where the pixels of a resized window lie in the image it was cut from.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/inline.h"

namespace fastmix {

// Pixel `before` has weight 1 - weight, the next one weight; both may lie outside the image, at most by two.
struct Position {
  int64_t before;
  double weight;
};

// Pixel i of `out` along an axis of `size` pixels, of the window of `length` pixels that begins at `start`: finite.
FASTMIX_INLINE Position resize_position(double start, double length, int64_t out, int64_t size, int64_t i) {
  const double last = length > 1 ? length - 1 : 0;
  double at = (static_cast<double>(i) + 0.5) * (length / static_cast<double>(out)) - 0.5;
  at = at < 0 ? 0 : at > last ? last : at;
  at += start;
  at = at < -2 ? -2 : at > static_cast<double>(size + 1) ? static_cast<double>(size + 1) : at;
  const double before = std::floor(at);
  return {static_cast<int64_t>(before), at - before};
}

}  // namespace fastmix
