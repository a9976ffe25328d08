// Blocked look-ahead SGD (docs/blocked-sgd.md): what its kernels and their schedule on the CPU
// speak of, the numbers of a recurrence and of options on a GPU too. Plain C++, no torch.
#pragma once
#include <cstdint>

namespace fastmlp {

// What w and v, weights and momentum after t steps of a block, take from w, v at its start and from
// a gradient at step 0; a recurrence table holds these for t = 0.. (fastmlp/ops/blocked_sgd.py).
enum Response { kWFromW, kWFromV, kWFromG, kVFromW, kVFromV, kVFromG, kResponses };

// The columns of the options that an operator takes of each network.
enum Option { kLr, kMomentum, kWeightDecay, kNesterov, kGradAverage, kOptions };

struct Sgd {
  double lr, momentum, weight_decay;
  bool nesterov, grad_average;
};

// y = x w^T + b; the momenta are null where there is none.
template <typename T>
struct Layer {
  int64_t inputs, outputs;
  T* w;  // (outputs, inputs)
  T* b;  // (outputs)
  T* w_momentum;
  T* b_momentum;
};

// The rows of one block: batches of `batch` images, the last one perhaps smaller. Where an image
// comes more than once, slot[m] says which of the `distinct` inputs row m has; otherwise it is null
// and they are the rows.
struct BlockShape {
  int64_t rows, batch, distinct;
  const int64_t* slot;

  int64_t steps() const { return (rows + batch - 1) / batch; }
};

// A block's inputs lie in memory a second time, transposed, for products that run over many of them
// at once: in panels (features, width) of kPanelRows inputs each, the last one perhaps narrower,
// its width a multiple of kPanelUnit, filled up with zeros. Both are whole vectors of every
// instruction set.
constexpr int64_t kPanelRows = 48, kPanelUnit = 16;

// Of the panel that begins at row `first` of so many.
inline int64_t panel_width(int64_t rows, int64_t first) {
  const int64_t left = (rows - first + kPanelUnit - 1) / kPanelUnit * kPanelUnit;
  return left < kPanelRows ? left : kPanelRows;
}

// Step t of a block: rows [first, first + count), after rows that have the first `seen` inputs.
struct Step {
  int64_t t, first, count, seen;
};

}  // namespace fastmlp
