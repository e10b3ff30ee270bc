// isda_consistency on the CPU: for every k a log-sum-exp over j of z_j + E_jk, and its gradient, one row of E at a
// time. N * J * J exponentials and nothing of that size stored: a row of exponentials lives in the first-level cache.

#include "cpu/isda_consistency.h"

#include <cmath>

#include "cpu/lib/exp_block.h"
#include "cpu/lib/float_blocks.h"
#include "cpu/lib/gemm_tile.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

template <typename S, typename T = accumulator_t<S>>
void rows(const ConsistencyArgs& a, const int64_t* rows_of, int64_t count, const void* table_of, void* pull_of,
          void* scratch) {
  const int64_t classes = a.classes;
  T* z = static_cast<T*>(scratch);
  T* p = z + classes;
  T* v = p + classes;
  T* grad = v + classes;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows_of[i];
    const S* from = static_cast<const S*>(a.logits) + n * a.row_stride;
    for (int64_t j = 0; j < classes; ++j) z[j] = to_float(from[j]);
    const T sum = block_exp_sum(z, block_max(z, classes), p, classes);
    for (int64_t j = 0; j < classes; ++j) {
      p[j] /= sum;
      grad[j] = -p[j];
    }
    const T g = a.row_grad != nullptr ? static_cast<const T*>(a.row_grad)[n] : static_cast<T>(a.uniform_grad);
    double loss = 0;
    for (int64_t k = 0; k < classes; ++k) {
      if (p[k] == T(0)) continue;  // it counts nothing, and z_k may be -inf
      const T* row = static_cast<const T*>(table_of) + k * classes;
      for (int64_t j = 0; j < classes; ++j) v[j] = z[j] + row[j];
      const T max = block_max(v, classes);
      const T total = block_exp_sum(v, max, v, classes);
      loss += static_cast<double>(p[k]) *
              (std::log(static_cast<double>(total)) + static_cast<double>(max) - static_cast<double>(z[k]));
      if (!a.need_grad) continue;
      const T share = p[k] / total, pulled = share * g;
      T* pull = static_cast<T*>(pull_of) + k * classes;
#pragma omp simd
      for (int64_t j = 0; j < classes; ++j) {
        grad[j] += share * v[j];
        pull[j] += pulled * v[j];
      }
    }
    a.row_loss[n] = loss;
    if (!a.need_grad) continue;
    S* out = static_cast<S*>(a.grad_logits) + n * classes;
    for (int64_t j = 0; j < classes; ++j) store(out + j, static_cast<T>(grad[j] * g));
  }
}

template <typename T>
void gram(const void* packed, int64_t count, int64_t k, const void* b, void* out, void* panel) {
  multiply(packed_operand(static_cast<const T*>(packed), k), count, k, static_cast<const T*>(b), count, count,
           static_cast<T*>(out), count, false, static_cast<T*>(panel), true);
}

template <typename T>
void times(const void* matrix, int64_t k, const void* b, int64_t width, void* out, bool add, void* panel) {
  multiply(symmetric_operand(static_cast<const T*>(matrix), k), k, k, static_cast<const T*>(b), width, width,
           static_cast<T*>(out), width, add, static_cast<T*>(panel));
}

// out[k][j] = in[j][k] for all pairs, or those k < j (in and out may then be one), in squares whose rows stay in the
// first-level cache both ways.
template <typename T, bool kLower>
FASTMIX_INLINE void transpose(const T* in, T* out, int64_t size) {
  constexpr int64_t kSide = 16;
  for (int64_t j0 = 0; j0 < size; j0 += kSide) {
    const int64_t j1 = j0 + kSide < size ? j0 + kSide : size;
    for (int64_t k0 = 0; k0 < (kLower ? j1 : size); k0 += kSide) {
      for (int64_t j = j0; j < j1; ++j) {
        const int64_t end = kLower ? j : size, k1 = k0 + kSide < end ? k0 + kSide : end;
        for (int64_t k = k0; k < k1; ++k) out[k * size + j] = in[j * size + k];
      }
    }
  }
}

template <typename T>
void exponents(void* q_of, int64_t classes, double half_strength, void* norm_of) {
  T* q = static_cast<T*>(q_of);
  T* norm = static_cast<T*>(norm_of);
  const T half = static_cast<T>(half_strength);
  for (int64_t j = 0; j < classes; ++j) norm[j] = q[j * classes + j];
  for (int64_t j = 0; j < classes; ++j) {
    T* row = q + j * classes;
    for (int64_t k = 0; k < j; ++k) row[k] = half * (norm[j] + norm[k] - 2 * row[k]);
    row[j] = 0;
  }
  transpose<T, true>(q, q, classes);
}

template <typename T>
void laplacian(const void* pull_of, int64_t classes, double factor, void* out_of) {
  const T* pull = static_cast<const T*>(pull_of);
  T* out = static_cast<T*>(out_of);
  const T f = static_cast<T>(factor);
  transpose<T, false>(pull, out, classes);
  for (int64_t j = 0; j < classes; ++j) {
    const T* from = pull + j * classes;
    T* row = out + j * classes;
    row[j] = -from[j];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < classes; ++k) {
      const T s = f * (from[k] + row[k]);
      row[k] = -s;
      sum += s;
    }
    row[j] = sum;
  }
}

}  // namespace

extern const ConsistencyKernels consistency = {FASTMIX_BY_FLOAT_TYPE(rows),
                                               {gram<float>, gram<double>},
                                               {times<float>, times<double>},
                                               {exponents<float>, exponents<double>},
                                               {laplacian<float>, laplacian<double>}};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
