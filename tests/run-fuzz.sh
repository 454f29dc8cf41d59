#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target for some seconds, starting from its corpus in tests/fuzz/corpus/NAME where there is one.
#   tests/run-fuzz.sh build/fuzz/fuzz 10
set -u
failed=0 passed=0
for t in "$1"/fuzz_*; do
    case $t in *.d | *.o | *.log | *'*') continue ;; esac
    name=${t##*/fuzz_}
    mkdir -p "$1/corpus/$name"
    seeds=
    [ -d "tests/fuzz/corpus/$name" ] && seeds=tests/fuzz/corpus/$name
    if "$t" -max_total_time="$2" -timeout=120 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$1/" \
        "$1/corpus/$name" $seeds >"$t.log" 2>&1; then
        passed=$((passed + 1))
        echo "fuzz $name: $(sed -n 's/stat::number_of_executed_units: *//p' "$t.log") inputs, no failure"
    else
        failed=$((failed + 1))
        echo "FAILED: $t"
        tail -40 "$t.log"
    fi
done
echo "fuzz targets: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
