// The stages of a step in the chain of a block, for one thread. A thread owns hidden units: what
// belongs to them (columns of p, q, to_w, to_v and of the last layer's weight) nobody else touches,
// so that only sums over units and the gradients of the logits pass through shared memory.
#pragma once
#include "cuda/blocked/chain_history.cuh"

namespace fastmlp {
namespace {

// The activation of the networks that the blocked schedule trains.
using Relu = ActivationRow<Activation::kRelu>;

// A thread on its way through the chain. The arrays of shared memory:
//   table (steps + 1, kResponses)   the recurrence, its first column less 1
//   bias2 (C), weight2 (C, H)       the last layer, the weight only where the plan keeps it there
//   partial (2, warps, C, kTile)    each warp's sums of logits over its units, two tiles in turn
//   dlogits (tiles, C, kTile)       gradients of a step's logits
//   history                         a ChainHistory's
//   losses, hits (rows)             of each row
template <typename T, int kTile, int kUnits>
struct ChainThread {
  using Row = TileRow<T, kTile>;
  const ChainBlock& block;
  const ChainNetwork<T>& net;
  const ChainSgd<T> sgd;
  T *table, *bias2, *weight2, *partial, *dlogits, *losses, *hits;
  ChainHistory<T, kTile> history;
  int steps;          // that are there
  int unit[kUnits];   // a real one even where the thread has none, as `mine` then says: of those
  bool mine[kUnits];  // it may read what nobody writes
  T pre[kUnits][kTile], h[kUnits][kTile];
  T bias[kUnits];  // as the block begins

  __device__ ChainThread(const ChainBlock& block_, const ChainNetwork<T>& net_, T* shared)
      : block(block_), net(net_), sgd(net_.options), history(block_, net_, shared) {
    const ChainPlan& plan = block.plan;
    table = shared;
    bias2 = shared + plan.bias;
    weight2 = plan.keeps_weight ? shared + plan.weight : net.weight2;
    partial = shared + plan.partial, dlogits = shared + plan.dlogits;
    losses = shared + plan.losses, hits = shared + plan.hits;
    steps = (net.rows + block.batch - 1) / block.batch;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int j = threadIdx.x + u * blockDim.x;
      mine[u] = j < block.hidden;
      unit[u] = mine[u] ? j : block.hidden - 1;
      bias[u] = net.bias[unit[u]];
    }
  }

  __device__ int rows_of(int step) const { return net.rows_of(block, step); }

  // Tile `number` of a step; past the last step it has no rows.
  __device__ ChainTile tile_at(int step, int number) const {
    const int left = rows_of(step) - number * kTile;
    const int first = step * block.batch + number * kTile;
    return {step, number, first, clipped(left, kTile), left <= kTile};
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
        weight2[at_class(c, u)] = net.weight2[at_class(c, u)];
      }
    }
  }

  // ---- what a step takes from the steps before it ----

  // Where unit u of the block's row lies; the next row's is net.stride further.
  template <typename Element>
  __device__ Element* cell(Element* all, int row, int u) const {
    return all + row * net.stride + unit[u];
  }

  // pre += what the gradients of the steps [begin, end) have done to these rows.
  __device__ void add_history(const ChainTile& tile, int begin, int end) {
    const int past = tile.step * block.batch;
    const Row* factors = reinterpret_cast<const Row*>(history.of(tile.step)) + tile.number * past;
    constexpr int kAhead = kUnits > 2 ? 4 : 8;  // rows in flight, in registers
    const T* from[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) from[u] = cell(net.to_w, begin * block.batch, u);
#pragma unroll kAhead
    for (int n = begin * block.batch; n < end * block.batch; ++n) {
      const Row factor = factors[n];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const T g = mine[u] ? *from[u] : T(0);
        from[u] += net.stride;
#pragma unroll
        for (int i = 0; i < kTile; ++i) pre[u][i] += factor.v[i] * g;
      }
    }
  }

  // The same of the step before, whose only tile left its gradients in h.
  __device__ void add_latest(const ChainTile& tile) {
    const int past = (tile.step - 1) * block.batch;
    const Row* factors = reinterpret_cast<const Row*>(history.of(tile.step)) + past;
#pragma unroll
    for (int n = 0; n < kTile; ++n) {
      if (n >= block.batch) continue;
      const Row factor = factors[n];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int i = 0; i < kTile; ++i) pre[u][i] += factor.v[i] * h[u][n];
      }
    }
  }

  // pre = p; whoever calls begin_inputs later does not wait for it here.
  __device__ void fetch_inputs(const ChainTile& tile) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const T* from = cell(net.p, tile.first, u);
#pragma unroll
      for (int i = 0; i < kTile; ++i, from += net.stride) {
        pre[u][i] = i < tile.count ? *from : T(0);
      }
    }
  }
  // pre = (1 + from_w) (p + b) + from_v (q + its momentum)
  __device__ void begin_inputs(const ChainTile& tile) {
    if (tile.count <= 0) return;
    const T from_w = table[tile.step * kResponses + kWFromW];
    const T from_v = table[tile.step * kResponses + kWFromV];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const T v = net.q ? net.bias_momentum[unit[u]] : T(0);
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        pre[u][i] += bias[u];
        pre[u][i] += from_w * pre[u][i];
        if (net.q && i < tile.count) {
          pre[u][i] += from_v * (*cell(net.q, tile.first + i, u) + v);
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
      T* to = cell(net.to_w, tile.first, u);
#pragma unroll
      for (int i = 0; i < kTile; ++i, to += net.stride) {
        const bool there = mine[u] && i < tile.count;
        h[u][i] = there ? Relu::forward(pre[u][i]) : T(0);
        if (keep && there) *to = h[u][i];
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
      for (int u = 0; u < kUnits; ++u) w[u] = mine[u] ? weight2[at_class(c + x, u)] : T(0);
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
    if constexpr (kUnits <= 2) {  // more would not fit into registers
      for (; c + 4 <= block.classes; c += 4) sum_classes<4>(c, to);
    }
    for (; c + 2 <= block.classes; c += 2) sum_classes<2>(c, to);
    if (c < block.classes) sum_classes<1>(c, to);
  }

  // ---- the loss ----

  // Loss, hit and gradient of the logits of each row, which half a warp or a whole one shares.
  __device__ void take_loss(const ChainTile& tile, int turn) {
    const int lanes = block.classes <= kWarp / 2 ? kWarp / 2 : kWarp;
    T scale = T(1) / rows_of(tile.step);
    if (sgd.average) scale /= rows_of(tile.step);
    // kTile is even: both halves of a warp have a row, or neither has.
    for (int i = threadIdx.x / lanes; i < kTile; i += blockDim.x / lanes) {
      ChainRow<T, kTile> row;
      row.sums = partial_of(0, turn) + i;
      row.warps = blockDim.x / kWarp;
      row.bias2 = bias2;
      row.classes = block.classes;
      row.there = i < tile.count;
      row.label = row.there ? net.labels[tile.first + i] : 0;
      row.scale = scale;
      row.dlogits = dlogits + tile.number * block.classes * kTile + i;
      row.loss = losses + tile.first + i;
      row.hit = hits + tile.first + i;
      row.take(threadIdx.x % lanes, lanes);
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
        const int at = at_class(c + x, u);
        w[x][u] = mine[u] ? weight2[at] : T(0);
        dw[x][u] = mine[u] && tile.number > 0 ? net.workspace[at] : T(0);
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

  // The gradients of a tile, in h and to_w, and what they mean for the last layer's weight.
  __device__ void backward(const ChainTile& tile) {
    const bool kept = tile.number > 0 || !tile.last;
    T dh[kUnits][kTile];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const T* from = cell(net.to_w, tile.first, u);
#pragma unroll
      for (int i = 0; i < kTile; ++i, from += net.stride) {
        dh[u][i] = 0;
        if (kept) h[u][i] = mine[u] && i < tile.count ? *from : T(0);
      }
    }
    int c = 0;
    if constexpr (kUnits <= 2) {
      for (; c + 4 <= block.classes; c += 4) backward_classes<4>(tile, c, dh);
    }
    for (; c + 2 <= block.classes; c += 2) backward_classes<2>(tile, c, dh);
    if (c < block.classes) backward_classes<1>(tile, c, dh);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      T* to = cell(net.to_w, tile.first, u);
#pragma unroll
      for (int i = 0; i < kTile; ++i, to += net.stride) {
        h[u][i] = Relu::backward(dh[u][i], h[u][i]);
        if (mine[u] && i < tile.count) *to = h[u][i];
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
      const T old_v = net.bias_momentum ? net.bias_momentum[j] : T(0);
      T sum_w = 0, sum_v = 0;  // added to the bias once, beside which each part may be small
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
          sum_w += part;
          sum_v += part_v;
        }
      }
      net.bias[j] = bias[u] + (end[kWFromW] * bias[u] + end[kWFromV] * old_v + sum_w);
      if (net.bias_momentum) {
        net.bias_momentum[j] = end[kVFromW] * bias[u] + end[kVFromV] * old_v + sum_v;
      }
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
