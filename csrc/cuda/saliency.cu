// Registration of saliency_map, saliency_mask, saliency_peak and percentile_mask for CUDA.
#include "cuda/lib/cell_params.h"
#include "cuda/saliency.cuh"

namespace fastmix {
namespace {

Tensor run(const char* op, const Tensor& grad_in, int64_t h, int64_t w, const Tensor* q) {
  const OnDevice device(op, grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  SaliencyParams a{};
  a.image = cells_of(op, grad, h, w);
  a.images = grad_in.size(0);
  a.is_map = q == nullptr;
  Tensor out = empty_beside(grad_in, {a.images, h, w}, a.is_map ? accumulation_dtype(grad_in) : ScalarType::Bool);
  a.out = out.mutable_data_ptr();
  a.cells = a.out;
  std::optional<Tensor> cells;
  dispatch(op, grad_in, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(a.images == 0 || widest_row_bytes<T>(a.image) <= max_shared_bytes() - 8192, op, ": rows of ",
                    a.image.width, " pixels do not fit the shared memory of a block");
    if (q != nullptr) {
      a.q = percentile_of(*q);
      if (!is_whole<T>(a.image)) {
        cells = empty_beside(grad_in, {a.images, h, w}, accumulation_dtype(grad_in));
        a.cells = cells->mutable_data_ptr();
      }
    }
    if (a.images > 0) saliency<T>(a, device.stream());
  });
  device.check();
  return out;
}

Tensor saliency_map_cuda(const Tensor& grad, int64_t h, int64_t w) { return run("saliency_map", grad, h, w, nullptr); }

Tensor saliency_mask_cuda(const Tensor& grad, int64_t h, int64_t w, const Tensor& q_in) {
  const Tensor q = dense(q_in);
  return run("saliency_mask", grad, h, w, &q);
}

Tensor saliency_peak_cuda(const Tensor& grad_in) {
  const char* op = "saliency_peak";
  const OnDevice device(op, grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  Tensor out = empty_beside(grad_in, {grad_in.size(0), 2}, ScalarType::Long);
  PeakParams a{};
  a.image = cells_of(op, grad, 1, 1);
  a.images = grad_in.size(0);
  a.blocks = peak_blocks(a.image);
  a.out = static_cast<int64_t*>(out.mutable_data_ptr());
  std::optional<Tensor> keys, pixels;
  if (a.blocks > 1) {
    keys = empty_beside(grad_in, {a.images, a.blocks}, ScalarType::Long);
    pixels = empty_beside(grad_in, {a.images, a.blocks}, ScalarType::Int);
    a.keys = static_cast<int64_t*>(keys->mutable_data_ptr());
    a.pixels = static_cast<int*>(pixels->mutable_data_ptr());
  }
  dispatch(op, grad_in, [&](auto type) { saliency_peak<decltype(type)>(a, device.stream()); });
  device.check();
  return out;
}

Tensor percentile_mask_cuda(const Tensor& map_in, const Tensor& q_in) {
  const char* op = "percentile_mask";
  const OnDevice device(op, map_in);
  const Tensor map = dense(map_in), q = dense(q_in);
  Tensor out = empty_beside(map, {map.size(0), map.size(1), map.size(2)}, ScalarType::Bool);
  const PercentileParams a{map.const_data_ptr(), static_cast<uint8_t*>(out.mutable_data_ptr()), map.size(0),
                           to_int32(op, "the number of cells", map.size(1) * map.size(2)), percentile_of(q)};
  if (map.scalar_type() == ScalarType::Double) {
    percentile<double>(a, device.stream());
  } else {
    STD_TORCH_CHECK(map.scalar_type() == ScalarType::Float, op, ": want a float32 or float64 map");
    percentile<float>(a, device.stream());
  }
  device.check();
  return out;
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("saliency_map", TORCH_BOX(&saliency_map_cuda));
  m.impl("saliency_mask", TORCH_BOX(&saliency_mask_cuda));
  m.impl("saliency_peak", TORCH_BOX(&saliency_peak_cuda));
  m.impl("percentile_mask", TORCH_BOX(&percentile_mask_cuda));
}

}  // namespace fastmix
