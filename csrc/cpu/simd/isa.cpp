// The choice of instruction set, made once.
#include "cpu/simd/isa.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastmlp {

static Isa best_isa() {
#ifdef FASTMLP_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (has_avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

static const char* name_of(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "portable";
}

static Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wish = std::getenv("FASTMLP_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wish) == name_of(isa) && isa <= best) return isa;
  }
  throw std::runtime_error(std::string("FASTMLP_CPU_ISA must be portable, avx2 or avx512, and one "
                                       "that this processor has; got ") +
                           wish);
}

Isa cpu_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

bool cpu_has_vnni() {
#ifdef FASTMLP_X86
  static const bool has = cpu_isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

static std::string cpu_isa_name() { return name_of(cpu_isa()); }

}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastmlp::cpu_isa_name));
}
