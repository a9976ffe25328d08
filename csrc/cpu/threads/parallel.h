// Threads that share a piece of work, and memory for them. Plain C++, no torch.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

namespace fastmlp {

// Threads that work together. Which of them takes an item changes no bit of the results.
class Parallel {
 public:
  virtual ~Parallel() = default;
  virtual int64_t threads() const = 0;
  // body(i) for each i in [0, items), on any thread, in any order; returns when all are done.
  virtual void run(int64_t items, const std::function<void(int64_t)>& body) const = 0;
};

// The calling thread alone.
class Serial final : public Parallel {
 public:
  int64_t threads() const override { return 1; }
  void run(int64_t items, const std::function<void(int64_t)>& body) const override {
    for (int64_t i = 0; i < items; ++i) body(i);
  }
};

// Memory for numbers, uninitialised, on a cache line's boundary.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64)),
                std::free) {
    if (!memory_) throw std::bad_alloc();
  }
  T* get() const { return memory_.get(); }

 private:
  std::unique_ptr<T, void (*)(void*)> memory_;
};

}  // namespace fastmlp
