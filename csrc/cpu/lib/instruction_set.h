// Which build of the kernels runs: each *.simd.cpp is compiled once per instruction set, and exports tables of kernels.
#pragma once

#include <cstdint>

#include "core/enums.h"

namespace fastmix {

// The one in use: the best that the processor has, or the one that _cpu_isa asked for.
InstructionSet active_instruction_set();

}  // namespace fastmix

// A kernel for every storage type, in the order of FloatType.
#define FASTMIX_BY_FLOAT_TYPE(kernel) {kernel<float>, kernel<bf16>, kernel<f16>, kernel<double>}

#if defined(FASTMIX_ONE_INSTRUCTION_SET)  // setup.py: FASTMIX_INSTRUCTION_SET
#define FASTMIX_DECLARE_KERNELS(type, name) \
  namespace FASTMIX_ONE_INSTRUCTION_SET {   \
  extern const type name;                   \
  }
#define FASTMIX_KERNELS(name) (::fastmix::FASTMIX_ONE_INSTRUCTION_SET::name)
#elif defined(__x86_64__) || defined(_M_X64)
#define FASTMIX_X86 1
#define FASTMIX_DECLARE_KERNELS(type, name) \
  namespace portable {                      \
  extern const type name;                   \
  }                                         \
  namespace avx2 {                          \
  extern const type name;                   \
  }                                         \
  namespace avx512 {                        \
  extern const type name;                   \
  }
#define FASTMIX_KERNELS(name)                                                          \
  (::fastmix::active_instruction_set() == ::fastmix::kAvx512 ? ::fastmix::avx512::name \
   : ::fastmix::active_instruction_set() == ::fastmix::kAvx2 ? ::fastmix::avx2::name   \
                                                             : ::fastmix::portable::name)
#else
#define FASTMIX_DECLARE_KERNELS(type, name) \
  namespace portable {                      \
  extern const type name;                   \
  }
#define FASTMIX_KERNELS(name) (::fastmix::portable::name)
#endif
