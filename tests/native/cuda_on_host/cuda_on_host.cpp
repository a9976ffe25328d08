// The emulated GPU: fibers, barriers, shared memory, exchanges.
#include "cuda_on_host.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/scalar_math.h"
#include "races.h"

namespace cuda_on_host {

dim3 thread, block, block_size, grid_size;

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStackBytes = 256 << 10, kSharedBytes = 48 << 10;
// What a launch may ask for at most on any GPU, and what nobody may touch behind it, nor behind
// an array in shared memory.
constexpr size_t kMostLaunchBytes = 227 << 10, kBandBytes = 4096, kGapBytes = 256;
constexpr unsigned char kBand = 0xa5;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kAtNumberedBarrier, kAtFlag, kDone };

// A fiber lives on from block to block. It starts by its context; from then on _setjmp, which calls
// no kernel of an operating system, switches.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started;
  State state;
  unsigned exchanges, votes;
  bool orders_memory;  // at a barrier of the warp, not an exchange
  uint64_t site;       // where it waits
  int barrier;
  unsigned threads;  // that this barrier waits for
  const uint64_t* flag;
};

Settings settings_;
std::string failure_;
std::vector<std::unique_ptr<Fiber>> fibers_;
Fiber* present_ = nullptr;
jmp_buf scheduler_;
const std::function<void()>* kernel_ = nullptr;
constexpr size_t kMostArrays = 8;
alignas(64) unsigned char shared_[kSharedBytes + kMostArrays * (kGapBytes + 64)];
size_t shared_used_, shared_end_;  // bytes of arrays; with the gaps behind them
std::vector<unsigned char*> gaps_;
alignas(64) unsigned char launch_bytes_[kMostLaunchBytes + kBandBytes];
size_t launch_size_;
std::map<const void*, void*> shared_keys_;
bool votes_[3];  // of block_barrier_or, in turn
alignas(16) char slots_[2][kMostThreads][kLargestExchange];

[[gnu::noinline]] void wait(State state) {
  present_->state = state;
  present_->site = races::site();
  if (_setjmp(present_->place) == 0) _longjmp(scheduler_, 1);
}

[[gnu::noinline]] void resume(Fiber& fiber) {
  present_ = &fiber;
  races::begin_thread(fiber.stack.get(), kStackBytes);
  if (_setjmp(scheduler_) != 0) return races::end_thread();
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void enter() {
  while (true) {
    (*kernel_)();
    wait(State::kDone);
  }
}

void make_fibers(unsigned threads) {
  while (fibers_.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(kStackBytes);
    fiber->started = false;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, enter, 0);
    fibers_.push_back(std::move(fiber));
  }
}

// A bit for each warp of threads [begin, end).
uint32_t warps_between(size_t begin, size_t end) {
  uint32_t warps = 0;
  for (size_t i = begin; i < end; i += kWarp) warps |= uint32_t{1} << i / kWarp;
  return warps;
}

// Lets threads [begin, end) go on if all of them wait at `barrier`.
bool release(size_t begin, size_t end, State barrier) {
  bool orders_memory = true;
  for (size_t i = begin; i < end; ++i) {
    const Fiber& fiber = *fibers_[i];
    if (fiber.state != barrier) return false;
    if (fiber.site != fibers_[begin]->site) {
      failure_ = "threads " + std::to_string(begin) + " and " + std::to_string(i) +
                 " wait for each other at different places of the source";
    }
    orders_memory &= fiber.orders_memory;
  }
  for (size_t i = begin; i < end; ++i) fibers_[i]->state = State::kReady;
  if (barrier == State::kAtBlockBarrier) races::warps_met(warps_between(begin, end));
  if (barrier == State::kAtWarpBarrier && orders_memory) races::warp_met(begin / kWarp);
  return true;
}

// Lets threads go on that wait at a barrier to which all have come, or for a flag that is raised;
// returns whether there were any.
bool release_waiting(size_t threads) {
  bool any = false;
  const auto go_on = [&](Fiber& fiber) {
    fiber.state = State::kReady;
    any = true;
  };
  std::map<int, unsigned> come;
  std::map<int, uint32_t> warps;
  for (size_t i = 0; i < threads; ++i) {
    if (fibers_[i]->state != State::kAtNumberedBarrier) continue;
    ++come[fibers_[i]->barrier];
    warps[fibers_[i]->barrier] |= warps_between(i, i + 1);
  }
  std::map<int, bool> met;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers_[i];
    const bool all_there =
        fiber.state == State::kAtNumberedBarrier && come[fiber.barrier] == fiber.threads;
    if (all_there && !met[fiber.barrier]) {
      met[fiber.barrier] = true;
      races::warps_met(warps[fiber.barrier]);
    }
    const bool raised = fiber.state == State::kAtFlag && *fiber.flag != 0;
    if (all_there || raised) go_on(fiber);
  }
  return any;
}

// What a launch may ask for here.
size_t most_launch_bytes() {
  const int capability = settings_.capability;
  return capability == 80                        ? 163 << 10
         : capability == 90 || capability == 100 ? 227 << 10
         : capability < 80                       ? 64 << 10
                                                 : 99 << 10;
}

// 0 .. count - 1 in the order that the settings ask for.
std::vector<unsigned> order_of(unsigned count) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = i;
  if (settings_.order == 1) std::reverse(order.begin(), order.end());
  if (settings_.order > 1) std::shuffle(order.begin(), order.end(), std::mt19937(settings_.order));
  return order;
}

bool is_band(const unsigned char* band, size_t bytes) {
  return std::all_of(band, band + bytes, [](unsigned char c) { return c == kBand; });
}

// At the end of a block: whether its threads kept to their arrays, and to their turns.
bool block_was_right() {
  if (!is_band(launch_bytes_ + launch_size_, kBandBytes)) {
    failure_ = "something was written behind the shared memory that the launch asked for";
  }
  for (const unsigned char* gap : gaps_) {
    if (!is_band(gap, kGapBytes))
      failure_ = "something was written behind an array in shared memory";
  }
  if (!races::found().empty()) failure_ = races::found();
  return failure_.empty();
}

// Each warp in turn goes as far as it can: to a barrier of the block, and past it to the next as
// soon as all have come, so that whoever lacks a barrier reads too early or overwrites too early.
bool run_block(const std::vector<unsigned>& warps, const std::vector<unsigned>& lanes) {
  const unsigned threads = block_size.x;
  memset(shared_, 0xff, sizeof shared_);
  memset(launch_bytes_, 0xff, launch_size_);
  memset(launch_bytes_ + launch_size_, kBand, kBandBytes);
  shared_used_ = shared_end_ = 0;
  gaps_.clear();
  shared_keys_.clear();
  races::begin_block();
  std::fill_n(votes_, 3, false);
  for (unsigned i = 0; i < threads; ++i) {
    fibers_[i]->state = State::kReady;
    fibers_[i]->exchanges = fibers_[i]->votes = 0;
    fibers_[i]->orders_memory = false;
  }
  while (true) {
    for (const unsigned warp : warps) {
      do {
        for (const unsigned lane : lanes) {
          thread = dim3(warp * kWarp + lane, 0, 0);
          if (fibers_[thread.x]->state == State::kReady) resume(*fibers_[thread.x]);
        }
      } while (release(warp * kWarp, (warp + 1) * kWarp, State::kAtWarpBarrier));
    }
    if (!failure_.empty()) return false;
    if (release_waiting(threads)) continue;
    if (release(0, threads, State::kAtBlockBarrier)) continue;
    if (std::all_of(fibers_.begin(), fibers_.begin() + threads,
                    [](const auto& fiber) { return fiber->state == State::kDone; })) {
      return block_was_right();
    }
    failure_ = "some threads wait at a barrier that the others never reach";
    return false;
  }
}

}  // namespace

void configure(const Settings& settings) { settings_ = settings; }

cudaError_t run(dim3 grid, unsigned threads, size_t bytes, const std::function<void()>& kernel) {
  failure_.clear();
  races::begin_launch();
  if (bytes > most_launch_bytes() || threads == 0 || threads > kMostThreads ||
      threads % kWarp != 0 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z != 1) {
    return cudaErrorInvalidValue;
  }
  make_fibers(threads);
  launch_size_ = bytes;
  kernel_ = &kernel;
  grid_size = grid;
  block_size = dim3(threads, 1, 1);
  const std::vector<unsigned> warps = order_of(threads / kWarp), lanes = order_of(kWarp);
  const bool backwards = settings_.order % 2 == 1;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y;
  const uint64_t first =
      settings_.last_blocks && settings_.last_blocks < blocks ? blocks - settings_.last_blocks : 0;
  for (uint64_t i = first; i < blocks; ++i) {
    const uint64_t at = backwards ? blocks - 1 - (i - first) : i;
    block = dim3(at % grid.x, at / grid.x, 0);
    if (run_block(warps, lanes)) continue;
    fibers_.clear();  // they stand in the middle of a kernel
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void block_barrier() { wait(State::kAtBlockBarrier); }

// Nobody votes the time after next before all have read what came out this time.
bool block_barrier_or(bool mine) {
  const unsigned turn = present_->votes++;
  votes_[turn % 3] |= mine;
  block_barrier();
  votes_[(turn + 2) % 3] = false;
  return votes_[turn % 3];
}

void warp_barrier() {
  present_->orders_memory = true;
  wait(State::kAtWarpBarrier);
}

void numbered_barrier(int number, unsigned threads) {
  present_->barrier = number;
  present_->threads = threads;
  wait(State::kAtNumberedBarrier);
}

void wait_for_flag(const uint64_t* flag) {
  if (*flag == 0) {
    present_->flag = flag;
    wait(State::kAtFlag);
  }
  races::seen(flag);
}

void raise_flag(uint64_t* flag) {
  *flag = 1;
  races::raised(flag);
}

void* shared_memory(const void* key, size_t size, size_t alignment) {
  void*& place = shared_keys_[key];
  if (!place) {
    shared_used_ = (shared_used_ + alignment - 1) / alignment * alignment + size;
    if (shared_used_ > kSharedBytes || gaps_.size() == kMostArrays) {
      failure_ =
          "more than 48 KB of shared memory, or more arrays than have gaps between them here";
      return place = shared_;
    }
    unsigned char* begin = shared_ + (shared_end_ + alignment - 1) / alignment * alignment;
    memset(begin + size, kBand, kGapBytes);
    gaps_.push_back(begin + size);
    shared_end_ = begin + size + kGapBytes - shared_;
    place = begin;
  }
  return place;
}

bool is_shared(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  return (at >= shared_ && at < shared_ + sizeof shared_) ||
         (at >= launch_bytes_ && at < launch_bytes_ + sizeof launch_bytes_);
}

unsigned char* launch_bytes() { return launch_bytes_; }

// Two sets of slots in turn: whoever writes a set again has seen all lanes leave its last use.
const void* exchange(const void* mine, size_t size, int lane) {
  auto& slots = slots_[present_->exchanges++ % 2];
  memcpy(slots[thread.x], mine, size);
  present_->orders_memory = false;
  wait(State::kAtWarpBarrier);
  return slots[thread.x / kWarp * kWarp + lane];
}

void trap(const char* why) { failure_ = why; }

bool has_sm80() { return settings_.capability >= 80; }

void needs_sm80() {
  if (!has_sm80()) trap("an instruction that came with compute capability 8.0");
}

// c (16, 8) += a (16, kDepth) b (kDepth, 8) of numbers of 16 bits.
template <int kDepth>
static void mma_16_bits(float (&c)[4], const uint32_t (&a)[kDepth / 4],
                        const uint32_t (&b)[kDepth / 8], bool halves) {
  constexpr int kLeft = kDepth / 2, kRight = kDepth / 4;  // numbers of a lane
  float mine[kLeft + kRight];  // two of each register, the lower half first
  for (int i = 0; i < kLeft + kRight; ++i) {
    const uint32_t word = i < kLeft ? a[i / 2] : b[(i - kLeft) / 2];
    const uint16_t bits = word >> i % 2 * 16;
    mine[i] = halves ? fastmlp::widen(fastmlp::f16{bits}) : fastmlp::widen(fastmlp::bf16{bits});
  }
  const int lane = thread.x % kWarp, group = lane / 4, pair = lane % 4;
  const char* warp = static_cast<const char*>(exchange(mine, sizeof mine, 0));
  const auto numbers = [&](int owner) {
    return reinterpret_cast<const float*>(warp + owner * kLargestExchange);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, col = pair * 2 + i % 2;
    for (int k = 0; k < kDepth; ++k) {
      const float* left = numbers(row % 8 * 4 + k % 8 / 2);  // registers: row < 8, row >= 8, and
      const float* right = numbers(col * 4 + k % 8 / 2);     // the same again for k >= 8
      c[i] += left[(row / 8 + k / 8 * 2) * 2 + k % 2] * right[kLeft + k / 8 * 2 + k % 2];
    }
  }
}

void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool halves) {
  needs_sm80();
  mma_16_bits<16>(c, a, b, halves);
}

void mma_1688(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  mma_16_bits<8>(c, a, b, true);
}

uint32_t round_to_tf32(float x) {
  const uint32_t bits = fastmlp::bits_of_float(x);
  return (std::isfinite(x) ? bits + 0x1000 : bits | (x != x) << 22) & ~0x1fffu;
}

// The sum of n numbers as a tensor core forms it.
static float truncated_sum(const double* addends, int n) {
  double plain = 0, largest = 0, sum = 0;
  for (int i = 0; i < n; ++i) {
    plain += addends[i];
    largest = std::max(largest, std::fabs(addends[i]));
  }
  if (!std::isfinite(plain) || largest == 0) return static_cast<float>(plain);
  constexpr double kMost = std::numeric_limits<float>::max();
  if (std::fabs(plain) > kMost) return static_cast<float>(std::copysign(kMost, plain));
  const int last = std::max(std::ilogb(largest) - 23, -149);  // the last bit that is kept
  for (int i = 0; i < n; ++i) sum += std::trunc(std::scalbn(addends[i], -last));
  sum = std::scalbn(sum, last);
  const float nearest = static_cast<float>(sum);
  const bool away = std::fabs(nearest) > std::fabs(sum) && std::fabs(sum) < 0x1p128;
  return away ? std::nextafter(nearest, 0.0f) : nearest;
}

void mma_1688_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  needs_sm80();
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  float mine[6];
  for (int i = 0; i < 6; ++i) mine[i] = fastmlp::float_of_bits(words[i] & ~0x1fffu);
  const int lane = thread.x % kWarp, group = lane / 4, pair = lane % 4;
  const char* warp = static_cast<const char*>(exchange(mine, sizeof mine, 0));
  const auto number = [&](int owner, int i) {
    return reinterpret_cast<const float*>(warp + owner * kLargestExchange)[i];
  };
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, col = pair * 2 + i % 2;
    double addends[9] = {c[i]};
    for (int k = 0; k < 8; ++k) {  // registers of a: row < 8, row >= 8, and the same for k >= 4
      addends[1 + k] = 1.0 * number(row % 8 * 4 + k % 4, row / 8 + k / 4 * 2) *
                       number(col * 4 + k % 4, 4 + k / 4);
    }
    c[i] = truncated_sum(addends, 9);
  }
}

}  // namespace cuda_on_host

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cuda_on_host::Settings& settings = cuda_on_host::settings_;
  *value = attribute == cudaDevAttrMultiProcessorCount ? settings.processors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin
               ? static_cast<int>(cuda_on_host::most_launch_bytes())
           : attribute == cudaDevAttrComputeCapabilityMajor ? settings.capability / 10
                                                            : settings.capability % 10;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  if (!cuda_on_host::failure_.empty()) return cuda_on_host::failure_.c_str();
  return error == cudaSuccess ? "no error" : "invalid value";
}
