// What operators need of tensors: rows of matrices, new tensors, typed dispatch, ATen by name.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <vector>

#include "common/check.h"
#include "common/scalar_math.h"

namespace fastmlp {

// Calls f with a null pointer of the storage type that belongs to a floating-point dtype.
template <typename F>
void dispatch_floating(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<bf16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<f16*>(nullptr));
    default:
      throw std::runtime_error("dtype must be float32, float64, bfloat16 or float16");
  }
}

// The number that the C interface knows a dtype by.
inline int32_t shim_type(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

// A new contiguous tensor, uninitialised; straight to the allocator, which for small tensors is
// several times quicker than going through the dispatcher by name.
inline Tensor empty_on(int32_t device_type, int32_t device_index, const std::vector<int64_t>& sizes,
                       ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = step;
    FASTMLP_CHECK(!__builtin_mul_overflow(step, std::max<int64_t>(sizes[dim], 1), &step),
                  "the result would have more numbers than fit into any memory");
  }
  AtenTensorHandle handle = nullptr;
  const auto code =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               shim_type(type), device_type, device_index, &handle);
  FASTMLP_CHECK(code == 0,
                "there is no memory for a result of " + std::to_string(step) + " numbers");
  return Tensor(handle);
}

inline Tensor empty_cpu(const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_on(aoti_torch_device_type_cpu(), 0, sizes, type);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes(tensor.dim());
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) sizes[dim] = tensor.size(dim);
  return sizes;
}

// The rows of a tensor's last dimension; a scalar is one.
inline int64_t rows_in(const Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) rows *= tensor.size(dim);
  return rows;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t dim = 0; dim < a.dim(); ++dim) {
    if (a.size(dim) > 1 && a.stride(dim) != b.stride(dim)) return false;
  }
  return true;
}

// A new tensor as torch.empty_like has it: dense, with x's strides where x is dense.
inline Tensor empty_as(const Tensor& x) {
  try {
    return torch::stable::empty_like(x);
  } catch (const std::exception&) {  // which does not say what there was too little of
    throw std::runtime_error("there is no memory for a result of shape " + shape_of(x));
  }
}

// `tensor`, or a copy of it, with the elements in the order in which those of `like`, which is
// dense, lie in memory.
inline Tensor laid_out_as(const Tensor& like, const Tensor& tensor) {
  if (same_strides(like, tensor)) return tensor;
  Tensor copy = empty_as(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// A tensor seen as rows of its last dimension: elements of a row are neighbours, rows are `stride`
// apart. `tensor` keeps the memory alive (it is a copy where the layout asked for one).
struct Rows {
  Tensor tensor;
  int64_t rows;
  int64_t columns;
  int64_t stride;

  template <typename T>
  const T* data() const {
    return static_cast<const T*>(tensor.data_ptr());
  }
};

inline Rows rows_of(const Tensor& tensor) {
  const int64_t dim = tensor.dim();
  const int64_t columns = tensor.size(dim - 1);
  if (dim == 2 && (tensor.stride(1) == 1 || columns == 1)) {
    return {tensor, tensor.size(0), columns, tensor.stride(0)};
  }
  return {tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor), rows_in(tensor),
          columns, columns};
}

// The one tensor that an ATen operator, called by name, returns.
template <typename... Args>
Tensor call_aten(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace fastmlp
