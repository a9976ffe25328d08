// Rows of data and networks as operators get them, checked and as plain pointers.
#pragma once
#include <cmath>
#include <optional>

#include "common/check_ops.h"
#include "cpu/engine/networks.h"
#include "cpu/engine/row_source.h"

namespace fastmlp {

// The tensors behind a RowData, which may be null.
struct RowTensors {
  const Tensor& x;
  const std::optional<Tensor>&columns, &starts, &targets, &row_weights, &class_weight, &scale,
      &shift;
};

inline const double* doubles_of(const char* name, const std::optional<Tensor>& tensor,
                                int64_t size) {
  if (!tensor) return nullptr;
  check_plain(name, *tensor, 1, ScalarType::Double);
  check_size(name, *tensor, 0, size);
  return data<double>(*tensor);
}

// Checks and adds the places of sparse rows' numbers, of rows that have so many features.
inline void add_places(const RowTensors& in, int64_t features, RowData& rows) {
  FASTMLP_CHECK(in.columns && in.starts, "sparse rows must have columns and starts");
  FASTMLP_CHECK(!in.scale && !in.shift, "sparse rows must have no scale and no shift");
  FASTMLP_CHECK(rows.x_type != Number::kByte, "sparse x must be float32 or float64");
  check_plain("columns", *in.columns, 1, ScalarType::Int);
  check_plain("starts", *in.starts, 1, ScalarType::Long);
  const int64_t count = in.x.size(0);
  check_size("columns", *in.columns, 0, count);
  FASTMLP_CHECK(in.starts->size(0) > 0, "starts must have one number more than there are rows");
  rows.columns = data<int32_t>(*in.columns);
  rows.starts = data<int64_t>(*in.starts);
  rows.rows = in.starts->size(0) - 1;
  rows.features = features;
  FASTMLP_CHECK(rows.starts[0] == 0 && rows.starts[rows.rows] == count,
                "starts must go from 0 to the number of columns");
  for (int64_t r = 0; r < rows.rows; ++r) {
    FASTMLP_CHECK(rows.starts[r] <= rows.starts[r + 1], "starts must not decrease");
  }
  for (int64_t i = 0; i < count; ++i) {
    FASTMLP_CHECK(rows.columns[i] >= 0 && rows.columns[i] < features, "columns must be of inputs");
  }
}

// For networks of these parameters, of whose outputs targets that are numbers must have as many.
inline RowData row_data_of(const RowTensors& in, const std::vector<Tensor>& parameters) {
  const bool sparse = in.columns || in.starts;
  check_dim("x", in.x, sparse ? 1 : 2);
  FASTMLP_CHECK(in.x.is_contiguous(), "x must be contiguous");
  check_memory("x", in.x);
  check_dim("the last bias", parameters.back(), 1);
  const int64_t outputs = parameters.back().size(0);
  RowData rows{};
  const ScalarType type = in.x.scalar_type();
  FASTMLP_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Byte,
                "x must be float32, float64 or uint8");
  rows.x = in.x.data_ptr();
  rows.x_type = type == ScalarType::Byte     ? Number::kByte
                : type == ScalarType::Double ? Number::kDouble
                                             : Number::kFloat;
  if (sparse) {
    check_dim("a weight", parameters.front(), 2);
    add_places(in, parameters.front().size(1), rows);
  } else {
    rows.rows = in.x.size(0);
    rows.features = in.x.size(1);
  }
  rows.row_weights = doubles_of("row_weights", in.row_weights, rows.rows);
  rows.class_weight = doubles_of("class_weight", in.class_weight, outputs);
  rows.scale = doubles_of("scale", in.scale, rows.features);
  rows.shift = doubles_of("shift", in.shift, rows.features);
  if (!in.targets) return rows;
  const Tensor& targets = *in.targets;
  check_given("targets", targets);
  FASTMLP_CHECK(targets.is_contiguous(), "targets must be contiguous");
  FASTMLP_CHECK(targets.dim() > 0, "targets must have a dimension");
  check_size("targets", targets, 0, rows.rows);
  const ScalarType target_type = targets.scalar_type();
  FASTMLP_CHECK(target_type == ScalarType::Long || target_type == ScalarType::Byte ||
                    target_type == ScalarType::Float || target_type == ScalarType::Double,
                "targets must be int64, uint8, float32 or float64");
  check_memory("targets", targets);
  if (target_type == ScalarType::Long) rows.labels = data<int64_t>(targets);
  if (target_type == ScalarType::Byte) rows.byte_labels = data<uint8_t>(targets);
  if (target_type == ScalarType::Double) rows.targets = data<double>(targets);
  if (target_type == ScalarType::Float) rows.float_targets = data<float>(targets);
  if (rows.targets || rows.float_targets) {
    check_dim("targets", targets, 2);
    check_size("targets", targets, 1, outputs);
  } else {
    check_dim("targets", targets, 1);
  }
  return rows;
}

// Throws unless a network's options that are whole numbers are some that it can have.
inline void check_step_options(const double* options) {
  constexpr double kFlag = 1, kWord = (int64_t{1} << 32) - 1, kCount = int64_t{1} << 62;
  const struct {
    StepOption option;
    const char* name;
    double least, most;
  } ranges[] = {
      {kBatchSize, "batch_size", 1, kCount},
      {kActivation, "activation", 0, double(Activation::kCount) - 1},
      {kLoss, "loss", 0, double(Loss::kCount) - 1},
      {kWeightMean, "weight_mean", 0, kFlag},
      {kOptimizer, "optimizer", 0, 2},
      {kStepNesterov, "nesterov", 0, kFlag},
      {kDecayBiases, "decay_biases", 0, kFlag},
      {kDecayPerRow, "decay_per_row", 0, kFlag},
      {kLrInMomentum, "lr_in_momentum", 0, kFlag},
      {kEpsilonHat, "epsilon_hat", 0, kFlag},
      {kDropoutThreshold, "dropout_threshold", 0, kWord},
      {kStepGradAverage, "grad_average", 0, kFlag},
      {kSeedLow, "seed_low", 0, kWord},
      {kSeedHigh, "seed_high", 0, kWord},
      {kEpoch, "epoch", 0, kWord},
      {kStartStep, "start_step", 0, kCount},
      {kMaxSteps, "max_steps", 0, kCount},
      {kEpochs, "epochs", 1, kCount},
  };
  for (const auto& range : ranges) {
    const double value = options[range.option];
    FASTMLP_CHECK(value >= range.least && value <= range.most && value == std::floor(value),
                  "the option " + range.name + " must be a whole number of at least " +
                      std::to_string(int64_t(range.least)) + " and at most " +
                      std::to_string(int64_t(range.most)));
  }
}

// Throws unless the loss takes targets of this kind, and each of these rows has one in range.
inline void check_rows(const RowData& data, bool takes_labels, const int64_t* rows, int64_t count,
                       int64_t outputs) {
  FASTMLP_CHECK(takes_labels == (data.labels || data.byte_labels),
                "targets must be labels for cross entropy, numbers for any other loss");
  FASTMLP_CHECK(takes_labels || !data.class_weight, "class_weight is for cross entropy alone");
  for (int64_t i = 0; i < count; ++i) {
    FASTMLP_CHECK(rows[i] >= 0 && rows[i] < data.rows, "an order must be of rows of x");
    if (takes_labels) check_label(data.label(rows[i]), outputs);
  }
}

// The sizes of the layers of a network from its weights and biases, checked.
inline std::vector<int64_t> sizes_of_network(const std::vector<Tensor>& parameters, size_t first,
                                             int64_t layers, int64_t features, ScalarType type) {
  check_layers(layers, parameters.size() - first);
  std::vector<int64_t> sizes{features};
  for (int64_t l = 0; l < layers; ++l) {
    const Tensor &w = parameters[first + 2 * l], &b = parameters[first + 2 * l + 1];
    check_plain("a weight", w, 2, type);
    check_plain("a bias", b, 1, type);
    check_size("a weight", w, 1, sizes.back());
    check_size("a bias", b, 0, w.size(0));
    FASTMLP_CHECK(w.size(0) > 0, "a layer must have at least one output");
    sizes.push_back(w.size(0));
  }
  return sizes;
}

}  // namespace fastmlp
