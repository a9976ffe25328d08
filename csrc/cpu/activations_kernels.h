// relu and its gradient over contiguous elements. Included by foreach_isa.h.
#include "cpu/mask_bits.h"

// Vectors on their way at once.
constexpr int kUnroll = 4;

// Elements until p is aligned for stores that go past the caches (stream, in simd.h).
template <typename T>
FASTMLP_INLINE int64_t lanes_to_alignment(const T* p) {
  const uintptr_t bytes = -reinterpret_cast<uintptr_t>(p) % FASTMLP_VECTOR_BYTES;
  return static_cast<int64_t>(bytes / sizeof(T));
}

// kStream: y is larger than the caches, so it is written past them, which spares reading it first.
template <bool kStream, typename T>
void relu_range(const T* x, T* y, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = kStream ? lanes_to_alignment(y) : 0;
  for (int64_t j = 0; j < i && j < count; ++j)
    store_partial(y + j, relu(load_partial(x + j, 1)), 1);
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) v[u] = load(x + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) put<kStream>(y + i + u * kStep, relu(v[u]));
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    store_lanes(y + i, relu(load_lanes(x + i, lanes)), lanes);
  }
  if (kStream) stream_fence();
}

template <bool kStream, typename T>
void relu_backward_range(const T* dy, const T* y, T* dx, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = kStream ? lanes_to_alignment(dx) : 0;
  for (int64_t j = 0; j < i && j < count; ++j) {
    store_partial(dx + j, relu_backward(load_partial(dy + j, 1), load_partial(y + j, 1)), 1);
  }
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> g[kUnroll], v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) g[u] = load(dy + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) v[u] = load(y + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) put<kStream>(dx + i + u * kStep, relu_backward(g[u], v[u]));
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    store_lanes(dx + i, relu_backward(load_lanes(dy + i, lanes), load_lanes(y + i, lanes)), lanes);
  }
  if (kStream) stream_fence();
}

// relu_range with the bits of a mask, from the beginning of a byte on; y may be x. kStream: y is
// aligned, besides.
template <bool kStream, typename T>
void relu_mask_range(const T* x, T* y, uint8_t* mask, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = 0;
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) v[u] = load(x + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) put<kStream>(y + i + u * kStep, relu(v[u]));
    for (int u = 0; u < kUnroll; ++u) store_bits(mask, i + u * kStep, passing_bits(v[u]), kStep);
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    const vec<Acc> v = load_lanes(x + i, lanes);
    store_lanes(y + i, relu(v), lanes);
    store_bits(mask, i, passing_bits(v), lanes);
  }
  if (kStream) stream_fence();
}

// relu_backward_range from such bits; dx as y there.
template <bool kStream, typename T>
void relu_mask_backward_range(const T* dy, const uint8_t* mask, T* dx, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = 0;
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> g[kUnroll];
    for (int u = 0; u < kUnroll; ++u) g[u] = load(dy + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kStep;
      put<kStream>(dx + at, where_bits(load_bits(mask, at, kStep), g[u]));
    }
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    const vec<Acc> g = load_lanes(dy + i, lanes);
    store_lanes(dx + i, where_bits(load_bits(mask, i, lanes), g), lanes);
  }
  if (kStream) stream_fence();
}
