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

// Kernels read and write so many bytes at once; new tensors are aligned to more.
void check_aligned(const char* name, const Tensor& tensor, size_t bytes = 16) {
  FASTMLP_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % bytes == 0,
                name + " must begin at a multiple of " + std::to_string(bytes) + " bytes");
}
size_t units_at_once(int64_t hidden) { return hidden % 4 == 0 ? 16 : hidden % 2 == 0 ? 8 : 4; }

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
  const Gpu gpu = gpu_of("blocked_chain_");
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

void blocked_gram_cuda(const Tensor& gram, const std::optional<Tensor>& cross, const Tensor& pixels,
                       const Tensor& scale, const Tensor& shift, int64_t planes) {
  constexpr ScalarType kType = ScalarType::Float;
  check_dim("pixels", pixels, 4);
  const int64_t blocks = pixels.size(0), groups = pixels.size(1);
  const int64_t rows = pixels.size(2), inputs = pixels.size(3);
  check_shape("pixels", pixels, pixels, ScalarType::Byte, sizes_of(pixels));
  check_shape("gram", gram, pixels, kType, {blocks, groups, rows, rows});
  if (cross) check_shape("cross", *cross, pixels, kType, {blocks, groups, rows, rows});
  check_shape("scale", scale, pixels, kType, {inputs});
  check_shape("shift", shift, pixels, kType, {inputs});
  check_planned("planes", planes);
  std::vector<const Tensor*> written{&gram};
  if (cross) written.push_back(&*cross);
  check_apart(written, {&pixels, &scale, &shift});
  check_aligned("pixels", pixels);
  const Launch launch(pixels);
  const Gpu gpu = gpu_of("blocked_gram_");
  const BlockProductsPlan plan = plan_block_products(rows, inputs, planes, 1, 1, false, gpu);
  FASTMLP_CHECK(!plan.unsupported_reason,
                std::string("the Gram matrices cannot be made: ") + plan.unsupported_reason);
  BlockGram in{};
  in.gram = static_cast<float*>(gram.data_ptr());
  in.cross = cross ? static_cast<float*>(cross->data_ptr()) : nullptr;
  in.pixels = static_cast<const uint8_t*>(pixels.data_ptr());
  in.scale = static_cast<const float*>(scale.data_ptr());
  in.shift = static_cast<const float*>(shift.data_ptr());
  in.blocks = blocks;
  in.groups = groups;
  in.rows = static_cast<int>(rows);
  in.inputs = static_cast<int>(inputs);
  in.planes = static_cast<int>(planes);
  check_launch("blocked_gram_", launch_block_gram(in, launch.stream));
}

void blocked_products_cuda(const Tensor& weight, const std::optional<Tensor>& factors,
                           const std::optional<Tensor>& before, const std::optional<Tensor>& pixels,
                           const Tensor& scale, const Tensor& shift,
                           const std::optional<Tensor>& parts) {
  constexpr ScalarType kType = ScalarType::Float;
  check_dim("weight", weight, 3);
  FASTMLP_CHECK(factors.has_value() == before.has_value(), "factors must come with before");
  FASTMLP_CHECK(parts.has_value() == pixels.has_value(), "parts must come with pixels");
  if (!factors && !parts) return;
  if (factors) check_dim("factors", *factors, 4);
  if (parts) check_dim("parts", *parts, 5);
  const auto size = [&](int64_t dim) {
    return factors ? factors->size(dim) : parts->size(dim + 1);
  };
  const int64_t groups = size(0), rows = size(1), networks = size(2);
  const int64_t hidden = weight.size(1), inputs = weight.size(2);
  check_shape("weight", weight, weight, kType, {groups * networks, hidden, inputs});
  check_shape("scale", scale, weight, kType, {inputs});
  check_shape("shift", shift, weight, kType, {inputs});
  if (factors) {
    check_shape("factors", *factors, weight, kType, {groups, rows, networks, hidden});
    check_shape("before", *before, weight, ScalarType::Byte, {groups, rows, inputs});
  }
  BlockProducts in{};
  const Launch launch(weight);
  const Gpu gpu = gpu_of("blocked_products_");
  in.plan = plan_block_products(rows, inputs, 1, hidden, groups * networks, false, gpu);
  FASTMLP_CHECK(!in.plan.unsupported_reason,
                std::string("the products cannot be made: ") + in.plan.unsupported_reason);
  if (parts) {
    check_shape("parts", *parts, weight, kType, {in.plan.slices, groups, rows, networks, hidden});
    check_shape("pixels", *pixels, weight, ScalarType::Byte, {groups, rows, inputs});
  }
  std::vector<const Tensor*> written{&weight}, read{&scale, &shift};
  if (parts) written.push_back(&*parts);
  for (const auto* tensor : {&factors, &before, &pixels}) {
    if (*tensor) read.push_back(&**tensor);
  }
  check_apart(written, read);
  check_aligned("weight", weight);
  check_aligned("scale", scale);
  check_aligned("shift", shift);
  if (before) check_aligned("before", *before);
  if (pixels) check_aligned("pixels", *pixels);
  if (parts) check_aligned("parts", *parts, units_at_once(hidden));
  in.weight = static_cast<float*>(weight.data_ptr());
  if (factors) {
    in.factors = static_cast<const float*>(factors->data_ptr());
    in.before = static_cast<const uint8_t*>(before->data_ptr());
  }
  if (parts) {
    in.parts = static_cast<float*>(parts->data_ptr());
    in.pixels = static_cast<const uint8_t*>(pixels->data_ptr());
  }
  in.scale = static_cast<const float*>(scale.data_ptr());
  in.shift = static_cast<const float*>(shift.data_ptr());
  in.groups = groups;
  in.networks = networks;
  in.rows = static_cast<int>(rows);
  in.hidden = static_cast<int>(hidden);
  in.inputs = static_cast<int>(inputs);
  check_launch("blocked_products_", launch_block_products(in, launch.stream));
}

void blocked_product_sum_cuda(const Tensor& p, const Tensor& parts,
                              const std::optional<Tensor>& cross,
                              const std::optional<Tensor>& factors) {
  constexpr ScalarType kType = ScalarType::Float;
  check_dim("p", p, 4);
  check_dim("parts", parts, 5);
  FASTMLP_CHECK(factors.has_value() == cross.has_value(), "factors must come with cross");
  const int64_t slices = parts.size(0), rows = p.size(1);
  FASTMLP_CHECK(rows <= 128, "p must have up to 128 rows");
  check_shape("p", p, p, kType, sizes_of(p));
  check_planned("parts", slices);
  check_shape("parts", parts, p, kType, {slices, p.size(0), rows, p.size(2), p.size(3)});
  std::vector<const Tensor*> read{&parts};
  if (cross) {
    check_shape("cross", *cross, p, kType, {p.size(0), rows, rows});
    check_shape("factors", *factors, p, kType, sizes_of(p));
    read.insert(read.end(), {&*cross, &*factors});
  }
  check_apart({&p}, read);
  check_aligned("parts", parts, units_at_once(p.size(3)));
  const Launch launch(p);
  ProductSum in{};
  in.p = static_cast<float*>(p.data_ptr());
  in.parts = static_cast<const float*>(parts.data_ptr());
  in.cross = cross ? static_cast<const float*>(cross->data_ptr()) : nullptr;
  in.factors = cross ? static_cast<const float*>(factors->data_ptr()) : nullptr;
  in.groups = p.size(0);
  in.networks = p.size(2);
  in.slices = static_cast<int>(slices);
  in.rows = static_cast<int>(rows);
  in.hidden = static_cast<int>(p.size(3));
  check_launch("blocked_product_sum_", launch_product_sum(in, launch.stream));
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, FASTMLP_KEY, m) {
  m.impl("blocked_chain_", TORCH_BOX(&fastmlp::blocked_chain_cuda));
  m.impl("blocked_gram_", TORCH_BOX(&fastmlp::blocked_gram_cuda));
  m.impl("blocked_products_", TORCH_BOX(&fastmlp::blocked_products_cuda));
  m.impl("blocked_product_sum_", TORCH_BOX(&fastmlp::blocked_product_sum_cuda));
}
