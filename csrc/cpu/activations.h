// What linear's operator needs of relu's.
#pragma once
#include <tuple>

#include "common/tensor.h"

namespace fastmlp {

// y (contiguous), which becomes max(y, 0), and its mask.
std::tuple<Tensor, Tensor> relu_with_mask_cpu_(const Tensor& y);

}  // namespace fastmlp
