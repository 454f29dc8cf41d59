// SPDX-License-Identifier: Apache-2.0
//
// check.h: what the checks of the CUDA backend share (those of device.cuh have device_check.h).
// They go through struct ops alone, so they are the same on a GPU and on the emulated device:
// inputs enter by vector_new, outputs leave by read and sync, and the reference backend says what
// is right. OPENMOED_CUDA_LIBRARY names the shared object. In BF16 mode what feeds a product lies
// packed in a GPU's buffers and as FP32 in the reference's (cuda.h): `feed` buffers hide that.
#ifndef OPENMOED_TEST_CHECK_H
#define OPENMOED_TEST_CHECK_H

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/cpu/kernels.h"
#include "engine/ops.h"

struct side {
    const struct ops *ops;
    void *be;
    bool packed; /* feed buffers are BF16 */
};

/* ---- numbers --------------------------------------------------------------------------------- */

static uint64_t state_of_random = 88172645463325252u;

static inline float uniform(void) /* [-1, 1) */
{
    state_of_random ^= state_of_random << 13;
    state_of_random ^= state_of_random >> 7;
    state_of_random ^= state_of_random << 17;
    return (float)(state_of_random >> 40) * 0x1p-23f - 1.0f;
}

static inline int below(int n)
{
    (void)uniform();
    return (int)(state_of_random >> 33) % n;
}

/* n fresh numbers, freed by the caller; rounded: to BF16. */
static inline float *random_numbers(size_t n, float scale, bool rounded)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        x[i] = scale * uniform();
        if (rounded) x[i] = round_bf16(x[i]);
    }
    return x;
}

/* ---- backends -------------------------------------------------------------------------------- */

/* A small model's options; checks change what they need. */
static inline struct backend_options small_options(bool bf16)
{
    return (struct backend_options){.threads = 1,
                                    .memory_share = 0.9,
                                    .bf16 = bf16,
                                    .max_rows = 64,
                                    .max_seqs = 16,
                                    .block_size = 16,
                                    .vocab = 512,
                                    .moe_layers = 2,
                                    .hidden = 96,
                                    .inner = 160,
                                    .experts = 8,
                                    .topk = 2,
                                    .heads = 6,
                                    .kv_heads = 6,
                                    .head_dim = 16,
                                    .context = 256};
}

static inline struct side open_gpu(const struct backend_options *opt)
{
    struct side s = {.packed = opt->bf16};
    struct error err;
    if (cuda_load(&s.ops, &s.be, opt, &err) != CFG_OK) fail_msg("%s", err.message);
    return s;
}

static inline struct side open_reference(const struct backend_options *opt)
{
    struct side s = {0};
    struct error err;
    if (cpu_reference_open(&s.ops, &s.be, opt, &err) != CFG_OK) fail_msg("%s", err.message);
    return s;
}

static inline void close_side(struct side *s)
{
    s->ops->close(s->be);
}

static inline void sync_side(const struct side *s)
{
    struct error err;
    if (s->ops->sync(s->be, &err) != CFG_OK) fail_msg("%s", err.message);
}

/* A batch is valid until the sync after it; operations that do not look at it need none. Decodes
 * that are all sampled are recorded when their like comes a second time: then only sync runs them.
 * wants_logits prevents that. */
static inline void begin_side(const struct side *s, const struct op_batch *b)
{
    assert_true(s->ops->begin(s->be, b));
}

/* ---- buffers: the backend's memory, until it is closed -----------------------------------------
 */

static inline float *put(const struct side *s, const float *x, size_t n)
{
    const struct weight_source src = {.data = x, .type = TENSOR_F32, .rows = 1, .cols = (int64_t)n};
    struct error err;
    float *out;
    if (s->ops->vector_new(s->be, &src, &out, &err) != CFG_OK) fail_msg("%s", err.message);
    return out;
}

/* The same for what feeds a product; x holds BF16 values in BF16 mode. */
static inline float *put_feed(const struct side *s, const float *x, size_t n)
{
    if (!s->packed) return put(s, x, n);
    uint16_t *half = calloc(n + 2, sizeof *half);
    float *bits = malloc((n / 2 + 1) * sizeof *bits);
    assert_non_null(half);
    assert_non_null(bits);
    for (size_t i = 0; i < n; i++) half[i] = f32_to_bf16(x[i]);
    memcpy(bits, half, (n / 2 + 1) * sizeof *bits);
    float *out = put(s, bits, n / 2 + 1);
    free(half), free(bits);
    return out;
}

/* Room for n numbers of either kind, full of NaN. */
static inline float *blank(const struct side *s, size_t n)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    memset(x, 0xff, (n + 1) * sizeof *x);
    float *out = put(s, x, n + 1);
    free(x);
    return out;
}

/* To host memory; waits. */
static inline void get(const struct side *s, const float *from, size_t n, float *out)
{
    s->ops->read(s->be, from, n * sizeof *out, out);
    sync_side(s);
}

static inline void get_feed(const struct side *s, const float *from, size_t n, float *out)
{
    if (!s->packed) {
        get(s, from, n, out);
        return;
    }
    uint16_t *half = malloc((n + 1) * sizeof *half);
    assert_non_null(half);
    s->ops->read(s->be, from, n * sizeof *half, half);
    sync_side(s);
    for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(half[i]);
    free(half);
}

static inline struct weight *put_weight(const struct side *s, const float *x, int rows, int cols,
                                        bool transposed)
{
    const struct weight_source src = {
        .data = x, .type = TENSOR_F32, .rows = rows, .cols = cols, .transposed = transposed};
    struct weight *w;
    struct error err;
    if (s->ops->weight_new(s->be, &src, &w, &err) != CFG_OK) fail_msg("%s", err.message);
    return w;
}

/* ---- comparison ------------------------------------------------------------------------------ */

/* Each number within `tolerance` of what is wanted, relative to the largest number wanted. */
static inline void assert_close(const float *got, const float *want, size_t n, float tolerance,
                                const char *what)
{
    float size = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(want[i]) > size) size = fabsf(want[i]);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= tolerance * size))
            fail_msg("%s: element %zu is %.9g, expected %.9g (largest %g)", what, i, (double)got[i],
                     (double)want[i], (double)size);
}

static inline void assert_same_bits(const float *got, const float *want, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("%s: element %zu is %.9g, expected the bits of %.9g", what, i, (double)got[i],
                     (double)want[i]);
}

#endif
