// SPDX-License-Identifier: Apache-2.0
//
// device.h: where a test of the whole engine runs. TEST_DEVICE says: not set, the CPU; cuda, a GPU;
// emulated, the CUDA backend on the emulated device (tests/gpu/emu), a thousand times slower, so
// that tests do less there. The backend is found as in the daemon (OPENMOED_CUDA_LIBRARY).
#ifndef OPENMOED_TEST_DEVICE_H
#define OPENMOED_TEST_DEVICE_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

static inline bool test_emulated(void)
{
    const char *name = getenv("TEST_DEVICE");
    return name && strcmp(name, "emulated") == 0;
}

static inline enum cfg_device test_device(void)
{
    const char *name = getenv("TEST_DEVICE");
    return test_emulated() || (name && strcmp(name, "cuda") == 0) ? CFG_DEVICE_CUDA
                                                                  : CFG_DEVICE_CPU;
}

static inline bool test_on_gpu(void)
{
    return test_device() == CFG_DEVICE_CUDA;
}

#endif
