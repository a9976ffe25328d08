// Training steps of any MLP: what the kernels and the schedule of train_steps_ speak of.
// Plain C++, no torch.
#pragma once
#include <cstdint>

#include "common/scalar_math.h"
#include "cpu/simd/panel_shape.h"

namespace fastmlp {

FASTMLP_HD float log1p_of(float x) { return log1pf(x); }
FASTMLP_HD double log1p_of(double x) { return log1p(x); }

#define FASTMLP_MATH FASTMLP_HD
#include "common/loss.h"
#undef FASTMLP_MATH

// The columns of the options that train_steps_ takes of each network; fastmlp/ops/train_steps.py
// fills them in, in this order.
enum StepOption {
  kBatchSize,
  kActivation,
  kLoss,
  kLossScale,
  kLabelSmoothing,
  kHuberDelta,
  kWeightMean,
  kOptimizer,
  kStepLr,
  kStepMomentum,
  kStepNesterov,
  kBeta1,
  kBeta2,
  kEps,
  kDecay,
  kDecayBiases,
  kDecayPerRow,
  kLrInMomentum,
  kEpsilonHat,
  kClipNorm,  // 0: none
  kDropout,
  kDropoutThreshold,
  kStepGradAverage,
  kDecayInLoss,
  kSeedLow,
  kSeedHigh,
  kEpoch,
  kStartStep,
  kMaxSteps,
  kStepsDone,  // by Adam, before
  kEpochs,     // in the order, one after the other, each as long
  kStepOptions,
};

enum class Optimizer : int64_t { kSgd, kAdam, kAdamW };

// What the update of one step multiplies by.
template <typename T>
struct UpdateNumbers {
  T weight_decay, bias_decay;  // times the parameter, added to the gradient
  T weight_kept, bias_kept;    // what is left of the parameter itself
  // SGD: v = momentum v + v_from_g g, w += w_from_v v + w_from_g g; without momentum w_from_g
  // alone.
  T momentum, v_from_g, w_from_v, w_from_g;
  // Adam: w -= step m / (root sqrt(v) + eps).
  T one_minus_beta1, beta2, one_minus_beta2, step, root, eps;
};

enum class UpdateKind { kSgd, kMomentum, kAdam };

// A layer's weights, and of the same shape what its optimizer keeps, in panels of a few columns:
// the one that begins at output n holds, for each input and then for the bias, `width` numbers, and
// begins at n * (inputs + 1). Columns past the last output are zeros.
template <typename T>
struct PanelWeights {
  T* w;
  T* first;   // momentum, or Adam's mean of gradients; null where there is none
  T* second;  // Adam's mean of squares
};

// A sparse matrix: its i-th row, or column, has the numbers values[starts[i]] to values[starts[i +
// 1]] at these places.
template <typename T>
struct SparseMatrix {
  const int64_t* starts;
  const int32_t* places;
  const T* values;
};

// What of rows of data a loss looks at.
template <typename T>
struct LossRows {
  Loss loss;
  const int64_t* labels;  // cross entropy; else
  const T* targets;       // (rows, outputs)
  const T* class_weight;  // (outputs), or null
  const T* row_weight;    // (rows), or null
  T smoothing, delta;
  T total_class_weight;
  T scale;  // of the gradient
};

}  // namespace fastmlp
