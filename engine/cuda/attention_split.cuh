// SPDX-License-Identifier: Apache-2.0
//
// attention_split.cuh: attention of sequences with one row in a step: decodes. A block is one warp
// and has every n-th tile of a kv head; what it finds goes to c->partials, and the last one of its
// row to come merges all of it in order. The counters it finds that out by are 0 again afterwards.
//
// Bound by the bytes of the cache: 4.3 TB/s over 132 SMs and some 800 ns of latency want 26 KB
// under way in each. 12 warps fit there, and each keeps 8 KB (FP8: 4 KB) under way from its
// first tile to its last.
#ifndef OPENMOED_CUDA_ATTENTION_SPLIT_CUH
#define OPENMOED_CUDA_ATTENTION_SPLIT_CUH

#include "engine/cuda/attention_ring.cuh"

#define HEADS    8 /* query heads of a warp at most: the other half of A stays empty */
#define NO_GROUP 0xffffffffu

/* What a warp works on: a sequence's one row and up to HEADS of its heads. */
struct part {
    int seq, row, position, first_head, n_heads;
};

/* A tile of it. */
struct extent {
    int end;         /* the last position that counts; below 0: there is no such tile */
    uint32_t groups; /* lane i has group i's place */
};

/* Starts slot n of a tile's loads: first keys, by 32 positions and 32 dims, then values, by 64 dims
 * and 16 positions. What lies beyond the context or head_dim is 0. */
template <class Kv, int DIMS, bool FULL>
DEVICE_INLINE void load_slot(const struct attend &a, const struct extent &e, int n,
                             struct ring<Kv> *r)
{
    constexpr int KEYS = DIMS / 16;
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
    const uint32_t head_dim = FULL ? DIMS : (uint32_t)a.head_dim;
#pragma unroll
    for (int l = 0; l < 4; l++) {
        const bool key = n < KEYS;
        const int j = 4 * (n % 2) + l, group = key ? j / 2 : n % 4;
        const int chunk = key ? 32 * (n / 2) : 64 * ((n - KEYS) / 4);
        const int first_row = key ? 8 * (j % 2) : l % 2 + l / 2 * 8; /* and the lane's: */
        const int row = first_row + (key ? g : 2 * t), d = chunk + (key ? 8 * t : 8 * g);
        const Kv *from = static_cast<const Kv *>(key ? a.keys : a.values);
        from += (uint32_t)(key ? g : 2 * t) * head_dim + (uint32_t)(key ? 8 * t : 8 * g);
        from += (size_t)shfl_idx(e.groups, (unsigned)group) * (16 * head_dim) +
                (uint32_t)first_row * head_dim + (uint32_t)chunk;
        r->load(n, l, from, 16 * group + row <= e.end && (FULL || d < a.head_dim));
    }
}

/* Slot n of a tile has been used: its place gets what comes DEPTH slots later, of this tile or of
 * the next one. Ends a group of copies, an empty one too, so that they can be counted. */
template <class Kv, int DIMS, bool FULL>
DEVICE_INLINE void load_later(const struct attend &a, const struct extent &now,
                              const struct extent &next, int n, struct ring<Kv> *r)
{
    constexpr int SLOTS = DIMS / 8;
    if (n + DEPTH < SLOTS)
        load_slot<Kv, DIMS, FULL>(a, now, n + DEPTH, r);
    else if (next.end >= 0)
        load_slot<Kv, DIMS, FULL>(a, next, n + DEPTH - SLOTS, r);
    cp_async_commit();
}

DEVICE_INLINE uint32_t partial_of(const struct attend &a, const struct part &p, int head, int tile)
{
    return (uint32_t)((p.seq * a.heads + head) * a.tiles + tile);
}

/* 64 dims of o, of row g: to y when the tile is the only one. */
DEVICE_INLINE void store_part(const struct attend &a, const struct part &p, int tile, int h,
                              const float o[8][4], float l)
{
    const int g = (int)lane_id() / 4, dim = 64 * h + 16 * ((int)lane_id() % 4);
    if (g >= p.n_heads) return;
    if (p.position < CUDA_TILE) {
        store_row(answer(a, p.row, p.first_head + g), h, a.head_dim, o, 0, l);
        return;
    }
    float *out =
        a.outs + dim + (size_t)partial_of(a, p, p.first_head + g, tile) * (uint32_t)a.head_dim;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (dim + 8 * e >= a.head_dim) break;
        float4 *to = reinterpret_cast<float4 *>(out + 8 * e);
        to[0] = make_float4(o[0][e], o[1][e], o[2][e], o[3][e]);
        to[1] = make_float4(o[4][e], o[5][e], o[6][e], o[7][e]);
    }
}

/* The first DEPTH slots of `now` are under way; those of the tile after it will be. */
template <class Kv, int DIMS, bool FULL>
DEVICE_INLINE void split_tile(const struct attend &a, const struct part &p, int tile,
                              const struct extent &now, const struct extent &next,
                              const uint4 *queries, struct ring<Kv> *r)
{
    constexpr int KEYS = DIMS / 16;
    const int g = (int)lane_id() / 4;
    uint32_t weights[8];
    float s[8][4] = {}, m, l;
#pragma unroll
    for (int n = 0; n < KEYS; n++) {
        uint32_t q[2][4];
        cp_async_wait<DEPTH - 1>();
        as_bf16(queries[(n / 2 * 2) * 32], q[0]);
        as_bf16(queries[(n / 2 * 2 + 1) * 32], q[1]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t k[4];
            r->get(n, i, k);
            add_scores(s[4 * (n % 2) + i], q, k);
        }
        load_later<Kv, DIMS, FULL>(a, now, next, n, r);
    }
    tile_softmax(s, 0, now.end, weights, &m, &l);
#pragma unroll
    for (int h = 0; h < DIMS / 64; h++) {
        float o[8][4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = KEYS + 4 * h + i;
            const uint32_t w[4] = {weights[2 * i], 0, weights[2 * i + 1], 0};
            uint32_t v[4][4];
            cp_async_wait<DEPTH - 1>();
            for (int e = 0; e < 4; e++) r->get(n, e, v[e]);
            add_values(o, w, v);
            load_later<Kv, DIMS, FULL>(a, now, next, n, r);
        }
        store_part(a, p, tile, h, o, l);
    }
    if (lane_id() % 4 == 0 && g < p.n_heads && p.position >= CUDA_TILE)
        a.sums[partial_of(a, p, p.first_head + g, tile)] = make_float2(m, l);
}

/* Whether the warp is the last of `n` to come here. */
DEVICE_INLINE bool arrive(uint32_t *arrived, int n)
{
    uint32_t before = 0;
    __threadfence();
    __syncwarp();
    if (lane_id() == 0) before = atomicAdd(arrived, 1u);
    if (shfl_idx(before, 0) != (uint32_t)n - 1) return false;
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
    for (int tile = 0; tile <= p.position / CUDA_TILE; tile++) {
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

/* [DIMS / 16][32 lanes]: a lane's share of A for each product. */
template <int DIMS>
DEVICE_INLINE void stage_queries(const struct attend &a, const struct part &p, uint4 *queries)
{
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
    const float *q = static_cast<const float *>(a.q) + place_of(a, p.row, p.first_head + g);
#pragma unroll
    for (int n = 0; n < DIMS / 16; n++) {
        const int d = 32 * (n / 2) + 8 * t + 4 * (n % 2);
        cp_async_16_or_zero(queries + n * 32, q + d, g < p.n_heads && d < a.head_dim);
    }
    cp_async_commit();
}

template <class Kv, int DIMS, bool FULL>
__global__ void __launch_bounds__(32, FULL ? 12 : 8) split_tiles(struct attend a)
{
    grid_wait();
    grid_launch_dependents();
    const int kv_head = (int)(blockIdx.y / (unsigned)a.units), lane_group = (int)lane_id() % 4;
    const int unit = (int)(blockIdx.y % (unsigned)a.units);
    struct part p;
    p.seq = (int)blockIdx.z;
    /* Groups and position are fetched together: the question below, which is always answered no,
     * keeps the compiler from fetching one after it has looked at the other. */
    const uint32_t groups = group_of(a, p.seq, kv_head, (int)blockIdx.x, lane_group);
    p.row = p.seq;
    if (!a.row_each) {
        p.row = a.first_row[p.seq];
        if (a.first_row[p.seq + 1] - p.row != 1) return;
    }
    p.position = a.positions[p.row];
    if ((int)blockIdx.x * CUDA_TILE > p.position || groups == NO_GROUP) return; /* padding too */
    p.first_head = kv_head * a.group + unit * HEADS;
    p.n_heads = min(HEADS, a.group - unit * HEADS);

    uint4 *shared = dynamic_shared<uint4>() + lane_id();
    struct ring<Kv> r(shared + DIMS / 16 * 32);
    struct extent now = {min(p.position - (int)blockIdx.x * CUDA_TILE, CUDA_TILE - 1), groups};
    stage_queries<DIMS>(a, p, shared);
#pragma unroll
    for (int n = 0; n < DEPTH; n++) {
        load_slot<Kv, DIMS, FULL>(a, now, n, &r);
        cp_async_commit();
    }
    for (int tile = (int)blockIdx.x; now.end >= 0; tile += (int)gridDim.x) {
        const int after = tile + (int)gridDim.x;
        const struct extent next = {min(p.position - after * CUDA_TILE, CUDA_TILE - 1),
                                    group_of(a, p.seq, kv_head, after, lane_group)};
        split_tile<Kv, DIMS, FULL>(a, p, tile, now, next, shared, &r);
        now = next;
    }
    const int n_tiles = p.position / CUDA_TILE + 1;
    if (n_tiles == 1 ||
        !arrive(a.arrived + p.seq * a.heads + (int)blockIdx.y, min(n_tiles, (int)gridDim.x)))
        return;
    for (int h = 0; h < p.n_heads; h++) merge_parts(a, p, p.first_head + h);
}

#endif
