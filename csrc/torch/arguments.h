// Arguments of the kernels that the CPU and the CUDA library take alike, from tensors, which must outlive them.
#pragma once

#include "core/patch_mix.h"
#include "core/soft_target.h"
#include "torch/tensor.h"

namespace fastmix {

// ---------------------------------------------------------------- patch_mix

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
  const Dims s = x.sizes();
  return allocate_images(x, {s[0], s[1], s[2], s[3]}, channels_last, kScalarTypes[dtype]);
}

}  // namespace fastmix
