// The two kinds of warps of the cluster's chain. Warp w of either kind has the same hidden units, 8
// or 16, and what belongs to a unit only these two warps touch. Everything a walking warp does
// between two exchanges of logits stays in its registers: each product's fragment is laid out as
// the next one takes it.
//
// A lane is number `quad` of four, in one of eight groups. Of a fragment (16, 8) of sums it holds
// rows group and group + 8, columns 2 quad and 2 quad + 1; a product's inner index counts in an
// order that makes such pairs the operands of the next product:
//   dh (units, rows)      = weight (units, classes) dlogits (classes, rows)
//   pre (rows, units)    += factors (rows, rows of the step before) dh (rows, units)
//   logits (classes, rows) = weight (classes, units) h (units, rows)
#pragma once
#include "cuda/blocked/chain_parts.cuh"
#include "cuda/blocked/cluster.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastmlp {
namespace {

// Neighbouring classes of a lane, in one load.
template <int kSlots>
struct alignas(kSlots * sizeof(float)) LaneClasses {
  float v[kSlots];
};

// A thread block's memory and sizes, for a thread. The arrays of shared memory:
//   table (steps + 1, kResponses)       the recurrence, its first column less 1
//   slots (tiles, warps, parts, lanes)  a Pack: what a row's ReLU gets but for the newest tiles, of
//                                       row group; then its gradient's parts, of unit group
//   inbox (2, kClusterBlocks, tiles of a step, lanes, kSlots)  sums of logits of each block, of row
//                                       group and classes kSlots quad + .., two steps in turn
//   partial (2, warps, tiles of a step, kTileRows, kStride)  each warp's sums of logits, likewise
//   weight (units, kStride), columns (tiles of a step, warps, parts, kTileRows, kColumnStride),
//   dlogits (warps, tiles of a step, kTileRows, kStride)  through which a warp transposes the last
//                                       layer's weight, activations and gradients of logits
//   sums, margins, hits (tiles * kTileRows)  of each row: of exp(logit - largest), the label's
//                                       logit less the largest, whether the label is its place
//   newest (tiles, 2, lanes)            a Pack: of a tile's factors for the tiles after it, big and
//                                       small parts
//   labels (tiles * kTileRows)          kMissing for a row that is not there, kNoClass
//   mail (2)                            counts the inbox's bytes
//   ready, done (warps, steps)          flags: the slots hold what the ReLU gets; the gradients
template <int kWarps_, int kParts_, int kTiles_, int kSlots_>
struct ClusterChain {
  static constexpr int kWarps = kWarps_, kParts = kParts_, kTiles = kTiles_, kSlots = kSlots_;
  static constexpr int kUnitsOfWarp = 8 * kParts, kUnits = kWarps * kUnitsOfWarp;  // of a block
  static constexpr int kHalves = kSlots / 2;  // of the 16 rows of a fragment that are classes
  static constexpr int kStride = 20, kColumnStride = 12;  // which no two lanes' banks share
  static constexpr int kNoClasses = 3;  // the first lane that has none, if any has none
  static constexpr int kMissing = -2, kNoClass = -1;  // labels
  using Slot = Pack<uint32_t>;
  const ChainBlock& block;
  const ChainNetwork<float>& net;
  const int rank, warp, lane, group, quad;
  float *table, *inbox, *partial, *weight, *columns, *dlogits, *sums, *margins, *hits;
  Slot *slots, *newest;
  int* labels;
  Inbox* mail;
  Flag *ready, *done;  // of this warp
  const int batch;
  int steps, tiles;  // that are there

  __device__ ClusterChain(const ChainBlock& block_, const ChainNetwork<float>& net_, float* shared)
      : block(block_),
        net(net_),
        rank(static_cast<int>(cluster_rank())),
        warp(threadIdx.x / kWarp % kWarps),
        lane(threadIdx.x % kWarp),
        group(lane / 4),
        quad(lane % 4),
        batch(block_.batch) {
    const ClusterChainPlan& plan = block.cluster;
    table = shared;
    slots = reinterpret_cast<Slot*>(shared + plan.slots);
    newest = reinterpret_cast<Slot*>(shared + plan.newest);
    labels = reinterpret_cast<int*>(shared + plan.labels);
    inbox = shared + plan.inbox;
    partial = shared + plan.partial;
    weight = shared + plan.weight + warp * (kUnitsOfWarp * kStride);
    columns = shared + plan.columns + warp * (kParts * kTiles * kTileRows * kColumnStride);
    dlogits = shared + plan.dlogits + warp * (kTiles * kTileRows * kStride);
    sums = shared + plan.sums, margins = shared + plan.margins, hits = shared + plan.hits;
    mail = reinterpret_cast<Inbox*>(shared + plan.flags);
    ready = reinterpret_cast<Flag*>(mail + 2) + warp * block.steps;
    done = ready + kWarps * block.steps;
    steps = (net.rows + batch - 1) / batch;
    tiles = steps * kTiles;
  }

  __device__ int first_tile(int step) const { return step * kTiles; }
  __device__ int rows_of(int step) const { return clipped(net.rows - step * batch, batch); }
  // The row of the block that is row `within` of a tile, and whether it is there.
  __device__ static int row_in_step(int tile, int within) {
    return tile % kTiles * kTileRows + within;
  }
  __device__ int row_at(int tile, int within) const {
    return tile / kTiles * batch + row_in_step(tile, within);
  }
  __device__ bool has_row(int tile, int within) const {
    return row_in_step(tile, within) < batch && row_at(tile, within) < net.rows;
  }
  __device__ Slot& slot(int tile, int part) const {
    return slots[((tile * kWarps + warp) * kParts + part) * kWarp + lane];
  }
  // The first hidden unit of this warp's part.
  __device__ int first_unit(int part) const {
    return (rank * kWarps + warp) * kUnitsOfWarp + part * 8;
  }

  __device__ bool has_classes(int of_lane) const { return of_lane % 4 * kSlots < block.classes; }

  // By all threads, what needs no other thread's numbers.
  __device__ void load() const {
    for (int i = threadIdx.x; i < (block.steps + 1) * kResponses; i += blockDim.x) {
      table[i] = net.recurrence[i];
    }
    if (threadIdx.x < 2) open_inbox(mail + threadIdx.x);
    // What lanes without classes read; nobody sends it.
    for (int i = threadIdx.x; i < 2 * kClusterBlocks * kTiles * kSlots; i += blockDim.x) {
      const bool first = i / (kTiles * kSlots) % kClusterBlocks == 0;
      float* to = inbox + (i / kSlots * kWarp + kNoClasses) * kSlots + i % kSlots;
      if (!has_classes(kNoClasses)) *to = first ? -kInfinity<float> : 0.0f;
    }
    for (int i = threadIdx.x; i < tiles * kTileRows; i += blockDim.x) {
      const int tile = i / kTileRows, within = i % kTileRows;
      const bool there = has_row(tile, within);
      const int64_t label = there ? net.labels[row_at(tile, within)] : 0;
      const bool known = label >= 0 && label < block.classes;
      labels[i] = !there ? kMissing : known ? static_cast<int>(label) : kNoClass;
    }
    // Of gradients one step ago and, for one tile a step, two; the table may not be there yet.
    const float* responses = net.recurrence + kResponses + kWFromG;
    const float one = responses[0],
                two = kTiles > 1 || block.steps < 2 ? one : responses[kResponses];
    for (int tile = threadIdx.x / kWarp; tile < tiles; tile += 2 * kWarps) {
      const GramRows rows = gram_rows(first_tile(tile / kTiles + 1));
      const LeftParts x = factors(gram(rows, tile), one, two);
      Slot* to = newest + tile * (2 * kWarp) + lane;
      to[0] = {{x.big[0], x.big[1], x.big[2], x.big[3]}};
      to[kWarp] = {{x.small[0], x.small[1], x.small[2], x.small[3]}};
    }
    if (threadIdx.x >= kWarps * kWarp) return;
    for (int step = lane; step < block.steps; step += kWarp) {
      lower(ready + step);
      lower(done + step);
    }
  }

  // Where the Gram numbers of rows group of two tiles begin, this one and the next.
  struct GramRows {
    int at[2];
    bool there[2];
  };
  __device__ GramRows gram_rows(int tile) const {
    const int all = block.steps * batch;
    GramRows rows;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      rows.at[t] = row_at(tile + t, group) * all;
      rows.there[t] = has_row(tile + t, group);
    }
    return rows;
  }
  // A fragment of them, of rows 2 quad and 2 quad + 1 of an earlier tile; 0 where one is not there.
  struct Gram {
    float v[4];
  };
  __device__ Gram gram(const GramRows& rows, int past) const {
    const int column = row_at(past, 2 * quad), known = batch - row_in_step(past, 2 * quad);
    Gram gram;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const float* from = net.gram + (rows.at[t] + column);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        gram.v[2 * e + t] = rows.there[t] && e < known ? from[e] : 0.0f;
      }
    }
    return gram;
  }
  // The same times what the steps between make of a gradient.
  __device__ static LeftParts factors(const Gram& gram, float first, float second) {
    return left_parts(first * gram.v[0], second * gram.v[1], first * gram.v[2], second * gram.v[3]);
  }
  __device__ float response(int age) const { return table[age * kResponses + kWFromG]; }
};

// ---- the warps that add up what earlier steps have done ----

// Fills the slots of two tiles after two with (1 + from_w) (p + b) and what gradients have done;
// those of the last tile before the one they fill, and of the one before that, the walking warps
// add themselves. Takes each tile's gradients to to_w as soon as they are there, times what they
// will have done by the end of the block.
template <typename Chain>
class ClusterHistoryWarp {
  static constexpr int kParts = Chain::kParts, kTiles = Chain::kTiles;
  static constexpr int kAhead = 4;  // Gram fragments on the way
  const Chain& chain;
  const int group, quad;
  float bias[kParts][2];
  float fetched[kParts][4];  // p of the next two tiles
  float pre[kParts][4];      // of both tiles
  int known = 0;             // steps whose gradients are there
  float sum_w[kParts] = {};  // of the gradients of unit group, times the same

 public:
  __device__ explicit ClusterHistoryWarp(const Chain& chain_)
      : chain(chain_), group(chain_.group), quad(chain_.quad) {
    for_units([&](int part, int e, int unit, bool mine) {
      bias[part][e] = mine ? chain.net.bias[unit] : 0.0f;
    });
    fetch(0);
  }

  __device__ void run() {
    clear_missing();
    for (int tile = 0; tile < chain.tiles; tile += 2) {
      begin(tile);
      fetch(tile + 2);
      const typename Chain::GramRows rows = chain.gram_rows(tile);
      add_known(rows, tile);
      while (known < tile / kTiles - (kTiles > 1 ? 1 : 2)) add_step(rows, tile);
      hand_over(tile, 0);
      if (tile + 1 == chain.tiles) break;
      if (kTiles == 1 && tile > 0) {
        take_gradients();
        const float response = chain.response(3);
        add(Chain::factors(chain.gram(rows, tile - 2), 0, response), tile - 2);
      }
      hand_over(tile + 1, 1);
    }
    while (known < chain.steps) take_gradients();
    move_bias();
  }

 private:
  template <typename F>
  __device__ void for_units(F f) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int unit = chain.first_unit(part) + 2 * quad + e;
        f(part, e, unit, unit < chain.block.hidden);
      }
    }
  }

  __device__ void fetch(int tile) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const bool there = chain.has_row(tile + t, group);
      const float* from = chain.net.p + chain.row_at(tile + t, group) * chain.net.stride;
      for_units([&](int part, int e, int unit, bool mine) {
        fetched[part][2 * t + e] = there && mine ? from[unit] : 0.0f;
      });
    }
  }

  // pre, without the past.
  __device__ void begin(int tile) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int step = clipped((tile + t) / kTiles, chain.block.steps);
      const float from_w = chain.table[step * kResponses + kWFromW];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = fetched[part][2 * t + e] + bias[part][e];
          pre[part][2 * t + e] = x + from_w * x;
        }
      }
    }
  }

  // Adds what the gradients that are there have done to both tiles.
  __device__ void add_known(const typename Chain::GramRows& rows, int tile) {
    const int end = known * kTiles;
    typename Chain::Gram ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k < end) ahead[k] = chain.gram(rows, k);
    }
    for (int first = 0; first < end; first += kAhead) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int past = first + k;
        if (past >= end) break;
        add(ahead[k], tile, past);
        if (past + kAhead < end) ahead[k] = chain.gram(rows, past + kAhead);
      }
    }
  }
  // The same of the next step's.
  __device__ void add_step(const typename Chain::GramRows& rows, int tile) {
    typename Chain::Gram grams[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) grams[t] = chain.gram(rows, known * kTiles + t);
    take_gradients();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) add(grams[t], tile, (known - 1) * kTiles + t);
  }
  __device__ void add(const typename Chain::Gram& gram, int tile, int past) {
    const int age = tile / kTiles - past / kTiles;
    const float first = chain.response(age), second = kTiles > 1 ? first : chain.response(age + 1);
    add(Chain::factors(gram, first, second), past);
  }
  // Tensor cores cut off the last bits of their sums, so these run over eight rows only.
  __device__ void add(const LeftParts& left, int past) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const typename Chain::Slot slot = chain.slot(past, part);
      const uint32_t big[2] = {slot.v[0], slot.v[1]}, small[2] = {slot.v[2], slot.v[3]};
      float sums[4] = {};
      mma_tf32(sums, left.small, big);
      mma_tf32(sums, left.big, small);
      mma_tf32(sums, left.big, big);
#pragma unroll
      for (int e = 0; e < 4; ++e) pre[part][e] += sums[e];
    }
  }

  // Gives the walking warp the sums of a tile, the first or the second of the fragments.
  __device__ void hand_over(int tile, int t) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      chain.slot(tile, part) = {
          {bits_of_float(pre[part][2 * t]), bits_of_float(pre[part][2 * t + 1]), 0, 0}};
    }
    if (kTiles > 1 && t == 0) return;
    __syncwarp();  // all lanes have written before lane 0 says so
    if (chain.lane == 0) raise(chain.ready + tile / kTiles);
  }

  // ---- what leaves the block ----

  // Waits for the gradients of step `known` and writes to_w.
  __device__ void take_gradients() {
    const int step = known++;
    wait_for(chain.done + step);
    __syncwarp();
    const float response = chain.table[(chain.steps - step) * kResponses + kWFromG];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int tile = chain.first_tile(step) + t, unit = chain.first_unit(part) + group;
        const typename Chain::Slot slot = chain.slot(tile, part);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float g = response * (float_of_bits(slot.v[e]) + float_of_bits(slot.v[2 + e]));
          const int row = chain.row_at(tile, 2 * quad + e);
          if (Chain::row_in_step(tile, 2 * quad + e) >= chain.batch) continue;
          if (unit < chain.block.hidden) chain.net.to_w[row * chain.net.stride + unit] = g;
          sum_w[part] += g;
        }
      }
    }
  }

  // to_w is 0 for the steps that are not there.
  __device__ void clear_missing() const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int unit = chain.first_unit(part) + group;
      if (unit >= chain.block.hidden) continue;
      const int end = chain.block.steps * chain.batch;
      for (int row = chain.steps * chain.batch + quad; row < end; row += 4) {
        chain.net.to_w[row * chain.net.stride + unit] = 0;
      }
    }
  }

  // The first layer's bias at the block's end.
  __device__ void move_bias() {
    const float from_w = chain.table[chain.steps * kResponses + kWFromW];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      float sum = sum_w[part];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int unit = chain.first_unit(part) + group;
      if (quad > 0 || unit >= chain.block.hidden) continue;
      const float b = chain.net.bias[unit];
      chain.net.bias[unit] = b + (from_w * b + sum);
    }
  }
};

// ---- the warps that walk ----

template <typename Chain>
class ClusterWalkingWarp {
  static constexpr int kWarps = Chain::kWarps, kParts = Chain::kParts, kTiles = Chain::kTiles;
  static constexpr int kSlots = Chain::kSlots, kHalves = Chain::kHalves;
  static constexpr int kStride = Chain::kStride, kColumnStride = Chain::kColumnStride;
  using Lane = LaneClasses<kSlots>;
  const Chain& chain;
  const ChainSgd<float> sgd;
  const int lane, group, quad;
  const bool leads;  // the cluster
  // Of the last layer: weight of classes group (+ 8) and units 2 quad (+ 1), as a fragment has it;
  // biases of these classes, 0 where the warp does not lead, -inf where it does and there is none.
  float w[kParts][4], bias2[kHalves] = {};
  float h[kTiles][kParts][2];     // of row group, units 2 quad (+ 1); before that what gives it
  float base[kTiles][kParts][2];  // the same of the next step, without the newest tiles
  float carry[kParts][2] = {};    // what the newest tile does to the step after the next
  float h_of_unit[kTiles][kParts][2];        // of unit group, rows 2 quad (+ 1)
  RightParts right_of_unit[kParts][kTiles];  // the same
  LeftParts left_of_unit[kHalves];           // weight of units group, of classes kSlots quad + ..
  LeftParts newest[kTiles] = {};             // factors of the next step's rows
  Peer peers[kClusterBlocks / kWarps];       // to whom this warp sends
  // Of row group: the label; the largest logit and the sum of exponentials less it; its gradients,
  // which are row_scale softmax - hot.
  int label[kTiles];
  float margin[kTiles][kSlots], sum[kTiles];
  float hot[kTiles][kSlots], row_scale[kTiles];
  float scale;  // of a step's rows

 public:
  __device__ explicit ClusterWalkingWarp(const Chain& chain_)
      : chain(chain_),
        sgd(chain_.net.options),
        lane(chain_.lane),
        group(chain_.group),
        quad(chain_.quad),
        leads(chain_.rank == 0 && chain_.warp == 0) {
    for_weights([&](float& x, int c, int unit, bool there) {
      x = there ? chain.net.weight2[c * chain.block.hidden + unit] : 0.0f;
    });
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      const int c = group + 8 * k;
      if (leads) bias2[k] = c < chain.block.classes ? chain.net.bias2[c] : -kInfinity<float>;
    }
#pragma unroll
    for (int k = 0; k < kClusterBlocks / kWarps; ++k) {
      peers[k] = peer_of(chain.table, chain.warp + k * kWarps);
    }
  }

  __device__ void run() {
    if (chain.steps > 0) begin(0);
    for (int step = 0; step < chain.steps; ++step) {
      sum_logits(step);
      // All warps have written their sums of logits, which all read; and have read what blocks sent
      // for the step before, in whose place they will send when they have what this one sends now.
      barrier_of(1, kWarps * kWarp);
      send_logits(step);
      // While these are on their way:
      transpose(step);
      if (leads && step > 0) note_losses(step - 1);
      prepare(step);
      wait_for_bytes(chain.mail + step % 2, step / 2 % 2);
      Lane d[kTiles];
      take_loss(step, d);
      walk_backward(step, d);
    }
    if (leads && chain.steps > 0) note_losses(chain.steps - 1);
  }

  // The last layer as it is now, to global memory.
  __device__ void store() {
    for_weights([&](float& x, int c, int unit, bool there) {
      if (there) chain.net.weight2[c * chain.block.hidden + unit] = x;
    });
    if (!leads || quad > 0) return;
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      const int c = group + 8 * k;
      if (c < chain.block.classes) chain.net.bias2[c] = bias2[k];
    }
  }

 private:
  __device__ int class_of(int slot) const { return kSlots * quad + slot; }

  template <typename F>
  __device__ void for_weights(F f) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = group + i / 2 * 8, unit = chain.first_unit(part) + 2 * quad + i % 2;
        f(w[part][i], c, unit, unit < chain.block.hidden && c < chain.block.classes);
      }
    }
  }

  // ---- forward ----

  // What the first step's ReLU gets.
  __device__ void begin(int step) {
    take_base(step);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 2; ++e) h[t][part][e] = base[t][part][e];
      }
    }
  }

  // base of a step.
  __device__ void take_base(int step) {
    wait_for(chain.ready + step);
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto slot =
            *reinterpret_cast<const uint2*>(&chain.slot(chain.first_tile(step) + t, part));
        base[t][part][0] = float_of_bits(slot.x) + carry[part][0];
        base[t][part][1] = float_of_bits(slot.y) + carry[part][1];
      }
    }
  }

  // h = relu(what it gets), and this warp's sums of logits.
  __device__ void sum_logits(int step) {
    LeftParts left[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float (&x)[4] = w[part];
      left[part] = kHalves > 1 ? left_parts(x[0], x[2], x[1], x[3]) : left_parts(x[0], 0, x[1], 0);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      RightParts right[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          h[t][part][e] = ActivationRow<Activation::kRelu>::forward(h[t][part][e]);
        }
        right[part] = right_parts(h[t][part][0], h[t][part][1]);
      }
      const Sums logits = sum_products(left, right);
      float* to = partial_of(step, chain.warp, t) + 2 * quad * kStride + group;
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i)
        to[i % 2 * kStride + i / 2 * 8] = logits.v[i] + bias2[i / 2];
    }
  }
  __device__ float* partial_of(int step, int warp, int t) const {
    return chain.partial + ((step % 2 * kWarps + warp) * kTiles + t) * (kTileRows * kStride);
  }

  // The inbox's numbers of a lane.
  __device__ float* inbox_of(int step, int rank, int t, int of_lane) const {
    return chain.inbox +
           (((step % 2 * kClusterBlocks + rank) * kTiles + t) * kWarp + of_lane) * kSlots;
  }

  // Sends the block's sums of logits to every block; each warp sends to some.
  __device__ void send_logits(int step) const {
    Inbox* mail = chain.mail + step % 2;
    if (chain.warp == 0 && lane == 0) {
      const int lanes = 8 * ((chain.block.classes + kSlots - 1) / kSlots);
      expect_bytes(mail, kClusterBlocks * kTiles * lanes * kSlots * sizeof(float));
    }
    if (!chain.has_classes(lane)) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      Lane parts[kWarps];
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        parts[k] = *reinterpret_cast<const Lane*>(partial_of(step, k, t) + group * kStride +
                                                  kSlots * quad);
      }
      const Lane all = sum_of(parts);
#pragma unroll
      for (int k = 0; k < kClusterBlocks / kWarps; ++k) {
        send(all.v, inbox_of(step, chain.rank, t, lane), mail, peers[k]);
      }
    }
  }

  // Added up pairwise.
  template <int kCount>
  __device__ static Lane sum_of(Lane (&parts)[kCount]) {
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) {
#pragma unroll
        for (int s = 0; s < kSlots; ++s) parts[k].v[s] += parts[k + half].v[s];
      }
    }
    return parts[0];
  }

  // ---- while the logits are on their way ----

  // Activations and the last layer's weight as walk_backward takes them.
  __device__ void transpose(int step) {
    float* column = chain.columns;
    constexpr int kTile = kTileRows * kColumnStride;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        *reinterpret_cast<float2*>(column + (t * kParts + part) * kTile + group * kColumnStride +
                                   2 * quad) = {h[t][part][0], h[t][part][1]};
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      float* to = chain.weight + (part * 8 + 2 * quad) * kStride + group;
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i) to[i % 2 * kStride + i / 2 * 8] = w[part][i];
    }
    __syncwarp();  // all lanes have written what others read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float* from = column + (t * kParts + part) * kTile + 2 * quad * kColumnStride + group;
#pragma unroll
        for (int e = 0; e < 2; ++e) h_of_unit[t][part][e] = from[e * kColumnStride];
        right_of_unit[part][t] = right_parts(h_of_unit[t][part][0], h_of_unit[t][part][1]);
      }
    }
    Lane rows[2] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      rows[part] = *reinterpret_cast<const Lane*>(chain.weight + (part * 8 + group) * kStride +
                                                  kSlots * quad);
    }
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      left_of_unit[k] = left_parts(rows[0].v[2 * k], rows[1].v[2 * k], rows[0].v[2 * k + 1],
                                   rows[1].v[2 * k + 1]);
    }
  }

  // What take_loss and walk_backward need of the next step and of this one's labels.
  __device__ void prepare(int step) {
    if (step == 0 || step + 1 == chain.steps) {  // only the last may be short
      const auto rows = static_cast<float>(chain.rows_of(step));
      scale = 1.0f / rows;
      if (sgd.average) scale /= rows;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int tile = chain.first_tile(step) + t;
      label[t] = chain.labels[tile * kTileRows + group];
      row_scale[t] = label[t] >= 0                 ? scale
                     : label[t] == Chain::kMissing ? 0.0f
                                                   : static_cast<float>(NAN);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) hot[t][s] = class_of(s) == label[t] ? scale : 0.0f;
    }
    if (step + 1 >= chain.steps) return;
    take_base(step + 1);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const typename Chain::Slot* from =
          chain.newest + (chain.first_tile(step) + t) * (2 * kWarp) + lane;
      const typename Chain::Slot big = from[0], small = from[kWarp];
#pragma unroll
      for (int i = 0; i < 4; ++i) newest[t].big[i] = big.v[i], newest[t].small[i] = small.v[i];
    }
  }

  // What the loss of a step's rows is made of; by one warp of the cluster.
  __device__ void note_losses(int step) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      int first = 4 * kSlots;  // of the classes with the largest logit
      float mine = 0;          // the label's margin
#pragma unroll
      for (int s = kSlots - 1; s >= 0; --s) {
        if (margin[t][s] == 0) first = class_of(s);
        if (class_of(s) == label[t]) mine = margin[t][s];
      }
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const int other = shuffle_xor(first, distance);
        first = other < first ? other : first;
      }
      const int row = (chain.first_tile(step) + t) * kTileRows + group;
      const bool known = label[t] >= 0;
      if (label[t] == Chain::kMissing || quad != (known ? label[t] / kSlots : 0)) continue;
      chain.sums[row] = known ? sum[t] : static_cast<float>(NAN);
      chain.margins[row] = mine;
      chain.hits[row] = first == label[t] ? 1.0f : 0.0f;
    }
  }

  // ---- the loss and backward ----

  // The gradients of the logits of row group, four lanes a row, and what its loss is made of.
  __device__ void take_loss(int step, Lane (&d)[kTiles]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float largest = -kInfinity<float>;
      Lane parts[kClusterBlocks];
      const int of_lane = chain.has_classes(lane) ? lane : Chain::kNoClasses;
#pragma unroll
      for (int k = 0; k < kClusterBlocks; ++k) {
        parts[k] = *reinterpret_cast<const Lane*>(inbox_of(step, k, t, of_lane));
      }
      const Lane all = sum_of(parts);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) largest = fmaxf(largest, all.v[s]);
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      float e[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        margin[t][s] = all.v[s] - largest;
        e[s] = quick_exp(margin[t][s]);
      }
      float total = e[0] + e[1];
      if constexpr (kSlots > 2) total += e[2] + e[3];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      sum[t] = total;
      const float each = row_scale[t] * quick_reciprocal(total);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) d[t].v[s] = e[s] * each - hot[t][s];
      Lane* to = reinterpret_cast<Lane*>(dlogits_of(t) + group * kStride + kSlots * quad);
      if constexpr (kSlots == 2) {
        *to = {{d[t].v[0], d[t].v[1]}};
      } else {
        *to = {{d[t].v[0], d[t].v[1], d[t].v[2], d[t].v[3]}};
      }
    }
    __syncwarp();  // all lanes have written what others read
  }
  __device__ float* dlogits_of(int t) const { return chain.dlogits + t * (kTileRows * kStride); }

  // The gradients of the hidden units, what they do to the next step, and the last layer's step.
  __device__ void walk_backward(int step, const Lane (&d)[kTiles]) {
    RightParts gradients[kParts][kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      RightParts right[kHalves];
#pragma unroll
      for (int k = 0; k < kHalves; ++k) right[k] = right_parts(d[t].v[2 * k], d[t].v[2 * k + 1]);
      const Sums dh = sum_products(left_of_unit, right);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float g[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          g[e] =
              ActivationRow<Activation::kRelu>::backward(dh.v[2 * part + e], h_of_unit[t][part][e]);
        }
        const RightParts x = gradients[part][t] = right_parts(g[0], g[1]);
        chain.slot(chain.first_tile(step) + t,
                   part) = {{x.big[0], x.big[1], x.small[0], x.small[1]}};
      }
    }
    move_weight();
    add_newest(gradients);
    __syncwarp();  // all lanes have written before lane 0 says so
    if (lane == 0) raise(chain.done + step);
  }

  // What the next step's ReLU gets.
  __device__ void add_newest(const RightParts (&gradients)[kParts][kTiles]) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Sums sums = sum_products(newest, gradients[part]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        h[0][part][e] = base[0][part][e] + sums.v[e];
        if constexpr (kTiles > 1) {
          h[1][part][e] = base[1][part][e] + sums.v[2 + e];
        } else {
          carry[part][e] = sums.v[2 + e];
        }
      }
    }
  }

  // The step of SGD on the last layer.
  __device__ void move_weight() {
    LeftParts left[kTiles];
    float sums[2] = {};  // of rows 2 quad and 2 quad + 1, of classes group and group + 8
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const float* from = dlogits_of(t) + 2 * quad * kStride + group;
      const float high[2] = {kHalves > 1 ? from[8] : 0.0f, kHalves > 1 ? from[kStride + 8] : 0.0f};
      left[t] = left_parts(from[0], high[0], from[kStride], high[1]);
      sums[0] += from[0] + from[kStride];
      sums[1] += high[0] + high[1];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Sums dw = sum_products(left, right_of_unit[part]);
#pragma unroll
      for (int i = 0; i < 4; ++i) w[part][i] = sgd.moved(w[part][i], dw.v[i], nullptr);
    }
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      float sum = sums[k] + shuffle_xor(sums[k], 1);
      sum += shuffle_xor(sum, 2);
      if (leads && group + 8 * k < chain.block.classes)
        bias2[k] = sgd.moved(bias2[k], sum, nullptr);
    }
  }
};

}  // namespace
}  // namespace fastmlp
