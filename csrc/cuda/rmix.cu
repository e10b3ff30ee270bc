// Registration of rmix for CUDA.
#include <tuple>

#include "cuda/cell_params.h"
#include "cuda/patch_mix_params.h"
#include "cuda/rmix.cuh"

namespace fastmix {
namespace {

std::tuple<Tensor, Tensor, Tensor> rmix_cuda(const Tensor& x, const Tensor& grad_in, const Tensor& partner_in,
                                             const Tensor& q_in, const Tensor& lam_in, int64_t h, int64_t w) {
  const char* op = "rmix";
  const OnDevice device(op, x);
  const Tensor partner = dense(partner_in), q = dense(q_in), lam = dense(lam_in);
  STD_TORCH_CHECK(grad_in.scalar_type() == x.scalar_type(), op, ": want a gradient in the type of the images");
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  RowsLike rows = rows_like(x, RowOrder::kImage);
  Tensor weight = empty_beside(x, {x.size(0), 2}, ScalarType::Float);
  Tensor mask = empty_beside(x, {x.size(0), h, w}, ScalarType::Bool);
  RmixParams a{};
  a.image = cells_of(op, grad, h, w);
  a.q = percentile_of(q);
  a.mix = patch_mix_params(op, rows, partner, mask, lam);
  a.mix.weight = static_cast<float*>(weight.mutable_data_ptr());
  a.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(rmix_fits<T>(a.image), op, ": images of ", a.image.channels, " x ", a.image.height, " x ",
                    a.image.width, " with ", a.image.cells(), " cells are too large for one block");
    rmix<T>(a, device.stream());
  });
  device.check();
  return {rows.result(), weight, mask};
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) { m.impl("rmix", TORCH_BOX(&rmix_cuda)); }

}  // namespace fastmix
