// soft_target of pixels on the CPU: logits (N, J, P), whose classes lie P elements apart.
//
// A block of pixels goes side by side through the vectors, against one class after the other: a pass for the maximum,
// one for the sums, and with a gradient one that writes it. The block's logits are read from memory once and lie in the
// second-level cache then (64 pixels of 150 classes: 38 KB).
// Floor: the bytes of the logits, and as many again for the gradient. For *.simd.cpp.

#pragma once

#include "cpu/lib/exp_block.h"
#include "cpu/lib/float_blocks.h"
#include "cpu/lib/soft_target_rows.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

constexpr int64_t kLanes = 64;

// Pixels first .. first + count of image n, at most kLanes.
template <typename T>
struct PixelBlock {
  using A = accumulator_t<T>;
  const SoftTargetArgs& a;
  const int64_t row;  // of the first pixel
  const int64_t count;
  const T* z;       // its class 0
  const A* target;  // likewise, or null
  T* grad;          // likewise, or null
  RowTarget of[kLanes];
  bool ignored[kLanes];
  A buffer[kLanes], wide[kLanes], w[kLanes], values[kLanes], floor[kLanes], live[kLanes], scale[kLanes];

  PixelBlock(const SoftTargetArgs& args, int64_t image, int64_t first, int64_t n)
      : a(args),
        row(image * args.pixels + first),
        count(n),
        z(static_cast<const T*>(args.logits) + image * args.classes * args.pixels + first),
        target(args.index == nullptr ? static_cast<const A*>(args.target) + image * args.classes * args.pixels + first
                                     : nullptr),
        grad(args.grad != nullptr ? static_cast<T*>(args.grad) + image * args.classes * args.pixels + first : nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      ignored[i] = is_ignored(a, row + i);
      of[i] = ignored[i]           ? RowTarget{NamedClasses{}, 0, 0, 0}
              : a.index != nullptr ? target_of(a, row + i)
                                   : dense_target_of(a, row + i);
      floor[i] = static_cast<A>(of[i].base);
      live[i] = static_cast<A>(of[i].share);
      scale[i] = ignored[i] || grad == nullptr ? A(0) : static_cast<A>(gradient_scale<T>(a, row + i, of[i].scale));
    }
  }

  const A* logits(int64_t j) { return load_block(z + j * a.pixels, buffer, count); }

  // w: targets of class j times its weight; wide: without it.
  void targets(int64_t j) {
    const A keep = static_cast<A>(1.0 - a.smoothing);
    const A weight = a.class_weight != nullptr ? static_cast<A>(a.class_weight[j]) : A(1);
    for (int64_t i = 0; i < count; ++i)
      wide[i] = target != nullptr ? target[j * a.pixels + i] * keep + floor[i] : floor[i];
    for (int64_t i = 0; i < count; ++i) w[i] = wide[i] * weight;
  }

  // The gradient of class j of pixel i, which counts.
  void put(int64_t j, int64_t i, double value) { store(grad + j * a.pixels + i, static_cast<A>(value)); }
  double at(int64_t j, int64_t i) const { return static_cast<double>(to_float(z[j * a.pixels + i])); }

  void write(int64_t j) {
    // What is ignored is 0, also where logits are not finite.
    for (int64_t i = 0; i < count; ++i) values[i] = ignored[i] ? A(0) : values[i];
    store_block(grad + j * a.pixels, values, count);
  }

  void softmax() {
    // exp(z - max), the largest (each 1) counted apart: many small ones added to 1 would be lost.
    A max[kLanes], sum[kLanes], largest[kLanes], dot[kLanes], total[kLanes];
    double entropy[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      max[i] = -INFINITY;
      sum[i] = largest[i] = dot[i] = total[i] = 0;
      entropy[i] = 0;
    }
    for (int64_t j = 0; j < a.classes; ++j) {
      const A* v = logits(j);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) max[i] = v[i] > max[i] ? v[i] : max[i];
    }
    for (int64_t j = 0; j < a.classes; ++j) {
      const A* v = logits(j);
      targets(j);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const bool is_largest = v[i] == max[i];
        sum[i] += is_largest ? A(0) : exp_nonpositive(v[i] - max[i]);
        largest[i] += is_largest ? A(1) : A(0);
        total[i] += w[i];
        dot[i] += w[i] == 0 ? A(0) : w[i] * (v[i] - max[i]);
      }
      if (a.loss == kKl && target != nullptr) {
        const double weight = a.class_weight != nullptr ? static_cast<double>(a.class_weight[j]) : 1.0;
        for (int64_t i = 0; i < count; ++i) entropy[i] += weight * xlogx(wide[i]);
      }
    }
    A c[kLanes];
    double exps[kLanes], mass_of[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      c[i] = 0;
      if (ignored[i]) {
        a.row_loss[row + i] = 0;
        continue;
      }
      const NamedClasses& named = of[i].named;
      double mass = total[i], product = dot[i];
      for (int64_t k = 0; target == nullptr && k < named.k; ++k) {
        if (!is_counted(named, k)) continue;
        const double weight = named_weight(named, k);
        mass += weight;
        product += weighted(weight, at(named.index[k], i) - static_cast<double>(max[i]));
      }
      if (a.loss == kKl && target == nullptr) entropy[i] = entropy_of(a, of[i]);
      exps[i] = static_cast<double>(largest[i]) + static_cast<double>(sum[i]);
      mass_of[i] = mass;
      a.row_loss[row + i] = (mass * std::log(exps[i]) - product + entropy[i]) * of[i].scale;
      if (grad != nullptr) c[i] = static_cast<A>(static_cast<double>(scale[i]) * mass / exps[i]);
    }
    if (grad == nullptr) return;
    for (int64_t j = 0; j < a.classes; ++j) {
      const A* v = logits(j);
      targets(j);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) values[i] = exp_nonpositive(v[i] - max[i]) * c[i] - scale[i] * w[i];
      write(j);
    }
    for (int64_t i = 0; target == nullptr && i < count; ++i) {
      const NamedClasses& named = of[i].named;
      for (int64_t k = 0; !ignored[i] && k < named.k; ++k) {
        if (!is_first_of_class(named, k)) continue;
        const int64_t j = named.index[k];
        const A e = exp_nonpositive(static_cast<A>(at(j, i)) - max[i]);
        const double wanted = (of[i].base + class_target(named, k)) * weight_of_class(named, k);
        put(j, i, static_cast<double>(scale[i]) * (static_cast<double>(e) * mass_of[i] / exps[i] - wanted));
      }
    }
  }

  void sigmoid() {
    double loss[kLanes] = {};
    A terms[kLanes];
    for (int64_t j = 0; j < a.classes; ++j) {
      const A* v = logits(j);
      targets(j);
      const A weight = a.class_weight != nullptr ? static_cast<A>(a.class_weight[j]) : A(1);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A e = exp_nonpositive(v[i] > 0 ? -v[i] : v[i]), kept = live[i] * weight;
        terms[i] = kept * ((v[i] > 0 ? v[i] : A(0)) + log1p_unit(e)) - (w[i] == 0 ? A(0) : w[i] * v[i]);
        values[i] = scale[i] * (kept * ((v[i] >= 0 ? A(1) : e) / (A(1) + e)) - w[i]);
      }
      for (int64_t i = 0; i < count; ++i) loss[i] += terms[i];
      if (grad != nullptr) write(j);
    }
    for (int64_t i = 0; i < count; ++i) {
      const NamedClasses& named = of[i].named;
      for (int64_t k = 0; !ignored[i] && target == nullptr && k < named.k; ++k) {
        if (!is_counted(named, k)) continue;
        const int64_t j = named.index[k];
        const double logit = at(j, i);
        loss[i] -= weighted(named_weight(named, k), logit);
        if (grad == nullptr || !is_first_of_class(named, k)) continue;
        const double e = std::exp(logit > 0 ? -logit : logit);
        const double wanted = of[i].base + class_target(named, k);
        put(j, i,
            static_cast<double>(scale[i]) * weight_of_class(named, k) *
                (of[i].share * (logit >= 0 ? 1.0 : e) / (1.0 + e) - wanted));
      }
      a.row_loss[row + i] = ignored[i] ? 0.0 : loss[i] * of[i].scale;
    }
  }
};

template <typename T>
void pixels(const SoftTargetArgs& a, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end;) {
    const int64_t image = n / a.pixels, first = n % a.pixels;
    int64_t count = smaller(a.pixels - first, end - n);
    if (count > kLanes) count = kLanes;
    PixelBlock<T> block(a, image, first, count);
    if (a.loss == kBce) {
      block.sigmoid();
    } else {
      block.softmax();
    }
    n += count;
  }
}

}  // namespace

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
