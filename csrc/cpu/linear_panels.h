// The products of linear and linear_backward by panels of columns, which are copied first where
// that pays. Included by foreach_isa.h.
#include "cpu/linear_kernels.h"
#include "cpu/simd/panel_tiles.h"
#include "cpu/simd/transpose.h"

// Rows from which on it pays to copy a panel first, as its own rows may lie where they push each
// other out of a level-1 cache; and sums of so few products that writing c takes longer.
constexpr int64_t kPackedRows = 12, kShortSum = 8;

// packed (k, width) = b(i, n) = b[i * step + n * column] for n < columns, zeros beyond; step or
// column is 1.
template <typename T>
void pack_panel(const T* b, int64_t step, int64_t column, int64_t k, int64_t columns, int64_t width,
                acc_t<T>* packed) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  for (int64_t n = 0; n < width; n += kStep) {
    const int64_t left = columns - n < 0 ? 0 : columns - n, lanes = left < kStep ? left : kStep;
    if (column == 1) {
      for (int64_t i = 0; i < k; ++i) {
        store(packed + i * width + n, load_lanes(b + i * step + n, lanes));
      }
      continue;
    }
    for (int64_t i = 0; i < k; i += kStep) {
      const int64_t count = k - i < kStep ? k - i : kStep;
      vec<Acc> tile[kStep] = {};
      for (int64_t j = 0; j < lanes; ++j) tile[j] = load_lanes(b + (n + j) * column + i, count);
      transpose<Acc>(tile);
      for (int64_t j = 0; j < count; ++j) store(packed + (i + j) * width + n, tile[j]);
    }
  }
}

// Whether numbers are stored in the type that they are summed in, so that b can be read in place.
template <typename T>
constexpr bool kReadsInPlace = false;
template <>
constexpr bool kReadsInPlace<float> = true;
template <>
constexpr bool kReadsInPlace<double> = true;

template <typename T>
struct PanelOut {
  LinearOut<T> to;
  int64_t columns;

  FASTMLP_INLINE void operator()(int64_t m, int v, vec<acc_t<T>> sum) const {
    const int64_t n = v * kLanes<acc_t<T>>, left = columns - n;
    if (left > 0) to(m, n, sum, left < kLanes<acc_t<T>> ? left : kLanes<acc_t<T>>);
  }
};

template <int V, bool kAcross, typename T>
FASTMLP_INLINE void multiply_panel(const acc_t<T>* a, int64_t stride, int64_t rows, const T* b,
                                   int64_t step, int64_t column, int64_t k, acc_t<T>* packed,
                                   const PanelSums<acc_t<T>>& sums, const PanelOut<T>& out) {
  constexpr int64_t kWidth = V * kLanes<acc_t<T>>;
  const bool packs =
      !kReadsInPlace<T> || rows >= kPackedRows || column != 1 || out.columns < kWidth;
  for (int64_t i = 0; i < k || i == 0; i += kInnerBlock) {
    const int64_t length = k - i < kInnerBlock ? k - i : kInnerBlock;
    const acc_t<T>* panel = packed;
    if (packs) {
      pack_panel(b + i * step, step, column, length, out.columns, kWidth, packed);
    } else if constexpr (kReadsInPlace<T>) {
      panel = b + i * step;
    }
    const acc_t<T>* from = a + i * (kAcross ? stride : 1);
    const PanelSums<acc_t<T>> before{i == 0 ? nullptr : sums.to, sums.stride};
    const int64_t panel_step = packs ? kWidth : step;
    if (i + length < k) {
      panel_rows<V, kAcross>(from, stride, rows, panel, panel_step, length, before, sums);
    } else {
      panel_rows<V, kAcross>(from, stride, rows, panel, panel_step, length, before, out);
    }
  }
}

template <int V, typename T>
FASTMLP_INLINE void multiply_panel_of(bool across, const acc_t<T>* a, int64_t stride, int64_t rows,
                                      const T* b, int64_t step, int64_t column, int64_t k,
                                      acc_t<T>* packed, acc_t<T>* sums, const PanelOut<T>& out) {
  const PanelSums<acc_t<T>> kept{sums, V * kLanes<acc_t<T>>};
  if (across) {
    multiply_panel<V, true>(a, stride, rows, b, step, column, k, packed, kept, out);
  } else {
    multiply_panel<V, false>(a, stride, rows, b, step, column, k, packed, kept, out);
  }
}

// Some rows of b, and what M rows of c take of each.
template <int M, typename T>
struct Streamed {
  static constexpr int kRows = 4;
  const T* row[kRows];
  vec<T> factor[M][kRows];
  int count;
  bool first, last;
};

template <int M, typename T>
FASTMLP_INLINE void stream_vector(const Streamed<M, T>& some, int64_t n, int64_t lanes,
                                  const LinearOut<T>& out) {
  vec<T> b[some.kRows];
  for (int j = 0; j < some.kRows; ++j) b[j] = load_lanes(some.row[j] + n, lanes);
  for (int m = 0; m < M; ++m) {
    T* c = out.c + m * out.c_stride + n;
    vec<T> sum = some.first ? vec<T>{} : load_lanes(c, lanes);
    for (int j = 0; j < some.kRows; ++j) {
      if (j < some.count) sum = fma(some.factor[m][j], b[j], sum);
    }
    if (some.last) {
      out(m, n, sum, lanes);
    } else {
      store_lanes(c, sum, lanes);
    }
  }
}

// c (rows, columns) = a b + bias for M rows, one row of b after the other: b(i, n) = b[i * step +
// n], of the type that is summed in.
template <int M, typename T>
FASTMLP_INLINE void stream_rows(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t step,
                                int64_t columns, int64_t k, const LinearOut<T>& out) {
  constexpr int kStep = kLanes<T>, kRows = Streamed<M, T>::kRows;
  for (int64_t i = 0; i < k; i += kRows) {
    Streamed<M, T> some;
    some.count = k - i < kRows ? (int)(k - i) : kRows;
    some.first = i == 0;
    some.last = i + kRows >= k;
    for (int j = 0; j < kRows; ++j) {
      const int64_t at = i + (j < some.count ? j : 0);
      some.row[j] = b + at * step;
      for (int m = 0; m < M; ++m) some.factor[m][j] = broadcast(a[m * a_row + at * a_step]);
    }
    int64_t n = 0;
    if (some.count == kRows && !some.first && !some.last) {
      Streamed<M, T> inner = some;
      inner.count = kRows;
      inner.first = inner.last = false;
      for (; n + kStep <= columns; n += kStep) stream_vector(inner, n, kStep, out);
    }
    for (; n + kStep <= columns; n += kStep) stream_vector(some, n, kStep, out);
    if (n < columns) stream_vector(some, n, columns - n, out);
  }
}

// The same for any rows and a sum of few products, four rows of c at a time.
template <bool kAcross, typename T>
FASTMLP_INLINE void short_sums(const T* a, int64_t stride, int64_t rows, const T* b, int64_t step,
                               int64_t columns, int64_t k, T* packed, const LinearOut<T>& to) {
  constexpr int64_t kWidth = kTileVectors * kLanes<T>;
  const int64_t whole = columns / kWidth * kWidth;
  if (whole < columns) {
    pack_panel(b + whole, step, 1, k, columns - whole, kWidth, packed);
  }
  const PanelSums<T> none{nullptr, 0};
  const bool is_plain = !to.bias && to.activation == Activation::kNone;
  for (int64_t m = 0; m < rows; m += 4) {
    const T* from = a + m * (kAcross ? 1 : stride);
    int64_t n = 0;
    if (is_plain && rows - m >= 4) {
      for (; n < whole; n += kWidth) {
        const PanelSums<T> out{to.c + m * to.c_stride + n, to.c_stride};
        panel_tile<4, kTileVectors, kAcross>(from, stride, b + n, step, k, none, 0, out);
      }
    }
    for (; n < columns; n += kWidth) {
      const PanelOut<T> out{
          {to.c + m * to.c_stride + n, to.c_stride, to.bias ? to.bias + n : nullptr, to.activation},
          columns - n};
      const int64_t count = rows - m < 4 ? rows - m : 4;
      const bool is_whole = n < whole;
      panel_rows<kTileVectors, kAcross>(from, stride, count, is_whole ? b + n : packed,
                                        is_whole ? step : kWidth, k, none, out);
    }
  }
}

template <typename T>
FASTMLP_INLINE void packed_panels(const acc_t<T>* a, int64_t stride, bool across, int64_t rows,
                                  const T* b, int64_t step, int64_t column, int64_t columns,
                                  int64_t k, acc_t<T>* packed, acc_t<T>* sums,
                                  const LinearOut<T>& to) {
  constexpr int kStep = kLanes<acc_t<T>>;
  for (int64_t n = 0, vectors; n < columns; n += vectors * kStep) {
    vectors = panel_vectors((columns - n + kStep - 1) / kStep);
    const PanelOut<T> out{{to.c + n, to.c_stride, to.bias ? to.bias + n : nullptr, to.activation},
                          columns - n};
    const T* at = b + n * column;
    if (vectors == 3) {
      multiply_panel_of<3>(across, a, stride, rows, at, step, column, k, packed, sums, out);
    } else if (vectors == 2) {
      multiply_panel_of<2>(across, a, stride, rows, at, step, column, k, packed, sums, out);
    } else {
      multiply_panel_of<1>(across, a, stride, rows, at, step, column, k, packed, sums, out);
    }
  }
}

// Computes: c = act(a b + bias).
// Shapes: a(m, i) = a[m * stride + i], or where `across` a[m + i * stride], for m < rows, i < k;
//   b(i, n) = b[i * step + n * column], step or column being 1, for n < columns; bias (columns) or
//   null; c (rows, c_stride). Scratch: packed holds a panel's kInnerBlock rows, sums `rows` of it.
template <typename T>
void linear_panels(const acc_t<T>* a, int64_t stride, bool across, int64_t rows, const T* b,
                   int64_t step, int64_t column, int64_t columns, int64_t k, const T* bias,
                   Activation activation, T* c, int64_t c_stride, acc_t<T>* packed,
                   acc_t<T>* sums) {
  const LinearOut<T> out{c, c_stride, bias, activation};
  bool is_short = false;
  if constexpr (kReadsInPlace<T>) {
    is_short = column == 1 && k <= kShortSum;
    if (is_short && across) short_sums<true>(a, stride, rows, b, step, columns, k, packed, out);
    if (is_short && !across) short_sums<false>(a, stride, rows, b, step, columns, k, packed, out);
  }
  if (!is_short) {
    packed_panels(a, stride, across, rows, b, step, column, columns, k, packed, sums, out);
  }
  activate_rows(rows, columns, activation, c, c_stride);
}

// The same for one or two rows and a long sum, where b(i, n) = b[i * step + n] is read in place.
template <typename T>
void linear_stream(const T* a, int64_t stride, bool across, int64_t rows, const T* b, int64_t step,
                   int64_t columns, int64_t k, const T* bias, Activation activation, T* c,
                   int64_t c_stride) {
  const LinearOut<T> out{c, c_stride, bias, activation};
  const int64_t a_row = across ? 1 : stride, a_step = across ? stride : 1;
  if (rows == 1) {
    stream_rows<1>(a, a_row, a_step, b, step, columns, k, out);
  } else {
    stream_rows<2>(a, a_row, a_step, b, step, columns, k, out);
  }
  activate_rows(rows, columns, activation, c, c_stride);
}
