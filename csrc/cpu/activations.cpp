// relu and relu_backward on the CPU.
#define FASTMLP_KERNELS "cpu/activations_kernels.h"
#include "cpu/activations.h"

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

// Calls f(first element, first byte of the mask, elements) for parts of rows that have the mask's
// bytes to themselves; where the rows are whole bytes they are taken as one.
template <typename F>
void for_each_part(int64_t rows, int64_t columns, const F& f) {
  constexpr int64_t kUnit = 64;  // elements that keep every dtype aligned for streaming
  if (columns % 8 == 0 || rows == 1) {
    const int64_t count = rows * columns, units = (count + kUnit - 1) / kUnit;
    torch::stable::parallel_for(0, units, kElementsPerThread / kUnit,
                                [&](int64_t begin, int64_t end) {
                                  const int64_t first = begin * kUnit;
                                  f(first, first / 8, std::min(end * kUnit, count) - first);
                                });
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(columns, 1));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      f(row * columns, row * mask_bytes(columns), columns);
  });
}

bool streams(const Tensor& x, size_t element) {
  return columns_in(x) % 8 == 0 && x.numel() * element > kStreamBytes;
}

// y = max(x, 0), both contiguous, y may be x; returns y's mask.
Tensor relu_with_mask_into(const Tensor& y, const Tensor& x) {
  const int64_t columns = columns_in(x);
  const Tensor mask = empty_cpu(mask_sizes(sizes_of(x)), ScalarType::Byte);
  auto* bytes = static_cast<uint8_t*>(mask.data_ptr());
  dispatch_floating(x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(x.data_ptr());
    T* to = static_cast<T*>(y.data_ptr());
    const auto range = from != to && streams(x, sizeof(T))
                           ? FASTMLP_BEST_ISA(relu_mask_range<true, T>)
                           : FASTMLP_BEST_ISA(relu_mask_range<false, T>);
    for_each_part(rows_in(x), columns, [&](int64_t first, int64_t byte, int64_t count) {
      range(from + first, to + first, bytes + byte, count);
    });
  });
  return mask;
}

std::tuple<Tensor, Tensor> relu_with_mask_cpu(const Tensor& x) {
  check_floating("x", x);
  const Tensor y = empty_cpu(sizes_of(x), x.scalar_type());
  return {y, relu_with_mask_into(y, torch::stable::contiguous(x))};
}

Tensor relu_backward_by_mask(const Tensor& dy, const Tensor& mask) {
  const Tensor dx = empty_cpu(sizes_of(dy), dy.scalar_type());
  const Tensor upstream = torch::stable::contiguous(dy), bits = torch::stable::contiguous(mask);
  const auto* bytes = static_cast<const uint8_t*>(bits.data_ptr());
  dispatch_floating(dy.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* g = static_cast<const T*>(upstream.data_ptr());
    T* to = static_cast<T*>(dx.data_ptr());
    const auto range = streams(dx, sizeof(T))
                           ? FASTMLP_BEST_ISA(relu_mask_backward_range<true, T>)
                           : FASTMLP_BEST_ISA(relu_mask_backward_range<false, T>);
    for_each_part(rows_in(dx), columns_in(dx), [&](int64_t first, int64_t byte, int64_t count) {
      range(g + first, bytes + byte, to + first, count);
    });
  });
  return dx;
}

Tensor relu_backward_cpu(const Tensor& dy, const Tensor& y) {
  check_relu_backward(dy, y);
  if (y.scalar_type() == ScalarType::Byte) return relu_backward_by_mask(dy, y);
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

std::tuple<Tensor, Tensor> relu_with_mask_cpu_(const Tensor& y) {
  return {y, relu_with_mask_into(y, y)};
}

}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("relu", TORCH_BOX(&fastmlp::relu_cpu));
  m.impl("relu_with_mask", TORCH_BOX(&fastmlp::relu_with_mask_cpu));
  m.impl("relu_backward", TORCH_BOX(&fastmlp::relu_backward_cpu));
}
