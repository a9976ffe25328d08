// activation and activation_backward on the CPU.
#define FASTMLP_KERNELS "cpu/activations_kernels.h"
#include "common/check_ops.h"
#include "common/tensor.h"
#include "cpu/operators.h"
#include "cpu/simd/foreach_isa.h"

namespace fastmlp {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;
// Results larger than this do not stay in a cache until they are used.
constexpr size_t kStreamBytes = 16 << 20;

// A new dense tensor with x's strides where x is dense, as torch.empty_like has it.
Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_cpu(sizes_of(x), x.scalar_type()) : empty_as(x);
}

// f(begin, end, activation, T*) for ranges of `count` elements, the latter two as types.
template <typename F>
void for_ranges(int64_t count, int64_t activation, ScalarType type, const F& f) {
  dispatch_activation(static_cast<Activation>(activation), [&](auto constant) {
    dispatch_floating(type, [&](auto* tag) {
      torch::stable::parallel_for(0, count, kElementsPerThread, [&](int64_t begin, int64_t end) {
        f(begin, end, constant, tag);
      });
    });
  });
}

}  // namespace

Tensor activation_cpu(const Tensor& x, int64_t activation) {
  check_floating("x", x);
  check_memory("x", x);
  check_activation(activation);
  const Tensor y = new_like(x);
  const Tensor source = laid_out_as(y, x);
  const auto range = [&](int64_t begin, int64_t end, auto constant, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr Activation kActivation = decltype(constant)::value;
    const auto run = y.numel() * sizeof(T) > kStreamBytes
                         ? FASTMLP_BEST_ISA(activation_range<kActivation, true, T>)
                         : FASTMLP_BEST_ISA(activation_range<kActivation, false, T>);
    run(static_cast<const T*>(source.data_ptr()) + begin, static_cast<T*>(y.data_ptr()) + begin,
        end - begin);
  };
  for_ranges(y.numel(), activation, x.scalar_type(), range);
  return y;
}

namespace {

Tensor activation_backward_cpu(const Tensor& dy, const Tensor& saved, int64_t activation) {
  check_activation_backward(dy, saved, activation);
  const Tensor dx = new_like(saved);
  const Tensor upstream = laid_out_as(dx, dy), kept = laid_out_as(dx, saved);
  const auto range = [&](int64_t begin, int64_t end, auto constant, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr Activation kActivation = decltype(constant)::value;
    const auto run = dx.numel() * sizeof(T) > kStreamBytes
                         ? FASTMLP_BEST_ISA(activation_backward_range<kActivation, true, T>)
                         : FASTMLP_BEST_ISA(activation_backward_range<kActivation, false, T>);
    run(static_cast<const T*>(upstream.data_ptr()) + begin,
        static_cast<const T*>(kept.data_ptr()) + begin, static_cast<T*>(dx.data_ptr()) + begin,
        end - begin);
  };
  for_ranges(dx.numel(), activation, dy.scalar_type(), range);
  return dx;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("activation", TORCH_BOX(&fastmlp::activation_cpu));
  m.impl("activation_backward", TORCH_BOX(&fastmlp::activation_backward_cpu));
}
