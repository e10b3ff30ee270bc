// The enumerations and constants that C++ and Python share: fastmix/ops/enums.py has the same ones under the same
// names, and a test holds the two equal. What each means is said there.
#pragma once

#include <cstdint>

namespace fastmix {

enum Loss : int64_t { kCrossEntropy = 0, kKl = 1, kBce = 2 };
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };
enum CovarianceKind : int64_t { kFull = 0, kDiag = 1, kShared = 2, kIdentity = 3 };
enum InstructionSet : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };
// The code of a dtype is also its place in a table of kernels.
enum FloatType : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

constexpr double kLastPercentile = 0.99;

}  // namespace fastmix
