// Vectors of FASTMLP_VECTOR_BYTES bytes: loads that widen, stores that narrow, sums, exp.
// Included by foreach_isa.h once for each instruction set, inside that set's namespace: no guard.

template <typename Acc>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));
};
template <typename Acc>
using vec = typename Vector<Acc>::type;
template <typename Acc>
constexpr int kLanes = FASTMLP_VECTOR_BYTES / sizeof(Acc);
// Rows of a matrix product's register tile: 8 x 3 accumulators fill 32 registers, 4 x 3 fill 16.
constexpr int kTileRows = FASTMLP_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int kTileVectors = 3;

typedef uint16_t vec_u16 __attribute__((vector_size(FASTMLP_VECTOR_BYTES / 2)));
typedef uint32_t vec_u32 __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));
typedef int32_t vec_i32 __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));
typedef int64_t vec_i64 __attribute__((vector_size(FASTMLP_VECTOR_BYTES)));

template <typename Acc>
FASTMLP_INLINE vec<Acc> broadcast(Acc x) {
  return x - vec<Acc>{};  // every lane x - 0, which keeps -0. and nan
}

FASTMLP_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTMLP_VECTOR_BYTES == 32
  return (vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

FASTMLP_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif FASTMLP_VECTOR_BYTES == 32
  return (vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// ---- loads: T in memory, acc_t<T> in registers ----

FASTMLP_INLINE vec<float> load(const float* p) {
  vec<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}

FASTMLP_INLINE vec<double> load(const double* p) {
  vec<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}

FASTMLP_INLINE vec<float> load(const bf16* p) {
  vec_u16 half;
  memcpy(&half, p, sizeof half);
  return (vec<float>)(__builtin_convertvector(half, vec_u32) << 16);
}

// float16 by integers alone: shift the exponent and mantissa up, rescale by 2^112 (which also
// normalises subnormals), and give back infinity and nan their full exponent.
FASTMLP_INLINE vec<float> widen_f16(vec_u16 half) {
  const vec_u32 bits = __builtin_convertvector(half, vec_u32);
  const vec_u32 magnitude = (bits & 0x7fffu) << 13;
  const vec<float> scaled = (vec<float>)magnitude * 0x1p112f;
  const vec_u32 special = (vec_u32)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return (vec<float>)((vec_u32)scaled | special | ((bits & 0x8000u) << 16));
}

FASTMLP_INLINE vec<float> load(const f16* p) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif FASTMLP_VECTOR_BYTES == 32
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vec_u16 half;
  memcpy(&half, p, sizeof half);
  return widen_f16(half);
#endif
}

// GCC makes scalar code of a __builtin_convertvector from bytes.
FASTMLP_INLINE vec<float> load(const uint8_t* p) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif FASTMLP_VECTOR_BYTES == 32
  return (vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return vec<float>{(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}

// ---- stores: rounded to nearest even ----

FASTMLP_INLINE void store(float* p, vec<float> v) { memcpy(p, &v, sizeof v); }
FASTMLP_INLINE void store(double* p, vec<double> v) { memcpy(p, &v, sizeof v); }

FASTMLP_INLINE void store(bf16* p, vec<float> v) {
  const vec_u32 bits = (vec_u32)v;
  const vec_u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vec_u32 is_nan = (vec_u32)(v != v);
  const vec_u16 half =
      __builtin_convertvector((is_nan & (bits >> 16 | 0x40u)) | (~is_nan & rounded), vec_u16);
  memcpy(p, &half, sizeof half);
}

// The reverse of widen_f16. A normal result rounds in integers; a subnormal one by adding 0.5,
// whose last place is float16's smallest step.
FASTMLP_INLINE vec_u16 narrow_f16(vec<float> v) {
  const vec_u32 bits = (vec_u32)v;
  const vec_u32 sign = (bits >> 16) & 0x8000u;
  const vec_u32 magnitude = bits & 0x7fffffffu;
  const vec_u32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const vec_u32 subnormal = (vec_u32)((vec<float>)magnitude + 0.5f) - 0x3f000000u;
  const vec_u32 is_small = (vec_u32)(magnitude < (113u << 23));
  const vec_u32 is_huge = (vec_u32)(magnitude >= 0x477ff000u);  // rounds to 65536 or is not finite
  const vec_u32 is_nan = (vec_u32)(magnitude > 0x7f800000u);
  vec_u32 half = (is_small & subnormal) | (~is_small & normal);
  half = (is_huge & 0x7c00u) | (~is_huge & half);
  half = (is_nan & 0x7e00u) | (~is_nan & half);
  return __builtin_convertvector(half | sign, vec_u16);
}

FASTMLP_INLINE void store(f16* p, vec<float> v) {
#if FASTMLP_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif FASTMLP_VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p,
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const vec_u16 half = narrow_f16(v);
  memcpy(p, &half, sizeof half);
#endif
}

// Past the caches, to an aligned p; 16-bit vectors, half as wide, go the usual way.
template <bool kStream, typename T>
FASTMLP_INLINE void put(T* p, vec<acc_t<T>> v) {
  store(p, v);
}
#if FASTMLP_VECTOR_BYTES == 64
template <>
FASTMLP_INLINE void put<true, float>(float* p, vec<float> v) {
  _mm512_stream_ps(p, (__m512)v);
}
#elif FASTMLP_VECTOR_BYTES == 32
template <>
FASTMLP_INLINE void put<true, float>(float* p, vec<float> v) {
  _mm256_stream_ps(p, (__m256)v);
}
#endif

// Orders streamed stores before what follows.
FASTMLP_INLINE void stream_fence() {
#if FASTMLP_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

// ---- the last lanes of a row: n < kLanes elements, the others read as zero ----

template <typename T>
FASTMLP_INLINE vec<acc_t<T>> load_partial(const T* p, int64_t n) {
  T lanes[kLanes<acc_t<T>>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <typename T>
FASTMLP_INLINE void store_partial(T* p, vec<acc_t<T>> v, int64_t n) {
  T lanes[kLanes<acc_t<T>>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

#if FASTMLP_VECTOR_BYTES == 64
FASTMLP_INLINE vec<float> load_partial(const float* p, int64_t n) {
  return (vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

FASTMLP_INLINE void store_partial(float* p, vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#elif FASTMLP_VECTOR_BYTES == 32
FASTMLP_INLINE __m256i first_lanes(int64_t n) {
  return (__m256i)(vec_i32{0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n);
}

FASTMLP_INLINE vec<float> load_partial(const float* p, int64_t n) {
  return (vec<float>)_mm256_maskload_ps(p, first_lanes(n));
}

FASTMLP_INLINE void store_partial(float* p, vec<float> v, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
#endif

template <typename T>
FASTMLP_INLINE acc_t<T> load_one(const T* p) {
  return load_partial(p, 1)[0];
}

// n <= kLanes elements, a whole vector where it can be.
template <typename T>
FASTMLP_INLINE vec<acc_t<T>> load_lanes(const T* p, int64_t n) {
  return n == kLanes<acc_t<T>> ? load(p) : load_partial(p, n);
}

template <typename T>
FASTMLP_INLINE void store_lanes(T* p, vec<acc_t<T>> v, int64_t n) {
  if (n == kLanes<acc_t<T>>) {
    store(p, v);
  } else {
    store_partial(p, v, n);
  }
}

// ---- across lanes: always the same tree, so a sum does not depend on how many are taken at once
// ----

// Halves added to halves until four lanes are left, then neighbours.
template <typename Acc>
FASTMLP_INLINE Acc reduce_add(vec<Acc> v) {
  Acc lanes[kLanes<Acc>];
  memcpy(lanes, &v, sizeof v);
  for (int width = kLanes<Acc> / 2; width >= 4; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  if constexpr (kLanes<Acc> == 2) return lanes[0] + lanes[1];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// The largest lane that is not nan.
template <typename Acc>
FASTMLP_INLINE Acc reduce_max(vec<Acc> v) {
  Acc lanes[kLanes<Acc>];
  memcpy(lanes, &v, sizeof v);
  for (int width = kLanes<Acc> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}

#if FASTMLP_VECTOR_BYTES >= 32
// Halves added to halves until four lanes are left.
FASTMLP_INLINE __m128 fold_128(vec<float> v) {
#if FASTMLP_VECTOR_BYTES == 64
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 half = (__m256)v;
#endif
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#endif

// sums[m] = the sum of the lanes of rows[m], M rows at once.
template <int M>
FASTMLP_INLINE void reduce_rows(const vec<double>* rows, double* sums) {
  for (int m = 0; m < M; ++m) sums[m] = reduce_add<double>(rows[m]);
}

template <int M>
FASTMLP_INLINE void reduce_rows(const vec<float>* rows, float* sums) {
#if FASTMLP_VECTOR_BYTES >= 32
  if constexpr (M % 4 == 0) {
    for (int m = 0; m < M; m += 4) {
      __m128 quarter[4];
      for (int i = 0; i < 4; ++i) quarter[i] = fold_128(rows[m + i]);
      _mm_storeu_ps(sums + m, _mm_hadd_ps(_mm_hadd_ps(quarter[0], quarter[1]),
                                          _mm_hadd_ps(quarter[2], quarter[3])));
    }
    return;
  }
#endif
  for (int m = 0; m < M; ++m) sums[m] = reduce_add<float>(rows[m]);
}

// The larger lanes; nan in v gives the lane of m.
template <typename Acc>
FASTMLP_INLINE vec<Acc> larger(vec<Acc> v, vec<Acc> m) {
  return v > m ? v : m;
}
#if FASTMLP_VECTOR_BYTES == 64
template <>
FASTMLP_INLINE vec<float> larger<float>(vec<float> v, vec<float> m) {
  return (vec<float>)_mm512_max_ps((__m512)v, (__m512)m);
}
#endif

// p * 2^n, right down to subnormal results; n is whole, from -151 to 1.
FASTMLP_INLINE vec<float> scale_by_power(vec<float> p, vec<float> n) {
#if FASTMLP_VECTOR_BYTES == 64
  return (vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const vec<float> magic = broadcast(0x1.8p23f);
  const vec_i32 exponent = (vec_i32)(n + magic) - (vec_i32)magic;
  const vec_i32 half = exponent >> 1;
  return p * (vec<float>)((half + 127) << 23) * (vec<float>)((exponent - half + 127) << 23);
#endif
}

// exp(x) for x <= 0, to about one unit in the last place: x = n ln 2 + r, a polynomial in r
// (Cephes' expf), times 2^n. exp(-inf) = 0, nan stays nan.
FASTMLP_INLINE vec<float> exp(vec<float> x) {
  const vec<float> bounded = larger<float>(broadcast(-104.0f), x);
  const vec<float> magic = broadcast(0x1.8p23f);  // adding it rounds to a whole number
  const vec<float> n = fma(bounded, broadcast(1.44269504f), magic) - magic;
  vec<float> r = fma(n, broadcast(-0.693359375f), bounded);
  r = fma(n, broadcast(2.12194440e-4f), r);
  vec<float> p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  return scale_by_power(p, n);
}

FASTMLP_INLINE vec<double> exp(vec<double> x) {
  vec<double> y;
  for (int i = 0; i < kLanes<double>; ++i) y[i] = __builtin_exp(x[i]);
  return y;
}

FASTMLP_INLINE float log_of(float x) { return __builtin_logf(x); }
FASTMLP_INLINE double log_of(double x) { return __builtin_log(x); }

// ---- what the activations ask for ----

FASTMLP_INLINE float constant(vec<float>, double value) { return (float)value; }
FASTMLP_INLINE double constant(vec<double>, double value) { return value; }
template <typename V>
FASTMLP_INLINE V magnitude(V x) {
  return x < 0 ? -x : x;
}
template <typename V>
FASTMLP_INLINE V exp_of(V x) {
  return exp(x);
}

// Near 0 Cephes' polynomial, whose relative error stays small; elsewhere by exp(-2 |x|).
FASTMLP_INLINE vec<float> tanh_of(vec<float> x) {
  const vec<float> size = magnitude(x), s = x * x, e = exp(-2 * size);
  vec<float> p = broadcast(-5.70498872745e-3f);
  p = fma(p, s, broadcast(2.06390887954e-2f));
  p = fma(p, s, broadcast(-5.37397155531e-2f));
  p = fma(p, s, broadcast(1.33314422036e-1f));
  p = fma(p, s, broadcast(-3.33332819422e-1f));
  const vec<float> far = (1 - e) / (1 + e);
  return size >= 0.625f ? (x < 0 ? -far : far) : x * fma(p, s, broadcast(1.0f));
}

// By two minimax polynomials (N. Juffa's erff): one in x^2 near 0, one for log(1 - erf) elsewhere.
FASTMLP_INLINE vec<float> erf_of(vec<float> x) {
  const vec<float> size = magnitude(x), s = x * x;
  vec<float> p = broadcast(-5.96761703e-4f);
  p = fma(p, s, broadcast(4.99119423e-3f));
  p = fma(p, s, broadcast(-2.67681349e-2f));
  p = fma(p, s, broadcast(1.12819925e-1f));
  p = fma(p, s, broadcast(-3.76125336e-1f));
  p = fma(p, s, broadcast(1.28379166e-1f));
  vec<float> q = fma(broadcast(-1.72853470e-5f), size, broadcast(3.83197126e-4f));
  q = fma(q, s, fma(broadcast(-3.88396438e-3f), size, broadcast(2.42546219e-2f)));
  q = fma(q, size, broadcast(-1.06777877e-1f));
  q = fma(q, size, broadcast(-6.34846687e-1f));
  q = fma(q, size, broadcast(-1.28717512e-1f));
  const vec<float> far = 1 - exp(fma(q, size, -size));
  return size > 0.927734375f ? (x < 0 ? -far : far) : fma(p, x, x);
}

FASTMLP_INLINE vec<double> tanh_of(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_tanh(x[i]);
  return x;
}

FASTMLP_INLINE vec<double> erf_of(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_erf(x[i]);
  return x;
}

#define FASTMLP_MATH FASTMLP_INLINE
#include "common/activation.h"
#undef FASTMLP_MATH
