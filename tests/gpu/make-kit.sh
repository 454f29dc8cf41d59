#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gathers what check-gpu.sh needs into one folder that can be carried to a machine with a GPU but without our
# Debian packages: the built programs without debug information, and the shared objects they ask for, the C
# and C++ libraries excepted. From the repository's root, after everything is built.
#   tests/gpu/make-kit.sh BUILD
set -euo pipefail
build=$1 kit=$1/gpu-kit
rm -rf "$kit"
mkdir -p "$kit/gpu" "$kit/unit" "$kit/lib"
copy() { # FILE FOLDER
    strip --strip-debug -o "$2/${1##*/}" "$1"
}
copy "$build/openmoed" "$kit"
copy "$build/libopenmoed-cuda.so" "$kit"
for p in "$build"/gpu/check_* "$build"/gpu/test_device*; do
    case $p in *.log) continue ;; esac
    copy "$p" "$kit/gpu"
done
for t in test_golden test_engine test_sched_invariants; do copy "$build/unit/$t" "$kit/unit"; done
copy "$build/bench/bench_gpu" "$kit/gpu"
copy "$build/load/chatload" "$kit/gpu"
cp "$build/gpu/dialogues.jsonl" "$kit/gpu/"
find "$kit" -maxdepth 2 -type f -perm -u+x -exec ldd {} + 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libasan|libubsan)\.so|/ld-' |
    while read -r so; do cp -L "$so" "$kit/lib/"; done
du -sh "$kit"
