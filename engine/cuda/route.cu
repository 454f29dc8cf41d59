// SPDX-License-Identifier: Apache-2.0
//
// route.cu: the router of a MoE layer in one launch: FP32 logits, softmax over all experts, the
// topk best, capacity, and the kept picks grouped by expert. The block that ends last does what
// needs all rows; blocks count themselves in the upper half of n_touched, which the last one
// replaces by the number itself, so nothing has to be cleared between launches.
//
// A logit is one warp's work whatever the kernel: lane l multiplies inputs 8l .. 8l+7 of each 256
// in one chain of fused multiply-adds, and a butterfly adds the lanes.
//
// With few rows each warp computes one logit, having fetched the router's row before grid_wait: 8B
// at 64 rows reads 10 MB from L2, over all SMs. With many, a warp's tile of 4 rows x 8 experts
// keeps the FP32 units busy (8,192 rows of 8B: 0.5 G multiply-adds, 19 us of an H200's), and each
// block picks for its own rows. What the last block does then costs about 1,000 cycles a tile of
// rows.
#include "engine/cuda/picks.cuh"

#include <math.h>

enum {
    FEW_WARPS = 8,   /* of a block for few rows */
    MANY_WARPS = 16, /* of a block for many rows */
    FEW = 128,       /* rows from which a tile per warp wins over a logit per warp */
    BLOCK_ROWS = 16, /* rows of a block for many rows */
    TILE_ROWS = 4,   /* of a warp's tile there */
    TILE_EXPERTS = 8,
    STEP = 256,    /* inputs a warp reads at once */
    AHEAD = 8,     /* steps whose weights a warp holds */
    PICK_LANES = 8 /* lanes that pick for a row */
};

/* ---- logits ---------------------------------------------------------------------------------- */

DEVICE_INLINE void eight(const float *row, int k, int n, bool whole, float out[8])
{
    if (whole) {
        const uint4 a = k < n ? ld_16(row + k) : uint4{}, b = k < n ? ld_16(row + k + 4) : uint4{};
        const uint32_t bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        for (int j = 0; j < 8; j++) out[j] = bits_float(bits[j]);
    } else {
        for (int j = 0; j < 8; j++) out[j] = k + j < n ? row[k + j] : 0.0f;
    }
}

/* Numbers k .. k+7 of a row of n, zero past its end; `whole`: n is a multiple of 8. */
DEVICE_INLINE void eight(const __nv_bfloat16 *row, int k, int n, bool whole, float out[8])
{
    if (whole) {
        const uint4 a = k < n ? ld_16(row + k) : uint4{};
        const uint32_t bits[4] = {a.x, a.y, a.z, a.w};
        for (int j = 0; j < 4; j++) {
            const float2 two = bf16_unpack(bits[j]);
            out[2 * j] = two.x;
            out[2 * j + 1] = two.y;
        }
    } else {
        for (int j = 0; j < 8; j++) out[j] = k + j < n ? __bfloat162float(row[k + j]) : 0.0f;
    }
}

DEVICE_INLINE float eight_more(float sum, const float a[8], const float b[8])
{
    for (int j = 0; j < 8; j++) sum = fmaf(a[j], b[j], sum);
    return sum;
}

/* One logit a warp. Neighbouring warps take neighbouring rows, so that a block reads few rows of
 * the router. */
template <class H> DEVICE_INLINE void one_logit(const struct route &a)
{
    const int n = a.hidden, first = 8 * (int)lane_id();
    const bool whole = n % 8 == 0;
    const int all = a.rows * a.experts, mine = (int)blockIdx.x * FEW_WARPS + (int)warp_id();
    const int unit = mine < all ? mine : all - 1, row = unit % a.rows;
    const float *w = a.router + (size_t)(unit / a.rows) * (size_t)n;
    const H *h = (const H *)a.h + (size_t)row * (size_t)n;
    float ahead[AHEAD][8], x[8], sum = 0;
#pragma unroll
    for (int s = 0; s < AHEAD; s++) eight(w, first + s * STEP, n, whole, ahead[s]);
    grid_wait();
    for (int base = 0; base < n; base += AHEAD * STEP) {
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            if (base) eight(w, base + first + s * STEP, n, whole, ahead[s]);
            eight(h, base + first + s * STEP, n, whole, x);
            sum = eight_more(sum, ahead[s], x);
        }
    }
    sum = warp_sum(sum);
    if (lane_id() == 0 && mine < all)
        a.logits[(size_t)row * (size_t)a.experts + (size_t)(unit / a.rows)] = sum;
}

/* A tile a warp, into the block's logits [BLOCK_ROWS][CUDA_MAX_EXPERTS]. */
template <class H>
DEVICE_INLINE void tile_of_logits(const struct route &a, int first_row, int first_expert,
                                  float (*logits)[CUDA_MAX_EXPERTS], int at)
{
    const int n = a.hidden;
    const bool whole = n % 8 == 0;
    const H *h[TILE_ROWS];
    float sums[TILE_ROWS][TILE_EXPERTS] = {};
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++)
        h[r] = (const H *)a.h + (size_t)min(first_row + r, a.rows - 1) * (size_t)n;
    for (int k = 8 * (int)lane_id(); k < n; k += STEP) {
        float x[TILE_ROWS][8], w[8];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) eight(h[r], k, n, whole, x[r]);
#pragma unroll
        for (int e = 0; e < TILE_EXPERTS; e++) {
            eight(a.router + (size_t)min(first_expert + e, a.experts - 1) * (size_t)n, k, n, whole,
                  w);
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++) sums[r][e] = eight_more(sums[r][e], w, x[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++)
#pragma unroll
        for (int e = 0; e < TILE_EXPERTS; e++) {
            const float sum = warp_sum(sums[r][e]);
            if (lane_id() == 0 && first_expert + e < a.experts)
                logits[at + r][first_expert + e] = sum;
        }
}

/* ---- picks ----------------------------------------------------------------------------------- */

/* Over the lanes that pick for a row. */
DEVICE_INLINE float group_max(float v)
{
    for (unsigned mask = PICK_LANES / 2; mask; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}

DEVICE_INLINE float group_sum(float v)
{
    for (unsigned mask = PICK_LANES / 2; mask; mask /= 2) v += shfl_xor(v, mask);
    return v;
}

/* The best of what comes after `last` (ties: after expert `last_e`); ties to the lower index. */
DEVICE_INLINE void next_best(const float *logits, int experts, float &last, int &last_e)
{
    float best = -INFINITY;
    int best_e = experts;
    for (int e = (int)lane_id() % PICK_LANES; e < experts; e += PICK_LANES) {
        const float x = logits[e] > -INFINITY ? logits[e] : -INFINITY; /* NaN comes last */
        const bool after = x < last || (x == last && e > last_e);
        if (after && (best_e == experts || x > best)) {
            best = x;
            best_e = e;
        }
    }
    for (unsigned mask = PICK_LANES / 2; mask; mask /= 2) {
        const float x = shfl_xor(best, mask);
        const int e = shfl_xor(best_e, mask);
        const bool other =
            e < experts && (best_e == experts || x > best || (x == best && e < best_e));
        best = other ? x : best;
        best_e = other ? e : best_e;
    }
    last = best;
    last_e = best_e;
}

/* The picks of 32 / PICK_LANES rows, by a whole warp. `row` is the lane's; rows from a.rows on and
 * padding get none. */
DEVICE_INLINE void pick(const struct route &a, int row, const float *logits)
{
    const bool inside = row < a.rows, real = inside && a.positions[row] >= 0;
    float top = -INFINITY, sum = 0;
    for (int e = (int)lane_id() % PICK_LANES; e < a.experts; e += PICK_LANES)
        top = fmaxf(top, logits[e]);
    top = group_max(top);
    for (int e = (int)lane_id() % PICK_LANES; e < a.experts; e += PICK_LANES)
        sum += expf(logits[e] - top);
    sum = group_sum(sum);
    float last = INFINITY;
    int last_e = -1;
    for (int k = 0; k < a.topk; k++) {
        next_best(logits, a.experts, last, last_e);
        if (!inside || (int)lane_id() % PICK_LANES) continue;
        const size_t i = (size_t)row * (size_t)a.topk + (size_t)k;
        const float weight = real ? expf(logits[last_e] - top) / sum : 0.0f;
        a.picks.experts[i] = real ? last_e : -1;
        a.picks.weights[i] = weight;
        if (!real) continue;
        a.host.experts[i] = last_e;
        a.host.weights[i] = weight;
    }
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* True in the block that ends last, which then sees what all have written. */
static DEVICE_INLINE bool last_block(int32_t *n_touched)
{
    __shared__ int last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(n_touched, 1 << 16) >> 16 == (int)gridDim.x - 1;
    __syncthreads();
    if (last) __threadfence();
    return last;
}

template <class H>
static __global__ void __launch_bounds__(32 * FEW_WARPS) route_few(struct route a)
{
    grid_launch_dependents();
    one_logit<H>(a);
    if (!last_block(a.picks.n_touched)) return;
    const int rows_of_warp = 32 / PICK_LANES;
    for (int first = (int)warp_id() * rows_of_warp; first < a.rows;
         first += FEW_WARPS * rows_of_warp) {
        const int row = first + (int)lane_id() / PICK_LANES;
        pick(a, row, a.logits + (size_t)min(row, a.rows - 1) * (size_t)a.experts);
    }
    __syncthreads();
    keep_and_group<FEW_WARPS>(a);
}

template <class H>
static __global__ void __launch_bounds__(32 * MANY_WARPS) route_many(struct route a)
{
    __shared__ float logits[BLOCK_ROWS][CUDA_MAX_EXPERTS];
    const int warps = BLOCK_ROWS / TILE_ROWS; /* abreast, on different rows */
    const int first_row = (int)blockIdx.x * BLOCK_ROWS, at = (int)warp_id() % warps * TILE_ROWS;
    grid_launch_dependents();
    grid_wait();
    for (int e = (int)warp_id() / warps * TILE_EXPERTS; e < a.experts;
         e += MANY_WARPS / warps * TILE_EXPERTS)
        tile_of_logits<H>(a, first_row + at, e, logits, at);
    __syncthreads();
    if (warp_id() * (32 / PICK_LANES) < BLOCK_ROWS) {
        const int r = (int)threadIdx.x / PICK_LANES;
        pick(a, first_row + r, logits[r]);
    }
    if (last_block(a.picks.n_touched)) keep_and_group<MANY_WARPS>(a);
}

template <class H> static cudaError_t start(const struct cuda *c, struct route a)
{
    /* The scratch of few rows is that of networks, whose turn comes later. */
    const size_t room = (size_t)(c->opt.max_rows * c->opt.topk) * (size_t)c->opt.inner * sizeof(H);
    const size_t needed = (size_t)a.rows * (size_t)a.experts * sizeof(float);
    if (a.rows > FEW || needed > room)
        return launch_dependent(route_many<H>,
                                dim3((unsigned)((a.rows + BLOCK_ROWS - 1) / BLOCK_ROWS)),
                                dim3(32 * MANY_WARPS), 0, c->stream, a);
    return launch_dependent(route_few<H>,
                            dim3((unsigned)((a.rows * a.experts + FEW_WARPS - 1) / FEW_WARPS)),
                            dim3(32 * FEW_WARPS), 0, c->stream, a);
}

void cuda_route(void *be, const struct op_route *r, const float *h, const struct op_routing *out)
{
    struct cuda *c = (struct cuda *)be;
    const struct cuda_batch *b = &c->batch;
    const int capacity = c->host_batch ? c->host_batch->capacity : 0;
    struct route a = {};
    cuda_flush(c);
    a.h = h;
    a.router = r->router;
    a.logits = (float *)c->act;
    a.picks = c->picks;
    a.host = *out;
    a.positions = b->positions;
    a.seq_of_row = b->seq_of_row;
    a.first_row = b->first_row;
    a.spent = c->spent ? c->spent + r->budget_at : NULL;
    a.spent_stride = (size_t)c->opt.moe_layers * (size_t)c->opt.experts;
    a.rule = c->spent ? BUDGETS : capacity > 0 ? FIRST_CHOICES_FIRST : KEEP_ALL;
    a.rows = b->n_rows;
    a.experts = r->experts;
    a.topk = r->topk;
    a.hidden = r->hidden;
    a.capacity = capacity;
    cuda_check(c, c->ops.bf16 ? start<__nv_bfloat16>(c, a) : start<float>(c, a), "route");
}
