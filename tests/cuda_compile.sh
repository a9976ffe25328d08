#!/usr/bin/env bash
# Compiles each .cu for each GPU we release for, and for those that run the code of 8.0 where it is
# not built for them; a warning, a register spill or local memory is an
# error. Needs nvcc, no GPU and no torch.
set -euo pipefail
cd "$(dirname "$0")/../csrc"
nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [[ ! -x $nvcc ]]; then
  echo "skipped: there is no nvcc"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export nvcc work
for file in $(find cuda -name "*.cu" | sort); do
  for arch in 75 80 86 89 90a 100 120; do echo "$file" "$arch"; done
done | xargs -n 2 -P "${MAX_JOBS:-2}" bash -c '
  "$nvcc" -std=c++17 -O3 -gencode="arch=compute_$1,code=sm_$1" -Werror all-warnings \
    -Xptxas --warn-on-spills,--warn-on-local-memory-usage -Xcompiler -Wall,-Wextra \
    -I. -c "$0" -o "$work/$(basename "$0").$1.o" && echo "$0 sm_$1"'
