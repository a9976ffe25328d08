// What of csrc needs neither torch nor a GPU, as the Python module fastmlp_internals:
// tests/support/native_module.py builds it, the tests beside this file ask it. Nothing is computed
// here that csrc does not compute; device code is compiled as cuda_on_host has it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <thread>

#include "common/blocked_sgd.h"
#include "common/scalar_math.h"
#include "cpu/threads/work_sharing.h"
#include "cuda/blocked/chain_parts.cuh"
#include "cuda/linear_engines.cuh"
#include "plan.h"

namespace py = pybind11;

namespace cuda_on_host {
dim3 thread, block, block_size, grid_size;  // of the one thread that runs here
}

namespace fastmlp {
namespace {

// ---- plan.h -------------------------------------------------------------------------------------

template <typename... Arguments>
auto linear_plan(LinearPlan (*plan)(Arguments...)) {
  return [plan](Arguments... arguments) {
    const auto [ours, reason] = plan(arguments...);
    return std::make_tuple(ours, std::string(reason));
  };
}

std::tuple<int, int64_t, int64_t> product_plan(int64_t m, int64_t n, int64_t k,
                                               int64_t processors) {
  const auto [tile_m, splits, chunk] = plan_product(m, n, k, processors);
  return {tile_m, splits, chunk};
}

std::tuple<int, std::string> matmul_precision_plan(int64_t m, int64_t n, int64_t k, int capability,
                                                   int wanted) {
  const auto [chosen, reason] =
      plan_matmul_precision(m, n, k, capability, static_cast<MatmulPrecision>(wanted));
  return {static_cast<int>(chosen), reason};
}

void bind_plans(py::module_& m) {
  py::enum_<Numbers>(m, "Numbers")
      .value("float16", Numbers::kFloat16)
      .value("bfloat16", Numbers::kBrainFloat16)
      .value("wider", Numbers::kWider);
  m.def("plan_linear_cpu", linear_plan(plan_linear_cpu));
  m.def("plan_linear_cuda", linear_plan(plan_linear_cuda));
  m.def("plan_product", product_plan);
  m.def("plan_matmul_precision", matmul_precision_plan);
  m.def("is_in_reach", is_in_reach);
  m.def("plan_direct", [](bool in_reach, int capability, int wanted) {
    const auto [direct, reason] =
        plan_direct(in_reach, capability, static_cast<MatmulPrecision>(wanted));
    return std::make_tuple(direct, std::string(reason));
  });
  m.def("plan_direct_linear_or_tiles",
        [](int64_t batch, int64_t in, int64_t out, bool in_reach, int capability, int wanted) {
          const auto [direct, reason] = plan_direct_linear_or_tiles(
              batch, in, out, in_reach, capability, static_cast<MatmulPrecision>(wanted));
          return std::make_tuple(direct, std::string(reason));
        });
  py::class_<DirectLinearPlan>(m, "DirectLinearPlan")
      .def_readonly("out_bits", &DirectLinearPlan::out_bits)
      .def_readonly("k_warps", &DirectLinearPlan::k_warps)
      .def_readonly("column_blocks", &DirectLinearPlan::column_blocks)
      .def_readonly("row_blocks", &DirectLinearPlan::row_blocks);
  m.def("plan_direct_linear", plan_direct_linear);
  py::class_<DirectGradientsPlan>(m, "DirectGradientsPlan")
      .def_readonly("row_tiles", &DirectGradientsPlan::row_tiles)
      .def_readonly("row_bits", &DirectGradientsPlan::row_bits)
      .def_readonly("out_bits", &DirectGradientsPlan::out_bits)
      .def_readonly("dx_blocks", &DirectGradientsPlan::dx_blocks)
      .def_readonly("dw_blocks", &DirectGradientsPlan::dw_blocks);
  m.def("plan_direct_gradients", plan_direct_gradients);
  m.def("plan_blocked_cpu", plan_blocked_cpu);
  py::class_<Gpu>(m, "Gpu").def(py::init<int, int, int>());
  m.def("plan_blocked_cuda", plan_blocked_cuda);
  py::class_<ClusterChainPlan>(m, "ClusterChainPlan")
      .def_readonly("unsupported_reason", &ClusterChainPlan::unsupported_reason)
      .def_readonly("tiles_of_step", &ClusterChainPlan::tiles_of_step)
      .def_readonly("tiles", &ClusterChainPlan::tiles)
      .def_readonly("warps", &ClusterChainPlan::warps)
      .def_readonly("parts", &ClusterChainPlan::parts)
      .def_readonly("slots_of_lane", &ClusterChainPlan::slots_of_lane)
      .def_readonly("slots", &ClusterChainPlan::slots)
      .def_readonly("newest", &ClusterChainPlan::newest)
      .def_readonly("labels", &ClusterChainPlan::labels)
      .def_readonly("inbox", &ClusterChainPlan::inbox)
      .def_readonly("partial", &ClusterChainPlan::partial)
      .def_readonly("weight", &ClusterChainPlan::weight)
      .def_readonly("columns", &ClusterChainPlan::columns)
      .def_readonly("dlogits", &ClusterChainPlan::dlogits)
      .def_readonly("sums", &ClusterChainPlan::sums)
      .def_readonly("margins", &ClusterChainPlan::margins)
      .def_readonly("hits", &ClusterChainPlan::hits)
      .def_readonly("flags", &ClusterChainPlan::flags)
      .def_readonly("size", &ClusterChainPlan::size);
  m.def("plan_cluster_chain", plan_cluster_chain);
  py::class_<BlockProductsPlan>(m, "BlockProductsPlan")
      .def_readonly("unsupported_reason", &BlockProductsPlan::unsupported_reason)
      .def_readonly("warps", &BlockProductsPlan::warps)
      .def_readonly("unit_blocks", &BlockProductsPlan::unit_blocks)
      .def_readonly("tiles", &BlockProductsPlan::tiles)
      .def_readonly("tiles_of_slice", &BlockProductsPlan::tiles_of_slice)
      .def_readonly("slices", &BlockProductsPlan::slices);
  m.def("plan_block_products", plan_block_products);
  py::class_<PipelinedChainPlan>(m, "PipelinedChainPlan")
      .def_readonly("unsupported_reason", &PipelinedChainPlan::unsupported_reason)
      .def_readonly("tiles_of_step", &PipelinedChainPlan::tiles_of_step)
      .def_readonly("tiles", &PipelinedChainPlan::tiles)
      .def_readonly("warps", &PipelinedChainPlan::warps)
      .def_readonly("slots", &PipelinedChainPlan::slots)
      .def_readonly("factors", &PipelinedChainPlan::factors)
      .def_readonly("weight", &PipelinedChainPlan::weight)
      .def_readonly("partial", &PipelinedChainPlan::partial)
      .def_readonly("dlogits", &PipelinedChainPlan::dlogits)
      .def_readonly("labels", &PipelinedChainPlan::labels)
      .def_readonly("sums", &PipelinedChainPlan::sums)
      .def_readonly("margins", &PipelinedChainPlan::margins)
      .def_readonly("hits", &PipelinedChainPlan::hits)
      .def_readonly("flags", &PipelinedChainPlan::flags)
      .def_readonly("size", &PipelinedChainPlan::size);
  m.def("plan_pipelined_chain", plan_pipelined_chain);
  py::class_<ChainPlan>(m, "ChainPlan")
      .def_readonly("unsupported_reason", &ChainPlan::unsupported_reason)
      .def_readonly("tile", &ChainPlan::tile)
      .def_readonly("units", &ChainPlan::units)
      .def_readonly("threads", &ChainPlan::threads)
      .def_readonly("keeps_weight", &ChainPlan::keeps_weight)
      .def_readonly("bias", &ChainPlan::bias)
      .def_readonly("weight", &ChainPlan::weight)
      .def_readonly("partial", &ChainPlan::partial)
      .def_readonly("dlogits", &ChainPlan::dlogits)
      .def_readonly("history", &ChainPlan::history)
      .def_readonly("history_size", &ChainPlan::history_size)
      .def_readonly("losses", &ChainPlan::losses)
      .def_readonly("hits", &ChainPlan::hits)
      .def_readonly("size", &ChainPlan::size);
  m.def("plan_chain_cuda", plan_chain_cuda);
}

// ---- scalars ------------------------------------------------------------------------------------

template <typename T>
float widened(uint16_t bits) {
  return widen(T{bits});
}
template <typename T>
uint16_t narrowed(float x) {
  return narrow<T>(x).bits;
}

using Softmax = OnlineSoftmax<float>;

Softmax softmax_of(const std::vector<float>& values) {
  Softmax softmax;
  for (const float value : values) softmax.add({value});
  return softmax;
}

void bind_scalars(py::module_& m) {
  m.def("quotient", py::vectorize(quotient));
  m.def("widen_bf16", py::vectorize(widened<bf16>));
  m.def("widen_f16", py::vectorize(widened<f16>));
  m.def("narrow_bf16", py::vectorize(narrowed<bf16>));
  m.def("narrow_f16", py::vectorize(narrowed<f16>));
  py::class_<Softmax>(m, "OnlineSoftmax")
      .def(py::init(&softmax_of))
      .def_readonly("max", &Softmax::max)
      .def_readonly("sum", &Softmax::sum)
      .def("merged", &Softmax::merged)
      .def("log_sum", &Softmax::log_sum);
}

// ---- tiles of the CUDA kernels ------------------------------------------------------------------

using Maps = std::vector<std::vector<std::pair<int, int>>>;  // of each thread

template <typename F>
void for_each_thread(const F& f) {
  for (int t = 0; t < kLinearThreads; ++t) {
    cuda_on_host::thread = dim3(t);
    f(t);
  }
}

// Where in shared memory, in bytes, a tile has its elements (rows, depth).
template <typename TileType>
std::vector<std::vector<int64_t>> offsets(int rows, int depth) {
  TileType tile;
  std::vector<std::vector<int64_t>> all(rows);
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < depth; ++k) {
      all[row].push_back(reinterpret_cast<char*>(&tile.at(row, k)) -
                         reinterpret_cast<char*>(&tile));
    }
  }
  return all;
}

// The (row, k) at which each thread's packs begin, those of one instruction in the same place.
template <typename T, int kRows, int kDepth>
Maps fetches(bool along_k) {
  Maps maps(kLinearThreads);
  for_each_thread([&](int t) {
    Fetch<T, kRows, kDepth>::for_each(along_k, [&](int, int line, int first) {
      maps[t].push_back(along_k ? std::pair(line, first) : std::pair(first, line));
    });
  });
  return maps;
}

// The (row, column) of the results that each thread holds.
template <typename Engine>
Maps results() {
  Maps maps(kLinearThreads);
  for_each_thread([&](int t) {
    Engine engine;
    engine.for_each([&](int row, int col, const float (&)[Engine::kWidth]) {
      for (int e = 0; e < Engine::kWidth; ++e) maps[t].emplace_back(row, col + e);
    });
  });
  return maps;
}

// For each thread its row of a fragment, its column of one, and its first k: what it reads first.
template <typename Engine>
std::vector<std::tuple<int, int, int>> fragments() {
  std::vector<std::tuple<int, int, int>> all;
  for_each_thread([&](int) {
    all.emplace_back(Engine::row0() + Engine::group(), Engine::col0() + Engine::group(),
                     Engine::pair());
  });
  return all;
}

struct EngineMaps {
  int rows, depth, element;
  bool row_lines;  // a line of tile a holds a row's k
  std::vector<std::vector<int64_t>> a, b;
  Maps results;
  std::vector<std::tuple<int, int, int>> fragments;
  std::vector<std::pair<bool, Maps>> a_fetches, b_fetches;
};

template <typename Engine, int kTileM, bool kFragments>
EngineMaps maps_of() {
  using T = typename Engine::Element;
  constexpr int kDepth = Engine::kDepth;
  EngineMaps maps{kTileM,
                  kDepth,
                  sizeof(T),
                  Engine::TileA::kLinesAreRows,
                  offsets<typename Engine::TileA>(kTileM, kDepth),
                  offsets<typename Engine::TileB>(kTileN, kDepth),
                  results<Engine>(),
                  {},
                  {},
                  {}};
  if constexpr (kFragments) maps.fragments = fragments<Engine>();
  for (const bool along_k : {false, true}) {
    maps.a_fetches.emplace_back(along_k, fetches<T, kTileM, kDepth>(along_k));
    maps.b_fetches.emplace_back(along_k, fetches<T, kTileN, kDepth>(along_k));
  }
  return maps;
}

template <int kTileM>
std::vector<std::pair<std::string, EngineMaps>> engines_of() {
  return {{"fma", maps_of<FmaEngine<float, kTileM>, kTileM, false>()},
          {"bfloat16_fma", maps_of<FmaEngine<bf16, kTileM>, kTileM, false>()},
          {"bfloat16", maps_of<MmaEngine<bf16, kTileM>, kTileM, true>()},
          {"tf32", maps_of<Tf32Engine<kTileM, true>, kTileM, true>()}};
}

void bind_tiles(py::module_& m) {
  py::class_<EngineMaps>(m, "EngineMaps")
      .def_readonly("rows", &EngineMaps::rows)
      .def_readonly("depth", &EngineMaps::depth)
      .def_readonly("element", &EngineMaps::element)
      .def_readonly("row_lines", &EngineMaps::row_lines)
      .def_readonly("a", &EngineMaps::a)
      .def_readonly("b", &EngineMaps::b)
      .def_readonly("results", &EngineMaps::results)
      .def_readonly("fragments", &EngineMaps::fragments)
      .def_readonly("a_fetches", &EngineMaps::a_fetches)
      .def_readonly("b_fetches", &EngineMaps::b_fetches);
  m.def("engines", [](int rows) {
    if (rows == 16) return engines_of<16>();
    return rows == 32 ? engines_of<32>() : engines_of<64>();
  });
}

// ---- the schedule on the CPU --------------------------------------------------------------------

// How often WorkSharing runs each item of stages of these sizes, with so many threads.
std::vector<std::vector<int>> shared_work(int64_t threads, const std::vector<int64_t>& stages) {
  const WorkSharing crew(threads);
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back([&] { crew.serve(); });
  std::vector<std::vector<int>> counts;
  for (const int64_t items : stages) {
    counts.emplace_back(items, 0);
    // not atomic: an item that runs twice, or a stage that ends early, may show
    crew.run(items, [&](int64_t i) { ++counts.back()[i]; });
  }
  crew.dismiss();
  for (std::thread& other : others) other.join();
  return counts;
}

// Of two stages of two items, how many of the second's the leader does after the other thread kept
// it waiting for so many milliseconds in the first; and of a stage once it shares again.
std::pair<int, int> items_of_leader_after(int64_t milliseconds) {
  const WorkSharing crew(2);
  std::thread other([&] { crew.serve(); });
  const std::thread::id leader = std::this_thread::get_id();
  const auto stage = [&](int64_t wait) {
    std::atomic<int> by_leader{0}, begun{0};
    crew.run(2, [&](int64_t) {
      // none is done before both are begun, where two threads share them
      ++begun;
      while (wait > 0 && begun < 2) std::this_thread::yield();
      if (std::this_thread::get_id() == leader) return void(++by_leader);
      std::this_thread::sleep_for(std::chrono::milliseconds(wait));
    });
    return by_leader.load();
  };
  stage(milliseconds);
  const int after = stage(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(8 * milliseconds + 100));
  const int later = stage(1);
  crew.dismiss();
  other.join();
  return {after, later};
}

void bind_schedule(py::module_& m) {
  m.attr("PANEL_ROWS") = kPanelRows;
  m.attr("PANEL_UNIT") = kPanelUnit;
  m.def("panel_width", panel_width);
  m.def("shared_work", shared_work, py::call_guard<py::gil_scoped_release>());
  m.def("items_of_leader_after", items_of_leader_after, py::call_guard<py::gil_scoped_release>());
}

}  // namespace
}  // namespace fastmlp

PYBIND11_MODULE(fastmlp_internals, m) {
  fastmlp::bind_plans(m);
  fastmlp::bind_scalars(m);
  fastmlp::bind_tiles(m);
  fastmlp::bind_schedule(m);
}
