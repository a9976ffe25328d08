// Data races and divergence on the emulated GPU, where the kernels are compiled with
// -fsanitize=thread: its hooks before every load and store come here, and its own library is not
// linked. Two accesses of one launch race if they touch the same bytes from two threads, one of
// them writes, and neither a barrier that both threads' warps came to, nor a flag or an inbox,
// stands between them. An exchange between lanes orders nothing in memory, as on a GPU.
#pragma once
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_host::races {

constexpr size_t kWarps = 128;  // of a cluster
using Warps = std::bitset<kWarps>;

void begin_launch();
void begin_block();  // or the blocks of a cluster

// Around the time that a thread runs, on this stack, whose accesses are its own.
void begin_thread(const char* stack, size_t bytes);
void end_thread();

// All lanes of a warp have come to a barrier of the warp; all threads of `warps` to one of theirs.
void warp_met(unsigned warp);
void warps_met(const Warps& warps);

// The present thread raises a flag; it has seen one raised.
void raised(const uint64_t* flag);
void seen(const uint64_t* flag);

// The present thread opens an inbox; adds to what it waits for; writes there, for those who wait.
void opened(const uint64_t* inbox);
void added(const uint64_t* inbox);
void sent(const void* place, size_t size, const uint64_t* inbox, unsigned rank);

// Where in the source the present thread is, as one number: equal for two threads that came to the
// same call by the same calls. 0 without the hooks.
uint64_t site();

// What was found since the launch began; empty for nothing.
const std::string& found();

}  // namespace cuda_on_host::races
