#!/usr/bin/env bash
# Builds both extensions, for one GPU, against a CUDA build of torch, imports them where there need
# not be a GPU, checks the stable ABI, and runs the operators' CPU side.
# Usage: cuda_build.sh PYTHON, of an environment with torch, numpy, pytest, setuptools and ninja.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
if [[ $("$python" -c 'import torch; print(torch.version.cuda)') == None ]]; then
  echo "skipped: the torch of $python is a CPU build"
  exit 0
fi
if ! command -v nvcc > /dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
  echo "skipped: there is no nvcc"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r csrc fastmlp tests ./*.py pyproject.toml README.md LICENSE "$work"
rm -f "$work"/fastmlp/*.so
cd "$work"
# The kernels are compiled as they are released, and looked at, by cuda_compile.sh.
export NVCC_APPEND_FLAGS="-Xcicc=-O1 -Xptxas=-O1"
PATH=$(dirname "$python"):$PATH FASTMLP_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0a MAX_JOBS=${MAX_JOBS:-2} \
  "$python" setup.py build_ext --inplace > build.log 2>&1 || { tail -50 build.log; exit 1; }
grep '^fastmlp:' build.log
undefined=$(nm -D --undefined-only --demangle fastmlp/_cuda.abi3.so | grep -E '\b(at|c10|torch)::' || true)
if [[ -n $undefined ]]; then
  printf 'fastmlp/_cuda.abi3.so needs symbols that differ between versions of torch:\n%s\n' "$undefined"
  exit 1
fi
export PYTHONPATH=$work
"$python" - <<'PYTHON'
import pathlib, re
import torch, fastmlp, fastmlp._cuda
from fastmlp.ops._load import NATIVE_DEVICES
assert NATIVE_DEVICES == ("cpu", "cuda"), NATIVE_DEVICES
for name in ("activation", "linear", "cross_entropy"):
    for operator in (name, f"{name}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmlp::{operator}", "CUDA")
for name in ("chain_", "gram_", "products_", "product_sum_"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmlp::blocked_{name}", "CUDA")
assert torch.ops.fastmlp.cuda_driver_version() >= 0  # 0: there is no driver
for path in pathlib.Path("fastmlp").rglob("*.py"):  # what a CPU build of torch has not, too
    for name in re.findall(r"torch\._C\.(\w+)", path.read_text()):
        assert hasattr(torch._C, name), f"{path}: torch._C has no {name}"
PYTHON
"$python" -m pytest -q -p no:cacheprovider -k "not lesser and not compile" \
  tests/ops/test_linear.py tests/ops/test_activations.py tests/ops/test_cross_entropy.py \
  tests/ops/test_load.py tests/cli/test_info.py
