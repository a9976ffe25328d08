// linear and linear_backward on CUDA for small batches. What takes time there is how often a load
// is waited for: operands go from global memory straight into registers, four neighbours at a time
// and as many of these at once as there is room for, and no thread waits for another before its
// sums are made.
#include "cuda/linear_result.cuh"

namespace fastmlp {
namespace {

constexpr int kRows = 8;  // of a batch whose sums a thread has
constexpr int kOuts = 4;  // outputs whose sums a thread has in linear
constexpr int kGradientThreads = 256, kGradientWarps = kGradientThreads / kWarp;
constexpr int kLanesOfLine = 4;    // that read neighbours of a row of the weight, for dx
constexpr int kRowsOfWarp = 8;     // of a product whose left factor is staged
constexpr int kStagedDepth = 32;   // of a sum, that a block has in shared memory at a time
constexpr int kDepthOfASum = 256;  // whose sums are kept apart: bounds rounding errors
constexpr int kMostRowsOfBlock = kGradientWarps * kRowsOfWarp;

// Blocks of linear_backward that a multiprocessor has at the same time, at 128 registers a thread:
// where compiled for 10.0 and later some kernels need a few more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksAtOnce = 1;
#else
constexpr int kBlocksAtOnce = 2;
#endif

constexpr int kFour = 4;
template <typename T>
using Four = Wide<T, kFour>;

// A matrix that is_in_reach. kVector: fours are inside as a whole or not at all, and aligned.
template <typename T, bool kVector>
struct Lines {
  const T* data;
  const T* relu_y;
  int stride, relu_stride, rows, columns;

  __device__ Lines(const Operand& operand, int64_t rows_, int64_t columns_)
      : data(static_cast<const T*>(operand.data)),
        relu_y(static_cast<const T*>(operand.relu_y)),
        stride(static_cast<int>(operand.stride)),
        relu_stride(static_cast<int>(operand.relu_stride)),
        rows(static_cast<int>(rows_)),
        columns(static_cast<int>(columns_)) {}

  // Elements [first, first + 4) of a row; 0 outside the matrix.
  __device__ Four<T> load(int row, int first) const { return load_from(data, stride, row, first); }

  // The same where a ReLU let through.
  __device__ Four<T> load_through(int row, int first) const {
    Four<T> four = load(row, first);
    if (!relu_y) return four;
    const Four<T> y = load_from(relu_y, relu_stride, row, first);
#pragma unroll
    for (int e = 0; e < kFour; ++e) {
      if (widen(y.v[e]) <= 0) four.v[e] = T{};
    }
    return four;
  }

  __device__ Four<T> load_from(const T* from, int step, int row, int first) const {
    Four<T> four{};
    const T* at = from + (row * step + first);
    if constexpr (kVector) {
      if (row < rows && first < columns) four = *reinterpret_cast<const Four<T>*>(at);
    } else if (row < rows) {
#pragma unroll
      for (int e = 0; e < kFour; ++e) {
        if (first + e < columns) four.v[e] = at[e];
      }
    }
    return four;
  }
};

// Adds up v over the lanes whose numbers differ in the bits from kLeast to 16, and leaves each of
// them an equal share of the sums, in the order of the lanes: the first kCount / (32 / kLeast) of
// v.
template <int kLeast, int kCount>
__device__ void share_sums(float (&v)[kCount]) {
  int count = kCount;
#pragma unroll
  for (int distance = kWarp / 2; distance >= kLeast; distance /= 2) {
    count /= 2;
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i >= count) break;
      const float mine = upper ? v[i + count] : v[i], other = upper ? v[i] : v[i + count];
      v[i] = mine + shuffle_xor(other, distance);
    }
  }
}

struct PartsOfSums {
  float v[kMostDirectWarps][kWarp];
};

// Computes  c = act(a b^T + bias). linear: a = x, b = w.
// Shapes    c (m, n), a (m, k), b (n, k), bias (n).
// Grid      x: columns, y: rows, in tiles of 8 rows by four columns, 2^out_bits tiles to a block;
//           k_warps warps share a tile. A lane has the sums over its own fours of k.
// Memory    shared memory: 2 KB, for the sums of warps that share a tile.
// Precision FMA in float, in one order for one plan: deterministic.
// Needs     a and b contiguous along k; kVector: aligned to four elements, as are their
//           rows, and k divisible by 4.
// Same as   linear_ref.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kMostDirectWarps* kWarp)
    linear_direct_kernel(LinearProduct product, DirectLinearPlan plan) {
  FASTMLP_SHARED(PartsOfSums, parts);
  const Lines<T, kVector> a(product.a, product.m, product.k), b(product.b, product.n, product.k);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int part = warp >> plan.out_bits, out_warps = 1 << plan.out_bits;
  const int row0 = blockIdx.y * kRows;
  const int col0 = ((blockIdx.x << plan.out_bits) + warp % out_warps) * kOuts;

  float sums[kRows * kOuts] = {};
  const int step = plan.k_warps * kWarp * kFour;
  Four<T> left[kRows], right[kOuts];
  const auto load = [&](int k) {
#pragma unroll
    for (int j = 0; j < kOuts; ++j) right[j] = b.load(col0 + j, k);
#pragma unroll
    for (int i = 0; i < kRows; ++i) left[i] = a.load(row0 + i, k);
  };
  // Loads end a turn of the loop: in the same one as what needs them, the compiler puts some off
  // until others have come.
  int k = (part * kWarp + lane) * kFour;
  load(k);
#pragma unroll 1
  for (int left_over = a.columns - part * kWarp * kFour;; k += step, load(k)) {
#pragma unroll
    for (int e = 0; e < kFour; ++e) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kOuts; ++j) {
          sums[i * kOuts + j] += widen(left[i].v[e]) * widen(right[j].v[e]);
        }
      }
    }
    left_over -= step;
    if (left_over <= 0) break;
  }

  share_sums<1>(sums);
  float sum = sums[0];
  if (plan.k_warps > 1) {
    parts.v[warp][lane] = sum;
    __syncthreads();  // every warp has written its sums, which the first of those that share reads
    if (part != 0) return;
#pragma unroll 4
    for (int other = 1; other < plan.k_warps; ++other) {
      sum += parts.v[warp + (other << plan.out_bits)][lane];
    }
  }
  const int row = row0 + lane / kOuts, col = col0 + lane % kOuts;
  if (row >= a.rows || col >= b.rows) return;
  static_cast<T*>(product.c)[static_cast<int64_t>(row) * b.rows + col] =
      finished<T>(product, sum, col);
}

// What a block has in shared memory: that of make_dx, the sums of its warps; that of make_product,
// the left factor, padded so that a warp writes it without bank conflicts, and each thread's sums
// so far or, where warps share rows, the sums of two rows of each warp.
template <bool kLarge>
union GradientMemory {
  float sums_of_dx[kGradientWarps][kWarp * kFour];
  struct {
    alignas(16) float left[kStagedDepth][kMostRowsOfBlock + kFour];
    union {
      alignas(16) float totals[kLarge ? kRowsOfWarp : 1][kGradientThreads][kFour];
      alignas(16) float sums[2][kGradientWarps][kWarp * kFour];
    };
  };
};

// 8 row_tiles rows of dx, and of each 16 columns, four lanes' fours. These are of rows of the
// weight that are the lanes' own: the block's 64 groups of four lanes share the sum.
template <typename T, typename G, typename Weight, typename Memory>
__device__ void make_dx(T* dx, const G& g, const Weight& weight, int row_tiles, int block,
                        Memory& memory) {
  constexpr int kColumns = kLanesOfLine * kFour;
  constexpr int kStep = kGradientThreads / kLanesOfLine * kFour;
  constexpr int kResults = kRows * kColumns;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int blocks_n = (weight.columns + kColumns - 1) / kColumns;
  const int col0 = block % blocks_n * kColumns, col = col0 + lane % kLanesOfLine * kFour;
  for (int tile = 0; tile < row_tiles; ++tile) {
    const int row0 = (block / blocks_n * row_tiles + tile) * kRows;
    if (row0 >= g.rows) return;
    float sums[kRows * kFour] = {};
    Four<T> left[kRows], right[kFour];
    const auto load = [&](int k) {
#pragma unroll
      for (int j = 0; j < kFour; ++j) right[j] = weight.load(k + j, col);
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = g.load_through(row0 + i, k);
    };
    int k = threadIdx.x / kLanesOfLine * kFour;
    load(k);
#pragma unroll 1
    for (;; load(k)) {  // as above
#pragma unroll
      for (int j = 0; j < kFour; ++j) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int e = 0; e < kFour; ++e) {
            sums[i * kFour + e] += widen(left[i].v[j]) * widen(right[j].v[e]);
          }
        }
      }
      k += kStep;
      if (k - static_cast<int>(threadIdx.x) / kLanesOfLine * kFour >= g.columns)
        break;  // of all threads
    }

    share_sums<kLanesOfLine>(sums);  // now group i of the warp has row i
#pragma unroll
    for (int e = 0; e < kFour; ++e) memory.sums_of_dx[warp][lane * kFour + e] = sums[e];
    __syncthreads();  // every warp has written its sums, which a thread for each element adds up
    const int row = row0 + threadIdx.x / kColumns, column = col0 + threadIdx.x % kColumns;
    if (threadIdx.x < kResults && row < g.rows && column < weight.columns) {
      float sum = 0;
#pragma unroll
      for (const auto& warps : memory.sums_of_dx) sum += warps[threadIdx.x];
      dx[static_cast<int64_t>(row) * weight.columns + column] = narrow<T>(sum);
    }
    __syncthreads();  // every sum has been read, before the next rows' are written
  }
}

// Stages element (k, row) of a left factor: dy's row k, or with kRowsAreRows its column k, where a
// ReLU let through; 0 outside.
template <bool kRowsAreRows, typename G>
__device__ void stage(float (&staged)[kStagedDepth][kMostRowsOfBlock + kFour], const G& g, int k0,
                      int row0, int rows) {
  // Neighbouring threads read neighbours of a row of dy: 64 of them, or 8 of each of four rows.
  constexpr int kAtOnce = kGradientThreads / kMostRowsOfBlock, kMine = kStagedDepth / kAtOnce;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto place = [&](int i, int& k, int& row) {
    if constexpr (kRowsAreRows) {
      k = lane % 8 + i % 4 * 8;
      row = lane / 8 + (warp + i / 4 * kGradientWarps) * 4;
    } else {
      k = threadIdx.x / kMostRowsOfBlock + i * kAtOnce;
      row = threadIdx.x % kMostRowsOfBlock;
    }
  };
  float values[kMine], through[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    int k, row;
    place(i, k, row);
    const int line = kRowsAreRows ? row0 + row : k0 + k;
    const int column = kRowsAreRows ? k0 + k : row0 + row;
    const bool inside = row < rows && line < g.rows && column < g.columns;
    values[i] = inside ? widen(g.data[line * g.stride + column]) : 0;
    through[i] = inside && g.relu_y ? widen(g.relu_y[line * g.relu_stride + column]) : 1;
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    int k, row;
    place(i, k, row);
    staged[k][row] = through[i] <= 0 ? 0 : values[i];
  }
}

// f(j, e) for a thread's sums.
template <typename F>
__device__ void for_all(const F& f) {
#pragma unroll
  for (int j = 0; j < kRowsOfWarp; ++j) {
#pragma unroll
    for (int e = 0; e < kFour; ++e) f(j, e);
  }
}

// Makes 8 << bits rows of c (m, n) = the sums over k of left (m, k) right (k, n), four columns for
// each lane, and in the first columns' blocks of the sums of left's rows; either may be null. left
// is g with kRowsAreRows, else g^T. The more warps have the same rows, the fewer k each has.
template <bool kRowsAreRows, typename T, typename G, typename Right, typename Memory>
__device__ void make_product(T* c, T* row_sums, const G& g, const Right& right, int bits, int block,
                             Memory& memory) {
  constexpr int kColumns = kWarp * kFour;
  const int m = kRowsAreRows ? g.rows : g.columns, depth = right.rows;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row_warps = 1 << bits, block_rows = kRowsOfWarp << bits;
  const int blocks_n = c ? (right.columns + kColumns - 1) / kColumns : 1;
  const int row0 = block / blocks_n * block_rows, col0 = block % blocks_n * kColumns;
  const int col = col0 + lane * kFour, my_row = warp % row_warps * kRowsOfWarp;
  const int first = (warp >> bits) * kRows, step = (kGradientWarps >> bits) * kRows;
  const int sum_of = row0 + threadIdx.x;
  const bool sums_rows = row_sums && col0 == 0 && threadIdx.x < block_rows && sum_of < m;

  Four<T> values[kRows];
  const auto load = [&](int k) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) values[i] = right.load(k + i, col);
  };
  float sums[kRowsOfWarp][kFour] = {}, row_sum = 0;
  // Sums to totals, and back: so a long sum has parts. A thread's own, for which nobody waits.
  const auto add_totals = [&] {
    for_all([&](int j, int e) { sums[j][e] += memory.totals[j][threadIdx.x][e]; });
  };
  const auto keep_totals = [&] {
    for_all([&](int j, int e) {
      memory.totals[j][threadIdx.x][e] = sums[j][e];
      sums[j][e] = 0;
    });
  };
  for (int k0 = 0; k0 < depth; k0 += kStagedDepth) {
    load(k0 + first);  // on the way beside the left factor
    stage<kRowsAreRows>(memory.left, g, k0, row0, block_rows);
    __syncthreads();  // all threads have written their part of the left factor, which all read
    const int staged = depth - k0 < kStagedDepth ? depth - k0 : kStagedDepth;
    for (int k = first; k < staged; k += step) {
      if (k != first) load(k0 + k);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float left[kRowsOfWarp];
#pragma unroll
        for (int j = 0; j < kRowsOfWarp; ++j) left[j] = memory.left[k + i][my_row + j];
#pragma unroll
        for (int j = 0; j < kRowsOfWarp; ++j) {
#pragma unroll
          for (int e = 0; e < kFour; ++e) sums[j][e] += left[j] * widen(values[i].v[e]);
        }
      }
    }
    if (sums_rows) {
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < staged; ++k) sum += memory.left[k][threadIdx.x];
      row_sum += sum;
    }
    __syncthreads();  // every warp has read what the next part is written over
    if constexpr (kRowsAreRows) {
      const int so_far = k0 + kStagedDepth;
      if (so_far % kDepthOfASum == 0 && so_far < depth) {
        if (so_far > kDepthOfASum) add_totals();
        keep_totals();
      }
    }
  }
  if constexpr (kRowsAreRows) {
    if (depth > kDepthOfASum) add_totals();
    __syncthreads();  // every thread has read its totals, over which sums are written
  }
  if (sums_rows) row_sums[sum_of] = narrow<T>(row_sum);
  if (!c) return;

  if (row_warps < kGradientWarps) {
#pragma unroll
    for (int j = 0; j < kRowsOfWarp; ++j) {
      auto& buffer = memory.sums[j % 2];
#pragma unroll
      for (int e = 0; e < kFour; ++e) buffer[warp][lane * kFour + e] = sums[j][e];
      __syncthreads();  // every warp has written its sums, and read those of the row before last
      if (first != 0) continue;
      for (int other = warp + row_warps; other < kGradientWarps; other += row_warps) {
#pragma unroll
        for (int e = 0; e < kFour; ++e) sums[j][e] += buffer[other][lane * kFour + e];
      }
    }
    if (first != 0) return;
  }
#pragma unroll
  for (int j = 0; j < kRowsOfWarp; ++j) {
    if (row0 + my_row + j >= m) return;
    Four<T> four;
#pragma unroll
    for (int e = 0; e < kFour; ++e) four.v[e] = narrow<T>(sums[j][e]);
    store_wide(c, row0 + my_row + j, col, right.columns, four);
  }
}

// Computes  dx = g w, dw = g^T x and db, the sums of g's columns, where g is dy where a ReLU whose
//           output is relu_y let through.
// Shapes    dx (batch, in), dw (out, in), db (out), dy (batch, out), x (batch, in), w (out, in).
// Grid      first the blocks that make dx, kLarge: as dw is made, then those that make dw and db.
//           256 threads.
// Memory    shared memory: 17 KB, kLarge 41.
// Precision FMA in float, in one order for one plan: deterministic.
// Needs     rows of neighbouring elements; kVector: x and w, and kVectorG: dy and relu_y, aligned
//           to four elements, as are their rows, whose lengths are divisible by 4.
// Same as   linear_backward_ref.
template <typename T, bool kVector, bool kVectorG, bool kLarge>
__global__ void __launch_bounds__(kGradientThreads, kVector ? kBlocksAtOnce : 1)
    linear_backward_direct_kernel(LinearGradients in, DirectGradientsPlan plan) {
  FASTMLP_SHARED(GradientMemory<kLarge>, memory);
  const Lines<T, kVectorG> g(in.dy, in.batch, in.out);
  const int block = static_cast<int>(blockIdx.x);
  T *const dx = static_cast<T*>(in.dx), *const dw = static_cast<T*>(in.dw);
  if (block < plan.dx_blocks) {
    const Lines<T, kVector> weight(in.weight, in.out, in.in);
    if constexpr (kLarge) {
      make_product<true, T>(dx, nullptr, g, weight, plan.row_bits, block, memory);
    } else {
      make_dx(dx, g, weight, plan.row_tiles, block, memory);
    }
    return;
  }
  const Lines<T, kVector> x(in.x, in.batch, dw ? in.in : 0);
  T* const db = static_cast<T*>(in.db);
  make_product<false>(dw, db, g, x, plan.out_bits, block - plan.dx_blocks, memory);
}

// Whether Lines has an operand with kVector.
template <typename T>
bool is_vector(const Operand& operand, int64_t columns) {
  const auto fits = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Four<T>) == 0 && stride % kFour == 0;
  };
  return columns % kFour == 0 && fits(operand.data, operand.stride) &&
         (!operand.relu_y || fits(operand.relu_y, operand.relu_stride));
}

template <typename T>
cudaError_t launch_typed(const LinearProduct& product, const DirectLinearPlan& plan,
                         cudaStream_t stream) {
  const bool vector = is_vector<T>(product.a, product.k) && is_vector<T>(product.b, product.k);
  const auto kernel = vector ? linear_direct_kernel<T, true> : linear_direct_kernel<T, false>;
  const unsigned threads = static_cast<unsigned>(kWarp * plan.k_warps) << plan.out_bits;
  const dim3 grid(plan.column_blocks, plan.row_blocks);
  return launch_kernel(kernel, grid, threads, stream, product, plan);
}

template <typename T, bool kVector, bool kVectorG>
cudaError_t launch_vector(const LinearGradients& in, const DirectGradientsPlan& plan,
                          cudaStream_t stream) {
  const auto kernel = plan.row_bits >= 0
                          ? linear_backward_direct_kernel<T, kVector, kVectorG, true>
                          : linear_backward_direct_kernel<T, kVector, kVectorG, false>;
  return launch_kernel(kernel, dim3(plan.dx_blocks + plan.dw_blocks), kGradientThreads, stream, in,
                       plan);
}

template <typename T>
cudaError_t launch_typed(const LinearGradients& in, const DirectGradientsPlan& plan,
                         cudaStream_t stream) {
  const bool vector = is_vector<T>(in.x, in.in) && is_vector<T>(in.weight, in.in);
  const auto launch =
      is_vector<T>(in.dy, in.out)
          ? (vector ? launch_vector<T, true, true> : launch_vector<T, false, true>)
          : (vector ? launch_vector<T, true, false> : launch_vector<T, false, false>);
  return launch(in, plan, stream);
}

// f with a null pointer of the storage type, which is not double.
template <typename F>
cudaError_t dispatch_product_type(Type type, const F& f) {
  return dispatch_type(type, [&](auto* null) {
    if constexpr (std::is_same_v<decltype(null), double*>) {
      return cudaErrorInvalidValue;
    } else {
      return f(null);
    }
  });
}

}  // namespace

cudaError_t launch_direct_linear(const LinearProduct& product, const DirectLinearPlan& plan,
                                 Type type, cudaStream_t stream) {
  if (plan.column_blocks == 0 || plan.row_blocks == 0) return cudaSuccess;
  return dispatch_product_type(type, [&](auto* null) {
    return launch_typed<std::remove_pointer_t<decltype(null)>>(product, plan, stream);
  });
}

cudaError_t launch_direct_gradients(const LinearGradients& in, const DirectGradientsPlan& plan,
                                    Type type, cudaStream_t stream) {
  if (plan.dx_blocks + plan.dw_blocks == 0) return cudaSuccess;
  return dispatch_product_type(type, [&](auto* null) {
    return launch_typed<std::remove_pointer_t<decltype(null)>>(in, plan, stream);
  });
}

}  // namespace fastmlp
