#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU: builds fastmlp with its CUDA kernels, runs the
# tests that need a GPU, the sanitizers and the benchmarks, and writes
# benchmarks/results/op_time.cuda.json. Goes on after a failure and ends with a list of what failed.
# Wants Python with a CUDA build of torch, pytest and ninja; a CUDA toolkit; about ten minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
step() {
  printf '\n== %s\n' "$*"
  "$@" || failed+=("$*")
}
export PYTHONPATH=$PWD
step env FASTMLP_CUDA=1 python setup.py -q build_ext --inplace
step python -m fastmlp.info
step python -m pytest -q -m cuda tests
step tests/gpu_sanitize.sh
step python benchmarks/op_time.py --device cuda --minutes "${BENCHMARK_MINUTES:-5}"
if ((${#failed[@]})); then
  printf '\nfailed:\n'
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
printf '\nall checks on the GPU passed\n'
