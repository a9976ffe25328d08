// activation and activation_backward on CUDA.
#include "cuda/kernel.cuh"

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

// Computes  y = act(x).
// Shapes    y, x (count).
// Grid      a block owns 256 * 4 packs of 16 bytes; ragged or misaligned, it goes by elements.
// Memory    y may not overlap x.
// Precision acc_t; exact for none and relu.
// Needs     kVector: both 16-byte aligned.
// Same as   activation_ref.
template <Activation kActivation, bool kVector, typename T>
__global__ void __launch_bounds__(kThreads) activation_kernel(T* y, const T* x, int64_t count) {
  map_packs<kVector>(y, x, x, count, [](T value, T) {
    return narrow<T>(ActivationRow<kActivation>::forward(widen(value)));
  });
}

// Computes  dx = dy times the derivative where the activation saved `saved`.
// Shapes    dx, dy, saved (count).
// Grid, memory, precision, needs: as activation_kernel.
// Same as   activation_backward_ref.
template <Activation kActivation, bool kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(T* dx, const T* dy, const T* saved, int64_t count) {
  map_packs<kVector>(dx, dy, saved, count, [](T g, T value) {
    return narrow<T>(ActivationRow<kActivation>::backward(widen(g), widen(value)));
  });
}

template <typename T>
dim3 grid_for(int64_t count) {
  return dim3(static_cast<unsigned>(ceil_div(count, kThreads * kPacks * Pack<T>::kCount)));
}

}  // namespace

cudaError_t launch_activation(void* y, const void* x, int64_t count, Activation activation,
                              Type type, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const bool aligned = is_aligned(y) && is_aligned(x);
  return dispatch_activation(activation, [&](auto constant) {
    constexpr Activation kActivation = decltype(constant)::value;
    return dispatch_type(type, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      const auto kernel = aligned ? activation_kernel<kActivation, true, T>
                                  : activation_kernel<kActivation, false, T>;
      return launch_kernel(kernel, grid_for<T>(count), kThreads, stream, static_cast<T*>(y),
                           static_cast<const T*>(x), count);
    });
  });
}

cudaError_t launch_activation_backward(void* dx, const void* dy, const void* saved, int64_t count,
                                       Activation activation, Type type, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const bool aligned = is_aligned(dx) && is_aligned(dy) && is_aligned(saved);
  return dispatch_activation(activation, [&](auto constant) {
    constexpr Activation kActivation = decltype(constant)::value;
    return dispatch_type(type, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      const auto kernel = aligned ? activation_backward_kernel<kActivation, true, T>
                                  : activation_backward_kernel<kActivation, false, T>;
      return launch_kernel(kernel, grid_for<T>(count), kThreads, stream, static_cast<T*>(dx),
                           static_cast<const T*>(dy), static_cast<const T*>(saved), count);
    });
  });
}

}  // namespace fastmlp
