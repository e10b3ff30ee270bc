// isda_consistency on the CPU: pseudo labels, a J x J table of exponents for each, loss and gradient. ISDA Eq. 15.

#include "cpu/isda_consistency.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/float_types.h"
#include "cpu/isda.h"
#include "cpu/lib/grouping.h"
#include "cpu/lib/memory.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

template <typename T>
class Consistency {
 public:
  // grad_weight is null without a gradient, and also where it is empty: need_grad decides.
  Consistency(const ConsistencyArgs& a, FloatType storage, const T* weight, const T* cov, int64_t width,
              CovarianceKind kind, double strength, T* grad_weight)
      : a_(a),
        storage_(storage),
        k_(FASTMIX_KERNELS(consistency)),
        products_(FASTMIX_KERNELS(isda)),
        cov_(cov),
        j_(a.classes),
        width_(width),
        kind_(kind),
        strength_(strength),
        grad_weight_(grad_weight),
        centred_(j_ * width),
        turned_(j_ * width),
        packed_(padded_rows(j_) * width) {
    // Only differences of weights matter: without their mean q_jj + q_kk - 2 q_jk cancels less.
    for (int64_t x = 0; x < width; ++x) {
      double mean = 0;
      for (int64_t j = 0; j < j_; ++j) mean += static_cast<double>(weight[j * width + x]);
      mean /= static_cast<double>(j_);
      for (int64_t j = 0; j < j_; ++j) {
        const T v = static_cast<T>(static_cast<double>(weight[j * width + x]) - mean);
        centred_.data[j * width + x] = v;
        turned_.data[x * j_ + j] = v;
      }
    }
    products_.pack[kType](centred_.data, j_, width, packed_.data);
  }

  void run(const ClassRows& pseudo) {
    const Groups rows = pseudo.by_class();
    if (kind_ == kFull || kind_ == kDiag) {
      per_class(pseudo.present, rows);
    } else {
      one_table(rows);
    }
  }

 private:
  static constexpr int kType = sizeof(T) == 8;

  struct Workspace {
    Workspace(int64_t j, int64_t width)
        : product(j * width),
          packed(padded_rows(j) * width),
          panel((width > j ? width : j) * 64),
          table(j * j),
          pull(j * j),
          laplacian(j * j + 8),
          rows(4 * j) {}
    AlignedArray<T> product, packed, panel, table, pull, laplacian, rows;
  };

  // product = centred weight * Sigma, table = exponents.
  void prepare(const T* sigma, Workspace& s) const {
    if (kind_ == kDiag || kind_ == kIdentity) {
      for (int64_t j = 0; j < j_; ++j) {
        for (int64_t x = 0; x < width_; ++x) {
          s.product.data[j * width_ + x] = centred_.data[j * width_ + x] * (kind_ == kDiag ? sigma[x] : T(1));
        }
      }
    } else {
      products_.multiply[kType](packed_.data, j_, width_, sigma, width_, s.product.data, s.panel.data);
    }
    products_.pack[kType](s.product.data, j_, width_, s.packed.data);
    k_.gram[kType](s.packed.data, j_, width_, turned_.data, s.table.data, s.panel.data);
    k_.exponents[kType](s.table.data, j_, 0.5 * strength_, s.rows.data);
  }

  void add_weight_gradient(Workspace& s, T* grad, bool add) const {
    k_.laplacian[kType](s.pull.data, j_, strength_, s.laplacian.data);
    k_.times[kType](s.laplacian.data, j_, s.product.data, width_, grad, add, s.panel.data);
  }

  // Groups of classes with a gradient of their own, added up in order: the result does not depend on the threads.
  void per_class(const std::vector<int64_t>& classes, const Groups& pseudo) {
    const int64_t present = static_cast<int64_t>(classes.size()), size = j_ * width_;
    constexpr int64_t kMost = 16, kElements = int64_t{1} << 22;
    int64_t groups = kElements / (size > 0 ? size : 1);
    groups = groups < 1 ? 1 : groups > kMost ? kMost : groups;
    groups = groups < present ? groups : present;
    AlignedArray<T> partial(a_.need_grad ? groups * size : 0);
    parallel_items(groups, j_ * j_ * width_, [&](int64_t begin, int64_t end) {
      Workspace s(j_, width_);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * present / groups, last = (group + 1) * present / groups;
        for (int64_t u = first; u < last; ++u) {
          const int64_t c = classes[static_cast<size_t>(u)];
          prepare(cov_ + c * width_ * (kind_ == kFull ? width_ : 1), s);
          if (a_.need_grad) std::fill_n(s.pull.data, j_ * j_, T(0));
          const int64_t at = pseudo.offset[static_cast<size_t>(c)];
          k_.rows[storage_](a_, pseudo.places.data() + at, pseudo.offset[static_cast<size_t>(c) + 1] - at, s.table.data,
                            s.pull.data, s.rows.data);
          if (a_.need_grad) add_weight_gradient(s, partial.data + group * size, u > first);
        }
      }
    });
    if (a_.need_grad) add_up(partial.data, groups, size, grad_weight_);
  }

  // One table for every sample; groups of samples with a gradient of the table of their own.
  void one_table(const Groups& pseudo) {
    const int64_t count = static_cast<int64_t>(pseudo.places.size()), size = j_ * j_;
    Workspace s(j_, width_);
    prepare(cov_, s);
    const int64_t groups = count < 16 ? 1 : count / 16 < 8 ? count / 16 : 8;
    AlignedArray<T> partial(a_.need_grad ? groups * size : 0);
    parallel_items(groups, count / groups * size * 8, [&](int64_t begin, int64_t end) {
      AlignedArray<T> rows(4 * j_);
      for (int64_t group = begin; group < end; ++group) {
        T* pull = a_.need_grad ? partial.data + group * size : nullptr;
        if (pull != nullptr) std::fill_n(pull, size, T(0));
        const int64_t first = group * count / groups, last = (group + 1) * count / groups;
        k_.rows[storage_](a_, pseudo.places.data() + first, last - first, s.table.data, pull, rows.data);
      }
    });
    if (!a_.need_grad) return;
    add_up(partial.data, groups, size, s.pull.data);
    add_weight_gradient(s, grad_weight_, false);
  }

  static void add_up(const T* partial, int64_t groups, int64_t size, T* out) {
    for (int64_t i = 0; i < size; ++i) out[i] = groups > 0 ? partial[i] : T(0);
    for (int64_t g = 1; g < groups; ++g) {
      for (int64_t i = 0; i < size; ++i) out[i] += partial[g * size + i];
    }
  }

  const ConsistencyArgs& a_;
  const FloatType storage_;
  const ConsistencyKernels& k_;
  const IsdaKernels& products_;
  const T* cov_;
  const int64_t j_, width_;
  const CovarianceKind kind_;
  const double strength_;
  T* grad_weight_;
  AlignedArray<T> centred_, turned_, packed_;
};

// The class of the largest logit, first on ties; NaN counts as largest, as in torch.
template <typename S>
void argmax_rows(const Tensor& logits, std::vector<int64_t>& out) {
  const S* z = static_cast<const S*>(logits.const_data_ptr());
  const int64_t classes = logits.size(1), stride = logits.stride(0);
  for (int64_t n = 0; n < logits.size(0); ++n) {
    int64_t best = 0;
    double most = static_cast<double>(to_float(z[n * stride]));
    for (int64_t j = 1; j < classes && most == most; ++j) {
      const double v = static_cast<double>(to_float(z[n * stride + j]));
      if (v > most || v != v) {
        best = j;
        most = v;
      }
    }
    out[static_cast<size_t>(n)] = best;
  }
}

std::tuple<Tensor, Tensor, Tensor> isda_consistency_cpu(const Tensor& logits_in, const Tensor& weight_in,
                                                        const Tensor& cov_in, const std::optional<Tensor>& strength_in,
                                                        const std::optional<Tensor>& row_grad_in, double scale,
                                                        int64_t reduction, int64_t kind, bool need_grad) {
  check_isda_consistency(logits_in, weight_in, cov_in, strength_in, row_grad_in, reduction, kind);
  const Tensor logits = as_contiguous_rows(logits_in), weight = as_contiguous(weight_in), cov = as_contiguous(cov_in);
  const auto row_grad = as_contiguous(row_grad_in);
  const int64_t n = logits.size(0), j = logits.size(1), width = weight.size(1);
  const FloatType storage = float_type("isda_consistency", logits);
  std::vector<int64_t> labels(static_cast<size_t>(n));
  if (j > 0) {
    void (*const argmax[kFloatTypes])(const Tensor&, std::vector<int64_t>&) = FASTMIX_BY_FLOAT_TYPE(argmax_rows);
    argmax[storage](logits, labels);
  }
  const ClassRows pseudo("isda_consistency", labels.data(), n, j, std::nullopt);

  const ScalarType dtype = weight.scalar_type();
  Tensor grad_logits =
      need_grad ? allocate(logits, {n, j}, logits.scalar_type()) : allocate(logits, {0}, logits.scalar_type());
  Tensor grad_weight = need_grad ? allocate(weight, {j, width}, dtype) : allocate(weight, {0}, dtype);
  std::vector<double> row_loss(static_cast<size_t>(n));
  const double divisor = n > 0 ? static_cast<double>(n) : 1.0;
  ConsistencyArgs a{};
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.classes = j;
  a.row_grad = row_grad.has_value() ? row_grad->const_data_ptr() : nullptr;
  a.uniform_grad = reduction == kMean ? 1.0 / divisor : 1.0;
  a.need_grad = need_grad;
  a.row_loss = row_loss.data();
  a.grad_logits = need_grad ? grad_logits.mutable_data_ptr() : nullptr;
  const double strength = strength_of(strength_in, scale);
  const auto which = static_cast<CovarianceKind>(kind);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Consistency<T>(a, storage, static_cast<const T*>(weight.const_data_ptr()),
                   static_cast<const T*>(cov.const_data_ptr()), width, which, strength,
                   need_grad ? static_cast<T*>(grad_weight.mutable_data_ptr()) : nullptr)
        .run(pseudo);
  };
  if (dtype == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }

  if (reduction == kNone) return {tensor_of(row_loss.data(), weight, {n}, dtype), grad_logits, grad_weight};
  double sum = 0;
  for (const double v : row_loss) sum += v;
  if (reduction == kMean) sum /= divisor;
  return {tensor_of(&sum, weight, {}, dtype), grad_logits, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) { m.impl("isda_consistency", TORCH_BOX(&isda_consistency_cpu)); }

}  // namespace fastmix
