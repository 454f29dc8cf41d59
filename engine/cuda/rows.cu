// SPDX-License-Identifier: Apache-2.0
//
// rows.cu: what is done to one row at a time: embedding, norms with the add ahead of them, rope
// with the storing of keys and values, gathering of the rows that need logits; and the copy of a
// block of the KV cache. All of it is bound by the bytes it moves, or, with few rows, by the
// launch; so the care goes into wide loads and into few kernels. A row's arithmetic and the order
// of its sums follow from its width alone. Engine thread only.
#include "engine/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>

#define THREADS 256
#define KEEP    16 /* numbers of a row that a thread of the norm holds in registers */

int cuda_rows_check(const struct backend_options *opt, struct error *err)
{
    if (opt->hidden > 1024 * KEEP)
        return cfg_fail(err, CFG_EUNSUPPORTED, "a hidden size of %d is over the GPU backend's %d",
                        opt->hidden, 1024 * KEEP);
    if (opt->head_dim % 8 || opt->head_dim > CUDA_MAX_HEAD_DIM)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "a head_dim of %d: the GPU backend takes multiples of 8 up to %d",
                        opt->head_dim, CUDA_MAX_HEAD_DIM);
    if (opt->kv_fp8 && opt->head_dim % 16)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "keys and values in fp8 want a head_dim that is a multiple of 16, not %d",
                        opt->head_dim);
    return CFG_OK;
}

template <int V> DEVICE_INLINE void load_numbers(const float *p, float v[V])
{
    if constexpr (V == 4) {
        const float4 f = *reinterpret_cast<const float4 *>(p);
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    } else {
        v[0] = *p;
    }
}

template <int V> DEVICE_INLINE void store_numbers(float *p, const float v[V])
{
    if constexpr (V == 4)
        *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
    else
        *p = v[0];
}

template <int V> DEVICE_INLINE void store_bf16(uint16_t *p, const float v[V])
{
    if constexpr (V == 4)
        *reinterpret_cast<uint2 *>(p) = make_uint2(bf16_pack(v[0], v[1]), bf16_pack(v[2], v[3]));
    else
        *p = bf16_bits(v[0]);
}

/* ---- embedding ------------------------------------------------------------------------------- */

template <bool TABLE_BF16>
__global__ void __launch_bounds__(THREADS)
    embed_rows(const void *table, const int32_t *tokens, int hidden, bool bf16, float *x)
{
    grid_wait();
    grid_launch_dependents();
    const size_t from = (size_t)tokens[blockIdx.x] * (size_t)hidden;
    x += (size_t)blockIdx.x * (size_t)hidden;
    for (int i = (int)threadIdx.x; i < hidden; i += THREADS) {
        if constexpr (TABLE_BF16) {
            x[i] = bf16_float(static_cast<const uint16_t *>(table)[from + (size_t)i]);
        } else {
            const float v = static_cast<const float *>(table)[from + (size_t)i];
            x[i] = bf16 ? bf16_float(bf16_bits(v)) : v;
        }
    }
}

void cuda_embed(void *be, const struct weight *table, float *x)
{
    struct cuda *c = (struct cuda *)be;
    const int hidden = table->k;
    if (c->pending_x == x) c->pending_x = NULL; /* of the step before; x is written anew */
    cuda_flush(c);
    cuda_check(c,
               launch_dependent(table->type == CUDA_BF16 ? embed_rows<true> : embed_rows<false>,
                                dim3((unsigned)c->batch.n_rows), dim3(THREADS), 0, c->stream,
                                table->data, c->batch.tokens, hidden, c->opt.bf16, x),
               "embed");
}

/* ---- add and rmsnorm ------------------------------------------------------------------------- */

/* Every thread gets the same bits: lanes, then warps, both as a butterfly. */
DEVICE_INLINE float block_sum(float v)
{
    __shared__ float sums[32];
    v = warp_sum(v);
    if (lane_id() == 0) sums[warp_id()] = v;
    __syncthreads();
    return warp_sum(lane_id() < blockDim.x / 32 ? sums[lane_id()] : 0.0f);
}

/* x += add, unless NULL; y = norm(x) * w. One block a row; a thread holds its numbers of the row
 * and of w, and has w before the rows are ready. */
template <int V>
__global__ void __launch_bounds__(1024)
    norm_rows(float *x, const float *add, const float *w, float eps, int hidden, bool bf16, void *y)
{
    float v[KEEP / V][V] = {}, weight[KEEP / V][V] = {};
    const int first = (int)threadIdx.x * V, step = (int)blockDim.x * V;
    const size_t row = (size_t)blockIdx.x * (size_t)hidden;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < KEEP / V; j++)
        if (first + j * step < hidden) load_numbers<V>(w + first + j * step, weight[j]);
    grid_wait();
    grid_launch_dependents();
#pragma unroll
    for (int j = 0; j < KEEP / V; j++) {
        const size_t at = row + (size_t)(first + j * step);
        if (first + j * step >= hidden) break;
        load_numbers<V>(x + at, v[j]);
        if (add) {
            float more[V];
            load_numbers<V>(add + at, more);
            for (int e = 0; e < V; e++) v[j][e] += more[e];
            store_numbers<V>(x + at, v[j]);
        }
        for (int e = 0; e < V; e++) sum = fmaf(v[j][e], v[j][e], sum);
    }
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)hidden + eps);
#pragma unroll
    for (int j = 0; j < KEEP / V; j++) {
        const size_t at = row + (size_t)(first + j * step);
        if (first + j * step >= hidden) break;
        for (int e = 0; e < V; e++) {
            const float n = v[j][e] * scale;
            v[j][e] = (bf16 ? bf16_float(bf16_bits(n)) : n) * weight[j][e];
        }
        if (bf16)
            store_bf16<V>(static_cast<uint16_t *>(y) + at, v[j]);
        else
            store_numbers<V>(static_cast<float *>(y) + at, v[j]);
    }
}

void cuda_rmsnorm(void *be, const float *x, const float *w, float eps, int n_rows, int hidden,
                  float *y)
{
    struct cuda *c = (struct cuda *)be;
    const float *add = NULL;
    if (c->pending_x == x && c->pending_hidden == hidden && c->batch.n_rows == n_rows) {
        add = c->pending_y;
        c->pending_x = NULL;
    }
    cuda_flush(c);
    const int per_thread = hidden % 4 ? 1 : 4;
    const int wanted = (hidden / per_thread + 31) / 32 * 32;
    cuda_check(c,
               launch_dependent(per_thread == 4 ? norm_rows<4> : norm_rows<1>,
                                dim3((unsigned)n_rows),
                                dim3((unsigned)(wanted < 1024 ? wanted : 1024)), 0, c->stream,
                                const_cast<float *>(x), add, w, eps, hidden, c->opt.bf16,
                                static_cast<void *>(y)),
               "rmsnorm");
}

template <int V>
__global__ void __launch_bounds__(THREADS) add_rows(float *x, const float *y, size_t n)
{
    grid_wait();
    grid_launch_dependents();
    const size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i >= n) return;
    float a[V], b[V];
    load_numbers<V>(x + i, a);
    load_numbers<V>(y + i, b);
    for (int e = 0; e < V; e++) a[e] += b[e];
    store_numbers<V>(x + i, a);
}

void cuda_add(void *be, float *x, const float *y, int hidden)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    c->pending_x = x;
    c->pending_y = y;
    c->pending_hidden = hidden;
}

void cuda_flush(struct cuda *c)
{
    if (!c->pending_x) return;
    const size_t n = (size_t)c->batch.n_rows * (size_t)c->pending_hidden;
    const size_t per_block = n % 4 ? THREADS : 4 * THREADS;
    cuda_check(c,
               launch_dependent(n % 4 ? add_rows<1> : add_rows<4>,
                                dim3((unsigned)((n + per_block - 1) / per_block)), dim3(THREADS), 0,
                                c->stream, c->pending_x, c->pending_y, n),
               "add");
    c->pending_x = NULL;
}

/* ---- gather ---------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(THREADS)
    gather_rows(const float *x, const float *add, const int32_t *row_ids, int hidden, float *y)
{
    grid_wait();
    grid_launch_dependents();
    const size_t from = (size_t)row_ids[blockIdx.x] * (size_t)hidden;
    y += (size_t)blockIdx.x * (size_t)hidden;
    for (int i = (int)threadIdx.x; i < hidden; i += THREADS)
        y[i] = add ? x[from + (size_t)i] + add[from + (size_t)i] : x[from + (size_t)i];
}

/* An add that waits is done for the rows that are gathered alone: once these were the last ones,
 * nobody asks for the others' sums. */
void cuda_gather(void *be, const float *x, const int32_t *row_ids, int n, int hidden, float *y)
{
    struct cuda *c = (struct cuda *)be;
    const struct op_batch *b = c->host_batch;
    const bool sum = c->pending_x == x && c->pending_hidden == hidden;
    if (!sum) cuda_flush(c);
    cuda_check(c,
               launch_dependent(gather_rows, dim3((unsigned)n), dim3(THREADS), 0, c->stream, x,
                                sum ? c->pending_y : NULL,
                                c->batch.head_rows + (row_ids - b->head_rows), hidden, y),
               "gather");
    if (sum && row_ids - b->head_rows + n >= b->n_heads) c->pending_x = NULL;
}

/* ---- rope, keys and values ------------------------------------------------------------------- */

struct rope {
    float *q;             /* [rows, heads, head_dim] */
    const float *k, *v;   /* [rows, kv_heads, head_dim] */
    void *keys, *values;  /* of the layer */
    const float *cosines; /* [context, head_dim / 2] */
    const float *sines;
    const int32_t *positions, *seq_of_row, *tables;
    int max_blocks, block_size, heads, kv_heads, head_dim;
};

/* Two neighbouring numbers. */
template <enum cuda_type T> DEVICE_INLINE void store_pair(void *to, size_t at, float a, float b)
{
    if constexpr (T == CUDA_F32)
        *reinterpret_cast<float2 *>(static_cast<float *>(to) + at) = make_float2(a, b);
    else if constexpr (T == CUDA_BF16)
        *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(to) + at) = bf16_pack(a, b);
    else
        *reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(to) + at) = fp8_pack(a, b);
}

/* A warp has one head of one row, of q, k or v; a lane has two pairs (d, d + head_dim/2), d even. A
 * pair of q becomes BF16 in its own place, with 0 behind it, as attention.cu loads it. */
template <enum cuda_type T> __global__ void __launch_bounds__(THREADS) rope_rows(struct rope r)
{
    grid_wait();
    grid_launch_dependents();
    const int row = (int)blockIdx.x, half = r.head_dim / 2, d = (int)lane_id() * 2;
    const int position = r.positions[row];
    int head = (int)(blockIdx.y * (THREADS / 32) + warp_id());
    if (position < 0 || head >= r.heads + 2 * r.kv_heads || d >= half) return;

    const bool is_q = head < r.heads, is_v = head >= r.heads + r.kv_heads;
    const float *from = r.q;
    int width = r.heads;
    if (!is_q) {
        head -= is_v ? r.heads + r.kv_heads : r.heads;
        from = is_v ? r.v : r.k;
        width = r.kv_heads;
    }
    from += ((size_t)row * (size_t)width + (size_t)head) * (size_t)r.head_dim;
    float2 a = *reinterpret_cast<const float2 *>(from + d);
    float2 b = *reinterpret_cast<const float2 *>(from + half + d);
    if (!is_v) {
        const size_t angle = (size_t)position * (size_t)half + (size_t)d;
        const float2 co = *reinterpret_cast<const float2 *>(r.cosines + angle);
        const float2 si = *reinterpret_cast<const float2 *>(r.sines + angle);
        const float2 x = a, y = b;
        a = make_float2(x.x * co.x - y.x * si.x, x.y * co.y - y.y * si.y);
        b = make_float2(y.x * co.x + x.x * si.x, y.y * co.y + x.y * si.y);
    }
    if (is_q) {
        float *to = const_cast<float *>(from) + d;
        if (T == CUDA_F32) {
            store_pair<CUDA_F32>(to, 0, a.x, a.y);
            store_pair<CUDA_F32>(to, (size_t)half, b.x, b.y);
        } else {
            *reinterpret_cast<uint2 *>(to) = make_uint2(bf16_pack(a.x, a.y), 0);
            *reinterpret_cast<uint2 *>(to + half) = make_uint2(bf16_pack(b.x, b.y), 0);
        }
        return;
    }
    const int32_t *table = r.tables + (size_t)r.seq_of_row[row] * (size_t)r.max_blocks;
    const size_t block = (size_t)table[position / r.block_size];
    const size_t slot = (block * (size_t)r.kv_heads + (size_t)head) * (size_t)r.block_size +
                        (size_t)(position % r.block_size);
    void *to = is_v ? r.values : r.keys;
    store_pair<T>(to, slot * (size_t)r.head_dim + (size_t)d, a.x, a.y);
    store_pair<T>(to, slot * (size_t)r.head_dim + (size_t)(half + d), b.x, b.y);
}

/* As published: frequencies and angles in FP32. At the model's first step, never in a recording. */
static void make_tables(struct cuda *c, const struct op_attention *a)
{
    const size_t half = (size_t)a->head_dim / 2, n = (size_t)c->opt.context * half;
    struct error err;
    float *host = (float *)malloc(2 * n * sizeof *host);
    float *device = (float *)cuda_take(c, 2 * n * sizeof *device, &err);
    if (!host || !device) {
        free(host);
        cuda_check(c, cudaErrorMemoryAllocation, "rope");
        return;
    }
    for (size_t d = 0; d < half; d++) {
        const float frequency =
            (float)pow((double)a->rope_theta, -2.0 * (double)d / (double)a->head_dim);
        for (int p = 0; p < c->opt.context; p++) {
            const size_t at = (size_t)p * half + d;
            host[at] = cosf((float)p * frequency);
            host[n + at] = sinf((float)p * frequency);
        }
    }
    cuda_check(c, cudaStreamSynchronize(c->stream), "rope"); /* cuda_take's zeros first */
    cuda_check(c, cudaMemcpy(device, host, 2 * n * sizeof *host, cudaMemcpyHostToDevice), "rope");
    free(host);
    c->cosines = device;
    c->sines = device + n;
    c->rope_dim = a->head_dim;
    c->rope_theta = a->rope_theta;
}

void cuda_rope_kv(void *be, const struct op_attention *a, float *q, float *k, const float *v)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    if (!c->cosines || c->rope_dim != a->head_dim || c->rope_theta != a->rope_theta)
        make_tables(c, a);
    if (!c->cosines) return;
    const unsigned warps = (unsigned)(a->heads + 2 * a->kv_heads), per_block = THREADS / 32;
    const struct rope r = {q,
                           k,
                           v,
                           c->keys[a->layer],
                           c->values[a->layer],
                           c->cosines,
                           c->sines,
                           c->batch.positions,
                           c->batch.seq_of_row,
                           c->batch.tables,
                           c->batch.max_blocks,
                           c->opt.block_size,
                           a->heads,
                           a->kv_heads,
                           a->head_dim};
    void (*kernel)(struct rope) = !c->opt.bf16    ? rope_rows<CUDA_F32>
                                  : c->opt.kv_fp8 ? rope_rows<CUDA_FP8>
                                                  : rope_rows<CUDA_BF16>;
    cuda_check(c,
               launch_dependent(
                   kernel, dim3((unsigned)c->batch.n_rows, (warps + per_block - 1) / per_block),
                   dim3(THREADS), 0, c->stream, r),
               "rope");
}

/* ---- copies of blocks ------------------------------------------------------------------------ */

#define COPIED_AT_ONCE 128
struct kv_list {
    void *at[COPIED_AT_ONCE]; /* keys or values of a layer */
};

__global__ void __launch_bounds__(THREADS)
    copy_block(struct kv_list list, size_t from, size_t to, size_t bytes)
{
    grid_wait();
    grid_launch_dependents();
    char *base = static_cast<char *>(list.at[blockIdx.x]);
    const size_t step = (size_t)gridDim.y * THREADS * 16;
    for (size_t i = ((size_t)blockIdx.y * THREADS + threadIdx.x) * 16; i < bytes; i += step)
        *reinterpret_cast<uint4 *>(base + to + i) = ld_16(base + from + i);
}

/* Between steps. Touches neither side of an add that may be waiting. */
void cuda_kv_copy(void *be, int32_t from, int32_t to)
{
    struct cuda *c = (struct cuda *)be;
    for (int first = 0; first < 2 * c->layers; first += COPIED_AT_ONCE) {
        struct kv_list list = {};
        const int left = 2 * c->layers - first, n = left < COPIED_AT_ONCE ? left : COPIED_AT_ONCE;
        for (int i = 0; i < n; i++) {
            const int l = (first + i) / 2;
            list.at[i] = (first + i) % 2 ? c->values[l] : c->keys[l];
        }
        cuda_check(c,
                   launch_dependent(copy_block, dim3((unsigned)n, 8), dim3(THREADS), 0, c->stream,
                                    list, (size_t)from * c->block_bytes,
                                    (size_t)to * c->block_bytes, c->block_bytes),
                   "kv_copy");
    }
}
