// The forms of a class covariance, as fastmix.ops passes them.
#pragma once

#include <cstdint>

namespace fastmix {

enum CovarianceKind : int64_t { kFull = 0, kDiag = 1, kShared = 2, kIdentity = 3 };

}  // namespace fastmix
