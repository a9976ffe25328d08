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
#include <utility>
#include <vector>

#include "common/scalar_math.h"
#include "races.h"

namespace cuda_on_host {

dim3 thread, block, block_size, grid_size;

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024, kMostOfCluster = 8 * 512;
constexpr size_t kStackBytes = 256 << 10, kSharedBytes = 48 << 10;
// What a launch may ask for at most on any GPU, and what nobody may touch behind it, nor behind
// an array in shared memory.
constexpr size_t kMostLaunchBytes = 227 << 10, kBandBytes = 4096, kGapBytes = 256;
constexpr unsigned char kBand = 0xa5;

enum class State {
  kReady,
  kAtBlockBarrier,
  kAtWarpBarrier,
  kAtNumberedBarrier,
  kAtClusterBarrier,
  kAtFlag,
  kAtInbox,
  kDone
};

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
  unsigned threads;      // that this barrier waits for
  const uint64_t* flag;  // or an inbox
  int parity;            // of the phase that it waits for
};

// What stands in the 8 bytes of an inbox.
struct InboxState {
  static constexpr uint16_t kOpen = 0x1b0c;
  int32_t missing;  // bytes
  uint16_t open;
  uint8_t expected, phase;  // whether expect_bytes came in this phase; its parity
};
static_assert(sizeof(InboxState) == sizeof(uint64_t));

struct Message {
  std::vector<unsigned char> contents;
  unsigned char* place;
  uint64_t* inbox;
  unsigned rank;
};

Settings settings_;
std::string failure_;
std::vector<std::unique_ptr<Fiber>> fibers_;
Fiber* present_ = nullptr;
jmp_buf scheduler_;
const std::function<void()>* kernel_ = nullptr;
constexpr size_t kMostArrays = 8;

// A block's.
struct SharedMemory {
  alignas(64) unsigned char arrays[kSharedBytes + kMostArrays * (kGapBytes + 64)];
  alignas(64) unsigned char launch_bytes[kMostLaunchBytes + kBandBytes];
  size_t used, end;  // bytes of arrays; with the gaps behind them
  std::vector<unsigned char*> gaps;
  std::map<const void*, void*> keys;
  bool votes[3];   // of block_barrier_or, in turn
  unsigned alive;  // threads
};
std::vector<std::unique_ptr<SharedMemory>> memories_;  // of the cluster's blocks
unsigned rank_, cluster_ = 1;
std::vector<Message> messages_;  // on the way
size_t launch_size_;
alignas(16) char slots_[2][kMostOfCluster][kLargestExchange];

SharedMemory& memory() { return *memories_[rank_]; }

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
    --memory().alive;
    wait(State::kDone);
  }
}

void make_fibers(unsigned threads) {
  while (fibers_.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.reset(new char[kStackBytes]);
    fiber->started = false;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, enter, 0);
    fibers_.push_back(std::move(fiber));
  }
}

// The warps of threads [begin, end).
races::Warps warps_between(size_t begin, size_t end) {
  races::Warps warps;
  for (size_t i = begin; i < end; i += kWarp) warps.set(i / kWarp);
  return warps;
}

// Lets threads [begin, end) go on if all of them wait at `barrier`.
bool release(size_t begin, size_t end, State barrier) {
  bool orders_memory = true;
  for (size_t i = begin; i < end; ++i) {
    const Fiber& fiber = *fibers_[i];
    if (fiber.state != barrier) return false;
    // Warps may come to the cluster's barrier at different places.
    const size_t first = barrier == State::kAtClusterBarrier ? i / kWarp * kWarp : begin;
    if (fiber.site != fibers_[first]->site) {
      failure_ = "threads " + std::to_string(first) + " and " + std::to_string(i) +
                 " wait for each other at different places of the source";
    }
    orders_memory &= fiber.orders_memory;
  }
  for (size_t i = begin; i < end; ++i) fibers_[i]->state = State::kReady;
  if (barrier == State::kAtBlockBarrier || barrier == State::kAtClusterBarrier) {
    races::warps_met(warps_between(begin, end));
  }
  if (barrier == State::kAtWarpBarrier && orders_memory) races::warp_met(begin / kWarp);
  return true;
}

InboxState& state_of(uint64_t* inbox) { return *reinterpret_cast<InboxState*>(inbox); }

// Ends the phase of an inbox that has all its bytes.
void end_phase(InboxState& inbox) {
  if (!inbox.expected || inbox.missing != 0) return;
  inbox.expected = 0;
  inbox.phase ^= 1;
}

bool is_over(const uint64_t* inbox, int parity) {
  return reinterpret_cast<const InboxState*>(inbox)->phase != parity;
}

void deliver(const Message& message) {
  if (memories_[message.rank]->alive == 0) failure_ = "something was sent to a block that is over";
  memcpy(message.place, message.contents.data(), message.contents.size());
  InboxState& inbox = state_of(message.inbox);
  if (inbox.open != InboxState::kOpen) failure_ = "something was sent to an inbox that is not open";
  inbox.missing -= static_cast<int>(message.contents.size());
  end_phase(inbox);
}

// Lets threads go on that wait at a barrier to which all have come, for a flag that is raised or
// for bytes that are there; returns whether there were any.
bool release_waiting(size_t threads) {
  bool any = false;
  const auto go_on = [&](Fiber& fiber) {
    fiber.state = State::kReady;
    any = true;
  };
  using Barrier = std::pair<size_t, int>;  // of a block
  const auto barrier_of = [&](size_t i) { return Barrier(i / block_size.x, fibers_[i]->barrier); };
  std::map<Barrier, unsigned> come;
  std::map<Barrier, races::Warps> warps;
  for (size_t i = 0; i < threads; ++i) {
    if (fibers_[i]->state != State::kAtNumberedBarrier) continue;
    ++come[barrier_of(i)];
    warps[barrier_of(i)] |= warps_between(i, i + 1);
  }
  std::map<Barrier, bool> met;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers_[i];
    const bool all_there =
        fiber.state == State::kAtNumberedBarrier && come[barrier_of(i)] == fiber.threads;
    if (all_there && !met[barrier_of(i)]) {
      met[barrier_of(i)] = true;
      races::warps_met(warps[barrier_of(i)]);
    }
    const bool raised = fiber.state == State::kAtFlag && *fiber.flag != 0;
    const bool has_bytes = fiber.state == State::kAtInbox && is_over(fiber.flag, fiber.parity);
    if (all_there || raised || has_bytes) go_on(fiber);
  }
  for (size_t begin = 0; begin < threads; begin += block_size.x) {
    any |= release(begin, begin + block_size.x, State::kAtBlockBarrier);
  }
  return any;
}

// Lets all messages arrive; returns whether there were any.
bool deliver_messages() {
  if (messages_.empty()) return false;
  for (const Message& message : std::exchange(messages_, {})) deliver(message);
  return true;
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

// At the end of a cluster's blocks: whether their threads kept to their arrays, and to their turns.
bool blocks_were_right() {
  for (unsigned rank = 0; rank < cluster_; ++rank) {
    if (!is_band(memories_[rank]->launch_bytes + launch_size_, kBandBytes)) {
      failure_ = "something was written behind the shared memory that the launch asked for";
    }
    for (const unsigned char* gap : memories_[rank]->gaps) {
      if (!is_band(gap, kGapBytes))
        failure_ = "something was written behind an array in shared memory";
    }
  }
  if (!races::found().empty()) failure_ = races::found();
  return failure_.empty();
}

void begin_block(SharedMemory& memory) {
  memset(memory.arrays, 0xff, sizeof memory.arrays);
  memset(memory.launch_bytes, 0xff, launch_size_);
  memset(memory.launch_bytes + launch_size_, kBand, kBandBytes);
  memory.used = memory.end = 0;
  memory.gaps.clear();
  memory.keys.clear();
  std::fill_n(memory.votes, 3, false);
  memory.alive = block_size.x;
}

// Each warp in turn goes as far as it can: to a barrier of the block, and past it to the next as
// soon as all have come, so that whoever lacks a barrier reads too early or overwrites too early.
// The blocks are those of a cluster, the first of which is `first`.
bool run_blocks(dim3 first, const std::vector<unsigned>& warps,
                const std::vector<unsigned>& lanes) {
  const unsigned threads = cluster_ * block_size.x;
  for (unsigned rank = 0; rank < cluster_; ++rank) begin_block(*memories_[rank]);
  messages_.clear();
  races::begin_block();
  for (unsigned i = 0; i < threads; ++i) {
    fibers_[i]->state = State::kReady;
    fibers_[i]->exchanges = fibers_[i]->votes = 0;
    fibers_[i]->orders_memory = false;
  }
  while (true) {
    for (const unsigned warp : warps) {
      do {
        for (const unsigned lane : lanes) {
          const unsigned i = warp * kWarp + lane;
          rank_ = i / block_size.x;
          thread = dim3(i % block_size.x, 0, 0);
          block = dim3(first.x + rank_, first.y, 0);
          if (fibers_[i]->state == State::kReady) resume(*fibers_[i]);
        }
      } while (release(warp * kWarp, (warp + 1) * kWarp, State::kAtWarpBarrier));
    }
    if (!failure_.empty()) return false;
    if (release_waiting(threads)) continue;
    if (release(0, threads, State::kAtClusterBarrier)) continue;
    if (deliver_messages()) continue;
    if (std::all_of(fibers_.begin(), fibers_.begin() + threads,
                    [](const auto& fiber) { return fiber->state == State::kDone; })) {
      return blocks_were_right();
    }
    failure_ = "some threads wait at a barrier that the others never reach";
    return false;
  }
}

}  // namespace

void configure(const Settings& settings) { settings_ = settings; }

cudaError_t run(dim3 grid, unsigned threads, size_t bytes, const std::function<void()>& kernel,
                unsigned cluster) {
  failure_.clear();
  races::begin_launch();
  if (bytes > most_launch_bytes() || threads == 0 || threads > kMostThreads ||
      threads % kWarp != 0 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z != 1 || cluster == 0 || grid.x % cluster != 0 ||
      (cluster > 1 && (cluster * threads > kMostOfCluster || clusters_at_once(cluster, 0) == 0))) {
    return cudaErrorInvalidValue;
  }
  cluster_ = cluster;
  make_fibers(cluster * threads);
  while (memories_.size() < cluster) memories_.push_back(std::make_unique<SharedMemory>());
  launch_size_ = bytes;
  kernel_ = &kernel;
  grid_size = grid;
  block_size = dim3(threads, 1, 1);
  const std::vector<unsigned> warps = order_of(cluster * threads / kWarp), lanes = order_of(kWarp);
  const bool backwards = settings_.order % 2 == 1;
  const uint64_t all = static_cast<uint64_t>(grid.x) * grid.y / cluster;
  const uint64_t first =
      settings_.last_blocks && settings_.last_blocks < all ? all - settings_.last_blocks : 0;
  for (uint64_t i = first; i < all; ++i) {
    const uint64_t at = (backwards ? all - 1 - (i - first) : i) * cluster;
    if (run_blocks(dim3(at % grid.x, at / grid.x, 0), warps, lanes)) continue;
    fibers_.clear();  // they stand in the middle of a kernel
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

unsigned last_cluster() { return cluster_; }

unsigned rank() { return rank_; }

unsigned thread_of_cluster() { return rank_ * block_size.x + thread.x; }

int clusters_at_once(unsigned cluster, size_t bytes) {
  const bool fit = settings_.capability >= 90 && bytes <= most_launch_bytes();
  const int most = settings_.processors / static_cast<int>(cluster);
  return !fit ? 0 : settings_.clusters > 0 ? std::min(settings_.clusters, most) : most;
}

void cluster_barrier() { wait(State::kAtClusterBarrier); }

void open_inbox(uint64_t* inbox) {
  state_of(inbox) = {0, InboxState::kOpen, 0, 0};
  races::opened(inbox);
}

void expect_bytes(uint64_t* inbox, unsigned bytes) {
  InboxState& state = state_of(inbox);
  if (state.expected) failure_ = "a phase of an inbox has two expectations";
  state.expected = 1;
  state.missing += static_cast<int>(bytes);
  races::added(inbox);
  end_phase(state);
}

void wait_for_bytes(uint64_t* inbox, int parity) {
  if (!is_over(inbox, parity)) {
    present_->flag = inbox;
    present_->parity = parity;
    wait(State::kAtInbox);
  }
  races::seen(inbox);
}

void send_bytes(const void* from, size_t bytes, void* place, uint64_t* inbox, unsigned rank) {
  const auto in_block = [rank](void* at) {
    return memories_[rank]->launch_bytes +
           (static_cast<unsigned char*>(at) - memory().launch_bytes);
  };
  const auto* begin = static_cast<const unsigned char*>(from);
  Message message{
      {begin, begin + bytes}, in_block(place), reinterpret_cast<uint64_t*>(in_block(inbox)), rank};
  races::sent(message.place, bytes, message.inbox, rank);
  if (settings_.order == 0) return deliver(message);
  messages_.push_back(std::move(message));
}

void block_barrier() { wait(State::kAtBlockBarrier); }

// Nobody votes the time after next before all have read what came out this time.
bool block_barrier_or(bool mine) {
  const unsigned turn = present_->votes++;
  bool* votes = memory().votes;
  votes[turn % 3] |= mine;
  block_barrier();
  votes[(turn + 2) % 3] = false;
  return votes[turn % 3];
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
  SharedMemory& mine = memory();
  void*& place = mine.keys[key];
  if (!place) {
    mine.used = (mine.used + alignment - 1) / alignment * alignment + size;
    if (mine.used > kSharedBytes || mine.gaps.size() == kMostArrays) {
      failure_ =
          "more than 48 KB of shared memory, or more arrays than have gaps between them here";
      return place = mine.arrays;
    }
    unsigned char* begin = mine.arrays + (mine.end + alignment - 1) / alignment * alignment;
    memset(begin + size, kBand, kGapBytes);
    mine.gaps.push_back(begin + size);
    mine.end = begin + size + kGapBytes - mine.arrays;
    place = begin;
  }
  return place;
}

bool is_shared(const void* address) {
  return std::any_of(memories_.begin(), memories_.end(), [address](const auto& memory) {
    const auto* at = static_cast<const unsigned char*>(address);
    const auto* begin = reinterpret_cast<const unsigned char*>(memory.get());
    return at >= begin && at < begin + sizeof(SharedMemory);
  });
}

unsigned char* launch_bytes() { return memory().launch_bytes; }

// Two sets of slots in turn: whoever writes a set again has seen all lanes leave its last use.
const void* exchange(const void* mine, size_t size, int lane) {
  auto& slots = slots_[present_->exchanges++ % 2];
  memcpy(slots[thread_of_cluster()], mine, size);
  present_->orders_memory = false;
  wait(State::kAtWarpBarrier);
  return slots[thread_of_cluster() / kWarp * kWarp + lane];
}

void trap(const char* why) { failure_ = why; }

bool has_sm80() { return settings_.capability >= 80; }

void needs_sm80() {
  if (!has_sm80()) trap("an instruction that came with compute capability 8.0");
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
    double addends[1 + kDepth] = {c[i]};
    for (int k = 0; k < kDepth; ++k) {
      const float* left = numbers(row % 8 * 4 + k % 8 / 2);  // registers: row < 8, row >= 8, and
      const float* right = numbers(col * 4 + k % 8 / 2);     // the same again for k >= 8
      addends[1 + k] =
          1.0 * left[(row / 8 + k / 8 * 2) * 2 + k % 2] * right[kLeft + k / 8 * 2 + k % 2];
    }
    c[i] = truncated_sum(addends, 1 + kDepth);
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

void mma_16832_bytes(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  needs_sm80();
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const int lane = thread.x % kWarp, group = lane / 4, pair = lane % 4;
  const char* warp = static_cast<const char*>(exchange(mine, sizeof mine, 0));
  const auto number = [&](int owner, int i, int k) {
    const auto* words = reinterpret_cast<const uint32_t*>(warp + owner * kLargestExchange);
    return static_cast<int>(words[i] >> k % 4 * 8 & 0xff);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, col = pair * 2 + i % 2;
    for (int k = 0; k < 32; ++k) {  // registers of a: row < 8, row >= 8, and the same for k >= 16
      c[i] += number(row % 8 * 4 + k % 16 / 4, row / 8 + k / 16 * 2, k) *
              number(col * 4 + k % 16 / 4, 4 + k / 16, k);
    }
  }
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

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

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
