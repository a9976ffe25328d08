// The matrix products of linear and linear_backward. Included by foreach_isa.h.
#include "cpu/mask_bits.h"
#include "cpu/simd/tiles.h"

// y[n] .. = act(v + bias) for one vector, or its first lanes, of a row; bias and mask, of the whole
// row, may be null.
template <typename T>
FASTMLP_INLINE void store_linear(T* y, int64_t n, vec<acc_t<T>> v, const T* bias, bool use_relu,
                                 uint8_t* mask, int64_t lanes) {
  if (bias) v += load_lanes(bias + n, lanes);
  if (use_relu) v = relu(v);
  store_lanes(y + n, v, lanes);
  // As stored: rounding may have made a 0 of a small number.
  if (mask) store_bits(mask, n, passing_bits(load_lanes(y + n, lanes)), lanes);
}

// y[m][n] = act(sums[n][m] + bias[n]); sums (columns, ld). The mask's rows are those of the whole
// y; y begins at one of its bytes.
template <typename T>
void store_columns(const acc_t<T>* sums, int64_t ld, int64_t rows, int64_t columns, const T* bias,
                   bool use_relu, T* y, int64_t y_stride, uint8_t* mask = nullptr) {
  using Acc = acc_t<T>;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; n += kLanes<Acc>) {
      const int64_t left = columns - n < kLanes<Acc> ? columns - n : kLanes<Acc>;
      vec<Acc> v = {};
      for (int64_t j = 0; j < left; ++j) v[j] = sums[(n + j) * ld + m];
      store_linear(y + m * y_stride, n, v, bias, use_relu,
                   mask ? mask + m * mask_bytes(y_stride) : nullptr, left);
    }
  }
}

// y[m][n] = act(sum of a[m] . b[n] + bias[n]) for columns [0, columns) of the output, whose whole
// width is y_stride; scratch holds columns * rows sums.
template <typename T>
void linear_columns(const acc_t<T>* a, int64_t a_stride, int64_t rows, const T* b, int64_t b_stride,
                    int64_t columns, int64_t k, const T* bias, bool use_relu, T* y,
                    int64_t y_stride, acc_t<T>* scratch, uint8_t* mask = nullptr) {
  using Acc = acc_t<T>;
  for (int64_t i = 0; i < k; i += kDotBlock<Acc>) {
    const int64_t length = k - i < kDotBlock<Acc> ? k - i : kDotBlock<Acc>;
    dot_rows(a + i, a_stride, rows, b + i, b_stride, columns, length, scratch, rows, i == 0);
  }
  store_columns(scratch, rows, rows, columns, bias, use_relu, y, y_stride, mask);
}

// Takes a tile's sums as linear's output.
template <typename T>
struct LinearOut {
  T* y;
  int64_t y_stride;
  const T* bias;  // of the first column, or null
  bool use_relu;
  uint8_t* mask;  // as store_columns has it, or null

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<acc_t<T>> v, int64_t lanes) const {
    store_linear(y + m * y_stride, n, v, bias, use_relu,
                 mask ? mask + m * mask_bytes(y_stride) : nullptr, lanes);
  }
};

// c (rows, columns) = act(a b + bias): b (k, columns) with contiguous rows, a(m, k) at any strides.
template <typename T>
void axpy_linear(const acc_t<T>* a, int64_t a_row, int64_t a_step, int64_t rows, const T* b,
                 int64_t b_stride, int64_t columns, int64_t k, const T* bias, bool use_relu, T* c,
                 int64_t c_stride, uint8_t* mask = nullptr) {
  axpy_columns(a, a_row, a_step, rows, b, b_stride, columns, k,
               LinearOut<T>{c, c_stride, bias, use_relu, mask});
}

// g (rows, columns) = dy where the ReLU let through, as sums are kept: where y or, if that is null,
// the mask, of the same stride, says so; both are null where there was none. db (columns) = the
// sums of its columns, taken in double, unless null.
template <typename T>
void masked_gradient(const T* dy, int64_t dy_stride, const T* y, const uint8_t* mask,
                     int64_t y_stride, int64_t rows, int64_t columns, acc_t<T>* g, T* db) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  typedef double Doubles __attribute__((vector_size(kStep * sizeof(double))));
  for (int64_t n = 0; n < columns; n += kStep) {
    const int64_t lanes = columns - n < kStep ? columns - n : kStep;
    Doubles total = {};
    for (int64_t m = 0; m < rows; ++m) {
      vec<Acc> v = load_lanes(dy + m * dy_stride + n, lanes);
      if (y) v = relu_backward(v, load_lanes(y + m * y_stride + n, lanes));
      if (mask) v = where_bits(load_bits(mask + m * y_stride, n, lanes), v);
      store_lanes(g + m * columns + n, v, lanes);
      if (db) total += __builtin_convertvector(v, Doubles);
    }
    if (db) store_lanes(db + n, __builtin_convertvector(total, vec<Acc>), lanes);
  }
}
