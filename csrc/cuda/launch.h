// Every launcher of the CUDA kernels: raw pointers, sizes, a stream; no torch. All are asynchronous
// and return the launch's error, cudaSuccess where there was nothing to do.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/scalar_math.h"
#include "plan.h"

namespace fastmlp {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

// What the present device is.
[[nodiscard]] cudaError_t describe_device(Gpu* gpu);

// y = act(x), and dx from dy and what the activation saved; `count` elements each.
[[nodiscard]] cudaError_t launch_activation(void* y, const void* x, int64_t count,
                                            Activation activation, Type type, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_activation_backward(void* dx, const void* dy, const void* saved,
                                                     int64_t count, Activation activation,
                                                     Type type, cudaStream_t stream);

// What the rows of a softmax cross entropy have in common.
struct CrossEntropyRows {
  const void* logits;  // (rows, classes), rows `stride` apart
  int64_t stride, rows, classes;
  const void* target;  // (rows) int64 or bytes, `target_step` apart
  int64_t target_step;
  bool byte_target;
  const void* weight;  // (classes) or null
  int64_t ignore_index;
  double smoothing;
  int reduction;  // 0 none, 1 mean, 2 sum
};

// loss () or (rows), stats (rows, 2), total_weight (); workspace (2 rows), the last three in the
// type that sums are kept in: float64 for float64, else float32.
[[nodiscard]] cudaError_t launch_cross_entropy(void* loss, void* stats, void* total_weight,
                                               void* workspace, const CrossEntropyRows& in,
                                               Type type, cudaStream_t stream);
// dlogits (rows, classes) from dloss () or (rows) and what cross_entropy returned.
[[nodiscard]] cudaError_t launch_cross_entropy_backward(void* dlogits, const void* dloss,
                                                        const void* stats, const void* total_weight,
                                                        const CrossEntropyRows& in, Type type,
                                                        cudaStream_t stream);

// A matrix of a product: element (row, k) lies at data[row * stride + k] where k_contiguous, else
// at data[k * stride + row]. Where relu_y, a ReLU's output that is laid out alike, is <= 0, the
// element counts as 0.
struct Operand {
  const void* data;
  int64_t stride;
  bool k_contiguous;
  const void* relu_y;  // or null
  int64_t relu_stride;
};

// c (m, n) = act(a (m, k) b (n, k)^T + bias (n)); row_sums (m) = the sums of a's rows.
struct LinearProduct {
  void* c;           // contiguous; null where n is 0
  void* row_sums;    // or null; null where splits > 1
  float* workspace;  // splits * m * n where splits > 1
  Operand a, b;
  const void* bias;  // or null
  int64_t m, n, k;
  Activation activation;
  // plan_product's: rows of a tile (16, 32 or 64), parts that k is cut into, length of a part.
  int tile_m;
  int64_t splits, chunk;
  // plan_matmul_precision's, one of the last three; other types than kFloat leave it alone.
  MatmulPrecision precision;
  bool bfloat16_by_fma;  // rather than by tensor cores
};

// linear, and both products of linear_backward. Any type but kDouble.
[[nodiscard]] cudaError_t launch_linear(const LinearProduct& product, Type type,
                                        cudaStream_t stream);

// The same for small batches, where plan_direct says so; a and b with k_contiguous. What plans
// tiles, and precision, is left alone.
[[nodiscard]] cudaError_t launch_direct_linear(const LinearProduct& product,
                                               const DirectLinearPlan& plan, Type type,
                                               cudaStream_t stream);

// dx (batch, in) = g w, dw (out, in) = g^T x and db (out) = the sums of g's columns, where g is dy
// but for a ReLU's relu_y. Operands lie by rows, whose elements are neighbours.
struct LinearGradients {
  void *dx, *dw, *db;     // contiguous, or null
  Operand dy, x, weight;  // (batch, out), (batch, in), (out, in)
  int64_t batch, in, out;
};

// Where plan_direct says so; any type but kDouble.
[[nodiscard]] cudaError_t launch_direct_gradients(const LinearGradients& in,
                                                  const DirectGradientsPlan& plan, Type type,
                                                  cudaStream_t stream);

// One block of steps of each of many networks with one hidden layer; those of a group share their
// images. What is what stands at blocked_chain_ref, in fastmlp/ops/blocked_sgd.py.
struct ChainBlock {
  const void *p, *q;      // (groups, rows, networks, hidden); q null where nothing needs it
  const void* gram;       // (groups, rows, rows); nothing where there is one step
  const int64_t* labels;  // (groups, rows)
  const int64_t* counts;  // (groups): how many of the rows are there
  // (all, steps + 1, kResponses), kWFromW less 1, which float would round; all = groups * networks
  const void* recurrence;
  const void* options;                                      // (all, kOptions)
  void *bias, *weight2, *bias2;                             // (all, H), (all, C, H), (all, C)
  void *bias_momentum, *weight2_momentum, *bias2_momentum;  // the same, or null
  void* workspace;           // (all, C, H) where a batch takes several tiles
  void *to_w, *to_v;         // as p; to_v null without momentum
  void* ends;                // (all, 4)
  void* losses;              // (all, steps)
  int64_t* correct;          // (all, steps)
  int64_t groups, networks;  // the latter of each group
  int steps, batch, hidden, classes;
  // The first of these that has no unsupported_reason runs.
  ClusterChainPlan cluster;
  PipelinedChainPlan pipelined;
  ChainPlan plan;

  int rows() const { return steps * batch; }
};

// The products between two chains. What is what stands at blocked_products_ref, in
// fastmlp/ops/blocked_sgd.py.
struct BlockProducts {
  float* weight;                   // (groups * networks, hidden, inputs)
  const float* factors;            // (groups, rows, networks, hidden), or null: no update
  const uint8_t *before, *pixels;  // (groups, rows, inputs); null without factors, or parts
  const float *scale, *shift;      // (inputs)
  float* parts;                    // (plan.slices, groups, rows, networks, hidden), or null
  int64_t groups, networks;        // the latter of each group
  int rows, hidden, inputs;
  BlockProductsPlan plan;
};

// p = the sum of the parts + cross factors. What is what stands at blocked_product_sum_ref.
struct ProductSum {
  float* p;                      // (groups, rows, networks, hidden)
  const float* parts;            // (slices, ...) of these
  const float *cross, *factors;  // (groups, rows, rows) and as p, or both null
  int64_t groups, networks;
  int slices, rows, hidden;
};

// Gram matrices of images in bytes. What is what stands at blocked_gram_ref.
struct BlockGram {
  float *gram, *cross;         // (blocks, groups, rows, rows); cross null where it is not wanted
  const uint8_t* pixels;       // (blocks, groups, rows, inputs)
  const float *scale, *shift;  // (inputs), the same throughout each of the planes
  int64_t blocks, groups;
  int rows, inputs, planes;
};

[[nodiscard]] cudaError_t launch_block_gram(const BlockGram& in, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_block_products(const BlockProducts& in, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_product_sum(const ProductSum& in, cudaStream_t stream);

// Either kFloat or kDouble.
[[nodiscard]] cudaError_t launch_blocked_chain(const ChainBlock& block, Type type,
                                               cudaStream_t stream);
// kFloat, where block.pipelined has no unsupported_reason.
[[nodiscard]] cudaError_t launch_pipelined_chain(const ChainBlock& block, cudaStream_t stream);
// kFloat, where block.cluster has no unsupported_reason, and how many of its clusters, one for each
// network, the present device runs at the same time.
[[nodiscard]] cudaError_t launch_cluster_chain(const ChainBlock& block, cudaStream_t stream);
[[nodiscard]] cudaError_t count_cluster_chains(const ChainBlock& block, int* clusters);

}  // namespace fastmlp
