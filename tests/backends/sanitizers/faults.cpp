// One fault for each sanitizer, in builds under FASTMIX_SANITIZE alone: that it is reported is what makes the silence
// of the operators' tests mean something.
#include <string>

#include "cpu/lib/binding.h"

namespace fastmix {
namespace {

// One element behind the tensor.
void read_beyond(const Tensor& x) {
  const volatile float* data = static_cast<const float*>(x.const_data_ptr());
  (void)data[x.numel()];
}

void overflow(int64_t value) {
  volatile int64_t doubled = value;
  doubled = doubled * 2;
}

// Every item adds to the same element, on whatever thread it runs.
void race(const Tensor& x) {
  volatile float* data = static_cast<float*>(x.mutable_data_ptr());
  parallel_items(64, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[0] = data[0] + 1;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastmix, m) {
  m.def("_fault_read_beyond(Tensor x) -> ()");
  m.def("_fault_overflow(int value) -> ()");
  m.def("_fault_race(Tensor(a!) x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastmix, CompositeExplicitAutograd, m) {
  m.impl("_fault_read_beyond", TORCH_BOX(&read_beyond));
  m.impl("_fault_overflow", TORCH_BOX(&overflow));
  m.impl("_fault_race", TORCH_BOX(&race));
}

}  // namespace fastmix
