// The CUDA operators of the layers: arguments checked, tensors allocated, kernels launched. No CUDA
// file but the bindings sees torch.
#include "cuda/bindings.h"

#include <Python.h>

#include "common/linear_aten.h"
#include "plan.h"

namespace fastmlp {
namespace {

// ---- relu ----

// A new dense tensor with x's strides where x is dense, as torch.empty_like has it.
Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_beside(x, sizes_of(x), x.scalar_type())
                           : torch::stable::empty_like(x);
}

Tensor relu_cuda(const Tensor& x) {
  check_floating("x", x);
  const Launch launch(x);
  Tensor y = new_like(x);
  const Tensor source = laid_out_as(y, x);
  check_launch("relu", launch_relu(y.data_ptr(), source.data_ptr(), y.numel(),
                                   type_of(x.scalar_type()), launch.stream));
  return y;
}

// y = max(x, 0), both contiguous, y may be x; returns y's mask.
Tensor relu_with_mask_into(const Tensor& y, const Tensor& x, const Launch& launch) {
  const Tensor mask = empty_beside(x, mask_sizes(sizes_of(x)), ScalarType::Byte);
  check_launch(
      "relu_with_mask",
      launch_relu_with_mask(y.data_ptr(), static_cast<uint8_t*>(mask.data_ptr()), x.data_ptr(),
                            rows_in(x), columns_in(x), type_of(x.scalar_type()), launch.stream));
  return mask;
}

std::tuple<Tensor, Tensor> relu_with_mask_cuda(const Tensor& x) {
  check_floating("x", x);
  const Launch launch(x);
  const Tensor y = empty_beside(x, sizes_of(x), x.scalar_type());
  return {y, relu_with_mask_into(y, torch::stable::contiguous(x), launch)};
}

Tensor relu_backward_by_mask(const Tensor& dy, const Tensor& mask) {
  const Launch launch(dy);
  const Tensor dx = empty_beside(dy, sizes_of(dy), dy.scalar_type());
  const Tensor upstream = torch::stable::contiguous(dy), bits = torch::stable::contiguous(mask);
  check_launch("relu_backward",
               launch_relu_mask_backward(dx.data_ptr(), upstream.data_ptr(),
                                         static_cast<const uint8_t*>(bits.data_ptr()), rows_in(dx),
                                         columns_in(dx), type_of(dy.scalar_type()), launch.stream));
  return dx;
}

Tensor relu_backward_cuda(const Tensor& dy, const Tensor& y) {
  check_relu_backward(dy, y);
  check_device("dy", dy, y);
  if (y.scalar_type() == ScalarType::Byte) return relu_backward_by_mask(dy, y);
  const Launch launch(y);
  Tensor dx = new_like(y);
  const Tensor upstream = laid_out_as(dx, dy), output = laid_out_as(dx, y);
  check_launch("relu_backward",
               launch_relu_backward(dx.data_ptr(), upstream.data_ptr(), output.data_ptr(),
                                    dx.numel(), type_of(y.scalar_type()), launch.stream));
  return dx;
}

// ---- linear ----

LinearPlan plan_linear(int64_t batch, int64_t in, int64_t out, ScalarType type) {
  return plan_linear_cuda(batch, in, out, type == ScalarType::Double, type != ScalarType::Float);
}

std::string linear_plan_cuda(int64_t batch, int64_t in, int64_t out, ScalarType type,
                             int64_t processors, int64_t capability, int64_t float32) {
  check_float32(float32);
  const LinearPlan plan = plan_linear(batch, in, out, type);
  if (!plan.ours) return std::string("ATen's BLAS (") + plan.why + ")";
  const ProductPlan product = plan_product(batch, out, in, processors);
  const MatmulPrecisionPlan by = plan_matmul_precision(batch, out, in, static_cast<int>(capability),
                                                       static_cast<MatmulPrecision>(float32));
  return std::string("fastmlp's kernels (") + plan.why + "; tiles of " +
         std::to_string(product.tile_m) + " rows, " + std::to_string(product.splits) + " parts" +
         (type == ScalarType::Float ? std::string("; ") + by.why : "") + ")";
}

// A weight (O, I) as it lies, by rows or by columns, or a copy by rows.
struct Weight {
  Tensor tensor;
  bool by_rows;
  int64_t stride;

  // As an operand of which rows are outputs, or inputs, and the other is summed over.
  Operand operand(bool rows_are_outputs) const {
    return {tensor.data_ptr(), stride, by_rows == rows_are_outputs, nullptr, 0};
  }
};

Weight weight_of(const Tensor& weight) {
  if (weight.stride(0) == 1 && weight.stride(1) != 1) return {weight, false, weight.stride(1)};
  const Rows rows = rows_of(weight);
  return {rows.tensor, true, rows.stride};
}

// Plans c (m, n) or none (n = 0) from a (m, k) and b (n, k), allocates what is wanted on the way,
// and launches it. product.float32 says what is asked for.
void multiply(const char* name, LinearProduct product, const Tensor& like, const Launch& launch) {
  Gpu gpu{};
  check_launch(name, describe_device(&gpu));
  const int64_t m = product.m, n = product.n, k = product.k;
  product.float32 = plan_matmul_precision(m, n, k, gpu.capability, product.float32).by;
  const ProductPlan plan = plan_product(m, n, k, gpu.processors);
  product.tile_m = plan.tile_m;
  product.splits = plan.splits;
  product.chunk = plan.chunk;
  std::optional<Tensor> workspace;
  if (plan.splits > 1) {
    const int64_t size = plan.splits * product.m * product.n;
    workspace = empty_beside(like, {size}, ScalarType::Float);
    product.workspace = static_cast<float*>(workspace->data_ptr());
  }
  check_launch(name, launch_linear(product, type_of(like.scalar_type()), launch.stream));
}

// y and, where it is asked for, its mask in `mask`.
Tensor linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      bool use_relu, int64_t float32, Tensor* mask) {
  check_linear(x, weight, bias);
  check_float32(float32);
  check_device("weight", weight, x);
  if (bias) check_device("bias", *bias, x);
  const Launch launch(x);
  const Rows rows = rows_of(x);
  const int64_t out = weight.size(0);
  if (!plan_linear(rows.rows, rows.columns, out, x.scalar_type()).ours) {
    if (!mask) return linear_aten(x, weight, bias, use_relu);
    const Tensor y = torch::stable::contiguous(linear_aten(x, weight, bias, false));
    *mask = relu_with_mask_into(y, y, launch);
    return y;
  }
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = out;
  const Tensor y = empty_beside(x, sizes, x.scalar_type());
  if (mask) *mask = empty_beside(x, mask_sizes(sizes), ScalarType::Byte);
  if (y.numel() == 0) return y;
  const Weight w = weight_of(weight);
  const std::optional<Tensor> flat_bias =
      bias ? std::optional<Tensor>(torch::stable::contiguous(*bias)) : std::nullopt;
  LinearProduct product{};
  product.c = y.data_ptr();
  product.mask = mask ? static_cast<uint8_t*>(mask->data_ptr()) : nullptr;
  product.a = {rows.tensor.data_ptr(), rows.stride, true, nullptr, 0};
  product.b = w.operand(true);
  product.bias = flat_bias ? flat_bias->data_ptr() : nullptr;
  product.m = rows.rows;
  product.n = out;
  product.k = rows.columns;
  product.relu = use_relu;
  product.float32 = static_cast<MatmulPrecision>(float32);
  multiply("linear", product, x, launch);
  return y;
}

Tensor linear_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool use_relu, int64_t float32) {
  return linear_forward(x, weight, bias, use_relu, float32, nullptr);
}

std::tuple<Tensor, Tensor> linear_relu_with_mask_cuda(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias,
                                                      int64_t float32) {
  Tensor mask;
  const Tensor y = linear_forward(x, weight, bias, true, float32, &mask);
  return {y, mask};
}

// dx (batch, in) = g w, and dw (out, in) = g^T x with db (out) = the sums of g's columns, where g
// is dy as the ReLU let it through. Those that are null are not computed.
void linear_backward_ours(const Rows& dy, const Rows& x, const Tensor& weight,
                          const std::optional<Rows>& y, const Tensor* dx, const Tensor* dw,
                          const Tensor* db, MatmulPrecision float32, const Launch& launch) {
  Operand g{dy.tensor.data_ptr(), dy.stride, true, nullptr, 0};
  if (y) {
    g.mask = y->tensor.data_ptr();
    g.mask_stride = y->stride;
    g.mask_is_bits = y->tensor.scalar_type() == ScalarType::Byte;
  }
  if (dx && dx->numel() > 0) {
    const Weight w = weight_of(weight);
    LinearProduct product{};
    product.c = dx->data_ptr();
    product.a = g;
    product.b = w.operand(false);
    product.m = dy.rows;
    product.n = x.columns;
    product.k = dy.columns;
    product.float32 = float32;
    multiply("linear_backward", product, dy.tensor, launch);
  }
  if (dw || db) {
    LinearProduct product{};
    product.c = dw ? dw->data_ptr() : nullptr;
    product.row_sums = db ? db->data_ptr() : nullptr;
    product.a = g;
    product.a.k_contiguous = false;
    product.b = {x.tensor.data_ptr(), x.stride, false, nullptr, 0};
    product.m = dy.columns;
    product.n = dw ? x.columns : 0;
    product.k = dy.rows;
    product.float32 = float32;
    multiply("linear_backward", product, dy.tensor, launch);
  }
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cuda(const Tensor& dy, const Tensor& x,
                                                        const Tensor& weight,
                                                        const std::optional<Tensor>& y,
                                                        bool need_dx, bool need_dw, bool need_db,
                                                        int64_t float32) {
  check_linear_backward(dy, x, weight, y);
  check_float32(float32);
  check_device("x", x, dy);
  check_device("weight", weight, dy);
  if (y) check_device("y", *y, dy);
  const Launch launch(dy);
  const ScalarType type = dy.scalar_type();
  const int64_t in = weight.size(1), out = weight.size(0);
  const Rows rows = rows_of(x);
  if (!plan_linear(rows.rows, in, out, type).ours) {
    return linear_backward_aten(dy, x, weight, y, need_dx, need_dw, need_db);
  }
  const auto output = [&](bool need, const std::vector<int64_t>& sizes) {
    return empty_beside(dy, need ? sizes : std::vector<int64_t>{0}, type);
  };
  const Tensor dx = output(need_dx, sizes_of(x));
  const Tensor dw = output(need_dw, {out, in});
  const Tensor db = output(need_db, {out});
  const std::optional<Rows> masks = y ? std::optional<Rows>(rows_of(*y)) : std::nullopt;
  linear_backward_ours(rows_of(dy), rows, weight, masks, need_dx ? &dx : nullptr,
                       need_dw ? &dw : nullptr, need_db ? &db : nullptr,
                       static_cast<MatmulPrecision>(float32), launch);
  return {dx, dw, db};
}

// ---- softmax cross entropy ----

// The tensors behind an CrossEntropyRows.
struct CrossEntropyTensors {
  fastmlp::Rows logits;
  Tensor target;
  std::optional<Tensor> weight;

  CrossEntropyTensors(const Tensor& logits_in, const Tensor& target_in,
                      const std::optional<Tensor>& weight_in)
      : logits(rows_of(logits_in)), target(target_in) {
    check_device("target", target_in, logits_in);
    if (!weight_in) return;
    check_device("weight", *weight_in, logits_in);
    weight = torch::stable::contiguous(*weight_in);
  }

  CrossEntropyRows view(int64_t reduction, int64_t ignore_index, double smoothing) const {
    return {logits.tensor.data_ptr(),
            logits.stride,
            logits.rows,
            logits.columns,
            target.data_ptr(),
            target.stride(0),
            target.scalar_type() == ScalarType::Byte,
            weight ? weight->data_ptr() : nullptr,
            ignore_index,
            smoothing,
            static_cast<int>(reduction)};
  }
};

std::tuple<Tensor, Tensor, Tensor> cross_entropy_cuda(const Tensor& logits, const Tensor& target,
                                                      const std::optional<Tensor>& weight,
                                                      int64_t reduction, int64_t ignore_index,
                                                      double label_smoothing) {
  check_cross_entropy(logits, target, weight, reduction, label_smoothing);
  const Launch launch(logits);
  const ScalarType type = logits.scalar_type(), sums = stats_type(type);
  const int64_t rows = logits.size(0);
  const std::vector<int64_t> scalar;
  const Tensor loss =
      empty_beside(logits, reduction == kNone ? std::vector<int64_t>{rows} : scalar, type);
  const Tensor stats = empty_beside(logits, {rows, 2}, sums);
  const Tensor total_weight = empty_beside(logits, scalar, sums);
  const Tensor workspace = empty_beside(logits, {2, rows}, sums);
  const CrossEntropyTensors tensors(logits, target, weight);
  check_launch("cross_entropy",
               launch_cross_entropy(loss.data_ptr(), stats.data_ptr(), total_weight.data_ptr(),
                                    workspace.data_ptr(),
                                    tensors.view(reduction, ignore_index, label_smoothing),
                                    type_of(type), launch.stream));
  return {loss, stats, total_weight};
}

Tensor cross_entropy_backward_cuda(const Tensor& dloss, const Tensor& logits, const Tensor& target,
                                   const Tensor& stats, const Tensor& total_weight,
                                   const std::optional<Tensor>& weight, int64_t reduction,
                                   int64_t ignore_index, double label_smoothing) {
  check_cross_entropy(logits, target, weight, reduction, label_smoothing);
  check_cross_entropy_backward(dloss, logits, stats, total_weight, reduction);
  check_device("dloss", dloss, logits);
  check_device("stats", stats, logits);
  check_device("total_weight", total_weight, logits);
  const Launch launch(logits);
  const ScalarType type = logits.scalar_type();
  const Tensor dlogits = empty_beside(logits, sizes_of(logits), type);
  const CrossEntropyTensors tensors(logits, target, weight);
  const Tensor upstream = torch::stable::contiguous(dloss);
  check_launch("cross_entropy_backward",
               launch_cross_entropy_backward(dlogits.data_ptr(), upstream.data_ptr(),
                                             stats.data_ptr(), total_weight.data_ptr(),
                                             tensors.view(reduction, ignore_index, label_smoothing),
                                             type_of(type), launch.stream));
  return dlogits;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, FASTMLP_KEY, m) {
  m.impl("relu", TORCH_BOX(&fastmlp::relu_cuda));
  m.impl("relu_with_mask", TORCH_BOX(&fastmlp::relu_with_mask_cuda));
  m.impl("relu_backward", TORCH_BOX(&fastmlp::relu_backward_cuda));
  m.impl("linear", TORCH_BOX(&fastmlp::linear_cuda));
  m.impl("linear_relu_with_mask", TORCH_BOX(&fastmlp::linear_relu_with_mask_cuda));
  m.impl("linear_backward", TORCH_BOX(&fastmlp::linear_backward_cuda));
  m.impl("cross_entropy", TORCH_BOX(&fastmlp::cross_entropy_cuda));
  m.impl("cross_entropy_backward", TORCH_BOX(&fastmlp::cross_entropy_backward_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("linear_plan_cuda", TORCH_BOX(&fastmlp::linear_plan_cuda));
}

// Importing fastmlp._cuda loads this library, whose static initialisers register the operators.
extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
