#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU: builds fastmlp with its CUDA kernels, runs the
# tests that need a GPU, the sanitizers and the benchmarks of operators and epochs, and writes
# benchmarks/results/*.cuda.json. Goes on after a failure and ends with a list of what failed.
# Usage: gpu_check.sh [build] [tests] [sanitize] [benchmark] [epochs]; without arguments all five,
# about fifteen minutes. Wants a CUDA toolkit and Python ($PYTHON) with a CUDA build of torch, pytest and ninja.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-$(command -v python || command -v python3)}
export PYTHONPATH=$PWD PATH=$(dirname "$PYTHON"):$PATH
if ! "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "the PyTorch of $PYTHON sees no GPU"
  exit 1
fi
failed=()
step() {
  printf '\n== %s\n' "$*"
  "$@" || failed+=("$*")
}
for part in ${*:-build tests sanitize benchmark epochs}; do
  case $part in
    build)
      step env FASTMLP_CUDA=1 "$PYTHON" setup.py -q build_ext --inplace
      step "$PYTHON" -m fastmlp.info
      step "$PYTHON" -m fastmlp.info --check
      ;;
    tests)
      step "$PYTHON" -c 'import fastmlp; assert fastmlp.native_available("cuda")'
      step "$PYTHON" -m pytest -q -m cuda --durations=5 tests
      ;;
    sanitize) step tests/gpu_sanitize.sh ;;
    benchmark)
      step "$PYTHON" benchmarks/op_time.py --device cuda --minutes "${BENCHMARK_MINUTES:-5}"
      ;;
    epochs)
      step "$PYTHON" benchmarks/epoch_time.py --device cuda --minutes "${EPOCHS_MINUTES:-6}"
      ;;
    *) step false "there is no part $part" ;;
  esac
done
if ((${#failed[@]})); then
  printf '\nfailed:\n'
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
printf '\nall of it passed\n'
