#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything there is to check and to measure of the CUDA backend on a machine with a GPU; one table at the
# end says what passed, what failed and what did not run, and why. `make check-gpu` builds the programs and calls
# it. For a machine without our Debian packages, make or a compiler, carry what `make gpu-kit` made beside the
# tree (build/gpu-kit.tar.gz) and call it there from the repository's root. Checks end within 5 minutes, benchmarks
# within 8: what has not begun by then does not run. Results go to OUT, if that is set, in few files.
#   tests/gpu/check-gpu.sh [--kit FOLDER] [--only checks|bench]
#   tests/gpu/check-gpu.sh --dry [--kit FOLDER]     all of it on the emulated device, at small sizes (no GPU)
# Exit status: 1 when a check failed, 2 when there is no GPU and nothing was checked.
set -u
kit='' only='' dry=''
while [ $# -gt 0 ]; do
    case $1 in
    --kit) kit=${2:?} && shift ;;
    --only) only=${2:?} && shift ;;
    --dry) dry=1 ;;
    *) sed -n '4,11p' "$0"; exit 2 ;;
    esac
    shift
done
[ -n "$kit" ] || kit=build/gpu-kit${dry:+-emulated}
case $kit in /*) ;; *) kit=$PWD/$kit ;; esac
device=cuda
[ -z "$dry" ] || device=emulated
[ ! -f "$kit.tar.gz" ] || tar -C "${kit%/*}" -xzf "$kit.tar.gz"
chmod -R u+x "$kit" 2>/dev/null # a copy may have lost it
[ -x "$kit/openmoed" ] || { echo "$kit/openmoed is not there: make gpu-kit first"; exit 2; }

logs=$(mktemp -d "${TMPDIR:-/tmp}/check-gpu.XXXXXX")
rows=0 until=0
mkdir "$logs/rows"
python=$(command -v python3 || true)
# The driver's folder is not always among those that programs are looked for in, nor its libraries'.
PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin
machine_libs=${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
    [ ! -d $folder ] || machine_libs=$machine_libs:$folder
done

# ---- the table ---------------------------------------------------------------------------------------

row() { # NUMBER NAME RESULT SECONDS NOTE
    printf '%-36s %-8s %5s  %s\n' "$2" "$3" "$4" "${5:0:120}" | tee "$logs/rows/$(printf %03d "$1")"
}

next_row() { rows=$((rows + 1)); }

missing() { # NAME WHY
    next_row
    row $rows "$1" "NOT RUN" - "$2"
}

log_of() { echo "$logs/$(tr -cs 'A-Za-z0-9\n' '-' <<<"$1").log"; }

# Runs a command with a limit; its output goes to a log, the last line that the pattern finds into the table.
stage_now() { # NUMBER NAME LIMIT PATTERN COMMAND...
    local number=$1 name=$2 limit=$3 pattern=$4 start=$SECONDS result=passed rc note='' log
    shift 4
    log=$(log_of "$name")
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    rc=$?
    [ $rc = 0 ] || result=FAILED
    [ -z "$pattern" ] || note=$(grep -aE "$pattern" "$log" | tail -1)
    if grep -aq 'NOT CHECKED' "$log"; then note="$(grep -a 'NOT CHECKED' "$log" | head -1) $note"; fi
    case $rc in
    0) ;;
    124) note="ended after $limit s" ;;
    126 | 127) note="could not be started: $(tail -1 "$log")" ;;
    *) [ $rc -lt 128 ] || note="ended by signal $((rc - 128))" ;;
    esac
    row "$number" "$name" $result $((SECONDS - start)) "$note"
    [ $result = passed ] || tail -25 "$log" | sed 's/^/    /'
}

# A stage of what time is left; with `beside` set, in the background beside others.
stage() { # NAME LIMIT PATTERN COMMAND...
    local left limit=$2
    while [ -n "${beside:-}" ] && [ "$(jobs -rp | wc -l)" -ge "$beside" ]; do wait -n; done
    left=$((until - SECONDS))
    if [ $left -lt 5 ]; then
        missing "$1" "the time for this part was up"
        return
    fi
    [ -z "$dry" ] || limit=$((5 * limit)) # emulated, and perhaps on a busy machine
    [ "$limit" -le $left ] || limit=$left
    next_row
    if [ -n "${beside:-}" ]; then
        stage_now $rows "$1" "$limit" "${@:3}" &
    else
        stage_now $rows "$1" "$limit" "${@:3}"
    fi
}

# A stage with our libraries, for our programs: others may want their own versions.
ours() { # NAME LIMIT PATTERN COMMAND...
    stage "${@:1:3}" env LD_LIBRARY_PATH="$kit/lib$machine_libs" \
        OPENMOED_CUDA_LIBRARY="$kit/libopenmoed-cuda.so" TEST_DEVICE="$device" \
        TEST_DIALOGUES="$kit/gpu/dialogues.jsonl" "${@:4}"
}

# ---- checks ------------------------------------------------------------------------------------------

# How to call NAME's program under a tool of compute-sanitizer. The tests take their small forms, those for the
# emulated device: they are a thousand times slower here too.
sanitized() { # TOOL NAME PROGRAM
    local tool why="there is no compute-sanitizer"
    tool=$(command -v compute-sanitizer || true)
    [ -z "$dry" ] || why="a dry run"
    if [ -n "$dry" ] || [ -z "$tool" ]; then
        missing "compute-sanitizer $1, $2" "$why"
        return
    fi
    device=emulated ours "compute-sanitizer $1, $2" 200 'ERROR SUMMARY|RACECHECK SUMMARY' \
        "$tool" --tool "$1" --error-exitcode 9 --print-limit 5 --report-api-errors no "$kit/$3"
}

checks() {
    local p beside=8
    until=$((SECONDS + 300))
    [ -z "$dry" ] || { beside=1 && until=$((SECONDS + 1800)); }
    sanitized memcheck "small model" unit/test_golden
    sanitized racecheck "small model" unit/test_golden
    sanitized memcheck "recorded steps" gpu/check_steps
    sanitized racecheck "recorded steps" gpu/check_steps
    ours "scheduler: serving changes nothing" 240 '' "$kit/unit/test_sched_invariants"
    ours "demo model: text and accuracy" 240 'demo model, bf16' "$kit/gpu/check_demo"
    ours "8 bits against bf16" 120 'fp8 both' "$kit/gpu/check_quant"
    ours "golden numbers, both modes" 120 '' "$kit/unit/test_golden"
    ours "engine: company, chunks, budgets" 120 '' "$kit/unit/test_engine"
    for p in "$kit"/gpu/test_device* "$kit"/gpu/check_*; do
        case $p in */check_demo | */check_quant) continue ;; esac
        ours "${p##*/}" 120 'checks' "$p"
    done
    wait
    beside=''
    daemon_check
    if [ -n "$python" ] && "$python" -c 'import torch, safetensors' 2>/dev/null; then
        stage "PyTorch peer: golden numbers" 90 'golden, bf' "$python" tests/reference/openmoe_peer.py \
            --golden tests/golden/tiny --device cpu
    else
        missing "PyTorch peer: golden numbers" "python3 has no torch or no safetensors"
    fi
    echo
    grep -aE '^(golden|demo)|^  ' "$(log_of "8 bits against bf16")" 2>/dev/null
    grep -ah '^demo model' "$(log_of "demo model: text and accuracy")" 2>/dev/null
    return 0
}

# Waits until a daemon is ready; its port, or nothing.
port_of() { # LOG PID
    for _ in $(seq 600); do
        grep -q ' ready: ' "$1" && break
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    sed -n 's/.* listening on http:\/\/[^ ]*:\([0-9]*\).*/\1/p' "$1" | head -1
}

# A few chats of two turns through the daemon, which must run on the device.
daemon_check() {
    local log=$logs/daemon.log port='' total=8
    [ -z "$dry" ] || total=2
    LD_LIBRARY_PATH=$kit/lib$machine_libs OPENMOED_CUDA_LIBRARY=$kit/libopenmoed-cuda.so \
        "$kit/openmoed" --model deploy/demo-model --device cuda --port 0 --max-num-seqs 8 \
        --kv-cache-memory 64M >"$log" 2>&1 &
    local pid=$!
    port=$(port_of "$log" $pid)
    if [ -n "$port" ]; then
        ours "daemon: chats of two turns" 60 'answered' "$kit/load/chatload" --url "http://127.0.0.1:$port" \
            --model demo-model --chats 4 --total $total --turns 2 --max-tokens fixed:8 --quiet
    else
        tail -5 "$log"
        next_row
        row $rows "daemon: chats of two turns" FAILED - "the daemon did not come up: $(tail -1 "$log")"
    fi
    kill $pid 2>/dev/null
    wait $pid 2>/dev/null
}

# ---- benchmarks --------------------------------------------------------------------------------------

bench() {
    local ceilings='' engine='' peer='' small='' torch='' gbps='' tflops='' form name sizes="8b shape"
    until=$((SECONDS + 480))
    if [ -n "$dry" ]; then
        until=$((SECONDS + 1800)) sizes="toy sizes"
        engine="--batches 1,4 --contexts 32 --prompts 32,64 --longest 32 --rounds 1"
        peer="--model toy --device cpu --no-compile $engine"
        engine="--model deploy/demo-model --step-tokens 64 $engine"
        [ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null && torch=1
        missing "ceilings" "a dry run"
    elif [ -n "$python" ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        torch=1
        stage "ceilings" 60 'GB/s' "$python" tests/gpu/ceilings.py
        read -r gbps tflops < <(sed -n 's/^\([0-9.]*\) GB\/s, \([0-9.]*\) TFLOP\/s.*/\1 \2/p' "$(log_of ceilings)")
        ceilings="${gbps:+--gbps $gbps} ${tflops:+--tflops $tflops}"
    else
        missing "ceilings" "no PyTorch that sees the GPU: shares of the floor are not known"
    fi
    # shellcheck disable=SC2086
    ours "engine, $sizes, bf16" 150 '^decode +64 ' "$kit/bench/bench_gpu" $ceilings $engine --csv "$logs/engine.csv"
    if [ -n "$torch" ]; then
        # shellcheck disable=SC2086
        stage "PyTorch peer, $sizes" 180 '^decode +64 ' "$python" tests/reference/openmoe_peer.py $ceilings $peer \
            --seconds 150 --csv "$logs/peer.csv"
    else
        missing "PyTorch peer, $sizes" "no PyTorch that sees the GPU"
    fi
    served "$sizes"
    [ -n "$engine" ] || small="--prompts 2048 --contexts 512"
    for form in "fp8 --quantization fp8 --kv-fp8" "int8 --quantization int8"; do
        # shellcheck disable=SC2086
        ours "engine, $sizes, ${form%% *}" 80 '^decode +64 ' "$kit/bench/bench_gpu" $ceilings ${form#* } \
            ${engine:-$small} --csv "$logs/engine-${form%% *}.csv"
    done
    for name in "engine, $sizes, bf16" "PyTorch peer, $sizes" "served, demo model" "served, $sizes" \
        "engine, $sizes, fp8" "engine, $sizes, int8"; do
        [ -f "$(log_of "$name")" ] || continue
        printf '\n---- %s\n' "$name"
        grep -avE 'loading weights|^$' "$(log_of "$name")"
    done
    echo
    [ -z "$dry" ] || echo "a dry run: no figure here is a GPU's"
    [ -z "$python" ] || "$python" tests/gpu/compare.py "$logs"
}

# What the serving costs beside the engine alone: chats with the demo model; token ids with the 8b shape, which
# has no tokenizer.
served() { # SIZES
    if [ -z "$python" ]; then
        missing "served" "there is no python3"
        return
    fi
    local chats="--chats 1,64,256" shape=''
    if [ -n "$dry" ]; then
        chats="--chats 1,2 --new 4 --short"
        shape="--device cpu --model base --chats 1,2 --prompt 16 --new 2"
    fi
    # shellcheck disable=SC2086
    ours "served, $1" 120 'tokens/s' "$python" tests/gpu/served_ids.py --build "$kit" \
        --csv "$logs/served-8b.csv" $shape
    if "$python" -c 'import pytest' 2>/dev/null; then # the tests' helper that starts daemons wants it
        # shellcheck disable=SC2086
        ours "served, demo model" 100 'FAILED' "$python" tests/load/served.py throughput --build "$kit" \
            --device cuda $chats
        mv "$kit/served-throughput.csv" "$logs/served.csv" 2>/dev/null
    else
        missing "served, demo model" "python3 has no pytest"
    fi
}

# Table, figures and logs to where they stay: OUT, whose files must be few, or the kit's folder.
save() {
    local to=${OUT:-$kit/logs}
    mkdir -p "$to"
    cat "$logs"/rows/* >"$to/table.txt"
    cp "$logs"/*.csv "$to/" 2>/dev/null
    tail -c 400000 "$logs"/*.log >"$to/logs.txt" 2>/dev/null
}

# ---- all ---------------------------------------------------------------------------------------------

if [ -n "$dry" ]; then
    echo "a dry run: the emulated device, small sizes; nothing of this says how a GPU does"
elif ! nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader 2>/dev/null; then
    echo "NO GPU ANSWERS (nvidia-smi): NOTHING OF THE CUDA BACKEND WAS CHECKED OR MEASURED ON A GPU."
    echo "Where there is none, \`make check-emu\` checks it on an emulated device."
    rm -rf "$logs"
    exit 2
fi
if [ "$only" = bench ]; then missing "checks" "--only bench"; else checks; fi
save
if [ "$only" = checks ]; then missing "benchmarks" "--only checks"; else bench; fi
save
table=$(cat "$logs"/rows/*)
count() { grep -c " $1 " <<<"$table"; }
failures=$(count FAILED)
echo
echo "---- check-gpu${dry:+, dry run} ----"
echo "$table"
echo "$(count passed) passed, $failures failed, $(count 'NOT RUN') not run, $SECONDS s"
rm -rf "$logs"
[ "$failures" = 0 ]
