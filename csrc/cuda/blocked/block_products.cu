// The products between the chains of blocked look-ahead SGD (docs/blocked-sgd.md) on CUDA.
#include "cuda/blocked/block_products.cuh"

namespace fastmlp {
namespace {

constexpr int kSumThreads = 256;
constexpr int kSumTile = 16;  // rows and units of a thread block
constexpr int kQuarters = 4;  // threads that share a sum
constexpr int kUnitsAtOnce = 4;
constexpr int kFactorStride = 24;  // of rows in shared memory, spread over the banks
constexpr int kInFlight = 8;       // loads of a thread

// Computes  weight += factors^T x(before), where there are factors, and then the parts of
//           x(pixels) weight^T, where there are pixels; x(u) = scale u + shift. Images are shared
//           by the networks of a group.
// Shapes    BlockProducts'.
// Grid      x: slices of the weight's columns, and in each blocks of kWarps * 16 hidden units; y:
//           networks.
// Memory    shared memory: factors and pixels as tensor cores take them, 123 KB or 77; of the
// weight
//           and the images the next tile waits in registers.
// Precision a pixel less a whole number is a bfloat16, a float32 the sum of three, and their
//           products are exact. Sums of tensor cores run over one tile; the rest in float32, in one
//           order for one plan: deterministic.
// Needs     sm_80, plan_block_products' plan: up to 128 rows, rows of images that begin at
// multiples
//           of 16 bytes.
// Same as   blocked_products_ref.
template <int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, 8 / kWarps)
    block_products_kernel(const BlockProducts in) {
  if constexpr (kHasSm80) {
    FASTMLP_SHARED_BYTES(bytes);
    ProductsBlock<kWarps>(in, *reinterpret_cast<ProductsMemory<kWarps>*>(bytes)).run();
  } else {
    __trap();
  }
}

// Units from the first of `count` on, at once where they are `whole` packs.
__device__ inline Pack<float> load_units(const float* from, int count, bool whole) {
  if (whole) return *reinterpret_cast<const Pack<float>*>(from);
  Pack<float> pack{};
#pragma unroll
  for (int e = 0; e < kUnitsAtOnce; ++e) {
    if (e < count) pack.v[e] = from[e];
  }
  return pack;
}

// Computes  p = the sum over parts, in ascending order by fours, + cross factors, where cross is.
// Shapes    ProductSum's.
// Grid      x: tiles of 16 rows and 16 units; y: networks. Four threads share a sum.
// Memory    shared memory: the tile's rows of cross and columns of factors.
// Precision float32, in one order: deterministic.
// Same as   blocked_product_sum_ref.
__global__ void __launch_bounds__(kSumThreads) product_sum_kernel(const ProductSum in) {
  struct Tiles {
    float cross[kSumTile][kMostRows + 1];
    alignas(16) float factors[kMostRows][kFactorStride];
  };
  FASTMLP_SHARED(Tiles, tiles);
  const int unit_tiles = (in.hidden + kSumTile - 1) / kSumTile;
  const int row0 = blockIdx.x / unit_tiles * kSumTile, unit0 = blockIdx.x % unit_tiles * kSumTile;
  const int64_t network = blockIdx.y, images = network / in.networks,
                member = network % in.networks;
  const int64_t size = static_cast<int64_t>(gridDim.y) * in.rows * in.hidden;
  const auto at = [&](int row, int unit) {
    return ((images * in.rows + row) * in.networks + member) * in.hidden + unit;
  };
  // What stands in shared memory, on its way: rows of cross by columns of factors.
  constexpr int kAtOnce = kSumThreads / kSumTile, kMine = kMostRows / kAtOnce;
  const int line = threadIdx.x / kSumTile, place = threadIdx.x % kSumTile;
  float cross[kMine], factors[kMine];
  if (in.cross) {
    const float* from = in.cross + (images * in.rows + row0 + line) * in.rows;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int k = place + i * kAtOnce;
      cross[i] = row0 + line < in.rows && k < in.rows ? from[k] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int k = line + i * kAtOnce;
      const bool there = k < in.rows && unit0 + place < in.hidden;
      factors[i] = there ? in.factors[at(k, unit0 + place)] : 0.0f;
    }
  }

  const int quarter = threadIdx.x % kQuarters;
  const int row = line, unit = place / kQuarters * kUnitsAtOnce;
  float sums[kUnitsAtOnce] = {};
  const float* from = in.parts + at(row0 + row, unit0 + unit);
  const bool whole = in.hidden % kUnitsAtOnce == 0;
  const int slices = row0 + row < in.rows && unit0 + unit < in.hidden ? in.slices : 0;
  for (int first = quarter; first < slices; first += kQuarters * kInFlight) {
    Pack<float> packs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int slice = first + i * kQuarters;
      packs[i] = slice < slices ? load_units(from + slice * size, in.hidden - unit0 - unit, whole)
                                : Pack<float>{};
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
      for (int e = 0; e < kUnitsAtOnce; ++e) sums[e] += packs[i].v[e];
    }
  }
  if (in.cross) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      tiles.cross[line][place + i * kAtOnce] = cross[i];
      tiles.factors[line + i * kAtOnce][place] = factors[i];
    }
    __syncthreads();  // all threads have written what all read
    float products[kUnitsAtOnce] = {};
#pragma unroll 8
    for (int k = quarter; k < kMostRows; k += kQuarters) {
      const Pack<float> mine = *reinterpret_cast<const Pack<float>*>(&tiles.factors[k][unit]);
#pragma unroll
      for (int e = 0; e < kUnitsAtOnce; ++e) products[e] += tiles.cross[row][k] * mine.v[e];
    }
#pragma unroll
    for (int e = 0; e < kUnitsAtOnce; ++e) sums[e] += products[e];
  }
  float mine = 0;
#pragma unroll
  for (int e = 0; e < kUnitsAtOnce; ++e) {
    float sum = sums[e] + shuffle_xor(sums[e], 1);
    sum += shuffle_xor(sum, 2);
    if (e == quarter) mine = sum;
  }
  const int my_unit = unit0 + unit + quarter;
  if (row0 + row < in.rows && my_unit < in.hidden) in.p[at(row0 + row, my_unit)] = mine;
}

template <int kWarps>
cudaError_t launch_warps(const BlockProducts& in, cudaStream_t stream) {
  static_assert(sizeof(ProductsMemory<kWarps>) == kProductsBytes<kWarps>, "as it is planned");
  const dim3 grid(static_cast<unsigned>(in.plan.slices * in.plan.unit_blocks),
                  static_cast<unsigned>(in.groups * in.networks));
  return launch_with_shared(block_products_kernel<kWarps>, grid, kWarps * kWarp,
                            sizeof(ProductsMemory<kWarps>), stream, in);
}

}  // namespace

cudaError_t launch_block_products(const BlockProducts& in, cudaStream_t stream) {
  const int64_t networks = in.groups * in.networks;
  if (networks == 0) return cudaSuccess;
  if (in.plan.unsupported_reason || networks > 65535) return cudaErrorInvalidValue;
  return in.plan.warps == 8 ? launch_warps<8>(in, stream) : launch_warps<4>(in, stream);
}

cudaError_t launch_product_sum(const ProductSum& in, cudaStream_t stream) {
  const int64_t networks = in.groups * in.networks;
  if (networks == 0) return cudaSuccess;
  if (in.rows > kMostRows || networks > 65535) return cudaErrorInvalidValue;
  const int64_t tiles = ceil_div(in.rows, kSumTile) * ceil_div(in.hidden, kSumTile);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(networks));
  return launch_kernel(product_sum_kernel, grid, kSumThreads, stream, in);
}

}  // namespace fastmlp
