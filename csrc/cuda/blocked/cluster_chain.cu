// The chain of a block of blocked look-ahead SGD (docs/blocked-sgd.md) on CUDA, for few networks:
// each has a cluster of eight thread blocks.
#include "cuda/blocked/cluster_history.cuh"
#include "cuda/blocked/cluster_walk.cuh"

namespace fastmlp {
namespace {

// The steps of a network, by its cluster.
template <typename Chain>
__device__ void walk_cluster(const ChainBlock& block) {
  FASTMLP_SHARED_BYTES(shared);
  const ChainNetwork<float> net(block, blockIdx.x / kClusterBlocks);
  const Chain chain(block, net, reinterpret_cast<float*>(shared));
  chain.load();
  if (threadIdx.x < Chain::kWarps * kWarp) {
    ClusterWalkingWarp<Chain> walker(chain);
    cluster_barrier();  // all blocks' inboxes are open; all threads have written table and flags
    walker.run();
    walker.store();
  } else {
    ClusterHistoryWarp<Chain> history(chain);
    cluster_barrier();  // the same
    history.run();
  }
  __syncthreads();  // what losses are made of is written, which all read
  if (chain.rank == 0) finish_chain(chain);
  cluster_barrier();  // no block ends before the others have sent it all
}

// Computes  blocked_chain_kernel's results.
// Shapes    ChainBlock's; 64 to 1024 hidden units, up to 16 classes and 16 rows in a batch.
// Grid      a cluster of 8 blocks for each network, each with an eighth of the hidden units; half
//           of a block's warps walks, the other keeps the history.
// Memory    what a block needs stays in its shared memory; to_w is written as it comes. In a step
//           each block sends its sums of logits to all, and makes the same gradients of them.
// Precision float32; products of fragments are three of TF32's, as accurate as float32. Sums in one
//           order for one plan: deterministic. Losses are added in double.
// Needs     sm_90, plan_cluster_chain's plan. A label that is no class makes its network nan, no
//           more.
// Same as   blocked_chain_ref.
template <int kWarps, int kParts, int kTiles, int kSlots>
__global__ void __launch_bounds__(2 * kWarps * kWarp, 1)
    cluster_chain_kernel(const ChainBlock block) {
  if constexpr (kHasClusters) {
    walk_cluster<ClusterChain<kWarps, kParts, kTiles, kSlots>>(block);
  } else {
    __trap();
  }
}

// f(kernel) for the kernel of a plan.
template <int kWarps, int kParts, typename F>
cudaError_t with_kernel(const ClusterChainPlan& plan, const F& f) {
  const bool few = plan.slots_of_lane == 2;
  if constexpr (kWarps <= 4) {  // more would not fit into registers
    if (plan.tiles_of_step == 2) {
      return few ? f(cluster_chain_kernel<kWarps, kParts, 2, 2>)
                 : f(cluster_chain_kernel<kWarps, kParts, 2, 4>);
    }
  }
  return few ? f(cluster_chain_kernel<kWarps, kParts, 1, 2>)
             : f(cluster_chain_kernel<kWarps, kParts, 1, 4>);
}
template <typename F>
cudaError_t with_kernel(const ClusterChainPlan& plan, const F& f) {
  return plan.parts == 2   ? with_kernel<8, 2>(plan, f)
         : plan.warps == 8 ? with_kernel<8, 1>(plan, f)
         : plan.warps == 4 ? with_kernel<4, 1>(plan, f)
                           : with_kernel<2, 1>(plan, f);
}

unsigned blocks_of(const ChainBlock& block) {
  return static_cast<unsigned>(block.groups * block.networks * kClusterBlocks);
}
unsigned threads_of(const ChainBlock& block) { return 2 * block.cluster.warps * kWarp; }
size_t bytes_of(const ChainBlock& block) { return block.cluster.size * sizeof(float); }

}  // namespace

cudaError_t launch_cluster_chain(const ChainBlock& block, cudaStream_t stream) {
  if (block.groups * block.networks == 0) return cudaSuccess;
  if (block.cluster.unsupported_reason) return cudaErrorInvalidValue;
  return with_kernel(block.cluster, [&](auto kernel) {
    return launch_clusters(kernel, blocks_of(block), kClusterBlocks, threads_of(block),
                           bytes_of(block), stream, block);
  });
}

cudaError_t count_cluster_chains(const ChainBlock& block, int* clusters) {
  *clusters = 0;
  if (block.groups * block.networks == 0 || block.cluster.unsupported_reason) return cudaSuccess;
  return with_kernel(block.cluster, [&](auto kernel) {
    return count_clusters(kernel, clusters, blocks_of(block), kClusterBlocks, threads_of(block),
                          bytes_of(block));
  });
}

}  // namespace fastmlp
