// Tiles of a product's operands: from global memory into registers, from there into shared memory.
#pragma once
#include "cuda/kernel.cuh"

namespace fastmlp {

constexpr int kLinearThreads = 128;
constexpr int kTileN = 64;  // columns of a block's tile

// A tile in shared memory: lines of consecutive elements. kLinesAreRows: a line holds a row's k;
// otherwise a k's rows. The padding keeps lines 16-byte aligned and spreads them over the banks.
template <typename T, int kRows, int kDepth, bool kRowLines>
struct alignas(16) Tile {
  static constexpr bool kLinesAreRows = kRowLines;
  static constexpr int kPad = Pack<T>::kCount;
  T values[kLinesAreRows ? kRows : kDepth][(kLinesAreRows ? kDepth : kRows) + kPad];

  __device__ T& at(int row, int k) { return kLinesAreRows ? values[row][k] : values[k][row]; }
};

// A tile of rows of 32 floats for tensor cores. Each row's packs stand in an order of its own, so
// that a warp reads a fragment, 4 neighbours of each of 8 rows, from all 32 banks, and stores packs
// along k without conflicts and packs along the rows with two threads to a bank.
template <int kRows>
struct alignas(16) SwizzledTile {
  static constexpr int kDepth = 32;
  static constexpr bool kLinesAreRows = true;
  float values[kRows * kDepth];

  __device__ float& at(int row, int k) {
    return values[(row * kDepth + (row + row / 8) % 8 * 4) ^ k];  // so k may come as a ^ b
  }
};

// Puts elements from (row, k) on, along k or along the rows, into a tile.
template <typename Tile, typename T>
__device__ void put_pack(Tile& tile, int row, int k, bool along_k, const Pack<T>& pack) {
  if (along_k == Tile::kLinesAreRows) {
    *reinterpret_cast<Pack<T>*>(&tile.at(row, k)) = pack;
    return;
  }
#pragma unroll
  for (int e = 0; e < Pack<T>::kCount; ++e) {
    tile.at(Tile::kLinesAreRows ? row + e : row, Tile::kLinesAreRows ? k : k + e) = pack.v[e];
  }
}

// Elements [first, first + a pack) of a line; those from `limit` on are 0.
template <typename T>
__device__ Pack<T> load_pack(const T* line, int64_t first, int64_t limit, bool vector) {
  if (vector && first + Pack<T>::kCount <= limit) {
    return *reinterpret_cast<const Pack<T>*>(line + first);
  }
  Pack<T> pack;
#pragma unroll
  for (int e = 0; e < Pack<T>::kCount; ++e) pack.v[e] = first + e < limit ? line[first + e] : T{};
  return pack;
}

// An operand as a block reads it.
template <typename T>
struct Source {
  const T* data;
  const T* relu_y;
  int64_t stride, relu_stride;
  int64_t rows, k_end;
  bool k_contiguous, vector, relu_vector;

  __device__ Source(const Operand& operand, int64_t rows_, int64_t k_end_)
      : data(static_cast<const T*>(operand.data)),
        relu_y(static_cast<const T*>(operand.relu_y)),
        stride(operand.stride),
        relu_stride(operand.relu_stride),
        rows(rows_),
        k_end(k_end_),
        k_contiguous(operand.k_contiguous),
        vector(is_vector(operand.data, operand.stride)),
        relu_vector(is_vector(operand.relu_y, operand.relu_stride)) {}

  static __device__ bool is_vector(const void* pointer, int64_t step) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && step * sizeof(T) % 16 == 0;
  }

  // The pack of a line (a row, or a k) from its element `first` on; 0 outside the matrix.
  __device__ Pack<T> load(int64_t line, int64_t first) const {
    const int64_t limit = k_contiguous ? k_end : rows;
    if (line >= (k_contiguous ? rows : k_end)) return Pack<T>{};
    Pack<T> pack = load_pack(data + line * stride, first, limit, vector);
    if (relu_y) {
      const Pack<T> y = load_pack(relu_y + line * relu_stride, first, limit, relu_vector);
#pragma unroll
      for (int e = 0; e < Pack<T>::kCount; ++e) {
        pack.v[e] = widen(y.v[e]) <= 0 ? T{} : pack.v[e];
      }
    }
    return pack;
  }
};

// Whether |x| is 2^60 or more, inf or nan: products of smaller ones are below 2^120.
__device__ inline bool is_large(float x) { return (bits_of_float(x) & 0x7fffffffu) >= 0x5d800000u; }

// A thread's share of a tile on its way to shared memory. Starting the next tile's loads before the
// present one is used hides their latency.
template <typename T, int kRows, int kDepth>
struct Fetch {
  static constexpr int kCount = Pack<T>::kCount;
  static constexpr int kPacks = kRows * kDepth / kCount;
  static constexpr int kMine = (kPacks + kLinearThreads - 1) / kLinearThreads;
  Pack<T> packs[kMine];

  // f(i, line, first) for the thread's packs; neighbouring threads take neighbours in a line.
  template <typename F>
  static __device__ void for_each(bool along_k, F f) {
    const int per_line = (along_k ? kDepth : kRows) / kCount;
    const int line = threadIdx.x / per_line, first = threadIdx.x % per_line * kCount;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (kPacks % kLinearThreads != 0 && i * kLinearThreads + threadIdx.x >= kPacks) continue;
      f(i, line + i * (kLinearThreads / per_line), first);
    }
  }

  __device__ void load(const Source<T>& source, int64_t row0, int64_t k0) {
    const bool along_k = source.k_contiguous;
    const int64_t line0 = along_k ? row0 : k0, first0 = along_k ? k0 : row0;
    for_each(along_k, [&](int i, int line, int first) {
      packs[i] = source.load(line0 + line, first0 + first);
    });
  }

  // Whether a number of the thread's packs is_large.
  __device__ bool has_large() const {
    bool large = false;
    for_each(true, [&](int i, int, int) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) large |= is_large(packs[i].v[e]);
    });
    return large;
  }

  template <typename Tile>
  __device__ void store(Tile& tile, bool along_k) const {
    for_each(along_k, [&](int i, int line, int first) {
      put_pack(tile, along_k ? line : first, along_k ? first : line, along_k, packs[i]);
    });
  }
};

}  // namespace fastmlp
