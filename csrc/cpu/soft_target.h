// What the registration hands to the kernels of soft_target.
#pragma once

#include <cstdint>

#include "core/soft_target.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct SoftTargetArgs : SoftTargetRowData {
  int64_t classes;  // J
  double scale;     // of every gradient row: 1 / count for a mean
};

using SoftTargetRows = void (*)(const SoftTargetArgs&, int64_t begin, int64_t end);

struct SoftTargetKernels {
  SoftTargetRows rows[4];  // float, bfloat16, half, double
};

FASTMIX_DECLARE_KERNELS(SoftTargetKernels, soft_target)

}  // namespace fastmix
