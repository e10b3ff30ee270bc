// What the registration hands to the kernels of soft_target.
#pragma once

#include <cstdint>

#include "core/soft_target.h"
#include "cpu/isa.h"

namespace fastmix {

struct SoftTargetArgs {
  const void* logits;          // (N, J), classes contiguous
  int64_t row_stride;          // elements between rows of logits
  int64_t classes;             // J
  const int64_t* index;        // (N, K), or null: dense target
  int64_t k;                   // K
  const float* weight;         // (N, K) or null: 1
  const float* base;           // (N) or null: 0
  const void* target;          // (N, J) in the accumulation type, when index is null
  const float* sample_weight;  // (N) or null: 1
  double smoothing;            // eps
  int64_t ignore_index;
  SoftTargetLoss loss;
  double scale;      // of every gradient row: 1 / count for a mean
  double* row_loss;  // (N)
  void* grad;        // (N, J) contiguous, or null: not wanted
};

using SoftTargetRows = void (*)(const SoftTargetArgs&, int64_t begin, int64_t end);

struct SoftTargetKernels {
  SoftTargetRows rows[4];  // float, bfloat16, half, double
};

FASTMIX_DECLARE_KERNELS(SoftTargetKernels, soft_target)

}  // namespace fastmix
