// activation and activation_backward on CUDA.
#include "cuda/kernel.cuh"

namespace fastmlp {
namespace {

constexpr int kThreads = 256;
// Independent 16-byte loads in flight for each thread and input; functions take registers, too.
template <Activation kActivation>
constexpr int kPacks = kActivation == Activation::kNone || kActivation == Activation::kRelu ? 4 : 2;

// out = f(a, b) for the block's share of the elements, 16 bytes at a time where all are aligned.
template <int kPacks, typename T, typename F>
__device__ void map_packs(T* out, const T* a, const T* b, int64_t count, bool aligned, F f) {
  constexpr int kCount = Pack<T>::kCount;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads * kPacks * kCount;
  if (aligned && block + kThreads * kPacks * kCount <= count) {
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
// Grid      a block owns 256 * kPacks packs of 16 bytes; ragged or misaligned, it goes by elements.
// Memory    y may not overlap x.
// Precision acc_t; exact for none and relu.
// Needs     aligned: both are so, to 16 bytes.
// Same as   activation_ref.
template <Activation kActivation, typename T>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(T* y, const T* x, int64_t count, bool aligned) {
  map_packs<kPacks<kActivation>>(y, x, x, count, aligned, [](T value, T) {
    return narrow<T>(ActivationRow<kActivation>::forward(widen(value)));
  });
}

// Computes  dx = dy times the derivative where the activation saved `saved`.
// Shapes    dx, dy, saved (count).
// Grid, memory, precision, needs: as activation_kernel.
// Same as   activation_backward_ref.
template <Activation kActivation, typename T>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(T* dx, const T* dy, const T* saved, int64_t count, bool aligned) {
  map_packs<kPacks<kActivation>>(dx, dy, saved, count, aligned, [](T g, T value) {
    return narrow<T>(ActivationRow<kActivation>::backward(widen(g), widen(value)));
  });
}

// f(activation, T*, grid) with the first two as types; nothing where there are no elements.
template <typename F>
cudaError_t dispatch(Activation activation, Type type, int64_t count, const F& f) {
  if (count == 0) return cudaSuccess;
  return dispatch_activation(activation, [&](auto constant) {
    return dispatch_type(type, [&](auto* tag) {
      constexpr int kCount = Pack<std::remove_pointer_t<decltype(tag)>>::kCount;
      const int64_t blocks = ceil_div(count, kThreads * kPacks<decltype(constant)::value> * kCount);
      return f(constant, tag, dim3(static_cast<unsigned>(blocks)));
    });
  });
}

}  // namespace

cudaError_t launch_activation(void* y, const void* x, int64_t count, Activation activation,
                              Type type, cudaStream_t stream) {
  const bool aligned = is_aligned(y) && is_aligned(x);
  return dispatch(activation, type, count, [&](auto constant, auto* tag, dim3 grid) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto kernel = activation_kernel<decltype(constant)::value, T>;
    return launch_kernel(kernel, grid, kThreads, stream, static_cast<T*>(y),
                         static_cast<const T*>(x), count, aligned);
  });
}

cudaError_t launch_activation_backward(void* dx, const void* dy, const void* saved, int64_t count,
                                       Activation activation, Type type, cudaStream_t stream) {
  const bool aligned = is_aligned(dx) && is_aligned(dy) && is_aligned(saved);
  return dispatch(activation, type, count, [&](auto constant, auto* tag, dim3 grid) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto kernel = activation_backward_kernel<decltype(constant)::value, T>;
    return launch_kernel(kernel, grid, kThreads, stream, static_cast<T*>(dx),
                         static_cast<const T*>(dy), static_cast<const T*>(saved), count, aligned);
  });
}

}  // namespace fastmlp
