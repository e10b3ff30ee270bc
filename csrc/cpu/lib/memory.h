// Working memory of kernels, and how they walk through batches beyond the caches.
#pragma once

#include <cstdint>
#include <memory>

namespace fastmix {

// Elements that are not initialised, aligned to a cache line.
template <typename T>
struct AlignedArray {
  explicit AlignedArray(int64_t elements) : owner(new T[static_cast<size_t>(elements) + 64 / sizeof(T)]) {
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(owner.get()) + 63) / 64 * 64);
  }
  std::unique_ptr<T[]> owner;
  T* data;
};

// A batch beyond the caches whose images are read more than once is walked through across the images: the same part of
// every image, then the next, so that the second reading finds it in a cache. Smaller batches are faster image by
// image, from the last-level cache.
inline bool exceeds_caches(int64_t batch_bytes) { return batch_bytes > int64_t{32} << 20; }

// How many parts of `part_bytes` to take of every image at a time, so that those of all take `tile_bytes`: 1 to `most`.
inline int64_t across_images(int64_t tile_bytes, int64_t images, int64_t part_bytes, int64_t most) {
  const int64_t parts = tile_bytes / (images * part_bytes);
  return parts < 1 ? 1 : parts > most ? most : parts;
}

}  // namespace fastmix
