// The operators of blocked look-ahead SGD on the CPU: rows of images as inputs, their Gram matrix,
// the chain of a block's steps, the update of the first layer.
#include "isa.h"

namespace fastmlp {

// What w and v, weights and momentum after t steps of a block, take from w, v at its start and from
// a gradient at step 0; a recurrence table holds these for t = 0.. (fastmlp/blocked.py).
enum Response { kWFromW, kWFromV, kWFromG, kVFromW, kVFromV, kVFromG, kResponses };

// A block of steps of one network I-H-C after its first layer's products.
template <typename T>
struct ChainArgs {
  const T* p;                // (rows, hidden) X W^T + b with W, b as the block began
  const T* q;                // (rows, hidden) the same of their momentum, or null
  const T* gram;             // (rows, rows) X X^T + 1 where the column's batch precedes the row's
  const int64_t* labels;     // (rows), each in [0, classes)
  const double* recurrence;  // (steps + 1, kResponses)
  int64_t rows, hidden, classes, batch;
  double lr, momentum, weight_decay;
  bool nesterov, grad_average;
  T* w;              // (classes, hidden)
  T* b;              // (classes)
  T* w_momentum;     // or null
  T* b_momentum;     // or null
  T* g;              // (rows, hidden) out: dloss/dpre
  T* losses;         // (steps) out: mean over the batch
  int64_t* correct;  // (steps) out
  T* scratch;        // batch * (rows + hidden + 3 * classes)
};

}  // namespace fastmlp

#define FASTMLP_KERNELS "blocked_kernels.h"
#include "foreach_isa.h"
#include "tensor.h"

namespace fastmlp {
namespace {

using torch::stable::parallel_for;

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

void check_contiguous(const char* name, const Tensor& tensor, ScalarType type) {
  FASTMLP_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type,
                name + " must be contiguous and of the network's dtype");
}

template <typename F>
void dispatch_network(ScalarType type, const F& f) {
  if (type == ScalarType::Float) return f(static_cast<float*>(nullptr));
  if (type == ScalarType::Double) return f(static_cast<double*>(nullptr));
  throw std::runtime_error("the network must be float32 or float64");
}

Tensor gather_normalize_cpu(const Tensor& images, const Tensor& rows, const Tensor& scale,
                            const Tensor& shift) {
  const ScalarType type = scale.scalar_type();
  check_dim("images", images, 2);
  check_contiguous("images", images, ScalarType::Byte);
  check_dim("rows", rows, 1);
  check_contiguous("rows", rows, ScalarType::Long);
  for (const Tensor* affine : {&scale, &shift}) {
    check_dim("scale and shift", *affine, 1);
    check_size("scale and shift", *affine, 0, images.size(1));
    check_contiguous("scale and shift", *affine, type);
  }
  const int64_t count = rows.size(0), features = images.size(1), available = images.size(0);
  const int64_t* row = data<int64_t>(rows);
  for (int64_t i = 0; i < count; ++i) {
    FASTMLP_CHECK(
        row[i] >= 0 && row[i] < available,
        "rows must be in [0, " + std::to_string(available) + "), got " + std::to_string(row[i]));
  }
  Tensor x = empty_cpu({count, features}, type);
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        FASTMLP_BEST_ISA(normalize_row<T>)(data<uint8_t>(images) + row[i] * features,
                                           data<T>(scale), data<T>(shift), features,
                                           data<T>(x) + i * features);
      }
    });
  });
  return x;
}

Tensor gram_cpu(const Tensor& x, int64_t batch) {
  check_dim("x", x, 2);
  check_contiguous("x", x, x.scalar_type());
  FASTMLP_CHECK(batch > 0, "batch must be above 0");
  const int64_t rows = x.size(0), features = x.size(1);
  Tensor gram = empty_cpu({rows, rows}, x.scalar_type());
  constexpr int64_t kTile = 8;  // a multiple of every instruction set's tile
  const int64_t tiles = (rows + kTile - 1) / kTile;
  dispatch_network(x.scalar_type(), [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    memset(gram.data_ptr(), 0, rows * rows * sizeof(T));
    // Later tiles have more columns: taken in pairs, first with last, all items are alike.
    parallel_for(0, (tiles + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kTile * rows);
      const auto run = [&](int64_t tile) {
        const int64_t first = tile * kTile, count = std::min(kTile, rows - first);
        FASTMLP_BEST_ISA(gram_tile<T>)(data<T>(x), features, first, count, batch, data<T>(gram),
                                       rows, scratch.data());
      };
      for (int64_t i = begin; i < end; ++i) {
        run(i);
        if (tiles - 1 - i != i) run(tiles - 1 - i);
      }
    });
  });
  return gram;
}

std::tuple<Tensor, Tensor, Tensor> chain_cpu(
    const Tensor& p, const std::optional<Tensor>& q, const Tensor& gram, const Tensor& labels,
    const Tensor& recurrence, const Tensor& w, const Tensor& b,
    const std::optional<Tensor>& w_momentum, const std::optional<Tensor>& b_momentum, int64_t batch,
    double lr, double momentum, double weight_decay, bool nesterov, bool grad_average) {
  const ScalarType type = p.scalar_type();
  check_dim("p", p, 2);
  check_dim("w", w, 2);
  FASTMLP_CHECK(batch > 0, "batch must be above 0");
  const int64_t rows = p.size(0), hidden = p.size(1), classes = w.size(0);
  const int64_t steps = (rows + batch - 1) / batch;
  check_size("w", w, 1, hidden);
  check_dim("gram", gram, 2);
  FASTMLP_CHECK(gram.size(0) == rows && gram.size(1) == rows, "gram must be (rows, rows)");
  check_dim("labels", labels, 1);
  check_size("labels", labels, 0, rows);
  check_contiguous("labels", labels, ScalarType::Long);
  check_dim("recurrence", recurrence, 2);
  FASTMLP_CHECK(recurrence.size(0) > steps && recurrence.size(1) == kResponses,
                "recurrence must have a row for each step and one more");
  check_contiguous("recurrence", recurrence, ScalarType::Double);
  check_dim("b", b, 1);
  check_size("b", b, 0, classes);
  for (const Tensor* tensor : {&p, &gram, &w, &b}) check_contiguous("each tensor", *tensor, type);
  if (q) check_same_shape("q", *q, "p", p);
  if (w_momentum) check_same_shape("w_momentum", *w_momentum, "w", w);
  if (b_momentum) check_same_shape("b_momentum", *b_momentum, "b", b);
  for (const auto* tensor : {&q, &w_momentum, &b_momentum}) {
    // A block of one step needs no q: nothing has moved the first layer yet.
    FASTMLP_CHECK(tensor->has_value() == w_momentum.has_value() || (tensor == &q && steps <= 1),
                  "momentum must be given for all or none");
    if (*tensor) check_contiguous("each tensor", **tensor, type);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t label = data<int64_t>(labels)[i];
    FASTMLP_CHECK(label >= 0 && label < classes,
                  "Target " + std::to_string(label) + " is out of bounds");
  }
  Tensor g = empty_cpu({rows, hidden}, type);
  Tensor losses = empty_cpu({steps}, type);
  Tensor correct = empty_cpu({steps}, ScalarType::Long);
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    std::vector<T> scratch(batch * (rows + hidden + 3 * classes));
    FASTMLP_BEST_ISA(chain<T>)(ChainArgs<T>{data<T>(p),
                                            data<T>(q),
                                            data<T>(gram),
                                            data<int64_t>(labels),
                                            data<double>(recurrence),
                                            rows,
                                            hidden,
                                            classes,
                                            batch,
                                            lr,
                                            momentum,
                                            weight_decay,
                                            nesterov,
                                            grad_average,
                                            data<T>(w),
                                            data<T>(b),
                                            data<T>(w_momentum),
                                            data<T>(b_momentum),
                                            data<T>(g),
                                            data<T>(losses),
                                            data<int64_t>(correct),
                                            scratch.data()});
  });
  return {g, losses, correct};
}

template <typename T>
void block_update_typed(const Tensor& w, const Tensor& b, const std::optional<Tensor>& w_momentum,
                        const std::optional<Tensor>& b_momentum, const Tensor& g, const Tensor& x,
                        const Tensor& recurrence, int64_t batch) {
  const int64_t rows = g.size(0), hidden = g.size(1), features = x.size(1);
  const int64_t steps = (rows + batch - 1) / batch;
  const double* end = data<double>(recurrence) + steps * kResponses;
  std::vector<T> to_w(rows * hidden), to_v(w_momentum ? rows * hidden : 0);
  T *bias = data<T>(b), *bias_v = data<T>(b_momentum);
  for (int64_t n = 0; n < hidden; ++n) {
    const T old = bias[n];
    bias[n] = T(end[kWFromW]) * old + (bias_v ? T(end[kWFromV]) * bias_v[n] : T(0));
    if (bias_v) bias_v[n] = T(end[kVFromW]) * old + T(end[kVFromV]) * bias_v[n];
  }
  for (int64_t m = 0; m < rows; ++m) {
    const double* response = data<double>(recurrence) + (steps - m / batch) * kResponses;
    const T from_g = response[kWFromG], v_from_g = response[kVFromG];
    const T* row = data<T>(g) + m * hidden;
    for (int64_t n = 0; n < hidden; ++n) {
      to_w[m * hidden + n] = from_g * row[n];
      bias[n] += from_g * row[n];
    }
    for (int64_t n = 0; bias_v && n < hidden; ++n) {
      to_v[m * hidden + n] = v_from_g * row[n];
      bias_v[n] += v_from_g * row[n];
    }
  }
  constexpr int64_t kColumns = 48 * 4 / sizeof(T);  // whole register tiles in every set
  parallel_for(0, (features + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end_tile) {
    const int64_t first = begin * kColumns;
    FASTMLP_BEST_ISA(update_columns<T>)(to_w.data(), to_v.data(), rows, hidden, data<T>(x) + first,
                                        features, std::min(end_tile * kColumns, features) - first,
                                        end, steps, data<T>(w) + first,
                                        w_momentum ? data<T>(w_momentum) + first : nullptr);
  });
}

void block_update_cpu(const Tensor& w, const Tensor& b, const std::optional<Tensor>& w_momentum,
                      const std::optional<Tensor>& b_momentum, const Tensor& g, const Tensor& x,
                      const Tensor& recurrence, int64_t batch) {
  const ScalarType type = w.scalar_type();
  check_dim("g", g, 2);
  check_dim("x", x, 2);
  check_size("x", x, 0, g.size(0));
  check_dim("w", w, 2);
  FASTMLP_CHECK(w.size(0) == g.size(1) && w.size(1) == x.size(1), "w must be (hidden, features)");
  check_dim("b", b, 1);
  check_size("b", b, 0, g.size(1));
  FASTMLP_CHECK(batch > 0, "batch must be above 0");
  FASTMLP_CHECK(recurrence.dim() == 2 && recurrence.size(1) == kResponses &&
                    recurrence.size(0) > (g.size(0) + batch - 1) / batch,
                "recurrence must have a row for each step and one more");
  check_contiguous("recurrence", recurrence, ScalarType::Double);
  for (const Tensor* tensor : {&w, &b, &g, &x}) check_contiguous("each tensor", *tensor, type);
  FASTMLP_CHECK(w_momentum.has_value() == b_momentum.has_value(),
                "momentum must be given for both or neither");
  if (w_momentum) {
    check_same_shape("w_momentum", *w_momentum, "w", w);
    check_same_shape("b_momentum", *b_momentum, "b", b);
    check_contiguous("w_momentum", *w_momentum, type);
    check_contiguous("b_momentum", *b_momentum, type);
  }
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    block_update_typed<T>(w, b, w_momentum, b_momentum, g, x, recurrence, batch);
  });
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("gather_normalize", TORCH_BOX(&fastmlp::gather_normalize_cpu));
  m.impl("gram", TORCH_BOX(&fastmlp::gram_cpu));
  m.impl("chain", TORCH_BOX(&fastmlp::chain_cpu));
  m.impl("block_update_", TORCH_BOX(&fastmlp::block_update_cpu));
}
