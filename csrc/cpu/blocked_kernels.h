// Blocked look-ahead SGD (docs/blocked-sgd.md) for one network I-H-C: the kernels of a block of
// steps. Included by foreach_isa.h, after ChainArgs.
#include "softmax_rows.h"
#include "tiles.h"

// x[i] = u8 * scale + shift, rounded twice as in PyTorch.
template <typename T>
void normalize_row(const uint8_t* pixels, const T* scale, const T* shift, int64_t features, T* x) {
  constexpr int kStep = kLanes<T>;
  typedef uint8_t Bytes __attribute__((vector_size(kStep)));
  int64_t i = 0;
  for (; i + kStep <= features; i += kStep) {
    Bytes bytes;
    memcpy(&bytes, pixels + i, sizeof bytes);
    store(x + i, __builtin_convertvector(bytes, vec<T>) * load(scale + i) + load(shift + i));
  }
  for (; i < features; ++i) x[i] = static_cast<T>(pixels[i]) * scale[i] + shift[i];
}

// gram[m][n] = x[m] . x[n] + 1 where n's batch precedes m's, for the rows of one tile; the scratch
// holds count * rows sums.
template <typename T>
void gram_tile(const T* x, int64_t features, int64_t first, int64_t count, int64_t batch, T* gram,
               int64_t rows, T* scratch) {
  const int64_t columns = (first + count - 1) / batch * batch;
  for (int64_t i = 0; i < features; i += kDotBlock<T>) {
    const int64_t length = features - i < kDotBlock<T> ? features - i : kDotBlock<T>;
    dot_rows(x + first * features + i, features, count, x + i, features, columns, length, scratch,
             count, i == 0);
  }
  for (int64_t m = first; m < first + count; ++m) {
    for (int64_t n = 0; n < m / batch * batch; ++n) {
      gram[m * rows + n] = features ? scratch[n * count + m - first] + 1 : T(1);
    }
  }
}

// ---- what becomes of a tile's sums ----

// h = relu(from_w P + from_v Q + sums)
template <typename T>
struct HiddenOut {
  const T* p;
  const T* q;  // null without momentum
  T from_w, from_v;
  T* h;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    const int64_t at = m * stride + n;
    v += from_w * load_lanes(p + at, lanes);
    if (q) v += from_v * load_lanes(q + at, lanes);
    store_lanes(h + at, relu(v), lanes);
  }
};

// g = sums where the ReLU let through
template <typename T>
struct MaskedOut {
  const T* h;
  T* g;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    const int64_t at = m * stride + n;
    store_lanes(g + at, relu_backward(v, load_lanes(h + at, lanes)), lanes);
  }
};

// One step of SGD as torch.optim.SGD takes it, with the sums as gradient.
template <typename T>
struct SgdOut {
  T lr, momentum, weight_decay;
  bool nesterov;
  T* w;
  T* buffer;  // null without momentum
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> g, int64_t lanes) const {
    const int64_t at = m * stride + n;
    const vec<T> old = load_lanes(w + at, lanes);
    g += weight_decay * old;
    if (buffer) {
      const vec<T> v = momentum * load_lanes(buffer + at, lanes) + g;
      store_lanes(buffer + at, v, lanes);
      g = nesterov ? g + momentum * v : v;
    }
    store_lanes(w + at, old - lr * g, lanes);
  }
};

// Sums kept for a moment, in one register tile.
template <typename T>
struct TileOut {
  T* tile;
  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    store_lanes(tile + m * kTileVectors * kLanes<T> + n, v, lanes);
  }
};

// (w, v) <- (w_w w + w_v v + sums, v_w w + v_v v + tile), both read before either is written; v and
// tile are null without momentum.
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
    store_lanes(w + at, sums, lanes);
  }
};

// ---- the chain ----

// p[j] = scale (softmax(logits)_j - [j = label]); returns the row's loss, adds a hit to *correct.
template <typename T>
FASTMLP_INLINE T softmax_step(const T* logits, int64_t classes, int64_t label, T scale, T* p,
                              int64_t* correct) {
  constexpr int kStep = kLanes<T>;
  T stats[2];
  row_stats(logits, classes, stats);
  for (int64_t j = 0; j < classes; j += kStep) {
    const int64_t lanes = classes - j < kStep ? classes - j : kStep;
    store_lanes(p + j, scale * exp((load_lanes(logits + j, lanes) - stats[0]) - stats[1]), lanes);
  }
  p[label] -= scale;
  int64_t guess = 0;
  while (guess < classes && !(logits[guess] == stats[0])) ++guess;
  *correct += guess == label;
  return stats[1] - (logits[label] - stats[0]);
}

// Where a step of the chain works: rows [first, first + count) of the block, and scratch for one
// step.
template <typename T>
struct Step {
  int64_t t, first, count;
  T* weighted;  // (batch, rows)
  T* h;         // (batch, hidden)
  T* logits;    // (batch, classes)
  T* dlogits;   // (batch, classes)
  T* sums;      // (classes, batch)
};

// h = relu(pre(t)): the block's product plus what the earlier steps have changed of it.
template <typename T>
FASTMLP_INLINE void chain_hidden(const ChainArgs<T>& in, const Step<T>& step) {
  for (int64_t m = 0; m < step.count; ++m) {
    const T* gram = in.gram + (step.first + m) * in.rows;
    for (int64_t u = 0; u < step.t; ++u) {
      const T from_g = in.recurrence[(step.t - u) * kResponses + kWFromG];
      for (int64_t n = u * in.batch; n < (u + 1) * in.batch; ++n) {
        step.weighted[m * in.rows + n] = from_g * gram[n];
      }
    }
  }
  const double* now = in.recurrence + step.t * kResponses;
  const int64_t at = step.first * in.hidden;
  axpy_columns(step.weighted, in.rows, 1, step.count, in.g, in.hidden, in.hidden, step.first,
               HiddenOut<T>{in.p + at, in.q ? in.q + at : nullptr, T(now[kWFromW]), T(now[kWFromV]),
                            step.h, in.hidden});
}

// logits, the step's loss and hits, and dlogits.
template <typename T>
FASTMLP_INLINE void chain_loss(const ChainArgs<T>& in, const Step<T>& step) {
  const int64_t hidden = in.hidden, classes = in.classes, count = step.count;
  for (int64_t i = 0; i < hidden; i += kDotBlock<T>) {
    const int64_t length = hidden - i < kDotBlock<T> ? hidden - i : kDotBlock<T>;
    dot_rows(step.h + i, hidden, count, in.w + i, hidden, classes, length, step.sums, count,
             i == 0);
  }
  const T scale = T(1) / count;
  double loss = 0;
  in.correct[step.t] = 0;
  for (int64_t m = 0; m < count; ++m) {
    T* logits = step.logits + m * classes;
    for (int64_t c = 0; c < classes; ++c) logits[c] = step.sums[c * count + m] + in.b[c];
    loss += softmax_step(logits, classes, in.labels[step.first + m],
                         in.grad_average ? scale / count : scale, step.dlogits + m * classes,
                         in.correct + step.t);
  }
  in.losses[step.t] = loss / count;
}

// g = dloss/dpre(t), then the last layer's step of SGD.
template <typename T>
FASTMLP_INLINE void chain_update(const ChainArgs<T>& in, const Step<T>& step) {
  const int64_t hidden = in.hidden, classes = in.classes;
  axpy_columns(step.dlogits, classes, 1, step.count, in.w, hidden, hidden, classes,
               MaskedOut<T>{step.h, in.g + step.first * hidden, hidden});
  const T lr = in.lr, momentum = in.momentum, decay = in.weight_decay;
  axpy_columns(step.dlogits, 1, classes, classes, step.h, hidden, hidden, step.count,
               SgdOut<T>{lr, momentum, decay, in.nesterov, in.w, in.w_momentum, hidden});
  for (int64_t c = 0; c < classes; ++c) {
    T d = 0;
    for (int64_t m = 0; m < step.count; ++m) d += step.dlogits[m * classes + c];
    d += decay * in.b[c];
    if (in.b_momentum) {
      const T v = in.b_momentum[c] = momentum * in.b_momentum[c] + d;
      d = in.nesterov ? d + momentum * v : v;
    }
    in.b[c] -= lr * d;
  }
}

// Computes: the steps of a block, where pre(t) = from_w(t) P(t) + from_v(t) Q(t) +
//   sum_{u<t} from_g(t-u) G(t,u) g(u), h = relu(pre), g = dloss/dpre; the last layer moves each
//   step.
// Shapes: see ChainArgs. In place: w, b and their momentum. One thread; a block's history and Gram
//   matrix stay in the level-2 cache.
// Precision and order: sums in T by blocks of the inner dimension, a step's loss in double;
//   deterministic. Needs: labels in range. Same as: blocked.chain_ref.
template <typename T>
void chain(const ChainArgs<T>& in) {
  T* weighted = in.scratch;
  T* h = weighted + in.batch * in.rows;
  T* logits = h + in.batch * in.hidden;
  T* dlogits = logits + in.batch * in.classes;
  T* sums = dlogits + in.batch * in.classes;
  for (int64_t t = 0, first = 0; first < in.rows; ++t, first += in.batch) {
    const int64_t count = in.rows - first < in.batch ? in.rows - first : in.batch;
    const Step<T> step{t, first, count, weighted, h, logits, dlogits, sums};
    chain_hidden(in, step);
    chain_loss(in, step);
    chain_update(in, step);
  }
}

// Columns [0, columns) of a block's update of the first layer: w and v (hidden, stride), x (rows,
// stride), both shifted to the first column; to_w and to_v (rows, hidden) are g times the responses
// of w and v at the block's end. In a block of one step these are alike, and one product serves.
template <typename T>
void update_columns(const T* to_w, const T* to_v, int64_t rows, int64_t hidden, const T* x,
                    int64_t stride, int64_t columns, const double* end, int64_t steps, T* w, T* v) {
  constexpr int kWidth = kTileVectors * kLanes<T>;
  T tile[kTileRows * kWidth];
  for (int64_t n = 0; n < columns; n += kWidth) {
    const int64_t width = columns - n < kWidth ? columns - n : kWidth;
    for (int64_t m = 0; m < hidden; m += kTileRows) {
      const int64_t count = hidden - m < kTileRows ? hidden - m : kTileRows;
      const int64_t at = m * stride + n;
      const BlockOut<T> out{T(end[kWFromW]),
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
      if (v && steps == 1) {
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
