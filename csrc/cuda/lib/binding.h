// What the CUDA registrations share: the device and stream of a call, its launch check, dtype dispatch.
// Under FASTMIX_SIMT (tests/simt) the same registrations serve CPU tensors in a namespace of their own.
#pragma once

#include "core/float_types.h"
#include "cuda/lib/launch.h"
#include "torch/layout.h"

#ifdef FASTMIX_SIMT
#define FASTMIX_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(fastmix_simt, CPU, m)
#else
#include <torch/csrc/stable/accelerator.h>
#define FASTMIX_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(fastmix, CUDA, m)
#endif

namespace fastmix {

// The device of x is current while this lives; its current stream takes the launches.
class OnDevice {
 public:
#ifdef FASTMIX_SIMT
  OnDevice(const char*, const Tensor&) {}
  void check() const {}
#else
  OnDevice(const char* op, const Tensor& x) : op_(op), guard_(x.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }
  // After the last launch.
  void check() const {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": the CUDA launch failed: ", cudaGetErrorString(error));
  }
#endif
  Stream stream() const { return stream_; }

 private:
#ifndef FASTMIX_SIMT
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Stream stream_ = nullptr;
};

// f(T{}) with the storage type of x.
template <typename F>
void dispatch(const char* op, const Tensor& x, const F& f) {
  switch (float_type(op, x)) {
    case kFloat32:
      return f(float{});
    case kBfloat16:
      return f(bf16{});
    case kFloat16:
      return f(f16{});
    case kFloat64:
      return f(double{});
  }
}

inline int to_int32(const char* op, const char* what, int64_t value) {
  STD_TORCH_CHECK(value < (int64_t{1} << 31), op, ": ", what, " is ", value, ", want less than 2^31");
  return static_cast<int>(value);
}

}  // namespace fastmix
