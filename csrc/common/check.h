// Argument checks: the second line behind Python's, each message naming the argument, what was
// wanted and what came.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

namespace fastmlp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text += (dim ? ", " : "") + std::to_string(tensor.size(dim));
  }
  return text + ")";
}

// Throws std::runtime_error(message) unless ok; the message is built only when it is needed.
#define FASTMLP_CHECK(ok, ...)                                          \
  do {                                                                  \
    if (!(ok)) throw std::runtime_error(std::string("") + __VA_ARGS__); \
  } while (false)

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline void check_floating(const char* name, const Tensor& tensor) {
  FASTMLP_CHECK(is_floating(tensor.scalar_type()),
                name + " must be float32, float64, bfloat16 or float16");
}

inline void check_same_dtype(const char* name, const Tensor& tensor, const char* other_name,
                             const Tensor& other) {
  FASTMLP_CHECK(tensor.scalar_type() == other.scalar_type(),
                name + " must have the dtype of " + other_name);
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim) {
  FASTMLP_CHECK(tensor.dim() == dim, name + " must have " + std::to_string(dim) +
                                         " dimensions, got shape " + shape_of(tensor));
}

inline void check_size(const char* name, const Tensor& tensor, int64_t dim, int64_t want) {
  FASTMLP_CHECK(tensor.size(dim) == want, name + " must have size " + std::to_string(want) +
                                              " in dimension " + std::to_string(dim) +
                                              ", got shape " + shape_of(tensor));
}

inline void check_same_shape(const char* name, const Tensor& tensor, const char* other_name,
                             const Tensor& other) {
  bool same = tensor.dim() == other.dim();
  for (int64_t dim = 0; same && dim < tensor.dim(); ++dim) {
    same = tensor.size(dim) == other.size(dim);
  }
  FASTMLP_CHECK(same, name + " must have the shape of " + other_name + " " + shape_of(other) +
                          ", got " + shape_of(tensor));
}

}  // namespace fastmlp
