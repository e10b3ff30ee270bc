// What the cases run on: threads of the CPU (g++, FASTMIX_SIMT), or a GPU (nvcc, without torch). Buffers of exactly
// their size, so that AddressSanitizer or compute-sanitizer sees the first access beyond them.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#ifdef FASTMIX_SIMT

#include <sys/mman.h>

#include "simt.h"

template <typename T>
struct Buffer {
  std::unique_ptr<T[]> data;
  size_t size;
  explicit Buffer(size_t n) : data(new T[n]), size(n) {
    std::memset(static_cast<void*>(data.get()), 0xff, n * sizeof(T));
  }
  T* get() { return data.get(); }
  operator T*() { return get(); }
};

// Elements, all 0, of which only the pages that are touched take memory.
template <typename T>
T* reserve(int64_t elements) {
  void* p = mmap(nullptr, static_cast<size_t>(elements) * sizeof(T), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) simt::fail("no address space");
  return static_cast<T*>(p);
}
template <typename T>
void put(T* to, const T* from, size_t n) {
  std::memcpy(static_cast<void*>(to), from, n * sizeof(T));
}
template <typename T>
void take(T* to, const T* from, size_t n) {
  std::memcpy(static_cast<void*>(to), from, n * sizeof(T));
}
inline void fill_bytes(void* to, int byte, size_t n) { std::memset(to, byte, n); }

// The last n blocks of every grid alone run.
inline void only_last_blocks(unsigned n) { simt::machine().last_blocks = n; }
inline void drop_barrier(int n) { simt::machine().drop_barrier = n; }
inline int barriers_met() { return simt::machine().barriers_met; }
inline void finish() {}

#else

#include <cuda_runtime.h>

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
  std::exit(1);
}

// Written by the host until its pointer is taken. What the host never wrote is not initialised: initcheck sees who
// reads it.
template <typename T>
struct Buffer {
  size_t size;
  explicit Buffer(size_t n) : size(n), host_(new T[n]), device_(nullptr, cudaFree) {
    std::memset(static_cast<void*>(host_.get()), 0xff, n * sizeof(T));
    T* p = nullptr;
    check(cudaMalloc(&p, n * sizeof(T)));
    device_.reset(p);
  }
  template <typename I>
  T& operator[](I i) {
    if (taken_) {
      std::fprintf(stderr, "the host writes a buffer that a kernel has\n");
      std::abort();
    }
    written_ = true;
    return host_[i];
  }
  T* get() {
    if (written_ && !taken_) check(cudaMemcpy(device_.get(), host_.get(), size * sizeof(T), cudaMemcpyHostToDevice));
    taken_ = true;
    return device_.get();
  }
  operator T*() { return get(); }

 private:
  std::unique_ptr<T[]> host_;
  std::unique_ptr<T, cudaError_t (*)(void*)> device_;
  bool written_ = false, taken_ = false;
};

inline std::vector<void*>& reserved() {
  static std::vector<void*> pointers;
  return pointers;
}
template <typename T>
T* reserve(int64_t elements) {
  T* p = nullptr;
  check(cudaMalloc(&p, static_cast<size_t>(elements) * sizeof(T)));
  check(cudaMemset(p, 0, static_cast<size_t>(elements) * sizeof(T)));
  reserved().push_back(p);
  return p;
}
template <typename T>
void put(T* to, const T* from, size_t n) {
  check(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyHostToDevice));
}
template <typename T>
void take(T* to, const T* from, size_t n) {
  check(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}
inline void fill_bytes(void* to, int byte, size_t n) { check(cudaMemset(to, byte, n)); }

inline void only_last_blocks(unsigned) {}
inline void drop_barrier(int) {}
inline int barriers_met() { return 0; }

// The end of a case: its errors, and its memory back.
inline void finish() {
  check(cudaGetLastError());
  check(cudaDeviceSynchronize());
  for (void* p : reserved()) check(cudaFree(p));
  reserved().clear();
}

#endif

template <typename T>
void put(T* to, T value) {
  put(to, &value, 1);
}

// Runs the case that is named, or "all", each named as it ends; without a name lists them. The exit code.
template <typename Cases>
int run_cases(const Cases& cases, int argc, char** argv, bool counted) {
  if (argc < 2) {
    for (const auto& [name, run] : cases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const bool all = std::strcmp(argv[1], "all") == 0;
  if (!all && cases.find(argv[1]) == cases.end()) return 2;
  if (argc > 2) drop_barrier(std::atoi(argv[2]));
  for (const auto& [name, run] : cases) {
    if (!all && name != argv[1]) continue;
    run();
    finish();
    if (all) std::printf("%s ok\n", name.c_str());
    std::fflush(stdout);
  }
  if (counted && !all) std::printf("%d\n", barriers_met());
  return 0;
}
