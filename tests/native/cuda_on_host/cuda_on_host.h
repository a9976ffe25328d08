// How the emulated GPU runs.
#pragma once
#include <cstdint>

#include "cuda_runtime.h"

namespace cuda_on_host {

struct Settings {
  unsigned order = 0;        // threads and blocks 0 ascending, 1 descending, above: shuffled
  int processors = 132;      // multiprocessors
  int capability = 90;       // compute capability 9.0
  uint64_t last_blocks = 0;  // run no more than the grid's last so many blocks; 0: all
  int clusters = 0;          // that run at the same time; 0: as many as the processors are for
};

void configure(const Settings& settings);

// Blocks of a cluster in the last launch.
unsigned last_cluster();

}  // namespace cuda_on_host
