// Kernels that are wrong, each beside one that is right, to show what the emulated GPU finds.
#include <torch/csrc/stable/library.h>

#include "cuda/blocked/cluster.cuh"
#include "cuda/kernel.cuh"
#include "cuda_on_host.h"
#include "device_on_host.h"

namespace fastmlp {
namespace {

struct Values {
  float v[128];
};

// A thread reads what a thread of the next warp has written.
template <bool kRight>
void across_warps(float* out) {
  FASTMLP_SHARED(Values, shared);
  shared.v[threadIdx.x] = threadIdx.x;
  if (kRight) __syncthreads();
  out[threadIdx.x] = shared.v[(threadIdx.x + 32) % 128];
}

// It overwrites what a thread of the next warp reads.
template <bool kRight>
void too_early(float* out) {
  FASTMLP_SHARED(Values, shared);
  shared.v[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared.v[(threadIdx.x + 32) % 128];
  if (kRight) __syncthreads();
  shared.v[threadIdx.x] = 0;
}

// It reads what the next lane has written; an exchange between lanes orders nothing in memory.
template <bool kRight>
void across_lanes(float* out) {
  FASTMLP_SHARED(Values, shared);
  shared.v[threadIdx.x] = threadIdx.x;
  const float other = shuffle_xor(1.0f, 1);
  if (kRight) __syncwarp();
  out[threadIdx.x] = shared.v[threadIdx.x ^ 1] + other;
}

// Warp 0 tells warp 1 by a flag that its lanes have written.
template <bool kRaisedInOrder, bool kSeenInOrder>
void by_flag(float* out) {
  FASTMLP_SHARED(Values, shared);
  FASTMLP_SHARED(Flag, flag);
  if (threadIdx.x == 0) lower(&flag);
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x < kWarp) {
    shared.v[lane] = lane;
    if (kRaisedInOrder) __syncwarp();
    if (lane == 0) raise(&flag);
  } else if (threadIdx.x < 2 * kWarp) {
    if (kSeenInOrder || lane == 0) wait_for(&flag);
    out[lane] = shared.v[31 - lane];
  }
}

// The first half of the block meets at a barrier of its own; the last warp reads what it wrote.
template <bool kRight>
void at_a_numbered_barrier(float* out) {
  FASTMLP_SHARED(Values, shared);
  shared.v[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 64) barrier_of(1, 64);
  const int reader = kRight ? 32 : 96;
  if (threadIdx.x / kWarp == reader / kWarp) out[threadIdx.x] = shared.v[threadIdx.x - reader];
}

// Two blocks write the same number.
template <bool kRight>
void across_blocks(float* out) {
  if (threadIdx.x == 0) out[kRight ? blockIdx.x : 0] = 1;
}

// Half of a warp's lanes exchange in one place, half in another.
template <bool kRight>
void in_two_places(float* out) {
  float value = threadIdx.x;
  if (kRight || threadIdx.x % 2 == 0) {
    value += shuffle_xor(value, 2);
  } else {
    value -= shuffle_xor(value, 2);
  }
  out[threadIdx.x] = value;
}

// Two arrays, and an index that is the first's size.
template <bool kRight>
void behind_an_array(float* out) {
  FASTMLP_SHARED(Values, first);
  FASTMLP_SHARED(Values, second);
  float* numbers = first.v;
  numbers[threadIdx.x + (kRight ? 0 : 1)] = 1;
  second.v[threadIdx.x] = 2;
  out[threadIdx.x] = second.v[threadIdx.x];
}

struct alignas(16) Mail {
  float v[2][2][4];  // of each phase, from each block
  Inbox inbox[2];
};

// Two blocks tell each other numbers, phase after phase, in two places in turn.
template <bool kOpened, bool kWaits, bool kInTurn>
void across_a_cluster(float* out) {
  FASTMLP_SHARED_BYTES(bytes);
  Mail& mail = *reinterpret_cast<Mail*>(bytes);
  if (threadIdx.x < 2) open_inbox(mail.inbox + threadIdx.x);
  kOpened ? cluster_barrier() : __syncthreads();
  const unsigned rank = cluster_rank();
  float sum = 0;
  for (int phase = 0; phase < 4; ++phase) {
    const int place = kInTurn ? phase % 2 : 0;
    Inbox* inbox = mail.inbox + phase % 2;
    if (threadIdx.x == 0) expect_bytes(inbox, 2 * sizeof mail.v[0][0]);
    if (threadIdx.x / kWarp == 3 && threadIdx.x % kWarp < 2) {
      const float mine[4] = {rank + 1.0f, 2, 3, sum};
      send(mine, mail.v[place][rank], inbox, peer_of(bytes, threadIdx.x % kWarp));
    }
    if (kWaits) wait_for_bytes(inbox, phase / 2);
    sum += mail.v[place][0][0] + mail.v[place][1][0];
    __syncthreads();
  }
  cluster_barrier();
  if (rank == 0) out[threadIdx.x] = sum;
}

struct Example {
  const char* name;
  void (*wrong)(float*);
  void (*right)(float*);
  unsigned blocks = 1, cluster = 1;
};
constexpr Example kExamples[] = {
    {"across warps", across_warps<false>, across_warps<true>},
    {"too early", too_early<false>, too_early<true>},
    {"across lanes", across_lanes<false>, across_lanes<true>},
    {"a flag raised too early", by_flag<false, true>, by_flag<true, true>},
    {"a flag seen by one lane", by_flag<true, false>, by_flag<true, true>},
    {"a numbered barrier", at_a_numbered_barrier<false>, at_a_numbered_barrier<true>},
    {"an inbox not opened", across_a_cluster<false, true, true>, across_a_cluster<true, true, true>,
     2, 2},
    {"an inbox not waited for", across_a_cluster<true, false, true>,
     across_a_cluster<true, true, true>, 2, 2},
    {"a place sent to too early", across_a_cluster<true, true, false>,
     across_a_cluster<true, true, true>, 2, 2},
    {"across blocks", across_blocks<false>, across_blocks<true>, 2},
    {"in two places", in_two_places<false>, in_two_places<true>},
    {"behind an array", behind_an_array<false>, behind_an_array<true>},
};

void example(std::string name, bool right) {
  for (const Example& each : kExamples) {
    if (name != each.name) continue;
    Tensor out = empty_between_bands({128}, ScalarType::Float);
    const cudaError_t error =
        launch_clusters(right ? each.right : each.wrong, each.blocks, each.cluster, 128,
                        sizeof(Mail), nullptr, static_cast<float*>(out.data_ptr()));
    FASTMLP_CHECK(error == cudaSuccess, cudaGetErrorString(error));
    return;
  }
  FASTMLP_CHECK(false, "there is no example " + name);
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_FRAGMENT(FASTMLP_LIBRARY, m) { m.def("example(str name, bool right) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("example", TORCH_BOX(&fastmlp::example));
}
