// mlp and mlp_backward on the CPU.
#include "common/mlp.h"

#include "cpu/operators.h"

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  using namespace fastmlp;
  m.impl("mlp", TORCH_BOX((&mlp<linear_cpu, activation_cpu>)));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward<linear_backward_cpu>));
}
