// SPDX-License-Identifier: Apache-2.0
//
// device_numbers.cuh of the emulation: bits, bf16, fp8, int8, atomics; see engine/cuda's file of
// this name. Only one host thread runs kernels, and a thread of a block is not interrupted, so an
// atomic is a load and a store; they are marked as atomic for TSan.
#ifndef EMU_DEVICE_NUMBERS_CUH
#define EMU_DEVICE_NUMBERS_CUH

#include <cuda_bf16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

inline uint32_t float_bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof(u));
    return u;
}
inline float bits_float(uint32_t v)
{
    float f;
    memcpy(&f, &v, sizeof(f));
    return f;
}

inline float fast_exp2(float v)
{
    const float r = exp2f(v);
    return r < 0x1p-126f ? 0.0f : r;
}

inline int clz(uint32_t v)
{
    return v ? __builtin_clz(v) : 32;
}
inline int popc(uint32_t v)
{
    return __builtin_popcount(v);
}

inline uint32_t bf16_pack(float lo, float hi)
{
    return emu_bf16_from_float(lo) | static_cast<uint32_t>(emu_bf16_from_float(hi)) << 16;
}
inline float2 bf16_unpack(uint32_t v)
{
    return {emu_bf16_to_float(static_cast<uint16_t>(v)),
            emu_bf16_to_float(static_cast<uint16_t>(v >> 16))};
}
inline uint16_t bf16_bits(float v)
{
    return emu_bf16_from_float(v);
}
inline float bf16_float(uint16_t v)
{
    return emu_bf16_to_float(v);
}

inline void int8x4_to_bf16x2(uint32_t v, uint32_t out[2])
{
    int8_t b[4];
    memcpy(b, &v, sizeof(b));
    out[0] = bf16_pack(b[0], b[1]);
    out[1] = bf16_pack(b[2], b[3]);
}

/* e4m3: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity. */
inline uint8_t emu_fp8_from_float(float v)
{
    if (isnan(v)) return 0x7f;
    const uint8_t sign = signbit(v) ? 0x80 : 0;
    const float a = fabsf(v);
    if (a >= 448.0f) return sign | 0x7e;
    if (a < 0x1p-6f) return static_cast<uint8_t>(sign | lrintf(a * 0x1p9f)); /* 8: 2^-6 itself */
    int e;
    const float m = frexpf(a, &e);                      /* [0.5, 1) */
    const int steps = static_cast<int>(lrintf(m * 16)); /* [8, 16]; to even, as exact */
    return static_cast<uint8_t>(sign | (((e + 6) << 3) + (steps - 8)));
}
inline float emu_fp8_to_float(uint8_t v)
{
    const int e = v >> 3 & 15, m = v & 7; /* the NaN code reads as 480 */
    const float a = e ? ldexpf(static_cast<float>(8 + m), e - 10) : static_cast<float>(m) * 0x1p-9f;
    return v & 0x80 ? -a : a;
}
inline uint16_t fp8_pack(float lo, float hi)
{
    return static_cast<uint16_t>(emu_fp8_from_float(lo) | emu_fp8_from_float(hi) << 8);
}
inline void fp8x4_to_bf16x2(uint32_t v, uint32_t out[2])
{
    uint8_t b[4];
    memcpy(b, &v, sizeof(b));
    out[0] = bf16_pack(emu_fp8_to_float(b[0]), emu_fp8_to_float(b[1]));
    out[1] = bf16_pack(emu_fp8_to_float(b[2]), emu_fp8_to_float(b[3]));
}
inline float2 fp8_unpack(uint16_t v)
{
    return {emu_fp8_to_float(static_cast<uint8_t>(v)),
            emu_fp8_to_float(static_cast<uint8_t>(v >> 8))};
}

/* As CUDA's, for each type that kernels use. */
template <class T> T emu_exchange(T *p, T now)
{
    T old;
    __atomic_exchange(p, &now, &old, __ATOMIC_RELAXED);
    return old;
}
template <class T> T emu_look(T *p)
{
    T v;
    __atomic_load(p, &v, __ATOMIC_RELAXED);
    return v;
}
#define EMU_ATOMICS(type)                                                                          \
    inline type atomicAdd(type *p, type v)                                                         \
    {                                                                                              \
        return emu_exchange(p, static_cast<type>(emu_look(p) + v));                                \
    }                                                                                              \
    inline type atomicMax(type *p, type v)                                                         \
    {                                                                                              \
        const type old = emu_look(p);                                                              \
        return old < v ? emu_exchange(p, v) : old;                                                 \
    }                                                                                              \
    inline type atomicCAS(type *p, type expected, type v)                                          \
    {                                                                                              \
        const type old = emu_look(p);                                                              \
        return old == expected ? emu_exchange(p, v) : old;                                         \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(uint32_t)
EMU_ATOMICS(uint64_t)
EMU_ATOMICS(unsigned long long)
#undef EMU_ATOMICS
inline float atomicAdd(float *p, float v)
{
    return emu_exchange(p, emu_look(p) + v);
}

#endif
