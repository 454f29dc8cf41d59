#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every unit test under a build folder, one on each CPU, from the repository's root, and fails if one fails or none
# is there.
#   tests/run-units.sh build
set -u
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

run_one() {
    if "$1" >"$1.log" 2>&1; then
        grep -h 'NOT CHECKED' "$1.log"
        return 0
    fi
    # one write, so that two failures don't mix
    printf '%s\n' "FAILED: $1" "$(tail -40 "$1.log")"
    return 1
}
export -f run_one

shopt -s nullglob
tests=()
for t in "$1"/unit/test_*; do
    case $t in *.d | *.o | *.log) ;; *) tests+=("$t") ;; esac
done
[ ${#tests[@]} -gt 0 ] || { echo "unit tests in $1: none"; exit 1; }
printf '%s\n' "${tests[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run_one "$1"' _ {}
result=$?
[ $result = 0 ] && echo "unit tests in $1: ${#tests[@]} passed" || echo "unit tests in $1: some of ${#tests[@]} FAILED"
exit $result
