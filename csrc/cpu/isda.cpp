// isda_logits and its backward on the CPU: checks, the table, its gradient, registration. ISDA Eq. 7.

#include "cpu/isda.h"

#include <vector>

#include "cpu/lib/grouping.h"
#include "cpu/lib/memory.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

template <typename T>
class QuadraticForms {
 public:
  QuadraticForms(const Tensor& weight, const Tensor& cov, const ClassRows& classes, CovarianceKind kind)
      : k_(FASTMIX_KERNELS(isda)) {
    a_.weight = weight.const_data_ptr();
    a_.cov = cov.const_data_ptr();
    a_.present = classes.present.data();
    a_.slots = static_cast<int64_t>(classes.present.size());
    a_.classes = weight.size(0);
    a_.width = weight.size(1);
    a_.kind = kind;
  }

  // (slots, J): half_strength * v^T Sigma v, and -0 for the class itself, which leaves every logit as it is.
  std::vector<T> table(double half_strength) {
    std::vector<T> out(static_cast<size_t>(a_.slots * a_.classes));
    if (out.empty()) return out;
    if (a_.kind == kFull) {
      const AlignedArray<T> packed = pack(static_cast<const T*>(a_.weight));
      parallel_items(a_.slots, a_.classes * a_.width * 16, [&](int64_t begin, int64_t end) {
        AlignedArray<T> s(padded_rows(a_.classes) * (a_.width + 16) + a_.width * 64);
        k_.full_table[kType](a_, packed.data, begin, end, out.data(), s.data);
      });
    } else {
      AlignedArray<T> product(a_.kind == kShared ? a_.classes * a_.width : 0);
      if (a_.kind == kShared) {
        times_sigma(static_cast<const T*>(a_.weight), product.data);
        a_.product = product.data;
      }
      parallel_items(a_.classes, a_.slots * a_.width,
                     [&](int64_t begin, int64_t end) { k_.pair_table[kType](a_, begin, end, out.data()); });
      a_.product = nullptr;
    }
    const T half = static_cast<T>(half_strength);
    for (T& v : out) v *= half;
    for (int64_t u = 0; u < a_.slots; ++u) out[static_cast<size_t>(u * a_.classes + a_.present[u])] = T(-0.0);
    return out;
  }

  // grad (J, A) from sums (slots, J), the gradient of every entry of the table.
  void gradient(std::vector<T>& sums, double strength, T* grad) {
    const int64_t size = a_.classes * a_.width;
    if (sums.empty()) {
      for (int64_t i = 0; i < size; ++i) grad[i] = 0;
      return;
    }
    const T factor = static_cast<T>(strength);
    for (T& v : sums) v *= factor;
    if (a_.kind == kFull) {
      const AlignedArray<T> packed = pack(static_cast<const T*>(a_.weight));
      const int64_t columns = k_.panel_columns[kType], panels = ceil_div(a_.width, columns);
      parallel_items(panels, a_.slots * a_.classes * a_.width, [&](int64_t begin, int64_t end) {
        AlignedArray<T> s(padded_rows(a_.classes) * a_.width + a_.width * 65);
        k_.full_gradient[kType](a_, packed.data, sums.data(), begin, end, grad, s.data);
      });
      return;
    }
    // [J / 4][slots][4], so that the factors of four rows lie side by side.
    std::vector<T> e(static_cast<size_t>((a_.classes + 3) / 4 * 4 * a_.slots), T(0));
    for (int64_t u = 0; u < a_.slots; ++u) {
      for (int64_t j = 0; j < a_.classes; ++j) {
        e[static_cast<size_t>(j / 4 * 4 * a_.slots + u * 4 + j % 4)] = sums[static_cast<size_t>(u * a_.classes + j)];
      }
    }
    AlignedArray<T> before(a_.kind == kShared ? size : 0);
    T* target = a_.kind == kShared ? before.data : grad;
    const int64_t wide = kPairBytes / static_cast<int64_t>(sizeof(T));
    parallel_items(ceil_div(a_.width, wide), a_.slots * a_.classes * wide, [&](int64_t begin, int64_t end) {
      AlignedArray<T> s(3 * a_.slots * wide);
      k_.pair_gradient[kType](a_, e.data(), begin, end, target, s.data);
    });
    if (a_.kind == kShared) times_sigma(before.data, grad);
  }

 private:
  static constexpr int kType = sizeof(T) == 8;

  AlignedArray<T> pack(const T* rows) const {
    AlignedArray<T> packed(padded_rows(a_.classes) * a_.width);
    k_.pack[kType](rows, a_.classes, a_.width, packed.data);
    return packed;
  }

  // out (J, A) = rows (J, A) Sigma, by blocks of eight rows.
  void times_sigma(const T* rows, T* out) const {
    const AlignedArray<T> packed = pack(rows);
    const int64_t blocks = ceil_div(a_.classes, 8), width = a_.width;
    parallel_items(blocks, 8 * width * width, [&](int64_t begin, int64_t end) {
      AlignedArray<T> panel(width * 64);
      const int64_t first = begin * 8, last = end * 8 < a_.classes ? end * 8 : a_.classes;
      k_.multiply[kType](packed.data + first * width, last - first, width, a_.cov, width, out + first * width,
                         panel.data);
    });
  }

  const IsdaKernels& k_;
  IsdaArgs a_{};
};

template <typename T>
Tensor forward(const Tensor& logits, const Tensor& weight, const Tensor& cov, const int64_t* labels,
               const ClassRows& classes, double strength, CovarianceKind kind) {
  const IsdaKernels& k = FASTMIX_KERNELS(isda);
  const FloatType storage = float_type("isda_logits", logits);
  const int64_t n = logits.size(0), j = logits.size(1);
  std::vector<T> table = QuadraticForms<T>(weight, cov, classes, kind).table(0.5 * strength);
  if (logits.dim() == 2) {
    const std::vector<int32_t> slot = classes.slots(-1);
    Tensor out = allocate(logits, {n, j}, logits.scalar_type());
    const void* z = logits.const_data_ptr();
    void* to = out.mutable_data_ptr();
    parallel_items(n, j, [&](int64_t begin, int64_t end) {
      k.add_rows[storage](z, logits.stride(0), j, slot.data(), table.data(), begin, end, to);
    });
    return out;
  }
  const int64_t pixels = logits.size(2), slots = static_cast<int64_t>(classes.present.size());
  const std::vector<int32_t> place = classes.places(static_cast<int32_t>(slots));
  std::vector<T> turned(static_cast<size_t>(j * (slots + 1)), T(-0.0));
  for (int64_t u = 0; u < slots; ++u) {
    for (int64_t c = 0; c < j; ++c) {
      turned[static_cast<size_t>(c * (slots + 1) + u)] = table[static_cast<size_t>(u * j + c)];
    }
  }
  Tensor out = allocate(logits, {n, j, pixels}, logits.scalar_type());
  const void* z = logits.const_data_ptr();
  void* to = out.mutable_data_ptr();
  const IsdaPixels p{labels, place.data(), n, j, pixels, slots};
  const int64_t blocks = ceil_div(pixels, kPixelBlock), block = smaller(pixels, kPixelBlock);
  parallel_items(n * blocks, j * block,
                 [&](int64_t begin, int64_t end) { k.add_pixels[storage](z, p, turned.data(), begin, end, to); });
  return out;
}

// Labels (N), or of pixels (N, P) with their runs, which are all that has to be looked at to know the classes.
struct Labels {
  const int64_t* values;
  const bool in_runs;
  AlignedArray<int64_t> start, label;
  const int64_t runs;
  ClassRows classes;

  Labels(const Tensor& labels, int64_t j, int64_t ignore_index)
      : values(static_cast<const int64_t*>(labels.const_data_ptr())),
        in_runs(labels.dim() == 2),
        start(in_runs ? labels.numel() + kRunPad : 0),
        label(in_runs ? labels.numel() + kRunPad : 0),
        runs(in_runs ? FASTMIX_KERNELS(isda).find_runs(values, labels.size(0), labels.size(1), start.data, label.data)
                     : 0),
        classes("isda_logits", in_runs ? label.data : values, in_runs ? runs : labels.numel(), j, ignore_index,
                in_runs ? start.data : nullptr) {}
};

// Rows: any distance between them. Pixels: contiguous.
Tensor readable(const Tensor& x) { return x.dim() == 2 ? as_contiguous_rows(x) : as_contiguous(x); }

Tensor isda_logits_cpu(const Tensor& logits_in, const Tensor& weight_in, const Tensor& cov_in, const Tensor& labels_in,
                       const std::optional<Tensor>& strength, double scale, int64_t ignore_index, int64_t kind) {
  check_isda("isda_logits", "logits", logits_in, weight_in, cov_in, &labels_in, strength, kind);
  const Tensor logits = readable(logits_in), weight = as_contiguous(weight_in), cov = as_contiguous(cov_in),
               labels = as_contiguous(labels_in);
  const Labels y(labels, weight.size(0), ignore_index);
  const double s = strength_of(strength, scale);
  const auto which = static_cast<CovarianceKind>(kind);
  return weight.scalar_type() == ScalarType::Double
             ? forward<double>(logits, weight, cov, y.values, y.classes, s, which)
             : forward<float>(logits, weight, cov, y.values, y.classes, s, which);
}

// sums (slots, J): the gradient of (N, J, P) added up by class.
template <typename T>
void sum_pixels(const Tensor& grad, FloatType storage, const Labels& y, T* sums) {
  const IsdaKernels& k = FASTMIX_KERNELS(isda);
  const int64_t n = grad.size(0), j = grad.size(1), pixels = grad.size(2);
  const int64_t slots = static_cast<int64_t>(y.classes.present.size());
  const std::vector<int32_t> place = y.classes.places(static_cast<int32_t>(slots));
  const IsdaPixels p{y.values, place.data(), n, j, pixels, slots};
  const std::vector<int32_t> of_run = y.classes.slots(static_cast<int32_t>(slots));
  const void* g = grad.const_data_ptr();
  constexpr int64_t kShortest = 4;  // pixels of a run, on average; a run costs as much as four pixels by themselves
  if (y.runs * kShortest <= n * pixels) {
    const IsdaRuns runs{y.start.data, of_run.data(), y.runs};
    // As many columns at a time as 128 KB hold vectors for; one look at the runs for each share of them.
    constexpr int64_t kVectors = 2048, kMostLanes = 64 / sizeof(T);
    const int64_t most = slots > 0 && kVectors / slots > 1 ? kVectors / slots : 1;
    parallel_items(j, n * pixels, [&](int64_t begin, int64_t end) {
      AlignedArray<T> lanes(slots * (end - begin < most ? end - begin : most) * kMostLanes);
      for (int64_t from = begin; from < end; from += most) {
        k.sum_runs[storage](g, p, runs, from, from + most < end ? from + most : end, sums, lanes.data);
      }
    });
    return;
  }
  std::vector<int32_t> slot(static_cast<size_t>(n * pixels));
  for (int64_t r = 0; r < y.runs; ++r) {
    for (int64_t i = y.start.data[r]; i < y.start.data[r + 1]; ++i) {
      slot[static_cast<size_t>(i)] = of_run[static_cast<size_t>(r)];
    }
  }
  parallel_items(j, n * pixels, [&](int64_t begin, int64_t end) {
    std::vector<T> banks(static_cast<size_t>(8 * (slots + 1)));
    k.sum_pixels[storage](g, p, slot.data(), begin, end, sums, banks.data());
  });
}

template <typename T>
void backward(const Tensor& grad, const Tensor& weight, const Tensor& cov, const Labels& y, double strength,
              CovarianceKind kind, T* out) {
  const IsdaKernels& k = FASTMIX_KERNELS(isda);
  const FloatType storage = float_type("isda_logits", grad);
  const int64_t n = grad.size(0), j = grad.size(1), slots = static_cast<int64_t>(y.classes.present.size());
  std::vector<T> sums(static_cast<size_t>(slots * j));
  if (grad.dim() == 2) {
    const void* g = grad.const_data_ptr();
    const std::vector<int32_t> slot = y.classes.slots(-1);
    parallel_items(j, n, [&](int64_t begin, int64_t end) {
      k.sum_rows[storage](g, grad.stride(0), n, j, slot.data(), slots, begin, end, sums.data());
    });
  } else {
    sum_pixels(grad, storage, y, sums.data());
  }
  QuadraticForms<T>(weight, cov, y.classes, kind).gradient(sums, strength, out);
}

Tensor isda_logits_backward_cpu(const Tensor& grad_in, const Tensor& weight_in, const Tensor& cov_in,
                                const Tensor& labels_in, const std::optional<Tensor>& strength, double scale,
                                int64_t ignore_index, int64_t kind) {
  check_isda("isda_logits_backward", "grad", grad_in, weight_in, cov_in, &labels_in, strength, kind);
  const Tensor grad = readable(grad_in), weight = as_contiguous(weight_in), cov = as_contiguous(cov_in),
               labels = as_contiguous(labels_in);
  const Labels y(labels, weight.size(0), ignore_index);
  const double s = strength_of(strength, scale);
  const auto which = static_cast<CovarianceKind>(kind);
  Tensor out = allocate(weight, {weight.size(0), weight.size(1)}, weight.scalar_type());
  if (weight.scalar_type() == ScalarType::Double) {
    backward<double>(grad, weight, cov, y, s, which, static_cast<double*>(out.mutable_data_ptr()));
  } else {
    backward<float>(grad, weight, cov, y, s, which, static_cast<float*>(out.mutable_data_ptr()));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("isda_logits", TORCH_BOX(&isda_logits_cpu));
  m.impl("isda_logits_backward", TORCH_BOX(&isda_logits_backward_cpu));
}

}  // namespace fastmix
