// Runs CUDA kernels on the CPU, compiled by g++: csrc/cuda/launch.h includes this file under FASTMIX_SIMT.
//
// The threads of a block are fibers with stacks of their own, switched at barriers and warp exchanges; blocks run
// one after another. ThreadSanitizer is told about every fiber and sees each as a thread: two accesses to one address
// race unless a barrier orders them, whatever the schedule was, so a missing __syncthreads is found every time.
// std::thread would take a system-level switch for every thread at every barrier, and find races by chance.
// AddressSanitizer sees shared memory as ordinary arrays. Beyond both: a barrier that some threads of a block never
// reach is reported as a deadlock, and the schedule can be reversed, which changes the result of order-dependent code.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SIMT_TSAN(call) call
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_TSAN(call)
#define SIMT_UNCHECKED __attribute__((noinline))
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN(call) call
#else
#define SIMT_ASAN(call)
#endif

// Shared memory: blocks run one at a time, so one array serves them all. Kernels have internal linkage, without which
// AddressSanitizer puts no bands around arrays of templates.
#define __shared__ static
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct simt_dim {
  unsigned x = 1, y = 1, z = 1;
};

namespace simt {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
  int count[2] = {0, 0};
};

struct Warp {
  Barrier barrier;
  uint64_t slot[2][kWarp];
  uint32_t mma_a[2][kWarp][4], mma_b[2][kWarp][2];  // operands of tensor cores
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack;
  const unsigned* waits_for = nullptr;  // runnable again once *waits_for != seen
  unsigned seen = 0;
  bool done = false;
  int barriers = 0;  // barriers met in this block
  void* tsan = nullptr;
  void* fake_stack = nullptr;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> dynamic;
  ucontext_t scheduler;
  void* scheduler_tsan = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  Barrier block_barrier;
  char launch_token = 0, end_token = 0;
  unsigned current = 0;
  simt_dim block, grid, index;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  int drop_barrier = -1;  // the n-th barrier that a thread meets orders no memory
  int barriers_met = 0;   // barriers of thread 0 in the longest block so far
  bool reversed = false;
  unsigned last_blocks = 0;  // run only so many, the last of the grid; 0: all
};

inline Machine& machine() {
  static Machine m;
  return m;
}

SIMT_UNCHECKED inline unsigned thread_index() { return machine().current; }
SIMT_UNCHECKED inline simt_dim block_index() { return machine().index; }
SIMT_UNCHECKED inline simt_dim block_size() { return machine().block; }
SIMT_UNCHECKED inline simt_dim grid_size() { return machine().grid; }
SIMT_UNCHECKED inline void* dynamic_shared() { return machine().dynamic.get(); }

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s (block %u)\n", what, machine().index.x);
  std::abort();
}

SIMT_UNCHECKED inline void to_scheduler(bool last) {
  Machine& m = machine();
  Fiber& f = m.fibers[m.current];
  (void)last;
  SIMT_ASAN(__sanitizer_start_switch_fiber(last ? nullptr : &f.fake_stack, m.scheduler_stack, m.scheduler_stack_size));
  SIMT_TSAN(__tsan_switch_to_fiber(m.scheduler_tsan, __tsan_switch_to_fiber_no_sync));
  swapcontext(&f.context, &m.scheduler);
  SIMT_ASAN(__sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr));
}

SIMT_UNCHECKED inline void wait_until_changed(const unsigned* generation, unsigned seen) {
  Fiber& f = machine().fibers[machine().current];
  f.waits_for = generation;
  f.seen = seen;
  to_scheduler(false);
  f.waits_for = nullptr;
}

// Returns the sum of value over the members. ordered: memory accesses before it happen before those after it.
SIMT_UNCHECKED inline int meet(Barrier& b, unsigned members, int value, bool ordered) {
  const unsigned generation = b.generation;
  (void)ordered;
  SIMT_TSAN(if (ordered) __tsan_release(&b));
  int* count = &b.count[generation & 1];
  *count += value;
  if (++b.arrived == members) {
    b.arrived = 0;
    b.count[(generation + 1) & 1] = 0;
    ++b.generation;
  } else {
    wait_until_changed(&b.generation, generation);
  }
  SIMT_TSAN(if (ordered) __tsan_acquire(&b));
  return *count;
}

// Counts the barrier that the current thread meets; whether it orders memory, or is the one to leave out.
SIMT_UNCHECKED inline bool is_kept() {
  Machine& m = machine();
  Fiber& f = m.fibers[m.current];
  const bool kept = f.barriers++ != m.drop_barrier;
  if (m.current == 0 && f.barriers > m.barriers_met) m.barriers_met = f.barriers;
  return kept;
}

SIMT_UNCHECKED inline int block_barrier(int value) {
  Machine& m = machine();
  return meet(m.block_barrier, m.block.x, value, is_kept());
}

SIMT_UNCHECKED inline void warp_barrier() {
  Machine& m = machine();
  meet(m.warps[m.current / kWarp].barrier, kWarp, 0, is_kept());
}

// What every lane of the warp gave. Orders no memory accesses, as on the GPU.
SIMT_UNCHECKED inline const uint64_t* gather(uint64_t value, unsigned mask) {
  Machine& m = machine();
  if (mask != 0xffffffffu) fail("warp functions want the full mask");
  Warp& w = m.warps[m.current / kWarp];
  // Two slots in turn: a lane writes a slot again only once all have met at the exchange in between.
  uint64_t* slot = w.slot[w.barrier.generation & 1];
  slot[m.current % kWarp] = value;
  meet(w.barrier, kWarp, 0, false);
  return slot;
}

SIMT_UNCHECKED inline uint64_t exchange_bits(uint64_t value, unsigned mask, unsigned from) {
  return gather(value, mask)[from % kWarp];
}

template <typename T>
T exchange(T value, unsigned mask, unsigned from) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(bits, mask, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

SIMT_UNCHECKED inline unsigned ballot(int predicate, unsigned mask) {
  const uint64_t* given = gather(predicate != 0, mask);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) bits |= static_cast<unsigned>(given[lane]) << lane;
  return bits;
}

// A sum as tensor cores were found to take it (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"): products
// are exact, every term is cut to the bits of the largest, 24 from its first, and so is the sum. Later GPUs keep a few
// bits more; this is the least exact of them.
inline float cut_sum(const double* terms, int count) {
  int largest = -1100;
  for (int i = 0; i < count; ++i) {
    int exponent = -1100;
    if (!std::isfinite(terms[i])) largest = 2000;
    if (terms[i] != 0) std::frexp(terms[i], &exponent);
    if (exponent > largest) largest = exponent;
  }
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += largest >= 2000 || largest == -1100
               ? terms[i]
               : std::ldexp(std::trunc(std::ldexp(terms[i], 24 - largest)), largest - 24);
  }
  const float nearest = static_cast<float>(sum);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// mma.sync m16n8k8 of TF32: operands lose their last 13 bits.
SIMT_UNCHECKED inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Machine& m = machine();
  Warp& w = m.warps[m.current / kWarp];
  const unsigned turn = w.barrier.generation & 1, lane = m.current % kWarp;
  for (int i = 0; i < 4; ++i) w.mma_a[turn][lane][i] = a[i];
  for (int i = 0; i < 2; ++i) w.mma_b[turn][lane][i] = b[i];
  meet(w.barrier, kWarp, 0, false);
  const auto tf32 = [](uint32_t bits) {
    bits &= 0xffffe000u;
    float v;
    std::memcpy(&v, &bits, sizeof(v));
    return static_cast<double>(v);
  };
  for (int e = 0; e < 4; ++e) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + static_cast<unsigned>(e) % 2;
    double terms[9];
    for (unsigned k = 0; k < 8; ++k) {
      terms[k] =
          tf32(w.mma_a[turn][row * 4 + k % 4][e / 2 + k / 4 * 2]) * tf32(w.mma_b[turn][column * 4 + k % 4][k / 4]);
    }
    terms[8] = d[e];
    d[e] = cut_sum(terms, 9);
  }
}

SIMT_UNCHECKED inline void run_fiber() {
  Machine& m = machine();
  SIMT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size));
  SIMT_TSAN(__tsan_acquire(&m.launch_token));
  m.body(m.argument);
  SIMT_TSAN(__tsan_release(&m.end_token));
  m.fibers[m.current].done = true;
  to_scheduler(true);
}

SIMT_UNCHECKED inline void resume(unsigned t) {
  Machine& m = machine();
  Fiber& f = m.fibers[t];
  m.current = t;
  SIMT_ASAN(__sanitizer_start_switch_fiber(&m.scheduler_fake_stack, f.stack.get(), kStack));
  SIMT_TSAN(__tsan_switch_to_fiber(f.tsan, __tsan_switch_to_fiber_no_sync));
  swapcontext(&m.scheduler, &f.context);
  SIMT_ASAN(__sanitizer_finish_switch_fiber(m.scheduler_fake_stack, nullptr, nullptr));
}

SIMT_UNCHECKED inline void run_block() {
  Machine& m = machine();
  const unsigned threads = m.block.x;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& f = m.fibers[t];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
    f.done = false;
    f.barriers = 0;
  }
  for (unsigned left = threads; left > 0;) {
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = m.reversed ? threads - 1 - i : i;
      Fiber& f = m.fibers[t];
      if (f.done || (f.waits_for != nullptr && *f.waits_for == f.seen)) continue;
      resume(t);
      moved = true;
      if (f.done) --left;
    }
    if (!moved) fail("deadlock: not every thread reaches the barrier, or not every lane the warp function");
  }
  SIMT_TSAN(__tsan_acquire(&m.end_token));
}

SIMT_UNCHECKED inline void run_grid(unsigned blocks, unsigned threads, size_t shared, void (*body)(void*),
                                    void* argument) {
  Machine& m = machine();
  if (threads == 0 || threads > 1024 || threads % kWarp != 0) fail("blocks want a multiple of 32 threads, up to 1024");
  m.fibers.reserve(1024);  // a later, larger block must not move them
  while (m.fibers.size() < threads) {
    m.fibers.emplace_back();
    m.fibers.back().stack.reset(new unsigned char[kStack]);
    SIMT_TSAN(m.fibers.back().tsan = __tsan_create_fiber(0));
  }
  m.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  m.block_barrier = Barrier{};
  m.block = {threads, 1, 1};
  m.grid = {blocks, 1, 1};
  m.body = body;
  m.argument = argument;
  SIMT_TSAN(m.scheduler_tsan = __tsan_get_current_fiber());
  const unsigned first = m.last_blocks > 0 && m.last_blocks < blocks ? blocks - m.last_blocks : 0;
  for (unsigned b = first; b < blocks; ++b) {
    m.index = {m.reversed ? blocks - 1 - (b - first) : b, 0, 0};
    // Fresh for every block, exactly as large as asked for, and not zero: what a block leaves is not the next one's.
    m.dynamic.reset(new unsigned char[shared > 0 ? shared : 1]);
    for (size_t i = 0; i < shared; ++i) m.dynamic[i] = 0xff;
    SIMT_TSAN(__tsan_release(&m.launch_token));
    run_block();
  }
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared, const A&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::remove_cv_t<P>...> arguments;
  } call{kernel, {static_cast<P>(arguments)...}};
  run_grid(
      blocks, threads, shared,
      [](void* p) {
        const Call& c = *static_cast<Call*>(p);
        std::apply(c.kernel, c.arguments);
      },
      &call);
}

}  // namespace simt

#define threadIdx (simt_dim{simt::thread_index(), 0, 0})
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())

inline void __syncthreads() { simt::block_barrier(0); }
inline int __syncthreads_count(int predicate) { return simt::block_barrier(predicate != 0); }
inline int __syncthreads_or(int predicate) { return simt::block_barrier(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return simt::block_barrier(predicate == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  if (mask != 0xffffffffu) simt::fail("__syncwarp wants the full mask");
  simt::warp_barrier();
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return simt::exchange(value, mask, static_cast<unsigned>(from));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return simt::exchange(value, mask, threadIdx.x ^ static_cast<unsigned>(lanes));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return simt::ballot(predicate, mask); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <typename T>
T __ldg(const T* from) {
  return *from;
}
// Blocks run one after another, ordered by the launch.
inline void __threadfence() {}
// atomicAdd and the like of integers: relaxed, as on the GPU.
template <typename T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
