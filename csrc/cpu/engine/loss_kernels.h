// Losses of rows of outputs, hits and gradients. Included by foreach_isa.h.

#include "cpu/softmax_rows.h"

FASTMLP_INLINE vec<float> log1p_of(vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_log1pf(x[i]);
  return x;
}
FASTMLP_INLINE vec<double> log1p_of(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_log1p(x[i]);
  return x;
}

#define FASTMLP_MATH FASTMLP_INLINE
#include "common/loss.h"
#undef FASTMLP_MATH

// The loss of a row of logits and, in dz (not null), its gradient times `factor`, by
// fastmlp/ops/losses.py's shares: each class counts for smoothing / C, the label for 1 - smoothing
// more, all times the classes' weights.
template <typename T>
FASTMLP_INLINE T cross_entropy_row(const LossRows<T>& in, const T* z, int64_t label,
                                   int64_t classes, T factor, T* dz, bool& hit) {
  constexpr int kStep = kLanes<T>;
  constexpr T kLowest = -__builtin_inf();
  vec<T> largest = broadcast(kLowest);
  for (int64_t j = 0; j < classes; j += kStep) {
    const int64_t lanes = classes - j < kStep ? classes - j : kStep;
    const vec<T> v = load_lanes(z + j, lanes);
    largest = larger<T>(lanes < kStep ? fill_lanes(kLowest, v, lanes) : v, largest);
  }
  const T maximum = reduce_max<T>(largest);
  vec<T> total = {};
  for (int64_t j = 0; j < classes; j += kStep) {
    const int64_t lanes = classes - j < kStep ? classes - j : kStep;
    vec<T> v = load_lanes(z + j, lanes);
    v = exp(lanes < kStep ? fill_lanes(kLowest, v, lanes) - maximum : v - maximum);
    if (dz) store(dz + j, v);
    total += v;
  }
  const T sum = reduce_add<T>(total), log_sum = log_of(sum);
  int64_t best = 0;
  while (best < classes && z[best] != maximum) ++best;
  hit = best == label;
  const T weight = in.class_weight ? in.class_weight[label] : T(1);
  const T hot = (1 - in.smoothing) * weight, share = in.smoothing / classes;
  T loss = hot * (log_sum - (z[label] - maximum));
  if (share > 0) {
    for (int64_t j = 0; j < classes; ++j) {
      loss += share * (in.class_weight ? in.class_weight[j] : T(1)) * (log_sum - (z[j] - maximum));
    }
  }
  if (!dz) return loss;
  const T mass = factor * (hot + share * in.total_class_weight) / sum;
  for (int64_t j = 0; j < classes; j += kStep) {
    const int64_t lanes = classes - j < kStep ? classes - j : kStep;
    vec<T> g = mass * load(dz + j);
    if (share > 0) {
      const vec<T> each = in.class_weight ? load_lanes(in.class_weight + j, lanes)
                                          : fill_lanes(T(0), broadcast(T(1)), lanes);
      g -= factor * share * each;
    }
    store(dz + j, g);
  }
  dz[label] -= factor * hot;
  return loss;
}

// The same of a loss that is a sum over outputs.
template <Loss kLoss, typename T>
FASTMLP_INLINE T loss_row(const LossRows<T>& in, const T* z, const T* y, int64_t outputs, T factor,
                          T* dz, bool& hit) {
  constexpr int kStep = kLanes<T>;
  const vec<T> delta = broadcast(in.delta);
  vec<T> total = {};
  hit = kLoss == Loss::kBinaryCrossEntropy;
  for (int64_t j = 0; j < outputs; j += kStep) {
    const int64_t lanes = outputs - j < kStep ? outputs - j : kStep;
    const vec<T> a = load_lanes(z + j, lanes), b = load_lanes(y + j, lanes);
    const vec<T> value = LossRow<kLoss>::value(a, b, delta);
    total += lanes < kStep ? fill_lanes(T(0), value, lanes) : value;
    if (dz) {
      const vec<T> g = factor * LossRow<kLoss>::gradient(a, b, delta);
      store(dz + j, lanes < kStep ? fill_lanes(T(0), g, lanes) : g);
    }
    if (kLoss == Loss::kBinaryCrossEntropy) {
      for (int64_t i = 0; i < lanes; ++i) hit = hit && (a[i] > 0) == (b[i] > T(0.5));
    }
  }
  return reduce_add<T>(total);
}

// Computes: losses (rows) with their weights but not `scale`, hits (rows) and, where dz is not
// null,
//   dz (rows, stride), the gradients of z (rows, stride) times weights and scale, zeros up to a
//   whole vector.
template <typename T>
void loss_rows(const LossRows<T>& in, const T* z, int64_t stride, int64_t rows, int64_t outputs,
               double* losses, int64_t* hits, T* dz) {
  for (int64_t m = 0; m < rows; ++m) {
    const T weight = in.row_weight ? in.row_weight[m] : T(1), factor = weight * in.scale;
    const T* row = z + m * stride;
    T* to = dz ? dz + m * stride : nullptr;
    const T* y = in.targets ? in.targets + m * outputs : nullptr;
    bool hit = false;
    T loss;
    if (in.loss == Loss::kCrossEntropy) {
      loss = cross_entropy_row(in, row, in.labels[m], outputs, factor, to, hit);
    } else if (in.loss == Loss::kBinaryCrossEntropy) {
      loss = loss_row<Loss::kBinaryCrossEntropy>(in, row, y, outputs, factor, to, hit);
    } else if (in.loss == Loss::kSquaredError) {
      loss = loss_row<Loss::kSquaredError>(in, row, y, outputs, factor, to, hit);
    } else if (in.loss == Loss::kHuber) {
      loss = loss_row<Loss::kHuber>(in, row, y, outputs, factor, to, hit);
    } else {
      loss = loss_row<Loss::kPoisson>(in, row, y, outputs, factor, to, hit);
    }
    losses[m] = static_cast<double>(loss * weight);
    hits[m] = hit;
  }
}
