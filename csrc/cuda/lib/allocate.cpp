// Memory of outputs in the CUDA library: past the dispatcher, from torch's caching allocator. Tests serve it on the CPU
// (FASTMIX_SIMT), where all outputs are poisoned.
#include <cstring>

#include "torch/tensor.h"

namespace fastmix {

Tensor empty_strided_beside(const Tensor& like, Dims sizes, Dims strides, ScalarType dtype) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
                               like.is_cpu() ? 0 : like.get_device_index(), &handle));
  Tensor t(handle);
#ifdef FASTMIX_SIMT
  std::memset(t.mutable_data_ptr(), 0xff, static_cast<size_t>(t.numel()) * t.element_size());
#endif
  return t;
}

}  // namespace fastmix
