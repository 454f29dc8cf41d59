// SPDX-License-Identifier: Apache-2.0
//
// matmul.cu: the operations that multiply by weights: which kernel of gemm_*.cuh runs them, in
// which tiles; FP32 mode; and what stands around the experts (where their weights lie, the sum of a
// row's picks). A row's bits do not depend on any choice made here. Engine thread only.
#include "engine/cuda/gemm_stream.cuh"
#include "engine/cuda/gemm_tiles.cuh"

#include <math.h>

/* Narrow and deep matrices (o, down) have too few strips of 16 outputs to keep every SM's memory
 * requests coming: four warps share a strip. Others gain nothing by it, and a sum in slices costs
 * prefill time (matrices of q, k and v have 2048 inputs where it matters). */
int gemm_slices(int n_out, int k)
{
    return n_out <= 4096 && k >= (n_out <= 1024 ? 2048 : 3072) ? GEMM_WARPS : 1;
}

enum { STREAM_ROWS = 8 };

/* ---- FP32 mode: for checks --------------------------------------------------------------------*/

/* One warp an output; 8 rows at a time share a read of the weights. */
template <int S> __global__ void __launch_bounds__(128) gemm_f32(const gemm_args p)
{
    const int lane = (int)lane_id(), output = (int)(blockIdx.x * 4 + warp_id());
    gemm_job job = p.experts ? gemm_expert(p, (int)blockIdx.y) : p.jobs[blockIdx.y];
    const float *x = (const float *)p.x, *w[S];
    grid_wait();
    const int first = p.experts ? p.picks.starts[blockIdx.y] : 0;
    const int end = p.experts ? p.picks.starts[blockIdx.y + 1] : p.rows;
    if (output >= job.n_out) return;
    for (int s = 0; s < S; s++)
        w[s] = (const float *)(s < 2 ? job.m.w : job.m.up) +
               (size_t)(output + (s == 1) * job.n_out) * (size_t)p.k;
    for (int from = first; from < end; from += 8) {
        float acc[8][S] = {};
        const float *in[8];
        const int rows = min(end - from, 8);
#pragma unroll
        for (int r = 0; r < 8; r++) {
            const int row = from + min(r, rows - 1);
            in[r] = x + (size_t)(p.gather ? p.picks.row_of[row] : row) * (size_t)p.k;
        }
        for (int i = lane; i < p.k; i += 32)
#pragma unroll
            for (int s = 0; s < S; s++) {
                const float v = w[s][i];
#pragma unroll
                for (int r = 0; r < 8; r++) acc[r][s] = fmaf(in[r][i], v, acc[r][s]);
            }
#pragma unroll
        for (int r = 0; r < 8; r++) {
#pragma unroll
            for (int s = 0; s < S; s++) acc[r][s] = warp_sum(acc[r][s]);
            if (lane != r || r >= rows) continue;
            float *y = (float *)job.y + (size_t)(from + r) * (size_t)job.n_out + output;
            *y = S == 3 ? gemm_activated(acc[r][0], acc[r][S / 2], acc[r][S - 1]) : acc[r][0];
        }
    }
}

/* ---- sums of slices and of picks --------------------------------------------------------------*/

template <class W> __global__ void __launch_bounds__(256) add_slices(const gemm_args p)
{
    const gemm_job job = p.jobs[blockIdx.y];
    const size_t i = (size_t)blockIdx.x * 256 + threadIdx.x, n = (size_t)p.rows * (size_t)job.n_out;
    size_t all = 0, before = 0;
    for (int j = 0; j < p.n_jobs; j++) {
        if (j == (int)blockIdx.y) before = all;
        all += (size_t)p.jobs[j].n_out;
    }
    grid_launch_dependents();
    grid_wait();
    if (i >= n) return;
    const float *from = p.partial + before * (size_t)p.rows + i;
    float sum = *from;
    for (int s = 1; s < p.slices; s++) sum += from[(size_t)s * all * (size_t)p.rows];
    const int output = (int)(i % (size_t)job.n_out), lower = job.n_out / 2;
    const int place = job.half && output >= lower ? job.half + output - lower : output;
    ((float *)job.y)[i] = gemm_scaled<W>(sum, job.m.scale, place);
}

/* y[row] = its kept picks' outputs times their weights, first choice first. */
__global__ void __launch_bounds__(256)
    combine(const struct cuda_picks picks, int topk, int hidden, const float *out, float *y)
{
    const int row = (int)blockIdx.x, i = (int)(blockIdx.y * 256 + threadIdx.x);
    grid_launch_dependents();
    grid_wait();
    if (i >= hidden) return;
    float sum = 0;
    for (int k = 0; k < topk; k++) {
        const int at = picks.at[row * topk + k];
        if (at >= 0)
            sum = fmaf(picks.weights[row * topk + k], out[(size_t)at * (size_t)hidden + i], sum);
    }
    y[(size_t)row * (size_t)hidden + i] = sum;
}

/* ---- which tiles ------------------------------------------------------------------------------*/

template <class W> using small_tile = gemm_shape<W, 1, 2, 2, 2, 4, 2, 2>;     /*  64 x  64 */
template <class W> using large_tile = gemm_shape<W, 1, 4, 4, 2, 8, 1, 1>;     /* 256 x 128 */
template <class W> using small_ffn_tile = gemm_shape<W, 3, 1, 4, 1, 8, 1, 2>; /* 192 x  64 */
template <class W> using large_ffn_tile = gemm_shape<W, 3, 1, 4, 2, 8, 1, 1>; /* 192 x 128 */

/* What a launch is about, for choosing. */
struct demand {
    double outputs, rows; /* of all matrices; of one (experts: on average) */
    int k, slices, sms;
    double number_bytes; /* of weights */
};

/* A tile: how many fit an SM, and about how many multiplications a clock an SM then does. */
struct tile_cost {
    int outputs, rows, blocks;
    double rate;
};
static const struct tile_cost plain_tiles[] = {{64, 64, 2, 400}, {256, 128, 1, 560}};
static const struct tile_cost ffn_tiles[] = {{192, 64, 2, 440}, {192, 128, 1, 500}};

/* Estimated clocks when blocks take 1/split of the inputs each: the most of what memory, L2, one
 * SM's requests under way, and mma ask for. Bytes a clock of an H200: 4.3 TB/s are 18.6 an SM, L2
 * gives about 24; one block fetches at most about 20 (40 KB in 1.2 us). */
static double clocks(const struct demand *d, const struct tile_cost *t, bool small, int split)
{
    const double down = ceil(d->rows / t->rows), across = ceil(d->outputs / t->outputs);
    const double blocks = across * down * split, weights = t->outputs * d->number_bytes;
    const double live = fmin(t->rows, ceil(d->rows / 8) * 8); /* small tiles leave out the rest */
    const double memory = d->outputs * d->number_bytes * split / (18.6 * d->sms);
    const double l2 = blocks * (weights + 2 * live) / (24 * d->sms);
    const double requests = ceil(blocks / (d->sms * t->blocks)) * weights / 20;
    const double mma = ceil(blocks / d->sms) * t->outputs * (small ? live : t->rows) / t->rate;
    /* sums of slices go through L2, once or twice; a second kernel costs about 3000 */
    const double sums = d->outputs * d->rows * 4 / (24 * d->sms);
    return fmax(fmax(memory, l2), fmax(requests, mma)) * d->k / split +
           (split > 1 ? 2 * split * sums + 3000 : 2 * (d->slices - 1) * sums);
}

struct choice {
    bool large, split;
};

/* `may_split`: there is room for the sums of slices. */
static struct choice choose(const struct demand *d, const struct tile_cost *tiles, bool may_split)
{
    struct choice best = {false, false};
    double least = INFINITY;
    for (int large = 0; large < 2; large++)
        for (int split = 0; split <= (may_split && d->slices > 1); split++) {
            const double n = clocks(d, &tiles[large], !large, split ? d->slices : 1);
            if (n >= least) continue;
            least = n;
            best.large = large != 0;
            best.split = split != 0;
        }
    return best;
}

/* ---- launching --------------------------------------------------------------------------------*/

template <class T>
static void run_tiles(struct cuda *c, const gemm_args &p, bool split, const char *at)
{
    const int topk = c->opt.topk, picks = p.rows * topk;
    size_t items = 0;
    for (int i = 0; i < p.n_jobs; i++) {
        const int strips =
            T::S == 1 && p.jobs[i].half ? p.jobs[i].half / 8 : (p.jobs[i].n_out + 15) / 16;
        items += (size_t)((strips + T::UNITS - 1) / T::UNITS);
    }
    if (p.experts) { /* at most; but a block can take several */
        const int touched = picks < p.n_experts ? picks : p.n_experts;
        items *= (size_t)(picks / T::ROWS + touched);
        const size_t most = (size_t)c->sm_count * 16;
        items = items < most ? items : most;
    } else {
        items *= (size_t)((p.rows + T::ROWS - 1) / T::ROWS);
    }
    cuda_check(
        c,
        cudaFuncSetAttribute(gemm_tiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::SHARED),
        at);
    cuda_check(c,
               launch_dependent(gemm_tiles<T>,
                                dim3((unsigned)items, 1, split ? (unsigned)p.slices : 1),
                                dim3(T::THREADS), T::SHARED, c->stream, p),
               at);
}

template <class W, int S> static void run_stream(struct cuda *c, const gemm_args &p, const char *at)
{
    int strips = 0;
    for (int i = 0; i < p.n_jobs; i++) {
        const gemm_job *j = &p.jobs[i];
        const int n = S == 1 && j->half ? j->half / 8 : (j->n_out + 15) / 16;
        if (n > strips) strips = n;
    }
    const int picks = p.rows * c->opt.topk;
    const int many = !p.experts ? p.n_jobs : picks < p.n_experts ? picks : p.n_experts;
    cuda_check(c,
               launch_dependent(gemm_stream<W, S>,
                                dim3((unsigned)((strips * p.slices + GEMM_WARPS - 1) / GEMM_WARPS),
                                     (unsigned)many),
                                dim3(32 * GEMM_WARPS), 0, c->stream, p),
               at);
}

template <int S> static void run_f32(struct cuda *c, const gemm_args &p, const char *at)
{
    int most = 0;
    for (int i = 0; i < p.n_jobs; i++) most = p.jobs[i].n_out > most ? p.jobs[i].n_out : most;
    cuda_check(c,
               launch_dependent(
                   gemm_f32<S>,
                   dim3((unsigned)((most + 3) / 4), (unsigned)(p.experts ? p.n_experts : p.n_jobs)),
                   dim3(128), 0, c->stream, p),
               at);
}

/* Room for sums of slices: what the experts put their outputs into, when nothing is in it. */
static bool room_to_split(const struct cuda *c, const gemm_args &p, double outputs)
{
    const double room = (double)c->opt.max_rows * c->opt.topk * c->opt.hidden;
    return !p.experts && (double)p.slices * p.rows * outputs <= room;
}

template <class W, int S> static void run(struct cuda *c, const gemm_args &args, const char *at)
{
    gemm_args p = args;
    if (p.rows <= STREAM_ROWS) {
        run_stream<W, S>(c, p, at);
        return;
    }
    struct demand d = {0, (double)p.rows, p.k, p.slices, c->sm_count, W::CHUNK / 512.0};
    for (int i = 0; i < p.n_jobs; i++) d.outputs += S * p.jobs[i].n_out;
    const bool may_split = room_to_split(c, p, d.outputs);
    if (p.experts) {
        d.outputs *= p.n_experts;
        d.rows = ceil(d.rows * c->opt.topk / p.n_experts);
    }
    const struct choice how = choose(&d, S == 3 ? ffn_tiles : plain_tiles, may_split);
    if (how.split) p.partial = c->expert_out;
    if constexpr (S == 3) {
        if (how.large)
            run_tiles<large_ffn_tile<W>>(c, p, false, at);
        else
            run_tiles<small_ffn_tile<W>>(c, p, false, at);
    } else {
        if (how.large)
            run_tiles<large_tile<W>>(c, p, how.split, at);
        else
            run_tiles<small_tile<W>>(c, p, how.split, at);
        if (!how.split) return;
        int most = 0;
        for (int i = 0; i < p.n_jobs; i++) most = p.jobs[i].n_out > most ? p.jobs[i].n_out : most;
        const size_t n = (size_t)p.rows * (size_t)most;
        cuda_check(c,
                   launch_dependent(add_slices<W>,
                                    dim3((unsigned)((n + 255) / 256), (unsigned)p.n_jobs),
                                    dim3(256), 0, c->stream, p),
                   at);
    }
}

template <int S>
static void run_type(struct cuda *c, const gemm_args &p, enum cuda_type type, const char *at)
{
    switch (type) {
    case CUDA_F32:
        run_f32<S>(c, p, at);
        break;
    case CUDA_BF16:
        run<gemm_bf16, S>(c, p, at);
        break;
    case CUDA_FP8:
        run<gemm_fp8, S>(c, p, at);
        break;
    case CUDA_INT8:
        run<gemm_int8, S>(c, p, at);
        break;
    }
}

/* ---- operations -------------------------------------------------------------------------------*/

static gemm_matrix matrix_of(const struct weight *w, const struct weight *up)
{
    return gemm_matrix{(const char *)w->data, up ? (const char *)up->data : NULL, w->scale,
                       up ? up->scale : NULL};
}

static bool alike(const struct op_matmul *a, const struct op_matmul *b)
{
    return a->x == b->x && a->w->k == b->w->k && a->w->type == b->w->type &&
           a->w->slices == b->w->slices;
}

void cuda_matmul(void *be, const struct op_matmul *list, int n, int n_rows)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    if (n_rows <= 0) return;
    for (int i = 0; i < n;) {
        gemm_args p = {};
        const struct op_matmul *first = &list[i];
        for (; i < n && p.n_jobs < GEMM_JOBS && alike(first, &list[i]); i++)
            p.jobs[p.n_jobs++] =
                gemm_job{matrix_of(list[i].w, NULL), list[i].y, list[i].w->n_out, list[i].w->half};
        p.x = (const uint16_t *)first->x;
        p.rows = n_rows;
        p.k = first->w->k;
        p.slices = first->w->slices;
        run_type<1>(c, p, first->w->type, "matmul");
    }
}

static gemm_args ffn_in(const struct cuda *c, const struct weight *gate, const float *h, int n_rows,
                        int hidden, int inner)
{
    gemm_args p = {};
    p.jobs[0].y = c->act;
    p.jobs[0].n_out = inner;
    p.jobs[0].half = gate->half ? gate->half : inner;
    p.n_jobs = 1;
    p.x = (const uint16_t *)h;
    p.rows = n_rows;
    p.k = hidden;
    p.slices = 1;
    return p;
}

static gemm_args ffn_out(const struct cuda *c, const struct weight *down, int n_rows, int hidden,
                         int inner, float *y)
{
    gemm_args p = {};
    p.jobs[0].y = y;
    p.jobs[0].n_out = hidden;
    p.n_jobs = 1;
    p.x = (const uint16_t *)c->act;
    p.rows = n_rows;
    p.k = inner;
    p.slices = down->slices;
    return p;
}

void cuda_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    if (n_rows <= 0) return;
    gemm_args in = ffn_in(c, w->gate, h, n_rows, w->hidden, w->inner);
    gemm_args out = ffn_out(c, w->down, n_rows, w->hidden, w->inner, y);
    in.jobs[0].m = matrix_of(w->gate, w->up);
    out.jobs[0].m = matrix_of(w->down, NULL);
    run_type<3>(c, in, w->gate->type, "ffn");
    run_type<1>(c, out, w->down->type, "ffn");
}

/* Where the experts of one layer lie: made when the layer is first used, which is never while a
 * step is recorded. In pinned memory, so that it is also what the device's copy is made from. */
struct gemm_table {
    struct gemm_table *next;
    struct weight *const *layer; /* op_experts.gate: which layer */
    struct gemm_matrix *device;  /* [2, experts]: gate and up, then down */
    struct gemm_matrix host[2 * CUDA_MAX_EXPERTS];
};

static const struct gemm_matrix *table_of(struct cuda *c, const struct op_experts *e)
{
    const int n = e->experts;
    struct gemm_table *t = c->gemm_tables;
    while (t && (t->layer != e->gate || t->host[0].w != (const char *)e->gate[0]->data))
        t = t->next;
    if (t) return t->device;
    struct error err;
    t = (struct gemm_table *)cuda_take_host(c, sizeof *t, &err);
    if (!t) return NULL;
    t->device = (struct gemm_matrix *)cuda_take(c, 2 * (size_t)n * sizeof *t->device, &err);
    if (!t->device) return NULL;
    for (int i = 0; i < n; i++) {
        t->host[i] = matrix_of(e->gate[i], e->up[i]);
        t->host[n + i] = matrix_of(e->down[i], NULL);
    }
    cuda_check(c,
               cudaMemcpyAsync(t->device, t->host, 2 * (size_t)n * sizeof *t->device,
                               cudaMemcpyHostToDevice, c->stream),
               "experts");
    t->layer = e->gate;
    t->next = c->gemm_tables;
    c->gemm_tables = t;
    return t->device;
}

/* The picks are those of the last route: r is for the host's eyes. */
void cuda_experts(void *be, const struct op_experts *e, const struct op_routing *r, const float *h,
                  float *y)
{
    struct cuda *c = (struct cuda *)be;
    (void)r;
    cuda_flush(c);
    const int rows = c->batch.n_rows;
    if (rows <= 0) return;
    const struct gemm_matrix *table = table_of(c, e);
    if (!table) {
        cuda_check(c, cudaErrorMemoryAllocation, "experts");
        return;
    }
    gemm_args in = ffn_in(c, e->gate[0], h, rows, e->hidden, e->inner);
    gemm_args out = ffn_out(c, e->down[0], rows, e->hidden, e->inner, c->expert_out);
    in.experts = table;
    out.experts = table + e->experts;
    in.n_experts = out.n_experts = e->experts;
    in.picks = out.picks = c->picks;
    in.gather = true;
    run_type<3>(c, in, e->gate[0]->type, "experts");
    run_type<1>(c, out, e->down[0]->type, "experts");
    cuda_check(c,
               launch_dependent(combine, dim3((unsigned)rows, (unsigned)((e->hidden + 255) / 256)),
                                dim3(256), 0, c->stream, c->picks, e->topk, e->hidden,
                                (const float *)c->expert_out, y),
               "experts");
}
