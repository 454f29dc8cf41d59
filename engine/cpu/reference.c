// SPDX-License-Identifier: Apache-2.0
//
// reference.c: the plainest backend: every operation as a direct loop over row-major FP32 weights,
// one thread. It is the yardstick that faster backends are tested against, and runs with
// --cpu-isa reference. Sums run in double where that costs nothing to read, so that it is also the
// most accurate.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/kernels.h"
#include "engine/cpu/pack.h"
#include "engine/cpu/route.h"
#include "engine/cpu/source.h"
#include "engine/ops.h"
#include "engine/sampler.h"

struct reference {
    struct ops ops;
    struct region *memory;
    struct op_batch batch;
    float **keys, **values; /* [layers] -> [n_blocks, block_size, kv_heads, head_dim] */
    int block_size, context, kv_layers;
    size_t block_numbers; /* numbers of one block in one layer */
    float *scores;        /* [context] */
    float *hidden_tmp;    /* [3 * inner + hidden] one row inside a network */
    int *counts;          /* [experts] */
};

static void *take(struct reference *b, size_t bytes)
{
    return region_alloc(&b->memory, bytes);
}

/* Numbers that feed a product are BF16 in BF16 mode. */
static float rounded(const struct reference *b, double v)
{
    return b->ops.bf16 ? round_bf16((float)v) : (float)v;
}

/* A weight here is [n_out, k] FP32, row-major (data), whatever the file's orientation. */
static int ref_weight_new(void *be, const struct weight_source *src, struct weight **out,
                          struct error *err)
{
    struct reference *b = be;
    struct weight *w = take(b, sizeof *w);
    if (!w) return cfg_fail(err, CFG_ENOMEM, "no memory for a weight");
    w->n_out = (int)(src->transposed ? src->cols : src->rows);
    w->k = (int)(src->transposed ? src->rows : src->cols);
    float *data = take(b, (size_t)w->n_out * (size_t)w->k * sizeof *data);
    float *row = malloc((size_t)src->cols * sizeof *row);
    if (!data || !row) {
        free(row);
        return cfg_fail(err, CFG_ENOMEM, "no memory for a weight of %d x %d", w->n_out, w->k);
    }
    for (int64_t r = 0; r < src->rows; r++) {
        source_read(src, r, 0, src->cols, row);
        for (int64_t c = 0; c < src->cols; c++)
            data[src->transposed ? c * w->k + r : r * w->k + c] = rounded(b, row[c]);
    }
    free(row);
    w->data = data;
    *out = w;
    return CFG_OK;
}

static int ref_table_new(void *be, const struct weight_source *src, struct weight **out,
                         struct error *err)
{
    struct weight *w = take(be, sizeof *w);
    if (!w) return cfg_fail(err, CFG_ENOMEM, "no memory for a weight");
    w->table = *src;
    *out = w;
    return CFG_OK;
}

static int ref_vector_new(void *be, const struct weight_source *src, float **out, struct error *err)
{
    float *v = take(be, (size_t)(src->rows * src->cols) * sizeof *v);
    if (!v) return cfg_fail(err, CFG_ENOMEM, "no memory for a vector");
    for (int64_t r = 0; r < src->rows; r++) source_read(src, r, 0, src->cols, v + r * src->cols);
    *out = v;
    return CFG_OK;
}

static int ref_alloc(void *be, size_t bytes, void **out, struct error *err)
{
    *out = take(be, bytes);
    return *out ? CFG_OK
                : cfg_fail(err, CFG_ENOMEM, "no memory for %zu bytes of activations", bytes);
}

static int ref_kv_new(void *be, int layers, int kv_heads, int head_dim, int n_blocks,
                      int block_size, struct error *err)
{
    struct reference *b = be;
    const size_t n = (size_t)n_blocks * (size_t)block_size * (size_t)(kv_heads * head_dim);
    b->block_size = block_size;
    b->block_numbers = n / (size_t)n_blocks;
    b->kv_layers = layers;
    b->keys = take(b, (size_t)layers * sizeof *b->keys);
    b->values = take(b, (size_t)layers * sizeof *b->values);
    for (int l = 0; b->keys && b->values && l < layers; l++) {
        b->keys[l] = take(b, n * sizeof(float));
        b->values[l] = take(b, n * sizeof(float));
        if (!b->keys[l] || !b->values[l])
            return cfg_fail(err, CFG_ENOMEM, "no memory for the KV cache");
    }
    return b->keys && b->values ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "no memory for the KV cache");
}

static void ref_kv_copy(void *be, int32_t from, int32_t to)
{
    struct reference *b = be;
    for (int l = 0; l < b->kv_layers; l++) {
        memcpy(b->keys[l] + (size_t)to * b->block_numbers,
               b->keys[l] + (size_t)from * b->block_numbers, b->block_numbers * sizeof(float));
        memcpy(b->values[l] + (size_t)to * b->block_numbers,
               b->values[l] + (size_t)from * b->block_numbers, b->block_numbers * sizeof(float));
    }
}

static bool ref_begin(void *be, const struct op_batch *batch)
{
    ((struct reference *)be)->batch = *batch;
    return true;
}

static void ref_embed(void *be, const struct weight *table, float *x)
{
    struct reference *b = be;
    const int64_t hidden = table->table.cols;
    for (int r = 0; r < b->batch.n_rows; r++) {
        source_read(&table->table, b->batch.tokens[r], 0, hidden, x + r * hidden);
        for (int64_t i = 0; i < hidden; i++) x[r * hidden + i] = rounded(b, x[r * hidden + i]);
    }
}

static void ref_rmsnorm(void *be, const float *x, const float *w, float eps, int n_rows, int hidden,
                        float *y)
{
    struct reference *b = be;
    for (int r = 0; r < n_rows; r++, x += hidden, y += hidden) {
        double sum = 0;
        for (int i = 0; i < hidden; i++) sum += (double)x[i] * x[i];
        const double scale = 1.0 / sqrt(sum / hidden + eps);
        for (int i = 0; i < hidden; i++) y[i] = rounded(b, rounded(b, x[i] * scale) * w[i]);
    }
}

static void product(const struct weight *w, const float *x, float *y)
{
    const float *data = w->data;
    for (int n = 0; n < w->n_out; n++) {
        double sum = 0;
        for (int k = 0; k < w->k; k++)
            sum += (double)x[k] * data[(size_t)n * (size_t)w->k + (size_t)k];
        y[n] = (float)sum;
    }
}

static void ref_matmul(void *be, const struct op_matmul *list, int n, int n_rows)
{
    (void)be;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < n_rows; r++)
            product(list[i].w, list[i].x + (size_t)r * (size_t)list[i].w->k,
                    list[i].y + (size_t)r * (size_t)list[i].w->n_out);
}

/* Pairs are (d, d + head_dim/2). */
static void rotate(float *v, int heads, int head_dim, int position, double theta)
{
    const int half = head_dim / 2;
    for (int h = 0; h < heads; h++, v += head_dim)
        for (int d = 0; d < half; d++) {
            const float angle = (float)position * (float)pow(theta, -2.0 * d / head_dim);
            const float c = cosf(angle), s = sinf(angle), a = v[d], o = v[d + half];
            v[d] = a * c - o * s;
            v[d + half] = o * c + a * s;
        }
}

static size_t kv_row(const struct reference *b, const struct op_attention *a, int seq, int position)
{
    const int32_t block = b->batch.block_tables[seq][position / b->block_size];
    return ((size_t)block * (size_t)b->block_size + (size_t)(position % b->block_size)) *
           (size_t)(a->kv_heads * a->head_dim);
}

static void ref_rope_kv(void *be, const struct op_attention *a, float *q, float *k, const float *v)
{
    struct reference *b = be;
    const int width = a->kv_heads * a->head_dim;
    for (int r = 0; r < b->batch.n_rows; r++) {
        const int position = b->batch.positions[r];
        rotate(q + r * a->heads * a->head_dim, a->heads, a->head_dim, position, a->rope_theta);
        rotate(k + r * width, a->kv_heads, a->head_dim, position, a->rope_theta);
        const size_t at = kv_row(b, a, b->batch.seq_of_row[r], position);
        for (int i = 0; i < width; i++) {
            b->keys[a->layer][at + (size_t)i] = rounded(b, k[r * width + i]);
            b->values[a->layer][at + (size_t)i] = rounded(b, v[r * width + i]);
        }
    }
}

static void ref_attention(void *be, const struct op_attention *a, const float *q, float *y)
{
    struct reference *b = be;
    for (int r = 0; r < b->batch.n_rows; r++)
        for (int h = 0; h < a->heads; h++, q += a->head_dim, y += a->head_dim) {
            const int n = b->batch.positions[r] + 1, seq = b->batch.seq_of_row[r];
            const size_t head = (size_t)(h / (a->heads / a->kv_heads) * a->head_dim);
            double top = -INFINITY, sum = 0;
            for (int p = 0; p < n; p++) {
                const float *key = b->keys[a->layer] + kv_row(b, a, seq, p) + head;
                double s = 0;
                for (int d = 0; d < a->head_dim; d++) s += (double)q[d] * key[d];
                b->scores[p] = (float)s;
                top = s > top ? s : top;
            }
            for (int p = 0; p < n; p++) sum += exp(b->scores[p] - top);
            for (int d = 0; d < a->head_dim; d++) {
                double o = 0;
                for (int p = 0; p < n; p++)
                    o += exp(b->scores[p] - top) *
                         b->values[a->layer][kv_row(b, a, seq, p) + head + (size_t)d];
                y[d] = rounded(b, o / sum);
            }
        }
}

/* One row through one network, all of whose weights are row-major. */
static void ffn_row(struct reference *b, const struct op_ffn *w, const float *h, float *y)
{
    float *gate = b->hidden_tmp, *up = gate + 2 * w->inner;
    product(w->gate, h, gate);
    product(w->up, h, up);
    for (int i = 0; i < w->inner; i++) {
        const double g2 = gate[w->inner + i];
        up[i] = rounded(b, gate[i] * (g2 / (1.0 + exp(-g2))) * up[i]);
    }
    product(w->down, up, y);
}

static void ref_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y)
{
    for (int r = 0; r < n_rows; r++) ffn_row(be, w, h + r * w->hidden, y + r * w->hidden);
}

static void ref_add(void *be, float *x, const float *y, int hidden)
{
    struct reference *b = be;
    for (int i = 0; i < b->batch.n_rows * hidden; i++) x[i] += y[i];
}

static void ref_route(void *be, const struct op_route *rt, const float *h,
                      const struct op_routing *out)
{
    struct reference *b = be;
    float *logits = b->hidden_tmp;
    for (int r = 0; r < b->batch.n_rows; r++) {
        for (int e = 0; e < rt->experts; e++) {
            double s = 0;
            for (int i = 0; i < rt->hidden; i++)
                s += (double)h[r * rt->hidden + i] * rt->router[e * rt->hidden + i];
            logits[e] = (float)s;
        }
        route_pick(logits, rt->experts, rt->topk, out->experts + r * rt->topk,
                   out->weights + r * rt->topk);
    }
    route_keep(rt, &b->batch, out, b->counts);
}

static void ref_experts(void *be, const struct op_experts *e, const struct op_routing *rt,
                        const float *h, float *y)
{
    struct reference *b = be;
    float *out = b->hidden_tmp + 3 * e->inner;
    for (int r = 0; r < b->batch.n_rows; r++, h += e->hidden, y += e->hidden) {
        memset(y, 0, (size_t)e->hidden * sizeof *y);
        for (int k = 0; k < e->topk; k++) {
            const int i = r * e->topk + k, x = rt->experts[i];
            if (!rt->kept[i]) continue;
            const struct op_ffn w = {e->gate[x], e->up[x], e->down[x], e->hidden, e->inner};
            ffn_row(b, &w, h, out);
            for (int d = 0; d < e->hidden; d++) y[d] += rt->weights[i] * out[d];
        }
    }
}

static void ref_gather(void *be, const float *x, const int32_t *row_ids, int n, int hidden,
                       float *y)
{
    (void)be;
    for (int i = 0; i < n; i++)
        memcpy(y + (size_t)i * (size_t)hidden, x + (size_t)row_ids[i] * (size_t)hidden,
               (size_t)hidden * sizeof *y);
}

static void ref_sample(void *be, float *logits, int vocab, const struct op_sample *list, int n)
{
    (void)be;
    for (int i = 0; i < n; i++) op_sample_row(logits + (size_t)i * (size_t)vocab, &list[i]);
}

static int ref_sync(void *be, struct error *err)
{
    (void)be;
    (void)err;
    return CFG_OK;
}

static void ref_close(void *be)
{
    struct reference *b = be;
    region_free_all(b->memory);
    free(b);
}

int cpu_reference_open(const struct ops **ops, void **be, const struct backend_options *opt,
                       struct error *err)
{
    static const struct ops table = {
        .name = "cpu-reference",
        .head_rows = CPU_HEAD_ROWS,
        .weight_new = ref_weight_new,
        .vector_new = ref_vector_new,
        .table_new = ref_table_new,
        .alloc = ref_alloc,
        .alloc_host = ref_alloc,
        .kv_new = ref_kv_new,
        .kv_copy = ref_kv_copy,
        .begin = ref_begin,
        .embed = ref_embed,
        .rmsnorm = ref_rmsnorm,
        .matmul = ref_matmul,
        .rope_kv = ref_rope_kv,
        .attention = ref_attention,
        .ffn = ref_ffn,
        .add = ref_add,
        .route = ref_route,
        .experts = ref_experts,
        .gather = ref_gather,
        .sample = ref_sample,
        .read = cpu_read,
        .sync = ref_sync,
        .close = ref_close,
    };
    struct reference *b = calloc(1, sizeof *b);
    if (!b) return cfg_fail(err, CFG_ENOMEM, "no memory for the reference backend");
    b->ops = table;
    b->ops.bf16 = opt->bf16;
    b->context = opt->context;
    b->scores = take(b, (size_t)opt->context * sizeof *b->scores);
    b->hidden_tmp =
        take(b, (size_t)(3 * opt->inner + opt->hidden + opt->experts) * sizeof *b->hidden_tmp);
    b->counts = take(b, (size_t)opt->experts * sizeof *b->counts);
    if (!b->scores || !b->hidden_tmp || !b->counts) {
        ref_close(b);
        return cfg_fail(err, CFG_ENOMEM, "no memory for the reference backend");
    }
    *ops = &b->ops;
    *be = b;
    return CFG_OK;
}
