// What the rows of a step take from the gradients of the steps before it.
#pragma once
#include "cuda/blocked/chain_parts.cuh"

namespace fastmlp {
namespace {

// Factors (tiles, n, kTile) of each earlier row n, from_g(its age) gram, in shared memory, for two
// steps: the one that is walked and the one after it. A thread has a share of them to make.
template <typename T, int kTile>
struct ChainHistory {
  static constexpr int kAhead = 8;  // numbers that a thread fetches before it needs them
  const ChainBlock& block;
  const ChainNetwork<T>& net;
  const T* table;  // the recurrence
  T* memory;
  T fetched[kAhead];

  __device__ ChainHistory(const ChainBlock& block_, const ChainNetwork<T>& net_, T* shared)
      : block(block_), net(net_), table(shared), memory(shared + block_.plan.history) {}

  __device__ T* of(int step) const {
    return memory + (step & 1) * (block.steps > 2 ? block.plan.history_size : 0);
  }

  // How many factors a step has; none past the last step.
  __device__ int count(int step) const {
    return (net.rows_of(block, step) + kTile - 1) / kTile * kTile * step * block.batch;
  }

  // Rows of the block.
  struct Place {
    int row, n;
    bool there;
  };
  // Of number e of of(step).
  __device__ Place place(int step, int e) const {
    const int past = step * block.batch, m = e / kTile;
    const int tile = block.batch > kTile ? quotient(m, past) : 0, i = tile * kTile + e % kTile;
    return {step * block.batch + i, m - tile * past, i < net.rows_of(block, step)};
  }

  // The Gram matrix is read by rows of earlier images, of which a tile's are neighbours.
  __device__ T gram(const Place& at) const {
    const int64_t rows = block.steps * block.batch;
    return at.there ? net.gram[at.n * rows + at.row] : T(0);
  }
  __device__ T factor(int step, const Place& at, T gram) const {
    const int age = step - quotient(at.n, block.batch);
    return at.there ? table[age * kResponses + kWFromG] * gram : T(0);
  }

  // Begins to read what store(step) then keeps.
  __device__ void fetch(int step) {
    const int end = count(step);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int e = threadIdx.x + k * blockDim.x;
      if (e < end) fetched[k] = gram(place(step, e));
    }
  }
  __device__ void store(int step) const {
    const int end = count(step);
    T* to = of(step);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int e = threadIdx.x + k * blockDim.x;
      if (e < end) to[e] = factor(step, place(step, e), fetched[k]);
    }
    for (int e = threadIdx.x + kAhead * blockDim.x; e < end; e += blockDim.x) {
      const Place at = place(step, e);
      to[e] = factor(step, at, gram(at));
    }
  }
};

}  // namespace
}  // namespace fastmlp
