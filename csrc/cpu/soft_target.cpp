// soft_target and soft_target_dense on the CPU: checks, reduction, registration. Soft Augmentation Eq. 12-15.

#include "cpu/soft_target.h"

#include <tuple>
#include <vector>

#include "cpu/lib/binding.h"
#include "torch/arguments.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

const char* public_name(int64_t loss) {
  return loss == kCrossEntropy ? "soft_cross_entropy" : loss == kKl ? "soft_kl" : "soft_bce";
}

// What the rows of a sparse target amount to, in one pass that also looks whether all classes exist.
struct Count {
  double divisor;     // of a mean: rows that are not ignored; of labels with class weights, the sum of these
  double confidence;  // mean over the rows that are not ignored
};

Count count_rows(const SoftTargetArgs& a, int64_t rows) {
  int64_t counted = 0;
  double weight = 0, confidence = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const NamedClasses named = named_classes(a, n);
    bool counts = false;
    for (int64_t i = 0; i < a.k; ++i) {
      if (!is_counted(named, i)) continue;
      counts = true;
      if (static_cast<uint64_t>(named.index[i]) >= static_cast<uint64_t>(a.classes)) {
        throw_index(public_name(a.loss), "target index", n, named.index[i], a.classes);
      }
    }
    if (!counts) continue;
    ++counted;
    // Of labels, which are the first slot; that of a mixture may be ignored, and then names no class.
    if (a.class_weight != nullptr && is_counted(named, 0)) weight += weight_of_class(named, 0);
    if (a.weighting != kByBatchMean) continue;
    if (a.confidence != nullptr) {
      confidence += static_cast<double>(a.confidence[n]);
    } else {
      for (int64_t i = 0; i < a.k; ++i) confidence += given_weight(named, i);
      if (a.base != nullptr) confidence += static_cast<double>(a.base[n]);
    }
  }
  const bool labels = a.weight == nullptr && a.confidence == nullptr && a.loss != kBce;
  const double rows_that_count = static_cast<double>(counted);
  return {labels && a.class_weight != nullptr ? weight : rows_that_count,
          counted > 0 ? confidence / rows_that_count : 0.0};
}

// Runs the rows and reduces them in row order, whatever the number of threads.
std::tuple<Tensor, Tensor> run(SoftTargetArgs& a, const Tensor& logits, double divisor, int64_t reduction,
                               bool need_grad) {
  const int64_t n = rows_of_logits(logits);
  const FloatType type = float_type(public_name(a.loss), logits);
  Tensor grad = allocate_gradient(logits, need_grad);
  a.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  if (a.loss == kBce) divisor *= static_cast<double>(a.classes);
  a.scale = reduction == kMean && divisor != 0 ? 1.0 / divisor : 1.0;
  a.class_weight_sum = static_cast<double>(a.classes);
  if (a.class_weight != nullptr) {
    a.class_weight_sum = 0;
    for (int64_t j = 0; j < a.classes; ++j) a.class_weight_sum += static_cast<double>(a.class_weight[j]);
  }
  std::vector<double> row_loss(static_cast<size_t>(n));
  a.row_loss = row_loss.data();
  const SoftTargetKernels& kernels = FASTMIX_KERNELS(soft_target);
  const SoftTargetRows rows = a.pixels > 0 ? kernels.pixels[type] : kernels.rows[type];
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
                                           const std::optional<Tensor>& confidence_in,
                                           const std::optional<Tensor>& sample_weight_in,
                                           const std::optional<Tensor>& class_weight_in,
                                           const std::optional<Tensor>& row_grad_in, double smoothing,
                                           int64_t ignore_index, int64_t loss, int64_t weighting, int64_t reduction,
                                           bool need_grad) {
  check_soft_target(logits_in, index_in, weight_in, base_in, confidence_in, sample_weight_in, class_weight_in,
                    row_grad_in, loss, weighting, reduction);
  const Tensor logits = readable_logits(logits_in), index = as_contiguous(index_in);
  const auto weight = as_contiguous(weight_in), base = as_contiguous(base_in),
             confidence = as_contiguous(confidence_in), sample_weight = as_contiguous(sample_weight_in),
             class_weight = as_contiguous(class_weight_in), row_grad = as_contiguous(row_grad_in);
  SoftTargetArgs a{};
  a.classes = logits.size(1);
  set_rows(a, logits, sample_weight, class_weight, row_grad, smoothing, loss);
  set_named_classes(a, index, weight, base, confidence, ignore_index, weighting);
  const Count count = count_rows(a, rows_of_logits(logits));
  a.batch_confidence = count.confidence;
  return run(a, logits, count.divisor, reduction, need_grad);
}

std::tuple<Tensor, Tensor> soft_target_dense_cpu(const Tensor& logits_in, const Tensor& target_in,
                                                 const std::optional<Tensor>& sample_weight_in,
                                                 const std::optional<Tensor>& class_weight_in,
                                                 const std::optional<Tensor>& row_grad_in, double smoothing,
                                                 int64_t loss, int64_t reduction, bool need_grad) {
  check_soft_target_dense(logits_in, target_in, sample_weight_in, class_weight_in, row_grad_in, loss, reduction);
  const Tensor logits = readable_logits(logits_in);
  const Tensor target = dense_target(target_in, logits);
  const auto sample_weight = as_contiguous(sample_weight_in), class_weight = as_contiguous(class_weight_in),
             row_grad = as_contiguous(row_grad_in);
  SoftTargetArgs a{};
  a.classes = logits.size(1);
  set_rows(a, logits, sample_weight, class_weight, row_grad, smoothing, loss);
  a.target = target.const_data_ptr();
  return run(a, logits, static_cast<double>(rows_of_logits(logits)), reduction, need_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("soft_target", TORCH_BOX(&soft_target_cpu));
  m.impl("soft_target_dense", TORCH_BOX(&soft_target_dense_cpu));
}

}  // namespace fastmix
