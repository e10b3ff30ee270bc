// Which classes a batch holds, and its rows by class: what covariance and isda share.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/tensor.h"

namespace fastmix {

struct ClassRows {
  const int64_t* labels;
  int64_t count;                 // labels
  std::vector<int64_t> present;  // class ids, ascending
  std::vector<int32_t> slot;     // class id -> place in present, or -1
  std::vector<int64_t> offset;   // class c has the labels rows[offset[c]] .. rows[offset[c + 1]]
  std::vector<int64_t> rows;     // filled by sort_rows
  std::optional<int64_t> ignore;

  // IndexError naming op for a label outside [0, classes) that is not the ignored one.
  ClassRows(const char* op, const int64_t* labels_of, int64_t count_of, int64_t classes,
            std::optional<int64_t> ignore_index)
      : labels(labels_of),
        count(count_of),
        slot(static_cast<size_t>(classes), -1),
        offset(static_cast<size_t>(classes) + 1, 0),
        ignore(ignore_index) {
    for (int64_t i = 0; i < count; ++i) {
      if (is_ignored(i)) continue;
      if (static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(classes)) {
        throw_index(op, "labels", i, labels[i], classes);
      }
      ++offset[static_cast<size_t>(labels[i]) + 1];
    }
    for (int64_t c = 0; c < classes; ++c) {
      const size_t at = static_cast<size_t>(c);
      if (offset[at + 1] > 0) {
        slot[at] = static_cast<int32_t>(present.size());
        present.push_back(c);
      }
      offset[at + 1] += offset[at];
    }
  }

  bool is_ignored(int64_t i) const { return ignore.has_value() && labels[i] == *ignore; }

  // Stable: rows of a class keep their order.
  void sort_rows() {
    rows.resize(static_cast<size_t>(offset.back()));
    std::vector<int64_t> next(offset.begin(), offset.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_ignored(i)) rows[static_cast<size_t>(next[static_cast<size_t>(labels[i])]++)] = i;
    }
  }
};

}  // namespace fastmix
