// A mask's bits and vectors: bit i % 8 of a row's byte i / 8 says whether the gradient passes
// element i. Included by foreach_isa.h, once for each instruction set.

// Lane i's bit is 1 unless v[i] <= 0, so for nan too.
FASTMLP_INLINE unsigned passing_bits(vec<float> v) {
#if FASTMLP_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif FASTMLP_VECTOR_BYTES == 32
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NLE_UQ));
#else
  const vec_u32 on = ~(vec_u32)(v <= 0);
  return (on[0] & 1) | (on[1] & 2) | (on[2] & 4) | (on[3] & 8);
#endif
}

FASTMLP_INLINE unsigned passing_bits(vec<double> v) {
#if FASTMLP_VECTOR_BYTES == 64
  return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_NLE_UQ);
#elif FASTMLP_VECTOR_BYTES == 32
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_NLE_UQ));
#else
  return (unsigned)!(v[0] <= 0) | (unsigned)!(v[1] <= 0) << 1;
#endif
}

// v where the bit is 1, else 0.
FASTMLP_INLINE vec<float> where_bits(unsigned bits, vec<float> v) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<float>)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)v);
#else
  vec_u32 lane;
  for (int i = 0; i < kLanes<float>; ++i) lane[i] = 1u << i;
  return (lane & bits) != 0 ? v : vec<float>{};
#endif
}

FASTMLP_INLINE vec<double> where_bits(unsigned bits, vec<double> v) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<double>)_mm512_maskz_mov_pd((__mmask8)bits, (__m512d)v);
#else
  typedef uint64_t Lanes __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));
  Lanes keep;
  for (int i = 0; i < kLanes<double>; ++i) keep[i] = -(uint64_t)(bits >> i & 1);
  return (vec<double>)((Lanes)v & keep);
#endif
}

// The bits of `lanes` elements from `first` on, a multiple of a vector's lanes. A byte that several
// vectors share is begun by the one that comes first in it.
FASTMLP_INLINE void store_bits(uint8_t* row, int64_t first, unsigned bits, int64_t lanes) {
  uint8_t* byte = row + first / 8;
  byte[0] = (uint8_t)(first % 8 == 0 ? bits : byte[0] | bits << first % 8);
  if (lanes > 8) byte[1] = (uint8_t)(bits >> 8);
}

FASTMLP_INLINE unsigned load_bits(const uint8_t* row, int64_t first, int64_t lanes) {
  const uint8_t* byte = row + first / 8;
  return (unsigned)byte[0] >> first % 8 | (lanes > 8 ? (unsigned)byte[1] << 8 : 0);
}
