// The argument checks of every operator, the same for all devices.
#pragma once
#include <optional>

#include "common/check.h"
#include "common/scalar_math.h"
#include "plan.h"

namespace fastmlp {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline void check_number(const char* name, int64_t number, int64_t count) {
  FASTMLP_CHECK(number >= 0 && number < count, name + " must be between 0 and " +
                                                   std::to_string(count - 1) + ", got " +
                                                   std::to_string(number));
}

// A size that a plan is asked about.
inline void check_planned(const char* name, int64_t size) {
  FASTMLP_CHECK(size >= 0 && size <= int64_t{1} << 40,
                name + " must be between 0 and 2^40, got " + std::to_string(size));
}

inline void check_activation(int64_t activation) {
  check_number("activation", activation, static_cast<int64_t>(Activation::kCount));
}

inline void check_matmul_precision(int64_t precision) {
  check_number("matmul_precision", precision, kMatmulPrecisionCount);
}

// `saved` is what an activation saved, of dy's shape.
inline void check_activation_backward(const Tensor& dy, const Tensor& saved, int64_t activation) {
  check_activation(activation);
  check_floating("dy", dy);
  check_same_dtype("saved", saved, "dy", dy);
  check_same_shape("saved", saved, "dy", dy);
  check_memory("dy", dy);
  check_memory("saved", saved);
}

inline void check_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_floating("x", x);
  check_same_dtype("weight", weight, "x", x);
  check_dim("weight", weight, 2);
  FASTMLP_CHECK(x.dim() >= 1, "x must have at least one dimension");
  check_size("x", x, x.dim() - 1, weight.size(1));
  if (bias) {
    check_same_dtype("bias", *bias, "x", x);
    check_dim("bias", *bias, 1);
    check_size("bias", *bias, 0, weight.size(0));
    check_memory("bias", *bias);
  }
  check_memory("x", x);
  check_memory("weight", weight);
}

inline void check_linear_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                  const std::optional<Tensor>& saved, int64_t activation) {
  check_floating("dy", dy);
  check_same_dtype("x", x, "dy", dy);
  check_same_dtype("weight", weight, "dy", dy);
  check_dim("weight", weight, 2);
  FASTMLP_CHECK(dy.dim() >= 1 && x.dim() == dy.dim(), "dy and x must have as many dimensions");
  check_size("dy", dy, dy.dim() - 1, weight.size(0));
  check_size("x", x, x.dim() - 1, weight.size(1));
  for (int64_t dim = 0; dim + 1 < x.dim(); ++dim) check_size("dy", dy, dim, x.size(dim));
  check_memory("dy", dy);
  check_memory("x", x);
  check_memory("weight", weight);
  FASTMLP_CHECK(saved.has_value() == (activation != static_cast<int64_t>(Activation::kNone)),
                "saved must be given where there is an activation, and only there");
  if (saved) check_activation_backward(dy, *saved, activation);
}

// The dtype of sums over logits.
inline ScalarType stats_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_cross_entropy(const Tensor& logits, const Tensor& target,
                                const std::optional<Tensor>& weight, int64_t reduction,
                                double label_smoothing) {
  check_floating("logits", logits);
  check_dim("logits", logits, 2);
  check_dim("target", target, 1);
  check_size("target", target, 0, logits.size(0));
  const ScalarType labels = target.scalar_type();
  FASTMLP_CHECK(labels == ScalarType::Long || labels == ScalarType::Byte,
                "target must be int64 or uint8");
  if (weight) {
    check_same_dtype("weight", *weight, "logits", logits);
    check_dim("weight", *weight, 1);
    check_size("weight", *weight, 0, logits.size(1));
    check_memory("weight", *weight);
  }
  check_memory("logits", logits);
  check_memory("target", target);
  FASTMLP_CHECK(reduction >= kNone && reduction <= kSum, "reduction must be 0, 1 or 2");
  FASTMLP_CHECK(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1]");
}

inline void check_cross_entropy_backward(const Tensor& dloss, const Tensor& logits,
                                         const Tensor& stats, const Tensor& total_weight,
                                         int64_t reduction) {
  check_same_dtype("dloss", dloss, "logits", logits);
  check_dim("dloss", dloss, reduction == kNone ? 1 : 0);
  if (reduction == kNone) check_size("dloss", dloss, 0, logits.size(0));
  check_dim("stats", stats, 2);
  check_given("total_weight", total_weight);
  const ScalarType type = stats_type(logits.scalar_type());
  FASTMLP_CHECK(stats.size(0) == logits.size(0) && stats.size(1) == 2 && stats.is_contiguous() &&
                    stats.scalar_type() == type && total_weight.numel() == 1 &&
                    total_weight.scalar_type() == type,
                "stats and total_weight must be those that cross_entropy returned");
  check_memory("dloss", dloss);
  check_memory("stats", stats);
  check_memory("total_weight", total_weight);
}

}  // namespace fastmlp
