// The matrix products of linear and linear_backward on CUDA.
#include "cuda/linear_engines.cuh"
#include "cuda/linear_result.cuh"

namespace fastmlp {
namespace {

constexpr int kReduceThreads = 256;

// Results (row, col), (row, col + 1) ..: finished, or as part `split` of the sums.
template <typename T, int kWidth>
__device__ void store_results(const LinearProduct& product, int64_t row, int64_t col, int64_t split,
                              const float (&sums)[kWidth]) {
  if (row >= product.m) return;
  if (product.splits > 1) {
    Wide<float, kWidth> wide;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) wide.v[e] = sums[e];
    store_wide(product.workspace, split * product.m + row, col, product.n, wide);
    return;
  }
  Wide<T, kWidth> wide;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    wide.v[e] = col + e < product.n ? finished<T>(product, sums[e], col + e) : T{};
  }
  store_wide(static_cast<T*>(product.c), row, col, product.n, wide);
}

// The sum of one row of a tile.
template <int kDepth, typename Tile>
__device__ float tile_row_sum(Tile& tile, int row) {
  float sum = 0;
#pragma unroll 8
  for (int k = 0; k < kDepth; ++k) sum += widen(tile.at(row, k));
  return sum;
}

template <typename Engine>
struct LinearTiles {
  typename Engine::TileA a;
  typename Engine::TileB b;
};

// The block's tile of c, and its rows' sums.
template <typename Engine, int kTileM>
__device__ void multiply_tiles(const LinearProduct& product) {
  using T = typename Engine::Element;
  constexpr int kDepth = Engine::kDepth;
  FASTMLP_SHARED(LinearTiles<Engine>, tiles);
  const int64_t tiles_n = product.n > 0 ? ceil_div(product.n, kTileN) : 1;
  const int64_t row0 = blockIdx.x / tiles_n * kTileM, col0 = blockIdx.x % tiles_n * kTileN;
  const int64_t split = blockIdx.y, k_begin = split * product.chunk;
  const int64_t k_end = k_begin + product.chunk < product.k ? k_begin + product.chunk : product.k;
  const Source<T> a(product.a, product.m, k_end), b(product.b, product.n, k_end);
  const bool sums_rows = product.row_sums && col0 == 0 && threadIdx.x < kTileM;

  Engine engine;
  float row_sum = 0;
  Fetch<T, kTileM, kDepth> next_a;
  Fetch<T, kTileN, kDepth> next_b;
  next_a.load(a, row0, k_begin);
  next_b.load(b, col0, k_begin);
  for (int64_t k = k_begin; k < k_end; k += kDepth) {
    next_a.store(tiles.a, a.k_contiguous);
    next_b.store(tiles.b, b.k_contiguous);
    bool large = false;  // of any thread
    if constexpr (Engine::kAsksForLarge) {
      large = __syncthreads_or(next_a.has_large() || next_b.has_large());  // and as below
    } else {
      __syncthreads();  // all threads have written their packs of both tiles, which all read
    }
    if (k + kDepth < k_end) {
      next_a.load(a, row0, k + kDepth);
      next_b.load(b, col0, k + kDepth);
    }
    engine.accumulate(tiles.a, tiles.b, large);
    if (sums_rows) row_sum += tile_row_sum<kDepth>(tiles.a, threadIdx.x);
    __syncthreads();  // all threads have read the tiles, which the next step overwrites
  }

  engine.for_each([&](int row, int col, const float (&sums)[Engine::kWidth]) {
    store_results<T>(product, row0 + row, col0 + col, split, sums);
  });
  const int64_t row = row0 + threadIdx.x;
  if (!sums_rows || row >= product.m) return;
  static_cast<T*>(product.row_sums)[row] = narrow<T>(row_sum);
}

// Computes  c = act(a b^T + bias) and the sums of a's rows; elements of a are 0 where its relu_y is
//           <= 0. linear: a = x, b = w. dx: a = g, b = w^T. dw and db: a = g^T, b = x^T, where g is
//           dy through the activation's derivative.
// Shapes    c (m, n), a (m, k), b (n, k), bias (n), row_sums (m); workspace (splits, m, n): the
//           sums of the parts where there is more than one.
// Grid      x: tiles of kTileM rows by 64 columns, columns first; y: parts of k. 128 threads.
// Memory    shared memory: both tiles, 10 to 18 KB; the next tiles wait in registers.
// Precision the engine's; sums in float, in one order for one plan: deterministic.
// Needs     Engine::kThere; any strides and alignment.
// Same as   linear_ref, linear_backward_ref.
template <typename Engine, int kTileM>
__global__ void __launch_bounds__(kLinearThreads, 3) linear_kernel(LinearProduct product) {
  if constexpr (Engine::kThere) {
    multiply_tiles<Engine, kTileM>(product);
  } else {
    __trap();
  }
}

// Computes  c = act(sum over splits of the parts + bias).
// Shapes    as linear_kernel's.
// Grid      a thread for each element of c.
// Precision float, parts in ascending order: deterministic.
// Same as   linear_ref.
template <typename T>
__global__ void __launch_bounds__(kReduceThreads) linear_reduce_kernel(LinearProduct product) {
  const int64_t size = product.m * product.n;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 8  // that many loads in flight
  for (int64_t split = 0; split < product.splits; ++split) {
    sum += product.workspace[split * size + i];
  }
  static_cast<T*>(product.c)[i] = finished<T>(product, sum, i % product.n);
}

template <typename Engine, int kTileM>
cudaError_t launch_tiles(const LinearProduct& product, cudaStream_t stream) {
  const int64_t tiles_n = product.n > 0 ? ceil_div(product.n, kTileN) : 1;
  const int64_t tiles = ceil_div(product.m, kTileM) * tiles_n;
  if (tiles > kMaxGridX || product.splits > 65535) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(product.splits));
  return launch_kernel(linear_kernel<Engine, kTileM>, grid, kLinearThreads, stream, product);
}

// The engine for T with the plan's tile; then the sum over parts.
template <typename T, template <typename, int> class Engine>
cudaError_t launch_typed(const LinearProduct& product, cudaStream_t stream) {
  const cudaError_t error = product.tile_m == 16 ? launch_tiles<Engine<T, 16>, 16>(product, stream)
                            : product.tile_m == 32
                                ? launch_tiles<Engine<T, 32>, 32>(product, stream)
                                : launch_tiles<Engine<T, 64>, 64>(product, stream);
  if (error != cudaSuccess || product.splits == 1) return error;
  const int64_t blocks = ceil_div(product.m * product.n, kReduceThreads);
  if (blocks > kMaxGridX) return cudaErrorInvalidValue;
  return launch_kernel(linear_reduce_kernel<T>, dim3(static_cast<unsigned>(blocks)), kReduceThreads,
                       stream, product);
}

template <typename, int kTileM>
using ThreeTf32 = Tf32Engine<kTileM, true>;
template <typename, int kTileM>
using Tf32 = Tf32Engine<kTileM, false>;

cudaError_t launch_floats(const LinearProduct& product, cudaStream_t stream) {
  switch (product.precision) {
    case MatmulPrecision::kFma:
      return launch_typed<float, FmaEngine>(product, stream);
    case MatmulPrecision::kThreeTf32:
      return launch_typed<float, ThreeTf32>(product, stream);
    case MatmulPrecision::kTf32:
      return launch_typed<float, Tf32>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_linear(const LinearProduct& product, Type type, cudaStream_t stream) {
  if (product.m == 0) return cudaSuccess;
  if (product.splits > 1 && (product.row_sums || product.n == 0)) return cudaErrorInvalidValue;
  switch (type) {
    case Type::kFloat:
      return launch_floats(product, stream);
    case Type::kBFloat16:
      return product.bfloat16_by_fma ? launch_typed<bf16, FmaEngine>(product, stream)
                                     : launch_typed<bf16, MmaEngine>(product, stream);
    case Type::kHalf:
      return launch_typed<f16, MmaEngine>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t describe_device(Gpu* gpu) {
  int device = 0, major = 0, minor = 0;
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(value, attribute, device);
  };
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = ask(&gpu->processors, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess) error = ask(&major, cudaDevAttrComputeCapabilityMajor);
  if (error == cudaSuccess) error = ask(&minor, cudaDevAttrComputeCapabilityMinor);
  if (error == cudaSuccess)
    error = ask(&gpu->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  gpu->capability = 10 * major + minor;
  return error;
}

}  // namespace fastmlp
