// Registration of patch_mix for CUDA.
#include <tuple>

#include "cuda/lib/source_links.h"
#include "cuda/patch_mix.cuh"
#include "torch/arguments.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

PatchMixParams params(const char* op, const RowsLike& rows, const Tensor& partner, const Tensor& mask,
                      const Tensor& lam) {
  PatchMixParams a{};
  set_images(a, op, rows);
  set_cells(a, mask, lam);
  a.partner = static_cast<const int64_t*>(partner.const_data_ptr());
  return a;
}

std::tuple<Tensor, Tensor> patch_mix_cuda(const Tensor& x, const Tensor& partner_in, const Tensor& mask_in,
                                          const Tensor& lam_in) {
  check_patch_mix("patch_mix", "x", x, partner_in, mask_in, lam_in);
  check_pixels("patch_mix", "x", x);
  const OnDevice device("patch_mix", x);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  RowsLike rows = rows_like(x, RowOrder::kImage);
  Tensor weight = allocate(x, {x.size(0), 2}, ScalarType::Float);
  PatchMixParams a = params("patch_mix", rows, partner, mask, lam);
  a.weight = static_cast<float*>(weight.mutable_data_ptr());
  dispatch("patch_mix", x, [&](auto type) { patch_mix<decltype(type)>(a, false, device.stream()); });
  device.check();
  return {rows.result(), weight};
}

Tensor patch_mix_backward_cuda(const Tensor& grad, const Tensor& partner_in, const Tensor& mask_in,
                               const Tensor& lam_in) {
  const char* op = "patch_mix_backward";
  check_patch_mix(op, "grad", grad, partner_in, mask_in, lam_in);
  const OnDevice device(op, grad);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  RowsLike rows = rows_like(grad, RowOrder::kImage);
  PatchMixParams a = params(op, rows, partner, mask, lam);
  const Tensor readers = readers_of_images(a, op, partner, device);
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
