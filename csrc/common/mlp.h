// mlp and mlp_backward: a device's linear layers one after the other, in one call from Python.
#pragma once
#include <optional>
#include <vector>

#include "common/linear_aten.h"

namespace fastmlp {

// Checks the lists and returns how many parameters each layer has.
inline size_t check_mlp(const std::vector<Tensor>& parameters,
                        const std::vector<int64_t>& activations, bool bias) {
  const size_t each = bias ? 2 : 1, layers = activations.size();
  FASTMLP_CHECK(layers > 0 && parameters.size() == layers * each,
                "parameters must be " + std::to_string(each) + " for each of one or more " +
                    "activations, got " + std::to_string(parameters.size()) + " for " +
                    std::to_string(layers));
  for (const int64_t activation : activations) check_activation(activation);
  return each;
}

inline std::optional<Tensor> bias_of(const std::vector<Tensor>& parameters, size_t layer,
                                     bool bias) {
  if (!bias) return std::nullopt;
  return parameters[2 * layer + 1];
}

template <auto kLinear, auto kActivation>
std::vector<Tensor> mlp(const Tensor& x, const std::vector<Tensor>& parameters,
                        const std::vector<int64_t>& activations, bool bias, bool keep,
                        int64_t matmul_precision) {
  const size_t each = check_mlp(parameters, activations, bias);
  std::vector<Tensor> kept;
  Tensor y = x;
  for (size_t i = 0; i < activations.size(); ++i) {
    const bool apart = keep && saves_input(static_cast<Activation>(activations[i]));
    y = kLinear(y, parameters[i * each], bias_of(parameters, i, bias),
                apart ? static_cast<int64_t>(Activation::kNone) : activations[i], matmul_precision);
    if (apart) {
      kept.push_back(y);
      y = kActivation(y, activations[i]);
    }
    if (keep || i + 1 == activations.size()) kept.push_back(y);
  }
  return kept;
}

template <auto kLinearBackward>
std::vector<Tensor> mlp_backward(const Tensor& dy, const Tensor& x, const std::vector<Tensor>& kept,
                                 const std::vector<Tensor>& parameters,
                                 const std::vector<int64_t>& activations, bool bias, bool need_dx,
                                 int64_t matmul_precision) {
  const size_t each = check_mlp(parameters, activations, bias);
  constexpr auto kNone = static_cast<int64_t>(Activation::kNone);
  std::vector<const Tensor*> inputs{&x};
  std::vector<std::optional<Tensor>> saved;
  size_t at = 0;
  const auto check_kept = [&](bool fits) {
    FASTMLP_CHECK(fits, "kept must be what mlp kept of these layers, got " +
                            std::to_string(kept.size()) + " tensors");
  };
  const auto next = [&] {
    check_kept(at < kept.size());
    return &kept[at++];
  };
  for (size_t i = 0; i < activations.size(); ++i) {
    const bool last = i + 1 == activations.size(), none = activations[i] == kNone;
    const bool from_input = saves_input(static_cast<Activation>(activations[i]));
    const Tensor* before = from_input ? next() : nullptr;
    const Tensor* output = last && (none || from_input) ? nullptr : next();
    if (!last) inputs.push_back(output);
    saved.push_back(none ? std::nullopt : std::optional<Tensor>(before ? *before : *output));
  }
  check_kept(at == kept.size());
  std::vector<Tensor> gradients(1 + parameters.size(), dy);  // dy is that of the last layer
  for (size_t i = activations.size(); i-- > 0;) {
    auto [dx, dw, db] =
        kLinearBackward(gradients[0], *inputs[i], parameters[i * each], saved[i], activations[i],
                        i > 0 || need_dx, true, bias, matmul_precision);
    gradients[0] = dx;
    gradients[1 + i * each] = dw;
    if (bias) gradients[2 + i * each] = db;
  }
  return gradients;
}

}  // namespace fastmlp
