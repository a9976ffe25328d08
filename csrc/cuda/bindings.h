// What the files that bind CUDA operators share.
#pragma once
#include "common/check_ops.h"
#include "cuda/device.h"

namespace fastmlp {

inline Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      return Type::kHalf;
  }
}

inline void check_launch(const char* name, cudaError_t error) {
  FASTMLP_CHECK(error == cudaSuccess,
                "fastmlp::" + name + " could not run: " + cudaGetErrorString(error));
}

// The present device, for the operator of that name.
inline Gpu gpu_of(const char* name) {
  Gpu gpu{};
  check_launch(name, describe_device(&gpu));
  return gpu;
}

}  // namespace fastmlp
