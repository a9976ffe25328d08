// activation and activation_backward on the CPU.
#define FASTMLP_KERNELS "cpu/activations_kernels.h"
#include "common/check_ops.h"
#include "common/tensor.h"
#include "cpu/simd/foreach_isa.h"

namespace fastmlp {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;
// Results larger than this do not stay in a cache until they are used.
constexpr size_t kStreamBytes = 16 << 20;

// A new dense tensor with x's strides where x is dense, as torch.empty_like has it.
Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_cpu(sizes_of(x), x.scalar_type()) : torch::stable::empty_like(x);
}

// f(activation, T*) with both as types.
template <typename F>
void dispatch(int64_t activation, ScalarType type, const F& f) {
  dispatch_activation(static_cast<Activation>(activation), [&](auto constant) {
    dispatch_floating(type, [&](auto* tag) { f(constant, tag); });
  });
}

Tensor activation_cpu(const Tensor& x, int64_t activation) {
  check_floating("x", x);
  check_activation(activation);
  const Tensor y = new_like(x);
  const Tensor source = laid_out_as(y, x);
  dispatch(activation, x.scalar_type(), [&](auto constant, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr Activation kActivation = decltype(constant)::value;
    const T* from = static_cast<const T*>(source.data_ptr());
    T* to = static_cast<T*>(y.data_ptr());
    const auto range = y.numel() * sizeof(T) > kStreamBytes
                           ? FASTMLP_BEST_ISA(activation_range<kActivation, true, T>)
                           : FASTMLP_BEST_ISA(activation_range<kActivation, false, T>);
    torch::stable::parallel_for(0, y.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      range(from + begin, to + begin, end - begin);
    });
  });
  return y;
}

Tensor activation_backward_cpu(const Tensor& dy, const Tensor& saved, int64_t activation) {
  check_activation_backward(dy, saved, activation);
  const Tensor dx = new_like(saved);
  const Tensor upstream = laid_out_as(dx, dy), kept = laid_out_as(dx, saved);
  dispatch(activation, dy.scalar_type(), [&](auto constant, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr Activation kActivation = decltype(constant)::value;
    const T* g = static_cast<const T*>(upstream.data_ptr());
    const T* from = static_cast<const T*>(kept.data_ptr());
    T* to = static_cast<T*>(dx.data_ptr());
    const auto range = dx.numel() * sizeof(T) > kStreamBytes
                           ? FASTMLP_BEST_ISA(activation_backward_range<kActivation, true, T>)
                           : FASTMLP_BEST_ISA(activation_backward_range<kActivation, false, T>);
    torch::stable::parallel_for(0, dx.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      range(g + begin, from + begin, to + begin, end - begin);
    });
  });
  return dx;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("activation", TORCH_BOX(&fastmlp::activation_cpu));
  m.impl("activation_backward", TORCH_BOX(&fastmlp::activation_backward_cpu));
}
