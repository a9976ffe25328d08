// Which instruction set the CPU kernels run with. foreach_isa.h compiles each kernel once for each;
// FASTMLP_BEST_ISA(f) is the f of the namespace that fits the present processor.
#pragma once
#include "common/scalar_math.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define FASTMLP_X86 1
#endif

namespace fastmlp {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best one that the processor has, or a lesser one named by $FASTMLP_CPU_ISA; settled once.
Isa cpu_isa();
// Whether that is AVX-512 on a processor that also multiplies bytes (VNNI).
bool cpu_has_vnni();

}  // namespace fastmlp

#ifdef FASTMLP_X86
#define FASTMLP_BEST_ISA(...)                                            \
  (::fastmlp::cpu_isa() == ::fastmlp::Isa::kAvx512 ? avx512::__VA_ARGS__ \
   : ::fastmlp::cpu_isa() == ::fastmlp::Isa::kAvx2 ? avx2::__VA_ARGS__   \
                                                   : portable::__VA_ARGS__)
#else
#define FASTMLP_BEST_ISA(...) portable::__VA_ARGS__
#endif
