// What the registration hands to the kernels of isda_logits.
#pragma once

#include <cstdint>

#include "core/common.h"
#include "cpu/lib/instruction_set.h"

namespace fastmix {

// T below is float, or double for double logits.
struct IsdaArgs {
  const void* weight;      // (J, A) T
  const void* cov;         // T: (J, A, A) full, (J, A) diag
  const void* product;     // (J, A) T, weight times the shared covariance, else null
  const int64_t* present;  // class ids
  int64_t slots;           // of them
  int64_t classes, width;  // J, A
  CovarianceKind kind;
};

// Rows of a packed matrix: whole tiles of any instruction set.
inline int64_t padded_rows(int64_t rows) { return ceil_div(rows, 8) * 8; }

// Columns that one step of pair_gradient handles, at most (a whole number of vectors of any instruction set).
constexpr int64_t kPairBytes = 256;

// Pixels of an image that add_pixels takes at a time: their places stay in the first-level cache while the classes
// pass.
constexpr int64_t kPixelBlock = 2048;
constexpr int64_t kRunPad = 16;

struct IsdaPixels {
  const int64_t* labels;  // (N, P)
  const int32_t* place;   // (J + 1): class -> slot; slots for an ignored one and, last, for labels outside [0, J)
  int64_t images, classes, pixels, slots;  // N, J, P
};

// Run r: pixels start[r] .. start[r + 1] of all images, of slot[r]; slots: ignored.
struct IsdaRuns {
  const int64_t* start;
  const int32_t* slot;
  int64_t count;
};

struct IsdaKernels {
  // [float, double] of T.
  int64_t panel_columns[2];
  // Rows of w (rows, k) for the register tiles; rows rounded up to 8.
  void (*pack[2])(const void* w, int64_t rows, int64_t k, void* packed);
  // out (rows, width) = packed (rows, k) b (k, width). panel: k * 64 T.
  void (*multiply[2])(const void* packed, int64_t rows, int64_t k, const void* b, int64_t width, void* out,
                      void* panel);
  // table (slots, J), rows [begin, end): v^T Sigma v of the kind full. scratch: (J + 8) * A + A * 64 + (J + 8) * 16 T.
  void (*full_table[2])(const IsdaArgs&, const void* packed, int64_t begin, int64_t end, void* table, void* scratch);
  // Columns [begin, end) * panel_columns of grad (J, A), all of it sum_c e[c, j] Sigma_c (w_j - w_c), and minus its sum
  // over j in row c. e: (slots, J). scratch: (J + 8) * A + A * 65 T.
  void (*full_gradient[2])(const IsdaArgs&, const void* packed, const void* e, int64_t begin, int64_t end, void* grad,
                           void* scratch);
  // table (slots, J), columns [begin, end), of the other kinds.
  void (*pair_table[2])(const IsdaArgs&, int64_t begin, int64_t end, void* table);
  // Columns [begin, end) * kPairBytes of grad (J, A), as full_gradient for diag and (times Sigma still) the others.
  // e: [J / 4 rounded up][slots][4]. scratch: 3 * slots * kPairBytes.
  void (*pair_gradient[2])(const IsdaArgs&, const void* e, int64_t begin, int64_t end, void* grad, void* scratch);

  // By the type of the logits.
  // out = logits + table[slot] for rows [begin, end) of J; slot -1 copies.
  void (*add_rows[kFloatTypes])(const void* logits, int64_t row_stride, int64_t classes, const int32_t* slot,
                                const void* table, int64_t begin, int64_t end, void* out);
  // The same for (N, J, P), blocks [begin, end) of kPixelBlock pixels of an image, all classes of a block in turn.
  // table (J, slots + 1), the last column for ignored pixels.
  void (*add_pixels[kFloatTypes])(const void* logits, const IsdaPixels&, const void* table, int64_t begin, int64_t end,
                                  void* out);
  // sums (slots, J) columns [begin, end): the rows of grad with every slot, added up.
  void (*sum_rows[kFloatTypes])(const void* grad, int64_t row_stride, int64_t rows, int64_t classes,
                                const int32_t* slot, int64_t slots, int64_t begin, int64_t end, void* sums);
  // Runs of equal labels, none of them in two images: run r has label[r] and the pixels start[r] .. start[r + 1] of all
  // images. Room for kRunPad entries more than N * P. Returns their number.
  int64_t (*find_runs)(const int64_t* labels, int64_t images, int64_t pixels, int64_t* start, int64_t* label);
  // The same for (N, J, P), of runs of pixels with one slot each. lanes: a vector for every slot and column of the
  // share.
  void (*sum_runs[kFloatTypes])(const void* grad, const IsdaPixels&, const IsdaRuns&, int64_t begin, int64_t end,
                                void* sums, void* lanes);
  // And pixel by pixel, for labels that change too often. banks: 8 * (slots + 1) T.
  void (*sum_pixels[kFloatTypes])(const void* grad, const IsdaPixels&, const int32_t* slot, int64_t begin, int64_t end,
                                  void* sums, void* banks);
};

FASTMIX_DECLARE_KERNELS(IsdaKernels, isda)

}  // namespace fastmix
