// Images and boxes as the image kernels on the CPU take them, from tensors.
#pragma once

#include <vector>

#include "core/boxes.h"
#include "cpu/lib/image_rows.h"
#include "torch/layout.h"

namespace fastmix {

// Images of the sizes and the dtype of x in the order of `in`. Not dst.
inline void set_images(ImageArgs& a, const Rows& in, const Tensor& x) {
  const Dims sizes = x.sizes();
  a.src = in.data;
  a.src_stride = in.stride;
  a.planes = in.channels_last ? 1 : sizes[1];
  a.height = sizes[2];
  a.width = sizes[3];
  a.pixel = in.channels_last ? sizes[1] : 1;
  a.element_size = static_cast<int64_t>(x.element_size());
}

// boxes (N, K - 1, 4) int32, in their order.
inline std::vector<Box> clip_boxes(const Tensor& boxes_in, int64_t height, int64_t width) {
  const Tensor boxes = as_contiguous(boxes_in);
  const int32_t* values = static_cast<const int32_t*>(boxes.const_data_ptr());
  std::vector<Box> clipped(static_cast<size_t>(boxes.size(0) * boxes.size(1)));
  for (size_t i = 0; i < clipped.size(); ++i) clipped[i] = clip_box(values + 4 * i, height, width);
  return clipped;
}

}  // namespace fastmix
