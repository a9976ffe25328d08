// Scalar math that the kernels of every device share: storage formats, the activations, the online
// softmax.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define FASTMLP_HD __host__ __device__ __forceinline__
#else
#define FASTMLP_HD inline
#endif

namespace fastmlp {

// 16-bit storage formats; arithmetic is done in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// What a dtype is accumulated in: float for the 16-bit ones, itself otherwise.
template <typename T>
struct AccumulateIn {
  using type = T;
};
template <>
struct AccumulateIn<bf16> {
  using type = float;
};
template <>
struct AccumulateIn<f16> {
  using type = float;
};
template <typename T>
using acc_t = typename AccumulateIn<T>::type;

FASTMLP_HD float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

FASTMLP_HD uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTMLP_HD float widen(float x) { return x; }
FASTMLP_HD double widen(double x) { return x; }
FASTMLP_HD float widen(bf16 x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }

FASTMLP_HD float widen(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  // Exponent and mantissa move up; 2^112 rebases the exponent and normalises subnormals.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0;
  const uint32_t scaled = bits_of_float(float_of_bits(magnitude) * 0x1p112f);
  return float_of_bits(scaled | special | (x.bits & 0x8000u) << 16);
#endif
}

// x as stored in T, rounded to nearest even.
template <typename T>
FASTMLP_HD T narrow(acc_t<T> x) {
  return x;
}

template <>
FASTMLP_HD bf16 narrow<bf16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bits_of_float(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
}

template <>
FASTMLP_HD f16 narrow<f16>(float x) {
#ifdef __CUDA_ARCH__
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bits_of_float(x), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // a normal result
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {  // 0.5's last place is float16's smallest step, so the addition rounds
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  }
  return {static_cast<uint16_t>(sign | half)};
#endif
}

FASTMLP_HD float exp_of(float x) { return expf(x); }
FASTMLP_HD double exp_of(double x) { return exp(x); }
FASTMLP_HD float log_of(float x) { return logf(x); }
FASTMLP_HD double log_of(double x) { return log(x); }
FASTMLP_HD float tanh_of(float x) { return tanhf(x); }
FASTMLP_HD double tanh_of(double x) { return tanh(x); }
FASTMLP_HD float erf_of(float x) { return erff(x); }
FASTMLP_HD double erf_of(double x) { return erf(x); }
FASTMLP_HD float magnitude(float x) { return fabsf(x); }
FASTMLP_HD double magnitude(double x) { return fabs(x); }

// `value` in the type of the first argument.
FASTMLP_HD float constant(float, double value) { return static_cast<float>(value); }
FASTMLP_HD double constant(double, double value) { return value; }

#define FASTMLP_MATH FASTMLP_HD
#include "common/activation.h"
#undef FASTMLP_MATH

template <typename Acc>
constexpr Acc kInfinity = static_cast<Acc>(INFINITY);

// max_j x_j and sum_j exp(x_j - max), grown a few x at a time. A nan among the x makes the sum nan.
template <typename Acc>
struct OnlineSoftmax {
  Acc max = -kInfinity<Acc>;
  Acc sum = 0;

  template <int kCount>
  FASTMLP_HD void add(const Acc (&x)[kCount]) {
    Acc largest = max;
    for (int i = 0; i < kCount; ++i) largest = x[i] > largest ? x[i] : largest;
    if (largest > max) {
      sum *= exp_of(max - largest);
      max = largest;
    }
    // exp(-inf) adds nothing, but -inf - max is nan while nothing else has come.
    for (int i = 0; i < kCount; ++i) sum += x[i] == -kInfinity<Acc> ? 0 : exp_of(x[i] - max);
  }

  // Symmetric bit by bit: a.merged(b) == b.merged(a).
  FASTMLP_HD OnlineSoftmax merged(const OnlineSoftmax& other) const {
    const bool mine = max >= other.max;
    const Acc small = mine ? other.max : max;
    const Acc big_sum = mine ? sum : other.sum, small_sum = mine ? other.sum : sum;
    OnlineSoftmax both;
    both.max = mine ? max : other.max;
    both.sum = big_sum + (small == both.max ? small_sum : small_sum * exp_of(small - both.max));
    return both;
  }

  // log sum_j exp(x_j - max); nan where the maximum is not finite, as exp(inf - inf) is.
  FASTMLP_HD Acc log_sum() const { return max - max == 0 ? log_of(sum) : max - max; }
};

}  // namespace fastmlp
