// How a batch lies in memory: what kernels may read as it is, and outputs that lie like torch.empty_like's.
//
// A kernel sees rows (images, x[n]) that are packed, elements without gaps or overlaps, and a stride between rows.
// Element-wise kernels take rows packed in any order of dimensions, image kernels (N, C, H, W) only NCHW or NHWC.
#pragma once

#include <algorithm>

#include "torch/tensor.h"

namespace fastmix {

enum class RowOrder { kAny, kImage };

// Elements in one row, dims [1, rank).
inline int64_t row_elements(Dims sizes) {
  int64_t n = 1;
  for (size_t d = 1; d < sizes.size(); ++d) n *= sizes[d];
  return n;
}

// Whether dims [first, rank) fill memory in row-major order. Strides of dims of size 1 mean nothing.
inline bool is_row_major(Dims sizes, Dims strides, size_t first) {
  int64_t expected = 1;
  for (size_t d = sizes.size(); d-- > first;) {
    if (sizes[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// Whether the images of (N, C, H, W) fill memory in the order H, W, C.
inline bool is_channels_last(Dims sizes, Dims strides) {
  if (sizes.size() != 4) return false;
  int64_t expected = 1;
  for (const size_t d : {size_t{1}, size_t{3}, size_t{2}}) {
    if (sizes[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// Whether dims [first, rank) fill memory in any order of dimensions.
inline bool is_packed(Dims sizes, Dims strides, size_t first) {
  if (is_row_major(sizes, strides, first)) return true;
  size_t order[64];
  size_t count = 0;
  for (size_t d = first; d < sizes.size(); ++d) {
    if (sizes[d] != 1) order[count++] = d;
  }
  std::sort(order, order + count, [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (size_t i = 0; i < count; ++i) {
    if (strides[order[i]] != expected) return false;
    expected *= sizes[order[i]];
  }
  return true;
}

inline bool can_read(Dims sizes, Dims strides, RowOrder order) {
  return is_row_major(sizes, strides, 1) ||
         (order == RowOrder::kImage ? is_channels_last(sizes, strides) : is_packed(sizes, strides, 1));
}

inline bool same_rows(Dims sizes, Dims a, Dims b) {
  for (size_t d = 1; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && a[d] != b[d]) return false;
  }
  return true;
}

// torch.empty_like(x): the same strides where x fills memory, else torch's choice.
inline Tensor empty_like_layout(const Tensor& x) {
  const Dims sizes = x.sizes(), strides = x.strides();
  return is_packed(sizes, strides, 0) ? allocate_strided(x, sizes, strides, x.scalar_type())
                                      : torch::stable::empty_like(x);
}

// Rows that a kernel only reads.
struct Rows {
  Tensor tensor;  // owns the memory: x itself, or its contiguous copy
  const void* data;
  int64_t elements;    // of one row
  int64_t stride;      // elements between rows: any value, 0 as well
  bool channels_last;  // rows are (H, W, C), else row-major (or, with kAny, the order of x)
};

inline Rows read_rows(const Tensor& x, RowOrder order) {
  const Tensor t = can_read(x.sizes(), x.strides(), order) ? x : torch::stable::contiguous(x);
  const Dims sizes = t.sizes(), strides = t.strides();
  return {t, t.const_data_ptr(), row_elements(sizes), strides[0],
          !is_row_major(sizes, strides, 1) && is_channels_last(sizes, strides)};
}

// An input and an output of the same shape, for a kernel that writes rows in the order in which it reads them.
// Rows of the output are packed and follow each other: row n starts at n * in.elements.
struct RowsLike {
  Rows in;
  Tensor written;  // what the kernel writes
  Tensor like_x;   // what the operator returns; the same tensor unless the layout of x is none that kernels write

  void* out() const { return written.mutable_data_ptr(); }
  // Call once, when the rows are written.
  Tensor result() {
    if (written.get() != like_x.get()) torch::stable::copy_(like_x, written);
    return like_x;
  }
};

inline RowsLike rows_like(const Tensor& x, RowOrder order) {
  const Dims sizes = x.sizes();
  const Tensor like_x = empty_like_layout(x);
  const Dims strides = like_x.strides();
  const int64_t elements = row_elements(sizes);
  if (can_read(sizes, strides, order) && (sizes[0] <= 1 || elements <= 1 || strides[0] == elements)) {
    if (same_rows(sizes, x.strides(), strides)) return {read_rows(x, order), like_x, like_x};
    Tensor copy = allocate_strided(x, sizes, strides, x.scalar_type());
    torch::stable::copy_(copy, x);
    return {read_rows(copy, order), like_x, like_x};
  }
  // The batch is not the outermost dimension, or images lie in an order of their own.
  const Tensor copy = torch::stable::contiguous(x);
  return {read_rows(copy, order), allocate_strided(x, sizes, copy.strides(), x.scalar_type()), like_x};
}

}  // namespace fastmix
