// The chain of a block of blocked look-ahead SGD (docs/blocked-sgd.md) on CUDA, for small networks:
// the kernel of chain.cu with its work spread over two kinds of warps.
#include "cuda/blocked/pipelined_chain.cuh"

namespace fastmlp {
namespace {

// The steps of a network, by its block.
template <int kWarps, int kClasses, bool kMomentum>
__device__ void walk_block(const ChainBlock& block) {
  FASTMLP_SHARED_BYTES(shared);
  using Chain = PipelinedChain<kWarps, kClasses>;
  const ChainNetwork<float> net(block, blockIdx.x);
  const Chain chain(block, net, reinterpret_cast<float*>(shared));
  chain.load();
  if (block.steps > 1) chain.make_factors();
  __syncthreads();  // all have written the table, labels, flags and factors, which all read
  const int warp = threadIdx.x / kWarp;
  if (warp < kWarps) {
    WalkingWarp<kWarps, kClasses, kMomentum> walker(chain, warp);
    walker.run();
    walker.store();
  } else {
    HistoryWarp<Chain>(chain, warp - kWarps).run();
  }
  __syncthreads();  // what losses are made of is written, which all read
  finish_chain(chain);
}

// Computes  blocked_chain_kernel's results.
// Shapes    ChainBlock's; up to 256 hidden units, 16 classes, 128 rows in a batch.
// Grid      a block for each network; its first half of warps walks, the other keeps the history.
// Memory    what a block needs stays in shared memory; to_w and to_v are written as they come.
// Precision float32; products of fragments are three of TF32's, as accurate as float32. Sums in one
//           order for one plan: deterministic. Losses are added in double.
// Needs     sm_80, plan_pipelined_chain's plan. A label that is no class makes its network nan, no
//           more.
// Same as   blocked_chain_ref.
template <int kWarps, int kClasses, bool kMomentum>
__global__ void __launch_bounds__(2 * kWarps * kWarp, 1)
    pipelined_chain_kernel(const ChainBlock block) {
  if constexpr (kHasSm80) {
    walk_block<kWarps, kClasses, kMomentum>(block);
  } else {
    __trap();
  }
}

template <int kWarps, int kClasses>
cudaError_t launch_classes(const ChainBlock& block, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(block.groups * block.networks);
  const unsigned threads = 2 * kWarps * kWarp;
  const size_t bytes = block.pipelined.size * sizeof(float);
  const auto launch = [&](auto kernel) {
    return launch_with_shared(kernel, dim3(blocks), threads, bytes, stream, block);
  };
  return block.weight2_momentum ? launch(pipelined_chain_kernel<kWarps, kClasses, true>)
                                : launch(pipelined_chain_kernel<kWarps, kClasses, false>);
}

template <int kWarps>
cudaError_t launch_warps(const ChainBlock& block, cudaStream_t stream) {
  return block.classes <= 4    ? launch_classes<kWarps, 4>(block, stream)
         : block.classes <= 10 ? launch_classes<kWarps, 10>(block, stream)
                               : launch_classes<kWarps, 16>(block, stream);
}

}  // namespace

cudaError_t launch_pipelined_chain(const ChainBlock& block, cudaStream_t stream) {
  const int64_t blocks = block.groups * block.networks;
  if (blocks == 0) return cudaSuccess;
  if (block.pipelined.unsupported_reason || blocks > kMaxGridX) return cudaErrorInvalidValue;
  switch (block.pipelined.warps) {
    case 1:
      return launch_warps<1>(block, stream);
    case 2:
      return launch_warps<2>(block, stream);
    case 4:
      return launch_warps<4>(block, stream);
    default:
      return launch_warps<8>(block, stream);
  }
}

}  // namespace fastmlp
