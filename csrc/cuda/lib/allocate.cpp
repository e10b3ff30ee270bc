// Memory of outputs in the CUDA library: past the dispatcher, from torch's caching allocator. Tests serve it on the CPU
// (FASTMIX_SIMT), where all outputs are poisoned.
#include <cstring>

#include "torch/tensor.h"

namespace fastmix {

Tensor allocate_strided(const Tensor& like, Dims sizes, Dims strides, ScalarType dtype) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  Tensor t = empty_on(device_type, like.is_cpu() ? 0 : like.get_device_index(), sizes, strides, dtype);
#ifdef FASTMIX_SIMT
  std::memset(t.mutable_data_ptr(), 0xff, static_cast<size_t>(t.numel()) * t.element_size());
#endif
  return t;
}

}  // namespace fastmix
