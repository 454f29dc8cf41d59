#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Writes the C source that puts files into the binary (see embedded.h), each as it is and compressed.
#   server/embed.sh OUT.c FILE...      run where the compiler will run: it reads the files by these names
set -eu
out=$1
shift
table=
cat >"$out" <<'END'
#include "server/embedded.h"

/* One symbol at the start of each file; a NUL behind it. */
#define INCLUDE(symbol, file) \
    __asm__(".section .rodata\n" #symbol ": .incbin \"" file "\"\n.byte 0\n.previous\n"); \
    extern const char symbol[]

END
n=0
for file; do
    name=$(basename "$file")
    packed=$(dirname "$out")/$name.gz
    gzip -9nc "$file" >"$packed"
    etag=$(sha256sum "$file" | cut -c1-16)
    {
        echo "INCLUDE(embedded_$n, \"$file\");"
        echo "INCLUDE(embedded_${n}_gzip, \"$packed\");"
    } >>"$out"
    table="$table    {\"$name\", \"\\\"$etag\\\"\", embedded_$n, $(wc -c <"$file"), embedded_${n}_gzip, $(wc -c <"$packed")},
"
    n=$((n + 1))
done
printf '\nconst struct embedded server_embedded[] = {\n%s    {0},\n};\n' "$table" >>"$out"
