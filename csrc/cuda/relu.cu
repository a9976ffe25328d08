// relu and relu_backward on CUDA.
#include "kernel.cuh"

namespace fastmlp {
namespace {

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // independent 16-byte loads in flight for each thread and input

// out = f(a, b) for the block's share of the elements, 16 bytes at a time where kVector.
template <bool kVector, typename T, typename F>
__device__ void map_packs(T* out, const T* a, const T* b, int64_t count, F f) {
  constexpr int kCount = Pack<T>::kCount;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads * kPacks * kCount;
  if (kVector && block + kThreads * kPacks * kCount <= count) {
    Pack<T> left[kPacks], right[kPacks];
    const int64_t first = block / kCount + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      left[i] = reinterpret_cast<const Pack<T>*>(a)[first + i * kThreads];
      right[i] = reinterpret_cast<const Pack<T>*>(b)[first + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) left[i].v[e] = f(left[i].v[e], right[i].v[e]);
      reinterpret_cast<Pack<T>*>(out)[first + i * kThreads] = left[i];
    }
    return;
  }
  for (int i = 0; i < kPacks * kCount; ++i) {
    const int64_t at = block + i * kThreads + threadIdx.x;
    if (at < count) out[at] = f(a[at], b[at]);
  }
}

// Computes  y = x < 0 ? 0 : x, so that nan and -0 stay.
// Shapes    y, x (count).
// Grid      a block owns 256 * 4 packs of 16 bytes; ragged or misaligned, it goes by elements.
// Memory    y may not overlap x.  Precision  exact.  Needs  kVector: both 16-byte aligned.
// Same as   relu_ref.
template <bool kVector, typename T>
__global__ void __launch_bounds__(kThreads) relu_kernel(T* y, const T* x, int64_t count) {
  map_packs<kVector>(y, x, x, count, [](T value, T) { return relu(value); });
}

// Computes  dx = dy where y > 0 or y is nan, 0 where y <= 0.
// Shapes    dx, dy, y (count).
// Grid, memory, precision, needs: as relu_kernel.
// Same as   relu_backward_ref.
template <bool kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    relu_backward_kernel(T* dx, const T* dy, const T* y, int64_t count) {
  map_packs<kVector>(dx, dy, y, count, [](T g, T output) { return relu_backward(g, output); });
}

template <typename T>
dim3 grid_for(int64_t count) {
  return dim3(static_cast<unsigned>(ceil_div(count, kThreads * kPacks * Pack<T>::kCount)));
}

}  // namespace

cudaError_t launch_relu(void* y, const void* x, int64_t count, Type type, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto kernel =
        is_aligned(y) && is_aligned(x) ? relu_kernel<true, T> : relu_kernel<false, T>;
    return launch_kernel(kernel, grid_for<T>(count), kThreads, stream, static_cast<T*>(y),
                         static_cast<const T*>(x), count);
  });
}

cudaError_t launch_relu_backward(void* dx, const void* dy, const void* y, int64_t count, Type type,
                                 cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool aligned = is_aligned(dx) && is_aligned(dy) && is_aligned(y);
    const auto kernel = aligned ? relu_backward_kernel<true, T> : relu_backward_kernel<false, T>;
    return launch_kernel(kernel, grid_for<T>(count), kThreads, stream, static_cast<T*>(dx),
                         static_cast<const T*>(dy), static_cast<const T*>(y), count);
  });
}

}  // namespace fastmlp
