// covariance_update_ on the CPU: gathering rows, their mean, and the product accumulated into a covariance.
//
// With 1.8 rows a class (N = 128, J = 100) the update is a stream over the matrices of the present classes; with
// thousands of pixels a class it is a matrix product. The register tile serves both. Products commute, so a symmetric
// matrix stays symmetric to the last bit.

#include "cpu/covariance.h"

#include "cpu/lib/float_blocks.h"
#include "cpu/lib/gemm_tile.h"

namespace fastmix {
namespace FASTMIX_INSTRUCTION_SET {
namespace {

template <typename T, typename S>
void gather(const FeatureRows& f, const int64_t* rows, int64_t count, void* scratch) {
  T* out = static_cast<T*>(scratch);
  const S* base = static_cast<const S*>(f.features);
  constexpr int64_t kSide = 16;
  const S* source[kSide];
  for (int64_t first = 0; first < count; first += kSide) {
    const int64_t here = count - first < kSide ? count - first : kSide;
    for (int64_t i = 0; i < here; ++i) {
      const int64_t row = rows[first + i];
      source[i] = base + row / f.pixels * f.stride_n + row % f.pixels * f.stride_p;
    }
    T* to = out + first * f.ld;
    if (f.stride_a == 1) {
      for (int64_t i = 0; i < here; ++i) {
        for (int64_t a = 0; a < f.features_per_row; ++a) to[i * f.ld + a] = static_cast<T>(to_float(source[i][a]));
      }
    } else {
      // Squares of 16 x 16: pixels of a class lie close together, so both sides stay within a few cache lines.
      for (int64_t a0 = 0; a0 < f.features_per_row; a0 += kSide) {
        const int64_t a1 = a0 + kSide < f.features_per_row ? a0 + kSide : f.features_per_row;
        for (int64_t a = a0; a < a1; ++a) {
          for (int64_t i = 0; i < here; ++i) to[i * f.ld + a] = static_cast<T>(to_float(source[i][a * f.stride_a]));
        }
      }
    }
    for (int64_t i = 0; i < here; ++i) {
      for (int64_t a = f.features_per_row; a < f.ld; ++a) to[i * f.ld + a] = T(0);
    }
  }
}

template <typename T>
void column_sums(const void* scratch, int64_t ld, int64_t count, double* sums) {
  const T* x = static_cast<const T*>(scratch);
  // From the first row on: features far from 0 would leave a sum of theirs few digits for the mean.
  for (int64_t a = 0; a < ld; a += Simd<T>::kLanes) {
    const Vec<T> first = count > 0 ? load_vec(x + a) : Vec<T>{};
    Vec<T> s{};
    for (int64_t i = 1; i < count; ++i) s += load_vec(x + i * ld + a) - first;
    for (int l = 0; l < Simd<T>::kLanes; ++l) {
      sums[a + l] = static_cast<double>(s[l]) + static_cast<double>(count) * static_cast<double>(first[l]);
    }
  }
}

template <typename T>
void centre(void* scratch, int64_t ld, int64_t count, const void* mean_of, double factor) {
  T* x = static_cast<T*>(scratch);
  const T* mean = static_cast<const T*>(mean_of);
  const T f = static_cast<T>(factor);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t a = 0; a < ld; ++a) x[i * ld + a] = (x[i * ld + a] - mean[a]) * f;
  }
}

template <typename T>
void rank_update(void* cov_of, int64_t width, const void* scratch, int64_t ld, int64_t count, double alpha,
                 int64_t begin, int64_t end) {
  constexpr int kColumns = Simd<T>::kColumns;
  T* cov = static_cast<T*>(cov_of);
  const T* x = static_cast<const T*>(scratch);
  const T keep = static_cast<T>(alpha);
  for (int64_t i = begin; i < end; i += kTileRows) {
    const int64_t rows = end - i < kTileRows ? end - i : kTileRows;
    for (int64_t b = 0; b < width; b += kColumns) {
      RegisterTile<T> t;
      T* corner = cov + i * width + b;
      const bool whole = rows == kTileRows && width - b >= kColumns;
      if (keep == T(0)) {
        clear(t);
      } else {
        load_tile(t, corner, width, whole, rows, width - b);
        scale(t, keep);
      }
      accumulate(t, x + i, ld, x + b, ld, count, width - b);
      store_tile(t, corner, width, whole, rows, width - b);
    }
  }
}

template <typename T>
void square_update(void* cov_of, int64_t width, const void* scratch, int64_t ld, int64_t count, double alpha) {
  T* cov = static_cast<T*>(cov_of);
  const T* x = static_cast<const T*>(scratch);
  const T keep = static_cast<T>(alpha);
  for (int64_t a = 0; a < width; a += Simd<T>::kLanes) {
    Vec<T> s{};
    for (int64_t i = 0; i < count; ++i) {
      const Vec<T> v = load_vec(x + i * ld + a);
      s += v * v;
    }
    if (keep != T(0)) s += keep * load_part(cov + a, width - a);
    store_part(cov + a, s, width - a);
  }
}

template <typename S>
constexpr auto gather_floats = gather<float, S>;
template <typename S>
constexpr auto gather_doubles = gather<double, S>;

}  // namespace

extern const CovarianceKernels covariance = {
    {FASTMIX_BY_FLOAT_TYPE(gather_floats), FASTMIX_BY_FLOAT_TYPE(gather_doubles)},
    {column_sums<float>, column_sums<double>},
    {centre<float>, centre<double>},
    {rank_update<float>, rank_update<double>},
    {square_update<float>, square_update<double>}};

}  // namespace FASTMIX_INSTRUCTION_SET
}  // namespace fastmix
