// Networks and images, given to an operator as lists of tensors, checked and as plain pointers.
#pragma once
#include "common/blocked_sgd.h"
#include "common/tensor.h"

namespace fastmlp {

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline const char* name_of_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    default:
      return "int64";
  }
}

inline void check_plain(const char* name, const Tensor& tensor, int64_t dim, ScalarType type) {
  check_dim(name, tensor, dim);
  FASTMLP_CHECK(tensor.is_contiguous(), name + " must be contiguous");
  FASTMLP_CHECK(tensor.scalar_type() == type,
                name + " has the wrong dtype: it must be " + name_of_dtype(type));
  check_memory(name, tensor);
}

inline std::vector<const Tensor*> pointers_to(
    std::initializer_list<const std::vector<Tensor>*> lists) {
  std::vector<const Tensor*> pointers;
  for (const auto* list : lists) {
    for (const Tensor& tensor : *list) pointers.push_back(&tensor);
  }
  return pointers;
}

template <typename F>
void dispatch_network(ScalarType type, const F& f) {
  if (type == ScalarType::Float) return f(static_cast<float*>(nullptr));
  if (type == ScalarType::Double) return f(static_cast<double*>(nullptr));
  throw std::runtime_error("the network must be float32 or float64");
}

// uint8 images (n, features), their labels (n) and how a pixel becomes an input.
inline void check_images(const Tensor& images, const Tensor& labels, const Tensor& scale,
                         const Tensor& shift) {
  check_plain("images", images, 2, ScalarType::Byte);
  check_plain("labels", labels, 1, ScalarType::Long);
  check_size("labels", labels, 0, images.size(0));
  for (const Tensor* affine : {&scale, &shift}) {
    check_plain("scale and shift", *affine, 1, ScalarType::Float);
    check_size("scale and shift", *affine, 0, images.size(1));
  }
}

inline ScalarType type_of(const std::vector<Tensor>& parameters) {
  FASTMLP_CHECK(!parameters.empty(), "there must be at least one network");
  check_given("a weight", parameters[0]);
  return parameters[0].scalar_type();
}

// Throws unless a network's layers have their tensors among those `left` in a list.
inline void check_layers(int64_t layers, size_t left) {
  FASTMLP_CHECK(layers > 0 && static_cast<size_t>(layers) <= left / 2,
                "parameters must hold a weight and a bias for each layer");
}

// The layers of the networks, `counts` of them each, from a weight and a bias for each layer.
template <typename T>
std::vector<std::vector<Layer<T>>> layers_of(const std::vector<int64_t>& counts,
                                             const std::vector<Tensor>& parameters,
                                             int64_t features, ScalarType type) {
  std::vector<std::vector<Layer<T>>> networks;
  size_t next = 0;
  for (int64_t count : counts) {
    check_layers(count, parameters.size() - next);
    networks.emplace_back();
    int64_t inputs = features;
    for (int64_t l = 0; l < count; ++l) {
      const Tensor &w = parameters[next++], &b = parameters[next++];
      check_plain("a weight", w, 2, type);
      check_plain("a bias", b, 1, type);
      check_size("a weight", w, 1, inputs);
      check_size("a bias", b, 0, w.size(0));
      FASTMLP_CHECK(w.size(0) > 0, "a layer must have at least one output");
      networks.back().push_back({inputs, w.size(0), data<T>(w), data<T>(b), nullptr, nullptr});
      inputs = w.size(0);
    }
  }
  FASTMLP_CHECK(next == parameters.size(),
                "parameters must hold a weight and a bias for each layer, and nothing else");
  return networks;
}

// Throws unless shape is (planes, height, width) of images with so many features, and unless moves
// (n, 3) int8 are flip_shift's for images of this shape; in flip_shift.cpp.
void check_image_shape(const std::vector<int64_t>& shape, int64_t features);
void check_moves(const Tensor& moves, const std::vector<int64_t>& shape);

inline void check_label(int64_t label, int64_t classes) {
  FASTMLP_CHECK(label >= 0 && label < classes,
                "Target " + std::to_string(label) + " is out of bounds");
}

}  // namespace fastmlp
