// Registration of soft_target for CUDA.
#include <tuple>

#include "cuda/lib/binding.h"
#include "cuda/lib/scale_gradient.cuh"
#include "cuda/soft_target.cuh"

namespace fastmix {
namespace {

// Any stride between rows; classes must lie side by side.
Tensor with_dense_classes(const Tensor& logits) {
  return logits.size(1) <= 1 || logits.stride(1) == 1 ? logits : torch::stable::contiguous(logits);
}

SoftTargetParams common(const Tensor& logits, const std::optional<Tensor>& sample_weight, double smoothing,
                        int64_t loss, int64_t reduction) {
  SoftTargetParams a{};
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.rows = logits.size(0);
  a.classes = to_int32("soft_target", "the number of classes", logits.size(1));
  a.sample_weight = data_or_null<float>(sample_weight);
  a.smoothing = smoothing;
  a.loss = static_cast<SoftTargetLoss>(loss);
  a.reduction = static_cast<Reduction>(reduction);
  return a;
}

std::tuple<Tensor, Tensor> run(SoftTargetParams& a, const Tensor& logits, bool need_grad) {
  const OnDevice device("soft_target", logits);
  const ScalarType dtype = accumulation_dtype(logits);
  Tensor grad = need_grad ? empty_beside(logits, {a.rows, a.classes}, logits.scalar_type())
                          : empty_beside(logits, {0}, logits.scalar_type());
  a.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  Tensor loss = a.reduction == kNone ? empty_beside(logits, {a.rows}, dtype) : empty_beside(logits, {}, dtype);
  a.out = loss.mutable_data_ptr();
  std::optional<Tensor> row_loss, counted;
  if (a.reduction != kNone) {
    row_loss = empty_beside(logits, {a.rows}, ScalarType::Double);
    a.row_loss = static_cast<double*>(row_loss->mutable_data_ptr());
  }
  if (soft_target_counts_first(a)) {
    counted = empty_beside(logits, {1}, ScalarType::Long);
    a.counted = static_cast<int64_t*>(counted->mutable_data_ptr());
  }
  dispatch("soft_target", logits, [&](auto type) { soft_target<decltype(type)>(a, device.stream()); });
  device.check();
  return {loss, grad};
}

std::tuple<Tensor, Tensor> soft_target_cuda(const Tensor& logits_in, const Tensor& index_in,
                                            const std::optional<Tensor>& weight_in,
                                            const std::optional<Tensor>& base_in,
                                            const std::optional<Tensor>& sample_weight_in, double smoothing,
                                            int64_t ignore_index, int64_t loss, int64_t reduction, bool need_grad) {
  const Tensor logits = with_dense_classes(logits_in), index = dense(index_in);
  const auto weight = dense(weight_in), base = dense(base_in), sample_weight = dense(sample_weight_in);
  SoftTargetParams a = common(logits, sample_weight, smoothing, loss, reduction);
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.k = index.size(1);
  a.weight = data_or_null<float>(weight);
  a.base = data_or_null<float>(base);
  a.ignore_index = ignore_index;
  return run(a, logits, need_grad);
}

std::tuple<Tensor, Tensor> soft_target_dense_cuda(const Tensor& logits_in, const Tensor& target_in,
                                                  const std::optional<Tensor>& sample_weight_in, double smoothing,
                                                  int64_t loss, int64_t reduction, bool need_grad) {
  const Tensor logits = with_dense_classes(logits_in);
  const ScalarType dtype = accumulation_dtype(logits);
  const Tensor target = dense(target_in.scalar_type() == dtype ? target_in : torch::stable::to(target_in, dtype));
  const auto sample_weight = dense(sample_weight_in);
  SoftTargetParams a = common(logits, sample_weight, smoothing, loss, reduction);
  a.target = target.const_data_ptr();
  return run(a, logits, need_grad);
}

void scale_gradient_cuda(Tensor grad, const Tensor& g_in) {
  const OnDevice device("scale_gradient", grad);
  const Tensor g = dense(g_in);
  STD_TORCH_CHECK(grad.is_contiguous() && g.scalar_type() == accumulation_dtype(grad),
                  "scale_gradient: want a contiguous gradient and g in its accumulation type");
  const int64_t rows = g.dim() == 0 ? 1 : grad.size(0);
  const ScaleParams a{grad.mutable_data_ptr(), g.const_data_ptr(), rows, rows > 0 ? grad.numel() / rows : 0,
                      g.dim() != 0};
  dispatch("scale_gradient", grad, [&](auto type) { scale_gradient<decltype(type)>(a, device.stream()); });
  device.check();
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("soft_target", TORCH_BOX(&soft_target_cuda));
  m.impl("soft_target_dense", TORCH_BOX(&soft_target_dense_cuda));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_cuda));
}

}  // namespace fastmix
