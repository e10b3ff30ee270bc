// Where the pixels of a resized window lie in the image it was cut from (resized_crop).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/common.h"

namespace fastmix {

// Pixel `before` has weight 1 - weight, the next one weight; both may lie outside the image, at most by two.
struct SamplePosition {
  int64_t before;
  double weight;
};

// One axis of a window: `length` pixels from `start`, finite, become `out` pixels; the image has `size`.
struct ResizeAxis {
  double start, last, scale, end;

  FASTMIX_METHOD ResizeAxis(double start, double length, int64_t out, int64_t size)
      : start(start),
        last(length > 1 ? length - 1 : 0),
        scale(length / static_cast<double>(out)),
        end(static_cast<double>(size + 1)) {}

  // Of pixel i of the output.
  FASTMIX_METHOD SamplePosition position(int64_t i) const {
    double at = (static_cast<double>(i) + 0.5) * scale - 0.5;
    at = at < 0 ? 0 : at > last ? last : at;
    at += start;
    at = at < -2 ? -2 : at > end ? end : at;
    const double before = std::floor(at);
    return {static_cast<int64_t>(before), at - before};
  }
};

}  // namespace fastmix
