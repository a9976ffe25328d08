// Loss and hits of networks over a set of images, on the CPU.
#include "common/blocked_sgd.h"

#define FASTMLP_KERNELS "cpu/engine/blocked_kernels.h"
#include "cpu/simd/foreach_isa.h"
//
#include <numeric>
#include <optional>

#include "cpu/engine/networks.h"
#include "cpu/threads/thread_pool.h"

namespace fastmlp {
namespace {

constexpr int64_t kRows = kPanelRows;  // inputs that stay in a level-2 cache for all networks

// One network on a panel of `rows` inputs: losses (rows) and hits (rows).
template <typename T>
void run_network(const std::vector<Layer<T>>& layers, std::vector<T> (&activations)[2],
                 std::vector<T>& sums, const T* panel, const int64_t* labels, int64_t rows,
                 double* losses, int64_t* hits) {
  const T* x = nullptr;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer<T>& layer = layers[l];
    const Activation activation = l + 1 < layers.size() ? Activation::kRelu : Activation::kNone;
    std::vector<T>& y = activations[l % 2];
    y.resize(rows * layer.outputs);
    sums.resize(kPanelRows * layer.outputs);
    if (l == 0) {
      FASTMLP_BEST_ISA(panel_product<T>)(panel, rows, layer.inputs, layer.w, layer.outputs, layer.b,
                                         activation, y.data(), layer.outputs, sums.data());
    } else {
      FASTMLP_BEST_ISA(chain_forward<T>)(layer, rows, x, activation, 0, layer.outputs, y.data(),
                                         sums.data());
    }
    x = y.data();
  }
  FASTMLP_BEST_ISA(losses_of<T>)(x, labels, rows, layers.back().outputs, losses, hits);
}

// The sum of `values`, each as often as counts say, or once where that is null.
template <typename V>
V sum_of(const V* values, const int64_t* counts, int64_t count) {
  return counts ? std::inner_product(values, values + count, counts, V{0})
                : std::accumulate(values, values + count, V{0});
}

std::tuple<Tensor, Tensor> evaluate_cpu(const Tensor& images, const Tensor& labels,
                                        const Tensor& scale, const Tensor& shift,
                                        const std::optional<Tensor>& counts,
                                        const std::vector<int64_t>& layers,
                                        const std::vector<Tensor>& parameters) {
  const ScalarType type = type_of(parameters);
  check_images(images, labels, scale, shift);
  if (counts) {
    check_plain("counts", *counts, 1, ScalarType::Long);
    check_size("counts", *counts, 0, images.size(0));
    int64_t all = 0;
    for (int64_t i = 0; i < images.size(0); ++i) {
      const int64_t times = data<int64_t>(*counts)[i];
      FASTMLP_CHECK(times >= 0 && !__builtin_add_overflow(all, times, &all),
                    "counts must not be negative, nor their sum beyond int64");
    }
  }
  const int64_t count = images.size(0), features = images.size(1), networks = layers.size();
  const int64_t chunks = (count + kRows - 1) / kRows;
  Tensor loss = empty_cpu({networks}, ScalarType::Double);
  Tensor correct = empty_cpu({networks}, ScalarType::Long);
  dispatch_network(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto each = layers_of<T>(layers, parameters, features, type);
    for (const auto& network : each) {
      for (int64_t i = 0; i < count; ++i) {
        check_label(data<int64_t>(labels)[i], network.back().outputs);
      }
    }
    std::vector<double> losses(networks * count);
    std::vector<int64_t> hits(networks * count);
    const auto run_chunk = [&](int64_t chunk) {
      const int64_t first = chunk * kRows, rows = std::min(kRows, count - first);
      const Buffer<T> panel(kPanelRows * features);
      std::vector<T> activations[2], sums;
      for (int64_t m = 0; m < rows; m += kPanelUnit) {
        FASTMLP_BEST_ISA(normalize_rows<T>)(data<uint8_t>(images) + (first + m) * features,
                                            features, std::min(kPanelUnit, rows - m),
                                            data<float>(scale), data<float>(shift), features,
                                            nullptr, panel.get() + m, panel_width(rows, 0));
      }
      for (int64_t n = 0; n < networks; ++n) {
        const int64_t at = n * count + first;
        run_network(each[n], activations, sums, panel.get(), data<int64_t>(labels) + first, rows,
                    losses.data() + at, hits.data() + at);
      }
    };
    ThreadPool::run([&](const Parallel& team) { team.run(chunks, run_chunk); });
    const int64_t* times = counts ? data<int64_t>(*counts) : nullptr;
    for (int64_t n = 0; n < networks; ++n) {
      data<double>(loss)[n] = sum_of(losses.data() + n * count, times, count);
      data<int64_t>(correct)[n] = sum_of(hits.data() + n * count, times, count);
    }
  });
  return {loss, correct};
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("evaluate", TORCH_BOX(&fastmlp::evaluate_cpu));
}
