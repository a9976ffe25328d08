// The Gram matrices of blocked look-ahead SGD (docs/blocked-sgd.md) on CUDA, of images in bytes.
#include "cuda/tensor_cores.cuh"

namespace fastmlp {
namespace {

constexpr int kGramTile = 64;      // rows and columns of a block of threads
constexpr int kGramThreads = 256;  // 8 warps, with 32 rows by 16 columns of the tile each
constexpr int kGramDepth = 128;    // pixels that a tile of images has at once
constexpr int kGramStride = 36;    // words of an image's pixels, spread over the banks
constexpr int kGramLoads = kGramTile * kGramDepth / 16 / kGramThreads;

// Pixels of 64 images on their way to shared memory.
struct GramFetch {
  uint4 pixels[kGramLoads];

  // f(i, image, pixel) for what the thread loads, 16 pixels at a time.
  template <typename F>
  static __device__ void for_each(F f) {
#pragma unroll
    for (int i = 0; i < kGramLoads; ++i) {
      const int load = i * kGramThreads + static_cast<int>(threadIdx.x);
      f(i, load / (kGramDepth / 16), load % (kGramDepth / 16) * 16);
    }
  }
  // The next ones of images row0 .. of `rows`, from pixel `first` on, up to pixel `end`.
  __device__ void load(const uint8_t* images, int row0, int rows, int inputs, int first, int end) {
    for_each([&](int i, int image, int pixel) {
      const bool there = row0 + image < rows && first + pixel < end;
      const uint8_t* at = images + static_cast<int64_t>(row0 + image) * inputs + first + pixel;
      pixels[i] = there ? *reinterpret_cast<const uint4*>(at) : uint4{0, 0, 0, 0};
    });
  }
  __device__ void store(uint32_t* tile) const {
    for_each([&](int i, int image, int pixel) {
      *reinterpret_cast<uint4*>(tile + image * kGramStride + pixel / 4) = pixels[i];
    });
  }
};

// A warp's 32 x 16 results: sums of products, and of the rows and columns that they are of.
struct GramSums {
  int products[2][2][4] = {}, rows[2][4] = {}, columns[2][4] = {};

  // f(i, j, e) for the lane's results.
  template <typename F>
  static __device__ void for_each(F f) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) f(i, j, e);
      }
    }
  }

  __device__ void add(const uint32_t* left_tile, const uint32_t* right_tile) {
    constexpr uint32_t kOnes = 0x01010101u;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const uint32_t* left_at = left_tile + (warp / 4 * 32 + lane / 4) * kGramStride + lane % 4;
    const uint32_t* right_at = right_tile + (warp % 4 * 16 + lane / 4) * kGramStride + lane % 4;
#pragma unroll
    for (int k = 0; k < kGramDepth / 4; k += 8) {  // words
      uint32_t right[2][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        right[j][0] = right_at[8 * j * kGramStride + k];
        right[j][1] = right_at[8 * j * kGramStride + k + 4];
        mma_bytes(columns[j], {kOnes, kOnes, kOnes, kOnes}, right[j]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t* at = left_at + 16 * i * kGramStride + k;
        const uint32_t left[4] = {at[0], at[8 * kGramStride], at[4], at[8 * kGramStride + 4]};
        mma_bytes(rows[i], left, {kOnes, kOnes});
#pragma unroll
        for (int j = 0; j < 2; ++j) mma_bytes(products[i][j], left, right[j]);
      }
    }
  }
};

__device__ void multiply_images(const BlockGram& in) {
  struct Tiles {
    alignas(16) uint32_t left[kGramTile * kGramStride], right[kGramTile * kGramStride];
  };
  FASTMLP_SHARED(Tiles, tiles);
  const int across = (in.rows + kGramTile - 1) / kGramTile;
  const int tile = blockIdx.x % (across * across);
  const int row0 = tile / across * kGramTile, column0 = tile % across * kGramTile;
  const int64_t one = blockIdx.y;  // of all blocks' groups
  const bool crosses = static_cast<int>(blockIdx.x) >= across * across;
  if (crosses && one < in.groups) return;  // there is no block before
  const int64_t size = static_cast<int64_t>(in.rows) * in.inputs;
  const uint8_t *left = in.pixels + one * size, *right = crosses ? left - in.groups * size : left;

  double results[2][2][4] = {};
  GramFetch next_left, next_right;
  const int plane = in.inputs / in.planes;
  const auto load = [&](int first, int end) {
    next_left.load(left, row0, in.rows, in.inputs, first, end);
    next_right.load(right, column0, in.rows, in.inputs, first, end);
  };
  load(0, plane);
  for (int p = 0; p < in.planes; ++p) {
    const int begin = p * plane, end = begin + plane;
    GramSums sums;
    for (int first = begin; first < end; first += kGramDepth) {
      next_left.store(tiles.left);
      next_right.store(tiles.right);
      __syncthreads();  // all threads have written their pixels, which all read
      if (first + kGramDepth < end) {
        load(first + kGramDepth, end);
      } else if (p + 1 < in.planes) {
        load(end, end + plane);
      }
      sums.add(tiles.left, tiles.right);
      __syncthreads();  // all threads have read the pixels, which the next ones overwrite
    }
    const double scale = in.scale[begin], shift = in.shift[begin];
    GramSums::for_each([&](int i, int j, int e) {
      const int pixels = sums.rows[i][e / 2 * 2] + sums.columns[j][e % 2];
      results[i][j][e] +=
          scale * (scale * sums.products[i][j][e] + shift * pixels) + shift * shift * plane;
    });
  }

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* to = (crosses ? in.cross : in.gram) + one * in.rows * in.rows;
  GramSums::for_each([&](int i, int j, int e) {
    const int row = row0 + warp / 4 * 32 + 16 * i + lane / 4 + e / 2 * 8;
    const int column = column0 + warp % 4 * 16 + 8 * j + lane % 4 * 2 + e % 2;
    if (row >= in.rows || column >= in.rows) return;
    to[row * in.rows + column] = static_cast<float>(results[i][j][e] + (crosses ? 0 : 1));
  });
}

// Computes  gram = x x^T + 1 of each block's images, and cross = x x'^T with those of the block
//           before; x(u) = scale u + shift, which are the same throughout a plane of pixels.
// Shapes    BlockGram's. Of the first block there is no cross.
// Grid      x: tiles of 64 x 64 results of gram, then of cross; y: blocks and their groups.
// Memory    shared memory: 128 pixels of 64 images, twice; the next ones wait in registers.
// Precision sums over a plane in integers, exact; what is made of them in double, rounded once.
// Needs     sm_80; planes of a multiple of 16 pixels, up to 33,025 of them.
// Same as   blocked_gram_ref.
__global__ void __launch_bounds__(kGramThreads) block_gram_kernel(const BlockGram in) {
  if constexpr (kHasSm80) {
    multiply_images(in);
  } else {
    __trap();
  }
}

}  // namespace

cudaError_t launch_block_gram(const BlockGram& in, cudaStream_t stream) {
  const int64_t all = in.blocks * in.groups, across = ceil_div(in.rows, kGramTile);
  if (all == 0 || in.rows == 0) return cudaSuccess;
  if (all > 65535) return cudaErrorInvalidValue;
  const int64_t tiles = across * across * (in.cross ? 2 : 1);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(all));
  return launch_kernel(block_gram_kernel, grid, kGramThreads, stream, in);
}

}  // namespace fastmlp
