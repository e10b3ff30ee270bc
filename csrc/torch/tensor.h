// What the registrations share: allocation, dtype dispatch, and on the CPU parallel loops and the errors of bad
// indices.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

// torch 2.10's headers have the macro under its older name only.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastmix {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Dims = torch::headeronly::IntHeaderOnlyArrayRef;

// Position of a kernel in its table of four: float, bfloat16, half, double.
inline int dtype_slot(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return 0;
    case ScalarType::BFloat16:
      return 1;
    case ScalarType::Half:
      return 2;
    case ScalarType::Double:
      return 3;
    default:
      STD_TORCH_CHECK(false, op, ": want a float32, bfloat16, float16 or float64 tensor");
  }
  return 0;
}

// Every output is allocated by one of these: csrc/cpu/allocate.cpp, and csrc/cuda/allocate.cpp for that library.
Tensor empty_strided_cpu(Dims sizes, Dims strides, ScalarType dtype);
// On the device of like.
Tensor empty_strided_beside(const Tensor& like, Dims sizes, Dims strides, ScalarType dtype);

// Row-major strides of sizes, for empty_strided.
struct RowMajor {
  int64_t values[8];
  explicit RowMajor(std::initializer_list<int64_t> sizes) {
    int64_t step = 1;
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
      values[i] = step;
      step *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
    }
  }
};

inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty_strided_cpu(Dims(sizes.begin(), sizes.size()), Dims(RowMajor(sizes).values, sizes.size()), dtype);
}

inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty_strided_beside(like, Dims(sizes.begin(), sizes.size()), Dims(RowMajor(sizes).values, sizes.size()),
                              dtype);
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : t;
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// scale times the 0-d float32 or float64 tensor, where there is one.
inline double strength_of(const std::optional<Tensor>& strength, double scale) {
  if (!strength.has_value()) return scale;
  const void* value = strength->const_data_ptr();
  const bool is_double = strength->scalar_type() == ScalarType::Double;
  return scale * (is_double ? *static_cast<const double*>(value) : *static_cast<const float*>(value));
}

// body(begin, end) over [0, items). A thread gets at least 16384 elements: below that a fork costs more than it saves.
template <typename F>
void parallel_items(int64_t items, int64_t elements_per_item, const F& body) {
  constexpr int64_t kElementsPerThread = 16384;
  const int64_t grain = kElementsPerThread / (elements_per_item > 0 ? elements_per_item : 1) + 1;
  if (items <= grain) {
    if (items > 0) body(int64_t{0}, items);
    return;
  }
  torch::stable::parallel_for(0, items, grain, body);
}

// IndexError in Python. Never inside a parallel loop, whose boundary turns it into a RuntimeError.
[[noreturn]] inline void throw_index(const char* op, const char* name, int64_t row, int64_t value, int64_t size) {
  throw std::out_of_range(std::string(op) + ": " + name + " of row " + std::to_string(row) + " is " +
                          std::to_string(value) + ", want a value in [0, " + std::to_string(size) + ")");
}

// index is dense (rows, columns).
inline void check_rows(const char* op, const char* name, const int64_t* index, int64_t rows, int64_t columns,
                       int64_t size) {
  for (int64_t i = 0; i < rows * columns; ++i) {
    if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(size)) {
      throw_index(op, name, i / columns, index[i], size);
    }
  }
}

}  // namespace fastmix
