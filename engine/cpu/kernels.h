// SPDX-License-Identifier: Apache-2.0
//
// kernels.h (private to engine/cpu/): the inner loops of the fast backend, one table per
// instruction set. kernels_body.inc holds the one source; kernels_*.c compile it.
//
// Weight layout ("panels"). A matrix of N outputs and K inputs is cut into panels of `panel`
// outputs; a panel is one contiguous run, so that a step streams memory in long sequential reads:
//   F32   [K][panel]
//   BF16  [ceil(K/2)][panel][2]   two neighbouring inputs side by side, what a dot of pairs wants
// Missing outputs of the last panel and missing inputs are zero.
//
// Order. Each output is one chain of fused multiply-adds over k = 0, 1, ... (AMX: over blocks of 32
// k), whatever the number of rows or the thread: a row's result depends on that row and the weights
// alone.
#ifndef OPENMOED_CPU_KERNELS_H
#define OPENMOED_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernels {
    const char *name;    /* --cpu-isa */
    const char *backend; /* "cpu-" and the name */
    int panel;           /* outputs of one packed panel */
    int k_align;         /* inputs of a BF16 panel are padded to a multiple of this */
    int block_rows;      /* rows that pack_rows interleaves: split row ranges at multiples of it */

    bool (*supported)(void);

    /* Inputs of a product in the order its kernel reads them: `rows` rows [rows, k] of FP32
     * (holding BF16 values for *_bf16) go to rows * packed_row_*(k) bytes. */
    size_t (*packed_row_f32)(int k), (*packed_row_bf16)(int k);
    void (*pack_rows_f32)(const float *x, int rows, int k, void *out);
    void (*pack_rows_bf16)(const float *x, int rows, int k, void *out);
    /* y[r][j] = sum_k x[r][k] * w[k][j] for `panels` panels from w on; n_out outputs in all are
     * written to each of the rows, ldy apart. */
    void (*gemm_f32)(const void *packed, int rows, const float *w, int panels, int k, float *y,
                     size_t ldy, int n_out);
    void (*gemm_bf16)(const void *packed, int rows, const uint16_t *w, int panels, int k, float *y,
                      size_t ldy, int n_out);
    void (*rmsnorm)(const float *x, const float *w, float eps, int n, bool bf16, float *y);
    void (*swiglu)(const float *gate, const float *up, int inner, bool bf16, float *y);
    /* One query of one head over positions 0 .. n-1 of a paged cache. k_blocks and v_blocks point
     * at block 0 of this layer and head; `stride` elements lie between blocks. K is
     * [block/16][head_dim][16], V [block][head_dim]. scores is scratch, [n rounded up to 16]. */
    void (*attend_f32)(const float *q, int head_dim, int n, const int32_t *table, int block,
                       const float *k_blocks, const float *v_blocks, size_t stride, float *scores,
                       bool bf16, float *y);
    void (*attend_bf16)(const float *q, int head_dim, int n, const int32_t *table, int block,
                        const uint16_t *k_blocks, const uint16_t *v_blocks, size_t stride,
                        float *scores, bool bf16, float *y);
    float (*dot)(const float *a, const float *b, int n);
};

extern const struct kernels kernels_generic;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2, kernels_avx512, kernels_amx;
#endif

/* The family of that name, or for "auto" the best this machine runs; NULL if unknown or not
 * supported. */
const struct kernels *kernels_find(const char *name);

/* BF16 <-> FP32, round to nearest even; NaN stays NaN. */
static inline float bf16_to_f32(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)b << 16};
    return v.f;
}

static inline uint16_t f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((v.u >> 16) | 0x40);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1)) >> 16);
}

static inline float round_bf16(float f)
{
    return bf16_to_f32(f32_to_bf16(f));
}

#endif
