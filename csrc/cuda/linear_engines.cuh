// How a block multiplies its two tiles: float32 by FMA or by tensor cores in TF32, the 16-bit types
// by tensor cores, bfloat16 by FMA where these do not know it. All engines have accumulate(a, b,
// large), and for_each(f), which hands out kWidth neighbouring results at a time; kThere says
// whether the GPU that is compiled for has their instructions, kAsksForLarge whether they want to
// know of `large` operands, as is_large has it.
#pragma once
#include "cuda/linear_tiles.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastmlp {

// Each thread owns kTileM / 8 rows of 4 columns.
template <typename T, int kTileM>
struct FmaEngine {
  using Element = T;
  static constexpr bool kThere = true, kAsksForLarge = false;
  static constexpr int kDepth = 32, kWidth = 4, kMicroM = kTileM / 8;
  static constexpr int kStepsOfASum = 8;  // tiles whose sums are kept apart: bounds rounding errors
  using TileA = Tile<T, kTileM, kDepth, false>;
  using TileB = Tile<T, kTileN, kDepth, false>;
  struct alignas(kWidth * sizeof(T)) Neighbours {
    T v[kWidth];
  };

  float sums[kMicroM][kWidth] = {};
  float totals[kMicroM][kWidth] = {};
  int steps = 0;

  static __device__ int row0() { return threadIdx.x / 16 * kMicroM; }
  static __device__ int col0() { return threadIdx.x % 16 * kWidth; }

  __device__ void accumulate(TileA& a, TileB& b, bool) {
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const Neighbours right = *reinterpret_cast<const Neighbours*>(&b.at(col0(), k));
#pragma unroll
      for (int i = 0; i < kMicroM; ++i) {
        const float left = widen(a.at(row0() + i, k));
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[i][j] += left * widen(right.v[j]);
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

// Four warps share a tile of kTileM x kTileN; each owns kFragmentsM x kFragmentsN fragments of
// 16 x 8, of which PTX gives a lane rows group() and group() + 8, columns pair() and pair() + 1.
template <int kTileM>
struct Fragments {
  static constexpr int kWidth = 2;
  static constexpr int kWarpsM = kTileM == 64 ? 2 : 1, kWarpsN = 4 / kWarpsM;
  static constexpr int kFragmentsM = kTileM / kWarpsM / 16, kFragmentsN = kTileN / kWarpsN / 8;
  using Sums = float[kFragmentsM][kFragmentsN][4];

  static __device__ int group() { return threadIdx.x % kWarp / 4; }
  static __device__ int pair() { return threadIdx.x % 4 * 2; }
  static __device__ int row0() { return threadIdx.x / kWarp / kWarpsN * (kTileM / kWarpsM); }
  static __device__ int col0() { return threadIdx.x / kWarp % kWarpsN * (kTileN / kWarpsN); }

  template <typename F>
  static __device__ void for_each(const Sums& sums, F f) {
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

template <typename T, int kTileM>
struct MmaEngine : Fragments<kTileM> {
  using Element = T;
  using Grid = Fragments<kTileM>;
  using Grid::col0, Grid::group, Grid::kFragmentsM, Grid::kFragmentsN, Grid::pair, Grid::row0;
  static constexpr bool kThere = kHasSm80 || std::is_same_v<T, f16>, kAsksForLarge = false;
  static constexpr int kDepth = 64;
  using TileA = Tile<T, kTileM, kDepth, true>;
  using TileB = Tile<T, kTileN, kDepth, true>;

  typename Grid::Sums sums = {};

  // Two neighbours along k in one register.
  template <typename Tile>
  static __device__ uint32_t two(Tile& tile, int row, int k) {
    return *reinterpret_cast<const uint32_t*>(&tile.at(row, k));
  }

  __device__ void accumulate(TileA& a, TileB& b, bool) {
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
        for (int j = 0; j < kFragmentsN; ++j) mma<T>(sums[i][j], left, right[j]);
      }
    }
  }

  template <typename F>
  __device__ void for_each(F f) {
    Grid::for_each(sums, f);
  }
};

// Float32 by tensor cores: a product of the operands in TF32 or, where kThree, three products of
// their parts, as accurate as float32 (the fourth, small by small, is 2^-22 of the whole).
// Tensor cores cut off their sums' last bits, so a sum runs over one tile and totals are plain
// floats. What they make of sums that overflow nobody says, and parts of an inf are inf and nan, of
// the largest numbers too; so tiles with large operands are multiplied by FMA: inf and nan come out
// as FMA has them. Without one a tile's sums are below 2^125.
template <int kTileM, bool kThree>
struct Tf32Engine : Fragments<kTileM> {
  using Element = float;
  using Grid = Fragments<kTileM>;
  using Grid::col0, Grid::group, Grid::kFragmentsM, Grid::kFragmentsN, Grid::pair, Grid::row0;
  static constexpr bool kThere = kHasSm80, kAsksForLarge = true;
  static constexpr int kDepth = 32;
  static constexpr int kStepsAtOnce = kThree ? 2 : 1;  // two of one product each spill registers
  using TileA = SwizzledTile<kTileM>;
  using TileB = SwizzledTile<kTileN>;

  typename Grid::Sums totals = {};

  __device__ void accumulate(TileA& a, TileB& b, bool large) {
    if (large) return multiply_by_fma(a, b);
    typename Grid::Sums sums = {};
#pragma unroll kStepsAtOnce
    for (int k0 = 0; k0 < kDepth; k0 += 8) add_products(sums, a, b, k0 ^ pair() / 2);
    for_all([&](int i, int j, int e) { totals[i][j][e] += sums[i][j][e]; });
  }

  // The lane's parts of the products over eight k; its own are k and k ^ 4.
  static __device__ void add_products(typename Grid::Sums& sums, TileA& a, TileB& b, int k) {
    uint32_t right[kFragmentsN][2], right_small[kFragmentsN][2];
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
      const int col = col0() + j * 8 + group();
      const float values[2] = {b.at(col, k), b.at(col, k ^ 4)};
      split(values, right[j], right_small[j]);
    }
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
      const int row = row0() + i * 16 + group();
      const float values[4] = {a.at(row, k), a.at(row + 8, k), a.at(row, k ^ 4),
                               a.at(row + 8, k ^ 4)};
      uint32_t left[4], left_small[4];
      split(values, left, left_small);
      if constexpr (kThree) {
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) mma_tf32(sums[i][j], left_small, right[j]);
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) mma_tf32(sums[i][j], left, right_small[j]);
      }
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) mma_tf32(sums[i][j], left, right[j]);
    }
  }

  template <int kCount>
  static __device__ void split(const float (&values)[kCount], uint32_t (&big)[kCount],
                               uint32_t (&small)[kCount]) {
    if constexpr (kThree) {
      split_floats(values, big, small);
    } else {
#pragma unroll
      for (int e = 0; e < kCount; ++e) big[e] = round_to_tf32(values[e]);
    }
  }

  __device__ void multiply_by_fma(TileA& a, TileB& b) {
    for_all([&](int i, int j, int e) {
      const int row = row0() + i * 16 + group() + e / 2 * 8;
      const int col = col0() + j * 8 + pair() + e % 2;
      float sum = 0;
#pragma unroll 1
      for (int k = 0; k < kDepth; ++k) sum += a.at(row, k) * b.at(col, k);
      totals[i][j][e] += sum;
    });
  }

  // f(i, j, e) for the lane's sums.
  template <typename F>
  static __device__ void for_all(F f) {
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) f(i, j, e);
      }
    }
  }

  template <typename F>
  __device__ void for_each(F f) {
    Grid::for_each(totals, f);
  }
};

}  // namespace fastmlp
