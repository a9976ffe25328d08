// Training steps of any MLP on the CPU: the operator that runs a stretch of an epoch, of one
// network or of many.
#include "cpu/engine/steps.h"

#define FASTMLP_KERNELS "cpu/engine/steps_kernels.h"
#include "cpu/simd/foreach_isa.h"
//
#include "cpu/engine/row_data.h"
#include "cpu/engine/steps_run.h"
#include "cpu/threads/thread_pool.h"

namespace fastmlp {
namespace {

// The tensors of one network, from the lists of all.
struct Lists {
  const std::vector<Tensor>&orders, &parameters, &state;
  const std::vector<int64_t>& layers;
  const double* options;
};

// Steps that are left, of an order of so many epochs of so many rows.
int64_t steps_of(const double* options, int64_t epochs, int64_t rows) {
  const auto batch = static_cast<int64_t>(options[kBatchSize]);
  const auto start = static_cast<int64_t>(options[kStartStep]);
  const auto most = static_cast<int64_t>(options[kMaxSteps]);
  const int64_t of_epoch = rows / batch + (rows % batch != 0);
  return std::min(most, std::max<int64_t>(epochs * of_epoch - start, 0));
}

// The tensors that the optimizer keeps, from `next` on, as the parameters are.
template <typename T>
std::vector<T*> kept_of(const std::vector<Tensor>& state, size_t& next, const Lists& lists,
                        size_t first, size_t count) {
  FASTMLP_CHECK(count <= state.size() - next, "state must hold what each optimizer keeps");
  std::vector<T*> kept;
  for (size_t i = 0; i < count; ++i) {
    const Tensor &tensor = state[next++], &parameter = lists.parameters[first + i];
    check_plain("state", tensor, parameter.dim(), parameter.scalar_type());
    check_same_shape("state", tensor, "its parameter", parameter);
    kept.push_back(data<T>(tensor));
  }
  return kept;
}

template <typename T>
StepNetwork<T> step_network_of(const Lists& lists, size_t m, size_t first, size_t& next,
                               const RowData& rows) {
  const Tensor& order = lists.orders[m];
  check_plain("an order", order, 1, ScalarType::Long);
  StepNetwork<T> network{};
  network.options = lists.options + m * kStepOptions;
  check_step_options(network.options);
  const ScalarType type = lists.parameters[first].scalar_type();
  network.sizes = sizes_of_network(lists.parameters, first, lists.layers[m], rows.features, type);
  const size_t count = 2 * lists.layers[m];
  for (size_t i = 0; i < count; ++i) {
    network.parameters.push_back(data<T>(lists.parameters[first + i]));
  }
  const auto optimizer = static_cast<Optimizer>(network.options[kOptimizer]);
  if (optimizer != Optimizer::kSgd) {
    network.first = kept_of<T>(lists.state, next, lists, first, count);
    network.second = kept_of<T>(lists.state, next, lists, first, count);
  } else if (network.options[kStepMomentum] != 0) {
    network.first = kept_of<T>(lists.state, next, lists, first, count);
  }
  network.order = data<int64_t>(order);
  const auto epochs = static_cast<int64_t>(network.options[kEpochs]);
  FASTMLP_CHECK(order.size(0) % epochs == 0, "an order must hold as many rows for each epoch");
  network.rows = order.size(0) / epochs;
  network.steps = network.rows == 0 ? 0 : steps_of(network.options, epochs, network.rows);
  const bool labels = static_cast<Loss>(network.options[kLoss]) == Loss::kCrossEntropy;
  check_rows(rows, labels, network.order, order.size(0), network.sizes.back());
  return network;
}

// Multiply-adds of a step.
template <typename T>
int64_t work_of(const StepNetwork<T>& network) {
  int64_t work = 0;
  for (size_t l = 1; l < network.sizes.size(); ++l) {
    work += (l > 1 ? 3 : 2) * network.sizes[l - 1] * network.sizes[l];
  }
  return work * std::min<int64_t>(network.options[kBatchSize], network.rows);
}

// As many networks at once as there are threads; those left over one after the other, each with all
// threads where its steps are large.
template <typename T>
void run_networks(const RowData& rows, const std::vector<StepNetwork<T>>& networks) {
  int64_t most = 0;
  for (const StepNetwork<T>& network : networks) most = std::max(most, work_of(network));
  const Serial alone;
  if (networks.size() == 1 && !plan_step_threads_cpu(most)) {
    return StepRun<T>(rows, networks[0], alone).run();
  }
  ThreadPool::run([&](const Parallel& team) {
    const int64_t count = networks.size(), beside = count / team.threads() * team.threads();
    team.run(beside, [&](int64_t i) { StepRun<T>(rows, networks[i], alone).run(); });
    for (int64_t i = beside; i < count; ++i) {
      const bool wide = plan_step_threads_cpu(work_of(networks[i]));
      StepRun<T>(rows, networks[i], wide ? team : static_cast<const Parallel&>(alone)).run();
    }
  });
}

std::tuple<Tensor, Tensor> train_steps_cpu(
    const Tensor& x, const std::optional<Tensor>& columns, const std::optional<Tensor>& starts,
    const Tensor& targets, const std::optional<Tensor>& row_weights,
    const std::optional<Tensor>& class_weight, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::vector<Tensor>& orders,
    const std::vector<int64_t>& layers, const std::vector<Tensor>& parameters,
    const std::vector<Tensor>& state, const Tensor& options) {
  check_plain("options", options, 2, ScalarType::Double);
  check_size("options", options, 1, kStepOptions);
  FASTMLP_CHECK(
      orders.size() == layers.size() && static_cast<size_t>(options.size(0)) == layers.size(),
      "each network must have its order, layers and options");
  const ScalarType type = type_of(parameters);
  const std::optional<Tensor> given(targets);
  const RowData rows =
      row_data_of({x, columns, starts, given, row_weights, class_weight, scale, shift}, parameters);
  const int64_t outputs = parameters.back().size(0);
  Tensor losses, correct;
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Lists lists{orders, parameters, state, layers, data<double>(options)};
    std::vector<StepNetwork<T>> networks;
    size_t first = 0, next = 0;
    int64_t steps = 0;
    for (size_t m = 0; m < layers.size(); ++m) {
      FASTMLP_CHECK(first < parameters.size(), "parameters are missing");
      FASTMLP_CHECK(parameters[first].scalar_type() == type, "networks must share a dtype");
      networks.push_back(step_network_of<T>(lists, m, first, next, rows));
      FASTMLP_CHECK(networks.back().sizes.back() == outputs, "networks must share their outputs");
      first += 2 * layers[m];
      steps += networks.back().steps;
    }
    FASTMLP_CHECK(first == parameters.size() && next == state.size(),
                  "parameters must hold a weight and a bias for each layer, state what optimizers "
                  "keep of them, and nothing else");
    std::vector<const Tensor*> read = pointers_to({&orders});
    read.insert(read.end(), {&x, &targets, &options});
    for (const auto* tensor : {&columns, &starts, &row_weights, &class_weight, &scale, &shift}) {
      if (*tensor) read.push_back(&**tensor);
    }
    check_apart(pointers_to({&parameters, &state}), read);
    losses = empty_cpu({steps}, ScalarType::Double);
    correct = empty_cpu({steps}, ScalarType::Long);
    steps = 0;
    for (StepNetwork<T>& network : networks) {
      network.losses = data<double>(losses) + steps;
      network.correct = data<int64_t>(correct) + steps;
      steps += network.steps;
    }
    run_networks(rows, networks);
  });
  return {losses, correct};
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("train_steps_", TORCH_BOX(&fastmlp::train_steps_cpu));
}
