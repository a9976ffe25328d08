// How a block multiplies its two tiles: FMA in float32, tensor cores in the 16-bit types. Both
// engines have accumulate(a, b), and for_each(f), which hands out kWidth neighbouring results at a
// time.
#pragma once
#include "linear_tiles.cuh"

namespace fastmlp {

// Each thread owns kTileM / 8 rows of 4 columns.
template <int kTileM>
struct FmaEngine {
  using Element = float;
  static constexpr int kDepth = 32, kWidth = 4, kMicroM = kTileM / 8;
  static constexpr int kStepsOfASum = 8;  // tiles whose sums are kept apart: bounds rounding errors
  using TileA = Tile<float, kTileM, kDepth, false>;
  using TileB = Tile<float, kTileN, kDepth, false>;

  float sums[kMicroM][kWidth] = {};
  float totals[kMicroM][kWidth] = {};
  int steps = 0;

  static __device__ int row0() { return threadIdx.x / 16 * kMicroM; }
  static __device__ int col0() { return threadIdx.x % 16 * kWidth; }

  __device__ void accumulate(TileA& a, TileB& b) {
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const Pack<float> right = *reinterpret_cast<const Pack<float>*>(&b.at(col0(), k));
#pragma unroll
      for (int i = 0; i < kMicroM; ++i) {
        const float left = a.at(row0() + i, k);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[i][j] += left * right.v[j];
      }
    }
    if (++steps == kStepsOfASum) flush();
  }

  __device__ void flush() {
    steps = 0;
#pragma unroll
    for (int i = 0; i < kMicroM; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        totals[i][j] += sums[i][j];
        sums[i][j] = 0;
      }
    }
  }

  template <typename F>
  __device__ void for_each(F f) {
    flush();
#pragma unroll
    for (int i = 0; i < kMicroM; ++i) f(row0() + i, col0(), totals[i]);
  }
};

#ifdef __CUDACC__
// c (16, 8) += a (16, 16) b (16, 8), spread over a warp's registers as PTX lays down for
// mma.m16n8k16.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Four warps share the tile; each owns kFragmentsM x kFragmentsN fragments of 16 x 8.
template <typename T, int kTileM>
struct MmaEngine {
  using Element = T;
  static constexpr int kDepth = 64, kWidth = 2;
  static constexpr int kWarpsM = kTileM == 64 ? 2 : 1, kWarpsN = 4 / kWarpsM;
  static constexpr int kFragmentsM = kTileM / kWarpsM / 16, kFragmentsN = kTileN / kWarpsN / 8;
  using TileA = Tile<T, kTileM, kDepth, true>;
  using TileB = Tile<T, kTileN, kDepth, true>;

  float sums[kFragmentsM][kFragmentsN][4] = {};

  static __device__ int group() { return threadIdx.x % kWarp / 4; }
  static __device__ int pair() { return threadIdx.x % 4 * 2; }
  static __device__ int row0() { return threadIdx.x / kWarp / kWarpsN * (kTileM / kWarpsM); }
  static __device__ int col0() { return threadIdx.x / kWarp % kWarpsN * (kTileN / kWarpsN); }

  // Two neighbours along k in one register.
  template <typename Tile>
  static __device__ uint32_t two(Tile& tile, int row, int k) {
    return *reinterpret_cast<const uint32_t*>(&tile.at(row, k));
  }

  __device__ void accumulate(TileA& a, TileB& b) {
#pragma unroll
    for (int k0 = 0; k0 < kDepth; k0 += 16) {
      const int k = k0 + pair();
      uint32_t right[kFragmentsN][2];
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        const int col = col0() + j * 8 + group();
        right[j][0] = two(b, col, k);
        right[j][1] = two(b, col, k + 8);
      }
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
        const int row = row0() + i * 16 + group();
        const uint32_t left[4] = {two(a, row, k), two(a, row + 8, k), two(a, row, k + 8),
                                  two(a, row + 8, k + 8)};
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) mma(sums[i][j], left, right[j], T{});
      }
    }
  }

  template <typename F>
  __device__ void for_each(F f) {
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        const int row = row0() + i * 16 + group(), col = col0() + j * 8 + pair();
        const float upper[2] = {sums[i][j][0], sums[i][j][1]};
        const float lower[2] = {sums[i][j][2], sums[i][j][3]};
        f(row, col, upper);
        f(row + 8, col, lower);
      }
    }
  }
};

}  // namespace fastmlp
