// isda_consistency on the CPU: for every k a log-sum-exp over j of z_j + E_jk, and its gradient, one row of E at a
// time. N * J * J exponentials and nothing of that size stored: a row of exponentials lives in the first-level cache.

#include "cpu/isda_consistency.h"

#include <cmath>

#include "cpu/exp_block.h"
#include "cpu/gemm_tile.h"
#include "cpu/simd.h"

namespace fastmix {
namespace FASTMIX_ISA {
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
void multiply_rows(const void* packed, int64_t count, int64_t k, const void* b, int64_t width, void* out, bool add,
                   void* panel) {
  multiply(static_cast<const T*>(packed), count, k, static_cast<const T*>(b), width, width, static_cast<T*>(out), width,
           add, static_cast<T*>(panel));
}

template <typename T>
void exponents(void* q_of, int64_t classes, double half_strength, void* norm_of) {
  T* q = static_cast<T*>(q_of);
  T* norm = static_cast<T*>(norm_of);
  const T half = static_cast<T>(half_strength);
  for (int64_t j = 0; j < classes; ++j) norm[j] = q[j * classes + j];
  for (int64_t k = 0; k < classes; ++k) {
    T* row = q + k * classes;
    for (int64_t j = 0; j < classes; ++j) row[j] = half * (norm[k] + norm[j] - 2 * row[j]);
    row[k] = 0;
  }
}

template <typename T>
void laplacian(const void* pull_of, int64_t classes, double factor, void* out_of) {
  const T* pull = static_cast<const T*>(pull_of);
  T* out = static_cast<T*>(out_of);
  const T f = static_cast<T>(factor);
  for (int64_t j = 0; j < classes; ++j) {
    T sum = 0;
    for (int64_t k = 0; k < classes; ++k) {
      const T s = j == k ? T(0) : f * (pull[j * classes + k] + pull[k * classes + j]);
      out[j * classes + k] = -s;
      sum += s;
    }
    out[j * classes + j] = sum;
  }
}

}  // namespace

extern const ConsistencyKernels consistency = {{rows<float>, rows<bf16>, rows<f16>, rows<double>},
                                               {multiply_rows<float>, multiply_rows<double>},
                                               {exponents<float>, exponents<double>},
                                               {laplacian<float>, laplacian<double>}};

}  // namespace FASTMIX_ISA
}  // namespace fastmix
