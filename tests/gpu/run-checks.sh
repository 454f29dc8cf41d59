#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the checks of the CUDA backend over one of its shared objects, one line each, and fails if one fails:
# every program BUILD/gpu/check_* and the engine's tests that know TEST_DEVICE. From the repository's root.
#   tests/gpu/run-checks.sh BUILD LIBRARY cuda|emulated [JOBS]
set -u
build=$1 library=$2 device=$3 jobs=${4:-1}
case $library in /*) ;; *) library=$PWD/$library ;; esac
export OPENMOED_CUDA_LIBRARY=$library TEST_DEVICE=$device TEST_DIALOGUES=$build/gpu/dialogues.jsonl
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1

run_one() {
    local log=$1.$TEST_DEVICE.log start=$EPOCHREALTIME
    if "$1" >"$log" 2>&1; then result=passed; else result=FAILED; fi
    local end=$EPOCHREALTIME
    printf '%-24s %s in %d ms\n' "${1##*/}" "$result" $(((${end/./} - ${start/./}) / 1000))
    if [ $result = FAILED ]; then
        tail -40 "$log"
        return 1
    fi
    grep -h 'NOT CHECKED' "$log"
    return 0
}
export -f run_one

# the longest first
programs=("$build"/unit/test_sched_invariants "$build"/unit/test_golden "$build"/unit/test_engine "$build"/gpu/check_*)
found=()
for p in "${programs[@]}"; do
    case $p in *.log | *.d) continue ;; esac
    [ -x "$p" ] && found+=("$p") || { echo "$p: not built"; exit 1; }
done
printf '%s\n' "${found[@]}" | xargs -P "$jobs" -I{} bash -c 'run_one "$1"' _ {}
