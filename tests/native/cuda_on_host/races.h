// Data races and divergence on the emulated GPU, where the kernels are compiled with
// -fsanitize=thread: its hooks before every load and store come here, and its own library is not
// linked. Two accesses of one launch race if they touch the same bytes from two threads, one of
// them writes, and neither a barrier that both threads' warps came to nor a flag stands between
// them. An exchange between lanes orders nothing in memory, as on a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_host::races {

void begin_launch();
void begin_block();

// Around the time that a thread runs, on this stack, whose accesses are its own.
void begin_thread(const char* stack, size_t bytes);
void end_thread();

// All lanes of a warp have come to a barrier of the warp; all threads of `warps`, a bit for each,
// to one of theirs.
void warp_met(unsigned warp);
void warps_met(uint32_t warps);

// The present thread raises a flag; it has seen one raised.
void raised(const uint64_t* flag);
void seen(const uint64_t* flag);

// Where in the source the present thread is, as one number: equal for two threads that came to the
// same call by the same calls. 0 without the hooks.
uint64_t site();

// What was found since the launch began; empty for nothing.
const std::string& found();

}  // namespace cuda_on_host::races
