// The activations, a row each: forward(x), and backward(dy, saved), the gradient from what is kept
// of the forward pass: y, the output, where that is enough, else x, the input. What PyTorch does
// with nan, inf and -0. holds here too.
//
// Included without a guard inside each namespace that computes: by common/scalar_math.h for
// scalars, by cpu/simd/simd.h for the vectors of each instruction set. V is float, double or a
// vector of either; the namespace has constant, exp_of (of x <= 0), tanh_of, erf_of and magnitude
// for it. fastmlp/ops/activations.py is the other half of the table, in the same order.

#ifndef FASTMLP_ACTIVATION_NAMES
#define FASTMLP_ACTIVATION_NAMES
enum class Activation : int64_t {
  kNone,
  kRelu,
  kLeakyRelu,
  kTanh,
  kSigmoid,
  kGelu,
  kSilu,
  kCount,
};

// Whether the derivative is computed from the input; otherwise from the output.
constexpr bool saves_input(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kSilu;
}

// f of the activation as a compile-time constant.
template <int kFirst = 0, typename F>
auto dispatch_activation(Activation activation, const F& f) {
  if constexpr (Activation{kFirst + 1} != Activation::kCount) {
    if (activation != Activation{kFirst}) return dispatch_activation<kFirst + 1>(activation, f);
  }
  return f(std::integral_constant<Activation, Activation{kFirst}>());
}
#endif

#define FASTMLP_ROW     \
  template <typename V> \
  FASTMLP_MATH static

template <Activation>
struct ActivationRow;

template <>
struct ActivationRow<Activation::kNone> {
  FASTMLP_ROW V forward(V x) { return x; }
  FASTMLP_ROW V backward(V dy, V) { return dy; }
};

template <>
struct ActivationRow<Activation::kRelu> {
  FASTMLP_ROW V forward(V x) { return x < 0 ? V{} : x; }
  FASTMLP_ROW V backward(V dy, V y) { return y <= 0 ? V{} : dy; }
};

template <>
struct ActivationRow<Activation::kLeakyRelu> {
  static constexpr double kSlope = 0.01;
  FASTMLP_ROW V forward(V x) { return x > 0 ? x : x * constant(x, kSlope); }
  FASTMLP_ROW V backward(V dy, V y) { return y > 0 ? dy : dy * constant(y, kSlope); }
};

template <>
struct ActivationRow<Activation::kTanh> {
  FASTMLP_ROW V forward(V x) { return tanh_of(x); }
  FASTMLP_ROW V backward(V dy, V y) { return dy * (1 - y * y); }
};

template <>
struct ActivationRow<Activation::kSigmoid> {
  FASTMLP_ROW V forward(V x) {  // by exp(-|x|), which does not overflow
    const V e = exp_of(-magnitude(x));
    return (x < 0 ? e : e * 0 + 1) / (1 + e);
  }
  FASTMLP_ROW V backward(V dy, V y) { return dy * (1 - y) * y; }
};

// x times the normal distribution's integral up to x.
template <>
struct ActivationRow<Activation::kGelu> {
  FASTMLP_ROW V integral(V x) {
    return (1 + erf_of(x * constant(x, 0.70710678118654752440))) * constant(x, 0.5);
  }
  FASTMLP_ROW V forward(V x) { return x * integral(x); }
  FASTMLP_ROW V backward(V dy, V x) {
    const V density = exp_of(x * x * constant(x, -0.5)) * constant(x, 0.39894228040143267794);
    return dy * (integral(x) + x * density);
  }
};

template <>
struct ActivationRow<Activation::kSilu> {
  using Sigmoid = ActivationRow<Activation::kSigmoid>;
  FASTMLP_ROW V forward(V x) { return x * Sigmoid::forward(x); }
  FASTMLP_ROW V backward(V dy, V x) {
    const V s = Sigmoid::forward(x);
    return dy * s * (1 + x * (1 - s));
  }
};

// The same where the activation is known when the program runs.
struct ActivationTable {
  template <int kFirst = 0, typename V>
  FASTMLP_MATH static V forward(Activation activation, V x) {
    if constexpr (Activation{kFirst + 1} != Activation::kCount) {
      if (activation != Activation{kFirst}) return forward<kFirst + 1>(activation, x);
    }
    return ActivationRow<Activation{kFirst}>::forward(x);
  }
  template <int kFirst = 0, typename V>
  FASTMLP_MATH static V backward(Activation activation, V dy, V saved) {
    if constexpr (Activation{kFirst + 1} != Activation::kCount) {
      if (activation != Activation{kFirst}) return backward<kFirst + 1>(activation, dy, saved);
    }
    return ActivationRow<Activation{kFirst}>::backward(dy, saved);
  }
};
#undef FASTMLP_ROW
