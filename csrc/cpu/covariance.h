// What the registration hands to the kernels of covariance_update_.
#pragma once

#include <cstdint>

#include "core/common.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

// Rows gathered at a time; also a row of scratch more than that, for the difference of the means.
constexpr int64_t kRowBlock = 256;
// Scratch rows are padded to a multiple of this with zeros: whole tiles of any instruction set and type.
constexpr int64_t kRowPad = 48;

struct FeatureRows {
  const void* features;  // (N, A, P) with any strides, in elements
  int64_t stride_n, stride_a, stride_p;
  int64_t pixels;            // P
  int64_t features_per_row;  // A
  int64_t ld;                // of the scratch, a multiple of kRowPad
};

struct CovarianceKernels {
  // [state: float, double][storage]: rows n*P + p -> scratch (count, ld).
  void (*gather[2][kFloatTypes])(const FeatureRows&, const int64_t* rows, int64_t count, void* scratch);
  // Sum of every column.
  void (*column_sums[2])(const void* scratch, int64_t ld, int64_t count, double* sums);
  // (x - mean) * factor in place.
  void (*centre[2])(void* scratch, int64_t ld, int64_t count, const void* mean, double factor);
  // cov (A, A) rows [begin, end), begin a multiple of 8: alpha * cov + sum over the scratch rows of their outer
  // product.
  void (*rank_update[2])(void* cov, int64_t width, const void* scratch, int64_t ld, int64_t count, double alpha,
                         int64_t begin, int64_t end);
  // cov (A): alpha * cov + column sums of squares.
  void (*square_update[2])(void* cov, int64_t width, const void* scratch, int64_t ld, int64_t count, double alpha);
};

FASTMIX_DECLARE_KERNELS(CovarianceKernels, covariance)

}  // namespace fastmix
