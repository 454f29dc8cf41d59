#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything there is to check and to measure of the CUDA backend on a machine with a GPU; one table at the
# end says what passed, what failed and what did not run. `make check-gpu` builds the programs and calls it; on
# a machine without our Debian packages carry the folder that `make gpu-kit` made and call it alone, from the
# repository's root. Checks take up to 5 minutes, benchmarks up to 8.
#   tests/gpu/check-gpu.sh [--kit FOLDER] [--only checks|bench]
set -u
kit=build/gpu-kit only=
while [ $# -gt 0 ]; do
    case $1 in
    --kit) kit=$2 ;;
    --only) only=$2 ;;
    *) sed -n '3,9p' "$0"; exit 2 ;;
    esac
    shift 2
done
logs=${OUT:-$kit/logs}
mkdir -p "$logs"
library=$PWD/$kit/libopenmoed-cuda.so
table=$logs/table.txt
failed=0
: >"$table"

# Our programs only: another program may want its own versions of these libraries.
with_libs() { LD_LIBRARY_PATH=$PWD/$kit/lib OPENMOED_CUDA_LIBRARY=$library "$@"; }

row() { # NAME RESULT SECONDS NOTE
    printf '%-34s %-8s %6s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$table"
    if [ "$2" = FAILED ]; then failed=1; fi
}

# Runs a command with a limit; its output goes to a log, the last line that `note` picks into the table.
stage() { # NAME LIMIT NOTE-PATTERN COMMAND...
    local name=$1 limit=$2 pattern=$3 log start=$SECONDS result=passed rc note
    shift 3
    log=$logs/$(tr -c 'A-Za-z0-9\n' '-' <<<"$name").log
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    rc=$?
    [ $rc = 0 ] || result=FAILED
    note=$([ -n "$pattern" ] && grep -aE "$pattern" "$log" | tail -1)
    [ $rc -ge 124 ] && note="ended after $limit s or by a signal ($rc)"
    [ $result = FAILED ] && tail -25 "$log"
    row "$name" $result $((SECONDS - start)) "${note:0:110}"
}

missing() { # NAME WHY
    row "$1" "NOT RUN" - "$2"
}
in_libs() { # like stage, for our programs
    stage "$1" "$2" "$3" env LD_LIBRARY_PATH="$PWD/$kit/lib" OPENMOED_CUDA_LIBRARY="$library" \
        TEST_DEVICE="${device:-cuda}" TEST_DIALOGUES="$kit/gpu/dialogues.jsonl" "${@:4}"
}

# ---- the machine -------------------------------------------------------------------------------------

if ! nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader 2>/dev/null; then
    echo "no GPU answers (nvidia-smi): nothing is checked"
    exit 1
fi

# ---- checks ------------------------------------------------------------------------------------------

checks() {
    for p in "$kit"/gpu/test_device* "$kit"/gpu/check_*; do
        name=${p##*/}
        [ "$name" = check_demo ] && continue
        in_libs "$name" 120 'NOT CHECKED|checks' "$p"
    done
    in_libs "golden numbers, fp32" 120 '' "$kit/unit/test_golden"
    in_libs "engine: company, chunks, budgets" 120 '' "$kit/unit/test_engine"
    in_libs "scheduler: serving changes nothing" 240 '' "$kit/unit/test_sched_invariants"
    in_libs "demo model" 180 'demo model, bf16' "$kit/gpu/check_demo"
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    for tool in memcheck racecheck; do
        if [ -n "$sanitizer" ]; then
            # the small forms of the tests: a thousand times slower there too
            device=emulated in_libs "compute-sanitizer $tool, steps" 150 'ERROR SUMMARY|RACECHECK SUMMARY' \
                "$sanitizer" --tool $tool --error-exitcode 9 --print-limit 3 "$kit/gpu/check_steps"
        else
            missing "compute-sanitizer $tool" "there is no compute-sanitizer"
        fi
    done
    daemon_check
}

# Waits until a daemon is ready; its port, or nothing.
port_of() { # LOG PID
    for _ in $(seq 600); do
        grep -q ' ready: ' "$1" && break
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    sed -n 's/.* ready: .*url=http:\/\/127.0.0.1:\([0-9]*\).*/\1/p' "$1" | head -1
}

# One request through the daemon, which must run on the GPU.
daemon_check() {
    local log=$logs/daemon.log port='' start=$SECONDS
    with_libs "$kit/openmoed" --device cuda --dtype bf16 --port 0 >"$log" 2>&1 &
    local pid=$!
    port=$(port_of "$log" $pid)
    if [ -n "$port" ] && curl -sf "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
        -d '{"model":"demo-model","temperature":0,"messages":[{"role":"user","content":"Hello!"}]}' >"$logs/daemon.json"; then
        row "daemon: one chat" passed $((SECONDS - start)) "$(grep -o '"content":"[^"]*"' "$logs/daemon.json" | head -1)"
    else
        tail -5 "$log"
        row "daemon: one chat" FAILED $((SECONDS - start)) ""
    fi
    kill $pid 2>/dev/null
    wait $pid 2>/dev/null
}

# ---- benchmarks --------------------------------------------------------------------------------------

bench() {
    local gbps='' tflops='' python
    python=$(command -v python3)
    if [ -n "$python" ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        stage "ceilings" 60 'GB/s' "$python" tests/gpu/ceilings.py
        read -r gbps tflops < <(sed -n 's/^\([0-9.]*\) GB\/s, \([0-9.]*\) TFLOP\/s.*/\1 \2/p' "$logs/ceilings.log")
        if [ -f tests/reference/bench_torch.py ]; then
            stage "PyTorch peer" 240 'tokens/s' "$python" tests/reference/bench_torch.py
        else
            missing "PyTorch peer" "there is no tests/reference/bench_torch.py"
        fi
    else
        missing "ceilings" "no PyTorch that sees the GPU"
        missing "PyTorch peer" "no PyTorch that sees the GPU"
    fi
    in_libs "engine, 8b shape, bf16" 180 'decode.* 64 ' "$kit/gpu/bench_gpu" ${gbps:+--gbps "$gbps"} ${tflops:+--tflops "$tflops"}
    in_libs "engine, 8b shape, 8-bit" 120 'decode.* 64 ' "$kit/gpu/bench_gpu" --small ${gbps:+--gbps "$gbps"}
    cat "$logs"/engine--8b-shape--*.log
    served
}

# The demo model, since the shapes with dummy weights have no tokenizer: what the serving costs beside the engine.
served() {
    local log=$logs/served.log port=''
    with_libs "$kit/openmoed" --dtype bf16 --device cuda --port 0 --max-num-seqs 256 --max-num-batched-tokens 4096 >"$log" 2>&1 &
    local pid=$!
    port=$(port_of "$log" $pid)
    if [ -z "$port" ]; then
        tail -3 "$log"
        row "served" FAILED - "the daemon did not come up"
    else
        for chats in 1 64 256; do
            in_libs "served, demo model, $chats chats" 60 'tokens/s|tokens a second|out tok' "$kit/gpu/chatload" \
                --url "http://127.0.0.1:$port" --model demo-model --chats $chats --seconds 15 --turns 1 \
                --max-tokens fixed:128 --ignore-eos --quiet
        done
    fi
    kill $pid 2>/dev/null
    wait $pid 2>/dev/null
    missing "served, 8b shape" "dummy weights have no tokenizer, so no chats"
}

[ "$only" = bench ] || checks
[ "$only" = checks ] || bench
echo
echo "---- check-gpu, $SECONDS s ----"
cat "$table"
exit $failed
