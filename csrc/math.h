// Scalar definitions that every kernel, whatever it runs on, has to agree with.
#pragma once

#ifdef __CUDACC__
#define FASTMLP_HD __host__ __device__
#else
#define FASTMLP_HD
#endif

namespace fastmlp {

// relu(nan) = nan and relu(-0.) = -0., as PyTorch has it.
template <typename T>
FASTMLP_HD inline T relu(T x) {
  return x < T(0) ? T(0) : x;
}

// d relu / dx times dy, from relu's output or its input: 0 at y <= 0; a nan y passes the gradient.
template <typename T>
FASTMLP_HD inline T relu_backward(T dy, T y) {
  return y <= T(0) ? T(0) : dy;
}

}  // namespace fastmlp
