// The matrix products of linear and linear_backward. Included by foreach_isa.h.
#include "cpu/simd/tiles.h"

// y[m][n] = act(sums[n][m] + bias[n]); sums (columns, ld), bias may be null.
template <typename T>
void store_columns(const acc_t<T>* sums, int64_t ld, int64_t rows, int64_t columns, const T* bias,
                   Activation activation, T* y, int64_t y_stride) {
  using Acc = acc_t<T>;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; n += kLanes<Acc>) {
      const int64_t lanes = columns - n < kLanes<Acc> ? columns - n : kLanes<Acc>;
      vec<Acc> v = {};
      for (int64_t j = 0; j < lanes; ++j) v[j] = sums[(n + j) * ld + m];
      if (bias) v += load_lanes(bias + n, lanes);
      store_lanes(y + m * y_stride + n, ActivationTable::forward(activation, v), lanes);
    }
  }
}

// y[m][n] = act(sum of a[m] . b[n] + bias[n]) for columns [0, columns) of the output, whose whole
// width is y_stride; scratch holds columns * rows sums.
template <typename T>
void linear_columns(const acc_t<T>* a, int64_t a_stride, int64_t rows, const T* b, int64_t b_stride,
                    int64_t columns, int64_t k, const T* bias, Activation activation, T* y,
                    int64_t y_stride, acc_t<T>* scratch) {
  using Acc = acc_t<T>;
  for (int64_t i = 0; i < k; i += kDotBlock<Acc>) {
    const int64_t length = k - i < kDotBlock<Acc> ? k - i : kDotBlock<Acc>;
    dot_rows(a + i, a_stride, rows, b + i, b_stride, columns, length, scratch, rows, i == 0);
  }
  store_columns(scratch, rows, rows, columns, bias, activation, y, y_stride);
}

// Takes a tile's sums as c = sums + bias, with the ReLU where that is the activation; the others
// would take registers that the sums need.
template <typename T>
struct LinearOut {
  T* c;
  int64_t c_stride;
  const T* bias;  // of the first column, or null
  Activation activation;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<acc_t<T>> v, int64_t lanes) const {
    if (bias) v += load_lanes(bias + n, lanes);
    if (activation == Activation::kRelu) v = ActivationRow<Activation::kRelu>::forward(v);
    store_lanes(c + m * c_stride + n, v, lanes);
  }
};

// c (rows, columns) = act(c), where LinearOut has not applied the activation.
template <typename T>
void activate_rows(int64_t rows, int64_t columns, Activation activation, T* c, int64_t c_stride) {
  if (activation == Activation::kNone || activation == Activation::kRelu) return;
  constexpr int kStep = kLanes<acc_t<T>>;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; n += kStep) {
      const int64_t lanes = columns - n < kStep ? columns - n : kStep;
      T* at = c + m * c_stride + n;
      store_lanes(at, ActivationTable::forward(activation, load_lanes(at, lanes)), lanes);
    }
  }
}

// c (rows, columns) = act(a b + bias): b (k, columns) with contiguous rows, a(m, k) at any strides.
template <typename T>
void axpy_linear(const acc_t<T>* a, int64_t a_row, int64_t a_step, int64_t rows, const T* b,
                 int64_t b_stride, int64_t columns, int64_t k, const T* bias, Activation activation,
                 T* c, int64_t c_stride) {
  axpy_columns(a, a_row, a_step, rows, b, b_stride, columns, k,
               LinearOut<T>{c, c_stride, bias, activation});
  activate_rows(rows, columns, activation, c, c_stride);
}

template <Activation kActivation, typename T>
FASTMLP_INLINE void activation_gradient_each(const T* dy, int64_t dy_stride, const T* saved,
                                             int64_t saved_stride, int64_t rows, int64_t columns,
                                             acc_t<T>* g, int64_t g_stride, T* db) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>, kVectors = 4;
  constexpr int64_t kSummed = 16;  // rows before a sum goes on in double
  typedef double Doubles __attribute__((vector_size(kStep * sizeof(double))));
  for (int64_t first = 0; first < columns; first += kVectors * kStep) {
    Doubles total[kVectors] = {};
    for (int64_t begin = 0; begin < rows; begin += kSummed) {
      const int64_t end = rows - begin < kSummed ? rows : begin + kSummed;
      vec<Acc> sum[kVectors] = {};
      for (int64_t m = begin; m < end; ++m) {
        for (int j = 0; j < kVectors; ++j) {
          const int64_t n = first + j * kStep, left = columns - n;
          if (left <= 0) break;
          const int64_t lanes = left < kStep ? left : kStep;
          vec<Acc> v = load_lanes(dy + m * dy_stride + n, lanes);
          if constexpr (kActivation != Activation::kNone) {
            v = ActivationRow<kActivation>::backward(
                v, load_lanes(saved + m * saved_stride + n, lanes));
          }
          if (g) store_lanes(g + m * g_stride + n, v, lanes);
          sum[j] += v;
        }
      }
      for (int j = 0; j < kVectors; ++j) total[j] += __builtin_convertvector(sum[j], Doubles);
    }
    for (int j = 0; db && j < kVectors; ++j) {
      const int64_t n = first + j * kStep, left = columns - n;
      if (left <= 0) break;
      store_lanes(db + n, __builtin_convertvector(total[j], vec<Acc>), left < kStep ? left : kStep);
    }
  }
}

// g (rows, columns) = dy through the activation's derivative, as sums are kept, unless null; saved
// is what it kept of the forward pass, or null where there was none. db (columns) = the sums of g's
// columns, unless null.
template <int kFirst = 0, typename T>
void activation_gradient(const T* dy, int64_t dy_stride, const T* saved, int64_t saved_stride,
                         Activation activation, int64_t rows, int64_t columns, acc_t<T>* g,
                         int64_t g_stride, T* db) {
  if constexpr (Activation{kFirst + 1} != Activation::kCount) {
    if (activation != Activation{kFirst}) {
      return activation_gradient<kFirst + 1>(dy, dy_stride, saved, saved_stride, activation, rows,
                                             columns, g, g_stride, db);
    }
  }
  activation_gradient_each<Activation{kFirst}>(dy, dy_stride, saved, saved_stride, rows, columns, g,
                                               g_stride, db);
}
