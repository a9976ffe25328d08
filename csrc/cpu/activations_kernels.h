// An activation and its gradient over contiguous elements. Included by foreach_isa.h.

// Vectors on their way at once.
constexpr int kUnroll = 4;

// Elements until p is aligned for stores that go past the caches (stream, in simd.h).
template <typename T>
FASTMLP_INLINE int64_t lanes_to_alignment(const T* p) {
  const uintptr_t bytes = -reinterpret_cast<uintptr_t>(p) % FASTMLP_VECTOR_BYTES;
  return static_cast<int64_t>(bytes / sizeof(T));
}

// y = act(x). kStream: y is larger than the caches, so it is written past them, which
// spares reading it first.
template <Activation kActivation, bool kStream, typename T>
void activation_range(const T* x, T* y, int64_t count) {
  using Row = ActivationRow<kActivation>;
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = kStream ? lanes_to_alignment(y) : 0;
  for (int64_t j = 0; j < i && j < count; ++j)
    store_partial(y + j, Row::forward(load_partial(x + j, 1)), 1);
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) v[u] = load(x + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) put<kStream>(y + i + u * kStep, Row::forward(v[u]));
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    store_lanes(y + i, Row::forward(load_lanes(x + i, lanes)), lanes);
  }
  if (kStream) stream_fence();
}

// dx from dy and what the activation saved; kStream as above.
template <Activation kActivation, bool kStream, typename T>
void activation_backward_range(const T* dy, const T* saved, T* dx, int64_t count) {
  using Row = ActivationRow<kActivation>;
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = kStream ? lanes_to_alignment(dx) : 0;
  for (int64_t j = 0; j < i && j < count; ++j) {
    store_partial(dx + j, Row::backward(load_partial(dy + j, 1), load_partial(saved + j, 1)), 1);
  }
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> g[kUnroll], v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) g[u] = load(dy + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) v[u] = load(saved + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) put<kStream>(dx + i + u * kStep, Row::backward(g[u], v[u]));
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    const vec<Acc> g = load_lanes(dy + i, lanes), v = load_lanes(saved + i, lanes);
    store_lanes(dx + i, Row::backward(g, v), lanes);
  }
  if (kStream) stream_fence();
}
