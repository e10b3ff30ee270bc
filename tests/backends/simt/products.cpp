// How far add_products is from sums taken in float64, beside one chain of float32 multiply-adds: for every depth given,
// the worst and the mean signed error over 64 x 64 sums and the chain's worst, each divided by sum |a b|.
// products [positive] DEPTH..
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/lib/tile_products.cuh"

using namespace fastmix;

FASTMIX_KERNEL void products_kernel(const float* a, const float* b, float* out, int depth) {
  __shared__ SharedTile<float, true> a_tile;
  __shared__ SharedTile<float, false> b_tile;
  TileSums<float> sums{};
  const int t = static_cast<int>(threadIdx.x);
  for (int start = 0; start < depth; start += kProductDepth) {
    __syncthreads();
    for (int i = t; i < kProductSide * kProductDepth / 4; i += kProductThreads) {
      float deep[4], wide[4];
      load_four(row_of(a, i / 4, depth), start + i % 4 * 4, depth, false, deep);
      a_tile.put(i / 4, i % 4 * 4, deep);
      for (int d = 0; d < 4; ++d) wide[d] = b[(i % 16 * 4 + d) * depth + start + i / 16];
      b_tile.put(i / 16, i % 16 * 4, wide);
    }
    __syncthreads();
    add_products(sums, a_tile, b_tile, Same());
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 4; ++e) {
        out[TileSums<float>::row(t, i, e) * kProductSide + TileSums<float>::column(t, j, e)] = sums.v[i][j][e];
      }
    }
  }
}

int main(int argc, char** argv) {
  const bool positive = argc > 1 && std::string(argv[1]) == "positive";
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (int argument = positive ? 2 : 1; argument < argc; ++argument) {
    const int depth = std::atoi(argv[argument]);
    std::vector<float> a(static_cast<size_t>(kProductSide * depth)), b(a.size()), out(kProductSide * kProductSide);
    for (std::vector<float>* v : {&a, &b}) {
      for (float& x : *v) x = positive ? std::fabs(normal(generator)) : normal(generator);
    }
    launch(products_kernel, {1, kProductThreads}, nullptr, a.data(), b.data(), out.data(), depth);
    double worst = 0, mean = 0, of_chain = 0;
    for (int i = 0; i < kProductSide; ++i) {
      for (int j = 0; j < kProductSide; ++j) {
        double sum = 0, size = 0;
        float chain = 0;
        for (int d = 0; d < depth; ++d) {
          const float x = a[static_cast<size_t>(i * depth + d)], y = b[static_cast<size_t>(j * depth + d)];
          sum += static_cast<double>(x) * y;
          size += std::fabs(static_cast<double>(x) * y);
          chain = std::fma(x, y, chain);
        }
        const double error = (out[static_cast<size_t>(i * kProductSide + j)] - sum) / size;
        worst = std::fmax(worst, std::fabs(error));
        mean += error / (kProductSide * kProductSide);
        of_chain = std::fmax(of_chain, std::fabs((chain - sum) / size));
      }
    }
    std::printf("%d %.3e %.3e %.3e\n", depth, worst, mean, of_chain);
  }
}
