// SPDX-License-Identifier: Apache-2.0
//
// device_numbers.cuh: the part of <device.cuh> that works on the numbers of one thread: bits, bf16,
// fp8, int8, atomics. Where a conversion is exact or rounds to nearest even, every device and the
// emulation give the same bits. Pairs are packed with the first one in the low half.
#ifndef OPENMOED_CUDA_DEVICE_NUMBERS_CUH
#define OPENMOED_CUDA_DEVICE_NUMBERS_CUH

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifndef DEVICE_INLINE
#define DEVICE_INLINE __device__ __forceinline__
#endif

DEVICE_INLINE uint32_t float_bits(float v)
{
    return __float_as_uint(v);
}

DEVICE_INLINE float bits_float(uint32_t v)
{
    return __uint_as_float(v);
}

/* 2^v to about 2 units in the last place; results below 2^-126 are 0. */
DEVICE_INLINE float fast_exp2(float v)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

DEVICE_INLINE int clz(uint32_t v) /* 32 for 0 */
{
    return __clz(static_cast<int>(v));
}

DEVICE_INLINE int popc(uint32_t v)
{
    return __popc(v);
}

/* Two floats as bf16, round to nearest even, NaN to 0x7fff. */
DEVICE_INLINE uint32_t bf16_pack(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

DEVICE_INLINE float2 bf16_unpack(uint32_t v)
{
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

DEVICE_INLINE uint16_t bf16_bits(float v)
{
    return static_cast<uint16_t>(bf16_pack(v, 0.0f));
}

DEVICE_INLINE float bf16_float(uint16_t v)
{
    return __uint_as_float(static_cast<uint32_t>(v) << 16);
}

DEVICE_INLINE uint32_t device_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

/* (a & b) | c in one instruction: the compiler takes two for two constants. */
DEVICE_INLINE uint32_t device_and_or(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

/* Four int8 to four bf16, all exact. With the low 7 bits m and the sign s of a byte, 0x4300|m is
 * 128+m and 0x4300|s<<7 is 128 or 256: their difference is the value. */
DEVICE_INLINE void int8x4_to_bf16x2(uint32_t v, uint32_t out[2])
{
    const uint32_t x[2] = {__byte_perm(v, 0, 0x4140), __byte_perm(v, 0, 0x4342)};
    for (int i = 0; i < 2; i++)
        out[i] = device_fma_bf16x2(device_and_or(x[i], 0x00800080u, 0x43004300u), 0xbf80bf80u,
                                   device_and_or(x[i], 0x007f007fu, 0x43004300u));
}

/* Two floats as fp8 e4m3, round to nearest even, beyond the range to +-448, NaN to 0x7f. */
DEVICE_INLINE uint16_t fp8_pack(float lo, float hi)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

/* Four fp8 e4m3 to four bf16, all exact: exponent and mantissa fit bf16 in place, with an exponent
 * 120 too small. The NaN codes read as +-480; fp8_pack writes them for NaN alone. */
DEVICE_INLINE void fp8x4_to_bf16x2(uint32_t v, uint32_t out[2])
{
    const uint32_t x[2] = {__byte_perm(v, 0, 0x1404), __byte_perm(v, 0, 0x3424)};
    for (int i = 0; i < 2; i++)
        out[i] = device_fma_bf16x2((x[i] & 0x80008000u) | ((x[i] >> 4) & 0x07f007f0u),
                                   0x7b807b80u /* 2^120 */, 0x80008000u /* -0 */);
}

DEVICE_INLINE float2 fp8_unpack(uint16_t v)
{
    uint32_t r[2];
    fp8x4_to_bf16x2(v, r);
    return bf16_unpack(r[0]);
}

/* ---- matrix product ------------------------------------------------------------------------- */

/* D[16][8] += A[16][16] B[16][8] in bf16 with float sums. With g = lane/4 and t = lane%4:
 *   a[0] = A[g][2t, 2t+1]       a[1] = A[g+8][2t, 2t+1]
 *   a[2] = A[g][2t+8, 2t+9]     a[3] = A[g+8][2t+8, 2t+9]
 *   b[0] = B[2t, 2t+1][g]       b[1] = B[2t+8, 2t+9][g]
 *   d[0], d[1] = D[g][2t, 2t+1]
 *   d[2], d[3] = D[g+8][2t, 2t+1]
 * In which order and with what precision inside the hardware adds the 16 products and d is not
 * specified. The emulation adds in ascending k and rounds to float each time. */
DEVICE_INLINE void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- atomics -------------------------------------------------------------------------------- */

/* CUDA's own take int, unsigned and float; here is the type that uint64_t is. Kernels use
 * atomicAdd on all four, atomicMax and atomicCAS on the integers. */
DEVICE_INLINE uint64_t atomicAdd(uint64_t *p, uint64_t v)
{
    return atomicAdd(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(v));
}

DEVICE_INLINE uint64_t atomicMax(uint64_t *p, uint64_t v)
{
    return atomicMax(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(v));
}

DEVICE_INLINE uint64_t atomicCAS(uint64_t *p, uint64_t expected, uint64_t v)
{
    return atomicCAS(reinterpret_cast<unsigned long long *>(p),
                     static_cast<unsigned long long>(expected), static_cast<unsigned long long>(v));
}

#endif
