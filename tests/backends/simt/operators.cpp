// The CUDA registrations, served by the CPU for tests: namespace fastmix_simt.
#include <torch/csrc/stable/library.h>

#include "simt.h"

STABLE_TORCH_LIBRARY(fastmix_simt, m) {
#define FASTMIX_OP(schema) m.def(schema);
#include "../../../fastmix/ops/schemas.def"
#undef FASTMIX_OP
}

// For ctypes: whether blocks and threads run in reverse, which must not change a result.
extern "C" __attribute__((visibility("default"))) void simt_reverse(int on) { simt::machine().reversed = on != 0; }
