// How a batch beyond the caches is walked through when its images are read more than once: the same part of every
// image, then the next, so that the second reading finds it in a cache.
#pragma once

#include <cstdint>

namespace fastmix {

// Smaller batches are faster image by image, from the last-level cache.
inline bool exceeds_caches(int64_t batch_bytes) { return batch_bytes > int64_t{32} << 20; }

// How many parts of `part_bytes` to take of every image at a time, so that those of all take `tile_bytes`: 1 to `most`.
inline int64_t across_images(int64_t tile_bytes, int64_t images, int64_t part_bytes, int64_t most) {
  const int64_t parts = tile_bytes / (images * part_bytes);
  return parts < 1 ? 1 : parts > most ? most : parts;
}

}  // namespace fastmix
