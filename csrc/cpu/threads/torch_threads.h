// The threads of PyTorch's CPU operators as a team.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "cpu/threads/work_sharing.h"

namespace fastmlp {

// lead(team) on the calling thread, PyTorch's others serving until it is back.
inline void with_torch_threads(const std::function<void(const Parallel&)>& lead) {
  const int64_t threads = torch::stable::get_num_threads();
  const WorkSharing crew(threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // The calling thread has the first index; where it has all of them, nobody serves.
    if (begin > 0) return crew.serve();
    struct Dismissal {
      const WorkSharing& crew;
      ~Dismissal() { crew.dismiss(); }
    } at_the_end{crew};
    if (end > begin) lead(crew);
  });
}

}  // namespace fastmlp
