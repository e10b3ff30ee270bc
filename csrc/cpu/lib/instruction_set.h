// Which build of the kernels runs: each *.simd.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

namespace fastmix {

enum Isa : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The level in use: the best the processor has, or the one that set_isa asked for.
Isa active_isa();

// request -1 only asks, -2 returns to the best; returns the level in use (never above the processor's).
int64_t set_isa(int64_t request);

}  // namespace fastmix

#if defined(__x86_64__) || defined(_M_X64)
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
#define FASTMIX_KERNELS(name)                                              \
  (::fastmix::active_isa() == ::fastmix::kAvx512 ? ::fastmix::avx512::name \
   : ::fastmix::active_isa() == ::fastmix::kAvx2 ? ::fastmix::avx2::name   \
                                                 : ::fastmix::portable::name)
#else
#define FASTMIX_DECLARE_KERNELS(type, name) \
  namespace portable {                      \
  extern const type name;                   \
  }
#define FASTMIX_KERNELS(name) (::fastmix::portable::name)
#endif
