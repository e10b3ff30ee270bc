// paste and its gradient on the CPU: checks, clipped boxes, registration. K-image mixing Eq. 4-5.

#include "cpu/paste.h"

#include <vector>

#include "cpu/lib/grouping.h"
#include "cpu/lib/image_tensors.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

// Rows of all images, by a kernel that needs sum_size bytes for each element of a tile (0: no tile).
Tensor run(const Tensor& x, const Tensor& boxes_in, PasteArgs a, PasteRows kernel, size_t sum_size) {
  RowsLike rows = rows_like(x, RowOrder::kImage);
  set_images(a, rows.in, x);
  a.dst = rows.out();
  if (x.size(0) > 0 && rows.in.elements > 0) {
    const std::vector<Box> boxes = clip_boxes(boxes_in, a.height, a.width);
    a.boxes = boxes.data();
    const size_t tile = sum_size * static_cast<size_t>(tile_rows(a) * a.planes * a.width * a.pixel);
    parallel_items(x.size(0) * a.height, 2 * a.planes * a.width * a.pixel, [&](int64_t begin, int64_t end) {
      std::vector<Span> spans(static_cast<size_t>(2 * a.k));
      std::vector<char> sums(tile);
      kernel(a, {spans.data(), sums.data()}, begin, end);
    });
  }
  return rows.result();
}

Tensor paste_cpu(const Tensor& x, const Tensor& index_in, const Tensor& boxes) {
  check_paste("paste", "x", x, index_in, boxes);
  const Tensor index = as_contiguous(index_in);
  PasteArgs a{};
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.k = index.size(1);
  check_rows("paste", "index", a.index, x.size(0), a.k, x.size(0));
  return run(x, boxes, a, FASTMIX_KERNELS(paste).copy, 0);
}

// dx[m] = sum over the (n, k) with index[n, k] = m, in their order, of grad[n] where image k shows.
Tensor paste_backward_cpu(const Tensor& grad, const Tensor& index_in, const Tensor& boxes) {
  check_paste("paste_backward", "grad", grad, index_in, boxes);
  const Tensor index = as_contiguous(index_in);
  const FloatType type = float_type("paste_backward", grad);
  PasteArgs a{};
  a.k = index.size(1);
  const Groups by = by_source("paste_backward", static_cast<const int64_t*>(index.const_data_ptr()), grad.size(0), a.k);
  a.offset = by.offset.data();
  a.places = by.places.data();
  const bool direct = grad.element_size() >= sizeof(float);
  return run(grad, boxes, a, FASTMIX_KERNELS(paste).add[type], direct ? 0 : sizeof(float));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("paste", TORCH_BOX(&paste_cpu));
  m.impl("paste_backward", TORCH_BOX(&paste_backward_cpu));
}

}  // namespace fastmix
