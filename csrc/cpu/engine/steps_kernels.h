// The kernels of a training step on the CPU: products of a batch with weights in panels, the
// activations between them, and the update of the weights, whose gradients are made in registers.
// Included by foreach_isa.h, once for each instruction set, after cpu/engine/steps.h.
#include "cpu/simd/panel_tiles.h"
//
#include "cpu/engine/loss_kernels.h"
#include "cpu/engine/rows_kernels.h"

constexpr int64_t kBatchBlock = 512;

// Computes: y = a b, of a layer's inputs (with a one for the bias) and weights, or of its outputs'
//   gradients and transposed weights.
// Shapes: a (rows, stride), k used; b in panels of `columns` columns, k rows each; y (rows,
//   y_stride), whose columns up to a whole vector are written.
template <typename T>
void panel_forward(const T* a, int64_t stride, int64_t rows, const T* b, int64_t k, int64_t columns,
                   T* y, int64_t y_stride) {
  const int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
  for (int64_t n = 0; n < vectors;) {
    const int64_t wide = panel_vectors(vectors - n), width = wide * kLanes<T>;
    T* out = y + n * kLanes<T>;
    for (int64_t i = 0; i < k; i += kInnerBlock) {
      const int64_t length = k - i < kInnerBlock ? k - i : kInnerBlock;
      const T* panel = b + n * kLanes<T> * k + i * width;
      const PanelSums<T> sums{out, y_stride}, before{i == 0 ? nullptr : out, y_stride};
      if (wide == 3) {
        panel_rows<3, false>(a + i, stride, rows, panel, width, length, before, sums);
      } else if (wide == 2) {
        panel_rows<2, false>(a + i, stride, rows, panel, width, length, before, sums);
      } else {
        panel_rows<1, false>(a + i, stride, rows, panel, width, length, before, sums);
      }
    }
    n += wide;
  }
}

#if FASTMLP_VECTOR_BYTES == 64
FASTMLP_INLINE vec<float> sqrt_of(vec<float> x) { return (vec<float>)_mm512_sqrt_ps((__m512)x); }
FASTMLP_INLINE vec<double> sqrt_of(vec<double> x) {
  return (vec<double>)_mm512_sqrt_pd((__m512d)x);
}
#elif FASTMLP_VECTOR_BYTES == 32
FASTMLP_INLINE vec<float> sqrt_of(vec<float> x) { return (vec<float>)_mm256_sqrt_ps((__m256)x); }
FASTMLP_INLINE vec<double> sqrt_of(vec<double> x) {
  return (vec<double>)_mm256_sqrt_pd((__m256d)x);
}
#else
FASTMLP_INLINE vec<float> sqrt_of(vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
FASTMLP_INLINE vec<double> sqrt_of(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}
#endif

// One vector of weights, with gradient g, and what their optimizer keeps.
template <UpdateKind kKind, typename T>
FASTMLP_INLINE void update_vector(const UpdateNumbers<T>& u, T decay, T kept, vec<T> g,
                                  const PanelWeights<T>& to, int64_t at) {
  vec<T> w = load(to.w + at);
  g += decay * w;
  w *= kept;
  if constexpr (kKind == UpdateKind::kSgd) {
    w += u.w_from_g * g;
  } else if constexpr (kKind == UpdateKind::kMomentum) {
    const vec<T> v = u.momentum * load(to.first + at) + u.v_from_g * g;
    store(to.first + at, v);
    w += u.w_from_v * v + u.w_from_g * g;
  } else {
    vec<T> m = load(to.first + at), v = load(to.second + at);
    m += u.one_minus_beta1 * (g - m);
    v = u.beta2 * v + u.one_minus_beta2 * g * g;
    store(to.first + at, m);
    store(to.second + at, v);
    w -= u.step * m / (u.root * sqrt_of(v) + u.eps);
  }
  store(to.w + at, w);
}

// What becomes of a tile of gradients: an update at once, or memory, and the sum of the squares,
// where a norm is to be known first.
template <typename T>
struct GradientOut {
  const UpdateNumbers<T>* numbers;
  PanelWeights<T> to;
  int64_t bias_row;  // the row that is the bias's
  T* gradients;      // of the weights' shape
  vec<T>* squares;
};

template <int V, UpdateKind kKind, typename T>
FASTMLP_INLINE void put_gradient(const GradientOut<T>& out, int64_t row, const vec<T> (&g)[V]) {
  const bool is_bias = row == out.bias_row;
  for (int v = 0; v < V; ++v) {
    const int64_t at = (row * V + v) * kLanes<T>;
    if (out.gradients) {
      store(out.gradients + at, g[v]);
      *out.squares += g[v] * g[v];
    } else {
      const UpdateNumbers<T>& u = *out.numbers;
      update_vector<kKind>(u, is_bias ? u.bias_decay : u.weight_decay,
                           is_bias ? u.bias_kept : u.weight_kept, g[v], out.to, at);
    }
  }
}

template <int M, int V, UpdateKind kKind, typename T>
FASTMLP_INLINE void gradient_tile(const T* x, int64_t stride, const T* dz, int64_t dz_stride,
                                  int64_t rows, int64_t first, const GradientOut<T>& out) {
  vec<T> acc[M][V];
  const int64_t start = rows < kBatchBlock ? rows : kBatchBlock;
  multiply<M, V, true>(x + first, stride, dz, dz_stride, start, acc);
  for (int64_t i = start; i < rows; i += kBatchBlock) {
    const int64_t length = rows - i < kBatchBlock ? rows - i : kBatchBlock;
    vec<T> more[M][V];
    multiply<M, V, true>(x + first + i * stride, stride, dz + i * dz_stride, dz_stride, length,
                         more);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) acc[m][v] += more[m][v];
    }
  }
  for (int m = 0; m < M; ++m) put_gradient<V, kKind>(out, first + m, acc[m]);
}

template <int V, UpdateKind kKind, typename T>
FASTMLP_INLINE void gradient_panel(const T* x, int64_t stride, const T* dz, int64_t dz_stride,
                                   int64_t rows, int64_t begin, int64_t end,
                                   const GradientOut<T>& out) {
  constexpr int kRows = kPanelTileRows<V>;
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) {
    gradient_tile<kRows, V, kKind>(x, stride, dz, dz_stride, rows, i, out);
  }
  for (; i + 2 <= end; i += 2) {
    gradient_tile<2, V, kKind>(x, stride, dz, dz_stride, rows, i, out);
  }
  if (i < end) gradient_tile<1, V, kKind>(x, stride, dz, dz_stride, rows, i, out);
}

template <UpdateKind kKind, typename T>
FASTMLP_INLINE void gradient_panel_of(int64_t vectors, const T* x, int64_t stride, const T* dz,
                                      int64_t dz_stride, int64_t rows, int64_t begin, int64_t end,
                                      const GradientOut<T>& out) {
  if (vectors == 3) {
    gradient_panel<3, kKind>(x, stride, dz, dz_stride, rows, begin, end, out);
  } else if (vectors == 2) {
    gradient_panel<2, kKind>(x, stride, dz, dz_stride, rows, begin, end, out);
  } else {
    gradient_panel<1, kKind>(x, stride, dz, dz_stride, rows, begin, end, out);
  }
}

// Computes: the gradients dz^T x of a panel's weights from the inputs [begin, end) and, as input
//   `bias_row`, of its bias, and their update; where `gradients` is not null, it is filled in and
//   the sum of the squares returned instead.
// Shapes: x (rows, stride) with a one as the last input; dz (rows, dz_stride), at the panel's first
//   output; `to` and `gradients` at the panel's beginning.
template <typename T>
double panel_gradient(UpdateKind kind, const UpdateNumbers<T>& numbers, int64_t vectors, const T* x,
                      int64_t stride, const T* dz, int64_t dz_stride, int64_t rows, int64_t begin,
                      int64_t end, int64_t bias_row, const PanelWeights<T>& to, T* gradients) {
  vec<T> squares = {};
  const GradientOut<T> out{&numbers, to, bias_row, gradients, &squares};
  if (kind == UpdateKind::kSgd) {
    gradient_panel_of<UpdateKind::kSgd>(vectors, x, stride, dz, dz_stride, rows, begin, end, out);
  } else if (kind == UpdateKind::kMomentum) {
    gradient_panel_of<UpdateKind::kMomentum>(vectors, x, stride, dz, dz_stride, rows, begin, end,
                                             out);
  } else {
    gradient_panel_of<UpdateKind::kAdam>(vectors, x, stride, dz, dz_stride, rows, begin, end, out);
  }
  return static_cast<double>(reduce_add<T>(squares));
}

#include "cpu/engine/sparse_kernels.h"

// The sum of the squares of some rows of a panel, `count` numbers: whole vectors, those past the
// last output being zeros.
template <typename T>
double panel_squares(const T* w, int64_t count) {
  vec<T> squares = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) squares += load(w + i) * load(w + i);
  return static_cast<double>(reduce_add<T>(squares));
}

template <UpdateKind kKind, typename T>
FASTMLP_INLINE void update_rows(const UpdateNumbers<T>& u, int64_t width, T factor,
                                const T* gradients, int64_t begin, int64_t end, int64_t bias_row,
                                const PanelWeights<T>& to) {
  for (int64_t i = begin; i < end; ++i) {
    const T decay = i == bias_row ? u.bias_decay : u.weight_decay;
    const T kept = i == bias_row ? u.bias_kept : u.weight_kept;
    for (int64_t at = i * width; at < (i + 1) * width; at += kLanes<T>) {
      update_vector<kKind>(u, decay, kept, factor * load(gradients + at), to, at);
    }
  }
}

// The update of a panel from gradients in memory, times a factor.
template <typename T>
void panel_update(UpdateKind kind, const UpdateNumbers<T>& u, int64_t vectors, T factor,
                  const T* gradients, int64_t begin, int64_t end, int64_t bias_row,
                  const PanelWeights<T>& to) {
  const int64_t width = vectors * kLanes<T>;
  if (kind == UpdateKind::kSgd) {
    update_rows<UpdateKind::kSgd>(u, width, factor, gradients, begin, end, bias_row, to);
  } else if (kind == UpdateKind::kMomentum) {
    update_rows<UpdateKind::kMomentum>(u, width, factor, gradients, begin, end, bias_row, to);
  } else {
    update_rows<UpdateKind::kAdam>(u, width, factor, gradients, begin, end, bias_row, to);
  }
}
