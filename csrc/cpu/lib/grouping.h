// Places grouped by a number: the places that read a row of a batch (backward passes sum over them row by row, so the
// result depends neither on threads nor on the order of atomics), and the rows of a class (covariance and isda).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/lib/binding.h"

namespace fastmix {

// places[offset[g]] to places[offset[g + 1]] are those of group g, in their order.
struct Groups {
  std::vector<int64_t> offset, places;
};

// A counting sort of [0, count): place i is in group group_of(i), or in none where that is negative.
template <typename F>
Groups group_places(int64_t count, int64_t groups, const F& group_of) {
  Groups g{std::vector<int64_t>(static_cast<size_t>(groups) + 1), {}};
  for (int64_t i = 0; i < count; ++i) {
    if (group_of(i) >= 0) ++g.offset[static_cast<size_t>(group_of(i)) + 1];
  }
  for (size_t m = 0; m < static_cast<size_t>(groups); ++m) g.offset[m + 1] += g.offset[m];
  g.places.resize(static_cast<size_t>(g.offset.back()));
  std::vector<int64_t> next(g.offset.begin(), g.offset.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    if (group_of(i) >= 0) g.places[static_cast<size_t>(next[static_cast<size_t>(group_of(i))]++)] = i;
  }
  return g;
}

// The inverse of a gather by index, contiguous (rows, k): for every row the places n * k + column that read it.
inline Groups by_source(const char* op, const int64_t* index, int64_t rows, int64_t k) {
  check_rows(op, "index", index, rows, k, rows);
  return group_places(rows * k, rows, [&](int64_t i) { return index[i]; });
}

// Which classes a batch holds, and its labels by class.
struct ClassRows {
  const int64_t* labels;
  int64_t count;                 // labels
  int64_t classes;               // J
  std::vector<int64_t> present;  // class ids, ascending
  std::vector<int32_t> slot;     // class id -> place in present, or -1; one more entry, for ignored labels
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

  // The labels that are not ignored, by class.
  Groups by_class() const {
    return group_places(count, classes, [&](int64_t i) { return is_ignored(i) ? -1 : labels[i]; });
  }
};

}  // namespace fastmix
