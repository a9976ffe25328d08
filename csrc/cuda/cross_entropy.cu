// cross_entropy and cross_entropy_backward on CUDA.
#include "cuda/kernel.cuh"

namespace fastmlp {
namespace {

// Who works on a row: a thread where it is short, a warp, or a whole block.
enum Team : int { kThreadTeam, kWarpTeam, kBlockTeam };

constexpr int64_t kThreadClasses = 32;  // rows up to here are a thread's
constexpr int64_t kWarpClasses = 1024;  // and up to here a warp's
// Rows of which one block makes the loss in one launch, where a thread or a warp has each row.
constexpr int64_t kOneBlockRows[] = {1024, 64};
constexpr int kThreads = 256;
constexpr int kManyThreads = 512;  // of a block that has a long row, or all rows, to itself

// CrossEntropyRows, typed.
template <typename T>
struct Rows {
  const T* logits;
  const T* weight;
  const void* target;
  int64_t stride, rows, classes, target_step, ignore_index;
  acc_t<T> smoothing;
  int reduction;
  bool byte_target;
  bool vector;  // every row starts at a multiple of 16 bytes
};

template <typename T>
Rows<T> typed(const CrossEntropyRows& in) {
  const bool vector = is_aligned(in.logits) && in.stride * sizeof(T) % 16 == 0;
  return {static_cast<const T*>(in.logits),
          static_cast<const T*>(in.weight),
          in.target,
          in.stride,
          in.rows,
          in.classes,
          in.target_step,
          in.ignore_index,
          static_cast<acc_t<T>>(in.smoothing),
          in.reduction,
          in.byte_target,
          vector};
}

template <typename T>
__device__ int64_t label_of(const Rows<T>& in, int64_t row) {
  const int64_t at = row * in.target_step;
  return in.byte_target ? static_cast<const uint8_t*>(in.target)[at]
                        : static_cast<const int64_t*>(in.target)[at];
}

template <typename T>
__device__ acc_t<T> class_weight(const Rows<T>& in, int64_t label) {
  return in.weight ? widen(in.weight[label]) : acc_t<T>(1);
}

// The threads that share a row. `shared` is used by whole blocks alone.
template <Team kTeam, typename Acc>
struct RowTeam {
  WarpValues<Acc>& shared;

  __device__ int size() const {
    return kTeam == kThreadTeam ? 1 : kTeam == kWarpTeam ? kWarp : blockDim.x;
  }
  __device__ int rank() const { return threadIdx.x % size(); }
  __device__ int64_t first_row() const {
    return static_cast<int64_t>(blockIdx.x) * (blockDim.x / size()) + threadIdx.x / size();
  }
  __device__ int64_t row_step() const {
    return static_cast<int64_t>(gridDim.x) * (blockDim.x / size());
  }
  // The values of all members, combined; the same bits for each. Wants every member.
  template <typename Value>
  __device__ Value combine(Value value) const {
    if constexpr (kTeam == kBlockTeam) {
      return combine_block(value, shared);
    } else if constexpr (kTeam == kWarpTeam) {
      return combine_warp(value);
    } else {
      return value;
    }
  }
};

// Maximum and sum of exponentials of a row, in one pass; the same bits in every thread of the team.
template <Team kTeam, typename T>
__device__ OnlineSoftmax<acc_t<T>> row_softmax(const Rows<T>& in, const T* x,
                                               const RowTeam<kTeam, acc_t<T>>& team) {
  using Acc = acc_t<T>;
  constexpr int kCount = Pack<T>::kCount;
  OnlineSoftmax<Acc> mine;
  int64_t scalars = 0;  // columns from here on go one by one
  if (in.vector) {
    scalars = in.classes / kCount * kCount;
    for (int64_t j = team.rank() * kCount; j < scalars; j += team.size() * kCount) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(x + j);
      Acc values[kCount];
#pragma unroll
      for (int e = 0; e < kCount; ++e) values[e] = widen(pack.v[e]);
      mine.add(values);
    }
  }
  for (int64_t j = scalars + team.rank(); j < in.classes; j += team.size()) {
    const Acc value[1] = {widen(x[j])};
    mine.add(value);
  }
  return team.combine(mine);
}

// sum_j w_j
template <Team kTeam, typename T>
__device__ acc_t<T> total_class_weight(const Rows<T>& in, const RowTeam<kTeam, acc_t<T>>& team) {
  if (!in.weight) return static_cast<acc_t<T>>(in.classes);
  acc_t<T> total = 0;
  for (int64_t j = team.rank(); j < in.classes; j += team.size()) total += widen(in.weight[j]);
  return team.combine(total);
}

// sum_j w_j (x_j - maximum)
template <Team kTeam, typename T>
__device__ acc_t<T> weighted_sum(const Rows<T>& in, const T* x, acc_t<T> maximum,
                                 const RowTeam<kTeam, acc_t<T>>& team) {
  acc_t<T> total = 0;
  for (int64_t j = team.rank(); j < in.classes; j += team.size()) {
    total += class_weight(in, j) * (widen(x[j]) - maximum);
  }
  return team.combine(total);
}

// Loss and total weight from those of the rows: one block, one order, in double.
template <typename T>
__device__ void reduce_rows(T* loss, acc_t<T>* total_weight, const acc_t<T>* row_loss,
                            const acc_t<T>* row_weight, int64_t rows, int reduction) {
  FASTMLP_SHARED(WarpValues<double>, shared);
  double losses = 0, weights = 0;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    losses += row_loss[row];
    weights += row_weight[row];
  }
  losses = combine_block(losses, shared);
  weights = combine_block(weights, shared);
  if (threadIdx.x != 0) return;
  *total_weight = static_cast<acc_t<T>>(weights);
  // As in PyTorch, a total weight of 0 makes the mean nan, with label smoothing too.
  if (reduction == 1) losses = weights == 0 ? static_cast<double>(NAN) : losses / weights;
  if (reduction != 0) *loss = narrow<T>(static_cast<acc_t<T>>(losses));
}

// Computes  for each row, m = max x, l = log sum exp(x - m), its loss
//           (1-s) w_t (l - (x_t - m)) + s/C sum_j w_j (l - (x_j - m)) and its weight w_t; both 0
//           where the label is ignored; loss nan, weight 0 where it is no class.
// Shapes    loss () or (rows), stats (rows, 2) = m, l; row_values (2, rows) = losses, weights.
// Grid      a team for each row; a grid of one block goes on to reduce_rows.
// Memory    logits read once (twice with smoothing); shared memory 0.8 KB.
// Precision acc_t; one order for a given blockDim.x: deterministic.
// Needs     nothing: a bad label is never an index.
// Same as   cross_entropy_ref.
template <Team kTeam, typename T>
__global__ void __launch_bounds__(kManyThreads, 1)
    cross_entropy_kernel(T* loss, acc_t<T>* stats, acc_t<T>* total_weight, acc_t<T>* row_values,
                         Rows<T> in) {
  using Acc = acc_t<T>;
  FASTMLP_SHARED(WarpValues<Acc>, shared);
  const RowTeam<kTeam, Acc> team{shared};
  for (int64_t row = team.first_row(); row < in.rows; row += team.row_step()) {
    const T* x = in.logits + row * in.stride;
    const OnlineSoftmax<Acc> softmax = row_softmax(in, x, team);
    const Acc log_sum = softmax.log_sum();
    const int64_t label = label_of(in, row);
    const bool ignored = label == in.ignore_index;
    const bool known = label >= 0 && label < in.classes;
    Acc value = ignored ? Acc(0) : static_cast<Acc>(NAN), weight = 0;
    if (known && !ignored) {
      weight = class_weight(in, label);
      value = (1 - in.smoothing) * weight * (log_sum - (widen(x[label]) - softmax.max));
      if (in.smoothing > 0) {
        const Acc total = total_class_weight(in, team);
        value += in.smoothing / static_cast<Acc>(in.classes) *
                 (total * log_sum - weighted_sum(in, x, softmax.max, team));
      }
    }
    if (team.rank() == 0) {
      stats[2 * row] = softmax.max;
      stats[2 * row + 1] = log_sum;
      row_values[row] = value;
      row_values[in.rows + row] = weight;
      if (in.reduction == 0) loss[row] = narrow<T>(value);
    }
  }
  if (gridDim.x > 1) return;
  __syncthreads();  // the teams have written row_values, which reduce_rows reads
  reduce_rows(loss, total_weight, row_values, row_values + in.rows, in.rows, in.reduction);
}

// Computes  total_weight = sum of the rows' weights; loss = that of their losses, for mean divided
//           by total_weight.
// Shapes    loss (), total_weight (), row_values (2, rows).
// Grid      one block.
// Precision double, one order: deterministic.
// Same as   the reduction of cross_entropy_ref.
template <typename T>
__global__ void __launch_bounds__(kManyThreads, 1)
    cross_entropy_reduce_kernel(T* loss, acc_t<T>* total_weight, const acc_t<T>* row_values,
                                int64_t rows, int reduction) {
  reduce_rows(loss, total_weight, row_values, row_values + rows, rows, reduction);
}

// What one row's gradient needs besides its logits.
template <typename Acc>
struct RowGradient {
  Acc max, log_sum, mass, share, hot, factor;
  int64_t label;

  // factor (mass p_j - share w_j - hot [j = label])
  __device__ Acc at(int64_t j, Acc x, Acc class_weight) const {
    Acc g = mass * exp_of((x - max) - log_sum);
    if (share > 0) g -= share * class_weight;
    if (j == label) g -= hot;
    return g * factor;
  }
};

// Columns [begin, end) of a row of dlogits from the same of its logits, by a team.
template <Team kTeam, typename T>
__device__ void write_gradient(T* dx, const T* x, const Rows<T>& in, int64_t begin, int64_t end,
                               const RowGradient<acc_t<T>>& row,
                               const RowTeam<kTeam, acc_t<T>>& team, bool vector) {
  constexpr int kCount = Pack<T>::kCount;
  int64_t scalars = begin;
  if (vector) {
    scalars += (end - begin) / kCount * kCount;
    for (int64_t j = begin + team.rank() * kCount; j < scalars; j += team.size() * kCount) {
      Pack<T> pack = *reinterpret_cast<const Pack<T>*>(x + j);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const acc_t<T> weight = row.share > 0 ? class_weight(in, j + e) : acc_t<T>(0);
        pack.v[e] = narrow<T>(row.at(j + e, widen(pack.v[e]), weight));
      }
      *reinterpret_cast<Pack<T>*>(dx + j) = pack;
    }
  }
  for (int64_t j = scalars + team.rank(); j < end; j += team.size()) {
    const acc_t<T> weight = row.share > 0 ? class_weight(in, j) : acc_t<T>(0);
    dx[j] = narrow<T>(row.at(j, widen(x[j]), weight));
  }
}

// Computes  dx_j = factor ((hot + share sum w) p_j - share w_j - hot [j = t]) with p = softmax(x),
//           hot = (1-s) w_t, share = s/C, factor = dloss, over total_weight for mean; 0 where the
//           label is ignored, nan where it is no class.
// Shapes    dlogits (rows, classes); dloss () or (rows); stats (rows, 2); total_weight ().
// Grid      (rows, parts of `chunk` columns); a team for each row and part.
// Memory    logits read once.
// Precision acc_t; deterministic.
// Needs     chunk a multiple of a pack.
// Same as   cross_entropy_backward_ref.
template <Team kTeam, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    cross_entropy_backward_kernel(T* dlogits, const T* dloss, const acc_t<T>* stats,
                                  const acc_t<T>* total_weight, Rows<T> in, int64_t chunk,
                                  bool vector) {
  using Acc = acc_t<T>;
  FASTMLP_SHARED(WarpValues<Acc>, shared);
  const RowTeam<kTeam, Acc> team{shared};
  const int64_t begin = blockIdx.y * chunk;
  const int64_t end = begin + chunk < in.classes ? begin + chunk : in.classes;
  for (int64_t row = team.first_row(); row < in.rows; row += team.row_step()) {
    T* dx = dlogits + row * in.classes;
    const int64_t label = label_of(in, row);
    const bool ignored = label == in.ignore_index;
    if (ignored || label < 0 || label >= in.classes) {
      const T fill = ignored ? T{} : narrow<T>(static_cast<Acc>(NAN));
      for (int64_t j = begin + team.rank(); j < end; j += team.size()) dx[j] = fill;
      continue;
    }
    RowGradient<Acc> gradient;
    gradient.label = label;
    gradient.max = stats[2 * row];
    gradient.log_sum = stats[2 * row + 1];
    gradient.hot = (1 - in.smoothing) * class_weight(in, label);
    gradient.share = in.smoothing / static_cast<Acc>(in.classes);
    gradient.mass = gradient.hot;
    if (in.smoothing > 0) gradient.mass += gradient.share * total_class_weight(in, team);
    gradient.factor = widen(dloss[in.reduction == 0 ? row : 0]);
    if (in.reduction == 1) gradient.factor /= *total_weight;
    write_gradient(dx, in.logits + row * in.stride, in, begin, end, gradient, team, vector);
  }
}

Team team_for(int64_t classes) {
  return classes <= kThreadClasses ? kThreadTeam : classes <= kWarpClasses ? kWarpTeam : kBlockTeam;
}

unsigned grid_for(Team team, int64_t rows, int threads) {
  const int64_t rows_of_a_block = team == kThreadTeam ? threads
                                  : team == kWarpTeam ? threads / kWarp
                                                      : 1;
  const int64_t blocks = ceil_div(rows, rows_of_a_block);
  return static_cast<unsigned>(blocks < kMaxGridX ? blocks : kMaxGridX);
}

template <typename T>
cudaError_t launch_forward(T* loss, acc_t<T>* stats, acc_t<T>* total_weight, acc_t<T>* row_values,
                           const Rows<T>& in, cudaStream_t stream) {
  const Team team = team_for(in.classes);
  const bool one_block = team == kBlockTeam ? in.rows <= 1 : in.rows <= kOneBlockRows[team];
  const int threads = one_block || team == kBlockTeam ? kManyThreads : kThreads;
  const unsigned blocks = one_block ? 1 : grid_for(team, in.rows, threads);
  const auto kernel = team == kThreadTeam ? cross_entropy_kernel<kThreadTeam, T>
                      : team == kWarpTeam ? cross_entropy_kernel<kWarpTeam, T>
                                          : cross_entropy_kernel<kBlockTeam, T>;
  const cudaError_t error = launch_kernel(kernel, dim3(blocks), threads, stream, loss, stats,
                                          total_weight, row_values, in);
  if (error != cudaSuccess || blocks == 1) return error;
  return launch_kernel(cross_entropy_reduce_kernel<T>, dim3(1), kManyThreads, stream, loss,
                       total_weight, static_cast<const acc_t<T>*>(row_values), in.rows,
                       in.reduction);
}

template <typename T>
cudaError_t launch_backward(T* dlogits, const T* dloss, const acc_t<T>* stats,
                            const acc_t<T>* total_weight, const Rows<T>& in, cudaStream_t stream) {
  const Team team = team_for(in.classes);
  const bool vector = in.vector && is_aligned(dlogits) && in.classes * sizeof(T) % 16 == 0;
  // Each part of a row would have to add up all class weights: with those, a row stays whole.
  const bool whole = team != kBlockTeam || (in.weight && in.smoothing > 0);
  constexpr int64_t kPart = kThreads * Pack<T>::kCount * 4;
  const int64_t least = ceil_div(in.classes, 65535);  // a grid's largest y
  const int64_t chunk = whole ? in.classes : ceil_div(least, kPart) * kPart;
  const dim3 grid(grid_for(team, in.rows, kThreads),
                  static_cast<unsigned>(ceil_div(in.classes, chunk)));
  const auto kernel = team == kThreadTeam ? cross_entropy_backward_kernel<kThreadTeam, T>
                      : team == kWarpTeam ? cross_entropy_backward_kernel<kWarpTeam, T>
                                          : cross_entropy_backward_kernel<kBlockTeam, T>;
  return launch_kernel(kernel, grid, kThreads, stream, dlogits, dloss, stats, total_weight, in,
                       chunk, vector);
}

}  // namespace

cudaError_t launch_cross_entropy(void* loss, void* stats, void* total_weight, void* workspace,
                                 const CrossEntropyRows& in, Type type, cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Acc = acc_t<T>;
    return launch_forward(static_cast<T*>(loss), static_cast<Acc*>(stats),
                          static_cast<Acc*>(total_weight), static_cast<Acc*>(workspace),
                          typed<T>(in), stream);
  });
}

cudaError_t launch_cross_entropy_backward(void* dlogits, const void* dloss, const void* stats,
                                          const void* total_weight, const CrossEntropyRows& in,
                                          Type type, cudaStream_t stream) {
  if (in.rows == 0 || in.classes == 0) return cudaSuccess;
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Acc = acc_t<T>;
    return launch_backward(static_cast<T*>(dlogits), static_cast<const T*>(dloss),
                           static_cast<const Acc*>(stats), static_cast<const Acc*>(total_weight),
                           typed<T>(in), stream);
  });
}

}  // namespace fastmlp
