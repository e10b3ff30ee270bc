// Arguments of the kernels that the CPU and the CUDA library take alike, from tensors, which must outlive them.
#pragma once

#include "core/patch_mix.h"
#include "core/soft_target.h"
#include "torch/tensor.h"

namespace fastmix {

// ---------------------------------------------------------------- patch_mix

// The arguments of patch_mix and its backward against each other.
inline void check_cells(const Tensor& x, const Tensor& partner, const Tensor& mask, const Tensor& lam) {
  STD_TORCH_CHECK(x.dim() == 4 && mask.dim() == 3, "patch_mix: want x (N, C, H, W) and mask (N, h, w)");
  const int64_t n = x.size(0), h = mask.size(1), w = mask.size(2);
  check_argument("partner", partner, x, {n}, ScalarType::Long);
  check_argument("mask", mask, x, {n, h, w}, ScalarType::Bool);
  STD_TORCH_CHECK(h > 0 && w > 0 && x.size(2) % h == 0 && x.size(3) % w == 0, "patch_mix: mask does not divide x");
  if (lam.dim() == 0) {
    check_argument("lam", lam, x, {}, ScalarType::Float);
  } else {
    check_argument("lam", lam, x, {n}, ScalarType::Float);
  }
}

// mask (N, h, w) and lam are contiguous.
template <typename Int>
void set_cells(CellMix<Int>& a, const Tensor& mask, const Tensor& lam) {
  a.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  a.h = static_cast<Int>(mask.size(1));
  a.w = static_cast<Int>(mask.size(2));
  a.lam = static_cast<const float*>(lam.const_data_ptr());
  a.lam_step = lam.dim() == 0 ? 0 : 1;
}

// ---------------------------------------------------------------- soft_target

// logits: (N, J) with classes side by side, or contiguous (N, J, P).
inline void set_rows(SoftTargetRowData& a, const Tensor& logits, const std::optional<Tensor>& sample_weight,
                     const std::optional<Tensor>& class_weight, const std::optional<Tensor>& row_grad, double smoothing,
                     int64_t loss) {
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.pixels = logits.dim() == 3 ? logits.size(2) : 0;
  a.sample_weight = data_or_null<float>(sample_weight);
  a.class_weight = data_or_null<float>(class_weight);
  if (row_grad.has_value()) {
    STD_TORCH_CHECK(row_grad->scalar_type() == accumulation_dtype(logits),
                    "soft_target: want row_grad in the accumulation type of the logits");
    a.row_grad = row_grad->const_data_ptr();
    a.row_grad_step = row_grad->dim() == 0 ? 0 : 1;
  }
  a.smoothing = smoothing;
  a.loss = static_cast<Loss>(loss);
}

// Rows of logits: N, or N * P.
inline int64_t rows_of_logits(const Tensor& logits) {
  return logits.dim() == 3 ? logits.size(0) * logits.size(2) : logits.size(0);
}

// Logits as the kernels read them.
inline Tensor readable_logits(const Tensor& logits) {
  return logits.dim() == 3 ? as_contiguous(logits) : as_contiguous_rows(logits);
}

// What soft_target returns as the gradient: like logits, contiguous, or empty.
inline Tensor allocate_gradient(const Tensor& logits, bool wanted) {
  if (!wanted) return allocate(logits, {0}, logits.scalar_type());
  if (logits.dim() == 3) {
    return allocate(logits, {logits.size(0), logits.size(1), logits.size(2)}, logits.scalar_type());
  }
  return allocate(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
}

// The arguments of soft_target against each other.
inline void check_named_classes(const Tensor& logits, const Tensor& index, const std::optional<Tensor>& weight,
                                const std::optional<Tensor>& base, const std::optional<Tensor>& confidence,
                                const std::optional<Tensor>& sample_weight, const std::optional<Tensor>& class_weight) {
  STD_TORCH_CHECK(logits.dim() == 2 || logits.dim() == 3, "logits has ", logits.dim(), " dimensions, want 2 or 3");
  STD_TORCH_CHECK(logits.size(1) >= 1, "logits has no class");
  STD_TORCH_CHECK(index.dim() == 2 && index.size(1) >= 1, "index is no (N, K) with K >= 1");
  const int64_t rows = rows_of_logits(logits), k = index.size(1);
  check_argument("index", index, logits, {rows, k}, ScalarType::Long);
  check_argument("weight", weight, logits, {rows, k}, ScalarType::Float);
  check_argument("base", base, logits, {rows}, ScalarType::Float);
  check_argument("confidence", confidence, logits, {rows}, ScalarType::Float);
  check_argument("sample_weight", sample_weight, logits, {rows}, ScalarType::Float);
  check_argument("class_weight", class_weight, logits, {logits.size(1)}, ScalarType::Float);
}

inline void set_named_classes(SoftTargetRowData& a, const Tensor& index, const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& base, const std::optional<Tensor>& confidence,
                              int64_t ignore_index, int64_t weighting) {
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.k = index.size(1);
  a.weight = data_or_null<float>(weight);
  a.base = data_or_null<float>(base);
  a.confidence = data_or_null<float>(confidence);
  a.ignore_index = ignore_index;
  a.weighting = static_cast<Weighting>(weighting);
}

// A dense target as the kernels read it, in the accumulation type of the logits.
inline Tensor dense_target(const Tensor& target, const Tensor& logits) {
  const ScalarType dtype = accumulation_dtype(logits);
  return as_contiguous(target.scalar_type() == dtype ? target : torch::stable::to(target, dtype));
}

// ---------------------------------------------------------------- view

// The output of a view of x; dtype: a FloatType.
inline Tensor allocate_view(const Tensor& x, int64_t dtype, bool channels_last) {
  STD_TORCH_CHECK(dtype >= 0 && dtype < kFloatTypes, "view: dtype is ", dtype, ", want 0 to ", kFloatTypes - 1);
  const Dims s = x.sizes();
  return allocate_images(x, {s[0], s[1], s[2], s[3]}, channels_last, kScalarTypes[dtype]);
}

}  // namespace fastmix
