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

// logits: classes side by side.
inline void set_rows(SoftTargetRowData& a, const Tensor& logits, const std::optional<Tensor>& sample_weight,
                     double smoothing, int64_t loss) {
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.sample_weight = data_or_null<float>(sample_weight);
  a.smoothing = smoothing;
  a.loss = static_cast<Loss>(loss);
}

inline void set_named_classes(SoftTargetRowData& a, const Tensor& index, const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& base, int64_t ignore_index) {
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.k = index.size(1);
  a.weight = data_or_null<float>(weight);
  a.base = data_or_null<float>(base);
  a.ignore_index = ignore_index;
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
