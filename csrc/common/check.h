// Argument checks: the second line behind Python's, each message naming the argument, what was
// wanted and what came.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

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

// Throws unless all of a tensor lies in its storage, which may have been freed or cut since, and
// its sizes are some that can be worked through: 2^47 is what a process has addresses for.
inline void check_memory(const char* name, const Tensor& tensor) {
  constexpr int64_t kMost = int64_t{1} << 47;
  const int64_t numel = tensor.numel();
  int64_t last = 0;  // element, counted from the first
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    const int64_t size = tensor.size(dim);
    FASTMLP_CHECK(size < kMost && numel < kMost, name + " is too large: " + shape_of(tensor));
    if (numel > 0) last += (size - 1) * tensor.stride(dim);
  }
  if (numel == 0) return;
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  const int64_t size = tensor.element_size(), end = (tensor.storage_offset() + last + 1) * size;
  FASTMLP_CHECK(end <= bytes, name + " has lost its memory: it needs a storage of " +
                                  std::to_string(end) + " bytes, got one of " +
                                  std::to_string(bytes));
}

// Throws where a tensor that is written shares memory with another one that is written or read. All
// of them are contiguous.
inline void check_apart(const std::vector<const Tensor*>& written,
                        const std::vector<const Tensor*>& read) {
  struct Span {
    const char *begin, *end;
    bool written;
  };
  std::vector<Span> spans;
  for (const auto* tensors : {&written, &read}) {
    for (const Tensor* tensor : *tensors) {
      const auto* begin = static_cast<const char*>(tensor->data_ptr());
      const int64_t bytes = tensor->numel() * tensor->element_size();
      if (bytes > 0) spans.push_back({begin, begin + bytes, tensors == &written});
    }
  }
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const char *all_end = nullptr, *written_end = nullptr;
  for (const Span& span : spans) {
    FASTMLP_CHECK(span.begin >= (span.written ? all_end : written_end),
                  "tensors that are written must not share memory with any other argument");
    all_end = std::max(all_end, span.end);
    if (span.written) written_end = span.end;
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Python's None is an undefined tensor, even where the schema has no "?".
inline void check_given(const char* name, const Tensor& tensor) {
  FASTMLP_CHECK(tensor.defined(), name + " must be a tensor, got None");
}

inline void check_floating(const char* name, const Tensor& tensor) {
  check_given(name, tensor);
  FASTMLP_CHECK(is_floating(tensor.scalar_type()),
                name + " must be float32, float64, bfloat16 or float16");
}

inline void check_same_dtype(const char* name, const Tensor& tensor, const char* other_name,
                             const Tensor& other) {
  check_given(name, tensor);
  FASTMLP_CHECK(tensor.scalar_type() == other.scalar_type(),
                name + " must have the dtype of " + other_name);
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim) {
  check_given(name, tensor);
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
