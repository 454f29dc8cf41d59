// SPDX-License-Identifier: Apache-2.0
//
// kernels_body.h: the source of one kernel family, compiled once per instruction set. The including
// file defines VL (floats of a vector register), NV (vectors of a panel), MR32 and MR16 (rows of a
// register block for F32 and BF16 weights), FAMILY (the table's name) and FAMILY_SUPPORTED. GCC's
// vector types keep it free of intrinsics; a*b+c contracts to a fused multiply-add where the
// instruction set has one.
#include <math.h>
#include <string.h>

#include "engine/cpu/kernels.h"

#define PANEL         (NV * VL)
#define MR            6    /* rows of a register block */
#define PREFETCH      2048 /* bytes */
#define GEMV_PANELS   4    /* panels in flight for one row: so many sequential streams per core */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VL * 4)));
typedef float vf_u __attribute__((vector_size(VL * 4), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint32_t vu_u __attribute__((vector_size(VL * 4), aligned(4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint16_t vh_u __attribute__((vector_size(VL * 2), aligned(2)));

ALWAYS_INLINE vf load(const float *p)
{
    return *(const vf_u *)p;
}

ALWAYS_INLINE void store(float *p, vf v)
{
    *(vf_u *)p = v;
}

ALWAYS_INLINE vf splat(float f)
{
    return (vf){0} + f;
}

ALWAYS_INLINE vf load_bf16(const uint16_t *p)
{
    return (vf)(__builtin_convertvector(*(const vh_u *)p, vu) << 16);
}

ALWAYS_INLINE vf vselect(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/* Rounds to BF16 and back; NaN keeps its payload bit, so that it stays NaN. */
ALWAYS_INLINE vf vround_bf16(vf x)
{
    vu u = (vu)x;
    vu r = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    vi nan = x != x;
    return vselect(nan, x, (vf)r);
}

/* Sum of the lanes by halves: a fixed tree. */
ALWAYS_INLINE float hsum(vf v)
{
    float lane[VL];
    memcpy(lane, &v, sizeof lane);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) lane[i] += lane[i + w];
    return lane[0];
}

static float hmax(vf v)
{
    float lane[VL];
    memcpy(lane, &v, sizeof lane);
    for (int i = 1; i < VL; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0];
}

/* e^x to about 1 ulp for x <= 0 and where it does not overflow: 2^n * polynomial on [-ln2/2,
 * ln2/2]. */
ALWAYS_INLINE vf vexp(vf x)
{
    const float big = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = vselect(x < splat(-87.0f), splat(-87.0f), x);
    x = vselect(x > splat(88.0f), splat(88.0f), x);
    vf n = x * 1.44269504f + big;
    vi e = (vi)n << 23;
    n = n - big;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = splat(1.98756915e-4f);
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345190e-3f;
    p = p * r + 4.16657959e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    return (vf)((vi)p + e);
}

/* ---- products ----------------------------------------------------------------------------------
 */

/* Rows are interleaved in blocks of at most MR (pack_rows): input i of the block's row r is x[i *
 * mr + r], so that a block's inputs are one sequential stream beside the weights'. */
static void pack_rows_f32(const float *x, int rows, int k, void *out)
{
    float *o = out;
    for (int r0 = 0; r0 < rows; r0 += MR) {
        const int mr = rows - r0 < MR ? rows - r0 : MR;
        for (int i = 0; i < k; i++)
            for (int r = 0; r < mr; r++) *o++ = x[(size_t)(r0 + r) * (size_t)k + (size_t)i];
    }
}

static size_t packed_row_f32(int k)
{
    return (size_t)k * sizeof(float);
}

/* Writes one register block; the last panel of a matrix may hold fewer outputs than PANEL. */
ALWAYS_INLINE void write_block(vf acc[][NV], int mr, float *y, size_t ldy, int cols)
{
    for (int r = 0; r < mr; r++) {
        if (cols >= PANEL) {
            for (int v = 0; v < NV; v++) store(y + (size_t)r * ldy + v * VL, acc[r][v]);
        } else {
            float tmp[PANEL];
            memcpy(tmp, acc[r], sizeof tmp);
            memcpy(y + (size_t)r * ldy, tmp, (size_t)cols * sizeof *tmp);
        }
    }
}

/* The hardware's prefetcher stops at page borders and follows few streams: ask ahead. A prefetch
 * past the end of the weights is harmless. */
ALWAYS_INLINE void ahead(const void *p, int bytes)
{
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + PREFETCH + i, 0, 3);
}

ALWAYS_INLINE void block_f32(int mr, const float *x, const float *w, int k, float *y, size_t ldy,
                             int cols)
{
    vf acc[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) acc[r][v] = (vf){0};
    for (int i = 0; i < k; i++, w += PANEL, x += mr) {
        vf b[NV];
        ahead(w, PANEL * 4);
        for (int v = 0; v < NV; v++) b[v] = load(w + v * VL);
        for (int r = 0; r < mr; r++)
            for (int v = 0; v < NV; v++) acc[r][v] += b[v] * x[r];
    }
    write_block(acc, mr, y, ldy, cols);
}

/* The even and the odd input of a pair of neighbours, as FP32. */
ALWAYS_INLINE vf load_even(const uint16_t *p)
{
    return (vf)(*(const vu_u *)(const void *)p << 16);
}

ALWAYS_INLINE vf load_odd(const uint16_t *p)
{
    return (vf)(*(const vu_u *)(const void *)p & 0xffff0000u);
}

ALWAYS_INLINE void block_bf16(int mr, const float *x, const uint16_t *w, int k, float *y,
                              size_t ldy, int cols)
{
    vf acc[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) acc[r][v] = (vf){0};
    for (int i = 0; i < k; i += 2, w += 2 * PANEL) {
        vf b[NV];
        ahead(w, PANEL * 4);
        for (int v = 0; v < NV; v++) b[v] = load_even(w + 2 * v * VL);
        for (int r = 0; r < mr; r++)
            for (int v = 0; v < NV; v++) acc[r][v] += b[v] * x[r];
        x += mr;
        if (i + 1 == k) break; /* an odd number of inputs */
        for (int v = 0; v < NV; v++) b[v] = load_odd(w + 2 * v * VL);
        for (int r = 0; r < mr; r++)
            for (int v = 0; v < NV; v++) acc[r][v] += b[v] * x[r];
        x += mr;
    }
    write_block(acc, mr, y, ldy, cols);
}

/* One row against several panels at once: each panel is a sequential stream of its own, and a core
 * needs several to use the memory's bandwidth. The chain of each output is as in block_*. */
ALWAYS_INLINE void gemv_f32(const float *x, const float *w, size_t stride, int k, float *y)
{
    vf acc[GEMV_PANELS][NV];
    for (int p = 0; p < GEMV_PANELS; p++)
        for (int v = 0; v < NV; v++) acc[p][v] = (vf){0};
    for (int i = 0; i < k; i++, w += PANEL) {
        for (int p = 0; p < GEMV_PANELS; p++)
            for (int v = 0; v < NV; v++) acc[p][v] += load(w + (size_t)p * stride + v * VL) * x[i];
    }
    write_block(acc, GEMV_PANELS, y, PANEL, PANEL);
}

ALWAYS_INLINE void gemv_bf16(const float *x, const uint16_t *w, size_t stride, int k, float *y)
{
    vf acc[GEMV_PANELS][NV];
    for (int p = 0; p < GEMV_PANELS; p++)
        for (int v = 0; v < NV; v++) acc[p][v] = (vf){0};
    for (int i = 0; i < k; i += 2, w += 2 * PANEL) {
        for (int p = 0; p < GEMV_PANELS; p++)
            for (int v = 0; v < NV; v++)
                acc[p][v] += load_even(w + (size_t)p * stride + 2 * v * VL) * x[i];
        if (i + 1 == k) break;
        for (int p = 0; p < GEMV_PANELS; p++)
            for (int v = 0; v < NV; v++)
                acc[p][v] += load_odd(w + (size_t)p * stride + 2 * v * VL) * x[i + 1];
    }
    write_block(acc, GEMV_PANELS, y, PANEL, PANEL);
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* The number of rows of a block is a constant in each case, so that accumulators stay in registers.
 */
#define DEFINE_GEMM(suffix, type, padded)                                                          \
    static void gemm_##suffix(const void *rows_packed, int rows, const type *w, int panels, int k, \
                              float *y, size_t ldy, int n_out)                                     \
    {                                                                                              \
        const float *x = rows_packed;                                                              \
        const size_t stride = (size_t)(padded)*PANEL;                                              \
        int p = 0;                                                                                 \
        if (rows == 1)                                                                             \
            for (; (p + GEMV_PANELS) * PANEL <= n_out; p += GEMV_PANELS)                           \
                gemv_##suffix(x, w + (size_t)p * stride, stride, k, y + p * PANEL);                \
        for (; p < panels; p++) {                                                                  \
            const int cols = least(PANEL, n_out - p * PANEL);                                      \
            const type *wp = w + (size_t)p * stride;                                               \
            for (int r = 0; r < rows; r += MR) {                                                   \
                const float *xr = x + (size_t)r * (size_t)k;                                       \
                float *yr = y + (size_t)r * ldy + p * PANEL;                                       \
                switch (least(MR, rows - r)) {                                                     \
                case 1:                                                                            \
                    block_##suffix(1, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                case 2:                                                                            \
                    block_##suffix(2, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                case 3:                                                                            \
                    block_##suffix(3, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                case 4:                                                                            \
                    block_##suffix(4, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                case 5:                                                                            \
                    block_##suffix(5, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                default:                                                                           \
                    block_##suffix(6, xr, wp, k, yr, ldy, cols);                                   \
                    break;                                                                         \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }
DEFINE_GEMM(f32, float, k)
#ifndef FAMILY_CUSTOM
DEFINE_GEMM(bf16, uint16_t, (k + 1) / 2 * 2)
#endif

/* ---- row operations
 * ---------------------------------------------------------------------------------- */

static float dot(const float *a, const float *b, int n)
{
    vf s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + VL) * load(b + i + VL);
    }
    float s = hsum(s0 + s1);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

static void rmsnorm(const float *x, const float *w, float eps, int n, bool bf16, float *y)
{
    const float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vf v = load(x + i) * scale;
        if (bf16) v = vround_bf16(v);
        v = v * load(w + i);
        if (bf16) v = vround_bf16(v);
        store(y + i, v);
    }
    for (; i < n; i++) {
        float v = x[i] * scale;
        if (bf16) v = round_bf16(v);
        v *= w[i];
        y[i] = bf16 ? round_bf16(v) : v;
    }
}

static void swiglu(const float *gate, const float *up, int inner, bool bf16, float *y)
{
    int i = 0;
    for (; i + VL <= inner; i += VL) {
        vf g2 = load(gate + inner + i);
        vf v = load(gate + i) * (g2 / (1.0f + vexp(-g2))) * load(up + i);
        store(y + i, bf16 ? vround_bf16(v) : v);
    }
    for (; i < inner; i++) {
        float g2 = gate[inner + i];
        float v = gate[i] * (g2 / (1.0f + expf(-g2))) * up[i];
        y[i] = bf16 ? round_bf16(v) : v;
    }
}

/* ---- attention
 * --------------------------------------------------------------------------------------- */

#define GROUP 16           /* positions side by side in the K layout */
#define GV    (GROUP / VL) /* vectors of a group */

ALWAYS_INLINE vf vmax(vf a, vf b)
{
    return vselect(a > b, a, b);
}

/* scores[i] = q . K[i], no scaling, for all n positions; returns their maximum. Scores past n, up
 * to a whole group, are -infinity. */
#define DEFINE_SCORES(suffix, type, LOAD)                                                          \
    static float scores_##suffix(const float *q, int head_dim, int n, const int32_t *table,        \
                                 int block, const type *k_blocks, size_t stride, float *scores)    \
    {                                                                                              \
        vf top = splat(-INFINITY);                                                                 \
        for (int p = 0; p < n; p += block, table++) {                                              \
            const type *k = k_blocks + (size_t)*table * stride;                                    \
            const int end = least(p + block, n);                                                   \
            for (int g = p; g < end; g += GROUP) {                                                 \
                vf even[GV], odd[GV];                                                              \
                for (int v = 0; v < GV; v++) even[v] = odd[v] = (vf){0};                           \
                for (int d = 0; d < head_dim; d += 2, k += 2 * GROUP)                              \
                    for (int v = 0; v < GV; v++) {                                                 \
                        even[v] += LOAD(k + v * VL) * q[d];                                        \
                        odd[v] += LOAD(k + GROUP + v * VL) * q[d + 1];                             \
                    }                                                                              \
                for (int v = 0; v < GV; v++) store(scores + g + v * VL, even[v] + odd[v]);         \
                for (int i = n; i < g + GROUP; i++) scores[i] = -INFINITY;                         \
                for (int v = 0; v < GV; v++) top = vmax(top, load(scores + g + v * VL));           \
            }                                                                                      \
        }                                                                                          \
        return hmax(top);                                                                          \
    }
DEFINE_SCORES(f32, float, load)
DEFINE_SCORES(bf16, uint16_t, load_bf16)

/* scores -> e^(score - top); returns their sum. Positions past n weigh nothing. */
static float softmax_weights(float *scores, int n, float top)
{
    vf sum = {0};
    for (int i = 0; i < n; i += VL) {
        const vf s = load(scores + i);
        const vf e = vselect(s == splat(-INFINITY), (vf){0}, vexp(s - top));
        store(scores + i, e);
        sum += e;
    }
    return hsum(sum);
}

/* One strip of nv vectors of a head's output: the sum of weight[i] * V[i], even and odd positions
 * apart. */
#define DEFINE_VALUES(suffix, type, LOAD, LOAD1)                                                   \
    ALWAYS_INLINE void strip_##suffix(int nv, const float *weight, int head_dim, int n,            \
                                      const int32_t *table, int block, const type *v_blocks,       \
                                      size_t stride, float scale, bool bf16, float *y)             \
    {                                                                                              \
        vf even[4], odd[4];                                                                        \
        for (int v = 0; v < nv; v++) even[v] = odd[v] = (vf){0};                                   \
        for (int p = 0; p < n; p += block, table++) {                                              \
            const type *row = v_blocks + (size_t)*table * stride;                                  \
            const int end = least(p + block, n);                                                   \
            int i = p;                                                                             \
            for (; i + 1 < end; i += 2, row += 2 * head_dim)                                       \
                for (int v = 0; v < nv; v++) {                                                     \
                    even[v] += LOAD(row + v * VL) * weight[i];                                     \
                    odd[v] += LOAD(row + head_dim + v * VL) * weight[i + 1];                       \
                }                                                                                  \
            if (i < end)                                                                           \
                for (int v = 0; v < nv; v++) even[v] += LOAD(row + v * VL) * weight[i];            \
        }                                                                                          \
        for (int v = 0; v < nv; v++) {                                                             \
            const vf o = (even[v] + odd[v]) * scale;                                               \
            store(y + v * VL, bf16 ? vround_bf16(o) : o);                                          \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void values_##suffix(const float *weight, int head_dim, int n, const int32_t *table,    \
                                int block, const type *v_blocks, size_t stride, float scale,       \
                                bool bf16, float *y)                                               \
    {                                                                                              \
        int d = 0;                                                                                 \
        for (; d + 4 * VL <= head_dim; d += 4 * VL)                                                \
            strip_##suffix(4, weight, head_dim, n, table, block, v_blocks + d, stride, scale,      \
                           bf16, y + d);                                                           \
        for (; d + 2 * VL <= head_dim; d += 2 * VL)                                                \
            strip_##suffix(2, weight, head_dim, n, table, block, v_blocks + d, stride, scale,      \
                           bf16, y + d);                                                           \
        for (; d + VL <= head_dim; d += VL)                                                        \
            strip_##suffix(1, weight, head_dim, n, table, block, v_blocks + d, stride, scale,      \
                           bf16, y + d);                                                           \
        for (; d < head_dim; d++) {                                                                \
            float acc = 0;                                                                         \
            for (int i = 0; i < n; i++)                                                            \
                acc += weight[i] * LOAD1(v_blocks[(size_t)table[i / block] * stride +              \
                                                  (size_t)(i % block * head_dim + d)]);            \
            y[d] = bf16 ? round_bf16(acc * scale) : acc * scale;                                   \
        }                                                                                          \
    }
DEFINE_VALUES(f32, float, load, )
DEFINE_VALUES(bf16, uint16_t, load_bf16, bf16_to_f32)

static void attend_f32(const float *q, int head_dim, int n, const int32_t *table, int block,
                       const float *k_blocks, const float *v_blocks, size_t stride, float *scores,
                       bool bf16, float *y)
{
    float top = scores_f32(q, head_dim, n, table, block, k_blocks, stride, scores);
    float sum = softmax_weights(scores, n, top);
    values_f32(scores, head_dim, n, table, block, v_blocks, stride, 1.0f / sum, bf16, y);
}

static void attend_bf16(const float *q, int head_dim, int n, const int32_t *table, int block,
                        const uint16_t *k_blocks, const uint16_t *v_blocks, size_t stride,
                        float *scores, bool bf16, float *y)
{
    float top = scores_bf16(q, head_dim, n, table, block, k_blocks, stride, scores);
    float sum = softmax_weights(scores, n, top);
    values_bf16(scores, head_dim, n, table, block, v_blocks, stride, 1.0f / sum, bf16, y);
}

#ifndef FAMILY_CUSTOM

const struct kernels FAMILY = {
    .name = FAMILY_NAME,
    .backend = "cpu-" FAMILY_NAME,
    .panel = PANEL,
    .k_align = 2,
    .block_rows = MR,
    .supported = FAMILY_SUPPORTED,
    .packed_row_f32 = packed_row_f32,
    .packed_row_bf16 = packed_row_f32,
    .pack_rows_f32 = pack_rows_f32,
    .pack_rows_bf16 = pack_rows_f32,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .attend_f32 = attend_f32,
    .attend_bf16 = attend_bf16,
    .dot = dot,
};
#endif
