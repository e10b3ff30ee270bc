// blend and its gradient on the CPU: checks, the inverse of the gather, registration. K-image mixing Eq. 2.

#include "cpu/blend.h"

#include "core/common.h"
#include "cpu/lib/grouping.h"
#include "cpu/lib/memory.h"
#include "torch/layout.h"
#include "torch/operator_checks.h"

namespace fastmix {
namespace {

// Sums into rows like x's. additions: of all rows together.
Tensor run(const char* op, const Tensor& x, BlendArgs a, int64_t additions) {
  const FloatType type = float_type(op, x);
  RowsLike rows = rows_like(x, RowOrder::kAny);
  a.src = rows.in.data;
  a.src_stride = rows.in.stride;
  a.elements = rows.in.elements;
  a.dst = rows.out();
  const int64_t size = x.size(0);
  if (size > 0 && a.elements > 0) {
    const BlendPieces pieces = FASTMIX_KERNELS(blend).pieces[type];
    a.rows = size;
    a.across = exceeds_caches(size * a.elements * x.element_size());
    a.piece = kBlendPiece;
    if (a.across) a.piece = 512 * across_images(kBlendTile, size, 512 * x.element_size(), kBlendPiece / 512);
    const int64_t items = size * ceil_div(a.elements, a.piece);
    parallel_items(items, (additions + size) * a.elements / items,
                   [&](int64_t begin, int64_t end) { pieces(a, begin, end); });
  }
  return rows.result();
}

Tensor blend_cpu(const Tensor& x, const Tensor& index_in, const Tensor& weight_in) {
  check_blend("blend", "x", x, index_in, weight_in);
  const Tensor index = as_contiguous(index_in), weight = as_contiguous(weight_in);
  BlendArgs a{};
  a.source = static_cast<const int64_t*>(index.const_data_ptr());
  a.weight = static_cast<const float*>(weight.const_data_ptr());
  a.k = index.size(1);
  const int64_t size = x.size(0);
  check_rows("blend", "index", a.source, size, a.k, size);
  return run("blend", x, a, size * a.k);
}

// dx[m] = sum of weight[n, k] * grad[n] over the (n, k) with index[n, k] = m, in their order.
Tensor blend_backward_cpu(const Tensor& grad, const Tensor& index_in, const Tensor& weight_in) {
  check_blend("blend_backward", "grad", grad, index_in, weight_in);
  const Tensor index = as_contiguous(index_in), weight = as_contiguous(weight_in);
  const int64_t size = grad.size(0), k = index.size(1);
  Groups by = by_source("blend_backward", static_cast<const int64_t*>(index.const_data_ptr()), size, k);
  const float* weights = static_cast<const float*>(weight.const_data_ptr());
  std::vector<float> ordered(by.places.size());
  for (size_t i = 0; i < by.places.size(); ++i) {
    ordered[i] = weights[by.places[i]];
    by.places[i] /= k;
  }
  BlendArgs a{};
  a.offset = by.offset.data();
  a.source = by.places.data();
  a.weight = ordered.data();
  return run("blend_backward", grad, a, size * k);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmix, CPU, m) {
  m.impl("blend", TORCH_BOX(&blend_cpu));
  m.impl("blend_backward", TORCH_BOX(&blend_backward_cpu));
}

}  // namespace fastmix
