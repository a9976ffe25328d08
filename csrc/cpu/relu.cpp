// relu and relu_backward on the CPU.
#define FASTMLP_KERNELS "relu_kernels.h"
#include "../check_ops.h"
#include "foreach_isa.h"
#include "tensor.h"

namespace fastmlp {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;
// Results larger than this do not stay in a cache until they are used.
constexpr size_t kStreamBytes = 16 << 20;

// A new dense tensor with x's strides where x is dense, as torch.empty_like has it.
Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_cpu(sizes_of(x), x.scalar_type()) : torch::stable::empty_like(x);
}

Tensor relu_cpu(const Tensor& x) {
  check_floating("x", x);
  Tensor y = new_like(x);
  const Tensor source = laid_out_as(y, x);
  dispatch_floating(x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(source.data_ptr());
    T* to = static_cast<T*>(y.data_ptr());
    torch::stable::parallel_for(0, y.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      const auto range = y.numel() * sizeof(T) > kStreamBytes
                             ? FASTMLP_BEST_ISA(relu_range<true, T>)
                             : FASTMLP_BEST_ISA(relu_range<false, T>);
      range(from + begin, to + begin, end - begin);
    });
  });
  return y;
}

Tensor relu_backward_cpu(const Tensor& dy, const Tensor& y) {
  check_relu_backward(dy, y);
  Tensor dx = new_like(y);
  const Tensor upstream = laid_out_as(dx, dy);
  const Tensor output = laid_out_as(dx, y);
  dispatch_floating(dy.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* g = static_cast<const T*>(upstream.data_ptr());
    const T* out = static_cast<const T*>(output.data_ptr());
    T* to = static_cast<T*>(dx.data_ptr());
    torch::stable::parallel_for(0, dx.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      const auto range = dx.numel() * sizeof(T) > kStreamBytes
                             ? FASTMLP_BEST_ISA(relu_backward_range<true, T>)
                             : FASTMLP_BEST_ISA(relu_backward_range<false, T>);
      range(g + begin, out + begin, to + begin, end - begin);
    });
  });
  return dx;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("relu", TORCH_BOX(&fastmlp::relu_cpu));
  m.impl("relu_backward", TORCH_BOX(&fastmlp::relu_backward_cpu));
}
