// The two register-tiled matrix products behind everything here, for skinny shapes.
// Included by foreach_isa.h, once for each instruction set.
//
// Every element's sum runs in an order that depends on the inner length alone: not on the tile it
// falls in, nor on the range of columns a thread was given.

// Blocks of the inner dimension: dot_rows keeps kTileRows rows of one in half of a level-1 cache;
// axpy_columns adds blocks up, which bounds the rounding error of a long sum.
template <typename Acc>
constexpr int64_t kDotBlock = 24576 / (8 * sizeof(Acc));
constexpr int64_t kAxpyBlock = 64;

// sums[n][m] = a[m] . b[n] over k elements, for a tile of M x kTileVectors rows. Rows past the last
// (a_rows, b_rows) are read as copies of the last: computed for nothing, never stored by the
// caller.
template <int M, typename T>
FASTMLP_INLINE void dot_tile(const acc_t<T>* a, int64_t a_stride, int64_t a_rows, const T* b,
                             int64_t b_stride, int64_t b_rows, int64_t k,
                             acc_t<T> (*sums)[kTileRows]) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  const Acc* a_row[M];
  const T* b_row[kTileVectors];
  for (int m = 0; m < M; ++m) a_row[m] = a + (m < a_rows ? m : a_rows - 1) * a_stride;
  for (int n = 0; n < kTileVectors; ++n) b_row[n] = b + (n < b_rows ? n : b_rows - 1) * b_stride;
  vec<Acc> acc[kTileVectors][M] = {};
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    vec<Acc> bv[kTileVectors];
    for (int n = 0; n < kTileVectors; ++n) bv[n] = load(b_row[n] + i);
    for (int m = 0; m < M; ++m) {
      const vec<Acc> av = load(a_row[m] + i);
      for (int n = 0; n < kTileVectors; ++n) acc[n][m] = fma(av, bv[n], acc[n][m]);
    }
  }
  if (i < k) {
    for (int m = 0; m < M; ++m) {
      const vec<Acc> av = load_partial(a_row[m] + i, k - i);
      for (int n = 0; n < kTileVectors; ++n) {
        acc[n][m] = fma(av, load_partial(b_row[n] + i, k - i), acc[n][m]);
      }
    }
  }
  for (int n = 0; n < kTileVectors; ++n) reduce_rows<M>(acc[n], sums[n]);
}

// acc[n][m] (+)= a[m] . b[n] for all m and n, over one block of the inner dimension. a (rows, k),
// b (columns, k), both with contiguous rows; acc (columns, ld) of sums, first: overwrite it.
template <typename T>
void dot_rows(const acc_t<T>* a, int64_t a_stride, int64_t rows, const T* b, int64_t b_stride,
              int64_t columns, int64_t k, acc_t<T>* acc, int64_t ld, bool first) {
  acc_t<T> sums[kTileVectors][kTileRows];
  for (int64_t m = 0; m < rows; m += kTileRows) {
    const int64_t m_left = rows - m < kTileRows ? rows - m : kTileRows;
    for (int64_t n = 0; n < columns; n += kTileVectors) {
      const int64_t n_left = columns - n < kTileVectors ? columns - n : kTileVectors;
      const acc_t<T>* a_tile = a + m * a_stride;
      const T* b_tile = b + n * b_stride;
      if (m_left == 1) {
        dot_tile<1, T>(a_tile, a_stride, m_left, b_tile, b_stride, n_left, k, sums);
      } else if (m_left <= kTileRows / 2) {
        dot_tile<kTileRows / 2, T>(a_tile, a_stride, m_left, b_tile, b_stride, n_left, k, sums);
      } else {
        dot_tile<kTileRows, T>(a_tile, a_stride, m_left, b_tile, b_stride, n_left, k, sums);
      }
      for (int64_t j = 0; j < n_left; ++j) {
        acc_t<T>* out = acc + (n + j) * ld + m;
        for (int64_t i = 0; i < m_left; ++i) out[i] = first ? sums[j][i] : out[i] + sums[j][i];
      }
    }
  }
}

// Hands sum_k a(m, k) b[k][...] to out(m, first column, vector, lanes) for a tile of M rows and V
// vectors of columns; a(m, k) = a[m * a_row + k * a_step].
template <int M, int V, typename T, typename Out>
FASTMLP_INLINE void axpy_tile(const acc_t<T>* a, int64_t a_row, int64_t a_step, int64_t a_rows,
                              const T* b, int64_t b_stride, int64_t lanes, int64_t k, int64_t m0,
                              int64_t n0, const Out& out) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  vec<Acc> total[M][V];
  for (int64_t start = 0; start < k || start == 0; start += kAxpyBlock) {
    const int64_t end = k - start < kAxpyBlock ? k : start + kAxpyBlock;
    vec<Acc> acc[M][V] = {};
    for (int64_t i = start; i < end; ++i) {
      vec<Acc> bv[V];
      for (int v = 0; v < V; ++v) {
        const T* p = b + i * b_stride + v * kStep;
        bv[v] = V == 1 && lanes < kStep ? load_partial(p, lanes) : load(p);
      }
      for (int m = 0; m < M; ++m) {
        const int64_t row = m < a_rows ? m : a_rows - 1;
        const vec<Acc> av = broadcast(a[row * a_row + i * a_step]);
        for (int v = 0; v < V; ++v) acc[m][v] = fma(av, bv[v], acc[m][v]);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) total[m][v] = start == 0 ? acc[m][v] : total[m][v] + acc[m][v];
    }
  }
  for (int m = 0; m < M && m < a_rows; ++m) {
    for (int v = 0; v < V; ++v) {
      out(m0 + m, n0 + v * kStep, total[m][v], V == 1 ? lanes : kStep);
    }
  }
}

// out(m, n, ...) for all of a b (rows, columns): b (k, columns) with contiguous rows, a(m, k) at
// any strides.
template <typename T, typename Out>
FASTMLP_INLINE void axpy_columns(const acc_t<T>* a, int64_t a_row, int64_t a_step, int64_t rows,
                                 const T* b, int64_t b_stride, int64_t columns, int64_t k,
                                 const Out& out) {
  constexpr int kStep = kLanes<acc_t<T>>;
  for (int64_t n = 0; n < columns;) {
    const bool wide = columns - n >= kTileVectors * kStep;
    const int64_t lanes = columns - n < kStep ? columns - n : kStep;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t left = rows - m < kTileRows ? rows - m : kTileRows;
      const acc_t<T>* at = a + m * a_row;
      if (wide && left == 1) {
        axpy_tile<1, kTileVectors>(at, a_row, a_step, left, b + n, b_stride, lanes, k, m, n, out);
      } else if (wide) {
        axpy_tile<kTileRows, kTileVectors>(at, a_row, a_step, left, b + n, b_stride, lanes, k, m, n,
                                           out);
      } else {
        axpy_tile<kTileRows, 1>(at, a_row, a_step, left, b + n, b_stride, lanes, k, m, n, out);
      }
    }
    n += wide ? kTileVectors * kStep : kStep;
  }
}
