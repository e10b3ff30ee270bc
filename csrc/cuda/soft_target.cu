// Registration of soft_target for CUDA.
#include <tuple>

#include "cuda/lib/binding.h"
#include "cuda/lib/finished.h"
#include "cuda/lib/scale_gradient.cuh"
#include "cuda/soft_target.cuh"
#include "torch/arguments.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

SoftTargetParams params(const Tensor& logits, const std::optional<Tensor>& sample_weight,
                        const std::optional<Tensor>& class_weight, const std::optional<Tensor>& row_grad,
                        double smoothing, int64_t loss, int64_t reduction) {
  SoftTargetParams a{};
  set_rows(a, logits, sample_weight, class_weight, row_grad, smoothing, loss);
  a.rows = rows_of_logits(logits);
  a.classes = to_int32("soft_target", "the number of classes", logits.size(1));
  a.reduction = static_cast<Reduction>(reduction);
  return a;
}

std::tuple<Tensor, Tensor> run(SoftTargetParams& a, const Tensor& logits, bool need_grad) {
  const OnDevice device("soft_target", logits);
  const ScalarType dtype = accumulation_dtype(logits);
  Tensor grad = allocate_gradient(logits, need_grad);
  a.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  Tensor loss = a.reduction == kNone ? allocate(logits, {a.rows}, dtype) : allocate(logits, {}, dtype);
  a.out = loss.mutable_data_ptr();
  std::optional<Tensor> block_loss, totals;
  if (a.reduction != kNone) {
    block_loss = allocate(logits, {a.rows}, ScalarType::Double);
    a.block_loss = static_cast<double*>(block_loss->mutable_data_ptr());
    a.finished = finished_blocks(device.stream());
  }
  if (soft_target_counts_first(a)) {
    totals = allocate(logits, {2}, ScalarType::Double);
    a.totals = static_cast<double*>(totals->mutable_data_ptr());
  }
  dispatch("soft_target", logits, [&](auto type) { soft_target<decltype(type)>(a, device.stream()); });
  device.check();
  return {loss, grad};
}

std::tuple<Tensor, Tensor> soft_target_cuda(
    const Tensor& logits_in, const Tensor& index_in, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& base_in, const std::optional<Tensor>& confidence_in,
    const std::optional<Tensor>& sample_weight_in, const std::optional<Tensor>& class_weight_in,
    const std::optional<Tensor>& row_grad_in, double smoothing, int64_t ignore_index, int64_t loss, int64_t weighting,
    int64_t reduction, bool need_grad) {
  check_soft_target(logits_in, index_in, weight_in, base_in, confidence_in, sample_weight_in, class_weight_in,
                    row_grad_in, loss, weighting, reduction);
  const Tensor logits = readable_logits(logits_in), index = as_contiguous(index_in);
  const auto weight = as_contiguous(weight_in), base = as_contiguous(base_in),
             confidence = as_contiguous(confidence_in), sample_weight = as_contiguous(sample_weight_in),
             class_weight = as_contiguous(class_weight_in), row_grad = as_contiguous(row_grad_in);
  SoftTargetParams a = params(logits, sample_weight, class_weight, row_grad, smoothing, loss, reduction);
  set_named_classes(a, index, weight, base, confidence, ignore_index, weighting);
  return run(a, logits, need_grad);
}

std::tuple<Tensor, Tensor> soft_target_dense_cuda(const Tensor& logits_in, const Tensor& target_in,
                                                  const std::optional<Tensor>& sample_weight_in,
                                                  const std::optional<Tensor>& class_weight_in,
                                                  const std::optional<Tensor>& row_grad_in, double smoothing,
                                                  int64_t loss, int64_t reduction, bool need_grad) {
  check_soft_target_dense(logits_in, target_in, sample_weight_in, class_weight_in, row_grad_in, loss, reduction);
  const Tensor logits = readable_logits(logits_in);
  const Tensor target = dense_target(target_in, logits);
  const auto sample_weight = as_contiguous(sample_weight_in), class_weight = as_contiguous(class_weight_in),
             row_grad = as_contiguous(row_grad_in);
  SoftTargetParams a = params(logits, sample_weight, class_weight, row_grad, smoothing, loss, reduction);
  a.target = target.const_data_ptr();
  return run(a, logits, need_grad);
}

void scale_gradient_cuda(Tensor grad, const Tensor& g_in) {
  check_scale_gradient(grad, g_in);
  const OnDevice device("scale_gradient_", grad);
  const Tensor g = as_contiguous(g_in);
  const int64_t rows = g.dim() == 0 ? 1 : grad.size(0);
  const ScaleParams a{grad.mutable_data_ptr(), g.const_data_ptr(), rows, rows > 0 ? grad.numel() / rows : 0,
                      g.dim() != 0};
  dispatch("scale_gradient_", grad, [&](auto type) { scale_gradient<decltype(type)>(a, device.stream()); });
  device.check();
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("soft_target", TORCH_BOX(&soft_target_cuda));
  m.impl("soft_target_dense", TORCH_BOX(&soft_target_dense_cuda));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_cuda));
}

}  // namespace fastmix
