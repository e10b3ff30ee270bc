// Every CUDA kernel on small inputs, in buffers of exactly their size: for ThreadSanitizer and AddressSanitizer, and,
// compiled by nvcc (make device-package), for compute-sanitizer.
//
//   cases               lists the cases
//   cases NAME [N]      runs one, leaving out the N-th barrier of every block; prints the barriers of a block
//   cases all           runs every one and names it
#include <functional>
#include <map>
#include <string>

#include "buffers.h"
// after buffers.h
#include "cuda/isda.cuh"
#include "cuda/lib/scale_gradient.cuh"
#include "cuda/paste.cuh"
#include "cuda/patch_mix.cuh"
#include "cuda/saliency.cuh"
#include "cuda/soft_target.cuh"
#include "cuda/view.cuh"

namespace {

using namespace fastmix;

uint32_t random_bits() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

template <typename T>
Buffer<T> random_values(size_t n) {
  Buffer<T> b(n);
  for (size_t i = 0; i < n; ++i) store(&b[i], accumulator_t<T>(static_cast<int>(random_bits() % 2001) - 1000) / 250);
  return b;
}

Buffer<int64_t> random_index(size_t n, int64_t size) {
  Buffer<int64_t> b(n);
  for (size_t i = 0; i < n; ++i) b[i] = random_bits() % size;
  return b;
}

template <typename T>
void soft_target_case(int64_t rows, int classes, Loss loss, bool dense, bool count_first = false,
                      bool class_weighted = false, int64_t pixels = 0) {
  constexpr int64_t k = 3;
  Buffer<T> logits = random_values<T>(rows * classes), grad(rows * classes);
  Buffer<int64_t> index = random_index(rows * k, classes);
  Buffer<double> totals(2);
  Buffer<float> weight = random_values<float>(rows * k), base = random_values<float>(rows);
  Buffer<float> class_weight = random_values<float>(classes);
  Buffer<accumulator_t<T>> row_grad = random_values<accumulator_t<T>>(rows);
  auto target = random_values<accumulator_t<T>>(rows * classes);
  Buffer<double> block_loss(rows);
  Buffer<unsigned> finished(1);
  finished[0] = 0;
  Buffer<accumulator_t<T>> out(1);
  if (rows > 2) {
    for (int64_t i = 0; i < k; ++i) index[k + i] = -100;  // an ignored row
    index[0] = -100;                                      // an ignored slot
    index[2 * k + 1] = classes;                           // out of range: no access may follow it
  }
  SoftTargetParams a{};
  a.logits = logits;
  a.row_stride = classes;
  a.rows = rows;
  a.classes = classes;
  if (dense) {
    a.target = target;
  } else {
    a.index = index;
    a.k = k;
    a.weight = weight;
    a.base = loss == kKl ? base.get() : nullptr;
  }
  a.ignore_index = -100;
  a.smoothing = loss == kKl ? 0.1 : 0;
  a.loss = loss;
  a.reduction = kMean;
  a.block_loss = block_loss;
  a.finished = count_first ? nullptr : finished.get();  // without: a launch of its own reduces
  a.totals = count_first ? totals.get() : nullptr;
  a.class_weight = class_weighted ? class_weight.get() : nullptr;
  a.row_grad = class_weighted ? row_grad.get() : nullptr;
  a.row_grad_step = 1;
  a.pixels = pixels;
  a.out = out;
  a.grad = grad;
  soft_target<T>(a, nullptr);
  Buffer<accumulator_t<T>> g = random_values<accumulator_t<T>>(rows);
  scale_gradient<T>({grad, g, rows, classes, true}, nullptr);
}

// (n, channels, height, width) in either layout; the widths decide whether rows are packs.
ImageShape image_shape(int n, int channels, int height, int width, bool channels_last) {
  return channels_last ? ImageShape{n, 1, height, width, channels} : ImageShape{n, channels, height, width, 1};
}

template <typename T>
void paste_case(int n, int channels, int height, int width, bool channels_last, bool backward) {
  constexpr int k = 3;
  PasteParams a{};
  a.shape = image_shape(n, channels, height, width, channels_last);
  a.src_stride = a.shape.image_elements();
  Buffer<T> src = random_values<T>(n * a.src_stride), dst(n * a.src_stride);
  Buffer<int64_t> index = random_index(n * k, n);
  Buffer<int32_t> boxes(n * (k - 1) * 4);
  for (size_t i = 0; i < boxes.size; ++i) boxes[i] = static_cast<int32_t>(random_bits() % (2 * height)) - height / 2;
  index[k] = n;  // out of range
  boxes[0] = INT32_MAX;
  boxes[2] = INT32_MAX;
  Buffer<int> begin(n + 1), readers(n * k);
  a.src = src;
  a.dst = dst;
  a.k = k;
  a.index = index;
  a.boxes = boxes;
  if (!backward) {
    if constexpr (sizeof(T) == 2) return paste<uint16_t>(a, nullptr);
    if constexpr (sizeof(T) == 4) return paste<uint32_t>(a, nullptr);
  }
  find_readers({index, n, k, n, begin, readers}, nullptr);
  a.begin = begin;
  a.readers = readers;
  paste_backward<T>(a, nullptr);
}

template <typename T>
void patch_mix_case(int n, int channels, int height, int width, int h, int w, bool channels_last, bool backward) {
  PatchMixParams a{};
  a.shape = image_shape(n, channels, height, width, channels_last);
  a.src_stride = a.shape.image_elements();
  Buffer<T> src = random_values<T>(n * a.src_stride), dst(n * a.src_stride);
  Buffer<int64_t> partner = random_index(n, n);
  partner[n - 1] = -1;
  Buffer<uint8_t> mask(n * h * w);
  for (size_t i = 0; i < mask.size; ++i) mask[i] = random_bits() % 2;
  Buffer<float> lam = random_values<float>(n), weight(2 * n);
  Buffer<int> begin(n + 1), readers(n);
  a.src = src;
  a.dst = dst;
  a.partner = partner;
  a.mask = mask;
  a.lam = lam;
  a.lam_step = 1;
  a.h = h;
  a.w = w;
  a.weight = weight;
  if (backward) find_readers({partner, n, 1, n, begin, readers}, nullptr);
  a.begin = begin;
  a.readers = readers;
  patch_mix<T>(a, backward, nullptr);
}

// Bytes in one layout, images in another or the same; shifts that leave the image and mirrored images among them.
template <typename T, ViewMix kMix>
void view_case(int n, int channels, int height, int width, bool src_last, bool dst_last) {
  constexpr int k = kMix == ViewMix::kPatch ? 1 : 3;
  ViewParams a{};
  a.shape = image_shape(n, channels, height, width, dst_last);
  const size_t elements = a.shape.image_elements();
  a.src_stride = elements;
  a.src_channel = src_last ? 1 : height * width;
  a.src_row = width * (src_last ? channels : 1);
  a.src_pixel = src_last ? channels : 1;
  a.channels = channels;
  a.width = width;
  Buffer<uint8_t> src(n * elements), flip(n), mask(n * height * width);
  Buffer<T> dst(n * elements);
  Buffer<float> mean = random_values<float>(channels), std = random_values<float>(channels), weight(n * k);
  Buffer<int64_t> index = random_index(n * k, n), shift(2 * n);
  Buffer<int32_t> boxes(n * (k - 1) * 4);
  for (size_t i = 0; i < boxes.size; ++i) boxes[i] = static_cast<int32_t>(random_bits() % (2 * height)) - height / 2;
  for (int i = 0; i < n; ++i) flip[i] = i % 2;
  for (int i = 0; i < 2 * n; ++i) shift[i] = i < 4 ? 4 * (i % 2) - 4 : static_cast<int>(random_bits() % 9) - 4;
  for (int i = 0; i < n * k; ++i) weight[i] = 0.25f;
  for (size_t i = 0; i < mask.size; ++i) mask[i] = random_bits() % 2;
  index[n * k - 1] = -1;  // out of range: no access may follow it
  a.src = src;
  a.dst = dst;
  a.mean = mean;
  a.std = std;
  a.flip = flip;
  a.shift = shift;
  a.k = k;
  a.index = index;
  a.boxes = boxes;
  a.weight = weight;
  a.mask = mask;
  a.lam = weight;
  a.lam_step = 1;
  a.h = height;
  a.w = width;
  Buffer<float> shares(2 * n);
  a.shares = shares;
  view<T, kMix>(a, nullptr);
}

CellParams cell_params(const void* grad, int channels, int height, int width, int h, int w, bool channels_last) {
  CellParams a{};
  a.grad = grad;
  a.image_stride = channels * height * width;
  a.channel_stride = channels_last ? 1 : height * width;
  a.pixel_stride = channels_last ? channels : 1;
  a.channels = channels;
  a.height = height;
  a.width = width;
  a.h = h;
  a.w = w;
  return a;
}

template <typename T>
void saliency_case(int n, int channels, int height, int width, int h, int w, bool channels_last, bool map) {
  using A = accumulator_t<T>;
  Buffer<T> grad = random_values<T>(n * channels * height * width);
  Buffer<A> cells(n * h * w);
  Buffer<uint8_t> mask(n * h * w);
  Buffer<float> q(n);
  for (int i = 0; i < n; ++i) q[i] = 0.5f;
  SaliencyParams a{};
  a.image = cell_params(grad, channels, height, width, h, w, channels_last);
  a.images = n;
  a.q = {q, false, 1};
  a.is_map = map;
  a.cells = cells;
  a.out = map ? static_cast<void*>(cells) : static_cast<void*>(mask);
  saliency<T>(a, nullptr);
}

// On the coarser of two grids, or the finer.
template <typename T>
void grids_case(int n, int channels, int height, int width, int coarse, int fine, int64_t drawn, bool channels_last) {
  Buffer<T> grad = random_values<T>(n * channels * height * width);
  Buffer<accumulator_t<T>> cells(n * fine * fine);
  Buffer<uint8_t> mask(n * fine * fine);
  Buffer<float> q(n);
  for (int i = 0; i < n; ++i) q[i] = 0.5f;
  Buffer<int64_t> grid(1);
  grid[0] = drawn;
  GridParams a{};
  a.image = cell_params(grad, channels, height, width, fine, fine, channels_last);
  a.images = n;
  a.q = {q, false, 1};
  a.grid = grid;
  a.plans[0].side = coarse;
  a.plans[1].side = fine;
  a.grids = 2;
  a.side = fine;
  a.most_cells = fine * fine;
  a.cells = cells;
  a.out = mask;
  saliency_mask_of_grid<T>(a, nullptr);
}

template <typename T>
void peak_case(int n, int channels, int height, int width, bool channels_last) {
  Buffer<T> grad = random_values<T>(n * channels * height * width);
  PeakParams a{};
  a.image = cell_params(grad, channels, height, width, 1, 1, channels_last);
  a.images = n;
  a.blocks = peak_blocks(a.image);
  Buffer<int64_t> keys(n * a.blocks), out(2 * n);
  Buffer<int> pixels(n * a.blocks);
  a.keys = keys;
  a.pixels = pixels;
  a.out = out;
  saliency_peak<T>(a, nullptr);
}

template <typename A>
void percentile_case(int n, int cells) {
  Buffer<A> values = random_values<A>(n * cells);
  Buffer<uint8_t> mask(n * cells);
  Buffer<double> q(1);
  q[0] = 0.3;
  percentile<A>({values, mask, n, cells, {q, true, 0}}, nullptr);
}

template <typename T>
void isda_case(int64_t images, int classes, int width, int64_t pixels, bool diag, bool backward) {
  using A = accumulator_t<T>;
  const int64_t elements = images * classes * pixels, rows = images * pixels;
  Buffer<T> in = random_values<T>(elements), out(elements);
  Buffer<A> weight = random_values<A>(classes * width), cov = random_values<A>(classes * width);
  Buffer<A> gradient(classes * width);
  Buffer<int64_t> labels = random_index(rows, classes);
  labels[0] = -100;
  labels[rows / 2] = classes;  // out of range: no access may follow it
  IsdaParams a{};
  a.in = in;
  a.image_stride = classes * pixels;
  a.class_stride = pixels;
  a.pixel_stride = 1;
  a.images = images;
  a.pixels = pixels;
  a.classes = classes;
  a.width = width;
  a.labels = labels;
  a.ignore_index = -100;
  a.weight = weight;
  a.cov = diag ? cov.get() : nullptr;
  a.scale = 0.5;
  a.slots = static_cast<int>(rows < classes ? rows : classes);
  Buffer<int> present(a.slots), slot(classes);
  a.present = present;
  a.slot = slot;
  plan_table(a);
  plan_pull(a);
  Buffer<A> table(static_cast<size_t>(a.parts) * a.slots * classes), sums(static_cast<size_t>(a.slots) * classes);
  Buffer<A> centre(width), pull(static_cast<size_t>(a.pull_parts) * a.slots * width);
  a.centre = centre;
  a.pull = pull;
  a.table = table;
  a.sums = sums;
  a.out = backward ? static_cast<void*>(gradient) : static_cast<void*>(out);
  if (backward) {
    isda_logits_backward<T>(a, nullptr);
  } else {
    isda_logits<T>(a, nullptr);
  }
}

const std::map<std::string, std::function<void()>> kCases = {
    {"isda_rows", [] { isda_case<bf16>(9, 70, 300, 1, true, false); }},
    {"isda_rows_many_classes", [] { isda_case<float>(3, 600, 5, 1, false, false); }},
    {"isda_pixels", [] { isda_case<float>(2, 5, 33, 101, true, false); }},
    {"isda_many_labels", [] { isda_case<float>(2, 3, 5, 1100, true, false); }},
    {"isda_rows_backward", [] { isda_case<float>(9, 70, 65, 1, true, true); }},
    {"isda_pixels_backward", [] { isda_case<f16>(2, 11, 33, 35, false, true); }},
    {"paste", [] { paste_case<bf16>(3, 5, 16, 24, false, false); }},
    {"paste_wrapped", [] { paste_case<bf16>(3, 4, 6, 12, false, false); }},
    {"paste_odd", [] { paste_case<float>(3, 3, 7, 9, true, false); }},
    {"paste_backward", [] { paste_case<float>(3, 3, 8, 8, true, true); }},
    {"paste_backward_odd", [] { paste_case<f16>(3, 3, 7, 7, false, true); }},
    {"patch_mix", [] { patch_mix_case<bf16>(3, 3, 16, 16, 4, 2, false, false); }},
    {"patch_mix_wrapped", [] { patch_mix_case<bf16>(3, 4, 6, 12, 3, 4, false, false); }},
    {"patch_mix_odd", [] { patch_mix_case<double>(3, 3, 9, 9, 3, 9, true, false); }},
    {"patch_mix_backward", [] { patch_mix_case<float>(3, 3, 16, 16, 2, 4, true, true); }},
    {"patch_mix_backward_odd", [] { patch_mix_case<f16>(3, 5, 6, 5, 2, 5, false, true); }},
    {"view", [] { view_case<float, ViewMix::kPaste>(4, 3, 8, 16, false, false); }},
    {"view_wrapped", [] { view_case<bf16, ViewMix::kPaste>(3, 4, 6, 12, false, false); }},
    {"view_odd", [] { view_case<f16, ViewMix::kPaste>(3, 3, 7, 9, true, false); }},
    {"view_blend", [] { view_case<bf16, ViewMix::kBlend>(4, 3, 8, 16, true, true); }},
    {"view_blend_turned", [] { view_case<float, ViewMix::kBlend>(3, 5, 4, 12, true, false); }},
    {"view_patch_mix", [] { view_case<float, ViewMix::kPatch>(3, 3, 32, 32, false, true); }},
    {"view_patch_mix_double", [] { view_case<double, ViewMix::kPatch>(3, 1, 6, 6, false, false); }},
    {"saliency_map_whole", [] { saliency_case<float>(2, 3, 32, 32, 4, 4, false, true); }},
    {"saliency_mask_whole", [] { saliency_case<bf16>(2, 3, 32, 64, 4, 8, true, false); }},
    {"saliency_mask_cells", [] { saliency_case<float>(2, 2, 32, 16, 32, 16, true, false); }},
    {"saliency_mask_divided", [] { saliency_case<float>(2, 3, 96, 64, 12, 8, false, false); }},
    {"saliency_map_divided", [] { saliency_case<double>(1, 5, 66, 50, 3, 5, false, true); }},
    {"saliency_grids_whole", [] { grids_case<bf16>(2, 3, 32, 32, 2, 4, 0, true); }},
    {"saliency_grids_divided", [] { grids_case<float>(1, 3, 96, 96, 2, 24, 1, false); }},
    {"saliency_peak", [] { peak_case<float>(2, 3, 16, 16, false); }},
    {"saliency_peak_divided", [] { peak_case<bf16>(1, 3, 160, 128, true); }},
    {"percentile_1024", [] { percentile_case<float>(1, 1000); }},
    {"percentile_16384", [] { percentile_case<float>(1, 1300); }},
    {"percentile_double", [] { percentile_case<double>(2, 100); }},
    {"percentile_memory", [] { percentile_case<float>(1, 16500); }},
    {"soft_target_warp", [] { soft_target_case<bf16>(9, 37, kKl, false); }},
    {"soft_target_warp_full", [] { soft_target_case<float>(9, 1001, kCrossEntropy, false); }},
    {"soft_target_block", [] { soft_target_case<float>(10, 2001, kKl, false); }},
    {"soft_target_staged", [] { soft_target_case<bf16>(6, 9001, kCrossEntropy, false); }},
    {"soft_target_looped", [] { soft_target_case<float>(4, 33001, kCrossEntropy, false); }},
    {"soft_target_double", [] { soft_target_case<double>(4, 301, kKl, false, true); }},
    {"soft_target_dense", [] { soft_target_case<float>(10, 1001, kKl, true); }},
    {"soft_target_class_weights", [] { soft_target_case<bf16>(10, 301, kKl, false, true, true); }},
    {"soft_target_pixels", [] { soft_target_case<f16>(3 * 67, 19, kKl, false, false, true, 67); }},
    {"soft_target_pixels_dense", [] { soft_target_case<float>(2 * 130, 5, kCrossEntropy, true, false, false, 130); }},
    {"soft_target_pixels_sigmoid", [] { soft_target_case<bf16>(2 * 33, 7, kBce, false, true, true, 33); }},
    {"soft_target_sigmoid", [] { soft_target_case<f16>(10, 2001, kBce, false); }},
};

}  // namespace

int main(int argc, char** argv) { return run_cases(kCases, argc, argv, true); }
