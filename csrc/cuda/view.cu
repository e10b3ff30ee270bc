// Registration of view, view_blend, view_paste and view_patch_mix for CUDA.
#include <tuple>

#include "cuda/lib/images.h"
#include "cuda/view.cuh"
#include "torch/arguments.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

using Optional = std::optional<Tensor>;

// One call: keeps what the parameters point to.
class ViewCall {
 public:
  ViewCall(const char* op, const Tensor& x, const Tensor& mean, const Tensor& std, const Optional& flip,
           const Optional& shift, int64_t dtype, bool channels_last)
      : op_(op),
        device_(op, x),
        in_(read_rows(x, RowOrder::kImage)),
        out_(allocate_view(x, dtype, channels_last)),
        mean_(as_contiguous(mean)),
        std_(as_contiguous(std)),
        flip_(as_contiguous(flip)),
        shift_(as_contiguous(shift)) {
    const Dims sizes = x.sizes();
    a.src = static_cast<const uint8_t*>(in_.data);
    a.src_stride = in_.stride;
    a.flip = data_or_null<uint8_t>(flip_);
    a.shift = data_or_null<int64_t>(shift_);
    a.channels = to_int32(op, "C", sizes[1]);
    a.width = to_int32(op, "W", sizes[3]);
    a.src_channel = in_.channels_last ? 1 : sizes[2] * sizes[3];
    a.src_row = sizes[3] * (in_.channels_last ? sizes[1] : 1);
    a.src_pixel = in_.channels_last ? sizes[1] : 1;
    a.dst = out_.mutable_data_ptr();
    a.shape = image_shape(op, read_rows(out_, RowOrder::kImage));
    a.mean = static_cast<const float*>(mean_.const_data_ptr());
    a.std = static_cast<const float*>(std_.const_data_ptr());
    a.k = 1;
  }

  void index(const Tensor& index) {
    a.k = index.dim() == 1 ? 1 : to_int32(op_, "K", index.size(1));
    a.index = static_cast<const int64_t*>(index.const_data_ptr());
  }

  template <ViewMix kMix>
  Tensor run() {
    dispatch(op_, out_, [&](auto type) {
      const size_t bytes = view_shared<decltype(type)>(a);
      const size_t most = max_shared_bytes() - 1024;  // the kernels have some of their own
      STD_TORCH_CHECK(bytes <= most, op_, ": x has ", a.channels, " channels and K is ", a.k, ", whose tables take ",
                      bytes, " bytes of shared memory, want at most ", most);
      view<decltype(type), kMix>(a, device_.stream());
    });
    device_.check();
    return out_;
  }

 private:
  const char* op_;
  OnDevice device_;
  Rows in_;
  Tensor out_, mean_, std_;
  Optional flip_, shift_;

 public:
  ViewParams a{};
};

Tensor view_cuda(const Tensor& x, const Tensor& mean, const Tensor& std, const Optional& flip, const Optional& shift,
                 int64_t dtype, bool channels_last) {
  check_view("view", x, mean, std, flip, shift, dtype);
  return ViewCall("view", x, mean, std, flip, shift, dtype, channels_last).run<ViewMix::kPaste>();
}

Tensor view_blend_cuda(const Tensor& x, const Tensor& index_in, const Tensor& weight_in, const Tensor& mean,
                       const Tensor& std, const Optional& flip, const Optional& shift, int64_t dtype,
                       bool channels_last) {
  check_blended(check_view("view_blend", x, mean, std, flip, shift, dtype), x, index_in, weight_in);
  const Tensor index = as_contiguous(index_in), weight = as_contiguous(weight_in);
  ViewCall call("view_blend", x, mean, std, flip, shift, dtype, channels_last);
  call.index(index);
  call.a.weight = static_cast<const float*>(weight.const_data_ptr());
  return call.run<ViewMix::kBlend>();
}

Tensor view_paste_cuda(const Tensor& x, const Tensor& index_in, const Tensor& boxes_in, const Tensor& mean,
                       const Tensor& std, const Optional& flip, const Optional& shift, int64_t dtype,
                       bool channels_last) {
  check_pasted(check_view("view_paste", x, mean, std, flip, shift, dtype), x, index_in, boxes_in);
  const Tensor index = as_contiguous(index_in), boxes = as_contiguous(boxes_in);
  ViewCall call("view_paste", x, mean, std, flip, shift, dtype, channels_last);
  call.index(index);
  call.a.boxes = static_cast<const int32_t*>(boxes.const_data_ptr());
  return call.run<ViewMix::kPaste>();
}

std::tuple<Tensor, Tensor> view_patch_mix_cuda(const Tensor& x, const Tensor& partner_in, const Tensor& mask_in,
                                               const Tensor& lam_in, const Tensor& mean, const Tensor& std,
                                               const Optional& flip, const Optional& shift, int64_t dtype,
                                               bool channels_last) {
  check_cells(check_view("view_patch_mix", x, mean, std, flip, shift, dtype), x, partner_in, mask_in, lam_in);
  check_pixels("view_patch_mix", "x", x);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  ViewCall call("view_patch_mix", x, mean, std, flip, shift, dtype, channels_last);
  const Tensor shares = allocate(x, {x.size(0), 2}, ScalarType::Float);
  call.index(partner);
  ViewParams& a = call.a;
  set_cells(a, mask, lam);
  a.shares = static_cast<float*>(shares.mutable_data_ptr());
  return {call.run<ViewMix::kPatch>(), shares};
}

}  // namespace

FASTMIX_CUDA_OPERATORS(m) {
  m.impl("view", TORCH_BOX(&view_cuda));
  m.impl("view_blend", TORCH_BOX(&view_blend_cuda));
  m.impl("view_paste", TORCH_BOX(&view_paste_cuda));
  m.impl("view_patch_mix", TORCH_BOX(&view_patch_mix_cuda));
}

}  // namespace fastmix
