// Registration of saliency_map, saliency_mask, saliency_peak and percentile_mask for CUDA.
#include <vector>

#include "cuda/lib/binding.h"
#include "cuda/saliency.cuh"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

CellParams cells_of(const char* op, const Rows& grad, int64_t h, int64_t w) {
  const Dims sizes = grad.tensor.sizes();
  STD_TORCH_CHECK(sizes[2] * sizes[3] * (grad.channels_last ? sizes[1] : 1) < (int64_t{1} << 31) - 65536, op,
                  ": an image plane has more than 2^31 elements");
  CellParams a{};
  a.grad = grad.data;
  a.image_stride = grad.stride;
  a.channels = static_cast<int>(sizes[1]);
  a.height = static_cast<int>(sizes[2]);
  a.width = static_cast<int>(sizes[3]);
  a.channel_stride = grad.channels_last ? 1 : sizes[2] * sizes[3];
  a.pixel_stride = grad.channels_last ? sizes[1] : 1;
  a.h = static_cast<int>(h);
  a.w = static_cast<int>(w);
  return a;
}

Percentile percentile_of(const Tensor& q) {
  return {q.const_data_ptr(), q.scalar_type() == ScalarType::Double, q.dim() == 0 ? 0 : 1};
}

Tensor run(const char* op, const Tensor& grad_in, int64_t h, int64_t w, const Tensor* q) {
  check_saliency(op, grad_in, h, w, q);
  const OnDevice device(op, grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  SaliencyParams a{};
  a.image = cells_of(op, grad, h, w);
  a.images = grad_in.size(0);
  a.is_map = q == nullptr;
  Tensor out = allocate(grad_in, {a.images, h, w}, a.is_map ? accumulation_dtype(grad_in) : ScalarType::Bool);
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
        cells = allocate(grad_in, {a.images, h, w}, accumulation_dtype(grad_in));
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
  const Tensor q = as_contiguous(q_in);
  return run("saliency_mask", grad, h, w, &q);
}

Tensor saliency_mask_of_grid_cuda(const Tensor& grad_in, std::vector<int64_t> patches, const Tensor& grid,
                                  const Tensor& q_in) {
  const char* op = "saliency_mask_of_grid";
  const int64_t side = check_saliency_grids(grad_in, patches, grid, q_in);
  const OnDevice device(op, grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  const Tensor q = as_contiguous(q_in);
  STD_TORCH_CHECK(patches.size() <= kMostGrids, op, ": want 1 to ", kMostGrids, " grids");
  GridParams a{};
  int64_t most = 0;
  for (size_t i = 0; i < patches.size(); ++i) {
    const int64_t p = patches[i];
    STD_TORCH_CHECK(p * p <= kWholeCells, op, ": want 1 to ", kWholeCells, " cells on a grid");
    a.plans[i].side = static_cast<int>(p);
    most = p > most ? p : most;
  }
  a.grids = static_cast<int>(patches.size());
  a.side = to_int32(op, "the least common grid", side);
  a.most_cells = static_cast<int>(most * most);
  a.image = cells_of(op, grad, most, most);
  a.images = grad_in.size(0);
  a.q = percentile_of(q);
  a.grid = static_cast<const int64_t*>(grid.const_data_ptr());
  Tensor out = allocate(grad_in, {a.images, side, side}, ScalarType::Bool);
  a.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  std::optional<Tensor> cells;
  dispatch(op, grad_in, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(a.images == 0 || widest_row_bytes<T>(a.image) <= max_shared_bytes() - 16384, op, ": rows of ",
                    a.image.width, " pixels do not fit the shared memory of a block");
    if (!is_whole<T>(a.image)) {
      cells = allocate(grad_in, {a.images, a.most_cells}, accumulation_dtype(grad_in));
      a.cells = cells->mutable_data_ptr();
    }
    if (a.images > 0) saliency_mask_of_grid<T>(a, device.stream());
  });
  device.check();
  return out;
}

Tensor saliency_peak_cuda(const Tensor& grad_in) {
  const char* op = "saliency_peak";
  check_saliency(op, grad_in, 1, 1, nullptr);
  const OnDevice device(op, grad_in);
  const Rows grad = read_rows(grad_in, RowOrder::kImage);
  Tensor out = allocate(grad_in, {grad_in.size(0), 2}, ScalarType::Long);
  PeakParams a{};
  a.image = cells_of(op, grad, 1, 1);
  a.images = grad_in.size(0);
  a.blocks = peak_blocks(a.image);
  a.out = static_cast<int64_t*>(out.mutable_data_ptr());
  std::optional<Tensor> keys, pixels;
  if (a.blocks > 1) {
    keys = allocate(grad_in, {a.images, a.blocks}, ScalarType::Long);
    pixels = allocate(grad_in, {a.images, a.blocks}, ScalarType::Int);
    a.keys = static_cast<int64_t*>(keys->mutable_data_ptr());
    a.pixels = static_cast<int*>(pixels->mutable_data_ptr());
  }
  dispatch(op, grad_in, [&](auto type) { saliency_peak<decltype(type)>(a, device.stream()); });
  device.check();
  return out;
}

Tensor percentile_mask_cuda(const Tensor& map_in, const Tensor& q_in) {
  const char* op = "percentile_mask";
  check_percentile(map_in, q_in);
  const OnDevice device(op, map_in);
  const Tensor map = as_contiguous(map_in), q = as_contiguous(q_in);
  Tensor out = allocate(map, {map.size(0), map.size(1), map.size(2)}, ScalarType::Bool);
  const PercentileParams a{map.const_data_ptr(), static_cast<uint8_t*>(out.mutable_data_ptr()), map.size(0),
                           to_int32(op, "the number of cells", map.size(1) * map.size(2)), percentile_of(q)};
  if (map.scalar_type() == ScalarType::Double) {
    percentile<double>(a, device.stream());
  } else {
    percentile<float>(a, device.stream());
  }
  device.check();
  return out;
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("saliency_map", TORCH_BOX(&saliency_map_cuda));
  m.impl("saliency_mask", TORCH_BOX(&saliency_mask_cuda));
  m.impl("saliency_mask_of_grid", TORCH_BOX(&saliency_mask_of_grid_cuda));
  m.impl("saliency_peak", TORCH_BOX(&saliency_peak_cuda));
  m.impl("percentile_mask", TORCH_BOX(&percentile_mask_cuda));
}

}  // namespace fastmix
