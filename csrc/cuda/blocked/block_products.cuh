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
  // Of two tiles in turn: columns' scales, and shifts of what is centred; what is subtracted from
  // the columns that are loaded together.
  alignas(16) float2 columns[2][kTileColumns];
  float offsets[2][4];
  float constants[kWarps][kUnits];  // what is added to a unit's products of all rows
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
  // Small blocks share a multiprocessor: one loads while another multiplies. To load while it
  // multiplies itself, registers would not suffice.
  static constexpr bool kLoadsAhead = kWarps == 8;
  static constexpr int kAtOnce = kWarps / 4;  // steps of a sum; more would not fit into registers
  static constexpr int kPairLoads = (kMostRows / 2 * kLoads + kThreads - 1) / kThreads;
  static constexpr int kRowLoads = (kMostRows * kLoads + kThreads - 1) / kThreads;
  const BlockProducts& in;
  ProductsMemory<kWarps>& memory;
  const int lane, warp, group, quad;
  const int unit0;                             // the warp's first
  const int network, images, member;           // of all; its group, and which of it
  float factor_sums[2] = {};                   // over the rows, of the lane's units
  float w[kEights][4];                         // units group (+ 8), columns 2 quad (+ 1)
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
        images(network / static_cast<int>(in.networks)),
        member(network % static_cast<int>(in.networks)) {}

  __device__ void run() {
    const int slice = blockIdx.x / in.plan.unit_blocks, count = in.plan.tiles_of_slice;
    const int begin = slice * count, left = in.plan.tiles - begin,
              end = begin + (left < count ? left : count);
    ColumnFetch columns;
    load_columns(begin, columns);
    if (kLoadsAhead) load_pixels(begin);
    if (in.factors) load_factors();
    if (!kLoadsAhead) load_pixels(begin);
    load_weight(begin);
    store_columns(begin, columns);
    __syncthreads();  // some threads have written columns, which all read
    for (int tile = begin; tile < end; ++tile) {
      const bool goes_on = tile + 1 < end;
      if (goes_on) load_columns(tile + 1, columns = {});
      store_pixels(tile);
      if (goes_on) store_columns(tile + 1, columns);
      __syncthreads();  // all threads have written what all read
      if (kLoadsAhead && goes_on) load_pixels(tile + 1);
      if (in.factors) update(tile);
      RightFragments right;
      if (in.pixels) split_weight(tile, right);
      if (kLoadsAhead && goes_on) load_weight(tile + 1);
      if (in.pixels) multiply(right);
      if (!kLoadsAhead && goes_on) {
        load_pixels(tile + 1);
        load_weight(tile + 1);
      }
      __syncthreads();  // all threads have read what the next tile overwrites
    }
    if (in.pixels) store_totals(slice);
  }

 private:
  // ---- global memory ----

  __device__ bool has_unit(int half) const { return unit0 + group + 8 * half < in.hidden; }

  // What is not there is read where the last one is: nothing is made of it, and loads without
  // branches wait for memory together.
  static __device__ int clipped(int i, int count) { return i < count ? i : count - 1; }

  __device__ uint4 pixels_at(const uint8_t* pixels, int row, int column) const {
    const int64_t at = static_cast<int64_t>(images) * in.rows + clipped(row, in.rows);
    column = column < in.inputs ? column : in.inputs - kPixels;
    return *reinterpret_cast<const uint4*>(pixels + at * in.inputs + column);
  }

  // A column's numbers, x = scale pixel + shift, on their way to shared memory, with those of the
  // first of the columns that are loaded together; 0 behind the last one.
  struct ColumnFetch {
    float scale = 0, shift = 0, first_scale = 1, first_shift = 0;
  };
  __device__ void load_columns(int tile, ColumnFetch& next) const {
    const int column = tile * kTileColumns + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kTileColumns || column >= in.inputs) return;
    const int first = column / kPixels * kPixels;
    next = {in.scale[column], in.shift[column], in.scale[first], in.shift[first]};
  }
  // The centre is the pixel that comes closest to 0: little is left of the shift.
  __device__ void store_columns(int tile, const ColumnFetch& next) {
    if (threadIdx.x >= kTileColumns) return;
    const float zero = quick_quotient(-next.first_shift, next.first_scale);
    const auto centre = static_cast<float>(to_unsigned(fminf(fmaxf(zero, 0.0f), 255.0f)));
    memory.columns[tile % 2][threadIdx.x] = {next.scale, next.shift + centre * next.scale};
    if (threadIdx.x % kPixels == 0) {
      memory.offsets[tile % 2][threadIdx.x / kPixels] = kOffset + centre;
    }
  }
  // Those of the lane in the eight columns j.
  struct Columns {
    float scale[2], shift[2];
  };
  __device__ Columns columns_of(int tile, int j) const {
    const float2* at = memory.columns[tile % 2] + 8 * j + 2 * quad;
    const auto pairs = *reinterpret_cast<const Pack<float>*>(at);
    return {{pairs.v[0], pairs.v[2]}, {pairs.v[1], pairs.v[3]}};
  }

  // f(i, place, column) for what the thread loads of kPlaces rows or pairs of them; the last
  // load perhaps more than once, but only one thread stores it.
  template <int kPlaces, int kMine, typename F>
  static __device__ void for_loads(F f) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int load = clipped(i * kThreads + static_cast<int>(threadIdx.x), kPlaces * kLoads);
      f(i, load / kLoads, load % kLoads * kPixels);
    }
  }
  template <int kPlaces, int kMine, typename F>
  static __device__ void for_stores(F f) {
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
    if (in.factors) {
      for_stores<kMostRows / 2, kPairLoads>([&](int i, int pair, int column) {
        const float offset = memory.offsets[tile % 2][column / kPixels];
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
    for_stores<kMostRows, kRowLoads>([&](int i, int row, int column) {
      const float offset = memory.offsets[tile % 2][column / kPixels];
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

  // f(j, half, column) for the lane's pairs of neighbours in a tile of the weight.
  template <typename F>
  static __device__ void for_weights(int tile, F f) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) f(j, half, tile * kTileColumns + 8 * j + lane_pair());
    }
  }
  static __device__ int lane_pair() { return threadIdx.x % 4 * 2; }
  __device__ float2* weight_at(int half, int column) const {
    const int unit = clipped(unit0 + group + 8 * half, in.hidden);
    const int64_t row = static_cast<int64_t>(network) * in.hidden + unit;
    return reinterpret_cast<float2*>(in.weight + row * in.inputs + column);
  }
  __device__ void load_weight(int tile) {
    const float2* rows[2] = {weight_at(0, 0), weight_at(1, 0)};
    for_weights(tile, [&](int j, int half, int column) {
      const float2 pair = rows[half][(column < in.inputs ? column : in.inputs - 2) / 2];
      w[j][2 * half] = pair.x;
      w[j][2 * half + 1] = pair.y;
    });
  }
  __device__ void store_weight(int tile) const {
    float2* rows[2] = {weight_at(0, 0), weight_at(1, 0)};
    for_weights(tile, [&](int j, int half, int column) {
      const bool there = column < in.inputs && has_unit(half);
      if (there) rows[half][column / 2] = {w[j][2 * half], w[j][2 * half + 1]};
    });
  }

  __device__ void load_factors() {
    constexpr int kSteps = kMostRows / kDeep, kTogether = 4;  // whose loads wait for memory at once
    const int64_t stride = in.networks * in.hidden;
    const float* from[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      from[half] = in.factors +
                   (static_cast<int64_t>(images) * in.rows * in.networks + member) * in.hidden +
                   clipped(unit0 + group + 8 * half, in.hidden);
    }
#pragma unroll
    for (int k0 = 0; k0 < kSteps; k0 += kTogether) {
      float values[kTogether][4][2];  // of a fragment's registers
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = (k0 + k) * kDeep + 2 * quad + i / 2 * 8 + e;
            values[k][i][e] = from[i % 2][clipped(row, in.rows) * stride];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) keep_factors(k0 + k, values[k]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor_sums[half] += shuffle_xor(factor_sums[half], 1);
      factor_sums[half] += shuffle_xor(factor_sums[half], 2);
    }
  }

  __device__ void keep_factors(int k, float (&values)[4][2]) {
    Fragment fragments[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (k * kDeep + 2 * quad + i / 2 * 8 + e >= in.rows) values[i][e] = 0;
      }
      const Bf16Parts parts = split_in_three(values[i][0], values[i][1]);
#pragma unroll
      for (int part = 0; part < 3; ++part) fragments[part].v[i] = parts.v[part];
      factor_sums[i % 2] += values[i][0] + values[i][1];
    }
#pragma unroll
    for (int part = 0; part < 3; ++part) memory.factors[warp][k][part][lane] = fragments[part];
  }

  // ---- the update ----

  // w += to_w^T x of the images before, and back into global memory.
  __device__ void update(int tile) {
    float sums[kEights][4] = {};
#pragma unroll kAtOnce
    for (int k = 0; k < kMostRows / kDeep; ++k) {
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
      const Columns columns = columns_of(tile, j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        w[j][e] += columns.scale[e % 2] * sums[j][e] + columns.shift[e % 2] * factor_sums[e / 2];
      }
    }
    store_weight(tile);
  }

  // ---- the product ----

  // The tile of the weight, times the columns' scale, as fragments (16 columns, 8 units).
  struct RightFragments {
    uint32_t v[kEights / 2][2][3][2];
  };
  __device__ void split_weight(int tile, RightFragments& right) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const Columns columns = columns_of(tile, j);
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

  // Tensor cores cut off the last bits of their sums, so these run over a tile only. All rows are
  // multiplied, whether there or not: their sums need not wait for each other.
  __device__ void multiply(const RightFragments& right) {
#pragma unroll
    for (int i = 0; i < kMostRows / kDeep; ++i) {
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
    const int64_t first_row = (slice * in.groups + images) * in.rows;
    const int64_t stride = in.networks * in.hidden;
    float* rows = in.parts + (first_row * in.networks + member) * in.hidden + group * stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = 8 * half + 2 * quad, left = in.hidden - unit0 - unit;
      const float first = memory.constants[warp][unit], second = memory.constants[warp][unit + 1];
      const bool whole = in.hidden % 2 == 0 && left > 0;
#pragma unroll
      for (int i = 0; i < kMostRows / kDeep; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = i * kDeep + 8 * e;
          const bool there = row + group < in.rows;
          float* to = rows + row * stride + unit0 + unit;
          const float2 pair{totals[i][half][2 * e] + first, totals[i][half][2 * e + 1] + second};
          if (there && whole) *reinterpret_cast<float2*>(to) = pair;
          if (there && !whole && left > 0) to[0] = pair.x;
          if (there && !whole && left > 1) to[1] = pair.y;
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastmlp
