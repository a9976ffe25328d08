// The CUDA operator of blocked look-ahead SGD: arguments checked, the chain's kernel launched.
#include <torch/csrc/stable/library.h>

#include "common/blocked_sgd.h"
#include "cuda/bindings.h"

namespace fastmlp {
namespace {

// The parameters that the chain moves, or their momenta.
enum ChainParameter { kBias, kWeight2, kBias2, kChainParameters };

// The sizes that all arguments have in common.
struct ChainSizes {
  int64_t groups, rows, networks, hidden, classes, steps, all;
  ScalarType type;
};

void check_shape(const char* name, const Tensor& tensor, const Tensor& p, ScalarType type,
                 const std::vector<int64_t>& sizes) {
  check_dim(name, tensor, sizes.size());
  for (size_t dim = 0; dim < sizes.size(); ++dim) check_size(name, tensor, dim, sizes[dim]);
  FASTMLP_CHECK(tensor.is_contiguous(), name + " must be contiguous");
  FASTMLP_CHECK(tensor.scalar_type() == type, name + " has the wrong dtype");
  check_device(name, tensor, p);
  check_memory(name, tensor);
}

ChainSizes sizes_of_chain(const Tensor& p, const Tensor& recurrence, int64_t batch,
                          const std::vector<Tensor>& parameters) {
  check_dim("p", p, 4);
  const ScalarType type = p.scalar_type();
  FASTMLP_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                "p must be float32 or float64");
  FASTMLP_CHECK(parameters.size() == kChainParameters,
                "parameters must be a bias, the last weight and the last bias");
  check_dim("recurrence", recurrence, 3);
  check_dim("the last weight", parameters[kWeight2], 3);
  const int64_t steps = recurrence.size(1) - 1;
  FASTMLP_CHECK(batch > 0 && steps > 0 && p.size(1) % batch == 0 && p.size(1) / batch == steps,
                "p must have a row for each image of the recurrence's steps");
  return {p.size(0),
          p.size(1),
          p.size(2),
          p.size(3),
          parameters[kWeight2].size(1),
          steps,
          p.size(0) * p.size(2),
          type};
}

void check_chain_parameters(const char* name, const std::vector<Tensor>& tensors, const Tensor& p,
                            const ChainSizes& n) {
  if (tensors.empty()) return;
  FASTMLP_CHECK(tensors.size() == kChainParameters, name + " must be as many as parameters");
  check_shape(name, tensors[kBias], p, n.type, {n.all, n.hidden});
  check_shape(name, tensors[kWeight2], p, n.type, {n.all, n.classes, n.hidden});
  check_shape(name, tensors[kBias2], p, n.type, {n.all, n.classes});
}

// What blocked_chain_ is given, checked.
struct ChainArguments {
  const Tensor& p;
  const std::optional<Tensor>& q;
  const Tensor &gram, &labels, &rows, &recurrence, &options;
  const std::vector<Tensor>&parameters, &momentum;
  const Tensor& to_w;
  const std::optional<Tensor>& to_v;
  const Tensor &ends, &losses, &correct;

  void check(const ChainSizes& n) const {
    const std::vector<int64_t> hidden_sizes{n.groups, n.rows, n.networks, n.hidden};
    check_shape("p", p, p, n.type, hidden_sizes);
    FASTMLP_CHECK(!q || !momentum.empty(), "q must come with momentum");
    if (q) check_shape("q", *q, p, n.type, hidden_sizes);
    check_shape("to_w", to_w, p, n.type, hidden_sizes);
    FASTMLP_CHECK(to_v.has_value() == !momentum.empty(), "to_v must come with momentum");
    if (to_v) check_shape("to_v", *to_v, p, n.type, hidden_sizes);
    check_shape("gram", gram, p, n.type, {n.groups, n.rows, n.steps > 1 ? n.rows : 0});
    check_shape("labels", labels, p, ScalarType::Long, {n.groups, n.rows});
    check_shape("rows", rows, p, ScalarType::Long, {n.groups});
    check_shape("recurrence", recurrence, p, n.type, {n.all, n.steps + 1, kResponses});
    check_shape("options", options, p, n.type, {n.all, kOptions});
    check_chain_parameters("parameters", parameters, p, n);
    check_chain_parameters("momentum", momentum, p, n);
    check_shape("ends", ends, p, n.type, {n.all, 4});
    check_shape("losses", losses, p, n.type, {n.all, n.steps});
    check_shape("correct", correct, p, ScalarType::Long, {n.all, n.steps});
    std::vector<const Tensor*> written{&to_w, &ends, &losses, &correct};
    std::vector<const Tensor*> read{&p, &gram, &labels, &rows, &recurrence, &options};
    for (const auto* tensors : {&parameters, &momentum}) {
      for (const Tensor& tensor : *tensors) written.push_back(&tensor);
    }
    if (to_v) written.push_back(&*to_v);
    if (q) read.push_back(&*q);
    check_apart(written, read);
  }

  // All but the plan and the workspace.
  ChainBlock block(const ChainSizes& n, int64_t batch) const {
    const auto pointer = [](const std::optional<Tensor>& tensor) {
      return tensor ? tensor->data_ptr() : nullptr;
    };
    const auto buffer = [&](ChainParameter which) {
      return momentum.empty() ? nullptr : momentum[which].data_ptr();
    };
    ChainBlock block{};
    block.p = p.data_ptr();
    block.q = pointer(q);
    block.gram = gram.data_ptr();
    block.labels = static_cast<const int64_t*>(labels.data_ptr());
    block.counts = static_cast<const int64_t*>(rows.data_ptr());
    block.recurrence = recurrence.data_ptr();
    block.options = options.data_ptr();
    block.bias = parameters[kBias].data_ptr();
    block.weight2 = parameters[kWeight2].data_ptr();
    block.bias2 = parameters[kBias2].data_ptr();
    block.bias_momentum = buffer(kBias);
    block.weight2_momentum = buffer(kWeight2);
    block.bias2_momentum = buffer(kBias2);
    block.to_w = to_w.data_ptr();
    block.to_v = pointer(to_v);
    block.ends = ends.data_ptr();
    block.losses = losses.data_ptr();
    block.correct = static_cast<int64_t*>(correct.data_ptr());
    block.groups = n.groups;
    block.networks = n.networks;
    block.steps = static_cast<int>(n.steps);
    block.batch = static_cast<int>(batch);
    block.hidden = static_cast<int>(n.hidden);
    block.classes = static_cast<int>(n.classes);
    return block;
  }
};

void blocked_chain_cuda(const Tensor& p, const std::optional<Tensor>& q, const Tensor& gram,
                        const Tensor& labels, const Tensor& rows, const Tensor& recurrence,
                        const Tensor& options, int64_t batch, const std::vector<Tensor>& parameters,
                        const std::vector<Tensor>& momentum, const Tensor& to_w,
                        const std::optional<Tensor>& to_v, const Tensor& ends, const Tensor& losses,
                        const Tensor& correct) {
  const ChainSizes n = sizes_of_chain(p, recurrence, batch, parameters);
  const ChainArguments arguments{p,          q,        gram, labels, rows, recurrence, options,
                                 parameters, momentum, to_w, to_v,   ends, losses,     correct};
  arguments.check(n);
  const bool doubles = n.type == ScalarType::Double;
  const Launch launch(p);
  Gpu gpu{};
  check_launch("blocked_chain_", describe_device(&gpu));
  ChainBlock block = arguments.block(n, batch);
  block.cluster = plan_cluster_chain(batch, n.hidden, n.classes, n.steps, n.all, doubles,
                                     !momentum.empty(), gpu);
  int clusters = 0;
  check_launch("blocked_chain_", count_cluster_chains(block, &clusters));
  if (clusters > 0 && clusters >= n.all) {
    check_launch("blocked_chain_", launch_cluster_chain(block, launch.stream));
    return;
  }
  block.pipelined = plan_pipelined_chain(batch, n.hidden, n.classes, n.steps, doubles, gpu);
  if (!block.pipelined.unsupported_reason) {
    check_launch("blocked_chain_", launch_pipelined_chain(block, launch.stream));
    return;
  }
  const ChainPlan plan = plan_chain_cuda(batch, n.hidden, n.classes, n.steps, doubles, gpu);
  FASTMLP_CHECK(!plan.unsupported_reason,
                std::string("the chain cannot run: ") + plan.unsupported_reason);
  std::optional<Tensor> workspace;
  if (batch > plan.tile) workspace = empty_beside(p, {n.all, n.classes, n.hidden}, n.type);
  block.workspace = workspace ? workspace->data_ptr() : nullptr;
  block.plan = plan;
  check_launch("blocked_chain_", launch_blocked_chain(block, type_of(n.type), launch.stream));
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, FASTMLP_KEY, m) {
  m.impl("blocked_chain_", TORCH_BOX(&fastmlp::blocked_chain_cuda));
}
