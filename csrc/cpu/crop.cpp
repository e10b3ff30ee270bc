// crop, resized_crop and its gradient on the CPU: layouts, background, registration. Soft Augmentation Sec. 4.1, B.3.

#include "cpu/crop.h"

#include <cstring>
#include <vector>

#include "core/float_types.h"
#include "cpu/lib/binding.h"
#include "cpu/lib/image_tensors.h"
#include "cpu/lib/memory.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

// A number in the storage type of x, once for each of `count` channels.
std::vector<char> repeated(const Tensor& x, double value, int64_t count) {
  const size_t size = x.element_size();
  char element[8];
  switch (float_type("crop", x)) {
    case kFloat32:
      store(reinterpret_cast<float*>(element), static_cast<float>(value));
      break;
    case kBfloat16:
      store(reinterpret_cast<bf16*>(element), static_cast<float>(value));
      break;
    case kFloat16:
      store(reinterpret_cast<f16*>(element), static_cast<float>(value));
      break;
    default:
      store(reinterpret_cast<double*>(element), value);
  }
  std::vector<char> all(size * static_cast<size_t>(count));
  for (size_t i = 0; i < all.size(); i += size) std::memcpy(all.data() + i, element, size);
  return all;
}

// The background of a call; holds what args.fill points to.
struct Background {
  std::optional<Tensor> colours;
  std::vector<char> number;

  Background(CropArgs& a, const Tensor& x, const std::optional<Tensor>& fill, double value)
      : colours(as_contiguous(fill)) {
    if (!colours.has_value()) number = repeated(x, value, x.size(1));
    a.fill = colours.has_value() ? colours->const_data_ptr() : number.data();
    a.fill_stride = colours.has_value() ? x.size(1) : 0;
  }
};

Tensor crop_cpu(const Tensor& x, const Tensor& shift_in, const std::optional<Tensor>& fill, double value) {
  check_crop(x, shift_in, fill);
  RowsLike rows = rows_like(x, RowOrder::kImage);
  const Tensor shift = as_contiguous(shift_in);
  CropArgs a{};
  set_images(a, rows.in, x);
  a.dst = rows.out();
  a.out_height = a.height;
  a.out_width = a.width;
  a.shift = static_cast<const int64_t*>(shift.const_data_ptr());
  const Background background(a, x, fill, value);
  if (x.size(0) > 0 && rows.in.elements > 0) {
    const CropRows move = FASTMIX_KERNELS(crop).move;
    const int64_t row = a.width * a.pixel;
    parallel_items(x.size(0) * a.height, a.planes * row, [&](int64_t begin, int64_t end) {
      const AlignedArray<char> bytes(row * a.element_size);
      CropScratch scratch{};
      scratch.background = bytes.data;
      move(a, scratch, begin, end);
    });
  }
  return rows.result();
}

// Rows of x as resized_crop reads them, and an empty output in the memory format of x.
struct Resized {
  Rows in;
  Tensor out;
};

Resized resized_like(const Tensor& x, int64_t height, int64_t width) {
  const Dims sizes = x.sizes(), strides = x.strides();
  // As torch's is_contiguous decides, and the operator's fake with it.
  const bool last =
      !x.is_contiguous() && is_channels_last(sizes, strides) && (sizes[0] == 1 || strides[0] == row_elements(sizes));
  Tensor out = allocate_images(x, {sizes[0], sizes[1], height, width}, last, x.scalar_type());
  const Tensor t = last || is_row_major(sizes, strides, 1) ? x : torch::stable::contiguous(x);
  return {{t, t.const_data_ptr(), row_elements(sizes), t.strides()[0], last}, out};
}

// What a thread of resized_crop works in.
struct WorkingMemory {
  CropScratch scratch{};

  explicit WorkingMemory(const CropArgs& a) {
    constexpr int64_t kTaps = 8;
    const int64_t widest = a.out_width > a.width + 2 ? a.out_width : a.width + 2;
    const int64_t highest = a.out_height > a.height ? a.out_height : a.height;
    const int64_t row = widest * a.pixel + CropScratch::kSlack, size = a.element_size > 4 ? 8 : 4;
    scratch.row = row;
    for (int pass = 0; pass < 2; ++pass) {  // the first counts
      used = 0;
      take(scratch.background, (row + 512 + a.pixel) * size);
      take(scratch.weight, row * size);
      take(scratch.spare_weight, row * size);
      take(scratch.padded, row * size);
      take(scratch.resized, row * size);
      take(scratch.share, highest * size);
      take(scratch.sixteens, row / 16 * 256);
      for (int32_t** table : {&scratch.first, &scratch.second, &scratch.spare, &scratch.block}) {
        take(*table, row * 4);
      }
      take(scratch.line, highest * 4);
      take(scratch.tap_line, highest * 4);
      take(scratch.line_shares, kTaps * highest * 4);
      take(scratch.column_shares, kTaps * row * 4);
      take(scratch.pixel_shares, kTaps * row * 4);
      if (pass == 0) memory.emplace(used);
    }
  }

 private:
  std::optional<AlignedArray<char>> memory;
  int64_t used = 0;

  template <typename P>
  void take(P*& pointer, int64_t bytes) {
    if (memory.has_value()) pointer = reinterpret_cast<P*>(memory->data + used);
    used += (bytes + 63) / 64 * 64;
  }
};

// One of the kernels, by dtype, writes every row of the output.
Tensor run_resized(const char* op, const char* name, const Tensor& x, const Tensor& box_in, int64_t height,
                   int64_t width, const CropRows* kernels, const std::optional<Tensor>& fill, double value) {
  check_resized_crop(op, name, x, box_in, height, width, fill);
  const FloatType type = float_type(op, x);
  const Resized r = resized_like(x, height, width);
  const Tensor box = as_contiguous(box_in);
  CropArgs a{};
  set_images(a, r.in, x);
  a.dst = r.out.mutable_data_ptr();
  a.out_height = height;
  a.out_width = width;
  a.box = static_cast<const double*>(box.const_data_ptr());
  const Background background(a, x, fill, value);
  if (r.out.numel() > 0) {
    parallel_items(x.size(0) * height, 4 * a.planes * width * a.pixel, [&](int64_t begin, int64_t end) {
      const WorkingMemory memory(a);
      kernels[type](a, memory.scratch, begin, end);
    });
  }
  return r.out;
}

Tensor resized_crop_cpu(const Tensor& x, const Tensor& box, int64_t height, int64_t width,
                        const std::optional<Tensor>& fill, double value) {
  return run_resized("resized_crop", "x", x, box, height, width, FASTMIX_KERNELS(crop).resize, fill, value);
}

Tensor resized_crop_backward_cpu(const Tensor& grad, const Tensor& box, int64_t height, int64_t width) {
  return run_resized("resized_crop_backward", "grad", grad, box, height, width, FASTMIX_KERNELS(crop).resize_adjoint,
                     {}, 0.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("crop", TORCH_BOX(&crop_cpu));
  m.impl("resized_crop", TORCH_BOX(&resized_crop_cpu));
  m.impl("resized_crop_backward", TORCH_BOX(&resized_crop_backward_cpu));
}

}  // namespace fastmix
