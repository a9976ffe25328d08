// How a shape maps on a chip, and why: plain C++, no torch, no CUDA.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastmlp {

// Who computes a layer's matrix products.
struct LinearPlan {
  bool ours;  // our own kernels; otherwise ATen's BLAS
  const char* why;
};

// The bounds come from operation counts, not from timings. Our float32 is exact whatever TF32 torch
// allows, which the stable ABI does not tell; the library's kernels do as torch says.
inline LinearPlan plan_linear_cuda(int64_t batch, int64_t in, int64_t out, bool doubles,
                                   bool half_width) {
  const int64_t weights = std::max<int64_t>(in, 1) * std::max<int64_t>(out, 1);
  const int64_t most = half_width ? int64_t{1} << 28 : int64_t{1} << 29;
  if (doubles) return {false, "float64: the library's kernels"};
  if (batch > 256) return {false, "large: more than 256 rows"};
  if (weights > most / std::max<int64_t>(batch, 1)) return {false, "large: too much arithmetic"};
  return {true, "skinny: up to 256 rows, split along the sum to fill the GPU"};
}

// How our CUDA kernel makes c (m, n) as a sum over k.
struct ProductPlan {
  int tile_m;      // rows of c that a block makes, of 64 columns
  int64_t splits;  // parts of k, whose sums a second kernel adds up in order
  int64_t chunk;   // length of a part
};

inline ProductPlan plan_product(int64_t m, int64_t n, int64_t k, int64_t processors) {
  constexpr int64_t kTileN = 64, kStep = 64, kLeastChunk = 128, kMostSplits = 64;
  // Shorter sums are over before a second kernel would start. Weight gradients are among them: they
  // sum over a batch, and need not be split, as their rows' sums (the bias's gradient) cannot be.
  constexpr int64_t kLongSum = 512;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int tile_m = m <= 16 ? 16 : m <= 32 ? 32 : 64;
  const auto at_least_1 = [](int64_t a) { return std::max<int64_t>(a, 1); };
  const int64_t tiles = at_least_1(ceil_div(m, tile_m)) * at_least_1(ceil_div(n, kTileN));
  const int64_t wanted = ceil_div(2 * processors, tiles);  // two blocks for each processor
  const int64_t most = k < kLongSum ? 1 : std::min(k / kLeastChunk, kMostSplits);
  const int64_t splits = at_least_1(std::min(wanted, most));
  const int64_t chunk = at_least_1(ceil_div(ceil_div(k, splits), kStep)) * kStep;
  return {tile_m, at_least_1(ceil_div(k, chunk)), chunk};
}

// `brain_floats`: the operands are bfloat16, for which processors have matrix instructions that
// BLAS libraries use and we do not.
inline LinearPlan plan_linear_cpu(int64_t batch, int64_t in, int64_t out, bool brain_floats) {
  if (in < 16 || out < 16) return {true, "narrow: operands stay in cache whatever the batch"};
  if (brain_floats && batch > 4) return {false, "bfloat16: the BLAS has matrix instructions"};
  if (batch <= 512) return {true, "skinny: up to 512 rows need no packing of operands"};
  return {false, "large: the BLAS packs its operands"};
}

// Steps in a block of blocked SGD, of about one, two or three panels of 48 rows. Longer blocks read
// and write the weights less often, which pays where these are too large for the caches; their Gram
// matrix takes more arithmetic, which counts where there are few hidden units. With momentum a
// block of several steps needs both products twice, so it has to save more, or is not worth it.
inline int64_t plan_blocked_cpu(int64_t batch, int64_t hidden, bool momentum) {
  if (momentum && batch >= 32) return 1;
  const int64_t rows = hidden <= 32 ? 48 : !momentum && hidden > 512 ? 144 : 96;
  return batch < rows ? rows / batch : 1;
}

// Whether a step of the chain, of so many multiply-adds, is worth several threads, which meet half
// a dozen times in it.
inline bool plan_wide_chain_cpu(int64_t work) { return work >= 4 << 20; }

// Whether a block of so many multiply-adds is worth several threads.
inline bool plan_team_cpu(int64_t work) { return work >= 1 << 20; }

}  // namespace fastmlp
