// What orders the accesses of a launch, by vector clocks of warps, and who touched each byte last.
#include "races.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_on_host::races {
namespace {

constexpr unsigned kWarp = 32;
// What is sent to a block of a cluster is written by one more, that block's own.
constexpr unsigned kWriters = kWarps + 8;
constexpr uint32_t kMany = 0xffffffff;  // several lanes of a warp, between the same two barriers

// Time passes by barriers: a warp's accesses between two of them are of one interval.
struct Access {
  uint32_t block = 0, thread = 0, interval = 0;
  uint32_t warp = kWriters;  // no access
  const void* from = nullptr;

  bool any() const { return warp != kWriters; }
};

struct Bytes {  // two of them, as no type is smaller that threads write side by side
  Access write, read;
  bool read_by_blocks = false;                          // by several
  std::unique_ptr<std::array<Access, kWarps>> by_warp;  // where warps read that nothing orders
};

using Clock = std::array<uint32_t, kWriters>;

std::unordered_map<uintptr_t, Bytes> touched_, touched_of_block_;  // the latter: shared memory
std::array<uint32_t, kWriters> interval_;
std::array<Clock, kWarps> known_;    // by warp: the intervals of each warp that are over for it
std::array<Clock, kWarps> pending_;  // what flags have told those of its lanes that are in waited_
std::array<uint32_t, kWarps> waited_;
std::unordered_map<const uint64_t*, Clock> raised_;
std::unordered_map<uint32_t, std::vector<const void*>> calls_;  // of each thread, outermost first
uint32_t block_ = 0;
bool running_ = false;
const char *stack_ = nullptr, *stack_end_ = nullptr;
std::string found_;

unsigned present_warp() { return thread_of_cluster() / kWarp; }

bool ordered(const Access& then) {
  if (!then.any()) return true;
  if (then.block != block_) return false;
  if (then.thread == thread_of_cluster()) return true;
  const unsigned warp = present_warp();
  if (then.warp == warp) return then.interval < interval_[warp];
  const bool told = waited_[warp] >> thread.x % kWarp & 1;
  return then.interval < known_[warp][then.warp] ||
         (told && then.interval < pending_[warp][then.warp]);
}

std::string place_of(const void* code) {
  Dl_info info;
  char text[64];
  const bool known = dladdr(code, &info) != 0;
  snprintf(text, sizeof text, "0x%zx",
           static_cast<size_t>(static_cast<const char*>(code) -
                               (known ? static_cast<const char*>(info.dli_fbase) : nullptr)));
  return text;
}

void report(const Access& then, const void* from, const void* address) {
  if (!found_.empty()) return;
  found_ = "a race: thread " + (then.warp >= kWarps    ? std::string("of another block")
                                : then.thread == kMany ? "of warp " + std::to_string(then.warp)
                                                       : std::to_string(then.thread));
  if (then.block != block_) found_ += " of another block";
  char text[32];
  snprintf(text, sizeof text, "%p", address);
  found_ += " and thread " + std::to_string(thread_of_cluster()) + " touch " + text +
            " with nothing between them that orders it (at " + place_of(then.from) + " and " +
            place_of(from) + " of the library)";
}

void note_read(Bytes& bytes, const Access& now) {
  if (bytes.read.any() && bytes.read.block != now.block) bytes.read_by_blocks = true;
  if (bytes.by_warp) {
    Access& mine = (*bytes.by_warp)[now.warp];
    const bool beside = mine.any() && mine.interval == now.interval && mine.thread != now.thread;
    mine = now;
    if (beside) mine.thread = kMany;
    return;
  }
  if (ordered(bytes.read) || bytes.read.block != now.block) {
    bytes.read = now;
  } else if (bytes.read.warp == now.warp) {
    bytes.read.thread = kMany;
  } else {
    bytes.by_warp = std::make_unique<std::array<Access, kWarps>>();
    (*bytes.by_warp)[bytes.read.warp] = bytes.read;
    (*bytes.by_warp)[now.warp] = now;
  }
}

void check_reads(const Bytes& bytes, const void* from, const void* address) {
  if (bytes.read_by_blocks || !ordered(bytes.read)) return report(bytes.read, from, address);
  if (!bytes.by_warp) return;
  for (const Access& read : *bytes.by_warp) {
    if (!ordered(read)) return report(read, from, address);
  }
}

void touch(const void* address, size_t size, bool write, const void* from,
           const Access* sent = nullptr) {
  if (!running_) return;
  const char* first = static_cast<const char*>(address);
  if (first >= stack_ && first < stack_end_) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  auto& touched = is_shared(address) ? touched_of_block_ : touched_;
  const Access now{block_, thread_of_cluster(), interval_[present_warp()], present_warp(), from};
  for (uintptr_t at = begin / 2; at <= (begin + size - 1) / 2; ++at) {
    Bytes& bytes = touched[at];
    if (!ordered(bytes.write)) report(bytes.write, from, address);
    if (!write) {
      note_read(bytes, now);
      continue;
    }
    check_reads(bytes, from, address);
    bytes = Bytes{};
    bytes.write = sent ? *sent : now;
  }
}

}  // namespace

void begin_launch() {
  touched_.clear();
  found_.clear();
  block_ = 0;
}

void begin_block() {
  ++block_;
  interval_.fill(1);
  waited_.fill(0);
  known_.fill({});
  pending_.fill({});
  raised_.clear();
  calls_.clear();
  touched_of_block_.clear();
}

void begin_thread(const char* stack, size_t bytes) {
  stack_ = stack;
  stack_end_ = stack + bytes;
  running_ = true;
}

void end_thread() { running_ = false; }

void warp_met(unsigned warp) { warps_met(Warps().set(warp)); }

void warps_met(const Warps& warps) {
  Clock all{};
  for (unsigned warp = 0; warp < kWarps; ++warp) {
    if (!warps[warp]) continue;
    ++interval_[warp];
    for (unsigned other = 0; other < kWriters; ++other) {
      const uint32_t told = waited_[warp] ? pending_[warp][other] : 0;
      all[other] = std::max({all[other], known_[warp][other], told});
    }
    all[warp] = std::max(all[warp], interval_[warp]);
  }
  for (unsigned warp = 0; warp < kWarps; ++warp) {
    if (!warps[warp]) continue;
    known_[warp] = all;
    waited_[warp] = 0;
    pending_[warp] = {};
  }
}

void raised(const uint64_t* flag) {
  Clock clock = known_[present_warp()];
  clock[present_warp()] = interval_[present_warp()];
  raised_[flag] = clock;
}

void seen(const uint64_t* flag) {
  const unsigned warp = present_warp();
  waited_[warp] |= uint32_t{1} << thread.x % kWarp;
  for (unsigned other = 0; other < kWriters; ++other) {
    pending_[warp][other] = std::max(pending_[warp][other], raised_[flag][other]);
  }
}

void opened(const uint64_t* inbox) {
  touch(inbox, sizeof *inbox, true, __builtin_return_address(0));
}

void added(const uint64_t* inbox) {
  Clock& clock = raised_[inbox];
  const unsigned warp = present_warp();
  const bool waited = waited_[warp] >> thread.x % kWarp & 1;
  for (unsigned other = 0; other < kWriters; ++other) {
    const uint32_t told = waited ? pending_[warp][other] : 0;
    clock[other] = std::max({clock[other], known_[warp][other], told});
  }
  clock[warp] = std::max(clock[warp], interval_[warp]);
}

void sent(const void* place, size_t size, const uint64_t* inbox, unsigned rank) {
  const void* from = __builtin_return_address(0);
  const uint32_t writer = kWarps + rank;
  const Access access{block_, kMany, interval_[writer]++, writer, from};
  touch(inbox, sizeof *inbox, false, from);
  touch(place, size, true, from, &access);
  added(inbox);
  raised_[inbox][writer] = interval_[writer];
}

uint64_t site() {
  if (calls_.empty()) return 0;
  uint64_t hash = 0;
  for (const void* call : calls_[thread_of_cluster()]) {
    hash = (hash ^ reinterpret_cast<uintptr_t>(call)) * 0x9e3779b97f4a7c15;
  }
  return hash;
}

const std::string& found() { return found_; }

}  // namespace cuda_on_host::races

// The hooks, by the names that the compiler calls.
#define FASTMLP_HOOK(size)                                                          \
  void __tsan_read##size(void* address) {                                           \
    cuda_on_host::races::touch(address, size, false, __builtin_return_address(0));  \
  }                                                                                 \
  void __tsan_write##size(void* address) {                                          \
    cuda_on_host::races::touch(address, size, true, __builtin_return_address(0));   \
  }                                                                                 \
  void __tsan_unaligned_read##size(void* address) { __tsan_read##size(address); }   \
  void __tsan_unaligned_write##size(void* address) { __tsan_write##size(address); } \
  void __tsan_volatile_read##size(void* address) { __tsan_read##size(address); }    \
  void __tsan_volatile_write##size(void* address) { __tsan_write##size(address); }

extern "C" {
FASTMLP_HOOK(1)
FASTMLP_HOOK(2)
FASTMLP_HOOK(4)
FASTMLP_HOOK(8)
FASTMLP_HOOK(16)
void __tsan_read_range(void* address, size_t size) {
  cuda_on_host::races::touch(address, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size) {
  cuda_on_host::races::touch(address, size, true, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {  // the host's counts of owners
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
void __tsan_func_entry(void* call) {
  if (cuda_on_host::races::running_) {
    cuda_on_host::races::calls_[cuda_on_host::thread_of_cluster()].push_back(call);
  }
}
void __tsan_func_exit() {
  if (cuda_on_host::races::running_) {
    cuda_on_host::races::calls_[cuda_on_host::thread_of_cluster()].pop_back();
  }
}
}
