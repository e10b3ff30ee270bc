// How an operator's tensors and options are checked before a pointer is read: torch/operator_checks.h does it for each.
#pragma once

#include <sstream>
#include <stdexcept>

#include "torch/tensor.h"

namespace fastmix {

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    default:
      return "another";
  }
}

// One call's arguments. Errors are RuntimeErrors in Python: "op: name ...".
class Arguments {
 public:
  // The others have to be where the first one is.
  Arguments(const char* op, const char* first_name, const Tensor& first)
      : op_(op), first_(first_name), type_(device_type(first)), index_(first.get_device_index()) {}

  void tensor(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    const int32_t type = device_type(t);
    if (type != type_ || (type != aoti_torch_device_type_cpu() && t.get_device_index() != index_)) {
      fail(name, " is on another device than ", first_);
    }
    if (t.scalar_type() != dtype) fail(name, " is ", dtype_name(t.scalar_type()), ", want ", dtype_name(dtype));
    rank(name, t, static_cast<int64_t>(sizes.size()));
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t size = t.size(static_cast<int64_t>(i)), want = sizes.begin()[i];
      if (size != want) fail(name, " has size ", size, " in dimension ", i, ", want ", want);
    }
  }
  void tensor(const char* name, const std::optional<Tensor>& t, std::initializer_list<int64_t> sizes,
              ScalarType dtype) const {
    if (t.has_value()) tensor(name, *t, sizes, dtype);
  }
  // One number for all rows (0-d), or one for each.
  void numbers(const char* name, const Tensor& t, int64_t rows, ScalarType dtype) const {
    if (t.dim() == 0) {
      tensor(name, t, {}, dtype);
    } else {
      tensor(name, t, {rows}, dtype);
    }
  }
  void rank(const char* name, const Tensor& t, int64_t want) const {
    if (t.dim() != want) fail(name, " has ", t.dim(), " dimensions, want ", want);
  }
  void floats(const char* name, const Tensor& t) const {
    const ScalarType dtype = t.scalar_type();
    for (const ScalarType known : kScalarTypes) {
      if (dtype == known) return;
    }
    fail(name, " is ", dtype_name(dtype), ", want float32, bfloat16, float16 or float64");
  }
  void images(const char* name, const Tensor& t) const {
    floats(name, t);
    rank(name, t, 4);
  }
  void between(const char* name, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high) fail(name, " is ", value, ", want ", low, " to ", high);
  }
  void require(bool holds, const char* name, const char* what) const {
    if (!holds) fail(name, " ", what);
  }

 private:
  static int32_t device_type(const Tensor& t) {
    int32_t type = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    return type;
  }
  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << op_ << ": ";
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }

  const char* op_;
  const char* first_;
  int32_t type_, index_;
};

}  // namespace fastmix
