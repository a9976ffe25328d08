// Blocked look-ahead SGD on the CPU: the operator that runs a stretch of an epoch, of one network
// or of many.
#include "common/blocked_sgd.h"

#define FASTMLP_KERNELS "cpu/engine/blocked_kernels.h"
#include "cpu/simd/foreach_isa.h"
//
#include "common/check_ops.h"
#include "cpu/engine/blocked_run.h"
#include "cpu/engine/networks.h"
#include "cpu/threads/thread_pool.h"

namespace fastmlp {
namespace {

void check_order(const Tensor& order, const Tensor& moves, int64_t images,
                 const std::vector<int64_t>& shape) {
  check_plain("an order", order, 1, ScalarType::Long);
  for (int64_t i = 0; i < order.size(0); ++i) {
    const int64_t row = data<int64_t>(order)[i];
    FASTMLP_CHECK(row >= 0 && row < images, "an order must be in [0, " + std::to_string(images) +
                                                "), got " + std::to_string(row));
  }
  check_moves(moves, shape);
  if (moves.size(0) > 0) check_size("moves", moves, 0, order.size(0));
}

template <typename T>
std::vector<Group<T>> groups_of(const std::vector<Tensor>& orders, const std::vector<Tensor>& moves,
                                const std::vector<int64_t>& batches,
                                const std::vector<int64_t>& block_steps) {
  std::vector<Group<T>> groups;
  for (size_t g = 0; g < orders.size(); ++g) {
    FASTMLP_CHECK(batches[g] > 0 && block_steps[g] > 0, "batches and block_steps must be above 0");
    const int64_t rows = orders[g].size(0);
    const int64_t batch = std::clamp<int64_t>(rows, 1, batches[g]);  // no more than there are
    const int64_t steps = std::clamp<int64_t>(ceil_of(rows, batch), 1, block_steps[g]);
    groups.push_back({data<int64_t>(orders[g]),
                      moves[g].size(0) ? data<int8_t>(moves[g]) : nullptr,
                      rows,
                      batch,
                      steps,
                      {}});
  }
  return groups;
}

template <typename T>
Network<T> network_of(std::vector<Layer<T>> layers, const double* options, const Tensor& recurrence,
                      int64_t block_steps) {
  FASTMLP_CHECK(layers.size() > 1, "a network must have at least two layers");
  check_plain("a recurrence", recurrence, 2, ScalarType::Double);
  FASTMLP_CHECK(recurrence.size(0) > block_steps && recurrence.size(1) == kResponses,
                "a recurrence must have a row for each step of a block and one more");
  return {std::move(layers),
          data<double>(recurrence),
          {options[kLr], options[kMomentum], options[kWeightDecay], options[kNesterov] != 0,
           options[kGradAverage] != 0},
          nullptr,
          nullptr};
}

// Gives the layers of a network with momentum their buffers, from `next` on in the list.
template <typename T>
void attach_momentum(std::vector<Layer<T>>& layers, const std::vector<Tensor>& momentum,
                     size_t& next, ScalarType type) {
  FASTMLP_CHECK(next + 2 * layers.size() <= momentum.size(),
                "momentum must hold a buffer for each parameter of a network that has one");
  for (Layer<T>& layer : layers) {
    const Tensor &w = momentum[next++], &b = momentum[next++];
    check_plain("a weight's momentum", w, 2, type);
    check_size("a weight's momentum", w, 0, layer.outputs);
    check_size("a weight's momentum", w, 1, layer.inputs);
    check_plain("a bias's momentum", b, 1, type);
    check_size("a bias's momentum", b, 0, layer.outputs);
    layer.w_momentum = data<T>(w);
    layer.b_momentum = data<T>(b);
  }
}

std::tuple<Tensor, Tensor> blocked_train_cpu(
    const Tensor& images, const Tensor& labels, const Tensor& scale, const Tensor& shift,
    const std::vector<int64_t>& shape, const std::vector<Tensor>& orders,
    const std::vector<Tensor>& moves, const std::vector<int64_t>& batches,
    const std::vector<int64_t>& block_steps, const std::vector<int64_t>& group,
    const std::vector<int64_t>& layers, const std::vector<Tensor>& parameters,
    const std::vector<Tensor>& momentum, const std::vector<Tensor>& recurrences,
    const Tensor& options) {
  check_images(images, labels, scale, shift);
  check_plain("options", options, 2, ScalarType::Double);
  check_size("options", options, 1, kOptions);
  FASTMLP_CHECK(moves.size() == orders.size() && batches.size() == orders.size() &&
                    block_steps.size() == orders.size(),
                "each order must have its moves, batch and block_steps");
  FASTMLP_CHECK(group.size() == layers.size() && recurrences.size() == layers.size() &&
                    static_cast<size_t>(options.size(0)) == layers.size(),
                "each network must have its group, recurrence and options");
  if (!shape.empty()) check_image_shape(shape, images.size(1));
  for (size_t g = 0; g < orders.size(); ++g) {
    check_order(orders[g], moves[g], images.size(0), shape);
  }
  const ScalarType type = type_of(parameters);
  Tensor losses, correct;
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const ImageShape image_shape =
        shape.size() == 3 ? ImageShape{shape[0], shape[1], shape[2]} : ImageShape{};
    const Images inputs{data<uint8_t>(images), data<int64_t>(labels), data<float>(scale),
                        data<float>(shift),    images.size(1),        image_shape};
    std::vector<Group<T>> groups = groups_of<T>(orders, moves, batches, block_steps);
    auto networks = layers_of<T>(layers, parameters, images.size(1), type);
    std::vector<int64_t> starts(1);  // of each network's steps in losses
    size_t next = 0;
    for (size_t m = 0; m < networks.size(); ++m) {
      FASTMLP_CHECK(group[m] >= 0 && static_cast<size_t>(group[m]) < groups.size(),
                    "a group must be the number of an order");
      const Group<T>& mine = groups[group[m]];
      starts.push_back(starts.back() + (mine.rows + mine.batch - 1) / mine.batch);
      for (int64_t i = 0; i < mine.rows; ++i) {
        check_label(inputs.labels[mine.order[i]], networks[m].back().outputs);
      }
      if (data<double>(options)[m * kOptions + kMomentum] != 0) {
        attach_momentum(networks[m], momentum, next, type);
      }
    }
    FASTMLP_CHECK(next == momentum.size(),
                  "momentum must hold a buffer for each parameter of a network that has one, and "
                  "nothing else");
    std::vector<const Tensor*> read = pointers_to({&orders, &moves, &recurrences});
    read.insert(read.end(), {&images, &labels, &scale, &shift, &options});
    check_apart(pointers_to({&parameters, &momentum}), read);
    losses = empty_cpu({starts.back()}, type);
    correct = empty_cpu({starts.back()}, ScalarType::Long);
    int64_t work = 0;
    for (size_t m = 0; m < networks.size(); ++m) {
      Group<T>& mine = groups[group[m]];
      mine.networks.push_back(network_of<T>(std::move(networks[m]),
                                            data<double>(options) + m * kOptions, recurrences[m],
                                            mine.block_steps));
      mine.networks.back().losses = data<T>(losses) + starts[m];
      mine.networks.back().correct = data<int64_t>(correct) + starts[m];
    }
    for (const Group<T>& each : groups) {
      const int64_t blocks = each.rows / (each.batch * each.block_steps) + 1;
      work = std::max(work, work_of(each) / blocks);
    }
    if (groups.size() > 1 || plan_threads_cpu(work)) {
      ThreadPool::run([&](const Parallel& team) { run_groups(inputs, groups, team); });
    } else {
      run_groups(inputs, groups, Serial());
    }
  });
  return {losses, correct};
}

int64_t blocked_plan(int64_t batch, int64_t hidden, bool momentum, int64_t fresh) {
  FASTMLP_CHECK(batch > 0 && hidden > 0 && fresh >= 0,
                "batch and hidden must be above 0, fresh not below");
  return plan_blocked_cpu(batch, hidden, momentum, fresh);
}

std::tuple<int64_t, std::string> blocked_plan_cuda(int64_t batch, int64_t hidden, int64_t classes,
                                                   int64_t block_steps, bool doubles,
                                                   int64_t capability, int64_t shared_bytes) {
  FASTMLP_CHECK(batch > 0 && hidden > 0 && classes > 0 && block_steps >= 0,
                "batch, hidden and classes must be above 0, block_steps not below");
  check_planned("batch", batch);
  check_planned("capability", capability);
  check_planned("shared_bytes", shared_bytes);
  const Gpu gpu{0, static_cast<int>(capability), static_cast<int>(shared_bytes)};
  const int64_t steps =
      block_steps > 0 ? block_steps : plan_blocked_cuda(batch, hidden, classes, doubles, gpu);
  const PipelinedChainPlan pipelined =
      plan_pipelined_chain(batch, hidden, classes, steps, doubles, gpu);
  if (!pipelined.unsupported_reason) return {steps, ""};
  const ChainPlan plan = plan_chain_cuda(batch, hidden, classes, steps, doubles, gpu);
  return {steps, plan.unsupported_reason ? plan.unsupported_reason : ""};
}

std::tuple<int64_t, std::string> blocked_products_plan_cuda(int64_t rows, int64_t inputs,
                                                            int64_t planes, int64_t hidden,
                                                            int64_t networks, bool doubles,
                                                            int64_t processors, int64_t capability,
                                                            int64_t shared_bytes) {
  check_planned("rows", rows);
  check_planned("inputs", inputs);
  check_planned("planes", planes);
  check_planned("hidden", hidden);
  check_planned("networks", networks);
  check_planned("processors", processors);
  check_planned("capability", capability);
  check_planned("shared_bytes", shared_bytes);
  const Gpu gpu{static_cast<int>(processors), static_cast<int>(capability),
                static_cast<int>(shared_bytes)};
  const BlockProductsPlan plan =
      plan_block_products(rows, inputs, planes, hidden, networks, doubles, gpu);
  return {plan.slices, plan.unsupported_reason ? plan.unsupported_reason : ""};
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("blocked_train_", TORCH_BOX(&fastmlp::blocked_train_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("blocked_plan", TORCH_BOX(&fastmlp::blocked_plan));
  m.impl("blocked_plan_cuda", TORCH_BOX(&fastmlp::blocked_plan_cuda));
  m.impl("blocked_products_plan_cuda", TORCH_BOX(&fastmlp::blocked_products_plan_cuda));
}
