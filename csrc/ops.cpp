// Every operator schema of fastmlp and the module's (empty) init function; nothing else.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastmlp, m) {
  // Instruction set that the CPU kernels run with: "avx512", "avx2" or "portable".
  m.def("cpu_isa() -> str");

  // Who computes a CPU layer's matrix products, and why, in words.
  m.def("cuda_archs() -> str");
  // The CUDA version that the driver is for: 1000 * major + 10 * minor.
  m.def("cuda_driver_version() -> int");
  m.def("linear_plan(int batch, int inputs, int outputs, ScalarType dtype) -> str");
  m.def(
      "linear_plan_cuda(int batch, int inputs, int outputs, ScalarType dtype, int processors, "
      "int capability, int matmul_precision=0) -> str");

  // y (..., O) = act(x (..., I) weight (O, I)^T + bias (O,)). activation is common/activation.h's
  // number of one; matmul_precision, plan.h's MatmulPrecision, is how a GPU multiplies float32: 0
  // as accurately as that, 1 in TF32 where it pays.
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias=None, int activation=0, "
      "int matmul_precision=0) -> Tensor");
  // (dx, dw, db) of linear; saved (..., O) is what its activation saved, None where there was none.
  // One that is not needed comes back with shape (0,).
  m.def(
      "linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor? saved, int activation, "
      "bool need_dx, bool need_dw, bool need_db, int matmul_precision=0) -> "
      "(Tensor, Tensor, Tensor)");

  // Layers of linear one after the other, whose parameters are a weight (O, I) each or, with
  // `bias`, also a bias (O). Returns the outputs (..., O) of all layers, before each the input of
  // its activation where that is what its derivative is computed from, or without `keep` the last
  // output alone.
  m.def(
      "mlp(Tensor x, Tensor[] parameters, int[] activations, bool bias, bool keep, "
      "int matmul_precision=0) -> Tensor[]");
  // dx, or shape (0,), and the parameters' gradients; kept is what mlp returned, without the last
  // output unless that activation's derivative is computed from it.
  m.def(
      "mlp_backward(Tensor dy, Tensor x, Tensor[] kept, Tensor[] parameters, int[] activations, "
      "bool bias, bool need_dx, int matmul_precision=0) -> Tensor[]");

  // An activation of each element, and its gradient; saved is the activation's output or its input,
  // whichever common/activation.h computes the derivative from.
  m.def("activation(Tensor x, int activation) -> Tensor");
  m.def("activation_backward(Tensor dy, Tensor saved, int activation) -> Tensor");

  // Cross entropy of softmax(logits (N, C)) against target (N,). reduction: 0 none, 1 mean, 2 sum.
  // Returns loss, stats (N, 2) = each row's maximum and log sum exp(logit - maximum), and the total
  // weight (), the sum of the targets' class weights that "mean" divides by.
  m.def(
      "cross_entropy(Tensor logits, Tensor target, Tensor? weight=None, int reduction=1, "
      "int ignore_index=-100, float label_smoothing=0.0) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor dloss, Tensor logits, Tensor target, Tensor stats, "
      "Tensor total_weight, Tensor? weight=None, int reduction=1, int ignore_index=-100, "
      "float label_smoothing=0.0) -> Tensor");

  // ---- training epochs of ReLU networks on uint8 images (N, I), inputs images * scale + shift
  // ---- Networks are lists: `layers` says how many layers each has, `parameters` holds a weight
  // (O, I) and a bias (O) for each of those.

  // Images flipped and shifted by moves (n, 3) int8: rows down, columns to the right, flip or not;
  // shape is (planes, height, width).
  m.def("flip_shift(Tensor images, Tensor moves, int[] shape) -> Tensor");
  // Steps in a block of blocked look-ahead SGD (docs/blocked-sgd.md).
  m.def("blocked_plan(int batch, int hidden, bool momentum, int fresh) -> int");
  // SGD steps on images, of G groups of networks that share an order (n) int64 and its moves (n, 3)
  // int8, or (0, 3); batches, block_steps: of each group. group, recurrences (S + 1, 6) and options
  // (5) = lr, momentum, weight decay, nesterov, grad_average: of each network; momentum: buffers as
  // parameters, of the networks that have it. Returns the mean losses and the hits of all steps of
  // the first network, then the second, ...
  m.def(
      "blocked_train_(Tensor images, Tensor labels, Tensor scale, Tensor shift, int[] shape, "
      "Tensor[] orders, Tensor[] moves, int[] batches, int[] block_steps, int[] group, "
      "int[] layers, Tensor(a!)[] parameters, Tensor(b!)[] momentum, Tensor[] recurrences, "
      "Tensor options) -> (Tensor, Tensor)");
  // Steps in a block on a GPU (block_steps, or as many as seem best for 0), and why the kernel of
  // blocked_chain_ cannot walk them, or "".
  m.def(
      "blocked_plan_cuda(int batch, int hidden, int classes, int block_steps, bool doubles, "
      "int capability, int shared_bytes) -> (int, str)");
  // The steps of one block of each of many networks with one hidden layer, on a GPU, between the
  // products with the images; fastmlp/ops/blocked_sgd.py says what is what.
  m.def(
      "blocked_chain_(Tensor p, Tensor? q, Tensor gram, Tensor labels, Tensor rows, "
      "Tensor recurrence, Tensor options, int batch, Tensor(a!)[] parameters, "
      "Tensor(b!)[] momentum, Tensor(c!) to_w, Tensor(d!)? to_v, Tensor(e!) ends, "
      "Tensor(f!) losses, Tensor(g!) correct) -> ()");
  // Into how many parts the next three cut a product (0: they cannot make it), and why not, or "".
  m.def(
      "blocked_products_plan_cuda(int rows, int inputs, int planes, int hidden, int networks, "
      "bool doubles, int processors, int capability, int shared_bytes) -> (int, str)");
  // The Gram matrices of a chunk's images, on a GPU, and their products with those of the block
  // before; scale and shift are the same throughout each of the planes of pixels.
  m.def(
      "blocked_gram_(Tensor(a!) gram, Tensor(b!)? cross, Tensor pixels, Tensor scale, "
      "Tensor shift, int planes) -> ()");
  // The products between two chains, on a GPU: the first weights' update by the images before, and
  // parts of their products with the next images; and these parts' sum.
  m.def(
      "blocked_products_(Tensor(a!) weight, Tensor? factors, Tensor? before, Tensor? pixels, "
      "Tensor scale, Tensor shift, Tensor(b!)? parts) -> ()");
  m.def("blocked_product_sum_(Tensor(a!) p, Tensor parts, Tensor? cross, Tensor? factors) -> ()");
  // Sum of the losses, float64, and number of hits of each network; an image counts as often as
  // counts say.
  m.def(
      "evaluate(Tensor images, Tensor labels, Tensor scale, Tensor shift, Tensor? counts, "
      "int[] layers, Tensor[] parameters) -> (Tensor, Tensor)");

  // ---- any MLP on rows x (n, I), float32, float64 or uint8, with targets (n) labels or (n, O)
  // ---- numbers; inputs x * scale + shift. Sparse rows are numbers x (N), their columns (N) int32
  // ---- and where each row begins (n + 1) int64. The rest is float64: row_weights (n),
  // ---- class_weight (O), scale and shift (I), options, whose columns cpu/engine/steps.h names.

  // Steps of N networks: orders (m) int64 and options (N, kStepOptions) of each, layers and
  // parameters as above, state: what their optimizers keep of these, one kind after the other.
  // Returns the mean losses and the hits of all steps of the first network, then the second, ...
  m.def(
      "train_steps_(Tensor x, Tensor? columns, Tensor? starts, Tensor targets, "
      "Tensor? row_weights, Tensor? class_weight, Tensor? scale, Tensor? shift, Tensor[] orders, "
      "int[] layers, Tensor(a!)[] parameters, "
      "Tensor(b!)[] state, Tensor options) -> (Tensor, Tensor)");
  // The outputs (m, O) of one network for the rows (m) int64 of x.
  m.def(
      "predict_rows(Tensor x, Tensor? columns, Tensor? starts, Tensor? scale, Tensor? shift, "
      "Tensor rows, Tensor[] parameters, int activation) -> Tensor");
  // The sums of losses and of weights, and the hits, of one network with options (kStepOptions).
  m.def(
      "evaluate_rows(Tensor x, Tensor? columns, Tensor? starts, Tensor targets, "
      "Tensor? row_weights, Tensor? class_weight, Tensor? scale, Tensor? shift, Tensor rows, "
      "Tensor[] parameters, Tensor options) -> "
      "(float, float, int)");
}

// Importing fastmlp._C loads this library, whose static initialisers register the operators.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
