// A team whose threads stay together for many short stages. Plain C++, no torch.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>

#include "cpu/threads/parallel.h"

namespace fastmlp {

// One thread leads: it calls run(), as often as it likes, and dismiss() in the end. The others
// serve() meanwhile: each takes the next item as soon as it is free. The leader waits only for
// items that somebody has begun, never for a thread that has not come: where other programs want
// the processors too, a barrier of all threads would cost a time slice at every stage.
//
// An item that somebody has begun may still lose its processor to another program, and the leader
// some milliseconds to it: far more than a short stage takes. Where that happens the leader works
// alone for eight times as long as it lost, so that sharing never costs much more than an eighth.
// A thread that finds nothing to do for about a millisecond sleeps until the next shared stage.
//
// `ticket_` holds the number of the stage and its next item, or kClosed while the leader changes
// `body_` and `items_`. Who takes an item reads the ticket, then these, then raises the ticket: had
// they been changed meanwhile, the ticket would have been closed before, and he tries again.
class WorkSharing final : public Parallel {
 public:
  explicit WorkSharing(int64_t threads) : threads_(threads) {}
  int64_t threads() const override { return threads_; }

  void run(int64_t items, const std::function<void(int64_t)>& body) const override {
    if (items <= 1 || threads_ == 1 || keeps_alone()) {
      for (int64_t i = 0; i < items; ++i) body(i);
      return;
    }
    const Clock::time_point begun = Clock::now();
    const uint64_t stage = next_stage();
    ticket_.store(stage << kItemBits | kClosed, std::memory_order_relaxed);
    body_.store(&body, std::memory_order_release);  // whoever sees it sees the ticket closed
    items_.store(items, std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    open(stage << kItemBits);
    while (work()) {
    }
    const Clock::time_point worked = Clock::now();
    for (int waited = 0; done_.load(std::memory_order_acquire) < items; ++waited) pause(waited);
    const Clock::time_point ended = Clock::now();
    const Clock::duration lost = ended - worked;
    if (lost > 4 * (worked - begun) + kSuspicious)
      alone_until_ = ended + 8 * std::min(lost, kSlice);
    if (failed_.load(std::memory_order_relaxed)) std::rethrow_exception(error_);
  }

  void serve() const {
    for (int waited = 0;; ++waited) {
      const uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (dismissed_.load(std::memory_order_acquire)) return;
      if (work()) {
        waited = 0;
      } else if (waited < kSpins + kYields) {
        pause(waited);
      } else {
        ticket_.wait(ticket, std::memory_order_acquire);
        waited = 0;
      }
    }
  }

  void dismiss() const {
    dismissed_.store(true, std::memory_order_release);
    open(next_stage() << kItemBits | kClosed);  // another ticket: nobody goes on sleeping
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kItemBits = 32;
  static constexpr uint64_t kClosed = (uint64_t{1} << kItemBits) - 1;
  static constexpr int kSpins = 2000;   // some microseconds, before others get the processor
  static constexpr int kYields = 2000;  // about a millisecond
  // A wait that no item explains, and about the longest turn that another program gets.
  static constexpr Clock::duration kSuspicious = std::chrono::microseconds(100);
  static constexpr Clock::duration kSlice = std::chrono::milliseconds(5);

  static void pause(int waited) {
    if (waited >= kSpins) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  bool keeps_alone() const {
    if (alone_until_ == Clock::time_point()) return false;
    if (Clock::now() < alone_until_) return true;
    alone_until_ = {};
    return false;
  }

  uint64_t next_stage() const { return (ticket_.load(std::memory_order_relaxed) >> kItemBits) + 1; }

  void open(uint64_t ticket) const {
    ticket_.store(ticket, std::memory_order_release);
    ticket_.notify_all();
  }

  // Does one item; returns whether there was one.
  bool work() const {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const auto* body = body_.load(std::memory_order_acquire);
    const int64_t item = ticket & kClosed;
    if (item >= items_.load(std::memory_order_acquire)) return false;
    if (!ticket_.compare_exchange_strong(ticket, ticket + 1, std::memory_order_acq_rel)) {
      return true;  // somebody else has it; there may be another
    }
    try {
      (*body)(item);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_acq_rel);
    return true;
  }

  int64_t threads_;
  alignas(64) mutable std::atomic<uint64_t> ticket_{kClosed};
  mutable std::atomic<int64_t> items_{0};
  mutable std::atomic<const std::function<void(int64_t)>*> body_{nullptr};
  alignas(64) mutable std::atomic<int64_t> done_{0};
  mutable std::atomic<bool> failed_{false}, dismissed_{false};
  mutable std::exception_ptr error_;
  mutable Clock::time_point alone_until_;  // the leader's
};

}  // namespace fastmlp
