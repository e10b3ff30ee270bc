// The last image of batches of more than 2^31 elements: offsets that do not fit 32 bits.
//
// On the CPU memory is reserved, not filled: only the pages of the first and the last image are ever touched, and only
// the blocks of the last image run. On a GPU (make device-package) all of it is there and runs.   far NAME|all
#include <functional>
#include <map>
#include <string>

#include "buffers.h"
// after buffers.h
#include "cuda/paste.cuh"
#include "cuda/patch_mix.cuh"
#include "cuda/saliency.cuh"
#include "cuda/view.cuh"

namespace {

using namespace fastmix;

constexpr int kSide = 32, kChannels = 3, kImage = kChannels * kSide * kSide;
constexpr int64_t kImages = (int64_t{1} << 31) / kImage + 5;
static_assert((kImages - 1) * kImage > (int64_t{1} << 31));

void fill(bf16* image, float value) {
  bf16 values[kImage];
  for (bf16& v : values) store(&v, value);
  put(image, values, kImage);
}

void check(const bf16* image, int i, float want, const char* what) {
  bf16 found;
  take(&found, image + i, 1);
  if (to_float(found) != want) {
    std::fprintf(stderr, "%s: element %d of the last image is %g, want %g\n", what, i, to_float(found), want);
    std::exit(1);
  }
}

struct Batch {
  bf16 *src = reserve<bf16>(kImages * kImage), *dst = reserve<bf16>(kImages * kImage);
  ImageShape shape{kImages, kChannels, kSide, kSide, 1};

  bf16* last(bf16* batch) const { return batch + (kImages - 1) * kImage; }
};

// The parameters of paste and patch_mix begin alike.
template <typename P>
P image_params(const Batch& b) {
  P a{};
  a.shape = b.shape;
  a.src = b.src;
  a.src_stride = kImage;
  a.dst = b.dst;
  return a;
}

// The last image with a box of 4 x 4 pixels of the first one.
template <typename P>
void paste_first_on_last(P& a) {
  int64_t* index = reserve<int64_t>(kImages * 2);
  int32_t* boxes = reserve<int32_t>(kImages * 4);
  put(index + (kImages - 1) * 2, kImages - 1);
  put(boxes + (kImages - 1) * 4 + 2, 4);
  put(boxes + (kImages - 1) * 4 + 3, 4);
  a.k = 2;
  a.index = index;
  a.boxes = boxes;
}

// The last image is 2, the first one 1.
void far_paste() {
  const Batch b;
  fill(b.src, 1);
  fill(b.last(b.src), 2);
  PasteParams a = image_params<PasteParams>(b);
  paste_first_on_last(a);
  paste<uint16_t>(a, nullptr);
  check(b.last(b.dst), 0, 1, "paste");
  check(b.last(b.dst), 4, 2, "paste");
  check(b.last(b.dst), kImage - 1, 2, "paste");
}

PatchMixParams mix_params(const Batch& b) {
  fill(b.src, 1);
  fill(b.last(b.src), 3);
  PatchMixParams a = image_params<PatchMixParams>(b);
  a.partner = reserve<int64_t>(kImages);  // the first image, of all
  float* lam = reserve<float>(kImages);
  put(lam + kImages - 1, 0.5f);
  a.lam = lam;
  a.lam_step = 1;
  a.h = a.w = 4;
  a.weight = reserve<float>(kImages * 2);
  return a;
}

// The first cell is the last image's own.
void far_patch_mix() {
  const Batch b;
  PatchMixParams a = mix_params(b);
  uint8_t* mask = reserve<uint8_t>(kImages * 16);
  put(mask + (kImages - 1) * 16, uint8_t{1});
  a.mask = mask;
  patch_mix<bf16>(a, false, nullptr);
  check(b.last(b.dst), 0, 3, "patch_mix");
  check(b.last(b.dst), 8, 2, "patch_mix");
  check(b.last(b.dst), kImage - 1, 2, "patch_mix");
}

// One reader of the last source: the last image, all of it.
void read_last(int k, const int*& begin, const int*& readers) {
  int *bounds = reserve<int>(kImages + 1), *entries = reserve<int>(kImages * k);
  put(bounds + kImages, 1);  // the others are 0
  put(entries, static_cast<int>(kImages - 1) * k);
  begin = bounds;
  readers = entries;
}

void far_paste_backward() {
  const Batch b;
  fill(b.last(b.src), 2);
  PasteParams a = image_params<PasteParams>(b);
  a.k = 2;
  a.boxes = reserve<int32_t>(kImages * 4);
  read_last(2, a.begin, a.readers);
  paste_backward<bf16>(a, nullptr);
  check(b.last(b.dst), 0, 2, "paste_backward");
  check(b.last(b.dst), kImage - 1, 2, "paste_backward");
}

// Its own share is 1/2, and it reads itself as a partner.
void far_patch_mix_backward() {
  const Batch b;
  PatchMixParams a = mix_params(b);
  put(const_cast<int64_t*>(a.partner) + kImages - 1, kImages - 1);
  a.mask = reserve<uint8_t>(kImages * 16);
  read_last(1, a.begin, a.readers);
  patch_mix<bf16>(a, true, nullptr);
  check(b.last(b.dst), 0, 3, "patch_mix_backward");
  check(b.last(b.dst), kImage - 1, 3, "patch_mix_backward");
}

// Bytes of 255 are images of 1, the last one; the first one is 0.
void far_view() {
  const Batch b;
  uint8_t* src = reserve<uint8_t>(kImages * kImage);
  fill_bytes(src + (kImages - 1) * kImage, 255, kImage);
  ViewParams a{};
  a.shape = b.shape;
  a.src = src;
  a.src_stride = kImage;
  a.src_channel = kSide * kSide;
  a.src_row = kSide;
  a.src_pixel = 1;
  a.channels = kChannels;
  a.width = kSide;
  a.dst = b.dst;
  const float ones[kChannels] = {1, 1, 1};
  float* std = reserve<float>(kChannels);
  put(std, ones, kChannels);
  a.mean = reserve<float>(kChannels);
  a.std = std;
  paste_first_on_last(a);
  view<bf16, ViewMix::kPaste>(a, nullptr);
  check(b.last(b.dst), 0, 0, "view");
  check(b.last(b.dst), 4, 1, "view");
  check(b.last(b.dst), kImage - 1, 1, "view");
}

CellParams far_cells(const bf16* grad) {
  CellParams a{};
  a.grad = grad;
  a.image_stride = kImage;
  a.channel_stride = kSide * kSide;
  a.pixel_stride = 1;
  a.channels = kChannels;
  a.height = a.width = kSide;
  a.h = a.w = 4;
  return a;
}

// Only the first cell of the last gradient is not 0.
bf16* far_gradient(const Batch& b) {
  bf16* grad = reserve<bf16>(kImages * kImage);
  bf16 one;
  store(&one, 1.0f);
  put(b.last(grad), one);
  return grad;
}

float* percentiles() {
  float* q = reserve<float>(kImages);
  put(q + kImages - 1, 0.99f);
  return q;
}

void check_mask(const uint8_t* mask, const char* what) {
  uint8_t last[16];
  take(last, mask + (kImages - 1) * 16, 16);
  for (int i = 0; i < 16; ++i) {
    if (last[i] == (i == 0)) continue;
    std::fprintf(stderr, "%s: cell %d of the last mask is %d\n", what, i, last[i]);
    std::exit(1);
  }
}

void far_saliency() {
  const Batch b;
  SaliencyParams a{};
  a.image = far_cells(far_gradient(b));
  a.images = kImages;
  a.q = {percentiles(), false, 1};
  uint8_t* mask = reserve<uint8_t>(kImages * 16);
  a.out = mask;
  saliency<bf16>(a, nullptr);
  check_mask(mask, "saliency");
}

const std::map<std::string, std::function<void()>> kCases = {
    {"paste", far_paste},         {"paste_backward", far_paste_backward},
    {"patch_mix", far_patch_mix}, {"patch_mix_backward", far_patch_mix_backward},
    {"view", far_view},           {"saliency", far_saliency},
};

}  // namespace

int main(int argc, char** argv) {
  only_last_blocks(2);
  return run_cases(kCases, argc, argv, false);
}
