// The threads of the CPU engines, as many as PyTorch's operators have.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <memory>
#include <mutex>

#include "cpu/threads/work_sharing.h"

namespace fastmlp {

// Threads that stay for the next call. They are not those of OpenMP, whose regions begin and end
// with all threads: where another program has one of the processors, that costs a call two of its
// turns, milliseconds each. Here nobody waits for a thread that has not begun an item.
class ThreadPool {
 public:
  // lead(team) on the calling thread; alone where another thread leads the pool already.
  static void run(const std::function<void(const Parallel&)>& lead) {
    static ThreadPool& pool = *new ThreadPool;  // its threads outlive every static object
    const std::unique_lock<std::mutex> lock(pool.mutex_, std::try_to_lock);
    const int64_t threads = torch::stable::get_num_threads();
    if (threads == 1 || !lock) return lead(Serial());
    lead(pool.crew_of(threads));
  }

 private:
  // A crew is made anew for another number of threads, and after a fork, which leaves no thread.
  const WorkSharing& crew_of(int64_t threads) {
    if (!crew_ || crew_->threads() != threads || process_ != getpid()) {
      if (crew_) crew_->dismiss();
      crew_ = std::make_shared<const WorkSharing>(threads);
      process_ = getpid();
      for (int64_t t = 1; t < threads; ++t) {
        std::thread([crew = crew_] { crew->serve(); }).detach();
      }
    }
    return *crew_;
  }

  std::mutex mutex_;
  std::shared_ptr<const WorkSharing> crew_;
  pid_t process_ = 0;
};

}  // namespace fastmlp
