// What every kernel needs: launch, shared memory, packs of 16 bytes, sums over warps and blocks.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/scalar_math.h"
#include "cuda/launch.h"

// The tests compile the kernels for the host with a cuda_runtime.h of their own, which brings its
// FASTMLP_SHARED, FASTMLP_SHARED_BYTES, launch_kernel and launch_with_shared.
#ifdef __CUDACC__
#define FASTMLP_SHARED(type, name) __shared__ type name
// As much memory as the launch asks for, aligned to 16 bytes.
#define FASTMLP_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]

namespace fastmlp {

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
