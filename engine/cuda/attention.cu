// SPDX-License-Identifier: Apache-2.0
//
// attention.cu: attention as an operation: which kernels a step needs (attention.cuh has what they
// compute), and the one of F32 mode, which keeps to the same tiles and serves all steps. Engine
// thread only.
#include "engine/cuda/attention_split.cuh"
#include "engine/cuda/attention_walk.cuh"

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

/* Warps for a row and kv head: one for each tile while that fills the device (8 times, for an even
 * end), but at most 8 tiles for one. */
static unsigned warps_of(const struct cuda *c, const struct attend &a)
{
    const int tiles = c->batch.max_tiles, rows = c->batch.n_seqs * a.kv_heads * a.units;
    const int enough = 8 * 12 * c->sm_count / rows + 1, least = (tiles + 7) / 8;
    const int n = enough > least ? enough : least;
    return (unsigned)(n < tiles ? n : tiles);
}

template <class Kv, int DIMS, bool FULL>
static void start_split(struct cuda *c, const struct attend &a)
{
    const size_t bytes = (DIMS / 16 * 32 + ring<Kv>::PLACES) * sizeof(uint4);
    cuda_check(c,
               launch_dependent(split_tiles<Kv, DIMS, FULL>,
                                dim3(warps_of(c, a), (unsigned)(a.kv_heads * a.units),
                                     (unsigned)c->batch.n_seqs),
                                dim3(32), bytes, c->stream, a),
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
