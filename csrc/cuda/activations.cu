// relu and relu_backward on CUDA.
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

// The place of an element of rows that take whole bytes of a mask.
struct Place {
  int64_t row, col;
  __device__ Place(int64_t at, int64_t columns)
      : row(at / (mask_bytes(columns) * 8)), col(at % (mask_bytes(columns) * 8)) {}
};

// Computes  y = relu(x), and its mask: bit i % 8 of byte i / 8 of a row is not y[i] <= 0.
// Shapes    y, x (rows, columns), mask (rows, ceil(columns / 8)).
// Grid      as relu_kernel, of rows as long as their bytes; neighbouring lanes share a byte.
// Memory    y may be x.
// Precision exact.
// Needs     kVector: y and x 16-byte aligned, in_one_piece.
// Same as   relu_with_mask_ref.
template <bool kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    relu_with_mask_kernel(T* y, uint8_t* mask, const T* x, int64_t rows, int64_t columns) {
  constexpr int kCount = Pack<T>::kCount;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads * kPacks * kCount;
  if (kVector && block + kThreads * kPacks * kCount <= rows * columns) {
    Pack<T> packs[kPacks];
    const int64_t first = block / kCount + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      packs[i] = reinterpret_cast<const Pack<T>*>(x)[first + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t at = (first + i * kThreads) * kCount;
#pragma unroll
      for (int e = 0; e < kCount; ++e) packs[i].v[e] = relu(packs[i].v[e]);
      reinterpret_cast<Pack<T>*>(y)[first + i * kThreads] = packs[i];
      const unsigned byte = mask_byte(at, packs[i].v);
      if (at % 8 == 0) mask[at / 8] = static_cast<uint8_t>(byte);
    }
    return;
  }
  for (int i = 0; i < kPacks * kCount; ++i) {
    const int64_t at = block + i * kThreads + threadIdx.x;
    const Place place(at, columns);
    const int64_t from = place.row * columns + place.col;
    T value[1] = {};
    if (place.row < rows && place.col < columns) y[from] = value[0] = relu(x[from]);
    const unsigned byte = mask_byte(at, value);
    if (at % 8 == 0 && place.row < rows) mask[at / 8] = static_cast<uint8_t>(byte);
  }
}

// Computes  dx = dy where the mask's bit is 1, else 0.
// Shapes    dx, dy (rows, columns), mask (rows, ceil(columns / 8)).
// Grid, memory, precision, needs: as relu_with_mask_kernel.
// Same as   relu_backward_ref.
template <bool kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    relu_mask_backward_kernel(T* dx, const T* dy, const uint8_t* mask, int64_t rows,
                              int64_t columns) {
  constexpr int kCount = Pack<T>::kCount;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads * kPacks * kCount;
  if (kVector && block + kThreads * kPacks * kCount <= rows * columns) {
    Pack<T> packs[kPacks];
    unsigned bits[kPacks];
    const int64_t first = block / kCount + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t at = (first + i * kThreads) * kCount;
      packs[i] = reinterpret_cast<const Pack<T>*>(dy)[first + i * kThreads];
      bits[i] = mask[at / 8] >> at % 8;  // a pack lies within a byte
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) packs[i].v[e] = bits[i] >> e & 1 ? packs[i].v[e] : T{};
      reinterpret_cast<Pack<T>*>(dx)[first + i * kThreads] = packs[i];
    }
    return;
  }
  for (int i = 0; i < kPacks * kCount; ++i) {
    const int64_t at = block + i * kThreads + threadIdx.x;
    const Place place(at, columns);
    if (place.row >= rows || place.col >= columns) continue;
    const int64_t from = place.row * columns + place.col;
    dx[from] = mask[at / 8] >> at % 8 & 1 ? dy[from] : T{};
  }
}

template <typename T>
dim3 grid_for(int64_t count) {
  return dim3(static_cast<unsigned>(ceil_div(count, kThreads * kPacks * Pack<T>::kCount)));
}

// Whether elements and bits are counted alike: rows of whole bytes, or a single one.
bool in_one_piece(int64_t rows, int64_t columns) { return columns % 8 == 0 || rows == 1; }

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

cudaError_t launch_relu_with_mask(void* y, uint8_t* mask, const void* x, int64_t rows,
                                  int64_t columns, Type type, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool vector = is_aligned(y) && is_aligned(x) && in_one_piece(rows, columns);
    const auto kernel = vector ? relu_with_mask_kernel<true, T> : relu_with_mask_kernel<false, T>;
    return launch_kernel(kernel, grid_for<T>(rows * mask_bytes(columns) * 8), kThreads, stream,
                         static_cast<T*>(y), mask, static_cast<const T*>(x), rows, columns);
  });
}

cudaError_t launch_relu_mask_backward(void* dx, const void* dy, const uint8_t* mask, int64_t rows,
                                      int64_t columns, Type type, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool vector = is_aligned(dx) && is_aligned(dy) && in_one_piece(rows, columns);
    const auto kernel =
        vector ? relu_mask_backward_kernel<true, T> : relu_mask_backward_kernel<false, T>;
    return launch_kernel(kernel, grid_for<T>(rows * mask_bytes(columns) * 8), kThreads, stream,
                         static_cast<T*>(dx), static_cast<const T*>(dy), mask, rows, columns);
  });
}

}  // namespace fastmlp
