// Blocked SGD on threads that ThreadSanitizer sees: trains a few random networks with one thread
// and with four, and fails unless every parameter and loss is the same to the last bit.
// tests/thread_sanitizer.sh builds and runs it.
#include "common/blocked_sgd.h"

#define FASTMLP_KERNELS "cpu/engine/blocked_kernels.h"
#include "cpu/simd/foreach_isa.h"
//
#include <cstdio>
#include <deque>
#include <functional>
#include <random>
#include <stdexcept>
#include <thread>

#include "cpu/engine/blocked_run.h"
#include "cpu/threads/work_sharing.h"

namespace fastmlp {

// Its vectors are plain memory accesses, which ThreadSanitizer sees one by one.
Isa cpu_isa() { return Isa::kPortable; }
bool cpu_has_vnni() { return false; }

namespace {

// A new thread for each item: whoever runs first, nothing orders the accesses of two items, so that
// ThreadSanitizer sees every race between them.
class Threads final : public Parallel {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  int64_t threads() const override { return count_; }
  void run(int64_t items, const std::function<void(int64_t)>& body) const override {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < items; ++i) threads.emplace_back(body, i);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int64_t count_;
};

std::vector<double> recurrence(int64_t steps, const Sgd& sgd) {
  double w[] = {1, 0, 0}, v[] = {0, 1, 0};
  std::vector<double> table;
  for (int64_t t = 0; t <= steps; ++t) {
    table.insert(table.end(), w, w + 3);
    table.insert(table.end(), v, v + 3);
    for (int from = 0; from < 3; ++from) {
      const double d = sgd.weight_decay * w[from] + (t == 0 && from == 2);
      v[from] = sgd.momentum * v[from] + d;
      w[from] -= sgd.lr * (sgd.nesterov ? d + sgd.momentum * v[from] : v[from]);
    }
  }
  return table;
}

// Images, networks and all memory that they point to.
template <typename T>
class Problem {
 public:
  static constexpr int64_t kImages = 50, kClasses = 5;
  static constexpr ImageShape kShape = {3, 5, 6};

  Problem() {
    pixels_.resize(kImages * features());
    for (uint8_t& pixel : pixels_) pixel = random_();
    for (int64_t i = 0; i < kImages; ++i) labels_.push_back(below(kClasses));
    scale_.assign(features(), 0.02f);
    shift_.assign(features(), -0.5f);
  }

  Images images() const {
    return {pixels_.data(), labels_.data(), scale_.data(), shift_.data(), features(), kShape};
  }

  // An order of so many rows, of images below `distinct`.
  void add_group(int64_t rows, int64_t batch, int64_t block_steps, int64_t distinct, bool moved) {
    std::vector<int64_t>& order = orders_.emplace_back();
    std::vector<int8_t>& moves = moves_.emplace_back();
    for (int64_t i = 0; i < rows; ++i) order.push_back(distinct < kImages ? below(distinct) : i);
    for (int64_t i = 0; moved && i < rows; ++i) {
      for (int64_t most : {4, 5}) moves.push_back(below(2 * most + 1) - most);
      moves.push_back(below(2));
    }
    groups.push_back({order.data(), moved ? moves.data() : nullptr, rows, batch, block_steps, {}});
  }

  // A network on the last group.
  void add_network(const std::vector<int64_t>& hidden, const Sgd& sgd) {
    Group<T>& group = groups.back();
    Network<T> network{{}, nullptr, sgd, nullptr, nullptr};
    int64_t inputs = features();
    for (size_t l = 0; l <= hidden.size(); ++l) {
      const int64_t outputs = l < hidden.size() ? hidden[l] : kClasses;
      T* w = numbers(inputs * outputs, 1 / std::sqrt(double(inputs)));
      T* b = numbers(outputs, 0.1);
      const bool momentum = sgd.momentum > 0;
      network.layers.push_back({inputs, outputs, w, b,
                                momentum ? numbers(inputs * outputs, 0.01) : nullptr,
                                momentum ? numbers(outputs, 0.01) : nullptr});
      inputs = outputs;
    }
    tables_.push_back(recurrence(group.block_steps, sgd));
    network.recurrence = tables_.back().data();
    const int64_t steps = (group.rows + group.batch - 1) / group.batch;
    network.losses = numbers(steps, 0);
    hits_.emplace_back(steps);
    network.correct = hits_.back().data();
    group.networks.push_back(network);
  }

  bool same_as(const Problem& other) const {
    bool same = hits_ == other.hits_;
    for (size_t i = 0; i < numbers_.size(); ++i) {
      const std::vector<T>&mine = numbers_[i], &its = other.numbers_[i];
      same = same && std::memcmp(mine.data(), its.data(), mine.size() * sizeof(T)) == 0;
      for (T number : mine) same = same && std::isfinite(number);  // or it would say nothing
    }
    return same;
  }

  std::vector<Group<T>> groups;

 private:
  static int64_t features() { return kShape.planes * kShape.height * kShape.width; }
  int64_t below(int64_t n) { return random_() % n; }

  T* numbers(int64_t count, double size) {
    std::vector<T>& made = numbers_.emplace_back(count);
    for (T& number : made) number = size * (static_cast<double>(random_()) / 2147483648.0 - 1);
    return made.data();
  }

  std::mt19937 random_{7};
  std::vector<uint8_t> pixels_;
  std::vector<int64_t> labels_;
  std::vector<float> scale_, shift_;
  std::deque<std::vector<int64_t>> orders_, hits_;
  std::deque<std::vector<int8_t>> moves_;
  std::deque<std::vector<double>> tables_;
  std::deque<std::vector<T>> numbers_;
};

constexpr Sgd kPlain{0.01, 0, 0, false, false};
constexpr Sgd kAll{0.01, 0.9, 0.01, true, true};

// One network with momentum; several blocks of several steps, the last one ragged.
template <typename T>
void one(Problem<T>& problem) {
  problem.add_group(Problem<T>::kImages, 3, 4, Problem<T>::kImages, false);
  problem.add_network({70}, kAll);
}

// A step of the chain has several threads.
template <typename T>
void wide(Problem<T>& problem) {
  problem.add_group(35, 16, 2, 20, false);
  problem.add_network({200, 220, 190}, kAll);
  const int64_t work = 2 * 16 * 2 * 200 + 6 * (200 * 220 + 220 * 190 + 190 * 5);
  if (!plan_wide_chain_cpu(work * 16)) std::puts("the wide chain is not wide"), std::exit(1);
}

// Groups of the same size, a thread each, and those left over, which have the whole team.
template <typename T>
void many(Problem<T>& problem) {
  for (int64_t i = 0; i < 6; ++i) {
    problem.add_group(40 + i, 2 + i, 3, i % 2 ? 7 : Problem<T>::kImages, i % 3 > 0);
    for (int64_t network = 0; network < 3; ++network) {
      problem.add_network({20 + 9 * network, 8}, network == 1 ? kAll : kPlain);
    }
  }
}

// More networks than threads on the same images, which repeat or are moved.
template <typename T>
void shared(Problem<T>& problem) {
  for (bool moved : {false, true}) {
    problem.add_group(50, 3, 4, 12, moved);
    for (int64_t network = 0; network < 5; ++network) {
      problem.add_network({16 + 7 * network}, network % 2 ? kAll : kPlain);
    }
  }
}

template <typename T>
bool same_on_threads(const char* name, void (*fill)(Problem<T>&)) {
  Problem<T> fresh, alone, together, by_crew;
  for (Problem<T>* problem : {&fresh, &alone, &together, &by_crew}) fill(*problem);
  run_groups(alone.images(), alone.groups, Serial());
  run_groups(together.images(), together.groups, Threads(4));
  const WorkSharing crew(4);
  std::vector<std::thread> helpers;
  for (int i = 1; i < 4; ++i) helpers.emplace_back([&] { crew.serve(); });
  run_groups(by_crew.images(), by_crew.groups, crew);
  crew.dismiss();
  for (std::thread& helper : helpers) helper.join();
  const bool same = together.same_as(alone) && by_crew.same_as(alone) && !alone.same_as(fresh);
  std::printf("%s, %zu bytes a number: %s\n", name, sizeof(T), same ? "the same" : "DIFFERENT");
  return same;
}

// Stages of one or two items, one after the other as quickly as they go: each item is done once,
// and before the next stage begins. An error in one reaches the leader.
bool crew_is_exact(int64_t stages) {
  const WorkSharing crew(4);
  std::vector<std::thread> helpers;
  for (int i = 1; i < 4; ++i) helpers.emplace_back([&] { crew.serve(); });
  bool exact = true, thrown = false;
  for (int64_t stage = 0; stage < stages; ++stage) {
    int64_t times[5] = {};
    const int64_t items = 2 + stage % 4;
    crew.run(items, [&](int64_t i) { ++times[i]; });
    for (int64_t i = 0; i < 5; ++i) exact = exact && times[i] == (i < items);
  }
  try {
    crew.run(9, [](int64_t i) {
      if (i == 5) throw std::runtime_error("five");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  crew.dismiss();
  for (std::thread& helper : helpers) helper.join();
  std::printf("a crew: %s\n", exact && thrown ? "exact" : "WRONG");
  return exact && thrown;
}

template <typename T>
bool all_the_same() {
  const bool results[] = {
      same_on_threads<T>("one network", one<T>), same_on_threads<T>("a wide chain", wide<T>),
      same_on_threads<T>("many orders", many<T>), same_on_threads<T>("one order", shared<T>)};
  return results[0] && results[1] && results[2] && results[3];
}

}  // namespace
}  // namespace fastmlp

int main(int count, char** arguments) {
  const bool floats = fastmlp::all_the_same<float>();
  const bool exact = fastmlp::crew_is_exact(count > 1 ? std::atoll(arguments[1]) : 20000);
  return fastmlp::all_the_same<double>() && floats && exact ? 0 : 1;
}
