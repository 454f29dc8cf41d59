// SPDX-License-Identifier: Apache-2.0
//
// kernels_generic.c: the kernel family that every machine runs (four floats at a time), and the
// choice of a family by name or by what the CPU reports.
#define VL               4
#define NV               2
#define FAMILY           kernels_generic
#define FAMILY_NAME      "generic"
#define FAMILY_SUPPORTED always

#include <stdbool.h>

static bool always(void)
{
    return true;
}

#include "engine/cpu/kernels_body.inc"

const struct kernels *kernels_find(const char *name)
{
    static const struct kernels *const families[] = {
#if defined(__x86_64__)
        &kernels_amx,
        &kernels_avx512,
        &kernels_avx2,
#endif
        &kernels_generic,
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool wanted = strcmp(name, "auto") == 0 || strcmp(name, families[i]->name) == 0;
        if (wanted && families[i]->supported()) return families[i];
    }
    return NULL;
}
