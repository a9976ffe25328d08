// The first layer's products where rows are sparse: they visit the numbers that are there. Included
// by steps_kernels.h.

// acc[v] += sum_i values[i] b[places[i]][v], in order.
template <int V, typename T>
FASTMLP_INLINE void add_sparse(const SparseMatrix<T>& a, int64_t row, const T* b, int64_t b_stride,
                               vec<T> (&acc)[V]) {
  for (int64_t i = a.starts[row]; i < a.starts[row + 1]; ++i) {
    const vec<T> value = broadcast(a.values[i]);
    const T* from = b + a.places[i] * b_stride;
    for (int v = 0; v < V; ++v) acc[v] = fma(value, load(from + v * kLanes<T>), acc[v]);
  }
}

template <int V, typename T>
FASTMLP_INLINE void sparse_forward_panel(const SparseMatrix<T>& x, int64_t begin, int64_t end,
                                         const T* panel, int64_t inputs, T* y, int64_t y_stride) {
  constexpr int64_t kWidth = V * kLanes<T>;
  for (int64_t m = begin; m < end; ++m) {
    vec<T> acc[V];
    for (int v = 0; v < V; ++v) acc[v] = load(panel + inputs * kWidth + v * kLanes<T>);
    add_sparse<V>(x, m, panel, kWidth, acc);
    for (int v = 0; v < V; ++v) store(y + m * y_stride + v * kLanes<T>, acc[v]);
  }
}

// Computes: the outputs y of rows [begin, end) from a layer's weights and biases.
// Shapes: w in panels of `columns` columns, `inputs` rows and the bias each; y (rows, y_stride),
//   whose columns up to a whole vector are written.
template <typename T>
void sparse_forward(const SparseMatrix<T>& x, int64_t begin, int64_t end, const T* w,
                    int64_t inputs, int64_t columns, T* y, int64_t y_stride) {
  const int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
  for (int64_t n = 0; n < vectors; n += panel_vectors(vectors - n)) {
    const T* panel = w + n * kLanes<T> * (inputs + 1);
    T* out = y + n * kLanes<T>;
    const int64_t wide = panel_vectors(vectors - n);
    if (wide == 3) {
      sparse_forward_panel<3>(x, begin, end, panel, inputs, out, y_stride);
    } else if (wide == 2) {
      sparse_forward_panel<2>(x, begin, end, panel, inputs, out, y_stride);
    } else {
      sparse_forward_panel<1>(x, begin, end, panel, inputs, out, y_stride);
    }
  }
}

template <int V, UpdateKind kKind, typename T>
FASTMLP_INLINE void sparse_gradient_panel(const SparseMatrix<T>& columns, const T* dz,
                                          int64_t dz_stride, int64_t rows, int64_t begin,
                                          int64_t end, const GradientOut<T>& out) {
  for (int64_t i = begin; i < end; ++i) {
    vec<T> acc[V] = {};
    if (i < out.bias_row) {
      add_sparse<V>(columns, i, dz, dz_stride, acc);
    } else {
      for (int64_t m = 0; m < rows; ++m) {
        for (int v = 0; v < V; ++v) acc[v] += load(dz + m * dz_stride + v * kLanes<T>);
      }
    }
    put_gradient<V, kKind>(out, i, acc);
  }
}

template <UpdateKind kKind, typename T>
FASTMLP_INLINE void sparse_gradient_of(int64_t vectors, const SparseMatrix<T>& columns, const T* dz,
                                       int64_t dz_stride, int64_t rows, int64_t begin, int64_t end,
                                       const GradientOut<T>& out) {
  if (vectors == 3) {
    sparse_gradient_panel<3, kKind>(columns, dz, dz_stride, rows, begin, end, out);
  } else if (vectors == 2) {
    sparse_gradient_panel<2, kKind>(columns, dz, dz_stride, rows, begin, end, out);
  } else {
    sparse_gradient_panel<1, kKind>(columns, dz, dz_stride, rows, begin, end, out);
  }
}

// panel_gradient of a first layer whose inputs are sparse, here by column.
template <typename T>
double sparse_gradient(UpdateKind kind, const UpdateNumbers<T>& numbers, int64_t vectors,
                       const SparseMatrix<T>& columns, const T* dz, int64_t dz_stride, int64_t rows,
                       int64_t begin, int64_t end, int64_t bias_row, const PanelWeights<T>& to,
                       T* gradients) {
  vec<T> squares = {};
  const GradientOut<T> out{&numbers, to, bias_row, gradients, &squares};
  if (kind == UpdateKind::kSgd) {
    sparse_gradient_of<UpdateKind::kSgd>(vectors, columns, dz, dz_stride, rows, begin, end, out);
  } else if (kind == UpdateKind::kMomentum) {
    sparse_gradient_of<UpdateKind::kMomentum>(vectors, columns, dz, dz_stride, rows, begin, end,
                                              out);
  } else {
    sparse_gradient_of<UpdateKind::kAdam>(vectors, columns, dz, dz_stride, rows, begin, end, out);
  }
  return static_cast<double>(reduce_add<T>(squares));
}
