#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gathers what check-gpu.sh needs into one folder, laid out as the build folder is, and KIT.tar.gz of it, to be
# carried to a machine with a GPU but without our Debian packages: the built programs without debug information,
# and the shared objects they ask for, those of the C and C++ compilers excepted. With `emulated` the backend is
# the emulated device's, for a dry run where there is no GPU. From the repository's root, after everything is built.
#   tests/gpu/make-kit.sh BUILD KIT cuda|emulated
set -euo pipefail
build=$1 kit=$2 device=$3
rm -rf "$kit"
mkdir -p "$kit/gpu" "$kit/unit" "$kit/lib" "$kit/bench" "$kit/load"
copy() { # FILE FOLDER
    strip --strip-debug -o "$2/${1##*/}" "$1"
    chmod 755 "$2/${1##*/}"
}
own=$build tests=$build/gpu
[ "$device" = cuda ] || own=$build/cuda-emu tests=$build/cuda-emu
copy "$build/openmoed" "$kit"
copy "$own/libopenmoed-cuda.so" "$kit"
for p in "$build"/gpu/check_* "$tests"/test_device*; do
    case $p in *.log | *.o | *.d) continue ;; esac
    copy "$p" "$kit/gpu"
done
for t in test_golden test_engine test_sched_invariants; do copy "$build/unit/$t" "$kit/unit"; done
for t in bench_gpu bench_chats; do copy "$build/bench/$t" "$kit/bench"; done
copy "$build/load/chatload" "$kit/load"
cp "$build/gpu/dialogues.jsonl" "$kit/gpu/"
# What belongs to glibc and the compiler must be the machine's own: they are newer there, never older (the
# programs need glibc 2.34 and libstdc++ of GCC 11: Debian 12, Ubuntu 22.04).
system='libc|libm|libdl|librt|libpthread|libresolv|libutil|libanl|libnsl|libnss_[a-z]+'
system="$system|libgcc_s|libstdc\+\+|libasan|libubsan|libtsan"
find "$kit" -maxdepth 2 -type f -perm -u+x -exec ldd {} + 2>/dev/null |
    awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | { grep -Ev "/($system)\.so|/ld-" || true; } |
    while read -r so; do cp -L "$so" "$kit/lib/"; done
missing=$(find "$kit" -maxdepth 2 -type f -perm -u+x -exec ldd {} + 2>/dev/null | grep 'not found' || true)
[ -z "$missing" ] || { echo "$missing"; exit 1; }
tar -C "${kit%/*}" -czf "$kit.tar.gz" "${kit##*/}"
size=$(stat -c %s "$kit.tar.gz")
echo "$kit.tar.gz: $((size >> 20)) MiB"
# It travels beside the tree, both together at most 64 MiB.
tree=$(git ls-files -z --cached --others --exclude-standard 2>/dev/null | xargs -0 stat -c %s 2>/dev/null |
    awk '{ sum += $1 } END { print sum + 0 }')
[ $((size + tree)) -le $((63 << 20)) ] || { echo "too large to carry with the tree ($((tree >> 20)) MiB)"; exit 1; }
