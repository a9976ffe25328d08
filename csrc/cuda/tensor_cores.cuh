// Products on tensor cores: a warp multiplies fragments that lie in its registers.
#pragma once
#include "cuda/kernel.cuh"

namespace fastmlp {

// The products of one instruction each; the tests have them emulated.
#ifdef __CUDACC__
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// c (16, 8) += a (16, 16) b (16, 8), spread over a warp's registers as PTX lays down for
// mma.m16n8k16.
__device__ inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 f16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c (16, 8) += a (16, 8) b (8, 8) likewise; of a and b it takes the upper 19 bits, which are TF32.
__device__ inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c (16, 8) += a (16, 32) b (32, 8) of unsigned bytes, in integers, as for mma.m16n8k32.
__device__ inline void mma_bytes(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x rounded to the nearest number of 11 significant bits, ties away from 0.
__device__ inline uint32_t round_to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
#else  // no plan launches a kernel that asks for it
__device__ inline void mma_bytes(int (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {
  __trap();
}
#endif

// c (16, 8) += a (16, 8) b (8, 8) in float16, as for mma.m16n8k8.
__device__ inline void mma_1688(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
#endif

// c (16, 8) += a (16, 16) b (16, 8) in T, registers as for mma.m16n8k16.
template <typename T>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kHasSm80) {
    if (has_sm80()) return mma_16816(c, a, b, T{});
  }
  // sm_75 knows float16 alone, over 8 k at a time: those below 8, then the others.
  mma_1688(c, {a[0], a[1]}, {b[0]});
  mma_1688(c, {a[2], a[3]}, {b[1]});
}

// A float32 as two TF32 numbers: x = big + small up to 2^-23 |x|, where |x| > 2^-102; smaller ones
// lose bits, as their small part is below the normal numbers.
struct Tf32Parts {
  uint32_t big, small;
};

// Rounded by integers: a conversion takes several instructions. An inf and the largest numbers give
// inf or nan, and nan gives nan, in one part or the other.
__device__ inline Tf32Parts split_float(float x) {
  const uint32_t big = (bits_of_float(x) + 0x1000u) & ~0x1fffu;
  return {big, bits_of_float(x - float_of_bits(big))};
}

template <int kCount>
__device__ void split_floats(const float (&values)[kCount], uint32_t (&big)[kCount],
                             uint32_t (&small)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const Tf32Parts parts = split_float(values[e]);
    big[e] = parts.big;
    small[e] = parts.small;
  }
}

// Two float32 as three pairs of bfloat16, the first number in the lower half: x = first + second +
// third, exactly, where |x| > 2^-110. Cut off, not rounded: an inf and nan give nan.
struct Bf16Parts {
  uint32_t v[3];
};
__device__ inline uint32_t upper_halves(float low, float high) {
  return bits_of_float(low) >> 16 | (bits_of_float(high) & 0xffff0000u);
}
__device__ inline float upper_half(float x) {
  return float_of_bits(bits_of_float(x) & 0xffff0000u);
}
__device__ inline Bf16Parts split_in_three(float low, float high) {
  Bf16Parts parts;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    parts.v[i] = upper_halves(low, high);
    low -= upper_half(low);
    high -= upper_half(high);
  }
  return parts;
}

// Fragments (16, 8) and (8, 8) of float32 as TF32 parts.
struct LeftParts {
  uint32_t big[4], small[4];
};
struct RightParts {
  uint32_t big[2], small[2];
};
__device__ inline LeftParts left_parts(float a0, float a1, float a2, float a3) {
  const float values[4] = {a0, a1, a2, a3};
  LeftParts parts;
  split_floats(values, parts.big, parts.small);
  return parts;
}
__device__ inline RightParts right_parts(float b0, float b1) {
  const float values[2] = {b0, b1};
  RightParts parts;
  split_floats(values, parts.big, parts.small);
  return parts;
}

// The sum of kCount products a (16, 8) b (8, 8), as accurate as in float32.
struct Sums {
  float v[4];  // as for c of mma.m16n8k8
};
template <int kCount>
__device__ Sums sum_products(const LeftParts (&a)[kCount], const RightParts (&b)[kCount]) {
  float sums[3][4] = {};  // that need not wait for each other
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    mma_tf32(sums[0], a[k].small, b[k].big);
    mma_tf32(sums[1], a[k].big, b[k].small);
    mma_tf32(sums[2], a[k].big, b[k].big);
  }
  Sums all;
#pragma unroll
  for (int e = 0; e < 4; ++e) all.v[e] = (sums[0][e] + sums[1][e]) + sums[2][e];
  return all;
}

}  // namespace fastmlp
