// The losses of training that are sums over a row's outputs, a row each: value(z, y) of an output z
// with the target y, and its derivative by z. Cross entropy, whose target is a label, is a row's as
// a whole (cpu/engine/loss_kernels.h).
//
// Included without a guard inside each namespace that computes, after common/activation.h, on whose
// terms V and its functions are; log1p_of (of x from 0 to 1) comes in addition.
// fastmlp/ops/losses.py is the other half of the table, in the same order.

#ifndef FASTMLP_LOSS_NAMES
#define FASTMLP_LOSS_NAMES
enum class Loss : int64_t {
  kCrossEntropy,
  kBinaryCrossEntropy,
  kSquaredError,
  kHuber,
  kPoisson,
  kCount,
};
#endif

#define FASTMLP_ROW     \
  template <typename V> \
  FASTMLP_MATH static

template <Loss>
struct LossRow;

// Of a logit: log(1 + exp(z)) - y z, by exp(-|z|), which does not overflow.
template <>
struct LossRow<Loss::kBinaryCrossEntropy> {
  FASTMLP_ROW V value(V z, V y, V) {
    return (z < 0 ? V{} : z) - z * y + log1p_of(exp_of(-magnitude(z)));
  }
  FASTMLP_ROW V gradient(V z, V y, V) {
    return ActivationRow<Activation::kSigmoid>::forward(z) - y;
  }
};

template <>
struct LossRow<Loss::kSquaredError> {
  FASTMLP_ROW V value(V z, V y, V) { return (z - y) * (z - y); }
  FASTMLP_ROW V gradient(V z, V y, V) { return 2 * (z - y); }
};

// Quadratic up to a distance of delta, then linear.
template <>
struct LossRow<Loss::kHuber> {
  FASTMLP_ROW V value(V z, V y, V delta) {
    const V size = magnitude(z - y);
    return size > delta ? delta * (size - delta * constant(z, 0.5))
                        : size * size * constant(z, 0.5);
  }
  FASTMLP_ROW V gradient(V z, V y, V delta) {
    const V d = z - y;
    return d > delta ? delta : d < -delta ? -delta : d;
  }
};

// Of a logarithm: exp(z) - y z.
template <>
struct LossRow<Loss::kPoisson> {
  FASTMLP_ROW V exp_any(V z) {
    const V e = exp_of(-magnitude(z));
    return z > 0 ? 1 / e : e;
  }
  FASTMLP_ROW V value(V z, V y, V) { return exp_any(z) - y * z; }
  FASTMLP_ROW V gradient(V z, V y, V) { return exp_any(z) - y; }
};
#undef FASTMLP_ROW
