// Which classes a batch holds, and its rows by class: what covariance and isda share.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/tensor.h"

namespace fastmix {

struct ClassRows {
  const int64_t* labels;
  int64_t count;                 // labels
  int64_t classes;               // J
  std::vector<int64_t> present;  // class ids, ascending
  std::vector<int32_t> slot;     // class id -> place in present, or -1; one more entry, for ignored labels
  std::vector<int64_t> offset;   // class c has the labels rows[offset[c]] .. rows[offset[c + 1]]
  std::vector<int64_t> rows;     // both filled by sort_rows
  std::optional<int64_t> ignore;

  // IndexError naming op for a label outside [0, classes) that is not the ignored one. row_of: the row that label i is
  // named by, where it is not i.
  ClassRows(const char* op, const int64_t* labels_of, int64_t count_of, int64_t classes_of,
            std::optional<int64_t> ignore_index, const int64_t* row_of = nullptr)
      : labels(labels_of),
        count(count_of),
        classes(classes_of),
        slot(static_cast<size_t>(classes) + 1, -1),
        ignore(ignore_index) {
    bool bad = false;
    for (int64_t i = 0; i < count; ++i) {  // without branches: 40,000 pixels
      const bool ignored = is_ignored(i), inside = static_cast<uint64_t>(labels[i]) < static_cast<uint64_t>(classes);
      bad |= !(inside || ignored);
      slot[static_cast<size_t>(inside && !ignored ? labels[i] : classes)] = 0;
    }
    for (int64_t i = 0; bad; ++i) {
      if (!is_ignored(i) && static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(classes)) {
        throw_index(op, "labels", row_of != nullptr ? row_of[i] : i, labels[i], classes);
      }
    }
    for (int64_t c = 0; c < classes; ++c) {
      if (slot[static_cast<size_t>(c)] < 0) continue;
      slot[static_cast<size_t>(c)] = static_cast<int32_t>(present.size());
      present.push_back(c);
    }
  }

  bool is_ignored(int64_t i) const { return ignore.has_value() && labels[i] == *ignore; }

  // slot with other for -1.
  std::vector<int32_t> places(int32_t other) const {
    std::vector<int32_t> out = slot;
    for (int32_t& v : out) v = v < 0 ? other : v;
    out.back() = other;
    return out;
  }

  // Place of every label in present; other for ignored ones.
  std::vector<int32_t> slots(int32_t other) const {
    const std::vector<int32_t> places = this->places(other);
    std::vector<int32_t> out(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      out[static_cast<size_t>(i)] = places[static_cast<size_t>(is_ignored(i) ? classes : labels[i])];
    }
    return out;
  }

  // Stable: rows of a class keep their order.
  void sort_rows() {
    offset.assign(static_cast<size_t>(classes) + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_ignored(i)) ++offset[static_cast<size_t>(labels[i]) + 1];
    }
    for (size_t c = 0; c < static_cast<size_t>(classes); ++c) offset[c + 1] += offset[c];
    rows.resize(static_cast<size_t>(offset.back()));
    std::vector<int64_t> next(offset.begin(), offset.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_ignored(i)) rows[static_cast<size_t>(next[static_cast<size_t>(labels[i])]++)] = i;
    }
  }
};

}  // namespace fastmix
