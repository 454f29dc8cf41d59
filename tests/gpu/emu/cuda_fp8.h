// SPDX-License-Identifier: Apache-2.0
//
// cuda_fp8.h of the emulation: the storage types. The conversions are <device.cuh>'s.
#ifndef EMU_CUDA_FP8_H
#define EMU_CUDA_FP8_H

#include <stdint.h>

typedef uint8_t __nv_fp8_storage_t;
typedef uint16_t __nv_fp8x2_storage_t;
typedef uint32_t __nv_fp8x4_storage_t;

#endif
