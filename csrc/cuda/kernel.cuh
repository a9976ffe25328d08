// What every kernel needs: launch, shared memory, packs of 16 bytes, sums over warps and blocks.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/scalar_math.h"
#include "cuda/launch.h"

// The tests compile the kernels for the host with a cuda_runtime.h of their own, which brings its
// FASTMLP_SHARED, FASTMLP_SHARED_BYTES, kHasSm80, has_sm80, launch_kernel and launch_with_shared.
#ifdef __CUDACC__
#define FASTMLP_SHARED(type, name) __shared__ type name
// As much memory as the launch asks for, aligned to 16 bytes.
#define FASTMLP_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]

namespace fastmlp {

// Whether the GPU that this is compiled for has what came with sm_80: bfloat16 and TF32 on tensor
// cores, flags in shared memory, integers combined over a warp. For sm_75 a kernel that needs these
// is a trap: no plan launches it there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasSm80 = false;
#else
constexpr bool kHasSm80 = true;
#endif
__device__ constexpr bool has_sm80() { return kHasSm80; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                          cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

// The same with so many bytes of shared memory for FASTMLP_SHARED_BYTES; above 48 KB a kernel has
// to ask each device for them.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_with_shared(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                               size_t bytes, cudaStream_t stream, const Arguments&... arguments) {
  if (bytes > 48 << 10) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, threads, bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

// The same for blocks in clusters of so many, and how many of these clusters run at the same time.
template <typename... Parameters>
cudaError_t configure_clusters(void (*kernel)(Parameters...), cudaLaunchConfig_t* config,
                               cudaLaunchAttribute* attribute, unsigned blocks, unsigned cluster,
                               unsigned threads, size_t bytes) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = cluster;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  *config = {};
  config->gridDim = dim3(blocks);
  config->blockDim = dim3(threads);
  config->dynamicSmemBytes = bytes;
  config->attrs = attribute;
  config->numAttrs = 1;
  if (bytes <= 48 << 10) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}
template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), unsigned blocks, unsigned cluster,
                            unsigned threads, size_t bytes, cudaStream_t stream,
                            const Arguments&... arguments) {
  cudaLaunchConfig_t config;
  cudaLaunchAttribute attribute;
  const cudaError_t error =
      configure_clusters(kernel, &config, &attribute, blocks, cluster, threads, bytes);
  if (error != cudaSuccess) return error;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <typename... Parameters>
cudaError_t count_clusters(void (*kernel)(Parameters...), int* clusters, unsigned blocks,
                           unsigned cluster, unsigned threads, size_t bytes) {
  cudaLaunchConfig_t config;
  cudaLaunchAttribute attribute;
  const cudaError_t error =
      configure_clusters(kernel, &config, &attribute, blocks, cluster, threads, bytes);
  return error != cudaSuccess ? error : cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

// Waits until so many threads of the block, whole warps, have come to barrier `id` (1 to 15).
__device__ inline void barrier_of(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A flag in shared memory, raised once: by one lane, after __syncwarp. Who waits for it sees what
// the warp has written before.
using Flag = uint64_t;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ inline void lower(Flag* flag) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(flag));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
}
__device__ inline void raise(Flag* flag) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(flag));
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(address)
               : "memory");
}
__device__ inline void wait_for(Flag* flag) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(flag));
  int raised;
  do {
    asm volatile(
        "{ .reg .pred p; .reg .b64 state;\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
#else
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], 0;\n"
#endif
        "selp.s32 %0, 1, 0, p; }"
        : "=r"(raised)
        : "r"(address)
        : "memory");
  } while (!raised);
}

// Of all lanes, the same in each.
__device__ inline unsigned warp_max(unsigned x) { return __reduce_max_sync(0xffffffffu, x); }
__device__ inline unsigned warp_sum(unsigned x) { return __reduce_add_sync(0xffffffffu, x); }
#endif

// x >= 0 rounded to an integer; nan gives 0.
__device__ inline unsigned to_unsigned(float x) { return __float2uint_rn(x); }

// exp(x) for x <= 0, up to 2^-22.
__device__ inline float quick_exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

// 1 / x up to a unit in the last place, for x between 2^-126 and 2^126.
__device__ inline float quick_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// a / b up to two units in the last place, for b between 2^-126 and 2^126.
__device__ inline float quick_quotient(float a, float b) { return __fdividef(a, b); }

}  // namespace fastmlp
#endif

namespace fastmlp {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int64_t kMaxGridX = 0x7fffffff;

// 16 bytes: the widest load or store.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T v[kCount];
};

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with a null pointer of the storage type.
template <typename F>
cudaError_t dispatch_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(static_cast<float*>(nullptr));
    case Type::kDouble:
      return f(static_cast<double*>(nullptr));
    case Type::kBFloat16:
      return f(static_cast<bf16*>(nullptr));
    case Type::kHalf:
      return f(static_cast<f16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

// A bit for each lane of the warp.
__device__ inline unsigned ballot(bool yes) { return __ballot_sync(kWholeWarp, yes); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// The largest number of all lanes, the same in each; nan counts as larger than inf, or smaller than
// -inf, by its sign.
__device__ inline float warp_largest(float x) {
  const auto flipped = [](uint32_t bits) {
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  };
  const uint32_t key = warp_max(flipped(bits_of_float(x)));
  return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
#endif

template <typename Acc>
__device__ Acc shuffle_xor(Acc value, int distance) {
  return __shfl_xor_sync(kWholeWarp, value, distance);
}

template <typename Acc>
__device__ OnlineSoftmax<Acc> shuffle_xor(OnlineSoftmax<Acc> value, int distance) {
  OnlineSoftmax<Acc> other;
  other.max = __shfl_xor_sync(kWholeWarp, value.max, distance);
  other.sum = __shfl_xor_sync(kWholeWarp, value.sum, distance);
  return other;
}

template <typename Acc>
__device__ Acc combined(Acc a, Acc b) {
  return a + b;
}

template <typename Acc>
__device__ OnlineSoftmax<Acc> combined(const OnlineSoftmax<Acc>& a, const OnlineSoftmax<Acc>& b) {
  return a.merged(b);
}

// All lanes' values combined, the same bits in every lane. Wants all 32 lanes.
template <typename Value>
__device__ Value combine_warp(Value value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combined(value, shuffle_xor(value, distance));
  }
  return value;
}

// Shared memory that combine_block passes the warps' values through.
template <typename Acc>
struct WarpValues {
  Acc first[kWarp], second[kWarp];
};

template <typename Acc>
__device__ void put(WarpValues<Acc>& shared, int warp, Acc value) {
  shared.first[warp] = value;
}
template <typename Acc>
__device__ void put(WarpValues<Acc>& shared, int warp, const OnlineSoftmax<Acc>& value) {
  shared.first[warp] = value.max;
  shared.second[warp] = value.sum;
}
template <typename Acc>
__device__ void get(const WarpValues<Acc>& shared, int warp, Acc& value) {
  value = shared.first[warp];
}
template <typename Acc>
__device__ void get(const WarpValues<Acc>& shared, int warp, OnlineSoftmax<Acc>& value) {
  value.max = shared.first[warp];
  value.sum = shared.second[warp];
}

// All threads' values combined in an order that depends on blockDim.x alone, the same bits in every
// thread. Wants every thread of the block, whole warps, at most 32 of them.
template <typename Value, typename Acc>
__device__ Value combine_block(Value value, WarpValues<Acc>& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = combine_warp(value);
  if (lane == 0) put(shared, warp, value);
  __syncthreads();  // lane 0 of each warp has written its warp's value, which every warp reads
  Value others{};
  if (lane < static_cast<int>(blockDim.x) / kWarp) get(shared, lane, others);
  __syncthreads();  // every warp has read what the next call overwrites
  return combine_warp(others);
}

}  // namespace fastmlp
