// The tensors and options of every operator, CPU and CUDA alike, checked before a pointer is read. What
// torch.ops.fastmix is called with directly comes here unchecked; fastmix.functional has looked at it, and says more.
//
// Values are looked at where they are read: indices and labels out of range raise on the CPU, and are rows of NaN on
// CUDA.
#pragma once

#include <vector>

#include "torch/checks.h"

namespace fastmix {

// ---------------------------------------------------------------- mixing

// index (N, K) of the N rows of x.
inline void check_index(const Arguments& are, const Tensor& x, const Tensor& index) {
  are.rank("index", index, 2);
  are.require(index.size(1) >= 1, "index", "has no column, want (N, K) with K >= 1");
  are.tensor("index", index, {x.size(0), index.size(1)}, ScalarType::Long);
}

inline void check_blended(const Arguments& are, const Tensor& x, const Tensor& index, const Tensor& weight) {
  check_index(are, x, index);
  are.tensor("weight", weight, {x.size(0), index.size(1)}, ScalarType::Float);
}

inline void check_pasted(const Arguments& are, const Tensor& x, const Tensor& index, const Tensor& boxes) {
  check_index(are, x, index);
  are.tensor("boxes", boxes, {x.size(0), index.size(1) - 1, 4}, ScalarType::Int);
}

inline void check_cells(const Arguments& are, const Tensor& x, const Tensor& partner, const Tensor& mask,
                        const Tensor& lam) {
  const int64_t n = x.size(0);
  are.tensor("partner", partner, {n}, ScalarType::Long);
  are.rank("mask", mask, 3);
  const int64_t h = mask.size(1), w = mask.size(2);
  are.tensor("mask", mask, {n, h, w}, ScalarType::Bool);
  are.require(h > 0 && w > 0 && x.size(2) % h == 0 && x.size(3) % w == 0, "mask",
              "does not divide the images, want (N, h, w) where h divides H and w divides W");
  are.numbers("lam", lam, n, ScalarType::Float);
}

inline void check_blend(const char* op, const char* name, const Tensor& x, const Tensor& index, const Tensor& weight) {
  const Arguments are(op, name, x);
  are.floats(name, x);
  are.require(x.dim() >= 1, name, "has no dimension, want (N, ...)");
  check_blended(are, x, index, weight);
}

inline void check_paste(const char* op, const char* name, const Tensor& x, const Tensor& index, const Tensor& boxes) {
  const Arguments are(op, name, x);
  are.images(name, x);
  check_pasted(are, x, index, boxes);
}

inline void check_patch_mix(const char* op, const char* name, const Tensor& x, const Tensor& partner,
                            const Tensor& mask, const Tensor& lam) {
  const Arguments are(op, name, x);
  are.images(name, x);
  check_cells(are, x, partner, mask, lam);
}

// Of kernels that write the weights beside the pixels, and start for pixels alone.
inline void check_pixels(const char* op, const char* name, const Tensor& x) {
  Arguments(op, name, x).require(x.numel() > 0 || x.size(0) == 0, name, "has no pixels");
}

// ---------------------------------------------------------------- windows

inline void check_crop(const Tensor& x, const Tensor& shift, const std::optional<Tensor>& fill) {
  const Arguments are("crop", "x", x);
  are.images("x", x);
  are.tensor("shift", shift, {x.size(0), 2}, ScalarType::Long);
  are.tensor("fill", fill, {x.size(0), x.size(1)}, x.scalar_type());
}

inline void check_resized_crop(const char* op, const char* name, const Tensor& x, const Tensor& box, int64_t height,
                               int64_t width, const std::optional<Tensor>& fill) {
  const Arguments are(op, name, x);
  are.images(name, x);
  are.require(x.size(2) > 0 && x.size(3) > 0, name, "has no pixels");
  are.tensor("box", box, {x.size(0), 4}, ScalarType::Double);
  are.between("height", height, 1, INT32_MAX);
  are.between("width", width, 1, INT32_MAX);
  are.tensor("fill", fill, {x.size(0), x.size(1)}, x.scalar_type());
}

// Of view and the operators that mix through one; theirs besides by check_blended, check_pasted or check_cells.
inline Arguments check_view(const char* op, const Tensor& x, const Tensor& mean, const Tensor& std,
                            const std::optional<Tensor>& flip, const std::optional<Tensor>& shift, int64_t dtype) {
  const Arguments are(op, "x", x);
  are.rank("x", x, 4);
  const int64_t n = x.size(0), channels = x.size(1);
  are.tensor("x", x, {n, channels, x.size(2), x.size(3)}, ScalarType::Byte);
  are.tensor("mean", mean, {channels}, ScalarType::Float);
  are.tensor("std", std, {channels}, ScalarType::Float);
  are.tensor("flip", flip, {n}, ScalarType::Bool);
  are.tensor("shift", shift, {n, 2}, ScalarType::Long);
  are.between("dtype", dtype, 0, kFloatTypes - 1);
  return are;
}

// ---------------------------------------------------------------- saliency

// h x w cells of the images, and q where there is one.
inline void check_saliency(const char* op, const Tensor& grad, int64_t h, int64_t w, const Tensor* q) {
  const Arguments are(op, "grad", grad);
  are.images("grad", grad);
  const int64_t height = grad.size(2), width = grad.size(3);
  are.require(height > 0 && width > 0, "grad", "has no pixels");
  are.between("h", h, 1, height);
  are.between("w", w, 1, width);
  are.require(height % h == 0, "h", "does not divide the height of grad");
  are.require(width % w == 0, "w", "does not divide the width of grad");
  if (q != nullptr) are.numbers("q", *q, grad.size(0), accumulation_dtype(*q));
}

// The side of the least common grid of the patches, which is that of the mask.
inline int64_t check_saliency_grids(const Tensor& grad, const std::vector<int64_t>& patches, const Tensor& grid,
                                    const Tensor& q) {
  const char* op = "saliency_mask_of_grid";
  const Arguments are(op, "grad", grad);
  are.images("grad", grad);
  are.require(!patches.empty(), "patches", "is empty, want one grid at least");
  int64_t side = 1;
  for (const int64_t p : patches) {
    are.between("patches", p, 1, INT32_MAX);
    int64_t a = side, b = p;  // their greatest common divisor
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    side = side / a * p;
    are.require(side <= INT32_MAX && grad.size(2) % side == 0 && grad.size(3) % side == 0, "patches",
                "do not divide grad, want grids whose least common multiple divides H and W");
  }
  are.tensor("grid", grid, {}, ScalarType::Long);
  check_saliency(op, grad, side, side, &q);
  return side;
}

inline void check_percentile(const Tensor& map, const Tensor& q) {
  const Arguments are("percentile_mask", "map", map);
  are.rank("map", map, 3);
  are.tensor("map", map, {map.size(0), map.size(1), map.size(2)}, accumulation_dtype(map));
  are.require(map.size(1) > 0 && map.size(2) > 0, "map", "has no cells");
  are.numbers("q", q, map.size(0), accumulation_dtype(q));
}

// ---------------------------------------------------------------- losses

// What both forms of a target have.
inline Arguments check_loss(const char* op, const Tensor& logits, const std::optional<Tensor>& sample_weight,
                            const std::optional<Tensor>& class_weight, const std::optional<Tensor>& row_grad,
                            int64_t loss, int64_t reduction) {
  const Arguments are(op, "logits", logits);
  are.floats("logits", logits);
  are.require(logits.dim() == 2 || logits.dim() == 3, "logits", "is neither (N, J) nor (N, J, P)");
  are.require(logits.size(1) >= 1, "logits", "has no class");
  const int64_t rows = logits.dim() == 3 ? logits.size(0) * logits.size(2) : logits.size(0);
  are.tensor("sample_weight", sample_weight, {rows}, ScalarType::Float);
  are.tensor("class_weight", class_weight, {logits.size(1)}, ScalarType::Float);
  if (row_grad.has_value()) are.numbers("row_grad", *row_grad, rows, accumulation_dtype(logits));
  are.between("loss", loss, kCrossEntropy, kBce);
  are.between("reduction", reduction, kNone, kSum);
  return are;
}

inline void check_soft_target(const Tensor& logits, const Tensor& index, const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& base, const std::optional<Tensor>& confidence,
                              const std::optional<Tensor>& sample_weight, const std::optional<Tensor>& class_weight,
                              const std::optional<Tensor>& row_grad, int64_t loss, int64_t weighting,
                              int64_t reduction) {
  const Arguments are = check_loss("soft_target", logits, sample_weight, class_weight, row_grad, loss, reduction);
  const int64_t rows = logits.dim() == 3 ? logits.size(0) * logits.size(2) : logits.size(0);
  are.rank("index", index, 2);
  const int64_t k = index.size(1);
  are.require(k >= 1, "index", "has no column, want (N, K) with K >= 1");
  are.tensor("index", index, {rows, k}, ScalarType::Long);
  are.tensor("weight", weight, {rows, k}, ScalarType::Float);
  are.tensor("base", base, {rows}, ScalarType::Float);
  are.tensor("confidence", confidence, {rows}, ScalarType::Float);
  are.between("weighting", weighting, kUnweighted, kByWeight);
}

inline void check_soft_target_dense(const Tensor& logits, const Tensor& target,
                                    const std::optional<Tensor>& sample_weight,
                                    const std::optional<Tensor>& class_weight, const std::optional<Tensor>& row_grad,
                                    int64_t loss, int64_t reduction) {
  const Arguments are = check_loss("soft_target_dense", logits, sample_weight, class_weight, row_grad, loss, reduction);
  are.floats("target", target);
  if (logits.dim() == 3) {
    are.tensor("target", target, {logits.size(0), logits.size(1), logits.size(2)}, target.scalar_type());
  } else {
    are.tensor("target", target, {logits.size(0), logits.size(1)}, target.scalar_type());
  }
}

inline void check_scale_gradient(const Tensor& grad, const Tensor& g) {
  const Arguments are("scale_gradient_", "grad", grad);
  are.floats("grad", grad);
  are.require(grad.is_contiguous(), "grad", "is not contiguous");
  are.require(grad.dim() >= 1, "grad", "has no dimension");
  are.numbers("g", g, grad.size(0), accumulation_dtype(grad));
}

// ---------------------------------------------------------------- ISDA

// The covariances of J classes and A features.
inline void check_covariances(const Arguments& are, const Tensor& cov, int64_t classes, int64_t width, int64_t kind,
                              ScalarType dtype) {
  are.between("kind", kind, kFull, kIdentity);
  if (kind == kFull) {
    are.tensor("cov", cov, {classes, width, width}, dtype);
  } else if (kind == kDiag) {
    are.tensor("cov", cov, {classes, width}, dtype);
  } else if (kind == kShared) {
    are.tensor("cov", cov, {width, width}, dtype);
  } else {
    are.tensor("cov", cov, {0}, dtype);
  }
}

inline void check_covariance_update(const Tensor& count, const Tensor& mean, const Tensor& cov, const Tensor& features,
                                    const Tensor& labels, int64_t kind) {
  const Arguments are("covariance_update_", "count", count);
  are.rank("mean", mean, 2);
  const int64_t classes = mean.size(0), width = mean.size(1);
  const ScalarType dtype = accumulation_dtype(mean);
  are.tensor("mean", mean, {classes, width}, dtype);
  are.tensor("count", count, {classes}, ScalarType::Long);
  check_covariances(are, cov, classes, width, kind, dtype);
  are.require(count.is_contiguous(), "count", "is not contiguous");
  are.require(mean.is_contiguous(), "mean", "is not contiguous");
  are.require(cov.is_contiguous(), "cov", "is not contiguous");
  are.floats("features", features);
  are.rank("features", features, 3);
  are.tensor("features", features, {features.size(0), width, features.size(2)}, features.scalar_type());
  are.tensor("labels", labels, {features.size(0), features.size(2)}, ScalarType::Long);
}

// in: the logits, or their gradient; labels null for isda_consistency.
inline Arguments check_isda(const char* op, const char* name, const Tensor& in, const Tensor& weight, const Tensor& cov,
                            const Tensor* labels, const std::optional<Tensor>& strength, int64_t kind) {
  const Arguments are(op, name, in);
  are.floats(name, in);
  are.require(in.dim() == 2 || (in.dim() == 3 && labels != nullptr), name,
              labels == nullptr ? "is no (N, J)" : "is neither (N, J) nor (N, J, P)");
  are.require(in.size(1) >= 1, name, "has no class");
  are.rank("weight", weight, 2);
  const ScalarType dtype = accumulation_dtype(in);
  are.tensor("weight", weight, {in.size(1), weight.size(1)}, dtype);
  check_covariances(are, cov, weight.size(0), weight.size(1), kind, dtype);
  if (labels != nullptr && in.dim() == 3) {
    are.tensor("labels", *labels, {in.size(0), in.size(2)}, ScalarType::Long);
  } else if (labels != nullptr) {
    are.tensor("labels", *labels, {in.size(0)}, ScalarType::Long);
  }
  if (strength.has_value()) are.tensor("strength", *strength, {}, accumulation_dtype(*strength));
  return are;
}

inline void check_isda_consistency(const Tensor& logits, const Tensor& weight, const Tensor& cov,
                                   const std::optional<Tensor>& strength, const std::optional<Tensor>& row_grad,
                                   int64_t reduction, int64_t kind) {
  const Arguments are = check_isda("isda_consistency", "logits", logits, weight, cov, nullptr, strength, kind);
  are.tensor("row_grad", row_grad, {logits.size(0)}, accumulation_dtype(logits));
  are.between("reduction", reduction, kNone, kSum);
}

// ---------------------------------------------------------------- plans

// Of all plans; sides of images, and rows, for which there must be bits unless none are drawn.
inline Arguments check_plan(const char* op, const Tensor& bits, const Tensor& active, int64_t rows, int64_t height = 0,
                            int64_t width = 0) {
  const Arguments are(op, "bits", bits);
  are.rank("bits", bits, 1);
  are.tensor("bits", bits, {bits.size(0)}, ScalarType::Long);
  are.tensor("active", active, {}, ScalarType::Bool);
  are.between("rows", rows, 0, INT32_MAX);
  are.between("height", height, 0, INT32_MAX);
  are.between("width", width, 0, INT32_MAX);
  return are;
}

// shares (R, K), R = draws = 1 or N; none: bits is the seed that they are drawn from.
inline void check_shares(const Arguments& are, const Tensor& bits, const std::optional<Tensor>& shares, int64_t rows,
                         int64_t draws, int64_t k, double alpha) {
  are.require(draws == rows || draws == 1, "draws", "is neither 1 nor the number of rows");
  are.between("k", k, 1, shares.has_value() ? INT32_MAX : INT32_MAX / (rows > 1 ? rows : 1));
  are.tensor("shares", shares, {draws, k}, ScalarType::Float);
  if (shares.has_value()) return;
  are.require(bits.numel() == 1, "bits", "is not one number, want the seed where shares are drawn");
  are.require(alpha > 0, "alpha", "is not above 0, where shares are drawn");
}

}  // namespace fastmix
