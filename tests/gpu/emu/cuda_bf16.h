// SPDX-License-Identifier: Apache-2.0
//
// cuda_bf16.h of the emulation: the types, and the conversions of one number.
#ifndef EMU_CUDA_BF16_H
#define EMU_CUDA_BF16_H

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

struct alignas(2) __nv_bfloat16 {
    uint16_t __x;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

/* Round to nearest even; NaN to 0x7fff. */
inline uint16_t emu_bf16_from_float(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof(u));
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline float emu_bf16_to_float(uint16_t v)
{
    const uint32_t u = static_cast<uint32_t>(v) << 16;
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

inline __nv_bfloat16 __float2bfloat16(float v)
{
    return {emu_bf16_from_float(v)};
}

inline float __bfloat162float(__nv_bfloat16 v)
{
    return emu_bf16_to_float(v.__x);
}

#endif
