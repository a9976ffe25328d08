// What happens to the rows of a batch between the products: inputs are read, activations and
// dropout applied, forward and backward. Included by foreach_isa.h.

#define FASTMLP_MATH FASTMLP_INLINE
#include "common/philox.h"
#undef FASTMLP_MATH

// One row of inputs, x * scale + shift where these are not null, computed in W.
template <typename T, typename X, typename W>
void read_row(const void* from, const void* scale, const void* shift, int64_t features, T* to) {
  const X* x = static_cast<const X*>(from);
  const W* times = static_cast<const W*>(scale);
  const W* plus = static_cast<const W*>(shift);
  if (times && plus) {
    for (int64_t i = 0; i < features; ++i) to[i] = (T)((W)x[i] * times[i] + plus[i]);
  } else if (times) {
    for (int64_t i = 0; i < features; ++i) to[i] = (T)((W)x[i] * times[i]);
  } else if (plus) {
    for (int64_t i = 0; i < features; ++i) to[i] = (T)((W)x[i] + plus[i]);
  } else {
    for (int64_t i = 0; i < features; ++i) to[i] = (T)x[i];
  }
}

// factors (units) of a row: 0 where a random number is below the threshold, else `kept`.
template <typename T>
void dropout_row(uint64_t seed, uint32_t row, uint32_t step, uint32_t place, uint32_t threshold,
                 T kept, int64_t units, T* factors) {
  constexpr int kCount = FASTMLP_VECTOR_BYTES / 4;
  for (int64_t first = 0; first < units; first += 4 * kCount) {
    uint32_t words[4][kCount];
    for (int i = 0; i < kCount; ++i) {
      words[0][i] = static_cast<uint32_t>(first / 4 + i);
      words[1][i] = row;
      words[2][i] = step;
      words[3][i] = place;
    }
    philox<kCount>(words, seed);
    const int64_t left = units - first < 4 * kCount ? units - first : 4 * kCount;
    for (int64_t i = 0; i < left; ++i) {
      factors[first + i] = words[i % 4][i / 4] < threshold ? T(0) : kept;
    }
  }
}

template <Activation kActivation, typename T>
FASTMLP_INLINE void activate_row(T* saved, const T* factors, int64_t units, T* h) {
  for (int64_t i = 0; i < units; i += kLanes<T>) {
    const vec<T> y = ActivationRow<kActivation>::forward(load(saved + i));
    if (!saves_input(kActivation)) store(saved + i, y);
    if (h != saved || factors) store(h + i, factors ? y * load(factors + i) : y);
  }
}

// h = act(saved) * factors of `rows` rows, and a one beside them for the next layer's bias. saved
// holds the inputs, and becomes what the derivative is computed from; it may be h. factors may be
// null. All are (rows, stride), stride a multiple of any vector.
template <Activation kActivation, typename T>
FASTMLP_INLINE void activate_each(T* saved, const T* factors, int64_t rows, int64_t units,
                                  int64_t stride, T* h) {
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t at = m * stride;
    activate_row<kActivation>(saved + at, factors ? factors + at : nullptr, units, h + at);
    h[at + units] = 1;
  }
}

// dz <- act'(dz * factors) of `rows` rows.
template <Activation kActivation, typename T>
FASTMLP_INLINE void gradient_each(const T* saved, const T* factors, int64_t rows, int64_t units,
                                  int64_t stride, T* dz) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t i = m * stride; i < m * stride + units; i += kLanes<T>) {
      const vec<T> dy = factors ? load(dz + i) * load(factors + i) : load(dz + i);
      store(dz + i, ActivationRow<kActivation>::backward(dy, load(saved + i)));
    }
  }
}

template <int kFirst = 0, typename T>
void activate_rows(Activation activation, T* saved, const T* factors, int64_t rows, int64_t units,
                   int64_t stride, T* h) {
  if constexpr (Activation{kFirst + 1} != Activation::kCount) {
    if (activation != Activation{kFirst}) {
      return activate_rows<kFirst + 1>(activation, saved, factors, rows, units, stride, h);
    }
  }
  activate_each<Activation{kFirst}>(saved, factors, rows, units, stride, h);
}

template <int kFirst = 0, typename T>
void activation_gradient_rows(Activation activation, const T* saved, const T* factors, int64_t rows,
                              int64_t units, int64_t stride, T* dz) {
  if constexpr (Activation{kFirst + 1} != Activation::kCount) {
    if (activation != Activation{kFirst}) {
      return activation_gradient_rows<kFirst + 1>(activation, saved, factors, rows, units, stride,
                                                  dz);
    }
  }
  gradient_each<Activation{kFirst}>(saved, factors, rows, units, stride, dz);
}
