// The operators of layers on the CPU, for those that consist of them.
#pragma once
#include <optional>

#include "common/linear_aten.h"

namespace fastmlp {

Tensor activation_cpu(const Tensor& x, int64_t activation);

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t matmul_precision);

Gradients linear_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                              const std::optional<Tensor>& saved, int64_t activation, bool need_dx,
                              bool need_dw, bool need_db, int64_t matmul_precision);

}  // namespace fastmlp
