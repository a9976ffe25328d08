// linear and linear_backward by ATen's matrix products, on any device.
#pragma once
#include <tuple>

#include "common/check_ops.h"
#include "common/tensor.h"

namespace fastmlp {

// ATen's linear, then our activation. (The BLAS's fused ReLU is not asked for: whether it keeps nan
// is not documented.)
inline Tensor linear_aten(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          int64_t activation) {
  const Tensor y = call_aten("aten::linear", "", x, weight, bias);
  if (activation == static_cast<int64_t>(Activation::kNone)) return y;
  return activation == static_cast<int64_t>(Activation::kRelu)
             ? call_aten("aten::relu_", "", y)
             : call_aten("fastmlp::activation", "", y, activation);
}

// (dx, dw, db), those that are not needed with shape (0,).
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

inline Gradients linear_backward_aten(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& saved, int64_t activation,
                                      bool need_dx, bool need_dw, bool need_db) {
  const Tensor through =
      saved ? call_aten("fastmlp::activation_backward", "", dy, *saved, activation) : dy;
  const Rows dy_rows = rows_of(through), x_rows = rows_of(x);
  const std::vector<int64_t> flat_dy{dy_rows.rows, dy_rows.columns};
  const std::vector<int64_t> flat_x{x_rows.rows, x_rows.columns};
  const Tensor g = torch::stable::reshape(dy_rows.tensor, flat_dy);
  const std::vector<int64_t> none{0};
  const auto empty = [&] { return torch::stable::new_empty(dy, none); };
  Tensor dx = need_dx ? call_aten("aten::mm", "", g, weight) : empty();
  if (need_dx) dx = torch::stable::reshape(dx, sizes_of(x));
  const Tensor dw = need_dw ? call_aten("aten::mm", "", torch::stable::transpose(g, 0, 1),
                                        torch::stable::reshape(x_rows.tensor, flat_x))
                            : empty();
  const std::array<int64_t, 1> rows{0};
  const auto over_rows = torch::headeronly::IntHeaderOnlyArrayRef(rows);
  return {dx, dw, need_db ? torch::stable::sum(g, over_rows) : empty()};
}

}  // namespace fastmlp
