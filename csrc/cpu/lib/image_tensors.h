// Boxes as the image kernels on the CPU take them.
#pragma once

#include <vector>

#include "core/boxes.h"
#include "torch/tensor.h"

namespace fastmix {

// boxes (N, K - 1, 4) int32, in their order.
inline std::vector<Box> clip_boxes(const Tensor& boxes_in, int64_t height, int64_t width) {
  const Tensor boxes = dense(boxes_in);
  const int32_t* values = static_cast<const int32_t*>(boxes.const_data_ptr());
  std::vector<Box> clipped(static_cast<size_t>(boxes.size(0) * boxes.size(1)));
  for (size_t i = 0; i < clipped.size(); ++i) clipped[i] = clip_box(values + 4 * i, height, width);
  return clipped;
}

}  // namespace fastmix
