// soft_target on the CPU: loss and gradient of a row.
//
// A row is read from memory once and then lies in the second-level cache (J = 21841: 87 KB): one pass for the
// maximum, one for the sums, and with a gradient one that writes it. exp is kept in the gradient row for float, and
// recomputed for the half types, whose rows could not hold it.
// Floor: the bytes of the logits, and as many again for the gradient. Measured beside it: bench/results.

#include "cpu/soft_target.h"

#include "cpu/lib/exp_block.h"
#include "cpu/lib/float_blocks.h"
#include "cpu/lib/soft_target_pixels.h"
#include "cpu/lib/soft_target_rows.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

template <typename A>
struct RowSums {
  A max;
  double sum_exp;      // sum_j exp(z_j - max)
  double sum_shifted;  // sum_j (z_j - max)
};

template <typename T, typename A = accumulator_t<T>>
A row_max(const T* z, int64_t classes) {
  A buffer[kBlock];
  A best = -INFINITY;
  for (int64_t at = 0; at < classes; at += kBlock) {
    const int64_t n = classes - at < kBlock ? classes - at : kBlock;
    const A* v = load_block(z + at, buffer, n);
    const A m = block_max(v, n);
    best = m > best ? m : best;
  }
  return best;
}

// exps: where to keep exp(z - max), or null.
template <typename T, typename A = accumulator_t<T>>
RowSums<A> row_sums(const T* z, int64_t classes, bool want_shifted, A* exps) {
  A buffer[kBlock];
  A spill[kBlock];
  RowSums<A> row{row_max(z, classes), 0.0, 0.0};
  const A max = row.max;
  for (int64_t at = 0; at < classes; at += kBlock) {
    const int64_t n = classes - at < kBlock ? classes - at : kBlock;
    const A* v = load_block(z + at, buffer, n);
    A* e = exps != nullptr ? exps + at : spill;
    row.sum_exp += block_exp_sum(v, max, e, n);
    if (want_shifted) {
      A shifted = 0;
#pragma omp simd reduction(+ : shifted)
      for (int64_t i = 0; i < n; ++i) shifted += v[i] - max;
      row.sum_shifted += shifted;
    }
  }
  return row;
}

// Softmax against named classes; every class has the same base beside them.
template <typename T, typename A = accumulator_t<T>>
void sparse_row(const SoftTargetArgs& a, int64_t n, const RowTarget& t, const T* z, T* grad) {
  constexpr bool kKeepsExp = sizeof(T) == sizeof(A);
  A* exps = kKeepsExp ? reinterpret_cast<A*>(grad) : nullptr;
  const RowSums<A> row = row_sums(z, a.classes, t.base != 0.0, exps);
  const double total = t.base * static_cast<double>(a.classes) + sum_named(t.named);
  double loss = total * std::log(row.sum_exp) - weighted(t.base, row.sum_shifted);
  for (int64_t i = 0; i < t.named.k; ++i) {
    if (!is_counted(t.named, i)) continue;
    loss -= weighted(named_weight(t.named, i),
                     static_cast<double>(to_float(z[t.named.index[i]])) - static_cast<double>(row.max));
  }
  if (a.loss == kKl) loss += entropy_of(a, t);
  a.row_loss[n] = loss * t.scale;
  if (grad == nullptr) return;
  const double s = gradient_scale<T>(a, n, t.scale);
  const double slope = s * total / row.sum_exp;
  const A c = static_cast<A>(slope);
  const A b = static_cast<A>(s * t.base);
  // What the named classes' exps are is read before they are overwritten; of more classes it is computed again.
  constexpr int64_t kKept = kKeepsExp ? 8 : 0;
  A kept[kKept + 1];
  for (int64_t i = 0; i < t.named.k && i < kKept; ++i) {
    if (is_counted(t.named, i)) kept[i] = exps[t.named.index[i]];
  }
  if constexpr (kKeepsExp) {
#pragma omp simd
    for (int64_t j = 0; j < a.classes; ++j) exps[j] = exps[j] * c - b;
  } else {
    A buffer[kBlock];
    A values[kBlock];
    for (int64_t at = 0; at < a.classes; at += kBlock) {
      const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
      const A* v = load_block(z + at, buffer, m);
      block_exp_scale(v, row.max, c, b, values, m);
      store_block(grad + at, values, m);
    }
  }
  // The named classes once more, rounded once: subtracting from a stored half would round twice.
  for (int64_t i = 0; i < t.named.k; ++i) {
    if (!is_first_of_class(t.named, i)) continue;
    const int64_t j = t.named.index[i];
    const A e = i < kKept ? kept[i] : exp_nonpositive(static_cast<A>(to_float(z[j]) - row.max));
    const double target = t.base + class_target(t.named, i) * weight_of_class(t.named, i);
    store(grad + j, static_cast<A>(static_cast<double>(e) * slope - s * target));
  }
}

// Softmax against a target of every class, and named ones beside it.
template <typename T, typename A = accumulator_t<T>>
void dense_row(const SoftTargetArgs& a, int64_t n, const RowTarget& t, const T* z, T* grad) {
  const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const ClassTargets<A> targets{target, a.class_weight, static_cast<A>(1.0 - a.smoothing), static_cast<A>(t.base)};
  const RowSums<A> row = row_sums(z, a.classes, false, static_cast<A*>(nullptr));
  double total = 0, dot = 0, entropy = 0;
  A buffer[kBlock], w[kBlock], plain[kBlock];
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
    targets.load(at, m, w, plain);
    A part_total = 0, part_dot = 0;
#pragma omp simd reduction(+ : part_total, part_dot)
    for (int64_t i = 0; i < m; ++i) {
      part_total += w[i];
      part_dot += w[i] == 0 ? A(0) : w[i] * (v[i] - row.max);
    }
    total += part_total;
    dot += part_dot;
    if (a.loss == kKl && target != nullptr) {
      for (int64_t i = 0; i < m; ++i) {
        const double weight = a.class_weight != nullptr ? static_cast<double>(a.class_weight[at + i]) : 1.0;
        entropy += weight * xlogx(plain[i]);
      }
    }
  }
  if (target == nullptr) {
    total += sum_named(t.named);
    for (int64_t i = 0; i < t.named.k; ++i) {
      if (!is_counted(t.named, i)) continue;
      dot += weighted(named_weight(t.named, i),
                      static_cast<double>(to_float(z[t.named.index[i]])) - static_cast<double>(row.max));
    }
    if (a.loss == kKl) entropy = entropy_of(a, t);
  }
  a.row_loss[n] = (total * std::log(row.sum_exp) - dot + entropy) * t.scale;
  if (grad == nullptr) return;
  const double s = gradient_scale<T>(a, n, t.scale);
  const A c = static_cast<A>(s * total / row.sum_exp);
  const A scale = static_cast<A>(s);
  A values[kBlock];
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
    targets.load(at, m, w, plain);
#pragma omp simd
    for (int64_t i = 0; i < m; ++i) values[i] = exp_nonpositive(v[i] - row.max) * c - scale * w[i];
    store_block(grad + at, values, m);
  }
  for (int64_t i = 0; target == nullptr && i < t.named.k; ++i) {
    if (!is_first_of_class(t.named, i)) continue;
    const int64_t j = t.named.index[i];
    const A e = exp_nonpositive(static_cast<A>(to_float(z[j]) - row.max));
    const double wanted = (t.base + class_target(t.named, i)) * weight_of_class(t.named, i);
    store(grad + j, static_cast<A>(static_cast<double>(e) * s * total / row.sum_exp - s * wanted));
  }
}

// softplus(z) - t z, gradient sigmoid(z) - t; t is dense, or base plus the named classes. Of rows of which a part is
// ignored: `share` softplus(z) - t z.
template <typename T, typename A = accumulator_t<T>>
void bce_row(const SoftTargetArgs& a, int64_t n, const RowTarget& t, const T* z, T* grad) {
  const A* target = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const ClassTargets<A> targets{target, a.class_weight, A(1), static_cast<A>(t.base)};
  const double s = grad != nullptr ? gradient_scale<T>(a, n, t.scale) : 0.0;
  const A scale = static_cast<A>(s), share = static_cast<A>(t.share);
  A buffer[kBlock], values[kBlock], w[kBlock], plain[kBlock];
  double loss = 0;
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
    targets.load(at, m, w, plain);
    if (a.class_weight != nullptr) {
      for (int64_t i = 0; i < m; ++i) plain[i] = share * static_cast<A>(a.class_weight[at + i]);
    } else {
      for (int64_t i = 0; i < m; ++i) plain[i] = share;
    }
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = 0; i < m; ++i) {
      const A e = exp_nonpositive(v[i] > 0 ? -v[i] : v[i]);
      part += plain[i] * ((v[i] > 0 ? v[i] : A(0)) + log1p_unit(e)) - (w[i] == 0 ? A(0) : w[i] * v[i]);
      values[i] = scale * (plain[i] * ((v[i] >= 0 ? A(1) : e) / (A(1) + e)) - w[i]);
    }
    loss += part;
    if (grad != nullptr) store_block(grad + at, values, m);
  }
  for (int64_t i = 0; a.index != nullptr && i < t.named.k; ++i) {
    if (!is_counted(t.named, i)) continue;
    const double logit = static_cast<double>(to_float(z[t.named.index[i]]));
    loss -= weighted(named_weight(t.named, i), logit);
    if (grad == nullptr || !is_first_of_class(t.named, i)) continue;
    const double e = std::exp(logit > 0 ? -logit : logit);
    const double sigmoid = t.share * (logit >= 0 ? 1.0 : e) / (1.0 + e);
    const double wanted = t.base + class_target(t.named, i);
    store(grad + t.named.index[i], static_cast<A>(s * weight_of_class(t.named, i) * (sigmoid - wanted)));
  }
  a.row_loss[n] = loss * t.scale;
}

template <typename T>
void rows(const SoftTargetArgs& a, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const T* z = static_cast<const T*>(a.logits) + n * a.row_stride;
    T* grad = a.grad != nullptr ? static_cast<T*>(a.grad) + n * a.classes : nullptr;
    if (is_ignored(a, n)) {
      a.row_loss[n] = 0;
      if (grad != nullptr) {
        for (int64_t j = 0; j < a.classes; ++j) store(grad + j, accumulator_t<T>(0));
      }
      continue;
    }
    const RowTarget t = a.index != nullptr ? target_of(a, n) : dense_target_of(a, n);
    if (a.loss == kBce) {
      bce_row(a, n, t, z, grad);
    } else if (a.index != nullptr && (a.class_weight == nullptr || t.base == 0.0)) {
      sparse_row(a, n, t, z, grad);
    } else {
      dense_row(a, n, t, z, grad);
    }
  }
}

}  // namespace

extern const SoftTargetKernels soft_target = {FASTMIX_BY_FLOAT_TYPE(rows), FASTMIX_BY_FLOAT_TYPE(pixels)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
