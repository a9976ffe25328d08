// Blocked look-ahead SGD (docs/blocked-sgd.md): a block's inputs, their Gram matrix, and the update
// of the first layer. Included by foreach_isa.h, after common/blocked_sgd.h.
#include "cpu/linear_kernels.h"
#include "cpu/simd/transpose.h"
#include "cpu/softmax_rows.h"
//
#include "cpu/engine/chain_kernels.h"

// x[i] = u8 * scale + shift, in float and rounded twice as in PyTorch.
template <typename T>
FASTMLP_INLINE T normalized(uint8_t pixel, float scale, float shift) {
  return static_cast<float>(pixel) * scale + shift;
}

// normalize_rows (below), for the features from `first` on, one by one.
template <typename T>
void normalize_scalars(const uint8_t* pixels, int64_t stride, int64_t rows, const float* scale,
                       const float* shift, int64_t first, int64_t features, T* x, T* panel,
                       int64_t panel_stride) {
  for (int64_t m = 0; m < kPanelUnit; ++m) {
    for (int64_t i = first; i < features; ++i) {
      const T value = m < rows ? normalized<T>(pixels[m * stride + i], scale[i], shift[i]) : T(0);
      if (x && m < rows) x[m * features + i] = value;
      panel[i * panel_stride + m] = value;
    }
  }
}

// The same for whole vectors of features; moves `first` to what is left of them, all for doubles.
FASTMLP_INLINE void normalize_lanes(const uint8_t*, int64_t, int64_t, const float*, const float*,
                                    int64_t&, int64_t, double*, double*, int64_t) {}

FASTMLP_INLINE void normalize_lanes(const uint8_t* pixels, int64_t stride, int64_t rows,
                                    const float* scale, const float* shift, int64_t& first,
                                    int64_t features, float* x, float* panel,
                                    int64_t panel_stride) {
  constexpr int kStep = kLanes<float>;
  for (; first + kStep <= features; first += kStep) {
    const vec<float> scales = load(scale + first), shifts = load(shift + first);
    for (int64_t group = 0; group < kPanelUnit; group += kStep) {
      vec<float> tile[kStep];
      for (int64_t m = 0; m < kStep; ++m) {
        tile[m] = vec<float>{};
        if (group + m >= rows) continue;
        tile[m] = load(pixels + (group + m) * stride + first) * scales + shifts;
        if (x) store(x + (group + m) * features + first, tile[m]);
      }
      transpose<float>(tile);
      for (int64_t i = 0; i < kStep; ++i) {
        store(panel + (first + i) * panel_stride + group, tile[i]);
      }
    }
  }
}

// The inputs of at most kPanelUnit images with these pixels (rows, stride): x (rows, features) or
// null, and as columns of a panel (features, panel_stride).
template <typename T>
void normalize_rows(const uint8_t* pixels, int64_t stride, int64_t rows, const float* scale,
                    const float* shift, int64_t features, T* x, T* panel, int64_t panel_stride) {
  int64_t first = 0;
  normalize_lanes(pixels, stride, rows, scale, shift, first, features, x, panel, panel_stride);
  normalize_scalars(pixels, stride, rows, scale, shift, first, features, x, panel, panel_stride);
}

// y (rows, y_stride) = act(x w^T + b), `outputs` columns of it: x in panels, w (outputs, features);
// the scratch holds outputs * kPanelRows sums.
template <typename T>
void panel_product(const T* panels, int64_t rows, int64_t features, const T* w, int64_t outputs,
                   const T* b, Activation activation, T* y, int64_t y_stride, T* scratch) {
  for (int64_t first = 0; first < rows; first += kPanelRows) {
    const int64_t width = panel_width(rows, first);
    axpy_linear<T>(w, features, 1, outputs, panels + first * features, width, width, features,
                   nullptr, Activation::kNone, scratch, width);
    store_columns<T>(scratch, width, rows - first < width ? rows - first : width, outputs, b,
                     activation, y + first * y_stride, y_stride);
  }
}

// gram[m][n] = x[m] . x[n] + 1 for `count` rows m from `first` on and n < columns; the scratch
// holds count * columns sums.
template <typename T>
void gram_tile(const T* x, int64_t features, int64_t first, int64_t count, int64_t columns, T* gram,
               int64_t stride, T* scratch) {
  for (int64_t i = 0; i < features; i += kDotBlock<T>) {
    const int64_t length = features - i < kDotBlock<T> ? features - i : kDotBlock<T>;
    dot_rows(x + first * features + i, features, count, x + i, features, columns, length, scratch,
             count, i == 0);
  }
  for (int64_t m = 0; m < count; ++m) {
    T* row = gram + (first + m) * stride;
    for (int64_t n = 0; n < columns; ++n) row[n] = features ? scratch[n * count + m] + 1 : T(1);
  }
}

// Computes: what a block's gradients g (rows, hidden) do to w and v (momentum) of the first layer
//   by the block's end: to_w[m] = from_g(age of m) g[m], to_v alike, unless chain_inputs has it
//   there already; and all of it for the bias, b and bias_v.
// Shapes: to_w, to_v (distinct, hidden); to_v and bias_v are null without momentum.
template <typename T>
void collect_gradients(const BlockShape& block, const double* recurrence, const T* g,
                       int64_t hidden, T* to_w, T* to_v, T* bias, T* bias_v) {
  const double* end = recurrence + block.steps() * kResponses;
  for (int64_t n = 0; n < hidden; ++n) {
    const T old = bias[n];
    bias[n] = old + T(end[kWFromW] - 1) * old + (bias_v ? T(end[kWFromV]) * bias_v[n] : T(0));
    if (bias_v) bias_v[n] = T(end[kVFromW]) * old + T(end[kVFromV]) * bias_v[n];
  }
  for (int64_t m = 0; m < block.distinct; ++m) {
    T* w = to_w + m * hidden;
    T* v = to_v ? to_v + m * hidden : nullptr;
    if (!block.slot) {
      const double* response = recurrence + (block.steps() - m / block.batch) * kResponses;
      const T from_g = response[kWFromG], v_from_g = response[kVFromG];
      const T* row = g + m * hidden;
      for (int64_t n = 0; n < hidden; ++n) w[n] = from_g * row[n];
      for (int64_t n = 0; v && n < hidden; ++n) v[n] = v_from_g * row[n];
    }
    for (int64_t n = 0; n < hidden; ++n) bias[n] += w[n];
    for (int64_t n = 0; v && n < hidden; ++n) bias_v[n] += v[n];
  }
}

// Sums kept for a moment, in one register tile.
template <typename T>
struct TileOut {
  T* tile;
  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    store_lanes(tile + m * kTileVectors * kLanes<T> + n, v, lanes);
  }
};

// (w, v) <- (w + w_w w + w_v v + sums, v_w w + v_v v + tile), both read before either is written; v
// and tile are null without momentum. w_w is tiny: what w is multiplied by, near 1, would be
// rounded alike in every block.
template <typename T>
struct BlockOut {
  T w_w, w_v, v_w, v_v;
  T* w;
  T* v;
  const T* tile;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> sums, int64_t lanes) const {
    const int64_t at = m * stride + n;
    const vec<T> old_w = load_lanes(w + at, lanes);
    sums += w_w * old_w;
    if (v) {
      const vec<T> old_v = load_lanes(v + at, lanes);
      sums += w_v * old_v;
      const vec<T> kept = load_lanes(tile + m * kTileVectors * kLanes<T> + n, lanes);
      store_lanes(v + at, kept + v_w * old_w + v_v * old_v, lanes);
    }
    store_lanes(w + at, old_w + sums, lanes);
  }
};

// Columns [0, columns) of a block's update of the first layer: w and v (hidden, stride), x
// (distinct, stride), all shifted to the first column; to_w and to_v as collect_gradients makes
// them. In a block of one step these are alike, and one product serves.
template <typename T>
void update_columns(const BlockShape& block, const double* recurrence, const T* to_w, const T* to_v,
                    int64_t hidden, const T* x, int64_t stride, int64_t columns, T* w, T* v) {
  constexpr int kWidth = kTileVectors * kLanes<T>;
  const double* end = recurrence + block.steps() * kResponses;
  const int64_t rows = block.distinct;
  T tile[kTileRows * kWidth];
  for (int64_t n = 0; n < columns; n += kWidth) {
    const int64_t width = columns - n < kWidth ? columns - n : kWidth;
    for (int64_t m = 0; m < hidden; m += kTileRows) {
      const int64_t count = hidden - m < kTileRows ? hidden - m : kTileRows;
      const int64_t at = m * stride + n;
      const BlockOut<T> out{T(end[kWFromW] - 1),
                            T(end[kWFromV]),
                            T(end[kVFromW]),
                            T(end[kVFromV]),
                            w + at,
                            v ? v + at : nullptr,
                            tile,
                            stride};
      if (v) {
        axpy_columns(to_v + m, 1, hidden, count, x + n, stride, width, rows, TileOut<T>{tile});
      }
      if (v && block.steps() == 1) {
        const T ratio = end[kWFromG];  // v takes a gradient of its only step as it is
        for (int64_t row = 0; row < count; ++row) {
          for (int64_t i = 0; i < width; i += kLanes<T>) {
            const int64_t lanes = width - i < kLanes<T> ? width - i : kLanes<T>;
            out(row, i, ratio * load_lanes(tile + row * kWidth + i, lanes), lanes);
          }
        }
      } else {
        axpy_columns(to_w + m, 1, hidden, count, x + n, stride, width, rows, out);
      }
    }
  }
}
