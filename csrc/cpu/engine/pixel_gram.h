// The Gram matrix of normalised images from their bytes: integer products, four to a lane, where
// the processor has them (AVX-512 VNNI), at four times the rate of float's. Plain C++, no torch.
// Wants FASTMLP_KERNELS "blocked_kernels.h" to be included before.
#pragma once
#include <cmath>
#include <vector>

#include "cpu/simd/isa.h"

#ifdef FASTMLP_X86
#include <immintrin.h>
#endif

namespace fastmlp {

// Features [begin, end) that are all normalised alike: x = scale * pixel + shift.
struct PixelSpan {
  int64_t begin, end;
  double scale, shift;
};

// The spans of inputs that have few and long ones, as an image's planes are; else none.
inline std::vector<PixelSpan> pixel_spans(const float* scale, const float* shift,
                                          int64_t features) {
  constexpr int64_t kMostSpans = 8, kLongest = 1 << 16;  // sums of a span fit in 32 bits
  // Beyond this shift, pixels near their mean lose digits in x, which their exact Gram matrix
  // keeps: the two would not fit together.
  constexpr float kLargestScale = 1e12, kLargestShift = 256;
  std::vector<PixelSpan> spans;
  for (int64_t i = 0; i < features; ++i) {
    if (!(std::abs(scale[i]) < kLargestScale && std::abs(shift[i]) <= kLargestShift)) return {};
    if (spans.empty() || scale[i] != spans.back().scale || shift[i] != spans.back().shift ||
        i - spans.back().begin == kLongest) {
      if (spans.size() == kMostSpans) return {};
      spans.push_back({i, i, scale[i], shift[i]});
    }
    spans.back().end = i + 1;
  }
  return spans;
}

// With x = s p + h in a span, and q = p - 128 to have a signed factor,
//   x[m] . x[n] = sum over spans of s^2 p[m] . q[n] + (128 s^2 + s h) sum p[m] + s h sum p[n]
//                 + length h^2.
// These are the terms that need one image alone.
struct PixelTerms {
  double left, right;  // as image m and as image n; left has the constant and the Gram matrix's 1
};

#ifdef FASTMLP_X86
#define FASTMLP_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")))

// The 64 bytes at i, or as many as there are before `end`, and zeros.
FASTMLP_VNNI inline __m512i pixels_at(const uint8_t* pixels, int64_t i, int64_t end) {
  const int64_t count = end - i;
  const __mmask64 mask = count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0};
  return _mm512_maskz_loadu_epi8(mask, pixels + i);
}

FASTMLP_VNNI inline PixelTerms pixel_terms(const uint8_t* pixels,
                                           const std::vector<PixelSpan>& spans) {
  PixelTerms terms{1, 0};
  for (const PixelSpan& span : spans) {
    __m512i sums = {};
    for (int64_t i = span.begin; i < span.end; i += 64) {
      sums = _mm512_dpbusd_epi32(sums, pixels_at(pixels, i, span.end), _mm512_set1_epi8(1));
    }
    int32_t lanes[16];
    _mm512_storeu_si512(lanes, sums);
    int64_t sum = 0;
    for (int32_t lane : lanes) sum += lane;
    const double s = span.scale, h = span.shift;
    terms.left += (128 * s * s + s * h) * sum + (span.end - span.begin) * h * h;
    terms.right += s * h * sum;
  }
  return terms;
}

constexpr int kPixelTile = 4;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own intrinsics (its bug 105593)
// The sums of four vectors' lanes.
FASTMLP_VNNI inline __m128i sum_lanes(const __m512i* v) {
  __m128i quarters[4];
  for (int i = 0; i < 4; ++i) {
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1));
    quarters[i] = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
  return _mm_hadd_epi32(_mm_hadd_epi32(quarters[0], quarters[1]),
                        _mm_hadd_epi32(quarters[2], quarters[3]));
}

// out[m][n] = sum over spans of s^2 p[m] . q[n] for a tile of images; `left` and `right` name the
// tile's rows. In integers and in double: nearly all of it may cancel against the images' own
// terms.
FASTMLP_VNNI inline void pixel_tile(const uint8_t* const* left, const uint8_t* const* right,
                                    const std::vector<PixelSpan>& spans,
                                    double (*out)[kPixelTile]) {
  const __m512i sign = _mm512_set1_epi8(-128);  // p - 128 has p's bits but for the first
  __m256d sums[kPixelTile] = {};
  for (const PixelSpan& span : spans) {
    __m512i dots[kPixelTile][kPixelTile] = {};
    for (int64_t i = span.begin; i < span.end; i += 64) {
      __m512i p[kPixelTile];
      for (int m = 0; m < kPixelTile; ++m) p[m] = pixels_at(left[m], i, span.end);
      for (int n = 0; n < kPixelTile; ++n) {
        const __m512i q = _mm512_xor_si512(pixels_at(right[n], i, span.end), sign);
        for (int m = 0; m < kPixelTile; ++m) dots[m][n] = _mm512_dpbusd_epi32(dots[m][n], p[m], q);
      }
    }
    const __m256d square = _mm256_set1_pd(span.scale * span.scale);
    for (int m = 0; m < kPixelTile; ++m) {
      sums[m] = _mm256_fmadd_pd(_mm256_cvtepi32_pd(sum_lanes(dots[m])), square, sums[m]);
    }
  }
  for (int m = 0; m < kPixelTile; ++m) _mm256_storeu_pd(out[m], sums[m]);
}
#pragma GCC diagnostic pop
#undef FASTMLP_VNNI

// gram[m][n] = x[m] . x[n] + 1 for `count` images m from `first` on and n < columns, of which
// pixels (images, stride) are the bytes and terms their pixel_terms.
template <typename T>
void pixel_gram(const uint8_t* pixels, int64_t stride, const std::vector<PixelSpan>& spans,
                const PixelTerms* terms, int64_t first, int64_t count, int64_t columns, T* gram,
                int64_t gram_stride) {
  for (int64_t m = 0; m < count; m += kPixelTile) {
    for (int64_t n = 0; n < columns; n += kPixelTile) {
      const uint8_t *left[kPixelTile], *right[kPixelTile];
      for (int64_t i = 0; i < kPixelTile; ++i) {  // past the last: that one again, for nothing
        left[i] = pixels + (first + std::min(m + i, count - 1)) * stride;
        right[i] = pixels + std::min(n + i, columns - 1) * stride;
      }
      double tile[kPixelTile][kPixelTile];
      pixel_tile(left, right, spans, tile);
      for (int64_t i = m; i < std::min(m + kPixelTile, count); ++i) {
        for (int64_t j = n; j < std::min(n + kPixelTile, columns); ++j) {
          gram[(first + i) * gram_stride + j] =
              static_cast<T>(tile[i - m][j - n] + terms[first + i].left + terms[j].right);
        }
      }
    }
  }
}
#endif

}  // namespace fastmlp
