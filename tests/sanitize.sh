#!/usr/bin/env bash
# Builds fastmlp._C with AddressSanitizer and UndefinedBehaviorSanitizer into a temporary folder and
# runs the operators' case table, the blocked engine's tests and calls of every operator with
# anything on it. Wants the environment that the tests run in.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r csrc fastmlp tests ./*.py pyproject.toml README.md LICENSE "$work"
rm -f "$work"/fastmlp/*.so
cd "$work"
FASTMLP_SANITIZE=address,undefined python setup.py -q build_ext --inplace
# Python itself is not instrumented, so the runtime has to be there before it; Python's and torch's
# own memory that lives until the end is no leak of ours.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$work
operators="tests/ops/test_linear.py tests/ops/test_activations.py tests/ops/test_cross_entropy.py"
rows="tests/ops/test_train_steps.py tests/ops/test_predict_rows.py"
of_rows="(test_train_steps or test_predict_rows)"
for isa in "" avx2 portable; do
  export FASTMLP_CPU_ISA=$isa
  python -c 'import fastmlp; assert fastmlp.native_available()'
  files="$operators $rows tests/engines/test_blocked.py"
  chosen="not compile and not torch_func and not lesser and not 3072 and not opcheck \
    and not gradients and not 40000 and not last_bits and not float32_is and not 200000"
  if [[ -z $isa ]]; then
    files+=" tests/ops/test_evaluate.py tests/engines/test_blocked_many.py \
      tests/engines/test_blocked_repeats.py tests/data/test_transforms.py"
    FASTMLP_FUZZ=40 python -m pytest -q -p no:cacheprovider tests/faults/test_fuzz_native.py
  else  # what does not depend on the instruction set is tested with the best one alone
    chosen+=" and not 4300001 and not larger and not threads and not single_steps \
      and not refused and not parsed and not drawn"
  fi
  # One start for all: Python and torch take their time to import under the sanitizers.
  python -m pytest -q -p no:cacheprovider $files -k "not $of_rows and ($chosen) \
    or $of_rows and native and (ragged or dropout or normalised or sparse)"
done
