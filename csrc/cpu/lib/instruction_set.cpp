// The instruction set of the CPU kernels: the processor's best, or a lower one that a test asks for.
#include "cpu/lib/instruction_set.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

namespace fastmix {
namespace {

// What "portable", "avx2" and "avx512" are, for a library that has one of them alone.
[[maybe_unused]] constexpr InstructionSet portable = kPortable, avx2 = kAvx2, avx512 = kAvx512;

InstructionSet best() {
#if defined(FASTMIX_ONE_INSTRUCTION_SET)
  return FASTMIX_ONE_INSTRUCTION_SET;
#else
#ifdef FASTMIX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return kAvx2;
#endif
  return kPortable;
#endif
}

std::atomic<int64_t>& active() {
  static std::atomic<int64_t> value{best()};
  return value;
}

// request -1 only asks, -2 returns to the best; returns the one in use (never above the processor's).
int64_t set_instruction_set(int64_t request) {
  if (request == -2) request = best();
#ifndef FASTMIX_ONE_INSTRUCTION_SET
  if (request >= 0) active().store(std::min<int64_t>(request, best()), std::memory_order_relaxed);
#endif
  return active_instruction_set();
}

}  // namespace

InstructionSet active_instruction_set() {
  return static_cast<InstructionSet>(active().load(std::memory_order_relaxed));
}

STABLE_TORCH_LIBRARY_IMPL(fastmix, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&set_instruction_set));
}

}  // namespace fastmix
