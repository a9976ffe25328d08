// The two kinds of warps of the pipelined chain. Warp w of either kind has hidden units 32 w .. 32
// w
// + 31. What belongs to a unit only these two warps touch, so they wait for each other alone; the
// walking warps also meet for the logits.
#pragma once
#include "cuda/blocked/chain_parts.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastmlp {
namespace {

constexpr int kSums =
    20;  // numbers between rows of partial logits, which the banks then tell apart
constexpr int kLogits = 16;  // of a row of their gradients, zeros behind the classes

// A block's memory and sizes, for a thread. The arrays of shared memory:
//   table (steps + 1, kResponses)         the recurrence, its first column less 1
//   slots (tiles, kTileRows, kStride)     what a row's ReLU gets, then what it gives, then its
//                                         gradient: of a unit, a column
//   factors                               from_g(age) gram of each row and those of earlier steps,
//                                         0 where either is not there: see factors_of
//   weight (units, kClassStride)          the last layer's, transposed
//   partial (2, warps, kTileRows, kSums)  each warp's sums of logits over its units, two tiles in
//                                         turn
//   dlogits (tiles of a step, kTileRows, kLogits)  gradients of a step's logits
//   labels (tiles * kTileRows)            -1 where they are no class
//   sums, margins, hits (tiles * kTileRows)  of each row: of exp(logit - largest), the label's
//   logit
//                                            less the largest, whether the label is its place
//   ready, done (warps, tiles)            flags: the slot holds what the ReLU gets; its gradients
template <int kWarps, int kClasses>
struct PipelinedChain {
  // Rows 4 numbers past a multiple of 32, and 8 or 24: what a warp reads lies in different banks.
  static constexpr int kUnits = kWarps * kWarp, kStride = kUnits + 4;
  static constexpr int kClassStride = kClasses <= 4 ? 8 : 24;
  // Times 32 columns of factors whose numbers are on the way.
  static constexpr int kAhead = kWarps == 8 ? 2 : 4;
  const ChainBlock& block;
  const ChainNetwork<float>& net;
  float *table, *slots, *factors, *weight, *partial, *dlogits, *sums, *margins, *hits;
  int* labels;
  Flag *ready, *done;
  const int batch, tiles_of_step, flags;  // the latter of a warp
  int steps, tiles;                       // that are there

  __device__ PipelinedChain(const ChainBlock& block_, const ChainNetwork<float>& net_,
                            float* shared)
      : block(block_),
        net(net_),
        batch(block_.batch),
        tiles_of_step(block_.pipelined.tiles_of_step),
        flags(block_.pipelined.tiles) {
    const PipelinedChainPlan& plan = block.pipelined;
    table = shared;
    slots = shared + plan.slots;
    factors = shared + plan.factors;
    weight = shared + plan.weight;
    partial = shared + plan.partial;
    dlogits = shared + plan.dlogits;
    sums = shared + plan.sums, margins = shared + plan.margins, hits = shared + plan.hits;
    labels = reinterpret_cast<int*>(shared + plan.labels);
    ready = reinterpret_cast<Flag*>(shared + plan.flags);
    done = ready + kWarps * flags;
    steps = (net.rows + batch - 1) / batch;
    tiles = steps * tiles_of_step;
  }

  __device__ int step_of(int tile) const {
    return tiles_of_step == 1 ? tile : quotient(tile, tiles_of_step);
  }
  __device__ int first_tile(int step) const { return step * tiles_of_step; }
  __device__ int rows_of(int step) const { return clipped(net.rows - step * batch, batch); }
  // The row of the block that is row `within` of a tile of this step.
  __device__ int row_at(int step, int tile, int within) const {
    return step * batch + (tile - first_tile(step)) * kTileRows + within;
  }
  // Rows of a tile that are there.
  __device__ int rows_of(int step, int tile) const {
    return clipped(rows_of(step) - (tile - first_tile(step)) * kTileRows, kTileRows);
  }
  __device__ float* slot(int tile) const { return slots + tile * (kTileRows * kStride); }

  // The row of factors of row `within` of a tile: a number for each row of the tiles before it. Two
  // tiles' rows are equally long, a multiple of 8 but not of 16 numbers, so that the banks of
  // neighbours differ.
  __device__ static int factors_stride(int tile) { return 2 * kTileRows * (tile / 2) + kTileRows; }
  __device__ float* factors_of(int tile, int within) const {
    const int pair = tile / 2;
    return factors + 2 * kTileRows * kTileRows * pair * pair +
           (tile % 2 * kTileRows + within) * factors_stride(tile);
  }

  // By all threads, what needs no other thread's numbers.
  __device__ void load() const {
    for (int i = threadIdx.x; i < (block.steps + 1) * kResponses; i += blockDim.x) {
      table[i] = net.recurrence[i];
    }
    for (int i = threadIdx.x; i < tiles * kTileRows; i += blockDim.x) {
      const int tile = i / kTileRows, step = step_of(tile), within = i % kTileRows;
      const bool there = within < rows_of(step, tile);
      const int64_t label = there ? net.labels[row_at(step, tile, within)] : -1;
      labels[i] = label >= 0 && label < block.classes ? static_cast<int>(label) : -1;
    }
    for (int i = threadIdx.x; i < 2 * kWarps * flags; i += blockDim.x) lower(ready + i);
  }

  // By all threads: a warp makes the factors of a tile, kAhead times 32 columns at a time.
  __device__ void make_factors() const {
    for (int tile = threadIdx.x / kWarp; tile < tiles; tile += 2 * kWarps) {
      const int stride = factors_stride(tile);
      for (int left = 0; left < stride; left += kAhead * kWarp) make_factors(tile, left);
    }
  }
  __device__ void make_factors(int tile, int left) const {
    const int step = step_of(tile), there = rows_of(step, tile), stride = factors_stride(tile);
    const int first = left + static_cast<int>(threadIdx.x) % kWarp;
    const int64_t all = block.steps * batch;
    float response[kAhead], gram[kAhead][kTileRows];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int column = first + k * kWarp, past = column / kTileRows, within = column % kTileRows;
      const int then = step_of(past);
      const bool known = then < step && within < rows_of(then, past);
      // The table may not be there yet.
      response[k] = known ? net.recurrence[(step - then) * kResponses + kWFromG] : 0.0f;
      const float* from = net.gram + row_at(step, tile, 0) * all + row_at(then, past, within);
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) gram[k][i] = known && i < there ? from[i * all] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      float* to = factors_of(tile, 0) + first + k * kWarp;
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        if (first + k * kWarp < stride) to[i * stride] = response[k] * gram[k][i];
      }
    }
  }
};

// ---- the warps that add up what earlier steps have done ----

// Fills the slots of tile after tile, two at once, the rows of a fragment of tensor cores, with
// (1 + from_w) (p + b) + from_v (q + b's momentum) and what the gradients before the newest tile
// have done; that one the walking warps add themselves. Takes each tile's gradients to to_w and
// to_v as soon as they are there, times what they will have done by the end of the block.
template <typename Chain>
class HistoryWarp {
  static constexpr int kParts = kWarp / 8;  // a fragment has 8 units
  const Chain& chain;
  const int warp, lane, group, pair;  // the latter of the lane in a fragment
  float bias[kParts][2];
  float fetched[2][kParts][2];  // p of the next two tiles
  float pre[kParts][4];         // of both tiles
  int known = 0;                // tiles whose gradients are there
  float sum_w = 0, sum_v = 0;   // of the gradients of unit 32 w + lane, times the same

 public:
  __device__ HistoryWarp(const Chain& chain_, int warp_)
      : chain(chain_), warp(warp_), lane(threadIdx.x % kWarp), group(lane / 4), pair(lane % 4 * 2) {
    for_units([&](int part, int e, int unit, bool mine) {
      bias[part][e] = mine ? chain.net.bias[unit] : 0.0f;
    });
  }

  __device__ void run() {
    fetch(0);
    clear_missing();
    for (int tile = 0; tile < chain.tiles; tile += 2) {
      begin(tile);
      fetch(tile + 2);
      const bool second = tile + 1 < chain.tiles;
      const int newest = newest_of(tile), newest_of_second = second ? newest_of(tile + 1) : newest;
      int past = 0;
      for (; past < newest; ++past) add(tile, past, true);
      hand_over(tile, 0);
      for (; past < newest_of_second; ++past) add(tile, past, false);
      if (second) hand_over(tile + 1, 1);
    }
    while (known < chain.tiles) take_gradients();
    move_bias();
  }

 private:
  template <typename F>
  __device__ void for_units(F f) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int unit = warp * kWarp + part * 8 + pair + e;
        f(part, e, unit, unit < chain.block.hidden);
      }
    }
  }

  // The last tile before a tile's step.
  __device__ int newest_of(int tile) const { return chain.first_tile(chain.step_of(tile)) - 1; }

  __device__ void fetch(int tile) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int step = chain.step_of(tile + t);
      const bool there = tile + t < chain.tiles && group < chain.rows_of(step, tile + t);
      const float* from = chain.net.p + chain.row_at(step, tile + t, group) * chain.net.stride;
      for_units([&](int part, int e, int unit, bool mine) {
        fetched[t][part][e] = there && mine ? from[unit] : 0.0f;
      });
    }
  }

  // pre, without the past.
  __device__ void begin(int tile) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int step = chain.step_of(tile + t);
      const bool there = tile + t < chain.tiles && group < chain.rows_of(step, tile + t);
      const float from_w = there ? chain.table[step * kResponses + kWFromW] : 0.0f;
      for_units([&](int part, int e, int, bool) {
        const float x = fetched[t][part][e] + bias[part][e];
        pre[part][2 * t + e] = x + from_w * x;
      });
      if (!chain.net.q || !there) continue;
      const float from_v = chain.table[step * kResponses + kWFromV];
      const float* q = chain.net.q + chain.row_at(step, tile + t, group) * chain.net.stride;
      for_units([&](int part, int e, int unit, bool mine) {
        if (mine) pre[part][2 * t + e] += from_v * (q[unit] + chain.net.bias_momentum[unit]);
      });
    }
  }

  // Adds what the gradients of tile `past` have done: to both tiles or only to the second. Index k
  // of a fragment's products counts the rows 0, 2, 4, 6, 1, 3, 5, 7, which lie in different banks.
  // Tensor cores cut off the last bits of their sums, so these run over eight rows only.
  __device__ void add(int tile, int past, bool both) {
    if (past >= known) take_gradients();
    const float* factors = chain.factors_of(tile, group) + past * kTileRows + pair;
    const auto first = both ? *reinterpret_cast<const float2*>(factors) : float2{0.0f, 0.0f};
    const auto second =
        *reinterpret_cast<const float2*>(factors + kTileRows * Chain::factors_stride(tile));
    const float a[4] = {first.x, second.x, first.y, second.y};
    uint32_t left[4], left_small[4];
    split_floats(a, left, left_small);
    const float* row = chain.slot(past) + pair * Chain::kStride + warp * kWarp + group;
    uint32_t right[kParts][2], right_small[kParts][2];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float b[2] = {row[part * 8], row[Chain::kStride + part * 8]};
      split_floats(b, right[part], right_small[part]);
    }
    // Each product waits for the one before it in its sum: those of the parts take turns.
    float sums[kParts][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left_small, right[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left, right_small[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left, right[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int e = 0; e < 4; ++e) pre[part][e] += sums[part][e];
    }
  }

  // Gives the walking warp the sums of a tile, the first or the second of the fragments.
  __device__ void hand_over(int tile, int t) const {
    float* to = chain.slot(tile) + group * Chain::kStride + warp * kWarp + pair;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      *reinterpret_cast<float2*>(to + part * 8) = {pre[part][2 * t], pre[part][2 * t + 1]};
    }
    __syncwarp();  // all lanes have written before lane 0 says so
    if (lane == 0) raise(chain.ready + warp * chain.flags + tile);
  }

  // ---- what leaves the block ----

  // The lane's place in a row of to_w and to_v.
  __device__ int unit() const { return warp * kWarp + lane; }

  // Waits for the gradients of tile `known` and writes to_w and to_v.
  __device__ void take_gradients() {
    const int tile = known++, step = chain.step_of(tile);
    wait_for(chain.done + warp * chain.flags + tile);
    __syncwarp();
    if (unit() >= chain.block.hidden) return;
    const float* response = chain.table + (chain.steps - step) * kResponses;
    const float* from = chain.slot(tile) + unit();
    const int64_t first = chain.row_at(step, tile, 0);
    const int rows = chain.batch - (tile - chain.first_tile(step)) * kTileRows;
    float g[kTileRows];  // 0 where no row is there
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) g[i] = from[i * Chain::kStride];
    write(chain.net.to_w, first, rows, response[kWFromG], g, sum_w);
    if (chain.net.to_v) write(chain.net.to_v, first, rows, response[kVFromG], g, sum_v);
  }
  __device__ void write(float* out, int64_t first, int rows, float response,
                        const float (&g)[kTileRows], float& sum) const {
    float* to = out + first * chain.net.stride + unit();
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      if (i < rows) to[i * chain.net.stride] = response * g[i];
      sum += response * g[i];
    }
  }

  // to_w and to_v are 0 for the steps that are not there.
  __device__ void clear_missing() const {
    if (unit() >= chain.block.hidden) return;
    for (int row = chain.steps * chain.batch; row < chain.block.steps * chain.batch; ++row) {
      chain.net.to_w[row * chain.net.stride + unit()] = 0;
      if (chain.net.to_v) chain.net.to_v[row * chain.net.stride + unit()] = 0;
    }
  }

  // The first layer's bias at the block's end.
  __device__ void move_bias() const {
    if (unit() >= chain.block.hidden) return;
    const ChainNetwork<float>& net = chain.net;
    const float* end = chain.table + chain.steps * kResponses;
    const float b = net.bias[unit()], v = net.bias_momentum ? net.bias_momentum[unit()] : 0.0f;
    net.bias[unit()] = b + end[kWFromW] * b + end[kWFromV] * v + sum_w;
    if (!net.bias_momentum) return;
    net.bias_momentum[unit()] = end[kVFromW] * b + end[kVFromV] * v + sum_v;
  }
};

// ---- the warps that walk ----

// Lanes' classes of a weight or a gradient, four or two at a time.
template <int kCount>
struct alignas(kCount * sizeof(float)) Classes {
  float v[kCount];
};

// f(c, pack) for packs of classes from kFirst on, the widest that there are.
template <int kFirst, int kClasses, typename F>
__device__ void for_packs(F f) {
  if constexpr (kFirst + 4 <= kClasses) {
    f(kFirst, Classes<4>{});
    for_packs<kFirst + 4, kClasses>(f);
  } else if constexpr (kFirst + 2 <= kClasses) {
    f(kFirst, Classes<2>{});
    for_packs<kFirst + 2, kClasses>(f);
  }
}

// A lane has one hidden unit, its column of the slots and its row of the last layer's weight.
template <int kWarps, int kClasses, bool kMomentum>
class WalkingWarp {
  using Chain = PipelinedChain<kWarps, kClasses>;
  static constexpr int kParts = kWarp / 8;                // a fragment has 8 units
  static constexpr int kParts16 = kClasses > 8 ? 2 : 1;   // halves of its 16 classes
  static constexpr int kRowsOfWarp = kTileRows / kWarps;  // of the logits of a tile
  // More classes' would not fit into registers: fragments made ahead, the momentum.
  static constexpr bool kSplitsEarly = kClasses <= 10 && !kMomentum,
                        kKeeps = kMomentum && kClasses <= 10;
  const Chain& chain;
  const ChainSgd<float> sgd;
  const int warp, lane, unit;
  const bool mine;
  float w[kClasses], v[kKeeps ? kClasses : 1], dw[kClasses];
  float h[kTileRows];
  float latest[kTileRows] = {};  // gradients of the newest tile
  float bias2 = 0, bias2_v = 0;  // of class `lane`, the same in all warps
  float scale;                   // of a gradient of the step's logits

 public:
  __device__ WalkingWarp(const Chain& chain_, int warp_)
      : chain(chain_),
        sgd(chain_.net.options),
        warp(warp_),
        lane(threadIdx.x % kWarp),
        unit(warp_ * kWarp + lane),
        mine(unit < chain_.block.hidden) {
    const ChainNetwork<float>& net = chain.net;
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const bool there = mine && c < chain.block.classes;
      const int at = c * chain.block.hidden + unit;
      w[c] = there ? net.weight2[at] : 0.0f;
      if constexpr (kKeeps) v[c] = there ? net.weight2_momentum[at] : 0.0f;
    }
    if (lane < chain.block.classes) {
      bias2 = net.bias2[lane];
      if constexpr (kMomentum) bias2_v = net.bias2_momentum[lane];
    }
#pragma unroll
    for (int c = kClasses; c < 8 * kParts16; ++c) row_of_weight()[c] = 0;
    keep_weight();
  }

  __device__ void run() {
    const int tiles_of_step = chain.tiles_of_step;
    for (int step = 0; step < chain.steps; ++step) {
      const int begin = chain.first_tile(step), rows = chain.rows_of(step);
      if (step == 0 || rows != chain.batch) scale = scale_of(rows);
      for (int t = 0; t < tiles_of_step; ++t) {
        const int tile = begin + t;
        walk_forward(step, tile);
        barrier_of(1, Chain::kUnits);  // all have written their part of the logits, which all read
        take_loss(step, tile);
      }
      barrier_of(1, Chain::kUnits);  // all gradients of the step's logits are written, as all read
#pragma unroll
      for (int c = 0; c < kClasses; ++c) dw[c] = 0;
      for (int t = 0; t < tiles_of_step; ++t) {
        if (tiles_of_step > 1) fetch_activations(begin + t);
        walk_backward(begin + t, t);
      }
      move(tiles_of_step);
    }
  }

  // The last layer as it is now, to global memory.
  __device__ void store() const {
    const ChainNetwork<float>& net = chain.net;
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      if (!mine || c >= chain.block.classes) continue;
      net.weight2[c * chain.block.hidden + unit] = w[c];
      if constexpr (kKeeps) net.weight2_momentum[c * chain.block.hidden + unit] = v[c];
    }
    if (warp > 0 || lane >= chain.block.classes) return;
    net.bias2[lane] = bias2;
    if constexpr (kMomentum) net.bias2_momentum[lane] = bias2_v;
  }

 private:
  __device__ float* column(int tile) const { return chain.slot(tile) + unit; }
  __device__ float* row_of_weight() const { return chain.weight + unit * Chain::kClassStride; }

  __device__ void keep_weight() const {
    for_packs<0, kClasses>([&](int c, auto pack) {
#pragma unroll
      for (int e = 0; e < static_cast<int>(sizeof(pack) / sizeof(float)); ++e) pack.v[e] = w[c + e];
      *reinterpret_cast<decltype(pack)*>(row_of_weight() + c) = pack;
    });
    __syncwarp();  // all lanes have written what the warp's fragments read
  }

  __device__ float* partial_of(int of_warp, int tile) const {
    return chain.partial + (tile % 2 * kWarps + of_warp) * (kTileRows * kSums);
  }

  // h = relu(pre), 0 where there is no row or no unit, and this warp's part of the logits (classes,
  // rows) = weight (classes, units) h (units, rows). What does not need pre comes before it is
  // there.
  __device__ void walk_forward(int step, int tile) {
    uint32_t left[kParts][4], left_small[kParts][4];
    if constexpr (kSplitsEarly) split_weight(left, left_small);
    add_newest(tile, chain.first_tile(step) - 1);
    const int there = mine ? chain.rows_of(step, tile) : 0;
    wait_for(chain.ready + warp * chain.flags + tile);
    __syncwarp();
    float* to = column(tile);
    float pre[kTileRows];
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) pre[i] = to[i * Chain::kStride];
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      const float x = ActivationRow<Activation::kRelu>::forward(h[i] + pre[i]);
      h[i] = i < there ? x : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) to[i * Chain::kStride] = h[i];
    __syncwarp();  // all lanes have written what the warp's fragments read
    if constexpr (!kSplitsEarly) split_weight(left, left_small);
    sum_logits(tile, left, left_small);
  }

  __device__ void split_weight(uint32_t (&left)[kParts][4],
                               uint32_t (&left_small)[kParts][4]) const {
    const int group = lane / 4, pair = lane % 4;
    const float* weight = chain.weight + (warp * kWarp + pair) * Chain::kClassStride + group;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float* low = weight + part * 8 * Chain::kClassStride;
      const float* high = low + 4 * Chain::kClassStride;
      const float a[4] = {low[0], kParts16 > 1 ? low[8] : 0.0f, high[0],
                          kParts16 > 1 ? high[8] : 0.0f};
      split_floats(a, left[part], left_small[part]);
    }
  }

  // h = what the gradients of the newest tile have done to these rows.
  __device__ void add_newest(int tile, int newest) {
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) h[i] = 0;
    if (newest < 0) return;
    const float* rows = chain.factors_of(tile, 0) + newest * kTileRows;
    const int stride = Chain::factors_stride(tile);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      const auto low = *reinterpret_cast<const Classes<4>*>(rows + i * stride);
      const auto high = *reinterpret_cast<const Classes<4>*>(rows + i * stride + 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) h[i] += low.v[e] * latest[e];
#pragma unroll
      for (int e = 0; e < 4; ++e) h[i] += high.v[e] * latest[4 + e];
    }
  }

  __device__ void sum_logits(int tile, const uint32_t (&left)[kParts][4],
                             const uint32_t (&left_small)[kParts][4]) const {
    const int group = lane / 4, pair = lane % 4;
    const float* row = chain.slot(tile) + group * Chain::kStride + warp * kWarp + pair;
    uint32_t right[kParts][2], right_small[kParts][2];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float b[2] = {row[part * 8], row[part * 8 + 4]};
      split_floats(b, right[part], right_small[part]);
    }
    float sums[kParts][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left_small[part], right[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left[part], right_small[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) mma_tf32(sums[part], left[part], right[part]);
    float* to = partial_of(warp, tile) + 2 * pair * kSums + group;
#pragma unroll
    for (int e = 0; e < 2 * kParts16; ++e) {
      const float sum = (sums[0][e] + sums[1][e]) + (sums[2][e] + sums[3][e]);
      to[e % 2 * kSums + e / 2 * 8] = sum;
    }
  }

  // 1 / rows of a step, or the same over its rows again.
  __device__ float scale_of(int rows) const {
    const float scale = 1.0f / static_cast<float>(rows);
    return sgd.average ? scale / static_cast<float>(rows) : scale;
  }

  // The gradients of the logits of this warp's rows, a lane a class, and what their losses will be
  // made of. A sum of exponentials, none above 1, is one of integers, 2^-27 each.
  __device__ void take_loss(int step, int tile) const {
    constexpr float kOne = 1 << 27;
    const int there = chain.rows_of(step, tile), classes = chain.block.classes;
    float* out = chain.dlogits + (tile - chain.first_tile(step)) * (kTileRows * kLogits) + lane;
    float z[kRowsOfWarp], largest[kRowsOfWarp], e[kRowsOfWarp], sum[kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      z[r] = lane < classes ? logit(tile, (warp + r * kWarps) * kSums + lane) : -kInfinity<float>;
      largest[r] = warp_largest(z[r]);
    }
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      e[r] = lane < classes ? exp_of(z[r] - largest[r]) : 0.0f;
      sum[r] = static_cast<float>(warp_sum(to_unsigned(e[r] * kOne))) * (1 / kOne);
      if (ballot(e[r] != e[r])) sum[r] = static_cast<float>(NAN);
    }
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int i = warp + r * kWarps, row = tile * kTileRows + i, label = chain.labels[row];
      const float hot = lane == label ? 1.0f : 0.0f;
      const float gradient =
          label >= 0 ? scale * (quick_quotient(e[r], sum[r]) - hot) : static_cast<float>(NAN);
      if (lane < kLogits) out[i * kLogits] = i < there && lane < classes ? gradient : 0.0f;
      const unsigned places = ballot(z[r] == largest[r]);
      if (i < there && lane == (label >= 0 ? label : 0)) {
        chain.sums[row] = label >= 0 ? sum[r] : static_cast<float>(NAN);
        chain.margins[row] = z[r] - largest[r];
        chain.hits[row] = (places & ((2u << lane) - 1)) == 1u << lane ? 1.0f : 0.0f;
      }
    }
  }

  // The sum of what the warps have of a logit.
  __device__ float logit(int tile, int at) const {
    const float* from = partial_of(0, tile) + at;
    float parts[kWarps];
#pragma unroll
    for (int k = 0; k < kWarps; ++k) parts[k] = from[k * (kTileRows * kSums)];
#pragma unroll
    for (int half = kWarps / 2; half > 0; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) parts[k] += parts[k + half];
    }
    return bias2 + parts[0];
  }

  __device__ void fetch_activations(int tile) {
    const float* from = column(tile);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) h[i] = from[i * Chain::kStride];
  }

  // The gradients of a tile, number t of its step, into its slot; their part of the last layer's.
  __device__ void walk_backward(int tile, int t) {
    const float* rows = chain.dlogits + t * (kTileRows * kLogits);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      float sums[4] = {};
      for_packs<0, kClasses>([&](int c, auto pack) {
        pack = *reinterpret_cast<const decltype(pack)*>(rows + i * kLogits + c);
#pragma unroll
        for (int e = 0; e < static_cast<int>(sizeof(pack) / sizeof(float)); ++e) {
          sums[e] += pack.v[e] * w[c + e];
          dw[c + e] += pack.v[e] * h[i];
        }
      });
      const float dh = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      latest[i] = ActivationRow<Activation::kRelu>::backward(dh, h[i]);
    }
    float* to = column(tile);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) to[i * Chain::kStride] = latest[i];
    __syncwarp();  // all lanes have written before lane 0 says so
    if (lane == 0) raise(chain.done + warp * chain.flags + tile);
  }

  // The step of SGD on the last layer.
  __device__ void move(int tiles_of_step) {
    float sum = 0;
    for (int t = 0; t < tiles_of_step; ++t) {
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        sum += chain.dlogits[(t * kTileRows + i) * kLogits + lane % kLogits];
      }
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      if constexpr (kMomentum && !kKeeps) {
        if (!mine || c >= chain.block.classes) continue;
        w[c] = sgd.moved(w[c], dw[c], chain.net.weight2_momentum + c * chain.block.hidden + unit);
      } else {
        w[c] = sgd.moved(w[c], dw[c], kKeeps ? v + (kKeeps ? c : 0) : nullptr);
      }
    }
    keep_weight();
    bias2 = sgd.moved(bias2, sum, kMomentum ? &bias2_v : nullptr);
  }
};

}  // namespace
}  // namespace fastmlp
