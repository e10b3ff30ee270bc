// Uninitialised working memory of a kernel, aligned to a cache line.
#pragma once

#include <cstdint>
#include <memory>

namespace fastmix {

template <typename T>
struct Scratch {
  explicit Scratch(int64_t elements) : owner(new T[static_cast<size_t>(elements) + 64 / sizeof(T)]) {
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(owner.get()) + 63) / 64 * 64);
  }
  std::unique_ptr<T[]> owner;
  T* data;
};

// Rows of a packed matrix: whole tiles of any instruction set.
inline int64_t padded_rows(int64_t rows) { return (rows + 7) / 8 * 8; }

}  // namespace fastmix
