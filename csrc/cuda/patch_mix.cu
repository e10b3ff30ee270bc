// Registration of patch_mix for CUDA.
#include <tuple>

#include "cuda/lib/patch_mix_params.h"

namespace fastmix {
namespace {

std::tuple<Tensor, Tensor> patch_mix_cuda(const Tensor& x, const Tensor& partner_in, const Tensor& mask_in,
                                          const Tensor& lam_in) {
  const OnDevice device("patch_mix", x);
  const Tensor partner = dense(partner_in), mask = dense(mask_in), lam = dense(lam_in);
  RowsLike rows = rows_like(x, RowOrder::kImage);
  Tensor weight = empty_beside(x, {x.size(0), 2}, ScalarType::Float);
  PatchMixParams a = patch_mix_params("patch_mix", rows, partner, mask, lam);
  a.weight = static_cast<float*>(weight.mutable_data_ptr());
  dispatch("patch_mix", x, [&](auto type) { patch_mix<decltype(type)>(a, false, device.stream()); });
  device.check();
  return {rows.result(), weight};
}

Tensor patch_mix_backward_cuda(const Tensor& grad, const Tensor& partner_in, const Tensor& mask_in,
                               const Tensor& lam_in) {
  const char* op = "patch_mix_backward";
  const OnDevice device(op, grad);
  const Tensor partner = dense(partner_in), mask = dense(mask_in), lam = dense(lam_in);
  RowsLike rows = rows_like(grad, RowOrder::kImage);
  PatchMixParams a = patch_mix_params(op, rows, partner, mask, lam);
  const Links links =
      linked(op, partner, grad.size(0), [&](auto... list) { link_sources({list...}, device.stream()); });
  a.first = links.first;
  a.next = links.next;
  dispatch(op, grad, [&](auto type) { patch_mix<decltype(type)>(a, true, device.stream()); });
  device.check();
  return rows.result();
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("patch_mix", TORCH_BOX(&patch_mix_cuda));
  m.impl("patch_mix_backward", TORCH_BOX(&patch_mix_backward_cuda));
}

}  // namespace fastmix
