// SPDX-License-Identifier: Apache-2.0
//
// attention.cuh: what the kernels of attention share: the arithmetic of one tile, and where things
// lie. Softmax(q k) v over the paged cache, causal, scores not scaled. Positions are cut into tiles
// of 64, counted from position 0. Of each tile, from scratch:
//   m = the largest score    p = 2^((s - m) log2 e) in BF16    l = sum of p    o = sum of p v
// and tiles are merged first to last, from M = -inf, L = 0, O = 0:
//   M' = max(M, m)    a = 2^((M - M') log2 e)    b = 2^((m - M') log2 e)
//   L' = l b + L a    O' = o b + O a
// with y = O / L at the end. Two kernels keep to this and so give a row the same bits: one has a
// warp for each tile of a sequence's only row (attention_split.cuh), one a warp for 16 rows, which
// goes through the tiles (attention_walk.cuh).
//
// Products are mma with queries as rows of A, in the order of A's registers that cuda.h gives for
// weights: lane 4g + t has dims 8t .. 8t+7 of each 32, of rows g and g+8. For the scores B's
// columns are positions: the lane has the same dims of position g of 8. For the values B's columns
// are dims: column g of the j-th product for 64 dims is dim 8g + j, so that the lane has 8 dims of
// positions 2t, 2t+1, 2t+8, 2t+9 of 16, and the scores' registers are A as they stand. So every
// load of the cache is 16 bytes of a row (FP8: 8).
#ifndef OPENMOED_CUDA_ATTENTION_CUH
#define OPENMOED_CUDA_ATTENTION_CUH

#include "engine/cuda/cuda.h"

#include <math.h>

static const float LOG2E = 1.4426950408889634f;

struct attend {
    /* [rows, heads, head_dim] FP32; or BF16, each pair with a 0 of 4 bytes behind it */
    const void *q;
    const void *keys, *values; /* [n_blocks, kv_heads, block_size, head_dim] */
    void *y;                   /* [rows, heads, head_dim] BF16 or FP32 */
    const int32_t *tables, *positions, *seq_of_row, *first_row;
    int n_seqs, max_blocks, block_size, heads, kv_heads, head_dim;
    int group;     /* query heads of a kv head */
    int units;     /* pieces of at most HEADS of them */
    bool row_each; /* one for each sequence, in order */
    /* partials of split, for each sequence */
    int tiles;         /* of a whole context */
    uint32_t *arrived; /* [max_seqs, heads] tiles that are done; 0 between launches */
    float2 *sums;      /* [max_seqs, heads, tiles] m and l */
    float *outs;       /* [max_seqs, heads, tiles, head_dim] o */
};

/* ---- one tile -------------------------------------------------------------------------------- */

/* 8 dims of a position as four pairs. */
DEVICE_INLINE void as_bf16(uint4 v, uint32_t out[4])
{
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

DEVICE_INLINE void as_bf16(uint2 v, uint32_t out[4])
{
    fp8x4_to_bf16x2(v.x, out);
    fp8x4_to_bf16x2(v.y, out + 2);
}

/* s += q k for 8 positions and 32 dims. */
DEVICE_INLINE void add_scores(float s[4], const uint32_t q[2][4], const uint32_t k[4])
{
    mma_bf16(s, q[0], k);
    mma_bf16(s, q[1], k + 2);
}

/* o[j] += p v for 16 positions and 64 dims: v[r] is 8 dims of positions 2t, 2t+1, 2t+8, 2t+9. */
DEVICE_INLINE void add_values(float o[8][4], const uint32_t p[4], const uint32_t v[4][4])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int w = j / 2;
        const uint32_t b[2] = {
            j % 2 ? v[0][w] >> 16 | (v[1][w] & 0xffff0000u) : (v[0][w] & 0xffffu) | v[1][w] << 16,
            j % 2 ? v[2][w] >> 16 | (v[3][w] & 0xffff0000u) : (v[2][w] & 0xffffu) | v[3][w] << 16};
        mma_bf16(o[j], p, b);
    }
}

/* Of row g (at = 0) or g+8 (at = 2): maximum, weights as pairs, and their sum. Positions of the
 * tile beyond `end` count for nothing. */
DEVICE_INLINE void tile_softmax(float s[8][4], int at, int end, uint32_t p[8], float *m, float *l)
{
    const int t = (int)lane_id() % 4;
    float top = -INFINITY, sum = 0;
    if (end < CUDA_TILE - 1)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (8 * j + 2 * t > end) s[j][at] = -INFINITY;
            if (8 * j + 2 * t + 1 > end) s[j][at + 1] = -INFINITY;
        }
#pragma unroll
    for (int j = 0; j < 8; j++) top = fmaxf(top, fmaxf(s[j][at], s[j][at + 1]));
    top = fmaxf(top, shfl_xor(top, 1));
    top = fmaxf(top, shfl_xor(top, 2));
    const float base = top == -INFINITY ? 0.0f : top; /* no position counts: all weights are 0 */
#pragma unroll
    for (int j = 0; j < 8; j++) {
        p[j] = bf16_pack(fast_exp2((s[j][at] - base) * LOG2E),
                         fast_exp2((s[j][at + 1] - base) * LOG2E));
        const float2 rounded = bf16_unpack(p[j]);
        sum += rounded.x;
        sum += rounded.y;
    }
    sum += shfl_xor(sum, 1);
    sum += shfl_xor(sum, 2);
    *m = top;
    *l = sum;
}

/* Takes a tile's m and l in; returns a and b for its o. */
DEVICE_INLINE float2 merge(float *M, float *L, float m, float l)
{
    const float top = fmaxf(*M, m);
    const float a = fast_exp2((*M - top) * LOG2E), b = fast_exp2((m - top) * LOG2E);
    *L = fmaf(l, b, *L * a);
    *M = top;
    return make_float2(a, b);
}

/* Adding 0 makes -0, which a tile without any position may or may not turn to 0, always 0. */
DEVICE_INLINE float quotient(float o, float inverse)
{
    return fmaf(o, inverse, 0.0f);
}

/* Dims 64h + 16t .. +15 of a row from the registers of 8 products: element e of each is one of the
 * first 8 dims, e+1 of the other 8. */
DEVICE_INLINE void store_row(uint16_t *y, int h, int head_dim, const float o[8][4], int e, float l)
{
    const int dim = 64 * h + 16 * ((int)lane_id() % 4);
    const float i = 1.0f / l;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (dim + 8 * half >= head_dim) break;
        uint32_t out[4];
        for (int k = 0; k < 4; k++)
            out[k] =
                bf16_pack(quotient(o[2 * k][e + half], i), quotient(o[2 * k + 1][e + half], i));
        *reinterpret_cast<uint4 *>(y + dim + 8 * half) = make_uint4(out[0], out[1], out[2], out[3]);
    }
}

/* ---- where things lie ------------------------------------------------------------------------ */

/* A block holds a multiple of 16 positions, so 16 aligned ones lie together: a group. Where group i
 * of a tile is, in units of groups; any group beyond the context. Lanes 0 .. 3 ask for those of a
 * tile together. */
DEVICE_INLINE uint32_t group_of(const struct attend &a, int seq, int kv_head, int tile, int i)
{
    const uint32_t position = (uint32_t)(tile * CUDA_TILE + 16 * i);
    const uint32_t size = (uint32_t)a.block_size, block = position / size;
    const uint32_t at = min(block, (uint32_t)a.max_blocks - 1);
    const uint32_t number = (uint32_t)a.tables[(uint32_t)(seq * a.max_blocks) + at];
    return (number * (uint32_t)a.kv_heads + (uint32_t)kv_head) * (size / 16) + position % size / 16;
}

/* Where a row's head is in q and y, in numbers. */
DEVICE_INLINE size_t place_of(const struct attend &a, int row, int head)
{
    return (size_t)(uint32_t)(row * a.heads + head) * (uint32_t)a.head_dim;
}

/* A row of queries as rows g (at = 0) or g+8 (at = 1) of A, two products for each 32 dims; the
 * pairs' zeros are the other row for now. Zeros where there is no row or no dim. */
template <int DIMS>
DEVICE_INLINE void load_query(const struct attend &a, int row, int head, int at, bool valid,
                              uint32_t q[DIMS / 32][2][4])
{
    const float *from = static_cast<const float *>(a.q) + place_of(a, row, head);
#pragma unroll
    for (int n = 0; n < DIMS / 16; n++) {
        const int d = 32 * (n / 2) + 8 * ((int)lane_id() % 4) + 4 * (n % 2);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (valid && d < a.head_dim) v = ld_16(from + d);
        q[n / 2][n % 2][at] = v.x;
        q[n / 2][n % 2][at + 2] = v.z;
        if (at == 0) {
            q[n / 2][n % 2][1] = v.y;
            q[n / 2][n % 2][3] = v.w;
        }
    }
}

DEVICE_INLINE uint16_t *answer(const struct attend &a, int row, int head)
{
    return static_cast<uint16_t *>(a.y) + place_of(a, row, head);
}

#endif
