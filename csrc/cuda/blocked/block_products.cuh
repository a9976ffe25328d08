// The products between the chains of blocked look-ahead SGD: how a thread block updates its part of
// the first layer's weight and multiplies it by the next images, in one pass over it.
#pragma once
#include "cuda/tensor_cores.cuh"

namespace fastmlp {
namespace {

constexpr int kTileColumns = 48;                // of the weight
constexpr int kEights = 6;                      // groups of 8 columns in a tile
constexpr int kUnits = 16;                      // hidden units of a warp
constexpr int kMostRows = 128;                  // of a block of images
constexpr int kDeep = 16;                       // rows or columns that a product sums over at once
constexpr int kPairStride = 56;                 // words of a pair of rows, spread over the banks
constexpr int kRowStride = 28;                  // words of a row, likewise
constexpr int kPixels = 16;                     // that a thread loads at once
constexpr int kLoads = kTileColumns / kPixels;  // of a row of a tile

// A warp's registers of a fragment (16, 16).
struct alignas(16) Fragment {
  uint32_t v[4];
};

// Shared memory of a block of kWarps warps.
template <int kWarps>
struct ProductsMemory {
  // to_w^T of the warp's units by 16 rows, in three parts.
  Fragment factors[kWarps][kMostRows / kDeep][3][kWarp];
  uint32_t before[kMostRows / 2 * kPairStride];  // pixels of two rows, of the same column
  uint32_t pixels[kMostRows * kRowStride];       // of two columns, of the same row
  float constants[kWarps][kUnits];               // what is added to a unit's products of all rows
};

// Two pixels less their centre, a whole number up to 255, as bfloat16, which is exact; `offset` is
// 2^23 + the centre.
__device__ inline uint32_t centred(uint32_t first, uint32_t second, float offset) {
  constexpr uint32_t kExponent = 0x4b000000u;  // of 2^23, to which a byte adds itself
  return upper_halves(float_of_bits(kExponent | first) - offset,
                      float_of_bits(kExponent | second) - offset);
}
constexpr float kOffset = 8388608.0f;  // 2^23
__device__ inline uint32_t byte_of(const uint4& pixels, int i) {
  const uint32_t words[4] = {pixels.x, pixels.y, pixels.z, pixels.w};
  return words[i / 4] >> 8 * (i % 4) & 0xffu;
}

template <int kWarps>
class ProductsBlock {
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kPairLoads = (kMostRows / 2 * kLoads + kThreads - 1) / kThreads;
  static constexpr int kRowLoads = (kMostRows * kLoads + kThreads - 1) / kThreads;
  const BlockProducts& in;
  ProductsMemory<kWarps>& memory;
  const int lane, warp, group, quad;
  const int unit0;                        // the warp's first
  const int64_t network, images, member;  // of all; its group, and which of it
  float* const weight;                    // of the lane's first unit, that of the second 8 below
  float factor_sums[2] = {};              // over the rows, of the lane's units
  float w[kEights][4];                    // units group (+ 8), columns 2 quad (+ 1)
  float totals[kMostRows / kDeep][2][4] = {};  // rows group (+ 8), units 2 quad (+ 1) of either 8
  float constants[2] = {};                     // of the lane's units and columns
  uint4 pair_pixels[kPairLoads][2], row_pixels[kRowLoads];  // of the next tile

 public:
  __device__ ProductsBlock(const BlockProducts& in_, ProductsMemory<kWarps>& memory_)
      : in(in_),
        memory(memory_),
        lane(threadIdx.x % kWarp),
        warp(threadIdx.x / kWarp),
        group(lane / 4),
        quad(lane % 4),
        unit0((blockIdx.x % in.plan.unit_blocks * kWarps + warp) * kUnits),
        network(blockIdx.y),
        images(network / in.networks),
        member(network % in.networks),
        weight(in.weight + (network * in.hidden + unit0 + group) * in.inputs) {}

  __device__ void run() {
    const int slice = blockIdx.x / in.plan.unit_blocks, count = in.plan.tiles_of_slice;
    const int begin = slice * count, left = in.plan.tiles - begin,
              end = begin + (left < count ? left : count);
    if (begin < end) {
      load_pixels(begin);
      load_weight(begin);
    }
    if (in.factors) load_factors();
    for (int tile = begin; tile < end; ++tile) {
      store_pixels(tile);
      __syncthreads();  // all threads have written their pixels (and factors), which all read
      if (tile + 1 < end) load_pixels(tile + 1);
      if (in.factors) update(tile);
      RightFragments right;
      if (in.pixels) split_weight(tile, right);
      if (tile + 1 < end) load_weight(tile + 1);
      if (in.pixels) multiply(right);
      __syncthreads();  // all threads have read the pixels, which the next ones overwrite
    }
    if (in.pixels) store_totals(slice);
  }

 private:
  // ---- global memory ----

  __device__ bool has_unit(int half) const { return unit0 + group + 8 * half < in.hidden; }

  __device__ uint4 pixels_at(const uint8_t* pixels, int row, int column) const {
    if (row >= in.rows || column >= in.inputs) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(pixels + (images * in.rows + row) * in.inputs + column);
  }

  // The pixel that comes closest to 0 in the columns that are loaded with this one: what is left
  // of the shift, when it is subtracted, is small.
  __device__ float centre_of(int column) const {
    const int first = column / kPixels * kPixels;
    if (first >= in.inputs) return 0;
    const float zero = quick_quotient(-in.shift[first], in.scale[first]);
    return static_cast<float>(to_unsigned(fminf(fmaxf(zero, 0.0f), 255.0f)));
  }

  // f(i, place, column) for what the thread loads of `places` rows or pairs of them.
  template <int kPlaces, int kMine, typename F>
  static __device__ void for_loads(F f) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int load = i * kThreads + static_cast<int>(threadIdx.x);
      if (load < kPlaces * kLoads) f(i, load / kLoads, load % kLoads * kPixels);
    }
  }

  __device__ void load_pixels(int tile) {
    const int column0 = tile * kTileColumns;
    if (in.factors) {
      for_loads<kMostRows / 2, kPairLoads>([&](int i, int pair, int column) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          pair_pixels[i][e] = pixels_at(in.before, 2 * pair + e, column0 + column);
        }
      });
    }
    if (!in.pixels) return;
    for_loads<kMostRows, kRowLoads>([&](int i, int row, int column) {
      row_pixels[i] = pixels_at(in.pixels, row, column0 + column);
    });
  }

  __device__ void store_pixels(int tile) {
    const int column0 = tile * kTileColumns;
    if (in.factors) {
      for_loads<kMostRows / 2, kPairLoads>([&](int i, int pair, int column) {
        const float offset = kOffset + centre_of(column0 + column);
        auto* to = reinterpret_cast<Fragment*>(memory.before + pair * kPairStride + column);
#pragma unroll
        for (int k = 0; k < kPixels / 4; ++k) {
          Fragment words;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            words.v[e] = centred(byte_of(pair_pixels[i][0], 4 * k + e),
                                 byte_of(pair_pixels[i][1], 4 * k + e), offset);
          }
          to[k] = words;
        }
      });
    }
    if (!in.pixels) return;
    for_loads<kMostRows, kRowLoads>([&](int i, int row, int column) {
      const float offset = kOffset + centre_of(column0 + column);
      auto* to = reinterpret_cast<Fragment*>(memory.pixels + row * kRowStride + column / 2);
#pragma unroll
      for (int k = 0; k < kPixels / 8; ++k) {
        Fragment words;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          words.v[e] = centred(byte_of(row_pixels[i], 8 * k + 2 * e),
                               byte_of(row_pixels[i], 8 * k + 2 * e + 1), offset);
        }
        to[k] = words;
      }
    });
  }

  // f(j, half, column) for the lane's pairs of neighbours in a tile of the weight that are there.
  template <typename F>
  __device__ void for_weights(int tile, F f) const {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const int column = tile * kTileColumns + 8 * j + 2 * quad;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (column < in.inputs && has_unit(half)) f(j, half, column);
      }
    }
  }
  __device__ float2* weight_at(int half, int column) const {
    return reinterpret_cast<float2*>(weight + 8 * half * in.inputs + column);
  }
  __device__ void load_weight(int tile) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) w[j][e] = 0;
    }
    for_weights(tile, [&](int j, int half, int column) {
      const float2 pair = *weight_at(half, column);
      w[j][2 * half] = pair.x;
      w[j][2 * half + 1] = pair.y;
    });
  }

  // Columns' scales, and the shifts of what is centred: x = scale (pixel - centre) + shift.
  struct Columns {
    float scale[2], shift[2];
  };
  __device__ Columns columns_at(int tile, int j) const {
    const int column = tile * kTileColumns + 8 * j + 2 * quad;
    if (column >= in.inputs) return {};
    const float2 scale = *reinterpret_cast<const float2*>(in.scale + column);
    const float2 shift = *reinterpret_cast<const float2*>(in.shift + column);
    const float centre = centre_of(column);
    return {{scale.x, scale.y}, {shift.x + centre * scale.x, shift.y + centre * scale.y}};
  }

  __device__ void load_factors() {
#pragma unroll
    for (int k = 0; k < kMostRows / kDeep; ++k) {
      float values[4][2];  // of a fragment's registers
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i % 2, row = k * kDeep + 2 * quad + i / 2 * 8;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool there = row + e < in.rows && has_unit(half);
          const int64_t at = ((images * in.rows + row + e) * in.networks + member) * in.hidden;
          values[i][e] = there ? in.factors[at + unit0 + group + 8 * half] : 0.0f;
        }
      }
      Fragment fragments[3];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Bf16Parts parts = split_in_three(values[i][0], values[i][1]);
#pragma unroll
        for (int part = 0; part < 3; ++part) fragments[part].v[i] = parts.v[part];
        factor_sums[i % 2] += values[i][0] + values[i][1];
      }
#pragma unroll
      for (int part = 0; part < 3; ++part) memory.factors[warp][k][part][lane] = fragments[part];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor_sums[half] += shuffle_xor(factor_sums[half], 1);
      factor_sums[half] += shuffle_xor(factor_sums[half], 2);
    }
  }

  // ---- the update ----

  // w += to_w^T x of the images before, and back into global memory.
  __device__ void update(int tile) {
    float sums[kEights][4] = {};
    for (int k = 0; k < (in.rows + kDeep - 1) / kDeep; ++k) {
      Fragment left[3];
#pragma unroll
      for (int part = 0; part < 3; ++part) left[part] = memory.factors[warp][k][part][lane];
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const uint32_t* at = memory.before + (8 * k + quad) * kPairStride + 8 * j + group;
        const uint32_t right[2] = {at[0], at[4 * kPairStride]};
#pragma unroll
        for (int part = 2; part >= 0; --part) mma<bf16>(sums[j], left[part].v, right);
      }
    }
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const Columns columns = columns_at(tile, j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        w[j][e] += columns.scale[e % 2] * sums[j][e] + columns.shift[e % 2] * factor_sums[e / 2];
      }
    }
    for_weights(tile, [&](int j, int half, int column) {
      *weight_at(half, column) = {w[j][2 * half], w[j][2 * half + 1]};
    });
  }

  // ---- the product ----

  // The tile of the weight, times the columns' scale, as fragments (16 columns, 8 units).
  struct RightFragments {
    uint32_t v[kEights / 2][2][3][2];
  };
  __device__ void split_weight(int tile, RightFragments& right) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const Columns columns = columns_at(tile, j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float first = w[j][2 * half], second = w[j][2 * half + 1];
        constants[half] += columns.shift[0] * first + columns.shift[1] * second;
        const Bf16Parts parts = split_in_three(columns.scale[0] * first, columns.scale[1] * second);
#pragma unroll
        for (int part = 0; part < 3; ++part) right.v[j / 2][half][part][j % 2] = parts.v[part];
      }
    }
  }

  // Tensor cores cut off the last bits of their sums, so these run over a tile only.
  __device__ void multiply(const RightFragments& right) {
#pragma unroll
    for (int i = 0; i < kMostRows / kDeep; ++i) {
      if (i * kDeep >= in.rows) break;
      float sums[2][4] = {};
      const uint32_t* at = memory.pixels + (i * kDeep + group) * kRowStride + quad;
#pragma unroll
      for (int k = 0; k < kEights / 2; ++k) {
        const uint32_t left[4] = {at[8 * k], at[8 * kRowStride + 8 * k], at[8 * k + 4],
                                  at[8 * kRowStride + 8 * k + 4]};
#pragma unroll
        for (int part = 2; part >= 0; --part) {
#pragma unroll
          for (int half = 0; half < 2; ++half) mma<bf16>(sums[half], left, right.v[k][half][part]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < 4; ++e) totals[i][half][e] += sums[half][e];
      }
    }
  }

  __device__ void store_totals(int slice) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = constants[half] + shuffle_xor(constants[half], 1);
      sum += shuffle_xor(sum, 2);
      if (quad == 0) memory.constants[warp][group + 8 * half] = sum;
    }
    __syncwarp();  // lanes have written what others read
    const int64_t every = static_cast<int64_t>(gridDim.y) / in.networks;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = 8 * half + 2 * quad;
      const float first = memory.constants[warp][unit], second = memory.constants[warp][unit + 1];
#pragma unroll
      for (int i = 0; i < kMostRows / kDeep; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = i * kDeep + group + 8 * e;
          if (row >= in.rows) continue;
          const int64_t at = ((slice * every + images) * in.rows + row) * in.networks + member;
          float* to = in.parts + at * in.hidden + unit0 + unit;
          const float2 pair{totals[i][half][2 * e] + first, totals[i][half][2 * e + 1] + second};
          if (in.hidden % 2 == 0) {
            if (unit0 + unit < in.hidden) *reinterpret_cast<float2*>(to) = pair;
          } else {
            if (unit0 + unit < in.hidden) to[0] = pair.x;
            if (unit0 + unit + 1 < in.hidden) to[1] = pair.y;
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastmlp
