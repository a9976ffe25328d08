// The threads of PyTorch's CPU operators as a Team.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "team.h"

namespace fastmlp {

class TorchTeam final : public Team {
 public:
  int64_t threads() const override { return threads_; }

  // Each thread takes the next item as soon as it is free.
  void run(int64_t items, const std::function<void(int64_t)>& body) const override {
    if (items <= 1) {
      if (items == 1) body(0);
      return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, std::min(items, threads_), 1, [&](int64_t, int64_t) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i);
    });
  }

 private:
  int64_t threads_ = torch::stable::get_num_threads();
};

}  // namespace fastmlp
