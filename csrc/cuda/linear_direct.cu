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
constexpr int kLanesOfLine = 4;  // that read neighbours of a row of the weight, for dx
constexpr int kOutsOfWarp = 8;   // rows of dw
constexpr int kStagedRows = 32;  // of dy that a block has in shared memory at a time, for dw
constexpr int kMostOutsOfBlock = kGradientWarps * kOutsOfWarp;

constexpr int kFour = 4;
template <typename T>
using Four = Wide<T, kFour>;

// A matrix whose rows' elements are neighbours. kVector: fours are inside as a whole or not at all,
// and aligned, and an int counts what lies between its first element and its last.
template <typename T, bool kVector>
struct Lines {
  using Offset = std::conditional_t<kVector, int, int64_t>;
  const T* data;
  const T* relu_y;
  Offset stride, relu_stride;
  int rows, columns;

  __device__ Lines(const Operand& operand, int64_t rows_, int64_t columns_)
      : data(static_cast<const T*>(operand.data)),
        relu_y(static_cast<const T*>(operand.relu_y)),
        stride(static_cast<Offset>(operand.stride)),
        relu_stride(static_cast<Offset>(operand.relu_stride)),
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

  __device__ Four<T> load_from(const T* from, Offset step, int row, int first) const {
    Four<T> four{};
    const T* at = from + (row * step + first);
    if constexpr (kVector) {
      if (row < rows && first < columns) four = *reinterpret_cast<const Four<T>*>(at);
    } else {
#pragma unroll
      for (int e = 0; e < kFour; ++e) {
        if (row < rows && first + e < columns) four.v[e] = at[e];
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

// What a block has in shared memory: one that makes dx, the sums of its warps; one that makes dw,
// dy's rows, and the sums of two rows of dw of each warp where several share them.
union GradientMemory {
  float sums_of_dx[kGradientWarps][kWarp * kFour];
  struct {
    alignas(16) float g[kStagedRows][kMostOutsOfBlock];
    alignas(16) float sums_of_dw[2][kGradientWarps][kWarp * kFour];
  };
};

// 8 row_tiles rows of dx, and of each 16 columns, four lanes' fours. These are of rows of the
// weight that are the lanes' own: the block's 64 groups of four lanes share the sum.
template <bool kVector, bool kVectorG, typename T>
__device__ void make_dx(const LinearGradients& in, const DirectGradientsPlan& plan, int block,
                        GradientMemory& memory, const T*) {
  constexpr int kColumns = kLanesOfLine * kFour;
  constexpr int kStep = kGradientThreads / kLanesOfLine * kFour;
  constexpr int kResults = kRows * kColumns;
  const Lines<T, kVectorG> g(in.dy, in.batch, in.out);
  const Lines<T, kVector> weight(in.weight, in.out, in.in);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int blocks_n = (weight.columns + kColumns - 1) / kColumns;
  const int col0 = block % blocks_n * kColumns, col = col0 + lane % kLanesOfLine * kFour;
  for (int tile = 0; tile < plan.row_tiles; ++tile) {
    const int row0 = (block / blocks_n * plan.row_tiles + tile) * kRows;
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
    for (int turns = (g.columns + kStep - 1) / kStep;; k += kStep, load(k)) {  // as above
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
      if (--turns <= 0) break;
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
      static_cast<T*>(in.dx)[static_cast<int64_t>(row) * weight.columns + column] = narrow<T>(sum);
    }
    __syncthreads();  // every sum has been read, before the next rows' are written
  }
}

// Rows of dy where a ReLU let through, as a block that makes dw has them; 0 outside.
template <typename Matrix>
__device__ void stage(float (&staged)[kStagedRows][kMostOutsOfBlock], const Matrix& g, int row0,
                      int out0, int outs) {
  constexpr int kRowsAtOnce = kGradientThreads / kMostOutsOfBlock;
  constexpr int kMine = kStagedRows / kRowsAtOnce;
  const int first = threadIdx.x / kMostOutsOfBlock, out = threadIdx.x % kMostOutsOfBlock;
  const bool mine = out < outs && out0 + out < g.columns;
  float values[kMine], through[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int row = row0 + first + i * kRowsAtOnce;
    const bool inside = mine && row < g.rows;
    values[i] = inside ? widen(g.data[row * g.stride + out0 + out]) : 0;
    through[i] = inside && g.relu_y ? widen(g.relu_y[row * g.relu_stride + out0 + out]) : 1;
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    staged[first + i * kRowsAtOnce][out] = through[i] <= 0 ? 0 : values[i];
  }
}

// 8 << out_bits rows of dw, four columns for each lane; and of db in the first columns' blocks.
// Warps that have the same rows share the batch.
template <bool kVector, typename T>
__device__ void make_dw(const LinearGradients& in, const DirectGradientsPlan& plan, int block,
                        GradientMemory& memory, const T*) {
  constexpr int kColumns = kWarp * kFour;
  const Lines<T, false> g(in.dy, in.batch, in.out);
  const Lines<T, kVector> x(in.x, in.batch, in.dw ? in.in : 0);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int out_warps = 1 << plan.out_bits, batch_warps = kGradientWarps >> plan.out_bits;
  const int block_outs = kOutsOfWarp << plan.out_bits;
  const int blocks_n = in.dw ? (x.columns + kColumns - 1) / kColumns : 1;
  const int out0 = block / blocks_n * block_outs, col0 = block % blocks_n * kColumns;
  const int col = col0 + lane * kFour, my_out = warp % out_warps * kOutsOfWarp;
  const int first = (warp >> plan.out_bits) * kRows;
  const int db_out = out0 + threadIdx.x;
  const bool sums_rows = in.db && col0 == 0 && threadIdx.x < block_outs && db_out < g.columns;

  Four<T> right[kRows];
  const auto load = [&](int row0) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) right[i] = x.load(row0 + i, col);
  };
  float sums[kOutsOfWarp][kFour] = {}, row_sum = 0;
  for (int row0 = 0; row0 < g.rows; row0 += kStagedRows) {
    load(row0 + first);  // on the way beside dy
    stage(memory.g, g, row0, out0, block_outs);
    __syncthreads();  // all threads have written their part of dy, which every warp reads
    const int rows = g.rows - row0 < kStagedRows ? g.rows - row0 : kStagedRows;
    for (int row = first; row < rows; row += batch_warps * kRows) {
      if (row != first) load(row0 + row);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float left[kOutsOfWarp];
#pragma unroll
        for (int o = 0; o < kOutsOfWarp; ++o) left[o] = memory.g[row + i][my_out + o];
#pragma unroll
        for (int o = 0; o < kOutsOfWarp; ++o) {
#pragma unroll
          for (int e = 0; e < kFour; ++e) sums[o][e] += left[o] * widen(right[i].v[e]);
        }
      }
    }
    if (sums_rows) {
      float sum = 0;
#pragma unroll 8
      for (int row = 0; row < rows; ++row) sum += memory.g[row][threadIdx.x];
      row_sum += sum;
    }
    __syncthreads();  // every warp has read what the next rows are written over
  }
  if (sums_rows) static_cast<T*>(in.db)[db_out] = narrow<T>(row_sum);
  if (!in.dw) return;

  if (batch_warps > 1) {
#pragma unroll
    for (int o = 0; o < kOutsOfWarp; ++o) {
      auto& buffer = memory.sums_of_dw[o % 2];
#pragma unroll
      for (int e = 0; e < kFour; ++e) buffer[warp][lane * kFour + e] = sums[o][e];
      __syncthreads();  // every warp has written its sums, and read those of the row before last
      if (first != 0) continue;
      for (int other = warp + out_warps; other < kGradientWarps; other += out_warps) {
#pragma unroll
        for (int e = 0; e < kFour; ++e) sums[o][e] += buffer[other][lane * kFour + e];
      }
    }
    if (first != 0) return;
  }
#pragma unroll
  for (int o = 0; o < kOutsOfWarp; ++o) {
    if (out0 + my_out + o >= g.columns) return;
    Four<T> four;
#pragma unroll
    for (int e = 0; e < kFour; ++e) four.v[e] = narrow<T>(sums[o][e]);
    store_wide(static_cast<T*>(in.dw), out0 + my_out + o, col, x.columns, four);
  }
}

// Computes  dx = g w, dw = g^T x and db, the sums of g's columns, where g is dy where a ReLU whose
//           output is relu_y let through.
// Shapes    dx (batch, in), dw (out, in), db (out), dy (batch, out), x (batch, in), w (out, in).
// Grid      first the blocks that make dx, then those that make dw and db. 256 threads.
// Memory    shared memory: 16 KB.
// Precision FMA in float, in one order for one plan: deterministic.
// Needs     rows of neighbouring elements; kVector: x and w, and kVectorG: dy and relu_y, aligned
//           to four elements, as are their rows, whose lengths are divisible by 4.
// Same as   linear_backward_ref.
template <typename T, bool kVector, bool kVectorG>
__global__ void __launch_bounds__(kGradientThreads, kVector ? 2 : 1)
    linear_backward_direct_kernel(LinearGradients in, DirectGradientsPlan plan) {
  FASTMLP_SHARED(GradientMemory, memory);
  const T* type = nullptr;
  const int block = static_cast<int>(blockIdx.x);
  if (block < plan.dx_blocks) {
    make_dx<kVector, kVectorG>(in, plan, block, memory, type);
  } else {
    make_dw<kVector>(in, plan, block - plan.dx_blocks, memory, type);
  }
}

// Whether Lines has an operand with kVector.
template <typename T>
bool is_vector(const Operand& operand, int64_t rows, int64_t columns) {
  constexpr int64_t kMostElements = 0x7fffffff;
  const auto fits = [&](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Four<T>) == 0 && stride % kFour == 0 &&
           stride <= kMostElements / (rows + kFour);
  };
  return columns % kFour == 0 && fits(operand.data, operand.stride) &&
         (!operand.relu_y || fits(operand.relu_y, operand.relu_stride));
}

template <typename T>
cudaError_t launch_typed(const LinearProduct& product, const DirectLinearPlan& plan,
                         cudaStream_t stream) {
  const bool vector = is_vector<T>(product.a, product.m, product.k) &&
                      is_vector<T>(product.b, product.n, product.k);
  const auto kernel = vector ? linear_direct_kernel<T, true> : linear_direct_kernel<T, false>;
  const unsigned threads = static_cast<unsigned>(kWarp * plan.k_warps) << plan.out_bits;
  const dim3 grid(plan.column_blocks, plan.row_blocks);
  return launch_kernel(kernel, grid, threads, stream, product, plan);
}

template <typename T, bool kVector>
cudaError_t launch_vector(const LinearGradients& in, const DirectGradientsPlan& plan,
                          cudaStream_t stream) {
  const auto kernel = is_vector<T>(in.dy, in.batch, in.out)
                          ? linear_backward_direct_kernel<T, kVector, true>
                          : linear_backward_direct_kernel<T, kVector, false>;
  return launch_kernel(kernel, dim3(plan.dx_blocks + plan.dw_blocks), kGradientThreads, stream, in,
                       plan);
}

template <typename T>
cudaError_t launch_typed(const LinearGradients& in, const DirectGradientsPlan& plan,
                         cudaStream_t stream) {
  const bool vector = is_vector<T>(in.x, in.batch, in.in) && is_vector<T>(in.weight, in.out, in.in);
  return vector ? launch_vector<T, true>(in, plan, stream)
                : launch_vector<T, false>(in, plan, stream);
}

// f with a null pointer of the storage type, which is not double.
template <typename F>
cudaError_t dispatch_product_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(static_cast<float*>(nullptr));
    case Type::kBFloat16:
      return f(static_cast<bf16*>(nullptr));
    case Type::kHalf:
      return f(static_cast<f16*>(nullptr));
    default:
      return cudaErrorInvalidValue;
  }
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
