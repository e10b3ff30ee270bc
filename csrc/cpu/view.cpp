// View on the CPU: checks, tables, registration.

#include "cpu/view.h"

#include <tuple>
#include <vector>

#include "core/view.h"
#include "cpu/lib/binding.h"
#include "cpu/lib/image_tensors.h"
#include "torch/arguments.h"
#include "torch/layout.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

using Optional = std::optional<Tensor>;

// One call: keeps what the arguments point to.
class ViewCall {
 public:
  ViewCall(const Tensor& x, const Tensor& mean_in, const Tensor& std_in, const Optional& flip_in,
           const Optional& shift_in, int64_t dtype, bool channels_last)
      : in_(read_rows(x, RowOrder::kImage)),
        mean_(as_contiguous(mean_in)),
        std_(as_contiguous(std_in)),
        flip_(as_contiguous(flip_in)),
        shift_(as_contiguous(shift_in)),
        out_(allocate_view(x, dtype, channels_last)),
        type(static_cast<FloatType>(dtype)) {
    const Dims sizes = x.sizes();
    images = sizes[0];
    a.src = static_cast<const uint8_t*>(in_.data);
    a.src_stride = in_.stride;
    a.flip = data_or_null<uint8_t>(flip_);
    a.shift = data_or_null<int64_t>(shift_);
    a.channels = sizes[1];
    a.height = sizes[2];
    a.width = sizes[3];
    a.src_last = in_.channels_last;
    a.dst_last = channels_last && a.channels > 1;  // one channel: both layouts are the same bytes
    if (a.channels == 1) a.src_last = false;
    a.dst = out_.mutable_data_ptr();
    a.k = 1;
  }

  const Tensor& out() const { return out_; }

  // tiles: of bytes. shares: bytes a tile's element takes beside, and more a thread needs.
  void run(ViewRows kernel, int64_t tiles, size_t share_size = 0, size_t more = 0) {
    const int64_t row = a.width * a.channels;
    if (images == 0 || row == 0 || a.height == 0) return;
    const int64_t rows = kViewTile / row;
    a.tile_rows = rows < 1 ? 1 : rows < a.height ? rows : a.height;
    if (type == kFloat64) {
      lay_out(double_table_);
    } else {
      lay_out(float_table_);
    }
    const int64_t tile = a.tile_rows * row;
    const int64_t share_elements = a.tile_rows * a.width * (a.dst_last ? a.channels : 1);
    parallel_items(images * a.height, 2 * row, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> bytes(static_cast<size_t>(tiles * tile + row));
      std::vector<Span> spans(static_cast<size_t>(2 * a.k));
      std::vector<double> shares((share_size * static_cast<size_t>(share_elements) + more) / sizeof(double) + 1);
      kernel(a, {bytes.data(), bytes.data() + tiles * tile, spans.data(), shares.data()}, begin, end);
    });
  }

 private:
  Rows in_;
  Tensor mean_, std_;
  Optional flip_, shift_;
  Tensor out_;
  std::vector<float> float_table_;
  std::vector<double> double_table_;

  template <typename A>
  void lay_out(std::vector<A>& table) {
    const int64_t pixels = a.dst_last && a.channels < kViewBlock ? kViewBlock / a.channels : 1;
    a.period = pixels * a.channels;
    table.resize(static_cast<size_t>(2 * a.period));
    const float* mean = static_cast<const float*>(mean_.const_data_ptr());
    const float* std = static_cast<const float*>(std_.const_data_ptr());
    for (int64_t i = 0; i < a.period; ++i) {
      const int64_t c = i % a.channels;
      table[static_cast<size_t>(i)] = view_scale<A>(std[c]);
      table[static_cast<size_t>(a.period + i)] = view_offset<A>(mean[c], std[c]);
    }
    a.scale = table.data();
    a.offset = table.data() + a.period;
  }

 public:
  FloatType type;
  int64_t images;
  ViewArgs a{};
};

Tensor view_cpu(const Tensor& x, const Tensor& mean, const Tensor& std, const Optional& flip, const Optional& shift,
                int64_t dtype, bool channels_last) {
  check_view("view", x, mean, std, flip, shift, dtype);
  ViewCall call(x, mean, std, flip, shift, dtype, channels_last);
  call.run(FASTMIX_KERNELS(view).paste[call.type], 1);
  return call.out();
}

Tensor view_blend_cpu(const Tensor& x, const Tensor& index_in, const Tensor& weight_in, const Tensor& mean,
                      const Tensor& std, const Optional& flip, const Optional& shift, int64_t dtype,
                      bool channels_last) {
  check_blended(check_view("view_blend", x, mean, std, flip, shift, dtype), x, index_in, weight_in);
  const Tensor index = as_contiguous(index_in), weight = as_contiguous(weight_in);
  const int64_t* rows = static_cast<const int64_t*>(index.const_data_ptr());
  check_rows("blend", "index", rows, x.size(0), index.size(1), x.size(0));
  ViewCall call(x, mean, std, flip, shift, dtype, channels_last);
  call.a.k = index.size(1);
  call.a.index = rows;
  call.a.weight = static_cast<const float*>(weight.const_data_ptr());
  // Where the tiles lie, then sums of a block of elements or of one pixel.
  const int64_t block = call.a.channels > kViewBlock ? call.a.channels : kViewBlock;
  call.run(FASTMIX_KERNELS(view).blend[call.type], call.a.k, 0, static_cast<size_t>(call.a.k * 16 + block * 8));
  return call.out();
}

Tensor view_paste_cpu(const Tensor& x, const Tensor& index_in, const Tensor& boxes_in, const Tensor& mean,
                      const Tensor& std, const Optional& flip, const Optional& shift, int64_t dtype,
                      bool channels_last) {
  check_pasted(check_view("view_paste", x, mean, std, flip, shift, dtype), x, index_in, boxes_in);
  const Tensor index = as_contiguous(index_in);
  const int64_t* rows = static_cast<const int64_t*>(index.const_data_ptr());
  check_rows("paste", "index", rows, x.size(0), index.size(1), x.size(0));
  ViewCall call(x, mean, std, flip, shift, dtype, channels_last);
  call.a.k = index.size(1);
  call.a.index = rows;
  const std::vector<Box> clipped = clip_boxes(boxes_in, call.a.height, call.a.width);
  call.a.boxes = clipped.data();
  call.run(FASTMIX_KERNELS(view).paste[call.type], 1);
  return call.out();
}

std::tuple<Tensor, Tensor> view_patch_mix_cpu(const Tensor& x, const Tensor& partner_in, const Tensor& mask_in,
                                              const Tensor& lam_in, const Tensor& mean, const Tensor& std,
                                              const Optional& flip, const Optional& shift, int64_t dtype,
                                              bool channels_last) {
  check_cells(check_view("view_patch_mix", x, mean, std, flip, shift, dtype), x, partner_in, mask_in, lam_in);
  const Tensor partner = as_contiguous(partner_in), mask = as_contiguous(mask_in), lam = as_contiguous(lam_in);
  const int64_t* rows = static_cast<const int64_t*>(partner.const_data_ptr());
  check_rows("patch_mix", "partner", rows, x.size(0), 1, x.size(0));
  ViewCall call(x, mean, std, flip, shift, dtype, channels_last);
  ViewArgs& a = call.a;
  a.index = rows;
  set_cells(a, mask, lam);
  const Tensor weight = allocate(x, {call.images, 2}, ScalarType::Float);
  float* shares = static_cast<float*>(weight.mutable_data_ptr());
  const int64_t cells = a.h * a.w;
  for (int64_t n = 0; n < call.images; ++n) {
    write_patch_weight(a.mask + n * cells, a.mask + rows[n] * cells, cells, a.lam[n * a.lam_step], shares + 2 * n);
  }
  call.run(FASTMIX_KERNELS(view).patch_mix[call.type], 2, call.type == kFloat64 ? sizeof(double) : sizeof(float));
  return {call.out(), weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("view", TORCH_BOX(&view_cpu));
  m.impl("view_blend", TORCH_BOX(&view_blend_cpu));
  m.impl("view_paste", TORCH_BOX(&view_paste_cpu));
  m.impl("view_patch_mix", TORCH_BOX(&view_patch_mix_cpu));
}

}  // namespace fastmix
