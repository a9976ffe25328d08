// relu and its gradient over contiguous elements. Included by foreach_isa.h.

// Vectors on their way at once.
constexpr int kUnroll = 4;

template <typename T>
void relu_range(const T* x, T* y, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = 0;
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) v[u] = load(x + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) store(y + i + u * kStep, v[u] < Acc(0) ? vec<Acc>{} : v[u]);
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    const vec<Acc> v = load_lanes(x + i, lanes);
    store_lanes(y + i, v < Acc(0) ? vec<Acc>{} : v, lanes);
  }
}

template <typename T>
void relu_backward_range(const T* dy, const T* y, T* dx, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  int64_t i = 0;
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    vec<Acc> g[kUnroll], v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) g[u] = load(dy + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) v[u] = load(y + i + u * kStep);
    for (int u = 0; u < kUnroll; ++u) store(dx + i + u * kStep, v[u] <= Acc(0) ? vec<Acc>{} : g[u]);
  }
  for (; i < count; i += kStep) {
    const int64_t lanes = count - i < kStep ? count - i : kStep;
    const vec<Acc> g = load_lanes(dy + i, lanes);
    store_lanes(dx + i, load_lanes(y + i, lanes) <= Acc(0) ? vec<Acc>{} : g, lanes);
  }
}
