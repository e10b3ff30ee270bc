// soft_target of pixels on the GPU: logits (N, J, P), whose classes lie P elements apart. Not yet run on a GPU.
//
// A thread has a pixel, a warp 32 neighbours, so that every load and store is of whole sectors. Three passes over the
// classes, for the maximum, the sums and the gradient: from memory the first time, then from the caches (128 pixels of
// 19 float32 classes: 10 KB a block).
// bytes: N*J*P*size read once, as many written with a gradient; flops: about 20 an element.
#pragma once

#include "cuda/lib/soft_target_rows.cuh"

namespace fastmix {

constexpr int kPixelBlock = 128;

template <int kBlock>
FASTMIX_DEVICE BatchTotals batch_totals(const SoftTargetParams& a, bool divided);

// The target of one row, by one thread.
FASTMIX_DEVICE RowOf row_of_thread(const SoftTargetParams& a, int64_t n, double batch_confidence) {
  const NamedClasses named = named_classes(a, n);
  double given = 0, kept = 0;
  int64_t counted = 0;
  bool bad = false;
  for (int64_t i = 0; i < a.k; ++i) {
    const double weight = given_weight(named, i);
    given += weight;
    if (!is_counted(named, i)) continue;
    ++counted;
    kept += weight;
    bad |= static_cast<uint64_t>(named.index[i]) >= static_cast<uint64_t>(a.classes);
  }
  RowOf row{row_target(a, n, a.classes, given, kept, counted, batch_confidence), 0, !bad, counted == 0};
  for (int64_t i = 0; !bad && i < a.k; ++i) row.named_sum += named_weight(row.target.named, i);
  return row;
}

// Class j of the pixel: its logit, and its target without and with its class weight.
template <typename T>
struct Pixel {
  using A = accumulator_t<T>;
  const SoftTargetParams& a;
  const T* z;       // class 0
  const A* target;  // likewise, or null: base
  A keep, base;

  FASTMIX_METHOD A logit(int64_t j) const { return to_float(z[j * a.pixels]); }
  FASTMIX_METHOD A plain(int64_t j) const { return target != nullptr ? target[j * a.pixels] * keep + base : base; }
  FASTMIX_METHOD A weight(int64_t j) const {
    return a.class_weight != nullptr ? static_cast<A>(a.class_weight[j]) : A(1);
  }
};

template <typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double softmax_pixel(const Pixel<T>& pixel, const RowOf& of, T* grad, double s) {
  const SoftTargetParams& a = pixel.a;
  A m = -static_cast<A>(INFINITY);
#pragma unroll 4
  for (int j = 0; j < a.classes; ++j) m = Larger()(m, pixel.logit(j));
  // exps: exp(z - m), the largest (each 1) counted apart: many small ones added to 1 would be lost.
  A exps = 0, largest = 0, total = 0, dot = 0, entropy = 0, weights = 0;
#pragma unroll 4
  for (int j = 0; j < a.classes; ++j) {
    const A v = pixel.logit(j), plain = pixel.plain(j), weight = pixel.weight(j), w = plain * weight;
    exps += v == m ? A(0) : exp_nonpositive(v - m);
    largest += v == m ? A(1) : A(0);
    total += w;
    dot += w == 0 ? A(0) : w * (v - m);
    weights += weight;
    if (a.loss == kKl && pixel.target != nullptr) entropy += plain == 0 ? A(0) : weight * plain * std::log(plain);
  }
  const RowTarget& t = of.target;
  const NamedClasses& named = t.named;
  const bool sparse = pixel.target == nullptr;
  const double mass = total + of.named_sum;
  const double all = static_cast<double>(largest) + static_cast<double>(exps);
  double loss = mass * std::log(all) - dot + entropy, distinct = 0;
  for (int64_t i = 0; sparse && i < named.k; ++i) {
    if (!is_counted(named, i)) continue;
    loss -= weighted(named_weight(named, i), static_cast<double>(pixel.logit(named.index[i])) - m);
    if (a.loss != kKl || !is_first_of_class(named, i)) continue;
    distinct += weight_of_class(named, i);
    loss += weight_of_class(named, i) * xlogx(t.base + class_target(named, i));
  }
  if (sparse && a.loss == kKl) loss += (weights - distinct) * xlogx(t.base);
  if (grad == nullptr) return loss;
  const A scale = static_cast<A>(s), c = static_cast<A>(s * mass / all);
#pragma unroll 4
  for (int j = 0; j < a.classes; ++j) {
    store(grad + j * a.pixels,
          static_cast<A>(exp_nonpositive(pixel.logit(j) - m) * c - scale * (pixel.plain(j) * pixel.weight(j))));
  }
  // The named classes once more, rounded once; the same thread wrote them just now.
  for (int64_t i = 0; sparse && i < named.k; ++i) {
    if (!is_first_of_class(named, i)) continue;
    const int64_t j = named.index[i];
    const double wanted = (t.base + class_target(named, i)) * weight_of_class(named, i);
    const double e = exp_nonpositive(pixel.logit(j) - m);
    store(grad + j * a.pixels, static_cast<A>(s * (e * mass / all - wanted)));
  }
  return loss;
}

template <typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double sigmoid_pixel(const Pixel<T>& pixel, const RowOf& of, T* grad, double s) {
  const SoftTargetParams& a = pixel.a;
  const RowTarget& t = of.target;
  const A share = static_cast<A>(t.share), scale = static_cast<A>(s);
  A sum = 0;
#pragma unroll 2
  for (int j = 0; j < a.classes; ++j) {
    const A v = pixel.logit(j), weight = pixel.weight(j), wanted = pixel.plain(j) * weight, kept = share * weight;
    const A e = exp_nonpositive(-std::fabs(v));
    sum += kept * ((v > 0 ? v : A(0)) + log1p_unit(e)) - (wanted == 0 ? A(0) : wanted * v);
    if (grad != nullptr) {
      store(grad + j * a.pixels, static_cast<A>(scale * (kept * quotient(v >= 0 ? A(1) : e, A(1) + e) - wanted)));
    }
  }
  double loss = sum;
  const NamedClasses& named = t.named;
  for (int64_t i = 0; pixel.target == nullptr && i < named.k; ++i) {
    if (!is_counted(named, i)) continue;
    const int64_t j = named.index[i];
    const A logit = pixel.logit(j);
    loss -= weighted(named_weight(named, i), logit);
    if (grad == nullptr || !is_first_of_class(named, i)) continue;
    const A e = exp_nonpositive(-std::fabs(logit));
    const double sigmoid = t.share * (logit >= 0 ? A(1) : e) / (A(1) + e);
    store(grad + j * a.pixels,
          static_cast<A>(s * weight_of_class(named, i) * (sigmoid - t.base - class_target(named, i))));
  }
  return loss;
}

template <typename T, bool kSigmoid>
FASTMIX_KERNEL void __launch_bounds__(kPixelBlock, 4)
    soft_target_pixel_rows(const __grid_constant__ SoftTargetParams a) {
  using A = accumulator_t<T>;
  const BatchTotals totals = batch_totals<kPixelBlock>(a, a.grad != nullptr);
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kPixelBlock + threadIdx.x; n < a.rows;
       n += static_cast<int64_t>(gridDim.x) * kPixelBlock) {
    const int64_t first = n / a.pixels * a.classes * a.pixels + n % a.pixels;
    const RowOf of = a.index != nullptr ? row_of_thread(a, n, totals.confidence) : dense_row_of(a, n);
    T* grad = a.grad != nullptr ? static_cast<T*>(a.grad) + first : nullptr;
    double loss = 0;
    if (a.classes == 0 || of.ignored || !of.in_range) {
      const bool bad = a.classes > 0 && !of.ignored;
      loss = bad ? NAN : 0.0;
      for (int j = 0; grad != nullptr && j < a.classes; ++j) grad[j * a.pixels] = bad ? nan_of<T>() : T{};
    } else {
      const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + first : nullptr;
      const Pixel<T> pixel{a, static_cast<const T*>(a.logits) + first, target,
                           static_cast<A>(kSigmoid ? 1.0 : 1.0 - a.smoothing), static_cast<A>(of.target.base)};
      const double s = grad != nullptr ? gradient_scale<A>(a, n, of, totals) : 1.0;
      loss = of.target.scale * (kSigmoid ? sigmoid_pixel(pixel, of, grad, s) : softmax_pixel(pixel, of, grad, s));
    }
    if (a.reduction == kNone) {
      static_cast<A*>(a.out)[n] = static_cast<A>(loss);
    } else {
      a.row_loss[n] = loss;
    }
  }
}

template <typename T>
void soft_target_pixels(const SoftTargetParams& a, Stream stream) {
  const int64_t wanted = ceil_div(a.rows, kPixelBlock), resident = static_cast<int64_t>(multiprocessors()) * 16;
  const LaunchShape shape{wanted < resident ? wanted : resident, kPixelBlock};
  if (a.loss == kBce) {
    launch(soft_target_pixel_rows<T, true>, shape, stream, a);
  } else {
    launch(soft_target_pixel_rows<T, false>, shape, stream, a);
  }
}

}  // namespace fastmix
