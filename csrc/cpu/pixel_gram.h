// The Gram matrix of normalised images from their bytes: integer products, four to a lane, where
// the processor has them (AVX-512 VNNI), at four times the rate of float's. Plain C++, no torch.
// Wants FASTMLP_KERNELS "blocked_kernels.h" to be included before.
#pragma once
#include <cmath>
#include <vector>

#include "isa.h"

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
  constexpr float kLargest = 1e12;                       // squares and their sums fit in a float
  std::vector<PixelSpan> spans;
  for (int64_t i = 0; i < features; ++i) {
    if (!(std::abs(scale[i]) < kLargest && std::abs(shift[i]) < kLargest)) return {};
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
// All that namespace avx512 has (foreach_isa.h), whose functions are inlined here, and VNNI.
#define FASTMLP_VNNI \
  __attribute__((    \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c,prefer-vector-width=512")))

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
// out[m][n] = sum over spans of s^2 p[m] . q[n] for a tile of images; `left` and `right` name the
// tile's rows.
FASTMLP_VNNI inline void pixel_tile(const uint8_t* const* left, const uint8_t* const* right,
                                    const std::vector<PixelSpan>& spans, float (*out)[kPixelTile]) {
  const __m512i sign = _mm512_set1_epi8(-128);  // p - 128 has p's bits but for the first
  avx512::vec<float> sums[kPixelTile][kPixelTile] = {};
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
    const __m512 square = _mm512_set1_ps(static_cast<float>(span.scale * span.scale));
    for (int m = 0; m < kPixelTile; ++m) {
      for (int n = 0; n < kPixelTile; ++n) {
        sums[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m][n]), square, (__m512)sums[m][n]);
      }
    }
  }
  for (int m = 0; m < kPixelTile; ++m) avx512::reduce_rows<kPixelTile>(sums[m], out[m]);
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
      float tile[kPixelTile][kPixelTile];
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
