// What the CPU registrations share: parallel loops, the errors of bad indices, numbers out of and into tensors.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "torch/tensor.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace fastmix {

// torch's threads are not built with ThreadSanitizer, which therefore sees neither that a loop begins after what its
// caller wrote nor that it ends before what its caller reads. These say so, and nothing about the threads among
// themselves: a race between two of them is still one. Not members of the loop: a thread would have to read where they
// are before it could say that it may.
#if defined(__SANITIZE_THREAD__)
inline char begin_of_loops, end_of_loops;
inline void before_loop() { __tsan_release(&begin_of_loops); }
inline void before_share() { __tsan_acquire(&begin_of_loops); }
inline void after_share() { __tsan_release(&end_of_loops); }
inline void after_loop() { __tsan_acquire(&end_of_loops); }
#else
inline void before_loop() {}
inline void before_share() {}
inline void after_share() {}
inline void after_loop() {}
#endif

// body(begin, end) over [0, items). A thread gets at least 16384 elements: below that a fork costs more than it saves.
template <typename F>
void parallel_items(int64_t items, int64_t elements_per_item, const F& body) {
  constexpr int64_t kElementsPerThread = 16384;
  const int64_t grain = kElementsPerThread / (elements_per_item > 0 ? elements_per_item : 1) + 1;
  if (items <= grain) {
    if (items > 0) body(int64_t{0}, items);
    return;
  }
  const auto share = [&body](int64_t begin, int64_t end) {
    before_share();
    body(begin, end);
    after_share();
  };
  before_loop();
  torch::stable::parallel_for(0, items, grain, share);
  after_loop();
}

// IndexError in Python. Never inside a parallel loop, whose boundary turns it into a RuntimeError.
[[noreturn]] inline void throw_index(const char* op, const char* name, int64_t row, int64_t value, int64_t size) {
  throw std::out_of_range(std::string(op) + ": " + name + " of row " + std::to_string(row) + " is " +
                          std::to_string(value) + ", want a value in [0, " + std::to_string(size) + ")");
}

// index is contiguous (rows, columns).
inline void check_rows(const char* op, const char* name, const int64_t* index, int64_t rows, int64_t columns,
                       int64_t size) {
  for (int64_t i = 0; i < rows * columns; ++i) {
    if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(size)) {
      throw_index(op, name, i / columns, index[i], size);
    }
  }
}

// ISDA's strength: scale times the 0-d float32 or float64 tensor, where there is one.
inline double strength_of(const std::optional<Tensor>& strength, double scale) {
  if (!strength.has_value()) return scale;
  const void* value = strength->const_data_ptr();
  const bool is_double = strength->scalar_type() == ScalarType::Double;
  return scale * (is_double ? *static_cast<const double*>(value) : *static_cast<const float*>(value));
}

// A tensor of float32 or float64 from values.
inline Tensor tensor_of(const double* values, const Tensor& like, std::initializer_list<int64_t> sizes,
                        ScalarType dtype) {
  Tensor out = allocate(like, sizes, dtype);
  void* to = out.mutable_data_ptr();
  for (int64_t i = 0, count = out.numel(); i < count; ++i) {
    if (dtype == ScalarType::Double) {
      static_cast<double*>(to)[i] = values[i];
    } else {
      static_cast<float*>(to)[i] = static_cast<float>(values[i]);
    }
  }
  return out;
}

}  // namespace fastmix
