// CUDA's runtime on the host, as far as csrc/cuda asks for it, so that g++ compiles the very source
// of the kernels. Each thread of a block is a fiber, blocks run one after the other but for those
// of a cluster; barriers and exchanges wait for the threads that they wait for on a GPU, and say so
// where some never come.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
const char* cudaGetErrorString(cudaError_t error);

namespace cuda_on_host {

extern dim3 thread, block, block_size, grid_size;

// Runs kernel for every thread of every block, with so many bytes of launch_bytes(), in clusters of
// so many blocks.
cudaError_t run(dim3 grid, unsigned threads, size_t bytes, const std::function<void()>& kernel,
                unsigned cluster = 1);

// The number of the block in its cluster, and of the thread among all of the cluster's.
unsigned rank();
unsigned thread_of_cluster();

// How many clusters of so many blocks run at the same time.
int clusters_at_once(unsigned cluster, size_t bytes);

// Wait for the block, for the warp, for so many threads at a barrier of this number, for a flag in
// shared memory.
void block_barrier();
bool block_barrier_or(bool mine);  // whether any thread's was true
void warp_barrier();
void numbered_barrier(int number, unsigned threads);
void wait_for_flag(const uint64_t* flag);
void raise_flag(uint64_t* flag);

// Wait for the cluster; bytes that blocks of it send each other, as cuda/blocked/cluster.cuh has
// them. With threads in another order than ascending, they arrive when nobody can go on without.
void cluster_barrier();
void open_inbox(uint64_t* inbox);
void expect_bytes(uint64_t* inbox, unsigned bytes);
void wait_for_bytes(uint64_t* inbox, int parity);
void send_bytes(const void* from, size_t bytes, void* place, uint64_t* inbox, unsigned rank);

// `size` bytes that the block's threads share under a key; filled with nan when a block starts.
void* shared_memory(const void* key, size_t size, size_t alignment);

// The bytes that the launch asked for, filled with nan when a block starts.
unsigned char* launch_bytes();

// Whether memory is the block's: of shared_memory or launch_bytes.
bool is_shared(const void* address);

// Gives `size` bytes to the warp and returns lane's bytes; another lane's are so far apart.
constexpr size_t kLargestExchange = 64;
const void* exchange(const void* mine, size_t size, int lane);

// Make the launch fail.
void trap(const char* why);

// Whether the emulated GPU has what came with compute capability 8.0; needs_sm80 traps where it has
// not, as an instruction does that a GPU does not know.
bool has_sm80();
void needs_sm80();

// c (16, 8) += a (16, 16) b (16, 8): registers as in the PTX manual for mma.m16n8k16, float16 or
// bfloat16 operands. Sums are cut off as those of mma_1688_tf32.
void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool halves);

// c (16, 8) += a (16, 8) b (8, 8) likewise, for mma.m16n8k8 with float16 operands.
void mma_1688(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]);

// c (16, 8) += a (16, 8) b (8, 8) likewise, for mma.m16n8k8 with TF32 operands. Addends and sum are
// cut off after 24 bits, counted from the largest: no tensor core is known to keep fewer. A sum
// that overflows is the largest number, as nobody says that it is inf.
void mma_1688_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// c (16, 8) += a (16, 32) b (32, 8) likewise, for mma.m16n8k32 with unsigned bytes and integer
// sums.
void mma_16832_bytes(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// x to TF32 as cvt.rna.tf32.f32 does: to nearest, ties away from 0; inf and nan stay.
uint32_t round_to_tf32(float x);

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread
#define blockIdx cuda_on_host::block
#define blockDim cuda_on_host::block_size
#define gridDim cuda_on_host::grid_size

#define FASTMLP_SHARED(type, name)  \
  static const char name##_key = 0; \
  type& name =                      \
      *static_cast<type*>(cuda_on_host::shared_memory(&name##_key, sizeof(type), alignof(type)))

#define FASTMLP_SHARED_BYTES(name) unsigned char* name = cuda_on_host::launch_bytes()

inline void __syncthreads() { cuda_on_host::block_barrier(); }
inline int __syncthreads_or(int mine) { return cuda_on_host::block_barrier_or(mine != 0); }
inline void __syncwarp() { cuda_on_host::warp_barrier(); }
inline void __trap() { cuda_on_host::trap("a trap"); }

template <typename T>
void __stwb(T* to, const T& value) {
  *to = value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  if (mask != 0xffffffffu) return T{};
  return *static_cast<const T*>(
      cuda_on_host::exchange(&value, sizeof value, (threadIdx.x % 32) ^ distance));
}

namespace cuda_on_host {

// f(lane, value) for all lanes' values.
template <typename T, typename F>
void for_lanes(const T& mine, const F& f) {
  const char* warp = static_cast<const char*>(exchange(&mine, sizeof mine, 0));
  for (int lane = 0; lane < 32; ++lane) {
    f(lane, *reinterpret_cast<const T*>(warp + lane * kLargestExchange));
  }
}

}  // namespace cuda_on_host

inline unsigned __ballot_sync(unsigned, bool yes) {
  unsigned all = 0;
  cuda_on_host::for_lanes(yes,
                          [&](int lane, bool bit) { all |= static_cast<unsigned>(bit) << lane; });
  return all;
}

namespace fastmlp {

constexpr bool kHasSm80 = true;  // the code for both is compiled, and has_sm80() chooses
inline bool has_sm80() { return cuda_on_host::has_sm80(); }
inline void barrier_of(int id, int threads) { cuda_on_host::numbered_barrier(id, threads); }
using Flag = uint64_t;
inline void lower(Flag* flag) {
  cuda_on_host::needs_sm80();
  *flag = 0;
}
inline void raise(Flag* flag) { cuda_on_host::raise_flag(flag); }
inline void wait_for(const Flag* flag) { cuda_on_host::wait_for_flag(flag); }
inline unsigned warp_max(unsigned x) {
  cuda_on_host::needs_sm80();
  unsigned largest = 0;
  cuda_on_host::for_lanes(x, [&](int, unsigned y) { largest = y > largest ? y : largest; });
  return largest;
}
inline unsigned warp_sum(unsigned x) {
  cuda_on_host::needs_sm80();
  unsigned sum = 0;
  cuda_on_host::for_lanes(x, [&](int, unsigned y) { sum += y; });
  return sum;
}
inline unsigned to_unsigned(float x) {
  return x != x ? 0 : static_cast<unsigned>(__builtin_nearbyintf(x));
}
inline float quick_exp(float x) { return __builtin_expf(x); }
inline float quick_reciprocal(float x) { return 1 / x; }
inline float quick_quotient(float a, float b) { return a / b; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, unsigned threads, cudaStream_t,
                          const Arguments&... arguments) {
  return cuda_on_host::run(grid, threads, 0, [&] { kernel(arguments...); });
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_with_shared(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                               size_t bytes, cudaStream_t, const Arguments&... arguments) {
  return cuda_on_host::run(grid, threads, bytes, [&] { kernel(arguments...); });
}

constexpr bool kHasClusters = true;
using Inbox = uint64_t;
inline unsigned cluster_rank() { return cuda_on_host::rank(); }
inline void cluster_barrier() { cuda_on_host::cluster_barrier(); }
inline void open_inbox(Inbox* inbox) { cuda_on_host::open_inbox(inbox); }
inline void expect_bytes(Inbox* inbox, unsigned bytes) { cuda_on_host::expect_bytes(inbox, bytes); }
inline void wait_for_bytes(Inbox* inbox, int parity) {
  cuda_on_host::wait_for_bytes(inbox, parity);
}
using Peer = unsigned;
inline Peer peer_of(const void*, unsigned rank) { return rank; }
template <int kCount>
void send(const float (&v)[kCount], float* place, Inbox* inbox, Peer peer) {
  static_assert(kCount == 2 || kCount == 4);
  cuda_on_host::send_bytes(v, sizeof v, place, inbox, peer);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), unsigned blocks, unsigned cluster,
                            unsigned threads, size_t bytes, cudaStream_t,
                            const Arguments&... arguments) {
  return cuda_on_host::run(blocks, threads, bytes, [&] { kernel(arguments...); }, cluster);
}

template <typename... Parameters>
cudaError_t count_clusters(void (*)(Parameters...), int* clusters, unsigned, unsigned cluster,
                           unsigned, size_t bytes) {
  *clusters = cuda_on_host::clusters_at_once(cluster, bytes);
  return cudaSuccess;
}

struct bf16;
struct f16;
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const bf16&) {
  cuda_on_host::mma_16816(c, a, b, false);
}
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const f16&) {
  cuda_on_host::mma_16816(c, a, b, true);
}
inline void mma_1688(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  cuda_on_host::mma_1688(c, a, b);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_host::mma_1688_tf32(c, a, b);
}
inline void mma_bytes(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_host::mma_16832_bytes(c, a, b);
}
inline uint32_t round_to_tf32(float x) { return cuda_on_host::round_to_tf32(x); }

}  // namespace fastmlp
