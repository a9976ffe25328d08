// The schedule of blocked look-ahead SGD: which part of a block runs when, and on which thread.
// Plain C++, no torch. Wants FASTMLP_KERNELS "blocked_kernels.h" to be included before.
#pragma once
#include <vector>

#include "cpu/engine/block_inputs.h"
#include "cpu/threads/parallel.h"
#include "plan.h"

namespace fastmlp {

template <typename T>
struct Network {
  std::vector<Layer<T>> layers;  // two or more
  const double* recurrence;      // (steps of a block + 1, kResponses)
  Sgd sgd;
  T* losses;         // (steps) out: mean over the batch
  int64_t* correct;  // (steps) out
};

// Networks that are trained on the same images in the same order.
template <typename T>
struct Group {
  const int64_t* order;  // (rows) numbers of images
  const int8_t* moves;   // (rows, 3) as flip_shift takes them, or null
  int64_t rows, batch, block_steps;
  std::vector<Network<T>> networks;
};

// Multiply-adds of all its steps, about.
template <typename T>
int64_t work_of(const Group<T>& group) {
  int64_t work = 0;
  for (const Network<T>& network : group.networks) {
    for (const Layer<T>& layer : network.layers) work += 2 * layer.inputs * layer.outputs;
  }
  return work * group.rows;
}

// What one network needs beside its parameters.
template <typename T>
struct Work {
  Buffer<T> p, q, g, to_w, to_v, weighted, sums;
  std::vector<Buffer<T>> outputs, gradients;  // of each layer, (batch, outputs)

  Work(const Network<T>& network, int64_t rows, int64_t batch, bool momentum)
      : p(rows * network.layers[0].outputs),
        q(momentum ? rows * network.layers[0].outputs : 0),
        g(rows * network.layers[0].outputs),
        to_w(rows * network.layers[0].outputs),
        to_v(momentum ? rows * network.layers[0].outputs : 0),
        weighted(rows > batch ? batch * rows : 0),
        sums(0) {
    int64_t widest = 0;
    for (const Layer<T>& layer : network.layers) {
      outputs.emplace_back(batch * layer.outputs);
      gradients.emplace_back(batch * layer.outputs);
      widest = std::max(widest, layer.outputs);
    }
    sums = Buffer<T>(std::max(kPanelRows, batch) * widest);
  }
};

// Runs all steps of a group.
template <typename T>
class GroupRun {
 public:
  GroupRun(const Images& images, const Group<T>& group, const Parallel& team)
      : images_(images), group_(group), team_(team), spans_(Block<T>::spans_of(images)) {
    const int64_t rows = std::min(block_rows(), group.rows);
    const auto add_block = [&] { blocks_.emplace_back(group.batch, images.features, spans_); };
    add_block();
    open(blocks_[0], 0);  // the first one; it tells how many different images a block has
    const int64_t inputs = blocks_[0].shape().distinct;
    const int64_t bytes = inputs * (images.features + inputs) * sizeof(T);
    const int64_t stretch = std::clamp<int64_t>(kStretchBytes / std::max<int64_t>(bytes, 1), 1, 16);
    for (int64_t i = 1; i < (networks_side_by_side() ? stretch : 2); ++i) add_block();
    for (const Network<T>& network : group.networks) {
      works_.emplace_back(network, rows, std::min(group.batch, rows),
                          network.layers[0].w_momentum != nullptr);
    }
    plan_products();
  }

  void run() {
    if (networks_side_by_side()) {
      run_side_by_side();
    } else {
      run_together();
    }
  }

 private:
  bool networks_side_by_side() const {
    return group_.networks.size() > 1 &&
           static_cast<int64_t>(group_.networks.size()) >= team_.threads();
  }

  int64_t block_rows() const { return group_.batch * group_.block_steps; }

  // All threads on one block. While the chains run, the next block's images are gathered; while the
  // first layers are updated, its Gram matrix is made.
  void run_together() {
    team_.run(blocks_[0].gathers(), [&](int64_t i) { blocks_[0].gather(images_, i); });
    team_.run(blocks_[0].grams(), [&](int64_t i) { blocks_[0].gram(i); });
    for (int64_t b = 0; b < ceil_of(group_.rows, block_rows()); ++b) {
      Block<T>&now = blocks_[b % 2], &next = blocks_[(b + 1) % 2];
      team_.run(products_.size(), [&](int64_t i) { product(now, products_[i]); });
      open(next, (b + 1) * block_rows());
      chains(b, now, next);
      const int64_t updates = updates_of_network() * works_.size();
      team_.run(updates + next.grams(), [&](int64_t i) {
        if (i < updates) {
          update(now, i);
        } else {
          next.gram(i - updates);
        }
      });
    }
  }

  // The inputs of several blocks are made by all threads; then each thread takes a network through
  // these blocks, so that its weights stay in a level-2 cache.
  void run_side_by_side() {
    const int64_t all = ceil_of(group_.rows, block_rows());
    for (int64_t first = 0; first < all; first += blocks_.size()) {
      const int64_t blocks = std::min<int64_t>(blocks_.size(), all - first);
      for (int64_t i = first ? 0 : 1; i < blocks; ++i) {  // the very first is open
        open(blocks_[i], (first + i) * block_rows());
      }
      team_.run(blocks, [&](int64_t i) {
        for (int64_t j = 0; j < blocks_[i].gathers(); ++j) blocks_[i].gather(images_, j);
        for (int64_t j = 0; j < blocks_[i].grams(); ++j) blocks_[i].gram(j);
      });
      team_.run(works_.size(), [&](int64_t m) {
        for (int64_t i = 0; i < blocks; ++i) run_block(first + i, blocks_[i], m);
      });
    }
  }

  // Makes `block` the one that begins at row `first` of the order; past the end it is empty.
  void open(Block<T>& block, int64_t first) const {
    first = std::min(first, group_.rows);
    const int64_t rows = std::min(group_.rows - first, block_rows());
    block.open(images_, group_.order + first, group_.moves ? group_.moves + 3 * first : nullptr,
               rows);
  }

  void run_block(int64_t b, const Block<T>& block, size_t m) const {
    for (const Product& item : products_) {
      if (item.network == m) product(block, item);
    }
    chain(b, block, m, Serial());
    const int64_t updates = updates_of_network();
    for (int64_t i = 0; i < updates; ++i) update(block, m * updates + i);
  }

  static constexpr int64_t kStretchBytes = 8 << 20;  // inputs that stay in a level-3 cache
  static constexpr int64_t kUpdateColumns = 48 * 4 / sizeof(T);  // whole register tiles in each

  // Outputs [begin, end) of a network's first layer.
  struct Product {
    size_t network;
    int64_t begin, end;
  };

  // A network's panel of weights stays in a level-2 cache, and the panels come out even.
  void plan_products() {
    for (size_t m = 0; m < works_.size(); ++m) {
      const int64_t hidden = group_.networks[m].layers[0].outputs;
      const int64_t share = ceil_of(ceil_of(hidden, 2 * team_.threads()), 3) * 3;
      const int64_t panel = std::min<int64_t>(networks_side_by_side() ? hidden : share, 96);
      for (int64_t n = 0; n < hidden; n += panel) {
        products_.push_back({m, n, std::min(n + panel, hidden)});
      }
    }
  }

  void product(const Block<T>& block, const Product& item) const {
    const Layer<T>& layer = group_.networks[item.network].layers[0];
    const Work<T>& work = works_[item.network];
    const int64_t rows = block.shape().distinct, width = item.end - item.begin;
    const int64_t at = item.begin * layer.inputs;
    const auto one = [&](const T* w, const T* b, T* out) {
      FASTMLP_BEST_ISA(panel_product<T>)(block.panels(), rows, layer.inputs, w + at, width,
                                         b + item.begin, Activation::kNone, out + item.begin,
                                         layer.outputs, work.sums.get() + item.begin * kPanelRows);
    };
    one(layer.w, layer.b, work.p.get());
    if (has_q(layer, block)) one(layer.w_momentum, layer.b_momentum, work.q.get());
  }

  // In a block of one step nothing has moved the first layer yet.
  static bool has_q(const Layer<T>& layer, const Block<T>& block) {
    return layer.w_momentum && block.shape().steps() > 1;
  }

  // The chains of block b, and the next block's inputs beside them.
  void chains(int64_t b, const Block<T>& now, Block<T>& next) const {
    if (works_.size() == 1 && chain_is_wide(group_.networks[0])) {
      chain(b, now, 0, team_);
      team_.run(next.gathers(), [&](int64_t i) { next.gather(images_, i); });
      return;
    }
    const int64_t networks = works_.size();
    team_.run(networks + next.gathers(), [&](int64_t i) {
      if (i < networks) {
        chain(b, now, i, Serial());
      } else {
        next.gather(images_, i - networks);
      }
    });
  }

  bool chain_is_wide(const Network<T>& network) const {
    int64_t work = 2 * group_.batch * group_.block_steps * network.layers[0].outputs;
    for (size_t l = 1; l < network.layers.size(); ++l) {
      work += 6 * network.layers[l].inputs * network.layers[l].outputs;
    }
    return plan_wide_chain_cpu(work * group_.batch);
  }

  void chain(int64_t b, const Block<T>& block, size_t m, const Parallel& team) const {
    const Network<T>& network = group_.networks[m];
    const Work<T>& work = works_[m];
    const int64_t rows = block.shape().rows;
    const Layer<T>& layer = network.layers[0];
    T* to_v = layer.w_momentum ? work.to_v.get() : nullptr;
    Step step{};
    for (; step.first < rows; ++step.t, step.first += group_.batch) {
      step.count = std::min(group_.batch, rows - step.first);
      const int64_t at = b * group_.block_steps + step.t;
      forward(block, step, network, work, team);
      loss(block, step, network, work, network.losses + at, network.correct + at);
      backward(step, network, work, team);
      if (block.shape().slot) {
        in_ranges(team, layer.outputs, [&](int64_t begin, int64_t end) {
          FASTMLP_BEST_ISA(chain_inputs<T>)(block.shape(), step, network.recurrence,
                                            work.g.get() + step.first * layer.outputs,
                                            layer.outputs, begin, end, work.to_w.get(), to_v);
        });
      }
      step.seen = block.seen_after(step);
    }
    FASTMLP_BEST_ISA(collect_gradients<T>)(block.shape(), network.recurrence, work.g.get(),
                                           layer.outputs, work.to_w.get(), to_v, layer.b,
                                           layer.b_momentum);
  }

  // body(begin, end) over [0, columns), in a range for each thread of the team.
  template <typename Body>
  static void in_ranges(const Parallel& team, int64_t columns, const Body& body) {
    const int64_t width =
        ceil_of(ceil_of(columns, team.threads()), kUpdateColumns) * kUpdateColumns;
    team.run(ceil_of(columns, width),
             [&](int64_t i) { body(i * width, std::min((i + 1) * width, columns)); });
  }

  void forward(const Block<T>& block, const Step& step, const Network<T>& network,
               const Work<T>& work, const Parallel& team) const {
    const Layer<T>& layer = network.layers[0];
    const T* past = block.shape().slot ? work.to_w.get() : work.g.get();
    FASTMLP_BEST_ISA(chain_history<T>)(block.shape(), step, network.recurrence, block.gram(),
                                       work.weighted.get());
    in_ranges(team, layer.outputs, [&](int64_t begin, int64_t end) {
      FASTMLP_BEST_ISA(chain_hidden<T>)(block.shape(), step, network.recurrence, work.p.get(),
                                        has_q(layer, block) ? work.q.get() : nullptr,
                                        work.weighted.get(), past, layer.outputs, begin, end,
                                        work.outputs[0].get());
    });
    const size_t last = network.layers.size() - 1;
    for (size_t l = 1; l <= last; ++l) {
      in_ranges(team, network.layers[l].outputs, [&](int64_t begin, int64_t end) {
        FASTMLP_BEST_ISA(chain_forward<T>)(network.layers[l], step.count, work.outputs[l - 1].get(),
                                           l < last ? Activation::kRelu : Activation::kNone, begin,
                                           end, work.outputs[l].get(), work.sums.get());
      });
    }
  }

  // The logits become their gradient.
  void loss(const Block<T>& block, const Step& step, const Network<T>& network, const Work<T>& work,
            T* loss, int64_t* correct) const {
    const T scale = T(1) / step.count;
    *correct = 0;
    const double sum = FASTMLP_BEST_ISA(chain_loss<T>)(
        block.labels() + step.first, step.count, network.layers.back().outputs,
        network.sgd.grad_average ? scale / step.count : scale, work.outputs.back().get(), correct);
    *loss = sum / step.count;
  }

  void backward(const Step& step, const Network<T>& network, const Work<T>& work,
                const Parallel& team) const {
    const T* dy = work.outputs.back().get();
    for (size_t l = network.layers.size() - 1; l > 0; --l) {
      const Layer<T>& layer = network.layers[l];
      T* dx = l > 1 ? work.gradients[l - 1].get() : work.g.get() + step.first * layer.inputs;
      in_ranges(team, layer.inputs, [&](int64_t begin, int64_t end) {
        FASTMLP_BEST_ISA(chain_backward<T>)(layer, network.sgd, step.count, dy,
                                            work.outputs[l - 1].get(), begin, end, dx);
      });
      FASTMLP_BEST_ISA(chain_bias<T>)(layer, network.sgd, step.count, dy);
      dy = dx;
    }
  }

  int64_t updates_of_network() const { return ceil_of(images_.features, kUpdateColumns); }

  void update(const Block<T>& block, int64_t item) const {
    const size_t m = item / updates_of_network();
    const Network<T>& network = group_.networks[m];
    const Layer<T>& layer = network.layers[0];
    const Work<T>& work = works_[m];
    const int64_t column = item % updates_of_network() * kUpdateColumns;
    FASTMLP_BEST_ISA(update_columns<T>)(
        block.shape(), network.recurrence, work.to_w.get(), work.to_v.get(), layer.outputs,
        block.x() + column, layer.inputs, std::min(kUpdateColumns, layer.inputs - column),
        layer.w + column, layer.w_momentum ? layer.w_momentum + column : nullptr);
  }

  const Images& images_;
  const Group<T>& group_;
  const Parallel& team_;
  const std::vector<PixelSpan> spans_;
  std::vector<Block<T>> blocks_;
  std::vector<Work<T>> works_;
  std::vector<Product> products_;
};

// Runs all steps of all groups. Where there are as many as threads, and of a size, they run side by
// side, a thread each; those left over have the whole team one after the other.
template <typename T>
void run_groups(const Images& images, const std::vector<Group<T>>& groups, const Parallel& team) {
  const int64_t threads = team.threads(), count = groups.size();
  int64_t all = 0, largest = 0;
  for (const Group<T>& group : groups) {
    all += work_of(group);
    largest = std::max(largest, work_of(group));
  }
  const bool even = threads > 1 && 2 * largest * threads <= 3 * all;
  const int64_t alone = even ? count / threads * threads : 0;
  team.run(alone, [&](int64_t i) { GroupRun<T>(images, groups[i], Serial()).run(); });
  for (int64_t i = alone; i < count; ++i) GroupRun<T>(images, groups[i], team).run();
}

}  // namespace fastmlp
