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

}  // namespace fastmlp
