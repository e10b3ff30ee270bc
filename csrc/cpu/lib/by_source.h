// The inverse of a gather: for every row of a batch the places that read it, in the order of (n, k). Backward
// passes sum over them row by row, so the result depends neither on threads nor on the order of atomics.
#pragma once

#include <cstdint>
#include <vector>

#include "torch/tensor.h"

namespace fastmix {

struct BySource {
  std::vector<int64_t> offset;  // (rows + 1): places[offset[m]] to places[offset[m + 1]] read row m
  std::vector<int64_t> places;  // (rows * k): n * k + column
};

// A counting sort of index, dense (rows, k).
inline BySource by_source(const char* op, const int64_t* index, int64_t rows, int64_t k) {
  check_rows(op, "index", index, rows, k, rows);
  BySource b{std::vector<int64_t>(static_cast<size_t>(rows + 1)), std::vector<int64_t>(static_cast<size_t>(rows * k))};
  int64_t* offset = b.offset.data();
  for (int64_t i = 0; i < rows * k; ++i) ++offset[index[i] + 1];
  for (int64_t m = 0; m < rows; ++m) offset[m + 1] += offset[m];
  std::vector<int64_t> next(b.offset.begin(), b.offset.end());
  for (int64_t i = 0; i < rows * k; ++i) b.places[static_cast<size_t>(next[static_cast<size_t>(index[i])]++)] = i;
  return b;
}

}  // namespace fastmix
