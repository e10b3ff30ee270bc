// What the registration hands to the kernels of isda_consistency.
#pragma once

#include <cstdint>

#include "cpu/lib/instruction_set.h"

namespace fastmix {

struct ConsistencyArgs {
  const void* logits;  // (N, J), classes contiguous
  int64_t row_stride;
  int64_t classes;
  const void* row_grad;  // (N) T, or null: uniform
  double uniform_grad;
  bool need_grad;
  double* row_loss;   // (N)
  void* grad_logits;  // (N, J)
};

struct ConsistencyKernels {
  // By the type of the logits. Samples rows[0..count) whose exponents are table (J, J); pull (J, J)
  // gathers the gradient of the table. scratch: 4 * J T.
  void (*rows[kFloatTypes])(const ConsistencyArgs&, const int64_t* rows, int64_t count, const void* table, void* pull,
                            void* scratch);
  // [float, double] of T. out (rows, rows) = packed (rows, k) b (k, rows), which is symmetric: on and below the
  // diagonal, the rest is not defined. panel: k * 64 T.
  void (*gram[2])(const void* packed, int64_t rows, int64_t k, const void* b, void* out, void* panel);
  // out (k, width) = [out +] matrix (k, k) b (k, width), matrix symmetric and 8 T longer than it is.
  void (*times[2])(const void* matrix, int64_t k, const void* b, int64_t width, void* out, bool add, void* panel);
  // table (J, J): half_strength * (q_jj + q_kk - 2 q_jk), 0 on the diagonal, from gram's q in place. norm: J T.
  void (*exponents[2])(void* q, int64_t classes, double half_strength, void* norm);
  // laplacian (J, J) = diag(row sums of s) - s, s = factor * (pull + pull^T).
  void (*laplacian[2])(const void* pull, int64_t classes, double factor, void* out);
};

FASTMIX_DECLARE_KERNELS(ConsistencyKernels, consistency)

}  // namespace fastmix
