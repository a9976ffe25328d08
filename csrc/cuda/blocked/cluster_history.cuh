// The warps of the cluster's chain that add up what earlier steps have done.
#pragma once
#include "cuda/blocked/cluster_chain.cuh"

namespace fastmlp {
namespace {

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

}  // namespace
}  // namespace fastmlp
