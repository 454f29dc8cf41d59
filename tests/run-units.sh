#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs every unit test under a build folder, from the repository's root, and fails if one fails or none is there.
#   tests/run-units.sh build
set -u
failed=0 passed=0
for t in "$1"/unit/test_*; do
    case $t in *.d | *.o | *.log | *'*') continue ;; esac
    log=$t.log
    if ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
        "$t" >"$log" 2>&1; then
        passed=$((passed + 1))
        grep -h 'NOT CHECKED' "$log"
    else
        failed=$((failed + 1))
        echo "FAILED: $t"
        tail -40 "$log"
    fi
done
echo "unit tests in $1: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
