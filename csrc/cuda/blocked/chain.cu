// The chain of a block of blocked look-ahead SGD (docs/blocked-sgd.md) on CUDA, for networks with
// one hidden layer.
#include "cuda/blocked/chain.cuh"

namespace fastmlp {
namespace {

// Computes  for each step t: pre = from_w(t) (p + b) + from_v(t) (q + b's momentum) + the sum over
//           earlier rows n of from_g(t - step of n) gram[n] g[n]; h = relu(pre); the loss of
//           logits = h w2^T + b2, and hits; g = the gradient of pre; a step of SGD on w2, b2.
//           At the end to_w and to_v, from g, and b.
// Shapes    ChainBlock's.
// Grid      a block for each network; thread j owns hidden units j, j + blockDim.x, ..
// Memory    to_w holds h, then g, until the end; shared memory: see ChainThread, ChainHistory.
// Precision T; sums in one order for one plan: deterministic. Losses are added in double.
// Needs     plan_chain_cuda's plan. A label that is no class makes its network nan, no more.
// Same as   blocked_chain_ref.
template <typename T, int kTile, int kUnits>
__global__ void __launch_bounds__(kUnits == 1 ? 128 : 256, 1)
    blocked_chain_kernel(const ChainBlock block) {
  FASTMLP_SHARED_BYTES(shared);
  const ChainNetwork<T> net(block, blockIdx.x);
  ChainThread<T, kTile, kUnits> thread(block, net, reinterpret_cast<T*>(shared));
  thread.load();
  thread.history.fetch(1);
  __syncthreads();  // all have written the table and the last layer, which all read
  thread.history.store(1);
  ChainTile tile = thread.tile_at(0, 0);
  thread.fetch_inputs(tile);
  thread.begin_inputs(tile);
  int turn = 0;
  int known = 0;  // pre holds what the gradients of so many steps have done
  while (tile.step < thread.steps) {
    if (tile.step > known && block.batch <= kTile) {
      thread.add_latest(tile);
    } else {
      thread.add_history(tile, known, tile.step);
    }
    thread.activate(tile);
    thread.sum_logits(turn);
    __syncthreads();  // all warps have written their part of the logits, which all read
    const ChainTile next =
        tile.last ? thread.tile_at(tile.step + 1, 0) : thread.tile_at(tile.step, tile.number + 1);
    thread.fetch_inputs(next);
    if (tile.last) thread.history.fetch(tile.step + 2);
    thread.take_loss(tile, turn);
    thread.begin_inputs(next);
    if (next.step < thread.steps) thread.add_history(next, 0, tile.step);
    known = tile.step;
    if (tile.last) {
      // Nobody reads this step's history any more, whose place that of the step after next takes.
      thread.history.store(tile.step + 2);
      __syncthreads();  // all have written the logits' gradients and that history, which all read
      for (int number = 0; number * kTile < thread.rows_of(tile.step); ++number) {
        thread.backward(thread.tile_at(tile.step, number));
      }
      thread.move_bias2(tile.step);
    }
    tile = next;
    turn ^= 1;
  }
  thread.collect();
  thread.store();
}

template <typename T, int kTile, int kUnits>
cudaError_t launch_chain(const ChainBlock& block, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(block.groups * block.networks);
  return launch_with_shared(blocked_chain_kernel<T, kTile, kUnits>, dim3(blocks),
                            block.plan.threads, block.plan.size * sizeof(T), stream, block);
}

template <int kUnits>
cudaError_t launch_floats(const ChainBlock& block, cudaStream_t stream) {
  if (block.plan.tile == 2) return launch_chain<float, 2, kUnits>(block, stream);
  if (block.plan.tile == 4) return launch_chain<float, 4, kUnits>(block, stream);
  if constexpr (kUnits <= 2) return launch_chain<float, 8, kUnits>(block, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_blocked_chain(const ChainBlock& block, Type type, cudaStream_t stream) {
  const int64_t blocks = block.groups * block.networks;
  if (blocks == 0) return cudaSuccess;
  if (block.plan.unsupported_reason || blocks > kMaxGridX) return cudaErrorInvalidValue;
  const int units = block.plan.units;
  if (type == Type::kDouble) {
    return units == 2 ? launch_chain<double, 2, 2>(block, stream)
                      : launch_chain<double, 2, 4>(block, stream);
  }
  if (type != Type::kFloat) return cudaErrorInvalidValue;
  return units == 1   ? launch_floats<1>(block, stream)
         : units == 2 ? launch_floats<2>(block, stream)
                      : launch_floats<4>(block, stream);
}

}  // namespace fastmlp
