// The stages of a step in the chain of a block (docs/blocked-sgd.md), each on a range of columns.
// Included by blocked_kernels.h.

// weighted[m][n] = what row m of the step takes from the gradient of row n of an earlier one,
// from_g(age of n) (x[m] . x[n] + 1); where inputs come more than once, what it takes from what
// input n has done to w so far, x[m] . x[n] + 1.
template <typename T>
void chain_history(const BlockShape& block, const Step& step, const double* recurrence,
                   const T* gram, T* weighted) {
  for (int64_t m = 0; m < step.count; ++m) {
    const int64_t input = block.slot ? block.slot[step.first + m] : step.first + m;
    const T* row = gram + input * block.distinct;
    T* out = weighted + m * block.rows;
    if (block.slot) {
      memcpy(out, row, step.seen * sizeof(T));
      continue;
    }
    for (int64_t u = 0; u < step.t; ++u) {
      const T from_g = recurrence[(step.t - u) * kResponses + kWFromG];
      for (int64_t n = u * block.batch; n < (u + 1) * block.batch; ++n) out[n] = from_g * row[n];
    }
  }
}

// The activation of the networks that the blocked schedule trains.
using Relu = ActivationRow<Activation::kRelu>;

// h = relu(from_w P + from_v Q + sums)
template <typename T>
struct HiddenOut {
  const T* p;
  const T* q;  // null without momentum
  const int64_t* slot;
  T from_w, from_v;
  T* h;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    const int64_t from = (slot ? slot[m] : m) * stride + n;
    v += from_w * load_lanes(p + from, lanes);
    if (q) v += from_v * load_lanes(q + from, lanes);
    store_lanes(h + m * stride + n, Relu::forward(v), lanes);
  }
};

// Columns [begin, end) of h (count, hidden) = relu(pre(t)): the block's product p (distinct,
// hidden) plus what the earlier steps have changed of it, by their gradients or, where inputs come
// more than once, by what these have done to w: past (seen, hidden).
template <typename T>
void chain_hidden(const BlockShape& block, const Step& step, const double* recurrence, const T* p,
                  const T* q, const T* weighted, const T* past, int64_t hidden, int64_t begin,
                  int64_t end, T* h) {
  const double* now = recurrence + step.t * kResponses;
  const int64_t* slot = block.slot ? block.slot + step.first : nullptr;
  const int64_t at = begin + (slot ? 0 : step.first * hidden);
  axpy_columns(weighted, block.rows, 1, step.count, past + begin, hidden, end - begin, step.seen,
               HiddenOut<T>{p + at, q ? q + at : nullptr, slot, T(now[kWFromW]), T(now[kWFromV]),
                            h + begin, hidden});
}

// Where inputs come more than once: columns [begin, end) of to_w, to_v (distinct, hidden), what the
// gradients of the steps before this one have done to w and v, for each input, become what they and
// this step's g (count, hidden) have done by its end. to_v is null without momentum.
template <typename T>
void chain_inputs(const BlockShape& block, const Step& step, const double* recurrence, const T* g,
                  int64_t hidden, int64_t begin, int64_t end, T* to_w, T* to_v) {
  const double* response = recurrence + kResponses;
  const T w_w = response[kWFromW] - 1, w_v = response[kWFromV];
  const T v_w = response[kVFromW], v_v = response[kVFromV];
  const bool fades = to_v || w_w != 0;
  for (int64_t s = 0; fades && s < step.seen; ++s) {
    T* w = to_w + s * hidden;
    T* v = to_v ? to_v + s * hidden : nullptr;
    for (int64_t n = begin; n < end; ++n) {
      const T old = w[n];
      w[n] = old + (w_w * old + (v ? w_v * v[n] : T(0)));
      if (v) v[n] = v_w * old + v_v * v[n];
    }
  }
  const T from_g = response[kWFromG], v_from_g = response[kVFromG];
  int64_t seen = step.seen;
  for (int64_t m = 0; m < step.count; ++m) {
    const int64_t s = block.slot[step.first + m];
    const T* row = g + m * hidden;
    const bool fresh = s >= seen;
    if (fresh) seen = s + 1;
    T* w = to_w + s * hidden;
    for (int64_t n = begin; n < end; ++n) w[n] = (fresh ? T(0) : w[n]) + from_g * row[n];
    T* v = to_v ? to_v + s * hidden : nullptr;
    for (int64_t n = begin; v && n < end; ++n) {
      v[n] = (fresh ? T(0) : v[n]) + v_from_g * row[n];
    }
  }
}

// Columns [begin, end) of y (count, outputs) = layer of x (count, inputs); scratch holds count *
// outputs sums.
template <typename T>
void chain_forward(const Layer<T>& layer, int64_t count, const T* x, Activation activation,
                   int64_t begin, int64_t end, T* y, T* scratch) {
  constexpr int64_t kPanel = 96;
  for (int64_t n = begin; n < end; n += kPanel) {
    const int64_t width = end - n < kPanel ? end - n : kPanel;
    linear_columns<T>(x, layer.inputs, count, layer.w + n * layer.inputs, layer.inputs, width,
                      layer.inputs, layer.b + n, activation, y + n, layer.outputs,
                      scratch + n * count);
  }
}

// Loss of a row whose stats are known; adds 1 to *correct where the first largest logit is the
// label's.
template <typename T>
FASTMLP_INLINE T row_loss(const T* logits, int64_t classes, int64_t label, const T* stats,
                          int64_t* correct) {
  int64_t guess = 0;
  while (guess < classes && !(logits[guess] == stats[0])) ++guess;
  *correct += guess == label;
  return stats[1] - (logits[label] - stats[0]);
}

// Losses of `count` rows of logits, in double, and 1 for each that was classified correctly, else
// 0.
template <typename T>
void losses_of(const T* logits, const int64_t* labels, int64_t count, int64_t classes,
               double* losses, int64_t* hits) {
  for (int64_t m = 0; m < count; ++m) {
    T stats[2];
    row_stats(logits + m * classes, classes, stats);
    hits[m] = 0;
    losses[m] = row_loss(logits + m * classes, classes, labels[m], stats, hits + m);
  }
}

// logits (count, classes) become scale (softmax(logits) - [label]); returns the sum of the losses
// in double, adds the hits to *correct.
template <typename T>
double chain_loss(const int64_t* labels, int64_t count, int64_t classes, T scale, T* logits,
                  int64_t* correct) {
  constexpr int kStep = kLanes<T>;
  double loss = 0;
  for (int64_t m = 0; m < count; ++m) {
    T* row = logits + m * classes;
    T stats[2];
    row_stats(row, classes, stats);
    loss += row_loss(row, classes, labels[m], stats, correct);
    for (int64_t j = 0; j < classes; j += kStep) {
      const int64_t lanes = classes - j < kStep ? classes - j : kStep;
      store_lanes(row + j, scale * exp((load_lanes(row + j, lanes) - stats[0]) - stats[1]), lanes);
    }
    row[labels[m]] -= scale;
  }
  return loss;
}

// dx = sums where the ReLU that made x let through
template <typename T>
struct ReluBackwardOut {
  const T* x;
  T* dx;
  int64_t stride;

  FASTMLP_INLINE void operator()(int64_t m, int64_t n, vec<T> v, int64_t lanes) const {
    const int64_t at = m * stride + n;
    store_lanes(dx + at, Relu::backward(v, load_lanes(x + at, lanes)), lanes);
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

// Columns [begin, end) of a layer behind the first: dx (count, inputs) = the gradient of its input
// x, the ReLU before it undone, then the step of SGD on w with dy (count, outputs).
template <typename T>
void chain_backward(const Layer<T>& layer, const Sgd& sgd, int64_t count, const T* dy, const T* x,
                    int64_t begin, int64_t end, T* dx) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs, width = end - begin;
  axpy_columns(dy, outputs, 1, count, layer.w + begin, inputs, width, outputs,
               ReluBackwardOut<T>{x + begin, dx + begin, inputs});
  // A short sum is bound by writing w: a few rows at a time are few streams of long runs.
  const int64_t chunk = count <= 16 ? kTileRows : outputs;
  for (int64_t n = 0; n < outputs; n += chunk) {
    const int64_t rows = outputs - n < chunk ? outputs - n : chunk;
    const int64_t at = n * inputs + begin;
    axpy_columns(
        dy + n, 1, outputs, rows, x + begin, inputs, width, count,
        SgdOut<T>{T(sgd.lr), T(sgd.momentum), T(sgd.weight_decay), sgd.nesterov, layer.w + at,
                  layer.w_momentum ? layer.w_momentum + at : nullptr, inputs});
  }
}

// The same step of SGD on the layer's bias.
template <typename T>
void chain_bias(const Layer<T>& layer, const Sgd& sgd, int64_t count, const T* dy) {
  const T lr = sgd.lr, momentum = sgd.momentum, decay = sgd.weight_decay;
  for (int64_t n = 0; n < layer.outputs; ++n) {
    T d = 0;
    for (int64_t m = 0; m < count; ++m) d += dy[m * layer.outputs + n];
    d += decay * layer.b[n];
    if (layer.b_momentum) {
      const T v = layer.b_momentum[n] = momentum * layer.b_momentum[n] + d;
      d = sgd.nesterov ? d + momentum * v : v;
    }
    layer.b[n] -= lr * d;
  }
}
