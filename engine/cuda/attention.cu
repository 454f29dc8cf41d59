// SPDX-License-Identifier: Apache-2.0
//
// attention.cu: softmax(q k) v over the paged cache, causal, scores not scaled. Positions are cut
// into tiles of 64, counted from position 0. Of each tile, from scratch:
//   m = the largest score    p = 2^((s - m) log2 e) in BF16    l = sum of p    o = sum of p v
// and tiles are merged first to last, from M = -inf, L = 0, O = 0:
//   M' = max(M, m)   a = 2^((M - M') log2 e)   b = 2^((m - M') log2 e)   L' = l b + L a, O' = o b +
//   O a
// with y = O / L at the end. Two kernels keep to this and so give a row the same bits: `split` has
// a warp for each tile of a sequence with one row, and the last warp to end merges; `walk` has a
// warp for 16 rows, which goes through the tiles. F32 mode has one plain kernel for both. Engine
// thread.
//
// Products are mma with rows of queries as A, in the order of A's registers that cuda.h gives for
// weights: lane 4g + t has dims 8t .. 8t+7 of each 32 of rows g and g+8. For the scores, B's
// columns are positions: lane 4g + t has the same dims of position g of 8. For the values, B's
// columns are dims: column g of the j-th product of 64 dims is dim 8g + j, so that a lane has 8
// dims of four positions, and the scores' registers are A as they stand. Every load is 16 bytes
// (FP8: 8) of a row of the cache.
#include "engine/cuda/cuda.h"

#include <math.h>

#define WARPS    4
#define THREADS  (32 * WARPS)
#define ROWS     16 /* of a warp that walks */
#define NO_GROUP 0xffffffffu
#define HEADS    8 /* query heads of a warp that splits, at most: half of A stays empty */

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

/* ---- split: a warp for each tile ------------------------------------------------------------- */

/* Bound by the bytes of the cache: 4.3 TB/s over 132 SMs and some 800 ns of latency want 26 KB
 * under way in each. A warp keeps 8 KB under way, keys and then values, in a ring of slots; a slot
 * is four pieces of each lane, which reads back only what it asked for itself. BF16 goes through
 * shared memory: in registers the compiler makes the ring deeper than there are any. */
template <class Kv> struct ring;
template <> struct ring<uint16_t> {
    enum { DEPTH = 4, PLACES = DEPTH * 4 * 32 };
    uint4 *places; /* the lane's first one */

    DEVICE_INLINE ring(uint4 *shared) : places(shared + warp_id() * PLACES + lane_id()) {}
    DEVICE_INLINE void load(int n, int l, const uint16_t *p, bool valid)
    {
        cp_async_16_or_zero(places + (n % DEPTH * 4 + l) * 32, p, valid);
    }
    DEVICE_INLINE void get(int n, int l, uint32_t out[4])
    {
        as_bf16(places[(n % DEPTH * 4 + l) * 32], out);
    }
};
template <> struct ring<uint8_t> {
    enum { DEPTH = 6, PLACES = 1 };
    uint2 places[DEPTH][4];

    DEVICE_INLINE ring(uint4 *) {}
    DEVICE_INLINE void load(int n, int l, const uint8_t *p, bool valid)
    {
        places[n % DEPTH][l] = valid ? ld_8(p) : make_uint2(0, 0);
    }
    DEVICE_INLINE void get(int n, int l, uint32_t out[4])
    {
        as_bf16(places[n % DEPTH][l], out);
    }
};

/* The work of a warp: one tile for up to HEADS heads of a sequence's one row. */
struct part {
    int seq, row, tile, n_tiles, first_head, n_heads;
    int end;           /* the last position of the tile that counts */
    uint32_t group[4]; /* of the tile */
};

/* Starts slot n of a tile's loads: first keys, by 32 positions and 32 dims, then values, by 64 dims
 * and 16 positions. What lies beyond the context or head_dim is 0. */
template <class Kv, int DIMS, bool FULL>
DEVICE_INLINE void load_slot(const struct attend &a, const struct part &p, int n,
                             struct ring<Kv> *r)
{
    constexpr int KEYS = DIMS / 16;
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
    const uint32_t head_dim = FULL ? DIMS : (uint32_t)a.head_dim;
#pragma unroll
    for (int l = 0; n < 2 * KEYS && l < 4; l++) {
        const bool key = n < KEYS;
        const int j = 4 * (n % 2) + l, group = key ? j / 2 : n % 4;
        const int chunk = key ? 32 * (n / 2) : 64 * ((n - KEYS) / 4);
        const int first_row = key ? 8 * (j % 2) : l % 2 + l / 2 * 8; /* and the lane's: */
        const int row = first_row + (key ? g : 2 * t), d = chunk + (key ? 8 * t : 8 * g);
        const Kv *from = static_cast<const Kv *>(key ? a.keys : a.values);
        from += (uint32_t)(key ? g : 2 * t) * head_dim + (uint32_t)(key ? 8 * t : 8 * g);
        from += (size_t)p.group[group] * (16 * head_dim) + (uint32_t)first_row * head_dim +
                (uint32_t)chunk;
        r->load(n, l, from, 16 * group + row <= p.end && (FULL || d < a.head_dim));
    }
    cp_async_commit();
}

DEVICE_INLINE uint32_t partial_of(const struct attend &a, const struct part &p, int head, int tile)
{
    return (uint32_t)((p.seq * a.heads + head) * a.tiles + tile);
}

/* 64 dims of o, of row g: to y when the tile is the only one. */
DEVICE_INLINE void store_part(const struct attend &a, const struct part &p, int h,
                              const float o[8][4], float l)
{
    const int g = (int)lane_id() / 4, dim = 64 * h + 16 * ((int)lane_id() % 4);
    if (g >= p.n_heads) return;
    if (p.n_tiles == 1) {
        store_row(answer(a, p.row, p.first_head + g), h, a.head_dim, o, 0, l);
        return;
    }
    float *out =
        a.outs + dim + (size_t)partial_of(a, p, p.first_head + g, p.tile) * (uint32_t)a.head_dim;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (dim + 8 * e >= a.head_dim) break;
        float4 *to = reinterpret_cast<float4 *>(out + 8 * e);
        to[0] = make_float4(o[0][e], o[1][e], o[2][e], o[3][e]);
        to[1] = make_float4(o[4][e], o[5][e], o[6][e], o[7][e]);
    }
}

template <class Kv, int DIMS, bool FULL>
DEVICE_INLINE void split_tile(const struct attend &a, const struct part &p)
{
    constexpr int KEYS = DIMS / 16, DEPTH = ring<Kv>::DEPTH;
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
    uint4 *queries = dynamic_shared<uint4>(); /* [WARPS][DIMS / 16][32 lanes], then the rings */
    struct ring<Kv> r(queries + WARPS * DIMS / 16 * 32);
    uint32_t weights[8];
    float s[8][4] = {}, m, l;
    queries += warp_id() * (DIMS / 16) * 32 + lane_id();
#pragma unroll
    for (int n = 0; n < DIMS / 16; n++) {
        const int d = 32 * (n / 2) + 8 * t + 4 * (n % 2);
        cp_async_16_or_zero(queries + n * 32,
                            static_cast<const float *>(a.q) + place_of(a, p.row, p.first_head + g) +
                                d,
                            g < p.n_heads && d < a.head_dim);
    }
#pragma unroll
    for (int n = 0; n < DEPTH; n++) load_slot<Kv, DIMS, FULL>(a, p, n, &r);
#pragma unroll
    for (int n = 0; n < KEYS; n++) {
        uint32_t q[2][4];
        cp_async_wait<DEPTH - 1>();
        as_bf16(queries[(n / 2 * 2) * 32], q[0]);
        as_bf16(queries[(n / 2 * 2 + 1) * 32], q[1]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t k[4];
            r.get(n, i, k);
            add_scores(s[4 * (n % 2) + i], q, k);
        }
        load_slot<Kv, DIMS, FULL>(a, p, n + DEPTH, &r);
    }
    tile_softmax(s, 0, p.end, weights, &m, &l);
#pragma unroll
    for (int h = 0; h < DIMS / 64; h++) {
        float o[8][4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = KEYS + 4 * h + i;
            const uint32_t w[4] = {weights[2 * i], 0, weights[2 * i + 1], 0};
            uint32_t v[4][4];
            cp_async_wait<DEPTH - 1>();
            for (int e = 0; e < 4; e++) r.get(n, e, v[e]);
            add_values(o, w, v);
            load_slot<Kv, DIMS, FULL>(a, p, n + DEPTH, &r);
        }
        store_part(a, p, h, o, l);
    }
    if (t == 0 && g < p.n_heads && p.n_tiles > 1)
        a.sums[partial_of(a, p, p.first_head + g, p.tile)] = make_float2(m, l);
}

/* Whether the warp is the last one of its heads to come here. */
DEVICE_INLINE bool arrive(uint32_t *arrived, int n_tiles)
{
    uint32_t before = 0;
    __threadfence();
    __syncwarp();
    if (lane_id() == 0) before = atomicAdd(arrived, 1u);
    if (shfl_idx(before, 0) != (uint32_t)n_tiles - 1) return false;
    __threadfence();
    if (lane_id() == 0) *arrived = 0;
    return true;
}

/* A lane has four dims. */
DEVICE_INLINE void merge_parts(const struct attend &a, const struct part &p, int head)
{
    const int dim = 4 * (int)lane_id();
    const bool mine = dim < a.head_dim;
    const uint32_t first = partial_of(a, p, head, 0);
    const float *outs = a.outs + (size_t)first * (uint32_t)a.head_dim + (mine ? dim : 0);
    float M = -INFINITY, L = 0;
    float4 O = {};
#pragma unroll 8
    for (int tile = 0; tile < p.n_tiles; tile++) {
        const float2 sums = a.sums[first + (uint32_t)tile];
        const float4 o = *reinterpret_cast<const float4 *>(outs + tile * a.head_dim);
        const float2 f = merge(&M, &L, sums.x, sums.y);
        O.x = fmaf(o.x, f.y, O.x * f.x);
        O.y = fmaf(o.y, f.y, O.y * f.x);
        O.z = fmaf(o.z, f.y, O.z * f.x);
        O.w = fmaf(o.w, f.y, O.w * f.x);
    }
    const float i = 1.0f / L;
    if (mine)
        *reinterpret_cast<uint2 *>(answer(a, p.row, head) + dim) =
            make_uint2(bf16_pack(quotient(O.x, i), quotient(O.y, i)),
                       bf16_pack(quotient(O.z, i), quotient(O.w, i)));
}

template <class Kv, int DIMS, bool FULL>
__global__ void __launch_bounds__(THREADS, FULL ? 4 : 3) split_tiles(struct attend a)
{

    grid_wait();
    grid_launch_dependents();
    const int seq = (int)blockIdx.z, tile = (int)(blockIdx.x * WARPS + warp_id());
    const int kv_head = (int)(blockIdx.y / (unsigned)a.units);
    const int unit = (int)(blockIdx.y % (unsigned)a.units);
    /* Groups and position are fetched together: the question below, which is always answered no,
     * keeps the compiler from fetching one after it has looked at the other. */
    const uint32_t groups = group_of(a, seq, kv_head, tile, (int)lane_id() % 4);
    int row = seq;
    if (!a.row_each) {
        row = a.first_row[seq];
        if (a.first_row[seq + 1] - row != 1) return;
    }
    const int position = a.positions[row];
    if (tile * CUDA_TILE > position || groups == NO_GROUP) return; /* padding too */

    struct part p = {};
    p.seq = seq;
    p.row = row;
    p.tile = tile;
    p.n_tiles = position / CUDA_TILE + 1;
    p.end = min(position - tile * CUDA_TILE, CUDA_TILE - 1);
    for (unsigned i = 0; i < 4; i++) p.group[i] = shfl_idx(groups, i);
    p.first_head = kv_head * a.group + unit * HEADS;
    p.n_heads = min(HEADS, a.group - unit * HEADS);
    split_tile<Kv, DIMS, FULL>(a, p);
    if (p.n_tiles == 1 ||
        !arrive(a.arrived + (size_t)seq * (size_t)a.heads + blockIdx.y, p.n_tiles))
        return;
    for (int h = 0; h < p.n_heads; h++) merge_parts(a, p, p.first_head + h);
}

/* ---- walk: a warp for 16 rows ---------------------------------------------------------------- */

/* A tile in shared memory, as BF16. Rows are as far apart as lets the 8 lanes of each quarter of a
 * load meet different banks. FP8 arrives beside it, as it is, and the block widens it. Two tiles
 * (FP8: two as they are) alternate: one is copied while the other is used. */
template <class Kv, int DIMS> struct staging {
    enum {
        WIDE = sizeof(Kv) == 2,
        K_ROW = 2 * DIMS + 64,
        V_ROW = 2 * DIMS + 16,
        TILE = CUDA_TILE * (K_ROW + V_ROW),
        RAW = 2 * CUDA_TILE * DIMS,
        K_FILL = WIDE ? K_ROW : DIMS, /* rows as they arrive */
        V_FILL = WIDE ? V_ROW : DIMS,
        BYTES = WIDE ? 2 * TILE : TILE + 2 * RAW
    };
};

/* Starts copying keys and values of a tile; zeros beyond its position `end` and beyond head_dim. */
template <class Kv, int DIMS>
DEVICE_INLINE void fill(const struct attend &a, uint32_t groups, int end, char *to)
{
    typedef struct staging<Kv, DIMS> S;
    constexpr int NUMBERS = 16 / sizeof(Kv), PIECES = DIMS / NUMBERS, AT_ONCE = THREADS / PIECES;
    const int part = (int)threadIdx.x % PIECES;
#pragma unroll 1 /* unrolled, it takes the registers of walk_tile */
    for (int first = 0; first < CUDA_TILE; first += AT_ONCE) {
        const int row = first + (int)threadIdx.x / PIECES;
        const size_t group = shfl_idx(groups, (unsigned)row / 16);
        const size_t at =
            (group * 16 + (size_t)(row % 16)) * (size_t)a.head_dim + (size_t)(part * NUMBERS);
        const bool valid = row <= end && part * NUMBERS < a.head_dim;
        cp_async_16_or_zero(to + row * S::K_FILL + part * 16, static_cast<const Kv *>(a.keys) + at,
                            valid);
        cp_async_16_or_zero(to + CUDA_TILE * S::K_FILL + row * S::V_FILL + part * 16,
                            static_cast<const Kv *>(a.values) + at, valid);
    }
    cp_async_commit();
}

template <int DIMS> DEVICE_INLINE void widen(const char *raw, char *tile)
{
    typedef struct staging<uint8_t, DIMS> S;
    constexpr int PIECES = DIMS / 16;
    for (int i = (int)threadIdx.x; i < 2 * CUDA_TILE * PIECES; i += THREADS) {
        const int row = i / PIECES, part = i % PIECES;
        const uint4 v = ld_16(raw + row * DIMS + part * 16);
        uint32_t out[8];
        as_bf16(make_uint2(v.x, v.y), out);
        as_bf16(make_uint2(v.z, v.w), out + 4);
        char *to = row < CUDA_TILE ? tile + row * S::K_ROW
                                   : tile + CUDA_TILE * S::K_ROW + (row - CUDA_TILE) * S::V_ROW;
        uint4 *at = reinterpret_cast<uint4 *>(to + part * 32);
        at[0] = make_uint4(out[0], out[1], out[2], out[3]);
        at[1] = make_uint4(out[4], out[5], out[6], out[7]);
    }
}

/* The lane's share of rows g and g+8 of a warp. */
template <int DIMS> struct walker {
    uint32_t q[DIMS / 32][2][4];
    float M[2], L[2];
    float o[DIMS / 64][8][4];
    int position[2]; /* -1: no row */
};

template <class Kv, int DIMS>
DEVICE_INLINE void walk_tile(const char *shared, int tile, struct walker<DIMS> *w)
{
    typedef struct staging<Kv, DIMS> S;
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
    const char *keys = shared + g * S::K_ROW + 16 * t;
    const char *values = shared + CUDA_TILE * S::K_ROW + 2 * t * S::V_ROW + 16 * g;
    uint32_t weights[2][8];
    float s[8][4] = {};
    float2 factor[2];
#pragma unroll
    for (int c = 0; c < DIMS / 32; c++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t k[4];
            as_bf16(ld_16(keys + 8 * j * S::K_ROW + 64 * c), k);
            add_scores(s[j], w->q[c], k);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m, l;
        tile_softmax(s, 2 * r, w->position[r] - tile * CUDA_TILE, weights[r], &m, &l);
        factor[r] = merge(&w->M[r], &w->L[r], m, l);
    }
#pragma unroll
    for (int h = 0; h < DIMS / 64; h++) {
        float o[8][4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t p[4] = {weights[0][2 * i], weights[1][2 * i], weights[0][2 * i + 1],
                                   weights[1][2 * i + 1]};
            uint32_t v[4][4];
            for (int r = 0; r < 4; r++)
                as_bf16(ld_16(values + (16 * i + r % 2 + r / 2 * 8) * S::V_ROW + 128 * h), v[r]);
            add_values(o, p, v);
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            for (int e = 0; e < 4; e++)
                w->o[h][j][e] = fmaf(o[j][e], factor[e / 2].y, w->o[h][j][e] * factor[e / 2].x);
    }
}

/* Sequences of several rows are cut into pieces of 64 queries of a kv head; a query is a row and
 * one of the group's heads. Finds the sequence that piece `index` is of and its first query. */
DEVICE_INLINE bool locate(const struct attend &a, int index, int *seq, int *query)
{
    const int lane = (int)lane_id();
    for (int first = 0; first < a.n_seqs; first += 32) {
        const int s = first + lane, n = s < a.n_seqs ? a.first_row[s + 1] - a.first_row[s] : 0;
        const int pieces = n > 1 ? (n * a.group + ROWS * WARPS - 1) / (ROWS * WARPS) : 0;
        int upto = pieces;
        for (int d = 1; d < 32; d *= 2) {
            const int more = shfl_idx(upto, (unsigned)(lane - d) % 32);
            if (lane >= d) upto += more;
        }
        const uint32_t beyond = warp_ballot(index < upto);
        if (beyond) {
            const int found = 31 - clz(beyond & (0 - beyond)); /* the lowest */
            *seq = first + found;
            *query = (index - shfl_idx(upto - pieces, (unsigned)found)) * ROWS * WARPS;
            return true;
        }
        index -= shfl_idx(upto, 31);
    }
    return false;
}

/* Loads the queries from `first` on; w has the warp's. */
template <int DIMS>
DEVICE_INLINE void start_walk(const struct attend &a, int row, int start, int kv_head, int first,
                              int queries, struct walker<DIMS> *w)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int i = first + (int)lane_id() / 4 + 8 * r;
        w->position[r] = i < queries ? start + i / a.group : -1;
        w->M[r] = -INFINITY;
        w->L[r] = 0;
        load_query<DIMS>(a, row + i / a.group, kv_head * a.group + i % a.group, r, i < queries,
                         w->q);
    }
#pragma unroll
    for (int h = 0; h < DIMS / 64; h++)
        for (int j = 0; j < 8; j++)
            for (int e = 0; e < 4; e++) w->o[h][j][e] = 0;
}

template <int DIMS>
DEVICE_INLINE void end_walk(const struct attend &a, int row, int kv_head, int first,
                            const struct walker<DIMS> &w)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int i = first + (int)lane_id() / 4 + 8 * r;
        if (w.position[r] < 0) continue;
        uint16_t *y = answer(a, row + i / a.group, kv_head * a.group + i % a.group);
#pragma unroll
        for (int h = 0; h < DIMS / 64; h++) store_row(y, h, a.head_dim, w.o[h], 2 * r, w.L[r]);
    }
}

/* The last pieces, which have the most tiles to walk, are given out first. */
template <class Kv, int DIMS>
__global__ void __launch_bounds__(THREADS, 2) walk_tiles(struct attend a)
{
    typedef struct staging<Kv, DIMS> S;
    char *shared = dynamic_shared<char>();
    int seq, query;
    grid_wait();
    grid_launch_dependents();
    if (!locate(a, (int)(gridDim.x - 1 - blockIdx.x), &seq, &query)) return; /* the whole block */

    const int kv_head = (int)blockIdx.y, row = a.first_row[seq], start = a.positions[row];
    const int queries = (a.first_row[seq + 1] - row) * a.group;
    const int last = start + (min(query + ROWS * WARPS, queries) - 1) / a.group;
    const int mine = query + ROWS * (int)warp_id();
    const int my_last = mine < queries ? start + (min(mine + ROWS, queries) - 1) / a.group : -1;
    struct walker<DIMS> w;
    start_walk<DIMS>(a, row, start, kv_head, mine, queries, &w);

    /* a tile's groups are known a tile ahead of its copy */
    const int group = (int)lane_id() % 4;
    char *const incoming = S::WIDE ? shared : shared + S::TILE;
    constexpr int STEP = S::WIDE ? S::TILE : S::RAW;
    fill<Kv, DIMS>(a, group_of(a, seq, kv_head, 0, group), last, incoming);
    uint32_t next = group_of(a, seq, kv_head, 1, group);
    for (int tile = 0; tile * CUDA_TILE <= last; tile++) {
        char *const here = incoming + tile % 2 * STEP;
        cp_async_wait<0>();
        __syncthreads();
        if ((tile + 1) * CUDA_TILE <= last) {
            fill<Kv, DIMS>(a, next, last - (tile + 1) * CUDA_TILE,
                           incoming + (tile + 1) % 2 * STEP);
            next = group_of(a, seq, kv_head, tile + 2, group);
        }
        if constexpr (!S::WIDE) {
            widen<DIMS>(here, shared);
            __syncthreads();
        }
        if (tile * CUDA_TILE <= my_last) walk_tile<Kv, DIMS>(S::WIDE ? here : shared, tile, &w);
    }
    end_walk<DIMS>(a, row, kv_head, mine, w);
}

/* ---- FP32 ------------------------------------------------------------------------------------ */

/* A warp for one head of one row: a lane scores two positions of a tile, and sums four dims. */
__global__ void __launch_bounds__(THREADS) attend_f32(struct attend a)
{
    __shared__ float queries[WARPS][CUDA_MAX_HEAD_DIM];
    __shared__ float weights[WARPS][CUDA_TILE];
    grid_wait();
    grid_launch_dependents();
    const int lane = (int)lane_id(), row = (int)blockIdx.x, d = 4 * lane;
    const int head = (int)(blockIdx.y * WARPS + warp_id()), position = a.positions[row];
    if (head >= a.heads || position < 0) return;
    const int seq = a.seq_of_row[row], kv_head = head / a.group, hd = a.head_dim;
    const size_t place = place_of(a, row, head);
    float *q = queries[warp_id()], *p = weights[warp_id()];
    float M = -INFINITY, L = 0, O[4] = {};
    for (int i = lane; i < hd; i += 32) q[i] = static_cast<const float *>(a.q)[place + (size_t)i];
    __syncwarp();
    for (int tile = 0; tile * CUDA_TILE <= position; tile++) {
        const int end = min(position - tile * CUDA_TILE, CUDA_TILE - 1);
        const uint32_t groups = group_of(a, seq, kv_head, tile, lane % 4);
        float s[2] = {-INFINITY, -INFINITY}, o[4] = {};
        for (int n = 0; n < 2; n++) {
            const int r = lane + 32 * n;
            const size_t at = (size_t)shfl_idx(groups, (unsigned)r / 16) * 16 + (size_t)(r % 16);
            const float *k = static_cast<const float *>(a.keys) + at * (size_t)hd;
            float sum = 0;
            for (int i = 0; r <= end && i < hd; i++) sum = fmaf(q[i], k[i], sum);
            if (r <= end) s[n] = sum;
        }
        const float m = warp_max(fmaxf(s[0], s[1]));
        p[lane] = expf(s[0] - m);
        p[lane + 32] = expf(s[1] - m);
        const float l = warp_sum(p[lane] + p[lane + 32]);
        __syncwarp();
        for (int r = 0; r <= end; r++) {
            const size_t at = (size_t)shfl_idx(groups, (unsigned)r / 16) * 16 + (size_t)(r % 16);
            if (d >= hd) continue;
            const float4 v = *reinterpret_cast<const float4 *>(
                static_cast<const float *>(a.values) + at * (size_t)hd + (size_t)d);
            o[0] = fmaf(p[r], v.x, o[0]);
            o[1] = fmaf(p[r], v.y, o[1]);
            o[2] = fmaf(p[r], v.z, o[2]);
            o[3] = fmaf(p[r], v.w, o[3]);
        }
        const float top = fmaxf(M, m), before = expf(M - top), now = expf(m - top);
        M = top;
        L = fmaf(l, now, L * before);
        for (int e = 0; e < 4; e++) O[e] = fmaf(o[e], now, O[e] * before);
        __syncwarp();
    }
    if (d < hd)
        *reinterpret_cast<float4 *>(static_cast<float *>(a.y) + place + (size_t)d) =
            make_float4(O[0] / L, O[1] / L, O[2] / L, O[3] / L);
}

/* ---- launches -------------------------------------------------------------------------------- */

/* The parts of c->partials. */
struct partials {
    size_t sums, outs, bytes; /* where they begin; counters are first */
};

static struct partials partials_of(const struct backend_options *opt)
{
    const size_t heads = (size_t)opt->max_seqs * (size_t)opt->heads;
    const size_t tiles = (size_t)((opt->context + CUDA_TILE - 1) / CUDA_TILE);
    struct partials p;
    p.sums = (heads * sizeof(uint32_t) + 15) / 16 * 16;
    p.outs = (p.sums + heads * tiles * sizeof(float2) + 15) / 16 * 16;
    p.bytes = p.outs + heads * tiles * (size_t)opt->head_dim * sizeof(float);
    return p;
}

size_t cuda_partials_bytes(const struct backend_options *opt)
{
    return opt->bf16 ? partials_of(opt).bytes : 0;
}

static struct attend attend_of(const struct cuda *c, const struct op_attention *a, const float *q,
                               float *y)
{
    const struct partials parts = partials_of(&c->opt);
    char *base = reinterpret_cast<char *>(c->partials);
    struct attend t = {};
    t.q = q;
    t.keys = c->keys[a->layer];
    t.values = c->values[a->layer];
    t.y = y;
    t.tables = c->batch.tables;
    t.positions = c->batch.positions;
    t.seq_of_row = c->batch.seq_of_row;
    t.first_row = c->batch.first_row;
    t.n_seqs = c->batch.n_seqs;
    t.row_each = c->batch.max_chunk == 1 && c->batch.n_rows == c->batch.n_seqs;
    t.max_blocks = c->batch.max_blocks;
    t.block_size = c->opt.block_size;
    t.heads = a->heads;
    t.kv_heads = a->kv_heads;
    t.head_dim = a->head_dim;
    t.group = a->heads / a->kv_heads;
    t.units = (t.group + HEADS - 1) / HEADS;
    t.tiles = (c->opt.context + CUDA_TILE - 1) / CUDA_TILE;
    t.arrived = reinterpret_cast<uint32_t *>(base);
    t.sums = reinterpret_cast<float2 *>(base + parts.sums);
    t.outs = reinterpret_cast<float *>(base + parts.outs);
    return t;
}

template <class Kv, int DIMS> static void start_walk(struct cuda *c, const struct attend &a)
{
    const struct cuda_batch *b = &c->batch;
    const unsigned pieces = (unsigned)(b->n_rows * a.group / (ROWS * WARPS) + b->n_seqs);
    const size_t bytes = staging<Kv, DIMS>::BYTES;
    cuda_check(c,
               cudaFuncSetAttribute(walk_tiles<Kv, DIMS>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
               "attention");
    cuda_check(c,
               launch_dependent(walk_tiles<Kv, DIMS>, dim3(pieces, (unsigned)a.kv_heads),
                                dim3(THREADS), bytes, c->stream, a),
               "attention");
}

template <class Kv, int DIMS, bool FULL>
static void start_split(struct cuda *c, const struct attend &a)
{
    const struct cuda_batch *b = &c->batch;
    const size_t bytes = WARPS * (DIMS / 16 * 32 + ring<Kv>::PLACES) * sizeof(uint4);
    cuda_check(c,
               launch_dependent(split_tiles<Kv, DIMS, FULL>,
                                dim3((unsigned)(b->max_tiles + WARPS - 1) / WARPS,
                                     (unsigned)(a.kv_heads * a.units), (unsigned)b->n_seqs),
                                dim3(THREADS), bytes, c->stream, a),
               "attention");
}

template <class Kv> static void start(struct cuda *c, const struct attend &a)
{
    if (c->batch.max_chunk > 1) (a.head_dim <= 64 ? start_walk<Kv, 64> : start_walk<Kv, 128>)(c, a);
    if (c->batch.max_chunk > 1 && c->batch.n_seqs == 1) return;
    if (a.head_dim == 128)
        start_split<Kv, 128, true>(c, a);
    else if (a.head_dim == 64)
        start_split<Kv, 64, true>(c, a);
    else
        start_split<Kv, 128, false>(c, a);
}

void cuda_attention(void *be, const struct op_attention *op, const float *q, float *y)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    const struct attend a = attend_of(c, op, q, y);
    if (!c->opt.bf16)
        cuda_check(c,
                   launch_dependent(
                       attend_f32,
                       dim3((unsigned)c->batch.n_rows, (unsigned)(a.heads + WARPS - 1) / WARPS),
                       dim3(THREADS), 0, c->stream, a),
                   "attention");
    else if (c->opt.kv_fp8)
        start<uint8_t>(c, a);
    else
        start<uint16_t>(c, a);
}
