// Random numbers by their place, as fastmix/reference/counter.py defines them: Philox4x32-10 (Salmon et al. 2011) and
// gamma variates by Marsaglia and Tsang (2000), of a seed and a place, in float64.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/common.h"

namespace fastmix {

struct CounterBlock {
  uint32_t word[4];
};

FASTMIX_INLINE CounterBlock philox(uint64_t seed, uint64_t counter, uint32_t stream) {
  uint32_t a = static_cast<uint32_t>(counter), b = static_cast<uint32_t>(counter >> 32), c = stream, d = 0;
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{a} * 0xD2511F53U, right = uint64_t{c} * 0xCD9E8D57U;
    a = static_cast<uint32_t>(right >> 32) ^ b ^ low;
    b = static_cast<uint32_t>(right);
    c = static_cast<uint32_t>(left >> 32) ^ d ^ high;
    d = static_cast<uint32_t>(left);
    low += 0x9E3779B9U;
    high += 0xBB67AE85U;
  }
  return {{a, b, c, d}};
}

// Numbers 2 block and 2 block + 1 of a seed's stream: in [0, 2^63).
FASTMIX_INLINE void random_pair(uint64_t seed, int64_t block, int64_t* pair) {
  const CounterBlock drawn = philox(seed, static_cast<uint64_t>(block), 0);
  for (int half = 0; half < 2; ++half) {
    const uint64_t high = drawn.word[2 * half + 1], low = drawn.word[2 * half];
    pair[half] = static_cast<int64_t>((high << 32 | low) >> 1);
  }
}

// sin(a) for |a| <= pi / 2: the Taylor series, off by less than 2^-51.
FASTMIX_INLINE double sine(double a) {
  constexpr double kInverse[] = {1.0 / 20 / 21, 1.0 / 18 / 19, 1.0 / 16 / 17, 1.0 / 14 / 15, 1.0 / 12 / 13,
                                 1.0 / 10 / 11, 1.0 / 8 / 9,   1.0 / 6 / 7,   1.0 / 4 / 5,   1.0 / 2 / 3};
  const double square = a * a;
  double sum = 1;
  for (const double inverse : kInverse) sum = 1 - square * inverse * sum;
  return a * sum;
}

// A variate of Gamma(alpha + 1); entry: its place among those of the seed.
FASTMIX_INLINE double random_gamma(uint64_t seed, int64_t entry, double alpha) {
  const double d = alpha + 2.0 / 3.0, slope = 1 / std::sqrt(9 * d);
  for (uint32_t attempt = 0; attempt < 8; ++attempt) {
    const CounterBlock drawn = philox(seed, static_cast<uint64_t>(entry), 1 + attempt);
    const double radius = std::sqrt(-2 * std::log((drawn.word[0] + 0.5) * 0x1p-32));
    const double x = radius * sine(3.141592653589793 * (drawn.word[1] * 0x1p-32 - 0.5));
    const double root = 1 + slope * x, v = root * root * root, u = (drawn.word[2] + 0.5) * 0x1p-32;
    if (v <= 0) continue;
    // The squeeze accepts what the inequality below accepts, without its logarithms.
    if (u < 1 - 0.0331 * (x * x) * (x * x)) return d * v;
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
  return d;
}

}  // namespace fastmix
