// Every operator schema of fastmlp and the module's (empty) init function; nothing else.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastmlp, m) {
  // Instruction set that the CPU kernels run with: "avx512", "avx2" or "portable".
  m.def("cpu_isa() -> str");

  // Who computes a CPU layer's matrix products, and why, in words.
  m.def("linear_plan(int batch, int inputs, int outputs, ScalarType dtype) -> str");
  m.def(
      "linear_plan_cuda(int batch, int inputs, int outputs, ScalarType dtype, int processors) -> "
      "str");

  // y (..., O) = act(x (..., I) weight (O, I)^T + bias (O,)).
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None, bool relu=False) -> Tensor");
  // (dx, dw, db) of linear; y, its output, is given where relu was true. One that is not needed
  // comes back with shape (0,).
  m.def(
      "linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor? y, bool need_dx, bool need_dw, "
      "bool need_db) -> (Tensor, Tensor, Tensor)");

  // max(x, 0), nan stays nan; and its gradient, where y is relu's output or its input.
  m.def("relu(Tensor x) -> Tensor");
  m.def("relu_backward(Tensor dy, Tensor y) -> Tensor");

  // Cross entropy of softmax(logits (N, C)) against target (N,). reduction: 0 none, 1 mean, 2 sum.
  // Returns loss, stats (N, 2) = each row's maximum and log sum exp(logit - maximum), and the total
  // weight (), the sum of the targets' class weights that "mean" divides by.
  m.def(
      "softmax_xent(Tensor logits, Tensor target, Tensor? weight=None, int reduction=1, "
      "int ignore_index=-100, float label_smoothing=0.0) -> (Tensor, Tensor, Tensor)");
  m.def(
      "softmax_xent_backward(Tensor dloss, Tensor logits, Tensor target, Tensor stats, "
      "Tensor total_weight, Tensor? weight=None, int reduction=1, int ignore_index=-100, "
      "float label_smoothing=0.0) -> Tensor");

  // ---- blocked look-ahead SGD, network I-H-C: fastmlp/engines.py puts a block together ----

  // x (n, I) = images (N, I) uint8 at rows (n), times scale (I) plus shift (I).
  m.def("gather_normalize(Tensor images, Tensor rows, Tensor scale, Tensor shift) -> Tensor");
  // x x^T + 1 (n, n), where the column's batch precedes the row's; 0 elsewhere.
  m.def("gram(Tensor x, int batch) -> Tensor");
  // The steps of a block after the first layer's products p = x W^T + b and q, the same of the
  // momentum; w, b and their momentum are the last layer's. Returns dloss/dpre (n, H), each step's
  // mean loss and its number of hits. recurrence: fastmlp/blocked.py.
  m.def(
      "chain(Tensor p, Tensor? q, Tensor gram, Tensor labels, Tensor recurrence, Tensor(a!) w, "
      "Tensor(b!) b, Tensor(c!)? w_momentum, Tensor(d!)? b_momentum, int batch, float lr, "
      "float momentum, float weight_decay, bool nesterov, bool grad_average) "
      "-> (Tensor, Tensor, Tensor)");
  // The first layer's w, b and their momentum after the block, from the chain's g (n, H) and x.
  m.def(
      "block_update_(Tensor(a!) w, Tensor(b!) b, Tensor(c!)? w_momentum, Tensor(d!)? b_momentum, "
      "Tensor g, Tensor x, Tensor recurrence, int batch) -> ()");
}

// Importing fastmlp._C loads this library, whose static initialisers register the operators.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
