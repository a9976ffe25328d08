// How a shape maps on a chip, and why: plain C++, no torch, no CUDA.
#pragma once
#include <cstdint>

namespace fastmlp {

// Who computes a layer's matrix products.
struct LinearPlan {
  bool ours;  // our register-tiled kernels; otherwise ATen's BLAS
  const char* why;
};

// `brain_floats`: the operands are bfloat16, for which processors have matrix instructions that
// BLAS libraries use and we do not.
inline LinearPlan plan_linear_cpu(int64_t batch, int64_t in, int64_t out, bool brain_floats) {
  if (in < 16 || out < 16) return {true, "narrow: operands stay in cache whatever the batch"};
  if (brain_floats && batch > 4) return {false, "bfloat16: the BLAS has matrix instructions"};
  if (batch <= 512) return {true, "skinny: up to 512 rows need no packing of operands"};
  return {false, "large: the BLAS packs its operands"};
}

// Steps in a block of blocked SGD: so many that its products run at full speed, but no more than
// keep its Gram matrix cheap, which costs as much as `rows` further hidden units would. With
// momentum a block of several steps needs both products twice, so it has to save more, or is not
// worth it.
inline int64_t plan_blocked_cpu(int64_t batch, int64_t hidden, bool momentum) {
  if (momentum && batch >= 32) return 1;
  const int64_t rows = momentum || hidden < 96 ? 64 : 128;
  return batch < rows ? rows / batch : 1;
}

// Whether a step of the chain, of so many multiply-adds, is worth several threads, which meet half
// a dozen times in it.
inline bool plan_wide_chain_cpu(int64_t work) { return work >= 4 << 20; }

// Whether a block of so many multiply-adds is worth several threads.
inline bool plan_team_cpu(int64_t work) { return work >= 1 << 20; }

}  // namespace fastmlp
