// The enumerations and constants that C++ and Python share: fastmix/ops/enums.py has the same ones under the same
// names, and a test holds the two equal.
#pragma once

#include <cstdint>

namespace fastmix {

// What soft_target computes of a row: the cross-entropy, that less the target's entropy (the Kullback-Leibler
// divergence), or the binary cross-entropy of every class.
enum Loss : int64_t { kCrossEntropy = 0, kKl = 1, kBce = 2 };

// What becomes of the rows' losses: they are returned one by one, averaged over the rows that are not ignored, or added
// up.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// What soft_target multiplies a row's loss by, of the confidence p in its target: nothing; p; the mean of p over the
// rows that count; or p, and the target is the named classes in their proportions alone.
enum Weighting : int64_t { kUnweighted = 0, kBySample = 1, kByBatchMean = 2, kByWeight = 3 };

// The shape of ISDA's covariances of J classes and A features: (J, A, A), (J, A), (A, A), or none stored.
enum CovarianceKind : int64_t { kFull = 0, kDiag = 1, kShared = 2, kIdentity = 3 };

// Which build of the CPU kernels runs: the baseline of the architecture, x86-64-v3, or x86-64-v4.
enum InstructionSet : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The code of a dtype as an operator argument, and its place in a table of kernels.
enum FloatType : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kFloat64 = 3 };
constexpr int kFloatTypes = 4;

// The largest percentile that R-Mix draws. Source: R-Mix Sec. 3.
constexpr double kLastPercentile = 0.99;

}  // namespace fastmix
