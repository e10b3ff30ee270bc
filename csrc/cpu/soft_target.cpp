// soft_target and soft_target_dense on the CPU: checks, reduction, registration. Soft Augmentation Eq. 12-15.

#include "cpu/soft_target.h"

#include <tuple>
#include <vector>

#include "cpu/lib/binding.h"
#include "torch/arguments.h"

namespace fastmix {
namespace {

const char* public_name(int64_t loss) {
  return loss == kCrossEntropy ? "soft_cross_entropy" : loss == kKl ? "soft_kl" : "soft_bce";
}

// Runs the rows and reduces them in row order, whatever the number of threads.
std::tuple<Tensor, Tensor> run(SoftTargetArgs& a, const Tensor& logits, int64_t counted, int64_t reduction,
                               bool need_grad) {
  const int64_t n = logits.size(0);
  const FloatType type = float_type(public_name(a.loss), logits);
  Tensor grad =
      need_grad ? allocate(logits, {n, a.classes}, logits.scalar_type()) : allocate(logits, {0}, logits.scalar_type());
  a.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  const double divisor =
      a.loss == kBce ? static_cast<double>(n) * static_cast<double>(a.classes) : static_cast<double>(counted);
  a.scale = reduction == kMean && divisor > 0 ? 1.0 / divisor : 1.0;
  std::vector<double> row_loss(static_cast<size_t>(n));
  a.row_loss = row_loss.data();
  const SoftTargetRows rows = FASTMIX_KERNELS(soft_target).rows[type];
  if (a.classes > 0) {
    parallel_items(n, a.classes, [&](int64_t begin, int64_t end) { rows(a, begin, end); });
  }

  const ScalarType dtype = accumulation_dtype(logits);
  if (reduction == kNone) return {tensor_of(row_loss.data(), logits, {n}, dtype), grad};
  double sum = 0;
  for (const double v : row_loss) sum += v;
  sum *= a.scale;
  return {tensor_of(&sum, logits, {}, dtype), grad};
}

std::tuple<Tensor, Tensor> soft_target_cpu(const Tensor& logits_in, const Tensor& index_in,
                                           const std::optional<Tensor>& weight_in, const std::optional<Tensor>& base_in,
                                           const std::optional<Tensor>& sample_weight_in, double smoothing,
                                           int64_t ignore_index, int64_t loss, int64_t reduction, bool need_grad) {
  const Tensor logits = as_contiguous_rows(logits_in), index = as_contiguous(index_in);
  const auto weight = as_contiguous(weight_in), base = as_contiguous(base_in),
             sample_weight = as_contiguous(sample_weight_in);
  SoftTargetArgs a{};
  a.classes = logits.size(1);
  set_rows(a, logits, sample_weight, smoothing, loss);
  set_named_classes(a, index, weight, base, ignore_index);
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
  const Tensor logits = as_contiguous_rows(logits_in);
  const Tensor target = dense_target(target_in, logits);
  const auto sample_weight = as_contiguous(sample_weight_in);
  SoftTargetArgs a{};
  a.classes = logits.size(1);
  set_rows(a, logits, sample_weight, smoothing, loss);
  a.target = target.const_data_ptr();
  return run(a, logits, logits.size(0), reduction, need_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("soft_target", TORCH_BOX(&soft_target_cpu));
  m.impl("soft_target_dense", TORCH_BOX(&soft_target_dense_cpu));
}

}  // namespace fastmix
