// What a mixer makes of random bits for one image: shares, boxes and the weights of what can be seen. float64, in the
// order of fastmix/reference/plan.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/common.h"

namespace fastmix {

// In [0, 1), a multiple of 2^-53: 1 - uniform(bits) is exact and above 0.
FASTMIX_INLINE double uniform(int64_t bits) { return static_cast<double>(bits >> 10) * 0x1p-53; }

// One of 0 .. count - 1; 0 where there is none to choose.
FASTMIX_INLINE int64_t one_of(int64_t bits, int64_t count) {
  return static_cast<int64_t>(std::floor(uniform(bits) * static_cast<double>(count)));
}

// weight[k] in the proportions of Dirichlet(alpha, ..., alpha): Gamma(a) is Gamma(a + 1) U^(1/a), the powers relative
// to the largest. gamma has k entries side by side, bits `stride` apart. With alpha 0 gamma holds the shares.
template <typename T>
FASTMIX_INLINE void plan_weights(const T* gamma, const int64_t* bits, int64_t stride, int64_t k, double alpha,
                                 double* weight) {
  double largest = -INFINITY;
  for (int64_t j = 0; j < k && alpha != 0; ++j) {
    weight[j] = std::log(1 - uniform(bits[j * stride])) / alpha;
    if (weight[j] > largest) largest = weight[j];
  }
  for (int64_t j = 0; j < k; ++j) {
    const double g = gamma[j];
    weight[j] = alpha == 0 ? g : weight[j] == largest ? g : g * std::exp(weight[j] - largest);
  }
}

// Pixels as a whole number; 0 where shares that are no numbers give none.
FASTMIX_INLINE int64_t whole_pixels(double v) { return v > -0x1p31 && v < 0x1p31 ? static_cast<int64_t>(v) : 0; }

// One axis of a box: start and extent in pixels.
struct Side {
  int64_t start, extent;
};

// Centred on a uniform pixel of [0, length) and clipped.
FASTMIX_INLINE Side centred_side(int64_t side, int64_t length, int64_t bits) {
  const int64_t start = one_of(bits, length) - side / 2;
  const int64_t low = clamp_between(start, 0, length);
  return {low, clamp_between(start + side, 0, length) - low};
}

// `extent` pixels at a uniform position inside `outer`.
FASTMIX_INLINE Side nested_side(Side outer, int64_t extent, int64_t bits) {
  return {outer.start + one_of(bits, outer.extent - extent + 1), extent};
}

// `extent` pixels around `centre`, moved as little as needed to lie inside `outer`.
FASTMIX_INLINE Side peak_side(Side outer, int64_t extent, int64_t centre) {
  centre = clamp_between(centre, outer.start, outer.start + outer.extent);
  const int64_t start = clamp_between(centre - extent / 2, outer.start, outer.start + outer.extent - extent);
  return {start, extent};
}

// The size of a normal number of deviation spread / sqrt(2), redrawn while it is >= side, truncated to a whole number:
// the largest j below side with erf(j / spread) <= target, target = u erf(side / spread). By bisection on j, so that no
// inverse of erf is needed.
FASTMIX_INLINE int64_t truncated_normal(double target, double spread, int64_t side) {
  int64_t low = 0, high = side > 1 ? side : 1;
  while (spread > 0 && high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (std::erf(static_cast<double>(middle) / spread) <= target) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// A share of the image as a whole multiple of 2^-24, of which float32 holds all up to 1: differences are exact.
// std::nearbyint rounds half to even, as torch.round does.
FASTMIX_INLINE float area_units(int64_t pixels, int64_t height, int64_t width) {
  const int64_t all = height * width > 0 ? height * width : 1;
  return static_cast<float>(std::nearbyint(static_cast<double>(pixels) * (0x1p24 / static_cast<double>(all))));
}

}  // namespace fastmix
