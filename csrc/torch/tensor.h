// Tensors as the registrations of both libraries, CPU and CUDA, handle them: dtypes, outputs, contiguous copies.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "core/enums.h"

// torch 2.10's headers have the macro under its older name only.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastmix {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Dims = torch::headeronly::IntHeaderOnlyArrayRef;

// ---------------------------------------------------------------- dtypes

// In the order of FloatType.
inline constexpr ScalarType kScalarTypes[kFloatTypes] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                                                         ScalarType::Double};

inline FloatType float_type(const char* op, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  int64_t code = 0;
  while (code < kFloatTypes && kScalarTypes[code] != dtype) ++code;
  STD_TORCH_CHECK(code < kFloatTypes, op, ": want a float32, bfloat16, float16 or float64 tensor");
  return static_cast<FloatType>(code);
}

// What sums over x are kept in: float32 for every type but float64.
inline ScalarType accumulation_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// ---------------------------------------------------------------- outputs

// Memory that is not initialised, on the device of `like`. Every output is allocated by this: cpu/lib/allocate.cpp has
// it for the CPU library, cuda/lib/allocate.cpp for the CUDA library.
Tensor allocate_strided(const Tensor& like, Dims sizes, Dims strides, ScalarType dtype);

// What both of them call, past the dispatcher.
inline Tensor empty_on(int32_t device_type, int32_t device_index, Dims sizes, Dims strides, ScalarType dtype) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
  return Tensor(handle);
}

// Row-major.
inline Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[8], step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  return allocate_strided(like, Dims(sizes.begin(), sizes.size()), Dims(strides, sizes.size()), dtype);
}

// Images (N, C, H, W) in torch's strides of the memory format.
inline Tensor allocate_images(const Tensor& like, std::initializer_list<int64_t> sizes, bool channels_last,
                              ScalarType dtype) {
  if (!channels_last) return allocate(like, sizes, dtype);
  const int64_t channels = sizes.begin()[1], height = sizes.begin()[2], width = sizes.begin()[3];
  const int64_t strides[] = {height * width * channels, 1, width * channels, channels};
  return allocate_strided(like, Dims(sizes.begin(), 4), Dims(strides, 4), dtype);
}

// ---------------------------------------------------------------- inputs

// torch's own contiguous() goes through the dispatcher even where nothing is to do.
inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(as_contiguous(*t)) : t;
}

// Elements of the last dimension side by side; the other dimensions may have any strides.
inline Tensor as_contiguous_rows(const Tensor& t) {
  const auto last = static_cast<int32_t>(t.dim()) - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace fastmix
