// A network on many rows, on the CPU: its outputs, or its loss and hits.
#include "cpu/engine/steps.h"

#define FASTMLP_KERNELS "cpu/engine/steps_kernels.h"
#include "cpu/simd/foreach_isa.h"
//
#include "cpu/engine/panels.h"
#include "cpu/engine/row_data.h"
#include "cpu/engine/sparse_batch.h"
#include "cpu/threads/thread_pool.h"
#include "plan.h"

namespace fastmlp {
namespace {

constexpr int64_t kChunk = 96;  // rows at once, whose activations stay in a level-2 cache

template <typename T>
class RowsForward {
 public:
  RowsForward(const RowData& data, const std::vector<Tensor>& parameters, Activation activation)
      : data_(data), activation_(activation), reader_(data) {
    const ScalarType type = parameters[0].scalar_type();
    sizes_ = sizes_of_network(parameters, 0, parameters.size() / 2, data.features, type);
    widest_ = 0;
    for (size_t l = data.sparse(); l < sizes_.size(); ++l) {
      widest_ = std::max(widest_, row_stride<T>(sizes_[l]));
    }
    for (size_t l = 0; l + 1 < sizes_.size(); ++l) {
      layers_.emplace_back(sizes_[l], sizes_[l + 1], 0, false);
      layers_[l].pack(fastmlp::data<T>(parameters[2 * l]), fastmlp::data<T>(parameters[2 * l + 1]),
                      layers_[l].all().w);
    }
  }

  int64_t outputs() const { return sizes_.back(); }

  // f(z, stride): the outputs of so many rows.
  template <typename F>
  void run(const int64_t* rows, int64_t count, const F& f) const {
    const Buffer<T> h(kChunk * widest_), z(kChunk * widest_);
    std::fill_n(z.get(), kChunk * widest_, T(0));
    int64_t stride = row_stride<T>(sizes_[0]);
    SparseBatch<T> batch(data_);
    if (data_.sparse()) batch.open(rows, count);
    for (int64_t m = 0; m < count && !data_.sparse(); ++m) {
      reader_.read(rows[m], h.get() + m * stride);
      h.get()[m * stride + sizes_[0]] = 1;
    }
    for (size_t l = 0; l < layers_.size(); ++l) {
      const PanelLayer<T>& layer = layers_[l];
      const int64_t to = row_stride<T>(layer.outputs);
      if (l == 0 && data_.sparse()) {
        FASTMLP_BEST_ISA(sparse_forward<T>)(batch.rows(), 0, count, layer.all().w, layer.inputs,
                                            layer.outputs, z.get(), to);
      } else {
        FASTMLP_BEST_ISA(panel_forward<T>)(h.get(), stride, count, layer.all().w, layer.inputs + 1,
                                           layer.outputs, z.get(), to);
      }
      stride = to;
      if (l + 1 == layers_.size()) break;
      FASTMLP_BEST_ISA(activate_rows<0, T>)(activation_, z.get(), nullptr, count, layer.outputs, to,
                                            h.get());
    }
    f(z.get(), stride);
  }

 private:
  const RowData& data_;
  Activation activation_;
  RowReader<T> reader_;
  std::vector<int64_t> sizes_;
  std::vector<PanelLayer<T>> layers_;
  int64_t widest_;
};

// body(first row, rows, chunk) for each chunk of rows, on several threads where it pays.
template <typename F>
void each_chunk(int64_t count, int64_t work, const F& body) {
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  const auto run = [&](int64_t i) { body(i * kChunk, std::min(kChunk, count - i * kChunk), i); };
  if (chunks > 1 && plan_threads_cpu(work * count)) {
    ThreadPool::run([&](const Parallel& team) { team.run(chunks, run); });
  } else {
    Serial().run(chunks, run);
  }
}

int64_t weights_of(const std::vector<Tensor>& parameters) {
  int64_t work = 0;
  for (const Tensor& tensor : parameters) work += tensor.numel();
  return work;
}

// The parameters' dtype, where they are in pairs.
ScalarType type_of_network(const std::vector<Tensor>& parameters) {
  const ScalarType type = type_of(parameters);
  FASTMLP_CHECK(parameters.size() % 2 == 0,
                "parameters must hold a weight and a bias for each layer, and nothing else");
  return type;
}

void check_numbers(const Tensor& rows, const RowData& data) {
  check_plain("rows", rows, 1, ScalarType::Long);
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const int64_t row = fastmlp::data<int64_t>(rows)[i];
    FASTMLP_CHECK(row >= 0 && row < data.rows, "rows must be rows of x");
  }
}

Tensor predict_rows_cpu(const Tensor& x, const std::optional<Tensor>& columns,
                        const std::optional<Tensor>& starts, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& shift, const Tensor& rows,
                        const std::vector<Tensor>& parameters, int64_t activation) {
  check_activation(activation);
  const ScalarType type = type_of_network(parameters);
  const std::optional<Tensor> none;
  const RowData data =
      row_data_of({x, columns, starts, none, none, none, scale, shift}, parameters);
  check_numbers(rows, data);
  const int64_t outputs = parameters.back().size(0), count = rows.size(0);
  Tensor y;
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const RowsForward<T> network(data, parameters, static_cast<Activation>(activation));
    y = empty_cpu({count, outputs}, type);
    each_chunk(count, weights_of(parameters), [&](int64_t first, int64_t chunk, int64_t) {
      network.run(fastmlp::data<int64_t>(rows) + first, chunk, [&](const T* z, int64_t stride) {
        T* to = fastmlp::data<T>(y) + first * outputs;
        for (int64_t m = 0; m < chunk; ++m) std::copy_n(z + m * stride, outputs, to + m * outputs);
      });
    });
  });
  return y;
}

// What of a chunk's rows the loss looks at; returns the sum of their weights in the mean.
template <typename T>
struct ChunkTargets {
  std::vector<int64_t> labels;
  std::vector<T> targets, weights, class_weight;
  LossRows<T> loss{};
  double weight = 0;

  ChunkTargets(const RowData& data, const double* options, int64_t outputs, const int64_t* rows,
               int64_t count) {
    loss.loss = static_cast<Loss>(options[kLoss]);
    loss.smoothing = options[kLabelSmoothing];
    loss.delta = options[kHuberDelta];
    loss.total_class_weight = outputs;
    if (data.class_weight) {
      class_weight.assign(data.class_weight, data.class_weight + outputs);
      loss.class_weight = class_weight.data();
      loss.total_class_weight = 0;
      for (T each : class_weight) loss.total_class_weight += each;
    }
    for (int64_t m = 0; m < count; ++m) {
      const int64_t row = rows[m];
      const T mine = data.row_weights ? data.row_weights[row] : 1.0;
      weights.push_back(mine);
      if (loss.loss == Loss::kCrossEntropy) {
        labels.push_back(data.label(row));
        weight += mine * (data.class_weight ? class_weight[labels.back()] : T(1));
        continue;
      }
      weight += mine;
      for (int64_t at = row * outputs; at < (row + 1) * outputs; ++at) {
        targets.push_back(data.targets ? data.targets[at] : data.float_targets[at]);
      }
    }
    loss.labels = labels.data();
    loss.targets = targets.empty() ? nullptr : targets.data();
    loss.row_weight = weights.data();
  }
};

std::tuple<double, double, int64_t> evaluate_rows_cpu(
    const Tensor& x, const std::optional<Tensor>& columns, const std::optional<Tensor>& starts,
    const Tensor& targets, const std::optional<Tensor>& row_weights,
    const std::optional<Tensor>& class_weight, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const Tensor& rows, const std::vector<Tensor>& parameters,
    const Tensor& options) {
  check_plain("options", options, 1, ScalarType::Double);
  check_size("options", options, 0, kStepOptions);
  const auto* numbers = data<double>(options);
  check_step_options(numbers);
  const auto activation = static_cast<int64_t>(numbers[kActivation]);
  const ScalarType type = type_of_network(parameters);
  const std::optional<Tensor> given(targets);
  const RowData data =
      row_data_of({x, columns, starts, given, row_weights, class_weight, scale, shift}, parameters);
  check_numbers(rows, data);
  const int64_t outputs = parameters.back().size(0), count = rows.size(0);
  const auto* numbers_of_rows = fastmlp::data<int64_t>(rows);
  check_rows(data, static_cast<Loss>(numbers[kLoss]) == Loss::kCrossEntropy, numbers_of_rows, count,
             outputs);
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<double> losses(chunks), weights(chunks);
  std::vector<int64_t> hits(chunks);
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const RowsForward<T> network(data, parameters, static_cast<Activation>(activation));
    each_chunk(count, weights_of(parameters), [&](int64_t first, int64_t chunk, int64_t i) {
      const ChunkTargets<T> targets(data, numbers, outputs, numbers_of_rows + first, chunk);
      double row_losses[kChunk];
      int64_t row_hits[kChunk];
      network.run(numbers_of_rows + first, chunk, [&](const T* z, int64_t stride) {
        FASTMLP_BEST_ISA(loss_rows<T>)(targets.loss, z, stride, chunk, outputs, row_losses,
                                       row_hits, nullptr);
      });
      for (int64_t m = 0; m < chunk; ++m) losses[i] += row_losses[m];
      for (int64_t m = 0; m < chunk; ++m) hits[i] += row_hits[m];
      weights[i] = targets.weight;
    });
  });
  double loss = 0, weight = 0;
  int64_t correct = 0;
  for (int64_t i = 0; i < chunks; ++i) loss += losses[i], weight += weights[i], correct += hits[i];
  return {loss * numbers[kLossScale], weight, correct};
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("predict_rows", TORCH_BOX(&fastmlp::predict_rows_cpu));
  m.impl("evaluate_rows", TORCH_BOX(&fastmlp::evaluate_rows_cpu));
}
