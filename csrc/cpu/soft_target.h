// What the registration hands to the kernels of soft_target: rows of a sparse target (index is set), of a dense one
// (target is set), or with the loss kBce of either.
#pragma once

#include <cstdint>

#include "core/soft_target.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

// There is at least one class, and every named one exists or is ignored: the kernels do not check.
struct SoftTargetArgs : SoftTargetRowData {
  int64_t classes;  // J
  double scale;     // of every gradient row: 1 / count for a mean
  double class_weight_sum;
  double batch_confidence;  // mean confidence of the rows that count
};

// Rows [begin, end): the loss of each, with its sample weight and without `scale`, and where it is wanted its gradient.
// An ignored row has a loss and a gradient of 0.
using SoftTargetRows = void (*)(const SoftTargetArgs&, int64_t begin, int64_t end);

struct SoftTargetKernels {
  SoftTargetRows rows[kFloatTypes];    // of logits (N, J)
  SoftTargetRows pixels[kFloatTypes];  // of logits (N, J, P)
};

FASTMIX_DECLARE_KERNELS(SoftTargetKernels, soft_target)

}  // namespace fastmix
