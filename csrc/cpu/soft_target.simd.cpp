// soft_target on the CPU: loss and gradient of a row.
//
// A row is read from memory once and then lies in the second-level cache (J = 21841: 87 KB): one pass for the
// maximum, one for the sums, and with a gradient one that writes it. exp is kept in the gradient row for float, and
// recomputed for the half types, whose rows could not hold it.
// Floor: the bytes of the logits, and as many again for the gradient. Measured beside it: bench/results.

#include "cpu/soft_target.h"

#include "cpu/lib/exp_block.h"
#include "cpu/lib/float_blocks.h"

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

// The target of one row after smoothing: base, weights, and their sum T.
struct Target {
  double base, total;
  NamedClasses named;
};

Target target_of(const SoftTargetArgs& a, int64_t n) {
  Target t;
  t.named = named_classes(a, n);
  t.base = base_of(a, n, a.classes);
  t.total = t.base * static_cast<double>(a.classes);
  for (int64_t i = 0; i < a.k; ++i) t.total += named_weight(t.named, i);
  return t;
}

template <typename T, typename A = accumulator_t<T>>
void sparse_row(const SoftTargetArgs& a, int64_t n, const T* z, double s, T* grad) {
  constexpr bool kKeepsExp = sizeof(T) == sizeof(A);
  const Target t = target_of(a, n);
  A* exps = kKeepsExp ? reinterpret_cast<A*>(grad) : nullptr;
  const RowSums<A> row = row_sums(z, a.classes, t.base != 0.0, exps);
  double loss = t.total * std::log(row.sum_exp) - weighted(t.base, row.sum_shifted);
  for (int64_t i = 0; i < t.named.k; ++i) {
    loss -= weighted(named_weight(t.named, i),
                     static_cast<double>(to_float(z[t.named.index[i]])) - static_cast<double>(row.max));
  }
  if (a.loss == kKl) {
    int64_t distinct = 0;
    for (int64_t i = 0; i < t.named.k; ++i) {
      if (!is_first_of_class(t.named, i)) continue;
      ++distinct;
      loss += xlogx(t.base + class_weight(t.named, i));
    }
    loss += static_cast<double>(a.classes - distinct) * xlogx(t.base);
  }
  a.row_loss[n] = loss * sample_weight_of(a, n);
  if (grad == nullptr) return;
  const A c = static_cast<A>(s * t.total / row.sum_exp);
  const A b = static_cast<A>(s * t.base);
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
    const A e = exp_nonpositive(static_cast<A>(to_float(z[j]) - row.max));
    store(grad + j,
          static_cast<A>(static_cast<double>(e) * s * t.total / row.sum_exp - s * (t.base + class_weight(t.named, i))));
  }
}

template <typename T, typename A = accumulator_t<T>>
void dense_row(const SoftTargetArgs& a, int64_t n, const T* z, double s, T* grad) {
  const A* t = static_cast<const A*>(a.target) + n * a.classes;
  const A keep = static_cast<A>(1.0 - a.smoothing);
  const A floor = static_cast<A>(a.smoothing / static_cast<double>(a.classes));
  const RowSums<A> row = row_sums(z, a.classes, false, static_cast<A*>(nullptr));
  double total = 0, dot = 0, entropy = 0;
  A buffer[kBlock];
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
    A part_total = 0, part_dot = 0;
#pragma omp simd reduction(+ : part_total, part_dot)
    for (int64_t i = 0; i < m; ++i) {
      const A w = t[at + i] * keep + floor;
      part_total += w;
      part_dot += w == 0 ? A(0) : w * (v[i] - row.max);
    }
    total += part_total;
    dot += part_dot;
    if (a.loss == kKl) {
      for (int64_t i = 0; i < m; ++i) entropy += xlogx(t[at + i] * keep + floor);
    }
  }
  const double loss = total * std::log(row.sum_exp) - dot + entropy;
  a.row_loss[n] = loss * sample_weight_of(a, n);
  if (grad == nullptr) return;
  const A c = static_cast<A>(s * total / row.sum_exp);
  const A scale = static_cast<A>(s);
  A values[kBlock];
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
#pragma omp simd
    for (int64_t i = 0; i < m; ++i) {
      values[i] = exp_nonpositive(v[i] - row.max) * c - scale * (t[at + i] * keep + floor);
    }
    store_block(grad + at, values, m);
  }
}

// softplus(z) - t z, gradient sigmoid(z) - t; t is dense, or base plus the named classes.
template <typename T, typename A = accumulator_t<T>>
void bce_row(const SoftTargetArgs& a, int64_t n, const T* z, double s, T* grad) {
  const A* t = a.index == nullptr ? static_cast<const A*>(a.target) + n * a.classes : nullptr;
  const A base = a.index != nullptr && a.base != nullptr ? static_cast<A>(a.base[n]) : A(0);
  const A scale = static_cast<A>(s);
  A buffer[kBlock], values[kBlock];
  double loss = 0;
  for (int64_t at = 0; at < a.classes; at += kBlock) {
    const int64_t m = a.classes - at < kBlock ? a.classes - at : kBlock;
    const A* v = load_block(z + at, buffer, m);
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = 0; i < m; ++i) {
      const A w = t != nullptr ? t[at + i] : base;
      const A e = exp_nonpositive(v[i] > 0 ? -v[i] : v[i]);
      part += (v[i] > 0 ? v[i] : A(0)) + log1p_unit(e) - (w == 0 ? A(0) : w * v[i]);
      values[i] = scale * ((v[i] >= 0 ? A(1) : e) / (A(1) + e) - w);
    }
    loss += part;
    if (grad != nullptr) store_block(grad + at, values, m);
  }
  if (a.index != nullptr) {
    const Target target = target_of(a, n);
    const NamedClasses& named = target.named;
    for (int64_t i = 0; i < named.k; ++i) {
      const double logit = static_cast<double>(to_float(z[named.index[i]]));
      loss -= weighted(named_weight(named, i), logit);
      if (grad == nullptr || !is_first_of_class(named, i)) continue;
      const double e = std::exp(logit > 0 ? -logit : logit);
      const double sigmoid = (logit >= 0 ? 1.0 : e) / (1.0 + e);
      store(grad + named.index[i], static_cast<A>(s * (sigmoid - target.base - class_weight(named, i))));
    }
  }
  a.row_loss[n] = loss;
}

template <typename T>
void rows(const SoftTargetArgs& a, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const T* z = static_cast<const T*>(a.logits) + n * a.row_stride;
    T* grad = a.grad != nullptr ? static_cast<T*>(a.grad) + n * a.classes : nullptr;
    if (a.index != nullptr && a.index[n * a.k] == a.ignore_index) {
      a.row_loss[n] = 0;
      if (grad != nullptr) {
        for (int64_t j = 0; j < a.classes; ++j) store(grad + j, accumulator_t<T>(0));
      }
      continue;
    }
    const double s = a.scale * sample_weight_of(a, n);
    if (a.loss == kBce) {
      bce_row(a, n, z, s, grad);
    } else if (a.index != nullptr) {
      sparse_row(a, n, z, s, grad);
    } else {
      dense_row(a, n, z, s, grad);
    }
  }
}

}  // namespace

extern const SoftTargetKernels soft_target = {FASTMIX_BY_FLOAT_TYPE(rows)};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
