#include "cpu/lib/instruction_set.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastmix {
namespace {

Isa best() {
#ifdef FASTMIX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return kAvx2;
#endif
  return kPortable;
}

std::atomic<int64_t>& level() {
  static std::atomic<int64_t> value{static_cast<int64_t>(best())};
  return value;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(level().load(std::memory_order_relaxed)); }

int64_t set_isa(int64_t request) {
  if (request == -2) request = best();
  if (request >= 0) level().store(std::min<int64_t>(request, best()), std::memory_order_relaxed);
  return active_isa();
}

STABLE_TORCH_LIBRARY_IMPL(fastmix, CompositeExplicitAutograd, m) { m.impl("_cpu_isa", TORCH_BOX(&set_isa)); }

}  // namespace fastmix
