#!/usr/bin/env bash
# Builds the blocked engine's schedule and kernels, without torch, with ThreadSanitizer and trains a
# few networks on one and on four threads. Fails on a data race, or where they differ in a bit.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build() {
  "${CXX:-g++}" -std=c++20 "$@" -ffp-contract=off -Wall -Wextra -Wno-maybe-uninitialized \
    -Icsrc tests/native/blocked_threads.cpp -o "$work/blocked_threads" -pthread
}
build -O1 -g -fsanitize=thread
TSAN_OPTIONS="halt_on_error=1 exitcode=66" "$work/blocked_threads"
build -O2  # at full speed, where rare orders of events come up too
"$work/blocked_threads" 5000000
