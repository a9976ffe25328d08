// cross_entropy and cross_entropy_backward on the CPU.
#include "cpu/simd/isa.h"

namespace fastmlp {

// What the rows of a softmax cross entropy have in common.
template <typename T>
struct CrossEntropyRows {
  const T* logits;  // (rows, classes), rows `stride` apart
  int64_t stride;
  int64_t classes;
  const int64_t* target;  // (rows)
  const T* weight;        // (classes) or null
  acc_t<T> total_class_weight;
  int64_t ignore_index;
  acc_t<T> smoothing;
};

}  // namespace fastmlp

#define FASTMLP_KERNELS "cpu/cross_entropy_kernels.h"

#include "common/check_ops.h"
#include "common/tensor.h"
#include "cpu/simd/foreach_isa.h"

namespace fastmlp {
namespace {

constexpr int64_t kElementsPerThread = 1 << 13;

int64_t rows_per_thread(int64_t classes) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(classes, 1));
}

// The tensors behind an CrossEntropyRows, in the layout its kernels read.
struct CrossEntropyTensors {
  Rows logits;
  std::vector<int64_t> target;
  std::optional<Tensor> weight;

  // Throws for the first label that is neither a class nor ignored.
  CrossEntropyTensors(const Tensor& logits_in, const Tensor& target_in,
                      const std::optional<Tensor>& weight_in, int64_t ignore_index)
      : logits(rows_of(logits_in)), target(target_in.size(0)) {
    const bool bytes = target_in.scalar_type() == ScalarType::Byte;
    const void* labels = target_in.data_ptr();
    const int64_t step = target_in.stride(0);
    for (size_t i = 0; i < target.size(); ++i) {
      target[i] = bytes ? static_cast<const uint8_t*>(labels)[i * step]
                        : static_cast<const int64_t*>(labels)[i * step];
      FASTMLP_CHECK(target[i] == ignore_index || (target[i] >= 0 && target[i] < logits.columns),
                    "Target " + std::to_string(target[i]) +
                        " is out of bounds: labels must be in [0, " +
                        std::to_string(logits.columns) + ") or ignore_index");
    }
    if (weight_in) weight = torch::stable::contiguous(*weight_in);
  }

  template <typename T>
  CrossEntropyRows<T> view(int64_t ignore_index, double smoothing) const {
    const T* w = weight ? static_cast<const T*>(weight->data_ptr()) : nullptr;
    double total = static_cast<double>(logits.columns);
    if (w) {
      total = 0;
      for (int64_t c = 0; c < logits.columns; ++c) total += portable::load_one(w + c);
    }
    return {logits.data<T>(),
            logits.stride,
            logits.columns,
            target.data(),
            w,
            static_cast<acc_t<T>>(total),
            ignore_index,
            static_cast<acc_t<T>>(smoothing)};
  }
};

template <typename T>
void store_scalar(T* p, double value) {
  portable::store_partial(p, portable::broadcast(static_cast<acc_t<T>>(value)), 1);
}

template <typename T>
void cross_entropy_typed(const CrossEntropyRows<T>& in, int64_t rows, int64_t reduction, T* loss,
                         acc_t<T>* stats, acc_t<T>* total_weight) {
  using Acc = acc_t<T>;
  std::vector<Acc> row_loss(rows), row_weight(rows);
  torch::stable::parallel_for(0, rows, rows_per_thread(in.classes),
                              [&](int64_t begin, int64_t end) {
                                FASTMLP_BEST_ISA(cross_entropy_rows<T>)(
                                    in, begin, end, row_loss.data(), row_weight.data(), stats);
                              });
  // One thread, one order, in double: the same sum however many threads made the rows.
  double loss_sum = 0, weight_sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    loss_sum += row_loss[i];
    weight_sum += row_weight[i];
  }
  *total_weight = static_cast<Acc>(weight_sum);
  if (reduction == kNone) {
    for (int64_t i = 0; i < rows; ++i) store_scalar(loss + i, row_loss[i]);
  } else {
    // As in PyTorch, a total weight of 0 makes the mean nan, with label smoothing too.
    const double mean = weight_sum == 0 ? std::nan("") : loss_sum / weight_sum;
    store_scalar(loss, reduction == kMean ? mean : loss_sum);
  }
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_cpu(const Tensor& logits, const Tensor& target,
                                                     const std::optional<Tensor>& weight,
                                                     int64_t reduction, int64_t ignore_index,
                                                     double label_smoothing) {
  check_cross_entropy(logits, target, weight, reduction, label_smoothing);
  const ScalarType type = logits.scalar_type();
  const int64_t rows = logits.size(0);
  Tensor loss =
      empty_cpu(reduction == kNone ? std::vector<int64_t>{rows} : std::vector<int64_t>{}, type);
  Tensor stats = empty_cpu({rows, 2}, stats_type(type));
  Tensor total_weight = empty_cpu({}, stats_type(type));
  const CrossEntropyTensors tensors(logits, target, weight, ignore_index);
  dispatch_floating(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    cross_entropy_typed<T>(tensors.view<T>(ignore_index, label_smoothing), rows, reduction,
                           static_cast<T*>(loss.data_ptr()),
                           static_cast<acc_t<T>*>(stats.data_ptr()),
                           static_cast<acc_t<T>*>(total_weight.data_ptr()));
  });
  return {loss, stats, total_weight};
}

Tensor cross_entropy_backward_cpu(const Tensor& dloss, const Tensor& logits, const Tensor& target,
                                  const Tensor& stats, const Tensor& total_weight,
                                  const std::optional<Tensor>& weight, int64_t reduction,
                                  int64_t ignore_index, double label_smoothing) {
  check_cross_entropy(logits, target, weight, reduction, label_smoothing);
  check_cross_entropy_backward(dloss, logits, stats, total_weight, reduction);
  const ScalarType type = logits.scalar_type();
  const int64_t rows = logits.size(0);
  Tensor dlogits = empty_cpu({rows, logits.size(1)}, type);
  if (dlogits.numel() == 0) return dlogits;
  const CrossEntropyTensors tensors(logits, target, weight, ignore_index);
  const Tensor upstream = torch::stable::contiguous(dloss);
  dispatch_floating(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Acc = acc_t<T>;
    const CrossEntropyRows<T> in = tensors.view<T>(ignore_index, label_smoothing);
    const T* g = static_cast<const T*>(upstream.data_ptr());
    std::vector<Acc> scale(reduction == kNone ? rows : 1);
    for (size_t i = 0; i < scale.size(); ++i) scale[i] = portable::load_one(g + i);
    if (reduction == kMean) scale[0] /= *static_cast<const Acc*>(total_weight.data_ptr());
    torch::stable::parallel_for(
        0, rows, rows_per_thread(in.classes), [&](int64_t begin, int64_t end) {
          FASTMLP_BEST_ISA(cross_entropy_backward_rows<T>)(
              in, begin, end, static_cast<const Acc*>(stats.data_ptr()), scale.data(),
              reduction == kNone ? 1 : 0, static_cast<T*>(dlogits.data_ptr()));
        });
  });
  return dlogits;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&fastmlp::cross_entropy_cpu));
  m.impl("cross_entropy_backward", TORCH_BOX(&fastmlp::cross_entropy_backward_cpu));
}
