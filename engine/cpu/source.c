// SPDX-License-Identifier: Apache-2.0
//
// source.c: see source.h. File data may be unaligned (safetensors headers have any length), hence
// memcpy.
#include "engine/cpu/source.h"

#include <math.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/cpu/kernels.h"

static float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    union {
        uint32_t u;
        float f;
    } v;
    if (exponent == 31) { /* infinity, NaN */
        v.u = sign | 0x7f800000u | mantissa << 13;
        return v.f;
    }
    if (exponent == 0) { /* zero, subnormal: mantissa * 2^-24 */
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
        return v.f;
    }
    v.u = sign | (exponent + 112) << 23 | mantissa << 13;
    return v.f;
}

/* A uniform number of standard deviation 1/sqrt(inputs), by mixing seed and index (splitmix64's
 * finaliser). */
static float dummy_number(uint64_t seed, uint64_t index, float scale)
{
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return ((float)(uint32_t)(z >> 40) * 0x1p-23f - 1.0f) * scale;
}

void source_read(const struct weight_source *s, int64_t r, int64_t c, int64_t n, float *out)
{
    const uint64_t first = (uint64_t)(r * s->cols + c);
    if (!s->data) {
        const float scale = sqrtf(3.0f / (float)(s->transposed ? s->rows : s->cols));
        for (int64_t i = 0; i < n; i++) out[i] = dummy_number(s->seed, first + (uint64_t)i, scale);
        return;
    }
    const char *p = (const char *)s->data + first * tensor_type_size((enum tensor_type)s->type);
    if (s->type == TENSOR_F32) {
        memcpy(out, p, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        out[i] = s->type == TENSOR_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
    }
}

void source_read_bf16(const struct weight_source *s, int64_t r, int64_t c, int64_t n, uint16_t *out)
{
    if (s->data && s->type == TENSOR_BF16) {
        memcpy(out, (const char *)s->data + 2 * (r * s->cols + c), (size_t)n * sizeof *out);
        return;
    }
    float tmp[256];
    while (n > 0) {
        const int64_t some = n < 256 ? n : 256;
        source_read(s, r, c, some, tmp);
        for (int64_t i = 0; i < some; i++) out[i] = f32_to_bf16(tmp[i]);
        out += some;
        c += some;
        n -= some;
    }
}
