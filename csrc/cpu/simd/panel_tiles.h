// Register-tiled products with a panel: a few vectors of a matrix's columns, whose rows lie
// together. Included by foreach_isa.h, once for each instruction set, after cpu/simd/panel_shape.h.
//
// An element's sum runs along the inner dimension in an order that depends on its length alone: not
// on the tile it falls in, nor on the rows that a thread was given.

// Rows of a register tile that is V vectors wide.
template <int V>
constexpr int kPanelTileRows = FASTMLP_VECTOR_BYTES == 64 ? 8
                               : V == 3                   ? 4
                               : V == 2                   ? 6
                                                          : 8;

// Numbers in a vector, which panels are whole vectors of.
template <typename T>
int64_t lanes_of() {
  return kLanes<T>;
}

// acc[m][v] = sum_i a(m, i) b[i][v], i < k: a(m, i) = a[m * stride + i], or where kAcross
// a[m + i * stride].
template <int M, int V, bool kAcross, typename T>
FASTMLP_INLINE void multiply(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t k,
                             vec<T> (&acc)[M][V]) {
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = vec<T>{};
  }
  for (int64_t i = 0; i < k; ++i) {
    vec<T> bv[V];
    for (int v = 0; v < V; ++v) bv[v] = load(b + i * b_stride + v * kLanes<T>);
    for (int m = 0; m < M; ++m) {
      const vec<T> av = broadcast(kAcross ? a[m + i * stride] : a[m * stride + i]);
      for (int v = 0; v < V; ++v) acc[m][v] = fma(av, bv[v], acc[m][v]);
    }
  }
}

// Where a panel's sums are kept between the parts of a long sum.
template <typename T>
struct PanelSums {
  T* to;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int v, vec<T> sum) const {
    store(to + m * stride + v * kLanes<T>, sum);
  }
};

// Hands a(m, .) b to out(m, vector, sum) for M rows, added to what `sums` holds unless that is
// null.
template <int M, int V, bool kAcross, typename T, typename Out>
FASTMLP_INLINE void panel_tile(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t k,
                               const PanelSums<T>& sums, int64_t row, const Out& out) {
  vec<T> acc[M][V];
  multiply<M, V, kAcross>(a + row * (kAcross ? 1 : stride), stride, b, b_stride, k, acc);
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      const T* before = sums.to + (row + m) * sums.stride + v * kLanes<T>;
      out(row + m, v, sums.to ? load(before) + acc[m][v] : acc[m][v]);
    }
  }
}

// The same for all rows [0, rows).
template <int V, bool kAcross, typename T, typename Out>
FASTMLP_INLINE void panel_rows(const T* a, int64_t stride, int64_t rows, const T* b,
                               int64_t b_stride, int64_t k, const PanelSums<T>& sums,
                               const Out& out) {
  constexpr int kRows = kPanelTileRows<V>;
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    panel_tile<kRows, V, kAcross>(a, stride, b, b_stride, k, sums, m, out);
  }
  for (; m + 2 <= rows; m += 2) {
    panel_tile<2, V, kAcross>(a, stride, b, b_stride, k, sums, m, out);
  }
  if (m < rows) panel_tile<1, V, kAcross>(a, stride, b, b_stride, k, sums, m, out);
}
