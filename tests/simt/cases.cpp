// Every CUDA kernel on small inputs, in buffers of exactly their size: for ThreadSanitizer and AddressSanitizer.
//
//   cases               lists the cases
//   cases NAME [N]      runs one, leaving out the N-th barrier of every block; prints the barriers of a block
#include <functional>
#include <map>
#include <string>

#include "simt.h"
// after simt.h
#include "cuda/soft_target.cuh"

namespace {

using namespace fastmix;

// Exactly n elements, so that AddressSanitizer sees the first access beyond them.
template <typename T>
struct Buffer {
  std::unique_ptr<T[]> data;
  size_t size;
  explicit Buffer(size_t n) : data(new T[n]), size(n) { std::memset(static_cast<void*>(data.get()), 0xff, n * sizeof(T)); }
  operator T*() { return data.get(); }
};

uint32_t random_bits() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

template <typename T>
Buffer<T> random_values(size_t n) {
  Buffer<T> b(n);
  for (size_t i = 0; i < n; ++i) store(&b[i], accumulator_t<T>(static_cast<int>(random_bits() % 2001) - 1000) / 250);
  return b;
}

Buffer<int64_t> random_index(size_t n, int64_t size) {
  Buffer<int64_t> b(n);
  for (size_t i = 0; i < n; ++i) b[i] = random_bits() % size;
  return b;
}

template <typename T>
void soft_target_case(int64_t rows, int classes, SoftTargetLoss loss, bool dense, bool count_first = false) {
  constexpr int64_t k = 3;
  Buffer<T> logits = random_values<T>(rows * classes), grad(rows * classes);
  Buffer<int64_t> index = random_index(rows * k, classes), counted(1);
  Buffer<float> weight = random_values<float>(rows * k), base = random_values<float>(rows);
  auto target = random_values<accumulator_t<T>>(rows * classes);
  Buffer<double> row_loss(rows);
  Buffer<accumulator_t<T>> out(1);
  if (rows > 2) {
    index[k] = -100;             // ignored
    index[2 * k + 1] = classes;  // out of range: no access may follow it
  }
  SoftTargetParams a{};
  a.logits = logits;
  a.row_stride = classes;
  a.rows = rows;
  a.classes = classes;
  if (dense) {
    a.target = target;
  } else {
    a.index = index;
    a.k = k;
    a.weight = weight;
    a.base = base;
  }
  a.ignore_index = -100;
  a.smoothing = loss == kBce ? 0 : 0.1;
  a.loss = loss;
  a.reduction = kMean;
  a.row_loss = row_loss;
  a.counted = count_first ? counted.data.get() : nullptr;
  a.out = out;
  a.grad = grad;
  soft_target<T>(a, nullptr);
  Buffer<accumulator_t<T>> g = random_values<accumulator_t<T>>(rows);
  scale_gradient<T>({grad, g, rows, classes, true}, nullptr);
}

const std::map<std::string, std::function<void()>> kCases = {
    {"soft_target_warp", [] { soft_target_case<bf16>(9, 37, kKl, false); }},
    {"soft_target_block", [] { soft_target_case<float>(10, 1001, kKl, false); }},
    {"soft_target_staged", [] { soft_target_case<bf16>(6, 9001, kCrossEntropy, false); }},
    {"soft_target_looped", [] { soft_target_case<float>(4, 33001, kCrossEntropy, false); }},
    {"soft_target_double", [] { soft_target_case<double>(4, 301, kKl, false, true); }},
    {"soft_target_dense", [] { soft_target_case<float>(10, 1001, kKl, true); }},
    {"soft_target_sigmoid", [] { soft_target_case<f16>(10, 2001, kBce, false); }},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const auto& [name, run] : kCases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = kCases.find(argv[1]);
  if (found == kCases.end()) return 2;
  if (argc > 2) simt::machine().drop_barrier = std::atoi(argv[2]);
  found->second();
  std::printf("%d\n", simt::machine().barriers_met);
  return 0;
}
