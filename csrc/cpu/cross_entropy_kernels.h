// Softmax cross entropy, a row at a time: a pass for the maximum, a pass for the sum; the gradient
// recomputes the probabilities. Included by foreach_isa.h, after CrossEntropyRows.

#include "cpu/softmax_rows.h"

// sum_j w_j (x_j - maximum), with w = 1 where there are no class weights.
template <typename T>
FASTMLP_INLINE acc_t<T> weighted_sum(const T* x, const T* weight, int64_t classes,
                                     acc_t<T> maximum) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  vec<Acc> total = {};
  for (int64_t start = 0; start < classes; start += kSumBlock * kStep) {
    const int64_t end = classes - start < kSumBlock * kStep ? classes : start + kSumBlock * kStep;
    vec<Acc> part = {};
    for (int64_t j = start; j < end; j += kStep) {
      const int64_t lanes = end - j < kStep ? end - j : kStep;
      vec<Acc> v = load_lanes(x + j, lanes) - maximum;
      if (weight) v *= load_lanes(weight + j, lanes);
      part += lanes == kStep ? v : fill_lanes(Acc(0), v, lanes);
    }
    total += part;
  }
  return reduce_add<Acc>(total);
}

// row_loss[i] and row_weight[i] = w_target of rows [begin, end), both 0 where ignored; stats (rows,
// 2).
template <typename T>
void cross_entropy_rows(const CrossEntropyRows<T>& in, int64_t begin, int64_t end,
                        acc_t<T>* row_loss, acc_t<T>* row_weight, acc_t<T>* stats) {
  using Acc = acc_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = in.logits + i * in.stride;
    row_stats(x, in.classes, stats + 2 * i);
    const int64_t label = in.target[i];
    row_loss[i] = row_weight[i] = 0;
    if (label == in.ignore_index) continue;
    const Acc maximum = stats[2 * i], log_sum = stats[2 * i + 1];
    const Acc w = in.weight ? load_one(in.weight + label) : Acc(1);
    row_weight[i] = w;
    row_loss[i] = (1 - in.smoothing) * w * (log_sum - (load_one(x + label) - maximum));
    if (in.smoothing > 0) {
      row_loss[i] +=
          in.smoothing / in.classes *
          (in.total_class_weight * log_sum - weighted_sum(x, in.weight, in.classes, maximum));
    }
  }
}

// dlogits[i][j] = scale[i] ((hot + s/C sum_c w_c) p_j - hot [j = label] - s/C w_j), with
// hot = (1-s) w_label; rows whose label is ignored give 0. scale_step is 0 where all rows share
// one.
template <typename T>
void cross_entropy_backward_rows(const CrossEntropyRows<T>& in, int64_t begin, int64_t end,
                                 const acc_t<T>* stats, const acc_t<T>* scale, int64_t scale_step,
                                 T* dlogits) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = in.logits + i * in.stride;
    T* dx = dlogits + i * in.classes;
    const int64_t label = in.target[i];
    const bool kept = label != in.ignore_index;
    const Acc factor = scale[i * scale_step];
    const Acc w = kept && in.weight ? load_one(in.weight + label) : Acc(1);
    const Acc hot = (1 - in.smoothing) * w;
    const Acc share = in.smoothing / in.classes;
    const Acc mass = hot + share * in.total_class_weight;
    const Acc maximum = stats[2 * i], log_sum = stats[2 * i + 1];
    for (int64_t j = 0; j < in.classes; j += kStep) {
      const int64_t lanes = in.classes - j < kStep ? in.classes - j : kStep;
      vec<Acc> g = {};
      if (kept) {
        g = mass * exp((load_lanes(x + j, lanes) - maximum) - log_sum);
        if (share > 0) g -= in.weight ? share * load_lanes(in.weight + j, lanes) : broadcast(share);
        if (label >= j && label < j + lanes) g[label - j] -= hot;
        g *= factor;
      }
      store_lanes(dx + j, g, lanes);
    }
  }
}
