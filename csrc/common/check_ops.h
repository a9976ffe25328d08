// The argument checks of every operator, the same for all devices.
#pragma once
#include <algorithm>
#include <optional>

#include "common/check.h"
#include "common/scalar_math.h"
#include "plan.h"

namespace fastmlp {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// y is an output of dy's shape, or the mask of one.
inline void check_output(const Tensor& y, const Tensor& dy) {
  if (y.scalar_type() != ScalarType::Byte) {
    check_same_dtype("y", y, "dy", dy);
    check_same_shape("y", y, "dy", dy);
    return;
  }
  const int64_t last = dy.dim() - 1;
  const bool fits = y.dim() == std::max<int64_t>(dy.dim(), 1);
  FASTMLP_CHECK(fits, "the mask of y must have the dimensions of dy, got shape " + shape_of(y));
  for (int64_t dim = 0; dim < last; ++dim) check_size("the mask of y", y, dim, dy.size(dim));
  check_size("the mask of y", y, y.dim() - 1, mask_bytes(last < 0 ? 1 : dy.size(last)));
}

inline void check_relu_backward(const Tensor& dy, const Tensor& y) {
  check_floating("dy", dy);
  check_output(y, dy);
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
  }
}

inline void check_linear_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                  const std::optional<Tensor>& y) {
  check_floating("dy", dy);
  check_same_dtype("x", x, "dy", dy);
  check_same_dtype("weight", weight, "dy", dy);
  check_dim("weight", weight, 2);
  FASTMLP_CHECK(dy.dim() >= 1 && x.dim() == dy.dim(), "dy and x must have as many dimensions");
  check_size("dy", dy, dy.dim() - 1, weight.size(0));
  check_size("x", x, x.dim() - 1, weight.size(1));
  for (int64_t dim = 0; dim + 1 < x.dim(); ++dim) check_size("dy", dy, dim, x.size(dim));
  if (y) check_output(*y, dy);
}

inline void check_float32(int64_t float32) {
  FASTMLP_CHECK(float32 >= 0 && float32 < kMatmulPrecisionCount,
                "matmul_precision must be between 0 and 4, got " + std::to_string(float32));
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
  }
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
  const ScalarType type = stats_type(logits.scalar_type());
  FASTMLP_CHECK(stats.size(0) == logits.size(0) && stats.size(1) == 2 && stats.is_contiguous() &&
                    stats.scalar_type() == type && total_weight.numel() == 1 &&
                    total_weight.scalar_type() == type,
                "stats and total_weight must be those that cross_entropy returned");
}

}  // namespace fastmlp
