// covariance_update_ on the CPU (ISDA Eq. 1-3): checks, rows sorted by class, blocks of rows merged into the state,
// registration.

#include "cpu/covariance.h"

#include <cmath>
#include <memory>
#include <vector>

#include "cpu/lib/grouping.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

template <typename T>
class Update {
 public:
  Update(const FeatureRows& features, FloatType storage, int64_t* count, T* mean, T* cov)
      : f_(features), storage_(storage), k_(FASTMIX_KERNELS(covariance)), count_(count), mean_(mean), cov_(cov) {}

  struct Workspace {
    // rows: the most that one class has.
    Workspace(int64_t ld, int64_t rows_of)
        : rows(new T[static_cast<size_t>(((rows_of < kRowBlock ? rows_of : kRowBlock) + 1) * ld)]),
          centre(static_cast<size_t>(ld)),
          sums(static_cast<size_t>(ld)),
          mean(static_cast<size_t>(ld)) {}
    std::unique_ptr<T[]> rows;  // not initialised: 700 KB at A = 640
    std::vector<T> centre;
    std::vector<double> sums, mean;  // of the block; of all rows so far
  };

  // Rows of one class into its own matrix (full) or row (diag). Returns the rows left out.
  int64_t one_class(int64_t c, int64_t* rows, int64_t m, bool full, Workspace& s) {
    const int64_t width = f_.features_per_row;
    T* cov = cov_ + c * width * (full ? width : 1);
    for (int64_t a = 0; a < width; ++a) s.mean[a] = static_cast<double>(mean_[c * width + a]);
    double n = static_cast<double>(count_[c]);
    int64_t used = 0, skipped = 0;
    for (int64_t at = 0; at < m; at += kRowBlock) {
      int64_t size = m - at < kRowBlock ? m - at : kRowBlock;
      skipped += load(rows + at, size, s);
      if (size == 0) continue;
      used += size;
      const double total = n + static_cast<double>(size);
      prepare(s, size, n, total);
      if (full) {
        k_.rank_update[kType](cov, width, s.rows.get(), f_.ld, size + (n > 0), n / total, 0, width);
      } else {
        k_.square_update[kType](cov, width, s.rows.get(), f_.ld, size + (n > 0), n / total);
      }
      n = total;
    }
    if (used > 0) {
      for (int64_t a = 0; a < width; ++a) mean_[c * width + a] = static_cast<T>(s.mean[a]);
      add(count_[c], used);
    }
    return skipped;
  }

  // Rows of all classes, sorted by class, into one matrix around the mean of all (cov null: means and counts only).
  int64_t all_classes(const ClassRows& batch, const Groups& sorted) {
    Workspace s(f_.ld, kRowBlock);
    const int64_t width = f_.features_per_row;
    double n = 0;
    for (int64_t c = 0; c < batch.classes && cov_ != nullptr; ++c) {
      const double share = static_cast<double>(count_[c]);
      if (share == 0) continue;
      for (int64_t a = 0; a < width; ++a) s.mean[a] += share * static_cast<double>(mean_[c * width + a]);
      n += share;
    }
    for (int64_t a = 0; a < width && n > 0; ++a) s.mean[a] /= n;
    int64_t skipped = 0;
    std::vector<int64_t> rows;
    for (const int64_t c : batch.present) {
      const int64_t last = sorted.offset[static_cast<size_t>(c) + 1];
      for (int64_t at = sorted.offset[static_cast<size_t>(c)]; at < last; at += kRowBlock) {
        int64_t size = last - at < kRowBlock ? last - at : kRowBlock;
        rows.assign(sorted.places.begin() + at, sorted.places.begin() + at + size);
        skipped += load(rows.data(), size, s);
        if (size == 0) continue;
        const double m = static_cast<double>(size), seen = static_cast<double>(count_[c]);
        for (int64_t a = 0; a < width; ++a) {
          T& mean = mean_[c * width + a];
          const double old = static_cast<double>(mean);
          mean = static_cast<T>(old + (s.sums[static_cast<size_t>(a)] / m - old) * (m / (seen + m)));
        }
        add(count_[c], size);
        if (cov_ == nullptr) continue;
        prepare(s, size, n, n + m);
        const int64_t tiles = (width + 7) / 8, members = size + (n > 0);
        parallel_items(tiles, 8 * width, [&](int64_t begin, int64_t end) {
          k_.rank_update[kType](cov_, width, s.rows.get(), f_.ld, members, n / (n + m), begin * 8,
                                end * 8 < width ? end * 8 : width);
        });
        n += m;
      }
    }
    return skipped;
  }

 private:
  static constexpr int kType = sizeof(T) == 8;

  // Without undefined behaviour, whatever number the caller's state holds.
  static void add(int64_t& count, int64_t rows) {
    count = static_cast<int64_t>(static_cast<uint64_t>(count) + static_cast<uint64_t>(rows));
  }

  // Gathers the rows and their sums; rows that are not finite are taken out of the list (size shrinks).
  int64_t load(int64_t* rows, int64_t& size, Workspace& s) {
    k_.gather[kType][storage_](f_, rows, size, s.rows.get());
    k_.column_sums[kType](s.rows.get(), f_.ld, size, s.sums.data());
    double total = 0;
    for (const double v : s.sums) total += v * 0;
    if (total == 0) return 0;
    // A sum can also overflow: then no row is at fault, and none is taken out.
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      const T* row = s.rows.get() + i * f_.ld;
      T poison = 0;
      for (int64_t a = 0; a < f_.features_per_row; ++a) poison += row[a] * 0;
      if (poison == 0) rows[kept++] = rows[i];
    }
    const int64_t removed = size - kept;
    size = kept;
    k_.gather[kType][storage_](f_, rows, size, s.rows.get());
    k_.column_sums[kType](s.rows.get(), f_.ld, size, s.sums.data());
    return removed;
  }

  // Rows minus their mean over sqrt(total), and below them, once n > 0, the difference of the means with its weight:
  // Eq. 2 is then n / total * cov plus the sum of the rows' outer products. Moves the running mean (Eq. 1).
  void prepare(Workspace& s, int64_t size, double n, double total) {
    const double m = static_cast<double>(size);
    const double weight = std::sqrt(n * m) / total;
    T* difference = s.rows.get() + size * f_.ld;
    for (int64_t a = 0; a < f_.ld; ++a) {
      const size_t i = static_cast<size_t>(a);
      const double mean = s.sums[i] / m;
      s.centre[i] = static_cast<T>(mean);
      difference[a] = static_cast<T>((s.mean[i] - mean) * weight);
      s.mean[i] += (mean - s.mean[i]) * (m / total);
    }
    k_.centre[kType](s.rows.get(), f_.ld, size, s.centre.data(), 1.0 / std::sqrt(total));
  }

  const FeatureRows& f_;
  const FloatType storage_;
  const CovarianceKernels& k_;
  int64_t* count_;
  T* mean_;
  T* cov_;
};

template <typename T>
int64_t update(const FeatureRows& f, FloatType storage, const Tensor& count, const Tensor& mean, const Tensor& cov,
               const ClassRows& batch, int64_t kind) {
  Groups sorted = batch.by_class();
  Update<T> u(f, storage, static_cast<int64_t*>(count.mutable_data_ptr()), static_cast<T*>(mean.mutable_data_ptr()),
              kind == kIdentity ? nullptr : static_cast<T*>(cov.mutable_data_ptr()));
  if (kind == kShared || kind == kIdentity) return u.all_classes(batch, sorted);
  const int64_t present = static_cast<int64_t>(batch.present.size());
  std::vector<int64_t> skipped(static_cast<size_t>(present));
  const int64_t work = f.features_per_row * (kind == kFull ? f.features_per_row : 16);
  parallel_items(present, work, [&](int64_t begin, int64_t end) {
    int64_t most = 0;
    for (int64_t i = begin; i < end; ++i) {
      const size_t c = static_cast<size_t>(batch.present[static_cast<size_t>(i)]);
      const int64_t m = sorted.offset[c + 1] - sorted.offset[c];
      most = m > most ? m : most;
    }
    typename Update<T>::Workspace scratch(f.ld, most);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = batch.present[static_cast<size_t>(i)];
      const int64_t first = sorted.offset[static_cast<size_t>(c)];
      skipped[static_cast<size_t>(i)] = u.one_class(
          c, sorted.places.data() + first, sorted.offset[static_cast<size_t>(c) + 1] - first, kind == kFull, scratch);
    }
  });
  int64_t sum = 0;
  for (const int64_t v : skipped) sum += v;
  return sum;
}

Tensor covariance_update_cpu(const Tensor& count, const Tensor& mean, const Tensor& cov, const Tensor& features,
                             const Tensor& labels_in, std::optional<int64_t> ignore_index, int64_t kind) {
  check_covariance_update(count, mean, cov, features, labels_in, kind);
  const Tensor labels = as_contiguous(labels_in);
  FeatureRows f{};
  f.features = features.const_data_ptr();
  f.stride_n = features.stride(0);
  f.stride_a = features.stride(1);
  f.stride_p = features.stride(2);
  f.features_per_row = features.size(1);
  f.pixels = features.size(2);
  f.ld = ceil_div(f.features_per_row, kRowPad) * kRowPad;
  const ClassRows batch("covariance_update_", static_cast<const int64_t*>(labels.const_data_ptr()), labels.numel(),
                        mean.size(0), ignore_index);
  const FloatType storage = float_type("covariance_update_", features);
  Tensor skipped = allocate(features, {}, ScalarType::Long);
  *static_cast<int64_t*>(skipped.mutable_data_ptr()) = mean.scalar_type() == ScalarType::Double
                                                           ? update<double>(f, storage, count, mean, cov, batch, kind)
                                                           : update<float>(f, storage, count, mean, cov, batch, kind);
  return skipped;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) { m.impl("covariance_update_", TORCH_BOX(&covariance_update_cpu)); }

}  // namespace fastmix
