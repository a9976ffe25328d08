// Includes FASTMLP_KERNELS, a header of kernels, once for each instruction set, each time inside
// namespace fastmlp::{portable, avx2, avx512} with simd.h's vectors of that width.
//
// Such a header may use nothing that it does not define itself, simd.h or isa.h: an inline function
// of a standard header, compiled here for AVX-512, might be the copy that the linker keeps for
// everybody. For the same reason it holds no lambdas.
#include "cpu/simd/isa.h"

#ifdef FASTMLP_X86
#include <immintrin.h>
#endif
#include <cmath>
#include <cstring>

#define FASTMLP_INLINE inline __attribute__((always_inline))

#define FASTMLP_VECTOR_BYTES 16
namespace fastmlp::portable {
#include "cpu/simd/simd.h"
#include FASTMLP_KERNELS
}  // namespace fastmlp::portable
#undef FASTMLP_VECTOR_BYTES

#ifdef FASTMLP_X86

#define FASTMLP_VECTOR_BYTES 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace fastmlp::avx2 {
#include "cpu/simd/simd.h"
#include FASTMLP_KERNELS
}  // namespace fastmlp::avx2
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTMLP_VECTOR_BYTES

#define FASTMLP_VECTOR_BYTES 64
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#endif
namespace fastmlp::avx512 {
#include "cpu/simd/simd.h"
#include FASTMLP_KERNELS
}  // namespace fastmlp::avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTMLP_VECTOR_BYTES

#endif  // FASTMLP_X86

#undef FASTMLP_INLINE
