// plan_blend, plan_paste, plan_cutout, plan_patch and plan_crop on the CPU. K-image mixing Eq. 2-5, R-Mix Sec. 3.
//
// Cost: a batch of 100 is a few thousand operations, so what counts is one call instead of fifty. Partners take a
// pass over their keys by buckets, O(N): the keys are uniform, so a bucket holds one or two; equal keys, which would
// fill one bucket, are sorted.

#include "core/plan.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/counter.h"
#include "cpu/lib/binding.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

// Pieces of the bits, one after the other, in the order of fastmix.ops.plan_stream: given, or made from a seed.
class Bits {
 public:
  Bits(const char* op, const Tensor& bits, bool seeded) : op_(op), bits_(as_contiguous(bits)), left_(bits_.numel()) {
    at_ = static_cast<const int64_t*>(bits_.const_data_ptr());
    if (seeded) seed_ = static_cast<uint64_t>(*at_);
  }
  std::optional<uint64_t> seed() const { return seed_; }

  // `each` numbers for each of `many`.
  const int64_t* take(int64_t many, int64_t each = 1) {
    if (seed_.has_value()) return make(many * each);
    if (each > 0 && many > left_ / each) throw std::runtime_error(std::string(op_) + ": too few bits");
    const int64_t count = many * each;
    const int64_t* piece = at_;
    at_ += count;
    left_ -= count;
    return piece;
  }

 private:
  const int64_t* make(int64_t count) {
    const int64_t first = made_ / 2, skipped = made_ % 2, blocks = ceil_div(count + skipped, 2);
    std::vector<int64_t>& piece = pieces_.emplace_back(static_cast<size_t>(2 * blocks));
    for (int64_t block = 0; block < blocks; ++block) random_pair(*seed_, first + block, piece.data() + 2 * block);
    made_ += count;
    return piece.data() + skipped;
  }

  const char* op_;
  Tensor bits_;
  const int64_t* at_;
  int64_t left_, made_ = 0;
  std::optional<uint64_t> seed_;
  std::deque<std::vector<int64_t>> pieces_;
};

// Which images are mixed.
class Active {
 public:
  Active(const Tensor& active, Bits& bits, int64_t rows, double prob, bool each)
      : on_(*static_cast<const bool*>(active.const_data_ptr())), prob_(prob), step_(each ? 1 : 0) {
    if (prob < 1) bits_ = bits.take(each ? rows : 1);
  }
  bool operator()(int64_t row) const { return on_ && (bits_ == nullptr || uniform(bits_[row * step_]) < prob_); }

 private:
  bool on_;
  double prob_;
  int64_t step_;
  const int64_t* bits_ = nullptr;
};

// place[row * stride] = how many keys come before that of the row: a permutation. Ties go by row.
class Ranks {
 public:
  explicit Ranks(int64_t rows) : rows_(rows), sorted_(static_cast<size_t>(rows)) {
    while ((int64_t{1} << bits_) < 2 * rows) ++bits_;
    begin_.resize((size_t{1} << bits_) + 1);
  }

  void operator()(const int64_t* keys, int64_t* place, int64_t stride) {
    std::fill(begin_.begin(), begin_.end(), 0);
    for (int64_t n = 0; n < rows_; ++n) ++begin_[bucket(keys[n]) + 1];
    for (size_t b = 1; b < begin_.size(); ++b) begin_[b] += begin_[b - 1];
    // Fills each bucket from its begin, which so becomes its end.
    for (int64_t n = 0; n < rows_; ++n) sorted_[static_cast<size_t>(begin_[bucket(keys[n])]++)] = {keys[n], n};
    int64_t from = 0;
    while (from < rows_) {
      const int64_t end = begin_[bucket(sorted_[static_cast<size_t>(from)].first)];
      if (end - from > 1) std::sort(sorted_.begin() + from, sorted_.begin() + end);
      for (; from < end; ++from) place[sorted_[static_cast<size_t>(from)].second * stride] = from;
    }
  }

 private:
  // The leading bits below the sign of keys in [0, 2^63); order among buckets is that of such keys.
  size_t bucket(int64_t key) const { return static_cast<size_t>((static_cast<uint64_t>(key) << 1) >> (64 - bits_)); }

  int64_t rows_;
  int bits_ = 1;
  std::vector<int64_t> begin_;
  std::vector<std::pair<int64_t, int64_t>> sorted_;
};

// (N, K): the image itself, then a permutation for each row of keys; only itself where not active.
Tensor partners(const Tensor& bits_in, const int64_t* keys, int64_t rows, int64_t k, const Active& active) {
  Tensor out = allocate(bits_in, {rows, k}, ScalarType::Long);
  int64_t* index = static_cast<int64_t*>(out.mutable_data_ptr());
  Ranks ranks(k > 1 ? rows : 0);
  for (int64_t j = 1; j < k; ++j) ranks(keys + (j - 1) * rows, index + j, k);
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t kept = active(n) ? 1 : k;
    std::fill(index + n * k, index + n * k + kept, n);
  }
  return out;
}

// Shares (R, K), R draws for N images, one for all or one each: gamma variates, given or made from the seed.
struct Shares {
  std::optional<Tensor> tensor;
  std::vector<double> made;
  const float* given = nullptr;
  const int64_t* bits = nullptr;
  int64_t draws, k;
  double alpha;

  Shares(const std::optional<Tensor>& shares, int64_t draws_in, int64_t k_in, double alpha_in)
      : tensor(as_contiguous(shares)), draws(draws_in), k(k_in), alpha(alpha_in) {
    given = data_or_null<float>(tensor);
  }
  void take(Bits& from) {
    if (alpha != 0) bits = from.take(draws, k);
    if (!from.seed().has_value()) return;
    made.resize(static_cast<size_t>(draws * k));
    // A variate takes as long as sixty elements of an image kernel.
    parallel_items(draws * k, 64, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) made[static_cast<size_t>(e)] = random_gamma(*from.seed(), e, alpha);
    });
  }
  int64_t draw(int64_t row) const { return draws == 1 ? 0 : row; }
  void weights(int64_t row, double* out) const {
    const int64_t at = draw(row) * k;
    if (given != nullptr) {
      plan_weights(given + at, bits + draw(row), draws, k, alpha, out);
    } else {
      plan_weights(made.data() + at, bits + draw(row), draws, k, alpha, out);
    }
  }
};

// body(row, weights) for every image; the weights are formed once where one draw serves all. An entry's logarithm and
// power take as long as sixteen elements of an image kernel.
template <typename F>
void for_rows(const Shares& shares, int64_t rows, const F& body) {
  std::vector<double> all(static_cast<size_t>(shares.k));
  if (shares.draws == 1 && rows > 0) shares.weights(0, all.data());
  parallel_items(rows, 16 * shares.k, [&](int64_t begin, int64_t end) {
    std::vector<double> own(all);
    for (int64_t n = begin; n < end; ++n) {
      if (shares.draws != 1) shares.weights(n, own.data());
      body(n, own.data());
    }
  });
}

std::tuple<Tensor, Tensor> plan_blend_cpu(const Tensor& bits_in, const std::optional<Tensor>& shares_in,
                                          const Tensor& active_in, int64_t rows, int64_t draws, int64_t k, double alpha,
                                          double prob, bool each) {
  check_shares(check_plan("plan_blend", bits_in, active_in, rows), bits_in, shares_in, rows, draws, k, alpha);
  Bits bits("plan_blend", bits_in, !shares_in.has_value());
  Shares shares(shares_in, draws, k, alpha);
  const int64_t* keys = bits.take(rows, k - 1);
  const Active active(active_in, bits, rows, prob, each);
  shares.take(bits);
  Tensor out = allocate(bits_in, {rows, k}, ScalarType::Float);
  float* weight = static_cast<float*>(out.mutable_data_ptr());
  for_rows(shares, rows, [&](int64_t n, const double* phi) {
    double total = 0;
    for (int64_t j = 0; j < k; ++j) total += phi[j];
    const bool on = active(n);
    for (int64_t j = 0; j < k; ++j) weight[n * k + j] = on ? static_cast<float>(phi[j] / total) : j == 0;
  });
  return {partners(bits_in, keys, rows, k, active), out};
}

struct BoxInputs {
  int64_t height, width;
  const int64_t* bits;   // (K-1, 2, N), centred (2, R)
  const int64_t* peaks;  // (N, 2) or null
  const int64_t* index;  // (N, K), read with peaks
  bool centred;
};

// One image's boxes (K-1, 4) and weights (K).
void place_boxes(const BoxInputs& b, const Shares& shares, int64_t rows, int64_t n, const double* phi, double* left,
                 int32_t* box, float* weight) {
  const int64_t k = shares.k;
  left[k - 1] = phi[k - 1];
  for (int64_t j = k - 1; j > 0; --j) left[j - 1] = left[j] + phi[j - 1];
  Side rows_side{0, b.height}, columns_side{0, b.width};
  float outer = 0x1p24F;
  for (int64_t j = 1; j < k; ++j, box += 4) {
    const double scale = std::sqrt(left[j - 1] > 0 ? left[j] / left[j - 1] : 0.0);
    const double tall = static_cast<double>(rows_side.extent) * scale;
    const double wide = static_cast<double>(columns_side.extent) * scale;
    if (b.centred) {
      const int64_t draw = shares.draw(n);
      rows_side = centred_side(whole_pixels(tall), b.height, b.bits[draw]);
      columns_side = centred_side(whole_pixels(wide), b.width, b.bits[shares.draws + draw]);
    } else {
      const int64_t new_tall = whole_pixels(std::nearbyint(tall));
      const int64_t new_wide = whole_pixels(std::nearbyint(wide));
      if (b.peaks != nullptr) {
        const int64_t* peak = b.peaks + 2 * b.index[n * k + j];
        rows_side = peak_side(rows_side, new_tall, peak[0]);
        columns_side = peak_side(columns_side, new_wide, peak[1]);
      } else {
        const int64_t* at = b.bits + 2 * (j - 1) * rows + n;
        rows_side = nested_side(rows_side, new_tall, at[0]);
        columns_side = nested_side(columns_side, new_wide, at[rows]);
      }
    }
    box[0] = static_cast<int32_t>(rows_side.start);
    box[1] = static_cast<int32_t>(columns_side.start);
    box[2] = static_cast<int32_t>(rows_side.extent);
    box[3] = static_cast<int32_t>(columns_side.extent);
    const float inner = area_units(rows_side.extent * columns_side.extent, b.height, b.width);
    weight[j - 1] = (outer - inner) * 0x1p-24F;
    outer = inner;
  }
  weight[k - 1] = outer * 0x1p-24F;
}

std::tuple<Tensor, Tensor, Tensor> plan_paste_cpu(const Tensor& bits_in, const std::optional<Tensor>& shares_in,
                                                  const Tensor& active_in, const std::optional<Tensor>& peaks_in,
                                                  int64_t rows, int64_t draws, int64_t k, int64_t height, int64_t width,
                                                  double alpha, double prob, bool each, bool centred) {
  const Arguments are = check_plan("plan_paste", bits_in, active_in, rows, height, width);
  check_shares(are, bits_in, shares_in, rows, draws, k, alpha);
  are.require(centred ? k == 2 : draws == rows, "shares", "does not fit, want (N, K), or centred (N or 1, 2)");
  are.tensor("peaks", peaks_in, {rows, 2}, ScalarType::Long);
  Bits bits("plan_paste", bits_in, !shares_in.has_value());
  Shares shares(shares_in, draws, k, alpha);
  const int64_t* keys = bits.take(rows, k - 1);
  const Active active(active_in, bits, rows, prob, each);
  shares.take(bits);
  Tensor index = partners(bits_in, keys, rows, k, active);
  const std::optional<Tensor> peaks = as_contiguous(peaks_in);
  BoxInputs b{height, width, nullptr, data_or_null<int64_t>(peaks), static_cast<const int64_t*>(index.const_data_ptr()),
              centred};
  if (centred) {
    b.bits = bits.take(shares.draws, 2);
  } else if (b.peaks == nullptr) {
    b.bits = bits.take(rows, 2 * (k - 1));
  }
  Tensor boxes = allocate(bits_in, {rows, k - 1, 4}, ScalarType::Int),
         weights = allocate(bits_in, {rows, k}, ScalarType::Float);
  int32_t* box = static_cast<int32_t*>(boxes.mutable_data_ptr());
  float* weight = static_cast<float*>(weights.mutable_data_ptr());
  for_rows(shares, rows, [&](int64_t n, double* phi) {
    int32_t* own_box = box + n * (k - 1) * 4;
    float* own_weight = weight + n * k;
    if (active(n)) {
      std::vector<double> left(static_cast<size_t>(k));
      place_boxes(b, shares, rows, n, phi, left.data(), own_box, own_weight);
    } else {
      std::fill(own_box, own_box + (k - 1) * 4, 0);
      for (int64_t j = 0; j < k; ++j) own_weight[j] = j == 0;
    }
  });
  return {index, boxes, weights};
}

Tensor plan_cutout_cpu(const Tensor& bits_in, const Tensor& active_in, int64_t rows, int64_t draws, int64_t height,
                       int64_t width, int64_t length, double prob, bool each) {
  const Arguments are = check_plan("plan_cutout", bits_in, active_in, rows, height, width);
  are.require(draws == rows || draws == 1, "draws", "is neither 1 nor the number of rows");
  are.between("length", length, 0, int64_t{1} << 62);
  Bits bits("plan_cutout", bits_in, false);
  const Active active(active_in, bits, rows, prob, each);
  const int64_t* position = bits.take(draws, 2);
  Tensor boxes = allocate(bits_in, {rows, 1, 4}, ScalarType::Int);
  int32_t* box = static_cast<int32_t*>(boxes.mutable_data_ptr());
  for (int64_t n = 0; n < rows; ++n, box += 4) {
    const int64_t draw = draws == 1 ? 0 : n;
    const Side y = centred_side(length, height, position[draw]),
               x = centred_side(length, width, position[draws + draw]);
    const int64_t on = active(n) ? 1 : 0;
    box[0] = static_cast<int32_t>(on * y.start);
    box[1] = static_cast<int32_t>(on * x.start);
    box[2] = static_cast<int32_t>(on * y.extent);
    box[3] = static_cast<int32_t>(on * x.extent);
  }
  return boxes;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> plan_patch_cpu(const Tensor& bits_in, const std::optional<Tensor>& shares_in,
                                                          const Tensor& active_in, int64_t rows, int64_t levels,
                                                          int64_t grids, double alpha, double prob, bool flip) {
  const Arguments are = check_plan("plan_patch", bits_in, active_in, rows);
  check_shares(are, bits_in, shares_in, rows, 1, 2, alpha);
  Bits bits("plan_patch", bits_in, !shares_in.has_value());
  Shares shares(shares_in, 1, 2, alpha);
  std::vector<int64_t> reversed;
  for (int64_t n = rows; flip && n > 0; --n) reversed.push_back(n - 1);
  const int64_t* keys = flip ? reversed.data() : bits.take(rows);
  const Active active(active_in, bits, rows, prob, false);
  shares.take(bits);
  const int64_t* level_bits = bits.take(rows);
  Tensor q = allocate(bits_in, {rows}, ScalarType::Double), lam = allocate(bits_in, {}, ScalarType::Float),
         grid = allocate(bits_in, {}, ScalarType::Long);
  double* percentiles = static_cast<double*>(q.mutable_data_ptr());
  const double step = kLastPercentile / static_cast<double>(levels > 1 ? levels - 1 : 1);
  for (int64_t n = 0; n < rows; ++n) {
    percentiles[n] = step * static_cast<double>(one_of(level_bits[n], levels));
  }
  double phi[2];
  shares.weights(0, phi);
  *static_cast<float*>(lam.mutable_data_ptr()) = active(0) ? static_cast<float>(phi[0] / (phi[0] + phi[1])) : 1.0F;
  *static_cast<int64_t*>(grid.mutable_data_ptr()) = one_of(*bits.take(1), grids);
  return {partners(bits_in, keys, rows, 2, active), q, lam, grid};
}

std::tuple<Tensor, Tensor, Tensor> plan_crop_cpu(const Tensor& bits_in, const Tensor& sigma, const Tensor& active_in,
                                                 int64_t rows, int64_t height, int64_t width, int64_t classes,
                                                 double power, double chance, double prob) {
  const Arguments are = check_plan("plan_crop", bits_in, active_in, rows, height, width);
  are.tensor("sigma", sigma, {}, ScalarType::Float);
  Bits bits("plan_crop", bits_in, false);
  const Active active(active_in, bits, rows, prob, true);
  const double longer = static_cast<double>(std::max(height, width));
  const double spread = *static_cast<const float*>(sigma.const_data_ptr()) * longer * std::sqrt(2.0);
  const int64_t sides[] = {height, width};
  const int64_t* drawn = bits.take(rows, 2);
  double within[2];
  for (int axis = 0; axis < 2; ++axis) within[axis] = std::erf(static_cast<double>(sides[axis]) / spread);
  Tensor shift = allocate(bits_in, {rows, 2}, ScalarType::Long),
         confidence = allocate(bits_in, {rows}, ScalarType::Float), base = allocate(bits_in, {rows}, ScalarType::Float);
  int64_t* shifts = static_cast<int64_t*>(shift.mutable_data_ptr());
  float* own = static_cast<float*>(confidence.mutable_data_ptr());
  float* others = static_cast<float*>(base.mutable_data_ptr());
  // An error function takes as long as sixteen elements of an image kernel, and there are about ten.
  parallel_items(rows, 160, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      double shown = 1;
      for (int axis = 0; axis < 2; ++axis) {
        const int64_t b = drawn[axis * rows + n];
        const int64_t size = active(n) ? truncated_normal(uniform(b) * within[axis], spread, sides[axis]) : 0;
        shifts[2 * n + axis] = b % 2 == 0 ? size : -size;
        shown *= static_cast<double>(sides[axis] - size) / static_cast<double>(std::max<int64_t>(sides[axis], 1));
      }
      const double hidden = (1 - chance) * std::pow(1 - shown, power);
      own[n] = static_cast<float>(1 - hidden);
      others[n] = static_cast<float>(hidden / static_cast<double>(std::max<int64_t>(classes, 2) - 1));
    }
  });
  return {shift, confidence, base};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("plan_blend", TORCH_BOX(&plan_blend_cpu));
  m.impl("plan_paste", TORCH_BOX(&plan_paste_cpu));
  m.impl("plan_cutout", TORCH_BOX(&plan_cutout_cpu));
  m.impl("plan_patch", TORCH_BOX(&plan_patch_cpu));
  m.impl("plan_crop", TORCH_BOX(&plan_crop_cpu));
}

}  // namespace fastmix
