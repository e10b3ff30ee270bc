// soft_target of pixels on the GPU: logits (N, J, P), whose classes lie P elements apart. Not yet run on a GPU.
//
// A thread has a pixel, a warp 32 neighbours, so that every load and store is of whole sectors. Three passes over the
// classes, for the maximum, the sums and the gradient: from memory the first time, then from the caches (128 pixels of
// 19 float32 classes: 10 KB a block).
// bytes: N*J*P*size read once, as many written with a gradient; flops: about 20 an element.
#pragma once

#include "cuda/lib/batch_loss.cuh"

namespace fastmix {

constexpr int kPixelBlock = 128;

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

// Classes whose loads are issued together: where they come from memory, and where from the caches.
constexpr int kFirstClasses = 16, kNextClasses = 4;

// f(j, v) for N classes of a pixel at a time, all loads of which come first, and one at a time for what is left.
template <int N, typename T, typename F>
FASTMIX_DEVICE void visit_classes(const T* z, int64_t stride, int classes, const F& f) {
  int j = 0;
  for (; j + N <= classes; j += N) {
    Words<T, 1> words[N];
#pragma unroll
    for (int i = 0; i < N; ++i, z += stride) words[i] = load_words<T, 1>(z, true);
    accumulator_t<T> v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = element<T, 1>(words[i], 0);
    f(j, v);
  }
  for (; j < classes; ++j, z += stride) {
    const accumulator_t<T> v[1] = {to_float(*z)};
    f(j, v);
  }
}

// kPlain: no dense target and no class weights.
template <bool kPlain, typename T, typename A = accumulator_t<T>>
FASTMIX_DEVICE double softmax_pixel(const Pixel<T>& pixel, const RowOf& of, T* grad, double s) {
  const SoftTargetParams& a = pixel.a;
  A m = -static_cast<A>(INFINITY);
  visit_classes<kFirstClasses>(pixel.z, a.pixels, a.classes, [&](int, const auto& v) {
    for (const A value : v) m = Larger()(m, value);
  });
  // exps: exp(z - m), the largest (each 1) counted apart: many small ones added to 1 would be lost.
  A exps = 0, largest = 0, total = 0, dot = 0, entropy = 0, weights = 0;
  visit_classes<kNextClasses>(pixel.z, a.pixels, a.classes, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      exps += v[i] == m ? A(0) : exp_nonpositive(v[i] - m);
      largest += v[i] == m ? A(1) : A(0);
      if constexpr (!kPlain) {
        const A plain = pixel.plain(j + i), weight = pixel.weight(j + i), w = plain * weight;
        total += w;
        dot += w == 0 ? A(0) : w * (v[i] - m);
        weights += weight;
        if (a.loss == kKl && pixel.target != nullptr) entropy += plain == 0 ? A(0) : weight * plain * std::log(plain);
      }
    }
  });
  if constexpr (kPlain) {
    weights = static_cast<A>(a.classes);
    total = pixel.base * weights;
    if (pixel.base != 0) {
      visit_classes<kNextClasses>(pixel.z, a.pixels, a.classes, [&](int, const auto& v) {
        constexpr int kCount = sizeof(v) / sizeof(v[0]);
#pragma unroll
        for (int i = 0; i < kCount; ++i) dot += v[i] - m;
      });
      dot *= pixel.base;
    }
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
  const A scale = static_cast<A>(s), c = static_cast<A>(s * mass / all), common = scale * pixel.base;
  const ScaledExponential<A> exponential(m, c);
  visit_classes<kNextClasses>(pixel.z, a.pixels, a.classes, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
    T* to = grad + j * a.pixels;
#pragma unroll
    for (int i = 0; i < kCount; ++i, to += a.pixels) {
      A wanted = common;
      if constexpr (!kPlain) wanted = scale * (pixel.plain(j + i) * pixel.weight(j + i));
      store(to, exponential(v[i]) - wanted);
    }
  });
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
  visit_classes<kNextClasses>(pixel.z, a.pixels, a.classes, [&](int j, const auto& v) {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
    T* to = grad != nullptr ? grad + j * a.pixels : nullptr;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const A weight = pixel.weight(j + i), wanted = pixel.plain(j + i) * weight, kept = share * weight;
      const A e = exp_nonpositive(-std::fabs(v[i]));
      sum += kept * ((v[i] > 0 ? v[i] : A(0)) + log1p_unit(e)) - (wanted == 0 ? A(0) : wanted * v[i]);
      if (to == nullptr) continue;
      store(to, static_cast<A>(scale * (kept * quotient(v[i] >= 0 ? A(1) : e, A(1) + e) - wanted)));
      to += a.pixels;
    }
  });
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

// kSparse: named classes and a base, no class weights.
template <typename T, TargetKind kKind>
FASTMIX_KERNEL void __launch_bounds__(kPixelBlock, sizeof(T) == 8 ? 4 : 5)
    soft_target_pixel_rows(const __grid_constant__ SoftTargetParams a) {
  using A = accumulator_t<T>;
  const BatchTotals totals = batch_totals<kPixelBlock>(a);
  double sum = 0;
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
                           static_cast<A>(kKind == TargetKind::kSigmoid ? 1.0 : 1.0 - a.smoothing),
                           static_cast<A>(of.target.base)};
      const double s = grad != nullptr ? gradient_scale<A>(a, n, of, totals) : 1.0;
      if constexpr (kKind == TargetKind::kSigmoid) {
        loss = of.target.scale * sigmoid_pixel(pixel, of, grad, s);
      } else {
        loss = of.target.scale * softmax_pixel<kKind == TargetKind::kSparse>(pixel, of, grad, s);
      }
    }
    sum += loss;
    if (a.reduction == kNone) static_cast<A*>(a.out)[n] = static_cast<A>(loss);
  }
  if (a.reduction != kNone) finish_block<kPixelBlock, A>(a, sum, totals);
}

template <typename T>
void soft_target_pixels(const SoftTargetParams& a, Stream stream) {
  const int64_t wanted = ceil_div(a.rows, kPixelBlock), resident = static_cast<int64_t>(multiprocessors()) * 16;
  const int64_t blocks = wanted < resident ? wanted : resident;
  const auto run = [&](auto kernel) {
    launch_with_reduction<kPixelBlock, accumulator_t<T>>(kernel, a, blocks, 0, stream);
  };
  if (a.loss == kBce) {
    run(soft_target_pixel_rows<T, TargetKind::kSigmoid>);
  } else if (a.index == nullptr || a.class_weight != nullptr) {
    run(soft_target_pixel_rows<T, TargetKind::kDense>);
  } else {
    run(soft_target_pixel_rows<T, TargetKind::kSparse>);
  }
}

}  // namespace fastmix
