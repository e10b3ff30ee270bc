// Registration of isda_logits for CUDA: covariances that are diagonal or the identity.
#include "cuda/isda.cuh"
#include "cuda/lib/binding.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

struct Call {
  Tensor in, weight, cov, labels;
  std::optional<Tensor> strength;
  Tensor present, slot, centre;
  IsdaParams a{};

  Call(const Tensor& in_of, const Tensor& weight_of, const Tensor& cov_of, const Tensor& labels_of,
       const std::optional<Tensor>& strength_of, double scale, int64_t ignore_index, int64_t kind)
      : in(as_contiguous_rows(in_of)),
        weight(as_contiguous(weight_of)),
        cov(as_contiguous(cov_of)),
        labels(as_contiguous(labels_of)),
        strength(strength_of),
        present(allocate(in, {labels.numel() < weight.size(0) ? labels.numel() : weight.size(0)}, ScalarType::Int)),
        slot(allocate(in, {weight.size(0)}, ScalarType::Int)),
        centre(allocate(in, {weight.size(1)}, weight.scalar_type())) {
    const char* op = "isda_logits";
    a.in = in.const_data_ptr();
    a.images = in.size(0);
    a.pixels = in.dim() == 3 ? in.size(2) : 1;
    a.image_stride = in.stride(0);
    a.class_stride = in.stride(1);
    a.pixel_stride = in.dim() == 3 ? in.stride(2) : 0;
    a.classes = to_int32(op, "the number of classes", weight.size(0));
    a.width = to_int32(op, "the number of features", weight.size(1));
    a.labels = static_cast<const int64_t*>(labels.const_data_ptr());
    a.ignore_index = ignore_index;
    a.weight = weight.const_data_ptr();
    a.cov = kind == kDiag ? cov.const_data_ptr() : nullptr;
    a.strength = strength.has_value() ? strength->const_data_ptr() : nullptr;
    a.strength_is_double = strength.has_value() && strength->scalar_type() == ScalarType::Double;
    a.scale = scale;
    a.present = static_cast<int*>(present.mutable_data_ptr());
    a.slot = static_cast<int*>(slot.mutable_data_ptr());
    a.slots = static_cast<int>(present.size(0));
    a.centre = centre.mutable_data_ptr();
  }
};

void check(const char* op, const char* name, const Tensor& in, const Tensor& weight, const Tensor& cov,
           const Tensor& labels, const std::optional<Tensor>& strength, int64_t kind) {
  check_isda(op, name, in, weight, cov, &labels, strength, kind)
      .require(kind == kDiag || kind == kIdentity, "kind",
               "is none that the CUDA kernels serve, want diag or identity");
}

Tensor isda_logits_cuda(const Tensor& logits, const Tensor& weight, const Tensor& cov, const Tensor& labels,
                        const std::optional<Tensor>& strength, double scale, int64_t ignore_index, int64_t kind) {
  check("isda_logits", "logits", logits, weight, cov, labels, strength, kind);
  const OnDevice device("isda_logits", logits);
  Call given(logits, weight, cov, labels, strength, scale, ignore_index, kind);
  IsdaParams& a = given.a;
  Tensor out = logits.dim() == 3 ? allocate(logits, {a.images, a.classes, a.pixels}, logits.scalar_type())
                                 : allocate(logits, {a.images, a.classes}, logits.scalar_type());
  if (out.numel() == 0) return out;
  a.out = out.mutable_data_ptr();
  plan_table(a);
  Tensor table = allocate(logits, {a.parts, a.slots, a.classes}, given.weight.scalar_type());
  a.table = table.mutable_data_ptr();
  dispatch("isda_logits", logits, [&](auto type) { isda_logits<decltype(type)>(a, device.stream()); });
  device.check();
  return out;
}

Tensor isda_logits_backward_cuda(const Tensor& grad, const Tensor& weight, const Tensor& cov, const Tensor& labels,
                                 const std::optional<Tensor>& strength, double scale, int64_t ignore_index,
                                 int64_t kind) {
  check("isda_logits_backward", "grad", grad, weight, cov, labels, strength, kind);
  const OnDevice device("isda_logits_backward", grad);
  Call given(grad, weight, cov, labels, strength, scale, ignore_index, kind);
  IsdaParams& a = given.a;
  Tensor out = allocate(grad, {a.classes, a.width}, given.weight.scalar_type());
  a.out = out.mutable_data_ptr();
  Tensor sums = allocate(grad, {a.slots, a.classes}, given.weight.scalar_type());
  a.sums = sums.mutable_data_ptr();
  plan_pull(a);
  Tensor pull = allocate(grad, {a.pull_parts, a.slots, a.width}, given.weight.scalar_type());
  a.pull = pull.mutable_data_ptr();
  dispatch("isda_logits", grad, [&](auto type) { isda_logits_backward<decltype(type)>(a, device.stream()); });
  device.check();
  return out;
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("isda_logits", TORCH_BOX(&isda_logits_cuda));
  m.impl("isda_logits_backward", TORCH_BOX(&isda_logits_backward_cuda));
}

}  // namespace fastmix
