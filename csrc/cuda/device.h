// Where CUDA operators run: the one launch helper, and new tensors.
#pragma once
#ifdef FASTMLP_ON_HOST
#include "device_on_host.h"  // the tests' own: the same operators on emulated kernels
#else
#include <torch/csrc/stable/accelerator.h>

#include "common/tensor.h"
#include "cuda/launch.h"

// The library and dispatch key that bindings.cpp registers for.
#define FASTMLP_LIBRARY fastmlp
#define FASTMLP_KEY CUDA

namespace fastmlp {

// While it lives, `tensor`'s device is the present one; `stream` is that device's present stream.
struct Launch {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;

  explicit Launch(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

// A new contiguous tensor on like's device, uninitialised.
inline Tensor empty_beside(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_on(aoti_torch_device_type_cuda(), like.get_device_index(), sizes, type);
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& other) {
  FASTMLP_CHECK(tensor.is_cuda() && tensor.get_device_index() == other.get_device_index(),
                name + " must be on the GPU of the other tensors");
}

}  // namespace fastmlp
#endif
