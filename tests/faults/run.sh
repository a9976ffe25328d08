#!/usr/bin/env bash
# The whole of what tests/faults is a sample of in the suite: every file operation, 300 kills, 20 seeds
# of 200 epochs, many more damaged files and calls. About an hour on two cores; writes
# benchmarks/results/faults.json where nothing failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
FASTMLP_FIGURES=$(mktemp)
export FASTMLP_FIGURES FASTMLP_FAULTS=all FASTMLP_EXAMPLES=10000
trap 'rm -f "$FASTMLP_FIGURES"' EXIT
tests() { python -m pytest -p no:cacheprovider -o faulthandler_timeout=3600 "$@"; }
FASTMLP_FUZZ=1000 tests tests/faults tests/ops/test_properties.py "$@"
FASTMLP_FUZZ=100000 tests tests/data/test_pickles.py "$@"
python benchmarks/faults.py "$FASTMLP_FIGURES"
