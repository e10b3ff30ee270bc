// patch_mix and its backward on the CPU: arguments, registration. R-Mix Eq. 5-7.

#include "cpu/patch_mix.h"

#include <tuple>

#include "cpu/lib/grouping.h"
#include "cpu/lib/image_tensors.h"
#include "cpu/lib/memory.h"
#include "torch/arguments.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

// The tensors behind a must outlive it.
PatchMixArgs arguments(const RowsLike& io, const Tensor& x, const Tensor& partner, const Tensor& mask,
                       const Tensor& lam) {
  PatchMixArgs a{};
  set_images(a, io.in, x);
  set_cells(a, mask, lam);
  a.dst = io.out();
  a.row = a.width * a.pixel;
  a.partner = static_cast<const int64_t*>(partner.const_data_ptr());
  a.images = x.size(0);
  check_rows("patch_mix", "partner", a.partner, x.size(0), 1, x.size(0));
  return a;
}

std::tuple<Tensor, Tensor> patch_mix_cpu(const Tensor& x, const Tensor& partner_in, const Tensor& mask_in,
                                         const Tensor& lam_in) {
  check_patch_mix("patch_mix", "x", x, partner_in, mask_in, lam_in);
  const FloatType type = float_type("patch_mix", x);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  RowsLike io = rows_like(x, RowOrder::kImage);
  PatchMixArgs a = arguments(io, x, partner, mask, lam);
  const int64_t n = x.size(0);
  const Tensor weight = allocate(x, {n, 2}, ScalarType::Float);
  a.weight = static_cast<float*>(weight.mutable_data_ptr());
  const PatchMixItems items = FASTMIX_KERNELS(patch_mix).forward[type];
  // At least one item an image, even without a pixel: it writes the weights.
  a.tile_planes = a.planes > 0 ? a.planes : 1;
  a.tile_rows = a.height > 0 ? a.height : 1;
  if (exceeds_caches(n * io.in.elements * x.element_size())) {
    a.tile_planes = 1;
    a.tile_rows = across_images(kPatchMixTile, n, a.row * a.element_size, a.height);
  }
  const int64_t tiles = a.planes / a.tile_planes * ceil_div(a.height, a.tile_rows);
  const int64_t per_image = tiles > 0 ? tiles : 1;
  parallel_items(n * per_image, io.in.elements / per_image, [&](int64_t begin, int64_t end) { items(a, begin, end); });
  return {io.result(), weight};
}

Tensor patch_mix_backward_cpu(const Tensor& grad, const Tensor& partner_in, const Tensor& mask_in,
                              const Tensor& lam_in) {
  check_patch_mix("patch_mix_backward", "grad", grad, partner_in, mask_in, lam_in);
  const FloatType type = float_type("patch_mix_backward", grad);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  RowsLike io = rows_like(grad, RowOrder::kImage);
  PatchMixArgs a = arguments(io, grad, partner, mask, lam);
  const int64_t n = grad.size(0);
  const Groups borrowers = by_source("patch_mix_backward", a.partner, n, 1);
  a.borrower = borrowers.places.data();
  a.borrower_offset = borrowers.offset.data();
  const PatchMixItems items = FASTMIX_KERNELS(patch_mix).backward[type];
  parallel_items(n, io.in.elements, [&](int64_t begin, int64_t end) { items(a, begin, end); });
  return io.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("patch_mix", TORCH_BOX(&patch_mix_cpu));
  m.impl("patch_mix_backward", TORCH_BOX(&patch_mix_backward_cpu));
}

}  // namespace fastmix
