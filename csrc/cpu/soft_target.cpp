// soft_target and soft_target_dense on the CPU: checks, reduction, registration. Soft Augmentation Eq. 12-15.

#include "cpu/soft_target.h"

#include <tuple>
#include <vector>

#include "torch/tensor.h"

namespace fastmix {
namespace {

const char* public_name(int64_t loss) {
  return loss == kCrossEntropy ? "soft_cross_entropy" : loss == kKl ? "soft_kl" : "soft_bce";
}

// Runs the rows and reduces them in row order, whatever the number of threads.
std::tuple<Tensor, Tensor> run(SoftTargetArgs& a, const Tensor& logits, int64_t counted, int64_t reduction,
                               bool need_grad) {
  const int64_t n = logits.size(0);
  const bool is_double = logits.scalar_type() == ScalarType::Double;
  const int slot = dtype_slot(public_name(a.loss), logits);
  Tensor grad = need_grad ? empty_cpu({n, a.classes}, logits.scalar_type()) : empty_cpu({0}, logits.scalar_type());
  a.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  const double divisor =
      a.loss == kBce ? static_cast<double>(n) * static_cast<double>(a.classes) : static_cast<double>(counted);
  a.scale = reduction == kMean && divisor > 0 ? 1.0 / divisor : 1.0;
  std::vector<double> row_loss(static_cast<size_t>(n));
  a.row_loss = row_loss.data();
  const SoftTargetRows rows = FASTMIX_KERNELS(soft_target).rows[slot];
  if (a.classes > 0) {
    parallel_items(n, a.classes, [&](int64_t begin, int64_t end) { rows(a, begin, end); });
  }

  const ScalarType dtype = is_double ? ScalarType::Double : ScalarType::Float;
  Tensor loss = reduction == kNone ? empty_cpu({n}, dtype) : empty_cpu({}, dtype);
  void* out = loss.mutable_data_ptr();
  auto put = [&](int64_t i, double v) {
    if (is_double) {
      static_cast<double*>(out)[i] = v;
    } else {
      static_cast<float*>(out)[i] = static_cast<float>(v);
    }
  };
  if (reduction == kNone) {
    for (int64_t i = 0; i < n; ++i) put(i, row_loss[static_cast<size_t>(i)]);
  } else {
    double sum = 0;
    for (const double v : row_loss) sum += v;
    put(0, sum * a.scale);
  }
  return {loss, grad};
}

SoftTargetArgs common(const Tensor& logits, const std::optional<Tensor>& sample_weight, double smoothing,
                      int64_t loss) {
  SoftTargetArgs a{};
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.classes = logits.size(1);
  a.sample_weight = data_or_null<float>(sample_weight);
  a.smoothing = smoothing;
  a.loss = static_cast<SoftTargetLoss>(loss);
  return a;
}

// Any stride between rows; classes must lie side by side.
Tensor with_dense_classes(const Tensor& logits) {
  return logits.size(1) <= 1 || logits.stride(1) == 1 ? logits : torch::stable::contiguous(logits);
}

std::tuple<Tensor, Tensor> soft_target_cpu(const Tensor& logits_in, const Tensor& index_in,
                                           const std::optional<Tensor>& weight_in, const std::optional<Tensor>& base_in,
                                           const std::optional<Tensor>& sample_weight_in, double smoothing,
                                           int64_t ignore_index, int64_t loss, int64_t reduction, bool need_grad) {
  const Tensor logits = with_dense_classes(logits_in), index = dense(index_in);
  const auto weight = dense(weight_in), base = dense(base_in), sample_weight = dense(sample_weight_in);
  SoftTargetArgs a = common(logits, sample_weight, smoothing, loss);
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.k = index.size(1);
  a.weight = data_or_null<float>(weight);
  a.base = data_or_null<float>(base);
  a.ignore_index = ignore_index;
  int64_t counted = 0;
  for (int64_t n = 0; n < logits.size(0); ++n) {
    const int64_t* row = a.index + n * a.k;
    if (row[0] == ignore_index) continue;
    ++counted;
    for (int64_t k = 0; k < a.k; ++k) {
      if (static_cast<uint64_t>(row[k]) >= static_cast<uint64_t>(a.classes)) {
        throw_index(public_name(loss), "target index", n, row[k], a.classes);
      }
    }
  }
  return run(a, logits, counted, reduction, need_grad);
}

std::tuple<Tensor, Tensor> soft_target_dense_cpu(const Tensor& logits_in, const Tensor& target_in,
                                                 const std::optional<Tensor>& sample_weight_in, double smoothing,
                                                 int64_t loss, int64_t reduction, bool need_grad) {
  const Tensor logits = with_dense_classes(logits_in);
  const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor target = dense(target_in.scalar_type() == dtype ? target_in : torch::stable::to(target_in, dtype));
  const auto sample_weight = dense(sample_weight_in);
  SoftTargetArgs a = common(logits, sample_weight, smoothing, loss);
  a.target = target.const_data_ptr();
  return run(a, logits, logits.size(0), reduction, need_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("soft_target", TORCH_BOX(&soft_target_cpu));
  m.impl("soft_target_dense", TORCH_BOX(&soft_target_dense_cpu));
}

}  // namespace fastmix
