// The CUDA operators of the layers: arguments checked, tensors allocated, kernels launched. No CUDA
// file but the bindings sees torch.
#include "cuda/bindings.h"

#include <Python.h>

#include "common/mlp.h"
#include "plan.h"

namespace fastmlp {
namespace {

// ---- activations ----

// A new dense tensor with x's strides where x is dense, as torch.empty_like has it.
Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_beside(x, sizes_of(x), x.scalar_type()) : empty_as(x);
}

Tensor activation_cuda(const Tensor& x, int64_t activation) {
  check_floating("x", x);
  check_memory("x", x);
  check_activation(activation);
  const Launch launch(x);
  const Tensor y = new_like(x);
  const Tensor source = laid_out_as(y, x);
  check_launch("activation", launch_activation(y.data_ptr(), source.data_ptr(), y.numel(),
                                               static_cast<Activation>(activation),
                                               type_of(x.scalar_type()), launch.stream));
  return y;
}

Tensor activation_backward_cuda(const Tensor& dy, const Tensor& saved, int64_t activation) {
  check_activation_backward(dy, saved, activation);
  check_device("dy", dy, saved);
  const Launch launch(saved);
  const Tensor dx = new_like(saved);
  const Tensor upstream = laid_out_as(dx, dy), kept = laid_out_as(dx, saved);
  check_launch("activation_backward",
               launch_activation_backward(dx.data_ptr(), upstream.data_ptr(), kept.data_ptr(),
                                          dx.numel(), static_cast<Activation>(activation),
                                          type_of(saved.scalar_type()), launch.stream));
  return dx;
}

// ---- linear ----

LinearPlan plan_linear(int64_t batch, int64_t in, int64_t out, ScalarType type) {
  return plan_linear_cuda(batch, in, out, type == ScalarType::Double, type != ScalarType::Float);
}

#ifndef FASTMLP_CUDA_ARCHS
#define FASTMLP_CUDA_ARCHS ""
#endif
// What was compiled for, as TORCH_CUDA_ARCH_LIST spells it; empty where setup.py did not say.
std::string cuda_archs() { return FASTMLP_CUDA_ARCHS; }

int64_t cuda_driver_version() {
  int version = 0;
  check_launch("cuda_driver_version", cudaDriverGetVersion(&version));
  return version;
}

std::string linear_plan_cuda(int64_t batch, int64_t in, int64_t out, ScalarType type,
                             int64_t processors, int64_t capability, int64_t matmul_precision) {
  check_matmul_precision(matmul_precision);
  check_planned("batch", batch);
  check_planned("inputs", in);
  check_planned("outputs", out);
  check_planned("processors", processors);
  check_planned("capability", capability);
  const LinearPlan plan = plan_linear(batch, in, out, type);
  if (!plan.ours) return std::string("ATen's BLAS (") + plan.reason + ")";
  const auto wanted = static_cast<MatmulPrecision>(matmul_precision);
  const int generation = static_cast<int>(capability);
  const std::string ours = std::string("fastmlp's kernels (") + plan.reason + "; ";
  const bool direct_gradients = plan_direct(true, generation, wanted).direct;
  const DirectPlan direct = plan_direct_linear_or_tiles(batch, in, out, true, generation, wanted);
  if (direct.direct) return ours + direct.reason + ")";
  const std::string backwards = direct_gradients ? "; gradients straight into registers" : "";
  const ProductPlan product = plan_product(batch, out, in, processors);
  const MatmulPrecisionPlan by = plan_matmul_precision(batch, out, in, generation, wanted);
  const bool in_words =
      type == ScalarType::Float || (type == ScalarType::BFloat16 && !has_tf32(generation));
  return ours + "tiles of " + std::to_string(product.tile_m) + " rows, " +
         std::to_string(product.splits) + " parts" +
         (in_words ? std::string("; ") + by.reason : "") + backwards + ")";
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

// Whether the direct kernels reach all of a matrix.
bool in_reach(const Rows& rows) { return is_in_reach(rows.rows, rows.stride); }
bool in_reach(const Weight& weight) {
  return weight.by_rows && is_in_reach(weight.tensor.size(0), weight.stride);
}

// Plans c (m, n) or none (n = 0) from a (m, k) and b (n, k), allocates what is wanted on the way,
// and launches it. product.precision says what is asked for.
void multiply(const char* name, LinearProduct product, const Gpu& gpu, const Tensor& like,
              const Launch& launch) {
  const int64_t m = product.m, n = product.n, k = product.k;
  product.precision = plan_matmul_precision(m, n, k, gpu.capability, product.precision).precision;
  product.bfloat16_by_fma = !has_tf32(gpu.capability);
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

Tensor linear_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   int64_t activation, int64_t matmul_precision) {
  check_linear(x, weight, bias);
  check_activation(activation);
  check_matmul_precision(matmul_precision);
  check_device("weight", weight, x);
  if (bias) check_device("bias", *bias, x);
  const Launch launch(x);
  const Rows rows = rows_of(x);
  const int64_t out = weight.size(0);
  if (!plan_linear(rows.rows, rows.columns, out, x.scalar_type()).ours) {
    return linear_aten(x, weight, bias, activation);
  }
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = out;
  const Tensor y = empty_beside(x, sizes, x.scalar_type());
  if (y.numel() == 0) return y;
  const Weight w = weight_of(weight);
  const std::optional<Tensor> flat_bias =
      bias ? std::optional<Tensor>(torch::stable::contiguous(*bias)) : std::nullopt;
  LinearProduct product{};
  product.c = y.data_ptr();
  product.a = {rows.tensor.data_ptr(), rows.stride, true, nullptr, 0};
  product.b = w.operand(true);
  product.bias = flat_bias ? flat_bias->data_ptr() : nullptr;
  product.m = rows.rows;
  product.n = out;
  product.k = rows.columns;
  product.activation = static_cast<Activation>(activation);
  product.precision = static_cast<MatmulPrecision>(matmul_precision);
  const Gpu gpu = gpu_of("linear");
  if (plan_direct_linear_or_tiles(rows.rows, rows.columns, out, in_reach(rows) && in_reach(w),
                                  gpu.capability, product.precision)
          .direct) {
    const DirectLinearPlan plan = plan_direct_linear(rows.rows, rows.columns, out, gpu.processors);
    check_launch("linear",
                 launch_direct_linear(product, plan, type_of(x.scalar_type()), launch.stream));
    return y;
  }
  multiply("linear", product, gpu, x, launch);
  return y;
}

// dx (batch, in) = g w, and dw (out, in) = g^T x with db (out) = the sums of g's columns, where g
// is dy where a ReLU whose output is relu_y let through. Those that are null are not computed.
void linear_backward_ours(const Rows& dy, const Rows& x, const Tensor& weight,
                          const std::optional<Rows>& relu_y, const Tensor* dx, const Tensor* dw,
                          const Tensor* db, MatmulPrecision precision, const Launch& launch) {
  Operand g{dy.tensor.data_ptr(), dy.stride, true, nullptr, 0};
  if (relu_y) {
    g.relu_y = relu_y->tensor.data_ptr();
    g.relu_stride = relu_y->stride;
  }
  const char* name = "linear_backward";
  const Gpu gpu = gpu_of(name);
  const Weight w = weight_of(weight);
  const bool makes_dx = dx && dx->numel() > 0;
  const bool reaches =
      in_reach(dy) && in_reach(x) && (!relu_y || in_reach(*relu_y)) && (in_reach(w) || !makes_dx);
  if (plan_direct(reaches, gpu.capability, precision).direct) {
    const ScalarType type = dy.tensor.scalar_type();
    LinearGradients gradients{};
    gradients.dx = makes_dx ? dx->data_ptr() : nullptr;
    gradients.dw = dw && dw->numel() > 0 ? dw->data_ptr() : nullptr;
    gradients.db = db && db->numel() > 0 ? db->data_ptr() : nullptr;
    gradients.dy = g;
    gradients.x = {x.tensor.data_ptr(), x.stride, true, nullptr, 0};
    gradients.weight = {w.tensor.data_ptr(), w.stride, true, nullptr, 0};
    gradients.batch = dy.rows;
    gradients.in = x.columns;
    gradients.out = dy.columns;
    const DirectGradientsPlan plan = plan_direct_gradients(
        dy.rows, x.columns, dy.columns, gpu.processors, gradients.dx, gradients.dw, gradients.db);
    check_launch(name, launch_direct_gradients(gradients, plan, type_of(type), launch.stream));
    return;
  }
  LinearProduct product{};
  product.precision = precision;
  if (makes_dx) {
    product.c = dx->data_ptr();
    product.a = g;
    product.b = w.operand(false);
    product.m = dy.rows;
    product.n = x.columns;
    product.k = dy.columns;
    multiply(name, product, gpu, dy.tensor, launch);
  }
  if (dw || db) {
    product.c = dw ? dw->data_ptr() : nullptr;
    product.row_sums = db ? db->data_ptr() : nullptr;
    product.a = g;
    product.a.k_contiguous = false;
    product.b = {x.tensor.data_ptr(), x.stride, false, nullptr, 0};
    product.m = dy.columns;
    product.n = dw ? x.columns : 0;
    product.k = dy.rows;
    multiply(name, product, gpu, dy.tensor, launch);
  }
}

Gradients linear_backward_cuda(const Tensor& dy, const Tensor& x, const Tensor& weight,
                               const std::optional<Tensor>& saved, int64_t activation, bool need_dx,
                               bool need_dw, bool need_db, int64_t matmul_precision) {
  check_linear_backward(dy, x, weight, saved, activation);
  check_matmul_precision(matmul_precision);
  check_device("x", x, dy);
  check_device("weight", weight, dy);
  if (saved) check_device("saved", *saved, dy);
  const Launch launch(dy);
  const ScalarType type = dy.scalar_type();
  const int64_t in = weight.size(1), out = weight.size(0);
  const Rows rows = rows_of(x);
  if (!plan_linear(rows.rows, in, out, type).ours) {
    return linear_backward_aten(dy, x, weight, saved, activation, need_dx, need_dw, need_db);
  }
  const auto output = [&](bool need, const std::vector<int64_t>& sizes) {
    return empty_beside(dy, need ? sizes : std::vector<int64_t>{0}, type);
  };
  const Tensor dx = output(need_dx, sizes_of(x));
  const Tensor dw = output(need_dw, {out, in});
  const Tensor db = output(need_db, {out});
  // The products read a ReLU's output beside dy; the others' derivatives are taken once, before.
  const bool relu = activation == static_cast<int64_t>(Activation::kRelu);
  const Tensor g = saved && !relu ? activation_backward_cuda(dy, *saved, activation) : dy;
  const std::optional<Rows> relu_y = relu ? std::optional<Rows>(rows_of(*saved)) : std::nullopt;
  linear_backward_ours(rows_of(g), rows, weight, relu_y, need_dx ? &dx : nullptr,
                       need_dw ? &dw : nullptr, need_db ? &db : nullptr,
                       static_cast<MatmulPrecision>(matmul_precision), launch);
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
  m.impl("activation", TORCH_BOX(&fastmlp::activation_cuda));
  m.impl("activation_backward", TORCH_BOX(&fastmlp::activation_backward_cuda));
  m.impl("linear", TORCH_BOX(&fastmlp::linear_cuda));
  m.impl("linear_backward", TORCH_BOX(&fastmlp::linear_backward_cuda));
  m.impl("mlp", TORCH_BOX((&fastmlp::mlp<fastmlp::linear_cuda, fastmlp::activation_cuda>)));
  m.impl("mlp_backward", TORCH_BOX(&fastmlp::mlp_backward<fastmlp::linear_backward_cuda>));
  m.impl("cross_entropy", TORCH_BOX(&fastmlp::cross_entropy_cuda));
  m.impl("cross_entropy_backward", TORCH_BOX(&fastmlp::cross_entropy_backward_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&fastmlp::cuda_archs));
  m.impl("cuda_driver_version", TORCH_BOX(&fastmlp::cuda_driver_version));
  m.impl("linear_plan_cuda", TORCH_BOX(&fastmlp::linear_plan_cuda));
}

// Importing fastmlp._cuda loads this library, whose static initialisers register the operators.
extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
