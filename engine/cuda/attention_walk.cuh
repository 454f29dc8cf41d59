// SPDX-License-Identifier: Apache-2.0
//
// attention_walk.cuh: attention of sequences with several rows in a step: prefill. A block has four
// warps of 16 queries each and goes through the tiles that the last of them sees; a tile of keys
// and values is in shared memory once for all of them, the next one on its way. For a tile of 128
// dims a warp reads 32 KB of it, 256 clocks of an SM, for products of some 200. Twice the rows
// would halve that but want more registers than there are; attention is 5% of the work of 2048
// tokens of an 8B model.
#ifndef OPENMOED_CUDA_ATTENTION_WALK_CUH
#define OPENMOED_CUDA_ATTENTION_WALK_CUH

#include "engine/cuda/attention.cuh"

#define WARPS   4
#define THREADS (32 * WARPS)
#define ROWS    16 /* of a warp */

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

#endif
