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

}  // namespace
}  // namespace fastmlp
