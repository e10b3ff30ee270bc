// The operator schemas. Kernels register themselves against them: csrc/cpu for the CPU, csrc/cuda for CUDA.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastmix, m) {
#define FASTMIX_OP(schema) m.def(schema);
#include "../fastmix/ops/schemas.def"
#undef FASTMIX_OP
  m.def("_cpu_isa(int request) -> int");
  m.def("_cpu_poison(bool on) -> ()");
}
