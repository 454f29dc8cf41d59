// SPDX-License-Identifier: Apache-2.0
//
// fast.c: the CPU backend in use: packed weights (pack.c), kernels chosen at run time (kernels.h),
// work shared over the compute threads. Row operations with little to do stay on the calling
// thread.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/fast.h"
#include "engine/cpu/route.h"
#include "engine/cpu/source.h"
#include "engine/sampler.h"

static int no_memory(const char *what, size_t bytes, struct error *err)
{
    return cfg_fail(err, CFG_ENOMEM, "no memory for %s (%.1f MB)", what, (double)bytes / 1e6);
}

/* ---- load time ------------------------------------------------------------------------------- */

static int fast_weight_new(void *be, const struct weight_source *src, struct weight **out,
                           struct error *err)
{
    struct fast *f = be;
    struct weight *w = region_alloc(&f->memory, sizeof *w);
    if (!w) return no_memory("a weight", sizeof *w, err);
    weight_layout(w, src, f->k, f->ops.bf16);
    w->data = region_alloc(&f->memory, weight_bytes(w));
    if (!w->data) return no_memory("a weight", weight_bytes(w), err);
    weight_pack(w, src, f->k, f->threads);
    *out = w;
    return CFG_OK;
}

static int fast_table_new(void *be, const struct weight_source *src, struct weight **out,
                          struct error *err)
{
    struct fast *f = be;
    struct weight *w = region_alloc(&f->memory, sizeof *w);
    if (!w) return no_memory("a table", sizeof *w, err);
    w->table = *src;
    *out = w;
    return CFG_OK;
}

static int fast_vector_new(void *be, const struct weight_source *src, float **out,
                           struct error *err)
{
    struct fast *f = be;
    const size_t bytes = (size_t)(src->rows * src->cols) * sizeof(float);
    float *v = region_alloc(&f->memory, bytes);
    if (!v) return no_memory("a vector", bytes, err);
    for (int64_t r = 0; r < src->rows; r++) source_read(src, r, 0, src->cols, v + r * src->cols);
    *out = v;
    return CFG_OK;
}

static int fast_alloc(void *be, size_t bytes, void **out, struct error *err)
{
    struct fast *f = be;
    *out = region_alloc(&f->memory, bytes);
    return *out ? CFG_OK : no_memory("activations", bytes, err);
}

static int fast_kv_new(void *be, int layers, int kv_heads, int head_dim, int n_blocks,
                       int block_size, struct error *err)
{
    struct fast *f = be;
    const size_t bytes = (size_t)n_blocks * (size_t)block_size * (size_t)(kv_heads * head_dim) *
                         (f->ops.bf16 ? sizeof(uint16_t) : sizeof(float));
    f->block_size = block_size;
    f->block_bytes = bytes / (size_t)n_blocks;
    f->kv_layers = layers;
    f->kv_heads = kv_heads;
    f->keys = region_alloc(&f->memory, (size_t)layers * sizeof *f->keys);
    f->values = region_alloc(&f->memory, (size_t)layers * sizeof *f->values);
    if (!f->keys || !f->values) return no_memory("the KV cache", bytes, err);
    for (int l = 0; l < layers; l++) {
        f->keys[l] = region_alloc(&f->memory, bytes);
        f->values[l] = region_alloc(&f->memory, bytes);
        if (!f->keys[l] || !f->values[l])
            return no_memory("the KV cache", bytes * 2 * (size_t)layers, err);
    }
    return CFG_OK;
}

static void fast_kv_copy(void *be, int32_t from, int32_t to)
{
    struct fast *f = be;
    for (int l = 0; l < f->kv_layers; l++) {
        memcpy((char *)f->keys[l] + (size_t)to * f->block_bytes,
               (const char *)f->keys[l] + (size_t)from * f->block_bytes, f->block_bytes);
        memcpy((char *)f->values[l] + (size_t)to * f->block_bytes,
               (const char *)f->values[l] + (size_t)from * f->block_bytes, f->block_bytes);
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

static bool fast_begin(void *be, const struct op_batch *batch)
{
    ((struct fast *)be)->batch = *batch;
    return true;
}

static void fast_embed(void *be, const struct weight *table, float *x)
{
    struct fast *f = be;
    const int64_t hidden = table->table.cols;
    for (int r = 0; r < f->batch.n_rows; r++, x += hidden) {
        source_read(&table->table, f->batch.tokens[r], 0, hidden, x);
        if (f->ops.bf16)
            for (int64_t i = 0; i < hidden; i++) x[i] = round_bf16(x[i]);
    }
}

struct rows_region {
    struct fast *f;
    const struct op_attention *a;
    const struct op_route *rt;
    const struct op_routing *routing;
    const struct op_sample *samples;
    const float *x, *w, *v;
    float *y, *q, *k;
    float eps;
    int hidden;
};

/* Runs fn over the step's rows: on one thread unless a row's cost makes sharing worth it. */
static void for_rows(struct fast *f, int n_rows, size_t work_per_row, threads_fn *fn,
                     struct rows_region *r)
{
    r->f = f;
    threads_for(f->threads, (size_t)n_rows, INLINE_WORK / (work_per_row + 1) + 1, fn, r);
}

static void rmsnorm_rows(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct rows_region *r = arg;
    for (size_t i = begin; i < end; i++)
        r->f->k->rmsnorm(r->x + i * (size_t)r->hidden, r->w, r->eps, r->hidden, r->f->ops.bf16,
                         r->y + i * (size_t)r->hidden);
}

static void fast_rmsnorm(void *be, const float *x, const float *w, float eps, int n_rows,
                         int hidden, float *y)
{
    struct rows_region r = {.x = x, .w = w, .eps = eps, .hidden = hidden, .y = y};
    for_rows(be, n_rows, 4 * (size_t)hidden, rmsnorm_rows, &r);
}

static void fast_add(void *be, float *x, const float *y, int hidden)
{
    struct fast *f = be;
    const size_t n = (size_t)f->batch.n_rows * (size_t)hidden;
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

static void fast_gather(void *be, const float *x, const int32_t *row_ids, int n, int hidden,
                        float *y)
{
    (void)be;
    for (int i = 0; i < n; i++)
        memcpy(y + (size_t)i * (size_t)hidden, x + (size_t)row_ids[i] * (size_t)hidden,
               (size_t)hidden * sizeof *y);
}

static void route_rows(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct rows_region *r = arg;
    const struct op_route *rt = r->rt;
    float logits[FAST_MAX_EXPERTS];
    for (size_t i = begin; i < end; i++) {
        for (int e = 0; e < rt->experts; e++)
            logits[e] = r->f->k->dot(r->x + i * (size_t)rt->hidden, rt->router + e * rt->hidden,
                                     rt->hidden);
        route_pick(logits, rt->experts, rt->topk, r->routing->experts + i * (size_t)rt->topk,
                   r->routing->weights + i * (size_t)rt->topk);
    }
}

static void fast_route(void *be, const struct op_route *rt, const float *h,
                       const struct op_routing *out)
{
    struct fast *f = be;
    struct rows_region r = {.rt = rt, .routing = out, .x = h};
    for_rows(f, f->batch.n_rows, (size_t)(rt->experts * rt->hidden), route_rows, &r);
    route_keep(rt, &f->batch, out, f->counts);
}

static void sample_rows(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct rows_region *r = arg;
    for (size_t i = begin; i < end; i++)
        op_sample_row(r->y + i * (size_t)r->hidden, &r->samples[i]);
}

static void fast_sample(void *be, float *logits, int vocab, const struct op_sample *list, int n)
{
    struct rows_region r = {.samples = list, .y = logits, .hidden = vocab};
    for_rows(be, n, 20 * (size_t)vocab, sample_rows, &r);
}

/* ---- attention ------------------------------------------------------------------------------- */

static void rope_tables(struct fast *f, const struct op_attention *a)
{
    const int half = a->head_dim / 2;
    f->rope_dim = a->head_dim;
    f->rope_theta = a->rope_theta;
    for (int d = 0; d < half; d++) {
        /* as published: frequencies and angles in FP32 */
        const float frequency = (float)pow((double)a->rope_theta, -2.0 * d / a->head_dim);
        for (int p = 0; p < f->context; p++) {
            const size_t at = (size_t)p * (size_t)half + (size_t)d;
            f->cosines[at] = cosf((float)p * frequency);
            f->sines[at] = sinf((float)p * frequency);
        }
    }
}

/* Pairs are (d, d + head_dim/2). */
static void rotate(const struct fast *f, float *v, int heads, int head_dim, int position)
{
    const int half = head_dim / 2;
    const float *c = f->cosines + (size_t)position * (size_t)half,
                *s = f->sines + (size_t)position * (size_t)half;
    for (int h = 0; h < heads; h++, v += head_dim)
        for (int d = 0; d < half; d++) {
            const float a = v[d], b = v[d + half];
            v[d] = a * c[d] - b * s[d];
            v[d + half] = b * c[d] + a * s[d];
        }
}

/* Numbers of one head in one block, keys or values. */
static size_t head_elems(const struct fast *f, int head_dim)
{
    return (size_t)f->block_size * (size_t)head_dim;
}

static void store_kv(const struct fast *f, const struct op_attention *a, int row, const float *k,
                     const float *v)
{
    const int position = f->batch.positions[row], slot = position % f->block_size, hd = a->head_dim;
    const int32_t block = f->batch.block_tables[f->batch.seq_of_row[row]][position / f->block_size];
    for (int h = 0; h < a->kv_heads; h++, k += hd, v += hd) {
        const size_t at = ((size_t)block * (size_t)a->kv_heads + (size_t)h) * head_elems(f, hd);
        const size_t key = at + (size_t)(slot / 16 * hd * 16 + slot % 16),
                     value = at + (size_t)(slot * hd);
        if (f->ops.bf16) {
            uint16_t *ks = (uint16_t *)f->keys[a->layer] + key,
                     *vs = (uint16_t *)f->values[a->layer] + value;
            for (int d = 0; d < hd; d++) ks[d * 16] = f32_to_bf16(k[d]);
            for (int d = 0; d < hd; d++) vs[d] = f32_to_bf16(v[d]);
        } else {
            float *ks = (float *)f->keys[a->layer] + key;
            for (int d = 0; d < hd; d++) ks[d * 16] = k[d];
            memcpy((float *)f->values[a->layer] + value, v, (size_t)hd * sizeof *v);
        }
    }
}

static void rope_rows(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct rows_region *r = arg;
    const struct op_attention *a = r->a;
    const size_t width = (size_t)(a->kv_heads * a->head_dim);
    for (size_t i = begin; i < end; i++) {
        const int position = r->f->batch.positions[i];
        rotate(r->f, r->q + i * (size_t)(a->heads * a->head_dim), a->heads, a->head_dim, position);
        rotate(r->f, r->k + i * width, a->kv_heads, a->head_dim, position);
        store_kv(r->f, a, (int)i, r->k + i * width, r->v + i * width);
    }
}

static void fast_rope_kv(void *be, const struct op_attention *a, float *q, float *k, const float *v)
{
    struct fast *f = be;
    if (f->rope_dim != a->head_dim || f->rope_theta != a->rope_theta) rope_tables(f, a);
    struct rows_region r = {.a = a, .q = q, .k = k, .v = v};
    for_rows(f, f->batch.n_rows, (size_t)((a->heads + 4 * a->kv_heads) * a->head_dim), rope_rows,
             &r);
}

/* An item is one head of one row. */
static void attend_items(void *arg, size_t begin, size_t end, int thread)
{
    const struct rows_region *r = arg;
    const struct op_attention *a = r->a;
    const struct fast *f = r->f;
    float *scores = f->scores + (size_t)thread * (size_t)(f->context + 16);
    const size_t stride = (size_t)a->kv_heads * head_elems(f, a->head_dim);
    for (size_t i = begin; i < end; i++) {
        const int row = (int)(i / (size_t)a->heads), head = (int)(i % (size_t)a->heads);
        const int n = f->batch.positions[row] + 1;
        const int32_t *table = f->batch.block_tables[f->batch.seq_of_row[row]];
        const size_t at = (size_t)(head / (a->heads / a->kv_heads)) * head_elems(f, a->head_dim);
        const float *q = r->x + i * (size_t)a->head_dim;
        float *y = r->y + i * (size_t)a->head_dim;
        if (f->ops.bf16)
            f->k->attend_bf16(q, a->head_dim, n, table, f->block_size,
                              (const uint16_t *)f->keys[a->layer] + at,
                              (const uint16_t *)f->values[a->layer] + at, stride, scores, true, y);
        else
            f->k->attend_f32(q, a->head_dim, n, table, f->block_size,
                             (const float *)f->keys[a->layer] + at,
                             (const float *)f->values[a->layer] + at, stride, scores, false, y);
    }
}

static void fast_attention(void *be, const struct op_attention *a, const float *q, float *y)
{
    struct fast *f = be;
    struct rows_region r = {.f = f, .a = a, .x = q, .y = y};
    size_t positions = 0;
    for (int i = 0; i < f->batch.n_rows; i++) positions += (size_t)f->batch.positions[i] + 1;
    const size_t items = (size_t)f->batch.n_rows * (size_t)a->heads;
    const size_t work = positions * (size_t)(a->heads * a->head_dim) * 2;
    /* chunks of INLINE_WORK each, on the average row */
    const size_t chunk = (size_t)((double)items * INLINE_WORK / ((double)work + 1)) + 1;
    threads_for(f->threads, items, chunk, attend_items, &r);
}

/* ---- open, sync, close ----------------------------------------------------------------------- */

static int fast_sync(void *be, struct error *err)
{
    (void)be;
    (void)err;
    return CFG_OK;
}

static void fast_close(void *be)
{
    struct fast *f = be;
    threads_close(f->threads);
    region_free_all(f->memory);
    free(f);
}

static int allocate_scratch(struct fast *f, const struct backend_options *opt, struct error *err)
{
    const size_t picks = (size_t)opt->max_rows * (size_t)opt->topk, inner = (size_t)opt->inner;
    const size_t hidden = (size_t)opt->hidden, experts = (size_t)opt->experts;
    const size_t half = (size_t)opt->head_dim / 2 + 1, context = (size_t)opt->context;
    size_t widest = (size_t)(opt->heads * opt->head_dim);
    widest = widest > inner ? widest : inner;
    widest = (widest > hidden ? widest : hidden) + 64;
    struct {
        void **at;
        size_t bytes;
    } wanted[] = {
        {(void **)&f->counts, experts * sizeof *f->counts},
        {(void **)&f->starts, (experts + 1) * sizeof *f->starts},
        {(void **)&f->pick_at, picks * sizeof *f->pick_at},
        {(void **)&f->grouped, picks * hidden * sizeof *f->grouped},
        {(void **)&f->gate, picks * 2 * inner * sizeof *f->gate},
        {(void **)&f->up, picks * inner * sizeof *f->up},
        {(void **)&f->cosines, context * half * sizeof *f->cosines},
        {(void **)&f->sines, context * half * sizeof *f->sines},
        {(void **)&f->scores,
         (size_t)threads_count(f->threads) * (context + 16) * sizeof *f->scores},
        {(void **)&f->packed, picks * widest * sizeof(float) + experts * 64},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].at = region_alloc(&f->memory, wanted[i].bytes + 64);
        if (!*wanted[i].at) return no_memory("activations", wanted[i].bytes, err);
    }
    return CFG_OK;
}

int cpu_open(const struct ops **ops, void **be, const struct backend_options *opt,
             struct error *err)
{
    static const struct ops table = {
        .head_rows = CPU_HEAD_ROWS,
        .weight_new = fast_weight_new,
        .vector_new = fast_vector_new,
        .table_new = fast_table_new,
        .alloc = fast_alloc,
        .alloc_host = fast_alloc,
        .kv_new = fast_kv_new,
        .kv_copy = fast_kv_copy,
        .begin = fast_begin,
        .embed = fast_embed,
        .rmsnorm = fast_rmsnorm,
        .matmul = fast_matmul,
        .rope_kv = fast_rope_kv,
        .attention = fast_attention,
        .ffn = fast_ffn,
        .add = fast_add,
        .route = fast_route,
        .experts = fast_experts,
        .gather = fast_gather,
        .sample = fast_sample,
        .read = cpu_read,
        .sync = fast_sync,
        .close = fast_close,
    };
    const struct kernels *k = kernels_find(opt->isa);
    if (!k)
        return cfg_fail(err, CFG_EUNSUPPORTED, "--cpu-isa: this machine can't run \"%s\"",
                        opt->isa);
    if (opt->experts > FAST_MAX_EXPERTS)
        return cfg_fail(err, CFG_EUNSUPPORTED, "%d experts are more than the CPU backend's %d",
                        opt->experts, FAST_MAX_EXPERTS);
    struct fast *f = calloc(1, sizeof *f);
    if (!f) return no_memory("the CPU backend", sizeof *f, err);
    f->ops = table;
    f->ops.bf16 = opt->bf16;
    f->ops.name = k->backend;
    f->k = k;
    f->max_rows = opt->max_rows;
    f->context = opt->context;
    int rc = threads_open(&f->threads, opt->threads, err);
    if (rc == CFG_OK) rc = allocate_scratch(f, opt, err);
    if (rc != CFG_OK) {
        fast_close(f);
        return rc;
    }
    *ops = &f->ops;
    *be = f;
    return CFG_OK;
}
