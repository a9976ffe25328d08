#!/usr/bin/env bash
# The whole of tests/faults: every file operation, where the test suite takes each fifth.
set -euo pipefail
cd "$(dirname "$0")/../.."
FASTMLP_FAULTS=all python -m pytest -p no:cacheprovider tests/faults "$@"
