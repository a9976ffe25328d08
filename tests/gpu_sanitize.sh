#!/usr/bin/env bash
# compute-sanitizer's four tools over a reduced case table, on a GPU. Wants the environment that the
# tests run in, with fastmlp._cuda built. SANITIZE_TOOLS names fewer of them. Python starts helper
# programs that use no GPU, which would be errors otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
"$sanitizer" --version
export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor is an allocation that memcheck knows the ends of
export FASTMLP_NO_POISON=1               # initcheck looks for reads of what nobody wrote
"${PYTHON:-python}" -c 'import torch, fastmlp; assert torch.cuda.is_available() and fastmlp.native_available("cuda")'
# Cases whose expected values come from the CPU or from simple kernels: no library is in the way.
chosen='(every_layout and (9x15x4 or 100x65x131 or 24x640x130) and (offset or transposed))
  or padded or (relu_aligned and 8192) or cross_entropy_layouts or (no_class and 0.1)
  or (every_option and 1100 and mean and False-0.1)
  or (TestChain and every_shape and (8x3 or 4x7 or 20x5 or 16x2 or 3x4) and (plain or all))'
for tool in ${SANITIZE_TOOLS:-memcheck racecheck initcheck synccheck}; do
  printf '\n== %s\n' "$tool"
  "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all --require-cuda-init no \
    "${PYTHON:-python}" -m pytest -q -x -p no:cacheprovider tests/gpu/test_operators.py tests/gpu/test_blocked.py -k "${chosen//$'\n'/ }"
done
