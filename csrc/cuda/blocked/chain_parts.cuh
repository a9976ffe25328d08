// What a thread of the chain's kernel is made of: tiles of rows, SGD, the loss of a row, its
// network's arrays.
#pragma once
#include "common/blocked_sgd.h"
#include "cuda/kernel.cuh"

namespace fastmlp {
namespace {

// Rows of a batch that are worked on at once: `count` of them from `first` on, in the block.
struct ChainTile {
  int step, number, first, count;
  bool last;  // of its step
};

// x, but not below 0 nor above `most`.
__device__ inline int clipped(int x, int most) { return x < 0 ? 0 : x < most ? x : most; }

// a / b for 0 <= a < 2^16, 0 < b <= 2^10: a division of integers takes many instructions, and here
// the rounding of floats is far less than half the distance of (a + 0.5) / b from an integer.
__device__ inline int quotient(int a, int b) {
  return static_cast<int>((static_cast<float>(a) + 0.5f) * (1.0f / static_cast<float>(b)));
}

// The same number of each of a tile's rows.
template <typename T, int kTile>
struct alignas(kTile * sizeof(T) < 16 ? kTile * sizeof(T) : 16) TileRow {
  T v[kTile];
};

// One step of torch.optim.SGD.
template <typename T>
struct ChainSgd {
  T lr, momentum, decay;
  bool nesterov, average;

  __device__ explicit ChainSgd(const T* options)
      : lr(options[kLr]),
        momentum(options[kMomentum]),
        decay(options[kWeightDecay]),
        nesterov(options[kNesterov] != 0),
        average(options[kGradAverage] != 0) {}

  // w after the step; *buffer, its momentum, moves along unless it is null.
  __device__ T moved(T w, T g, T* buffer) const {
    g += decay * w;
    if (buffer) {
      const T v = momentum * *buffer + g;
      *buffer = v;
      g = nesterov ? g + momentum * v : v;
    }
    return w - lr * g;
  }
};

// Sums of a tile's rows over the warp's lanes; each lane gets that of row lane / (32 / kTile).
template <typename T, int kTile>
__device__ T sum_rows(T (&sums)[kTile]) {
  const int lane = threadIdx.x % kWarp;
  int distance = kWarp / 2;
#pragma unroll
  for (int half = kTile / 2; half > 0; half /= 2) {
    const bool upper = lane & distance;  // keeps the upper half of the rows
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T keep = upper ? sums[i + half] : sums[i], give = upper ? sums[i] : sums[i + half];
      sums[i] = keep + shuffle_xor(give, distance);
    }
    distance /= 2;
  }
#pragma unroll
  for (int rest = kWarp / kTile / 2; rest > 0; rest /= 2) sums[0] += shuffle_xor(sums[0], rest);
  return sums[0];
}

// The values of `lanes` neighbouring lanes (16 or 32) combined, the same bits in each of them.
template <typename Value, typename Combine>
__device__ Value over_lanes(Value value, int lanes, const Combine& combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    if (distance < lanes) value = combine(value, shuffle_xor(value, distance));
  }
  return value;
}

// A row of logits, each the sum of what the warps have of it, and what the loss makes of it: its
// numbers of neighbouring classes are kTile apart. Of a row that is not there the gradient is 0.
template <typename T, int kTile>
struct ChainRow {
  static constexpr int kMost = 4;  // classes of a lane: 128 of them, 32 lanes
  const T* sums;                   // (warps, classes)
  const T* bias2;
  int warps, classes;
  bool there;
  int64_t label;
  T scale;     // of the gradient
  T* dlogits;  // (classes) out
  T *loss, *hit;

  // By all lanes that share the row; this one has classes rank, rank + lanes, ..
  __device__ void take(int rank, int lanes) const {
    T z[kMost], max = -kInfinity<T>, sum = 0;
#pragma unroll
    for (int x = 0; x < kMost; ++x) {
      const int c = rank + x * lanes;
      z[x] = -kInfinity<T>;
      if (c >= classes) continue;
      T logit = bias2[c];
      for (int w = 0; w < warps; ++w) logit += sums[(w * classes + c) * kTile];
      z[x] = logit;
      max = logit > max ? logit : max;
    }
    max = over_lanes(max, lanes, [](T a, T b) { return a > b ? a : b; });
    int guess = classes;  // the first class with the largest logit
#pragma unroll
    for (int x = 0; x < kMost; ++x) {
      const int c = rank + x * lanes;
      if (c < classes) sum += exp_of(z[x] - max);
      if (z[x] == max && c < guess) guess = c;
    }
    sum = over_lanes(sum, lanes, [](T a, T b) { return a + b; });
    guess = over_lanes(guess, lanes, [](int a, int b) { return a < b ? a : b; });
    const bool known = label >= 0 && label < classes;
#pragma unroll
    for (int x = 0; x < kMost; ++x) {
      const int c = rank + x * lanes;
      if (c >= classes) continue;
      const T hot = c == label ? T(1) : T(0);
      const T gradient = known ? scale * (exp_of(z[x] - max) / sum - hot) : static_cast<T>(NAN);
      dlogits[c * kTile] = there ? gradient : T(0);
      if (there && c == (known ? label : 0)) {
        *loss = known ? log_of(sum) - (z[x] - max) : static_cast<T>(NAN);
        *hit = guess == label ? T(1) : T(0);
      }
    }
  }
};

// One network's part of a ChainBlock.
template <typename T>
struct ChainNetwork {
  const T *p, *q, *gram, *recurrence, *options;
  const int64_t* labels;
  T *bias, *weight2, *bias2, *bias_momentum, *weight2_momentum, *bias2_momentum;
  T *workspace, *to_w, *to_v, *ends, *losses;
  int64_t* correct;
  int64_t stride;  // between rows of p, q, to_w, to_v
  int rows;        // that are there

  __device__ ChainNetwork(const ChainBlock& block, int64_t network) {
    const int64_t group = network / block.networks, all_rows = block.steps * block.batch;
    const int64_t hidden = block.hidden, classes = block.classes;
    stride = block.networks * hidden;
    const int64_t at = group * all_rows * stride + network % block.networks * hidden;
    p = static_cast<const T*>(block.p) + at;
    q = block.q ? static_cast<const T*>(block.q) + at : nullptr;
    to_w = static_cast<T*>(block.to_w) + at;
    to_v = part(block.to_v, at);
    gram = static_cast<const T*>(block.gram) + group * all_rows * all_rows;
    labels = block.labels + group * all_rows;
    recurrence = static_cast<const T*>(block.recurrence) + network * (block.steps + 1) * kResponses;
    options = static_cast<const T*>(block.options) + network * kOptions;
    bias = part(block.bias, network * hidden);
    weight2 = part(block.weight2, network * classes * hidden);
    bias2 = part(block.bias2, network * classes);
    bias_momentum = part(block.bias_momentum, network * hidden);
    weight2_momentum = part(block.weight2_momentum, network * classes * hidden);
    bias2_momentum = part(block.bias2_momentum, network * classes);
    workspace = part(block.workspace, network * classes * hidden);
    ends = part(block.ends, network * 4);
    losses = part(block.losses, network * block.steps);
    correct = block.correct + network * block.steps;
    const int64_t count = block.counts[group];
    rows = static_cast<int>(count < 0 ? 0 : count < all_rows ? count : all_rows);
  }

  // Rows of a step that are there.
  __device__ int rows_of(const ChainBlock& block, int step) const {
    return clipped(rows - step * block.batch, block.batch);
  }

  __device__ static T* part(void* all, int64_t at) {
    return all ? static_cast<T*>(all) + at : nullptr;
  }
};

// Rows of a tile of the kernels that walk by tensor cores.
constexpr int kTileRows = 8;

// By all threads, after the walk: losses and hits, 0 for steps that are not there.
template <typename Chain>
__device__ void finish_chain(const Chain& chain) {
  const ChainNetwork<float>& net = chain.net;
  const int lane = threadIdx.x % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int step = threadIdx.x / kWarp; step < chain.block.steps; step += warps) {
    const int rows = chain.rows_of(step), first = chain.first_tile(step) * kTileRows;
    double loss = 0, hit = 0;
#pragma unroll 1
    for (int i = lane; i < rows; i += kWarp) {
      loss += log_of(chain.sums[first + i]) - chain.margins[first + i];
      hit += chain.hits[first + i];
    }
    loss = combine_warp(loss), hit = combine_warp(hit);
    if (lane > 0) continue;
    net.losses[step] = rows > 0 ? static_cast<float>(loss / rows) : 0.0f;
    net.correct[step] = static_cast<int64_t>(hit);
  }
  if (threadIdx.x > 0) return;
  const float* end = chain.table + chain.steps * kResponses;
  net.ends[0] = end[kWFromW];
  net.ends[1] = end[kWFromV];
  net.ends[2] = end[kVFromW];
  net.ends[3] = end[kVFromV];
}

}  // namespace
}  // namespace fastmlp
