// SPDX-License-Identifier: Apache-2.0
//
// kernels_avx512.c: the kernel family for AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats, so
// that a block of 6 rows x 64 outputs keeps its 24 accumulators in registers.
#if defined(__x86_64__)
#define VL               16
#define NV               4
#define FAMILY           kernels_avx512
#define FAMILY_NAME      "avx512"
#define FAMILY_SUPPORTED has_avx512

#include <stdbool.h>

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "engine/cpu/kernels_body.inc"
#endif
