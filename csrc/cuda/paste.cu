// Registration of paste for CUDA.
#include "cuda/lib/source_links.h"
#include "cuda/paste.cuh"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

PasteParams params(const char* op, const RowsLike& rows, const Tensor& index, const Tensor& boxes) {
  PasteParams a{};
  set_images(a, op, rows);
  a.k = to_int32(op, "K", index.size(1));
  a.index = static_cast<const int64_t*>(index.const_data_ptr());
  a.boxes = static_cast<const int32_t*>(boxes.const_data_ptr());
  return a;
}

Tensor paste_cuda(const Tensor& x, const Tensor& index_in, const Tensor& boxes_in) {
  check_paste("paste", "x", x, index_in, boxes_in);
  const OnDevice device("paste", x);
  const Tensor index = as_contiguous(index_in), boxes = as_contiguous(boxes_in);
  RowsLike rows = rows_like(x, RowOrder::kImage);
  const PasteParams a = params("paste", rows, index, boxes);
  if (x.element_size() == 2) {
    paste<uint16_t>(a, device.stream());
  } else if (x.element_size() == 4) {
    paste<uint32_t>(a, device.stream());
  } else {
    paste<uint64_t>(a, device.stream());
  }
  device.check();
  return rows.result();
}

Tensor paste_backward_cuda(const Tensor& grad, const Tensor& index_in, const Tensor& boxes_in) {
  const char* op = "paste_backward";
  check_paste(op, "grad", grad, index_in, boxes_in);
  const OnDevice device(op, grad);
  const Tensor index = as_contiguous(index_in), boxes = as_contiguous(boxes_in);
  RowsLike rows = rows_like(grad, RowOrder::kImage);
  PasteParams a = params(op, rows, index, boxes);
  const Tensor readers = readers_of_images(a, op, index, device);
  dispatch(op, grad, [&](auto type) { paste_backward<decltype(type)>(a, device.stream()); });
  device.check();
  return rows.result();
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("paste", TORCH_BOX(&paste_cuda));
  m.impl("paste_backward", TORCH_BOX(&paste_backward_cuda));
}

}  // namespace fastmix
