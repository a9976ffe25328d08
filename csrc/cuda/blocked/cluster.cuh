// Clusters of thread blocks, which run at the same time and write into each other's shared memory.
#pragma once
#include "cuda/kernel.cuh"

// The tests have it all emulated.
#ifdef __CUDACC__
namespace fastmlp {

// Whether the GPU that this is compiled for has clusters. For others their kernel is a trap: no
// plan launches it there, and nothing calls what follows.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

// The number of this block in its cluster.
__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits for all threads of the cluster, which then see what any of them has written before.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Counts the bytes that blocks of the cluster send to a place in shared memory beside it, in
// phases: one is over when all that expect_bytes said have come.
using Inbox = uint64_t;
__device__ inline void open_inbox(Inbox* inbox) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(inbox));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// By one thread, once in a phase.
__device__ inline void expect_bytes(Inbox* inbox, unsigned bytes) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(inbox));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
               : "memory");
}
// Waits for the phase of this parity, 0 for the first, to be over; sees what was sent in it.
__device__ inline void wait_for_bytes(Inbox* inbox, int parity) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(inbox));
  int over;
  do {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.s32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(address), "r"(parity)
        : "memory");
  } while (!over);
}

// A block of the cluster: how far its shared memory lies from this block's.
using Peer = unsigned;
__device__ inline Peer peer_of(const void* shared, unsigned rank) {
  const auto here = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  return there - here;
}
// Sends numbers to the same place in another block, whose inbox counts them.
__device__ inline void send(const float (&v)[2], float* place, Inbox* inbox, Peer peer) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(place)) + peer;
  const auto counted = static_cast<unsigned>(__cvta_generic_to_shared(inbox)) + peer;
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
          to),
      "r"(bits_of_float(v[0])), "r"(bits_of_float(v[1])), "r"(counted)
      : "memory");
}
__device__ inline void send(const float (&v)[4], float* place, Inbox* inbox, Peer peer) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(place)) + peer;
  const auto counted = static_cast<unsigned>(__cvta_generic_to_shared(inbox)) + peer;
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(bits_of_float(v[0])), "r"(bits_of_float(v[1])), "r"(bits_of_float(v[2])),
      "r"(bits_of_float(v[3])), "r"(counted)
      : "memory");
}

}  // namespace fastmlp
#endif
