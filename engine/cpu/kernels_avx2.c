// SPDX-License-Identifier: Apache-2.0
//
// kernels_avx2.c: the kernel family for AVX2 with FMA: 16 registers of 8 floats.
#if defined(__x86_64__)
#define VL               8
#define NV               2
#define FAMILY           kernels_avx2
#define FAMILY_NAME      "avx2"
#define FAMILY_SUPPORTED has_avx2

#include <stdbool.h>

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#include "engine/cpu/kernels_body.inc"
#endif
