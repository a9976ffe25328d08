// The stages of a step in the chain of a block, for one thread. A thread owns hidden units: what
// belongs to them (columns of p, q, to_w, to_v and of the last layer's weight) nobody else touches,
// so that only sums over units and the gradients of the logits pass through shared memory.
#pragma once
#include "../cpu/blocked.h"
#include "kernel.cuh"

namespace fastmlp {
namespace {

constexpr int kMostClassesOfLane = 4;  // 128 classes, 32 lanes
constexpr int kAhead = 8;              // Gram numbers that a thread fetches before it needs them

// Rows of a batch that are worked on at once: `count` of them from `first` on, in the block.
struct ChainTile {
  int step, number, first, count;
  bool last;  // of its step
};

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

  __device__ static T* part(void* all, int64_t at) {
    return all ? static_cast<T*>(all) + at : nullptr;
  }
};

// A thread on its way through the chain. The arrays of shared memory:
//   table (steps + 1, kResponses)   the recurrence
//   bias2 (C), weight2 (C, H)       the last layer, the weight only where the plan keeps it there
//   partial (2, warps, C, kTile)    each warp's sums of logits over its units, two tiles in turn
//   dlogits (tiles, C, kTile)       gradients of a step's logits
//   history (2, tiles, n, kTile)    what the rows of a step take from the gradient of each earlier
//                                   row n, for the even and the odd steps
//   losses, hits (rows)             of each row
template <typename T, int kTile, int kUnits>
struct ChainThread {
  using Row = TileRow<T, kTile>;
  const ChainBlock& block;
  const ChainNetwork<T>& net;
  const ChainSgd<T> sgd;
  T *table, *bias2, *weight2, *partial, *dlogits, *history, *losses, *hits;
  int steps;          // that are there
  int unit[kUnits];   // a real one even where the thread has none,
  bool mine[kUnits];  // which this tells
  T pre[kUnits][kTile], h[kUnits][kTile];
  T fetched[kAhead];

  __device__ ChainThread(const ChainBlock& block_, const ChainNetwork<T>& net_, T* shared)
      : block(block_), net(net_), sgd(net_.options) {
    const ChainPlan& plan = block.plan;
    table = shared;
    bias2 = shared + plan.bias;
    weight2 = plan.keeps_weight ? shared + plan.weight : net.weight2;
    partial = shared + plan.partial;
    dlogits = shared + plan.dlogits;
    history = shared + plan.history;
    losses = shared + plan.losses;
    hits = shared + plan.hits;
    steps = (net.rows + block.batch - 1) / block.batch;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int j = threadIdx.x + u * blockDim.x;
      mine[u] = j < block.hidden;
      unit[u] = mine[u] ? j : block.hidden - 1;
    }
  }

  __device__ int rows_of(int step) const {
    const int left = net.rows - step * block.batch;
    return left < block.batch ? left : block.batch;
  }

  // Tile `number` of a step; past the last step it has no rows.
  __device__ ChainTile tile_at(int step, int number) const {
    const int rows = rows_of(step), left = rows - number * kTile;
    return {step, number, step * block.batch + number * kTile,
            left < 0       ? 0
            : left < kTile ? left
                           : kTile,
            left <= kTile};
  }

  __device__ void load() {
    for (int i = threadIdx.x; i < (block.steps + 1) * kResponses; i += blockDim.x) {
      table[i] = net.recurrence[i];
    }
    for (int c = threadIdx.x; c < block.classes; c += blockDim.x) bias2[c] = net.bias2[c];
    if (!block.plan.keeps_weight) return;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      for (int c = 0; mine[u] && c < block.classes; ++c) {
        const int64_t at = static_cast<int64_t>(c) * block.hidden + unit[u];
        weight2[at] = net.weight2[at];
      }
    }
  }

  // ---- what a step takes from the steps before it ----

  __device__ T* history_of(int step) const {
    return history + (step & 1) * (block.steps > 2 ? block.plan.history_size : 0);
  }

  // Number e of history_of(step): row i of a tile, earlier row n.
  struct Place {
    int row, n;
    bool there;
  };
  __device__ Place place(int step, int e) const {
    const int past = step * block.batch, m = e / kTile, tile = m / past;
    const int i = tile * kTile + e % kTile;
    return {step * block.batch + i, m - tile * past, i < rows_of(step)};
  }
  __device__ int history_count(int step) const {
    if (step >= steps) return 0;
    return (rows_of(step) + kTile - 1) / kTile * kTile * step * block.batch;
  }

  // The Gram matrix is read by rows of earlier images, of which a tile's are neighbours.
  __device__ T gram_at(const Place& at) const {
    return at.there ? net.gram[static_cast<int64_t>(at.n) * (block.steps * block.batch) + at.row]
                    : T(0);
  }
  __device__ T from_gradient(int step, const Place& at, T gram) const {
    return at.there ? table[(step - at.n / block.batch) * kResponses + kWFromG] * gram : T(0);
  }

  // Begins to read what store_history(step) then keeps.
  __device__ void fetch_history(int step) {
    const int count = history_count(step);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int e = threadIdx.x + k * blockDim.x;
      if (e < count) fetched[k] = gram_at(place(step, e));
    }
  }
  __device__ void store_history(int step) {
    const int count = history_count(step);
    T* to = history_of(step);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int e = threadIdx.x + k * blockDim.x;
      if (e < count) to[e] = from_gradient(step, place(step, e), fetched[k]);
    }
    for (int e = threadIdx.x + kAhead * blockDim.x; e < count; e += blockDim.x) {
      const Place at = place(step, e);
      to[e] = from_gradient(step, at, gram_at(at));
    }
  }

  // pre += what the gradients of the steps [begin, end) have done to these rows.
  __device__ void add_history(const ChainTile& tile, int begin, int end) {
    const int past = tile.step * block.batch;
    const Row* factors = reinterpret_cast<const Row*>(history_of(tile.step)) + tile.number * past;
#pragma unroll 4
    for (int n = begin * block.batch; n < end * block.batch; ++n) {
      const Row factor = factors[n];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const T g = net.to_w[n * net.stride + unit[u]];
#pragma unroll
        for (int i = 0; i < kTile; ++i) pre[u][i] += factor.v[i] * g;
      }
    }
  }

  // pre = p; whoever calls begin_inputs later does not wait for it here.
  __device__ void fetch_inputs(const ChainTile& tile) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        pre[u][i] = i < tile.count ? net.p[(tile.first + i) * net.stride + unit[u]] : T(0);
      }
    }
  }
  // pre = from_w p + from_v q
  __device__ void begin_inputs(const ChainTile& tile) {
    if (tile.count <= 0) return;
    const T from_w = table[tile.step * kResponses + kWFromW];
    const T from_v = table[tile.step * kResponses + kWFromV];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        pre[u][i] *= from_w;
        if (net.q && i < tile.count) {
          pre[u][i] += from_v * net.q[(tile.first + i) * net.stride + unit[u]];
        }
      }
    }
  }

  // ---- forward ----

  // h = relu(pre), 0 where there is no row or no unit. Where a step has several tiles it waits in
  // to_w for its gradient to take its place.
  __device__ void activate(const ChainTile& tile) {
    const bool keep = tile.number > 0 || !tile.last;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        h[u][i] = mine[u] && i < tile.count ? relu(pre[u][i]) : T(0);
        if (keep && mine[u] && i < tile.count) {
          net.to_w[(tile.first + i) * net.stride + unit[u]] = h[u][i];
        }
      }
    }
  }

  // This warp's part of the logits' sums, of classes c .. c + kClasses.
  template <int kClasses>
  __device__ void sum_classes(int c, T* to) {
    constexpr int kLanes = kWarp / kTile;  // that end up with the same row
    const int lane = threadIdx.x % kWarp;
    T sums[kClasses][kTile];
#pragma unroll
    for (int x = 0; x < kClasses; ++x) {
      T w[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) w[u] = weight2[at_class(c + x, u)];
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        sums[x][i] = h[0][i] * w[0];
#pragma unroll
        for (int u = 1; u < kUnits; ++u) sums[x][i] += h[u][i] * w[u];
      }
    }
#pragma unroll
    for (int x = 0; x < kClasses; ++x) {
      const T sum = sum_rows<T, kTile>(sums[x]);
      if (lane % kLanes == 0) to[(c + x) * kTile + lane / kLanes] = sum;
    }
  }
  __device__ int at_class(int c, int u) const { return c * block.hidden + unit[u]; }

  __device__ T* partial_of(int warp, int turn) const {
    const int warps = blockDim.x / kWarp;
    return partial + (turn * warps + warp) * block.classes * kTile;
  }

  __device__ void sum_logits(int turn) {
    T* to = partial_of(threadIdx.x / kWarp, turn);
    int c = 0;
    for (; c + 4 <= block.classes; c += 4) sum_classes<4>(c, to);
    for (; c + 2 <= block.classes; c += 2) sum_classes<2>(c, to);
    if (c < block.classes) sum_classes<1>(c, to);
  }

  // ---- the loss, its rows shared among half or whole warps ----

  template <typename Value, typename Combine>
  __device__ static Value over_lanes(Value value, int lanes, const Combine& combine) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      if (distance < lanes) value = combine(value, shuffle_xor(value, distance));
    }
    return value;
  }

  // Loss, hit and gradient of the logits of each row; the gradient of a row that is not there is 0.
  __device__ void take_loss(const ChainTile& tile, int turn) {
    const int lanes = block.classes <= kWarp / 2 ? kWarp / 2 : kWarp;
    for (int i = threadIdx.x / lanes; i < kTile; i += blockDim.x / lanes) {
      loss_of_row(tile, i, turn, lanes);  // kTile is even: a warp's halves both have a row or none
    }
  }

  __device__ void loss_of_row(const ChainTile& tile, int i, int turn, int lanes) {
    const int rank = threadIdx.x % lanes, warps = blockDim.x / kWarp, classes = block.classes;
    const bool there = i < tile.count;
    T z[kMostClassesOfLane], max = -kInfinity<T>, sum = 0;
#pragma unroll
    for (int x = 0; x < kMostClassesOfLane; ++x) {
      const int c = rank + x * lanes;
      z[x] = -kInfinity<T>;
      if (c >= classes) continue;
      T logit = bias2[c];
      for (int w = 0; w < warps; ++w) logit += partial_of(w, turn)[c * kTile + i];
      z[x] = logit;
      max = logit > max ? logit : max;
    }
    max = over_lanes(max, lanes, [](T a, T b) { return a > b ? a : b; });
    int guess = classes;  // the first class with the largest logit
#pragma unroll
    for (int x = 0; x < kMostClassesOfLane; ++x) {
      const int c = rank + x * lanes;
      if (c < classes) sum += exp_of(z[x] - max);
      if (z[x] == max && c < guess) guess = c;
    }
    sum = over_lanes(sum, lanes, [](T a, T b) { return a + b; });
    guess = over_lanes(guess, lanes, [](int a, int b) { return a < b ? a : b; });
    const int64_t label = there ? net.labels[tile.first + i] : 0;
    const bool known = label >= 0 && label < classes;
    T scale = T(1) / rows_of(tile.step);
    if (sgd.average) scale /= rows_of(tile.step);
    T* d = dlogits + tile.number * classes * kTile + i;
#pragma unroll
    for (int x = 0; x < kMostClassesOfLane; ++x) {
      const int c = rank + x * lanes;
      if (c >= classes) continue;
      const T hot = c == label ? T(1) : T(0);
      const T gradient = known ? scale * (exp_of(z[x] - max) / sum - hot) : static_cast<T>(NAN);
      d[c * kTile] = there ? gradient : T(0);
      if (there && c == (known ? label : 0)) {
        losses[tile.first + i] = known ? log_of(sum) - (z[x] - max) : static_cast<T>(NAN);
        hits[tile.first + i] = guess == label ? T(1) : T(0);
      }
    }
  }

  // ---- backward ----

  // dh += dlogits w and the step of SGD on w, or up to the last tile only its gradient's sum, of
  // classes c .. c + kClasses.
  template <int kClasses>
  __device__ void backward_classes(const ChainTile& tile, int c, T (&dh)[kUnits][kTile]) {
    const Row* rows = reinterpret_cast<const Row*>(dlogits) + tile.number * block.classes;
    T w[kClasses][kUnits], dw[kClasses][kUnits];
#pragma unroll
    for (int x = 0; x < kClasses; ++x) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        w[x][u] = weight2[at_class(c + x, u)];
        dw[x][u] = tile.number > 0 ? net.workspace[at_class(c + x, u)] : T(0);
      }
    }
#pragma unroll
    for (int x = 0; x < kClasses; ++x) {
      const Row d = rows[c + x];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int i = 0; i < kTile; ++i) {
          dh[u][i] += d.v[i] * w[x][u];
          dw[x][u] += d.v[i] * h[u][i];
        }
      }
    }
#pragma unroll
    for (int x = 0; x < kClasses; ++x) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (!mine[u]) continue;
        const int at = at_class(c + x, u);
        if (!tile.last) {
          net.workspace[at] = dw[x][u];
        } else {
          T* buffer = net.weight2_momentum ? net.weight2_momentum + at : nullptr;
          weight2[at] = sgd.moved(w[x][u], dw[x][u], buffer);
        }
      }
    }
  }

  // The gradients of a tile, in to_w, and what they mean for the last layer's weight.
  __device__ void backward(const ChainTile& tile) {
    const bool kept = tile.number > 0 || !tile.last;
    T dh[kUnits][kTile];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        dh[u][i] = 0;
        if (kept) {
          const bool there = mine[u] && i < tile.count;
          h[u][i] = there ? net.to_w[(tile.first + i) * net.stride + unit[u]] : T(0);
        }
      }
    }
    int c = 0;
    for (; c + 4 <= block.classes; c += 4) backward_classes<4>(tile, c, dh);
    for (; c + 2 <= block.classes; c += 2) backward_classes<2>(tile, c, dh);
    if (c < block.classes) backward_classes<1>(tile, c, dh);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        if (!mine[u] || i >= tile.count) continue;
        net.to_w[(tile.first + i) * net.stride + unit[u]] = relu_backward(dh[u][i], h[u][i]);
      }
    }
  }

  // The step of SGD on the last layer's bias: a class, a thread.
  __device__ void move_bias2(int step) {
    const int rows = rows_of(step);
    for (int c = threadIdx.x; c < block.classes; c += blockDim.x) {
      T sum = 0;
      for (int i = 0; i < rows; ++i) {
        sum += dlogits[(i / kTile * block.classes + c) * kTile + i % kTile];
      }
      bias2[c] = sgd.moved(bias2[c], sum, net.bias2_momentum ? net.bias2_momentum + c : nullptr);
    }
  }

  // ---- the block's end ----

  // to_w, to_v: gradients times what they have done by then, 0 where there is no row; the bias.
  __device__ void collect() {
    constexpr int kRows = 8;  // in flight
    const T* end = table + steps * kResponses;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!mine[u]) continue;
      const int j = unit[u];
      const T old = net.bias[j], old_v = net.bias_momentum ? net.bias_momentum[j] : T(0);
      T bias = end[kWFromW] * old + end[kWFromV] * old_v;
      T bias_v = end[kVFromW] * old + end[kVFromV] * old_v;
      for (int first = 0; first < block.steps * block.batch; first += kRows) {
        T g[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          g[i] = first + i < net.rows ? net.to_w[(first + i) * net.stride + j] : T(0);
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int row = first + i;
          if (row >= block.steps * block.batch) continue;
          const bool there = row < net.rows;
          const T* response = table + (there ? steps - row / block.batch : 0) * kResponses;
          const T part = there ? response[kWFromG] * g[i] : T(0);
          const T part_v = there ? response[kVFromG] * g[i] : T(0);
          net.to_w[row * net.stride + j] = part;
          if (net.to_v) net.to_v[row * net.stride + j] = part_v;
          bias += part;
          bias_v += part_v;
        }
      }
      net.bias[j] = bias;
      if (net.bias_momentum) net.bias_momentum[j] = bias_v;
    }
  }

  // The last layer as it is now, the mean losses and the hits; 0 for steps that are not there.
  __device__ void store() {
    for (int c = threadIdx.x; c < block.classes; c += blockDim.x) net.bias2[c] = bias2[c];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int classes = block.plan.keeps_weight && mine[u] ? block.classes : 0;
      for (int c = 0; c < classes; ++c) {
        net.weight2[at_class(c, u)] = weight2[at_class(c, u)];
      }
    }
    for (int step = threadIdx.x; step < block.steps; step += blockDim.x) {
      const int rows = step < steps ? rows_of(step) : 0;
      double loss = 0, hit = 0;
      for (int i = 0; i < rows; ++i) {
        loss += losses[step * block.batch + i];
        hit += hits[step * block.batch + i];
      }
      net.losses[step] = rows > 0 ? static_cast<T>(loss / rows) : T(0);
      net.correct[step] = static_cast<int64_t>(hit);
    }
    if (threadIdx.x > 0) return;
    const T* end = table + steps * kResponses;
    net.ends[0] = end[kWFromW];
    net.ends[1] = end[kWFromV];
    net.ends[2] = end[kVFromW];
    net.ends[3] = end[kVFromV];
  }
};

}  // namespace
}  // namespace fastmlp
