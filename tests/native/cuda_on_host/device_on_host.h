// csrc/cuda/device.h for the host: CPU tensors, no stream, and new tensors that are poisoned with
// nan and stand between guard bands.
#pragma once
#include "common/tensor.h"
#include "cuda/launch.h"

#ifdef FASTMLP_RACES
#define FASTMLP_LIBRARY fastmlp_on_host_races
#else
#define FASTMLP_LIBRARY fastmlp_on_host
#endif
#define FASTMLP_KEY CPU

namespace fastmlp {

struct Launch {
  cudaStream_t stream = nullptr;
  explicit Launch(const Tensor&) {}
};

// cuda_on_host.cpp
Tensor empty_between_bands(const std::vector<int64_t>& sizes, ScalarType type);

inline Tensor empty_beside(const Tensor&, const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_between_bands(sizes, type);
}

inline void check_device(const char*, const Tensor&, const Tensor&) {}

}  // namespace fastmlp
