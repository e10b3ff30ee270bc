// saliency_map, _mask, _peak and percentile_mask on the CPU: arguments, scratch memory, registration. R-Mix Eq. 2-4.

#include "cpu/saliency.h"

#include <memory>
#include <vector>

#include "cpu/lib/binding.h"
#include "torch/layout.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

SaliencyArgs of_grad(const Rows& grad, int64_t h, int64_t w) {
  SaliencyArgs a{};
  const Dims sizes = grad.tensor.sizes();
  a.grad = grad.data;
  a.image_stride = grad.stride;
  a.channels = sizes[1];
  a.height = sizes[2];
  a.width = sizes[3];
  a.channels_last = grad.channels_last;
  a.h = h;
  a.w = w;
  return a;
}

// q must outlive a.
void set_q(SaliencyArgs& a, const Tensor& q) {
  a.q = q.const_data_ptr();
  a.q_is_double = q.scalar_type() == ScalarType::Double;
  a.q_step = q.dim() == 0 ? 0 : 1;
}

Tensor run(SaliencyArgs& a, SaliencyImages images, const Tensor& out, int64_t elements_per_image) {
  a.out = out.mutable_data_ptr();
  parallel_items(out.size(0), elements_per_image, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<double[]> scratch(new double[static_cast<size_t>(saliency_scratch(a))]);
    images(a, begin, end, scratch.get());
  });
  return out;
}

Tensor saliency_map_cpu(const Tensor& grad_in, int64_t h, int64_t w) {
  check_saliency("saliency_map", grad_in, h, w, nullptr);
  const FloatType type = float_type("saliency_map", grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  SaliencyArgs a = of_grad(grad, h, w);
  return run(a, FASTMIX_KERNELS(saliency).map[type],
             allocate(grad_in, {grad_in.size(0), h, w}, accumulation_dtype(grad_in)), grad.elements);
}

Tensor saliency_mask_cpu(const Tensor& grad_in, int64_t h, int64_t w, const Tensor& q_in) {
  check_saliency("saliency_mask", grad_in, h, w, &q_in);
  const FloatType type = float_type("saliency_mask", grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  const Tensor q = as_contiguous(q_in);
  SaliencyArgs a = of_grad(grad, h, w);
  set_q(a, q);
  return run(a, FASTMIX_KERNELS(saliency).mask[type], allocate(grad_in, {grad_in.size(0), h, w}, ScalarType::Bool),
             grad.elements);
}

// The mask of the chosen grid, every cell repeated up to the least common grid.
Tensor saliency_mask_of_grid_cpu(const Tensor& grad_in, std::vector<int64_t> patches, const Tensor& grid,
                                 const Tensor& q) {
  const char* op = "saliency_mask_of_grid";
  const int64_t side = check_saliency_grids(grad_in, patches, grid, q);
  const int64_t number = *static_cast<const int64_t*>(grid.const_data_ptr());
  STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(patches.size()), op, ": grid is ", number,
                  ", want a value in [0, ", patches.size(), ")");
  const int64_t p = patches[static_cast<size_t>(number)], times = side / p, images = grad_in.size(0);
  const Tensor mask = saliency_mask_cpu(grad_in, p, p, q);
  if (times == 1) return mask;
  const Tensor out = allocate(grad_in, {images, side, side}, ScalarType::Bool);
  const uint8_t* from = static_cast<const uint8_t*>(mask.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < images * side; ++row) {
    for (int64_t column = 0; column < side; ++column) to[row * side + column] = from[row / times * p + column / times];
  }
  return out;
}

Tensor saliency_peak_cpu(const Tensor& grad_in) {
  check_saliency("saliency_peak", grad_in, 1, 1, nullptr);
  const FloatType type = float_type("saliency_peak", grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  SaliencyArgs a = of_grad(grad, 1, 1);
  return run(a, FASTMIX_KERNELS(saliency).peak[type], allocate(grad_in, {grad_in.size(0), 2}, ScalarType::Long),
             grad.elements);
}

Tensor percentile_mask_cpu(const Tensor& map_in, const Tensor& q_in) {
  check_percentile(map_in, q_in);
  const Tensor map = as_contiguous(map_in), q = as_contiguous(q_in);
  const SaliencyImages images = FASTMIX_KERNELS(saliency).percentile[float_type("percentile_mask", map)];
  SaliencyArgs a{};
  a.grad = map.const_data_ptr();
  a.h = map.size(1);
  a.w = map.size(2);
  a.image_stride = a.h * a.w;
  set_q(a, q);
  // A cell is read about twenty times while its image's threshold is searched.
  return run(a, images, allocate(map, {map.size(0), a.h, a.w}, ScalarType::Bool), 4 * a.image_stride);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("saliency_map", TORCH_BOX(&saliency_map_cpu));
  m.impl("saliency_mask", TORCH_BOX(&saliency_mask_cpu));
  m.impl("saliency_mask_of_grid", TORCH_BOX(&saliency_mask_of_grid_cpu));
  m.impl("saliency_peak", TORCH_BOX(&saliency_peak_cpu));
  m.impl("percentile_mask", TORCH_BOX(&percentile_mask_cpu));
}

}  // namespace fastmix
