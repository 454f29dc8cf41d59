// SPDX-License-Identifier: Apache-2.0
//
// bench_gemm.c: our matrix products beside OpenBLAS and oneDNN in the same run. The libraries may
// be faster somewhere; neither promises that a row's bits do not depend on the number of rows,
// which is the engine's first rule. The first form prints one shape, few rows to many, and in its
// last column whether row 0 of each batch equalled row 0 computed alone. The second prints the
// price of that rule: the time of all products of one decode step of a preset at each batch size,
// ours and the fastest of the others, product by product; picks are taken to spread over as many
// experts as there are. Weights are random and pass through more memory than the caches hold. One
// thread measures.
//
//   bench_gemm [THREADS]
//   bench_gemm THREADS base|8b|34b [f32|bf16] [CSV] [LARGEST BATCH]
#include <cblas.h>
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "engine/cpu/fast.h"

#define MAX_ROWS   512
#define MAX_COPIES 256
#define MEMORY     ((size_t)400 << 20) /* bytes of weights that the copies of one matrix fill */
#define ROUNDS     5

extern void openblas_set_num_threads(int n);

static struct error err;

static void *room(size_t n, size_t size)
{
    void *p = malloc(n * size);
    if (p) return p;
    fprintf(stderr, "bench_gemm: no memory\n");
    exit(1);
}

/* ---- a product and the ways to compute it ---------------------------------------------------- */

struct ours {
    const struct ops *ops; /* NULL: not open */
    void *be;
    struct weight *w[MAX_COPIES];
};

struct onednn {
    dnnl_data_type_t type;
    int rows; /* of the primitive in hand; 0: none */
    bool held;
    dnnl_memory_desc_t layout; /* of the weights */
    dnnl_primitive_t matmul;
    dnnl_memory_t src, dst, weights[MAX_COPIES];
};

/* y[rows, n] = x[rows, k] W^T, `copies` matrices in turn. */
struct product {
    int n, k, copies;
    float *x, *y;  /* [MAX_ROWS, k], [MAX_ROWS, n] */
    uint16_t *x16; /* x in BF16 */
    float *w;      /* [copies, n, k], or NULL */
    uint16_t *w16; /* [n, k], or NULL */
    struct ours f32, bf16;
    struct onednn dnn32, dnn16;
};

enum way { OURS_F32, BLAS_F32, DNN_F32, OURS_BF16, DNN_BF16, WAYS };
static const char *const way_names[WAYS] = {"ours f32", "OpenBLAS f32", "oneDNN f32", "ours bf16",
                                            "oneDNN bf16"};

static dnnl_engine_t dnn_engine;
static dnnl_stream_t dnn_stream;
static int threads = 2;

static float noise(uint32_t *r)
{
    *r = *r * 1664525u + 1013904223u;
    return round_bf16((float)(*r >> 8) * 0x1p-23f - 1.0f);
}

/* ---- ours ------------------------------------------------------------------------------------ */

static void open_ours(const struct product *p, struct ours *o, bool bf16)
{
    const struct backend_options opt = {.isa = "auto",
                                        .threads = threads,
                                        .bf16 = bf16,
                                        .max_rows = MAX_ROWS,
                                        .hidden = p->k > p->n ? p->k : p->n,
                                        .inner = 16,
                                        .experts = 2,
                                        .topk = 2,
                                        .heads = 1,
                                        .head_dim = 64,
                                        .context = 16};
    const struct weight_source src = {.data = bf16 && p->w16 ? (void *)p->w16 : (void *)p->w,
                                      .type = bf16 && p->w16 ? TENSOR_BF16 : TENSOR_F32,
                                      .rows = p->n,
                                      .cols = p->k};
    int rc = cpu_open(&o->ops, &o->be, &opt, &err);
    for (int i = 0; rc == CFG_OK && i < p->copies; i++)
        rc = o->ops->weight_new(o->be, &src, &o->w[i], &err);
    if (rc == CFG_OK) return;
    fprintf(stderr, "bench_gemm: %s\n", err.message);
    exit(1);
}

static void run_ours(const struct product *p, const struct ours *o, int rows, int i)
{
    const struct op_matmul m = {.w = o->w[i], .x = p->x, .y = p->y};
    o->ops->matmul(o->be, &m, 1, rows);
}

/* ---- OpenBLAS -------------------------------------------------------------------------------- */

static void run_blas(const struct product *p, int rows, int i)
{
    const float *w = p->w + (size_t)i * (size_t)p->n * (size_t)p->k;
    if (rows == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, p->n, p->k, 1, w, p->k, p->x, 1, 0, p->y, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, p->n, p->k, 1, p->x, p->k, w,
                    p->k, 0, p->y, p->n);
}

/* ---- oneDNN, weights in the layout it prefers ------------------------------------------------ */

static dnnl_memory_desc_t describe(int64_t a, int64_t b, dnnl_data_type_t type,
                                   dnnl_format_tag_t tag)
{
    const dnnl_dims_t dims = {a, b};
    dnnl_memory_desc_t d;
    dnnl_memory_desc_init_by_tag(&d, 2, dims, type, tag);
    return d;
}

static void run_reorder(dnnl_memory_t from, dnnl_memory_t to)
{
    const dnnl_memory_desc_t *a, *b;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t p;
    dnnl_memory_get_memory_desc(from, &a);
    dnnl_memory_get_memory_desc(to, &b);
    dnnl_reorder_primitive_desc_create(&pd, a, dnn_engine, b, dnn_engine, NULL);
    dnnl_primitive_create(&p, pd);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    dnnl_primitive_execute(p, dnn_stream, 2, args);
    dnnl_stream_wait(dnn_stream);
    dnnl_primitive_destroy(p);
    dnnl_primitive_desc_destroy(pd);
}

static void drop_weights(const struct product *p, struct onednn *o)
{
    for (int i = 0; o->held && i < p->copies; i++) dnnl_memory_destroy(o->weights[i]);
    o->held = false;
}

static void drop_primitive(struct onednn *o)
{
    if (o->rows == 0) return;
    dnnl_primitive_destroy(o->matmul);
    dnnl_memory_destroy(o->src);
    dnnl_memory_destroy(o->dst);
    o->rows = 0;
}

/* One primitive per number of rows; weights are brought into the layout it asks for. */
static void prepare(const struct product *p, struct onednn *o, int rows)
{
    const bool f32 = o->type == dnnl_f32;
    const dnnl_memory_desc_t s = describe(rows, p->k, o->type, dnnl_ab),
                             any = describe(p->k, p->n, o->type, dnnl_format_tag_any);
    const dnnl_memory_desc_t d = describe(rows, p->n, dnnl_f32, dnnl_ab),
                             plain = describe(p->k, p->n, o->type, dnnl_ba);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    drop_primitive(o);
    dnnl_matmul_desc_init(&desc, &s, &any, NULL, &d);
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, dnn_engine, NULL) != dnnl_success) exit(1);
    dnnl_primitive_create(&o->matmul, pd);
    const dnnl_memory_desc_t best = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(pd);
    dnnl_memory_create(&o->src, &s, dnn_engine, f32 ? (void *)p->x : (void *)p->x16);
    dnnl_memory_create(&o->dst, &d, dnn_engine, p->y);
    o->rows = rows;
    if (o->held && dnnl_memory_desc_equal(&best, &o->layout)) return;
    drop_weights(p, o);
    dnnl_memory_t file;
    dnnl_memory_create(&file, &plain, dnn_engine, f32 ? (void *)p->w : (void *)p->w16);
    for (int i = 0; i < p->copies; i++) {
        dnnl_memory_create(&o->weights[i], &best, dnn_engine, DNNL_MEMORY_ALLOCATE);
        run_reorder(file, o->weights[i]);
    }
    dnnl_memory_destroy(file);
    o->layout = best;
    o->held = true;
}

static void run_onednn(const struct product *p, struct onednn *o, int rows, int i)
{
    if (o->rows != rows) prepare(p, o, rows);
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, o->src}, {DNNL_ARG_WEIGHTS, o->weights[i]}, {DNNL_ARG_DST, o->dst}};
    dnnl_primitive_execute(o->matmul, dnn_stream, 3, args);
    dnnl_stream_wait(dnn_stream);
}

/* ---- all ways -------------------------------------------------------------------------------- */

static void run_way(struct product *p, enum way way, int rows, int i)
{
    if (way == OURS_F32) run_ours(p, &p->f32, rows, i);
    if (way == OURS_BF16) run_ours(p, &p->bf16, rows, i);
    if (way == BLAS_F32) run_blas(p, rows, i);
    if (way == DNN_F32) run_onednn(p, &p->dnn32, rows, i);
    if (way == DNN_BF16) run_onednn(p, &p->dnn16, rows, i);
}

static void open_product(struct product *p, int n, int k, int copies, bool f32, bool bf16)
{
    const size_t cells = (size_t)n * (size_t)k;
    uint32_t r = 1;
    *p = (struct product){.n = n, .k = k, .copies = copies};
    p->x = room((size_t)(MAX_ROWS * k), sizeof p->x[0]);
    p->y = room((size_t)MAX_ROWS * (size_t)n, sizeof p->y[0]);
    p->x16 = room((size_t)(MAX_ROWS * k), sizeof p->x16[0]);
    if (f32) p->w = room((size_t)copies * cells, sizeof p->w[0]);
    if (bf16) p->w16 = room(cells, sizeof p->w16[0]);
    for (size_t i = 0; i < (size_t)(MAX_ROWS * k); i++) {
        p->x[i] = noise(&r);
        p->x16[i] = f32_to_bf16(p->x[i]);
    }
    for (size_t i = 0; i < cells; i++) {
        const float w = noise(&r);
        if (f32) p->w[i] = w;
        if (bf16) p->w16[i] = f32_to_bf16(w);
    }
    for (int i = 1; f32 && i < copies; i++)
        memcpy(p->w + (size_t)i * cells, p->w, cells * sizeof p->w[0]);
    if (f32) open_ours(p, &p->f32, false);
    if (bf16) open_ours(p, &p->bf16, true);
    p->dnn32.type = dnnl_f32;
    p->dnn16.type = dnnl_bf16;
}

static void close_product(struct product *p)
{
    drop_primitive(&p->dnn32), drop_weights(p, &p->dnn32);
    drop_primitive(&p->dnn16), drop_weights(p, &p->dnn16);
    if (p->f32.ops) p->f32.ops->close(p->f32.be);
    if (p->bf16.ops) p->bf16.ops->close(p->bf16.be);
    free(p->x), free(p->y), free(p->x16), free(p->w), free(p->w16);
}

/* Seconds of one product: the best of the rounds, the ways in turn, since machines drift. */
static void measure(struct product *p, const bool *wanted, int rows, double *best)
{
    const int n = rows > 32 && p->copies > 2 ? 2 : p->copies;
    for (int way = 0; way < WAYS; way++) {
        best[way] = 1e9;
        if (wanted[way]) run_way(p, (enum way)way, rows, 0);
    }
    for (int r = 0; r < ROUNDS; r++)
        for (int way = 0; way < WAYS; way++) {
            if (!wanted[way]) continue;
            const double t = cfg_now();
            for (int i = 0; i < n; i++) run_way(p, (enum way)way, rows, i);
            const double each = (cfg_now() - t) / n;
            best[way] = each < best[way] ? each : best[way];
        }
}

/* ---- one shape ------------------------------------------------------------------------------- */

static void print_shape(int n, int k)
{
    static const int row_counts[] = {1, 2, 4, 8, 16, 32, 128, 512};
    static const bool all[WAYS] = {true, true, true, true, true};
    struct product p;
    open_product(&p, n, k, 16, true, true);
    float *alone = room((size_t)n, sizeof *alone);
    printf("y[rows, %d] = x[rows, %d] W^T, %d threads, %s\n", n, k, threads, p.f32.ops->name);
    for (size_t c = 0; c < sizeof row_counts / sizeof *row_counts; c++) {
        const int rows = row_counts[c];
        double best[WAYS];
        measure(&p, all, rows, best);
        for (int way = 0; way < WAYS; way++) {
            run_way(&p, (enum way)way, 1, 0);
            memcpy(alone, p.y, (size_t)n * sizeof *alone);
            run_way(&p, (enum way)way, rows, 0);
            const bool same = memcmp(alone, p.y, (size_t)n * sizeof *alone) == 0;
            const double bytes = (way < OURS_BF16 ? 4.0 : 2.0) * k * n;
            printf("%-16s %5d %9.3f ms %8.1f GB/s %8.1f GFLOP/s   %s\n", way_names[way], rows,
                   best[way] * 1e3, bytes / 1e9 / best[way], 2.0 * rows * k * n / 1e9 / best[way],
                   same ? "same" : "DIFFERENT");
        }
    }
    free(alone);
    close_product(&p);
}

/* ---- a decode step --------------------------------------------------------------------------- */

enum { BATCHES = 9, PARTS = 4 }; /* batches 1, 2, 4 .. 256 */
static const char *const part_names[PARTS] = {"attention", "dense FFN", "experts", "head"};

struct shape {
    int n, k;
    int times[PARTS]; /* in one step; of experts: in each expert of all layers */
    double ours[BATCHES], other[BATCHES];
};

static int list_shapes(const struct cfg_preset *m, struct shape *s)
{
    const int q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, l = m->layers;
    const int moe = l / m->moe_interval;
    const struct shape all[] = {
        {.n = q, .k = m->hidden, .times = {l}},
        {.n = kv, .k = m->hidden, .times = {2 * l}},
        {.n = m->hidden, .k = q, .times = {l}},
        {.n = 2 * m->inner, .k = m->hidden, .times = {0, l, moe}},
        {.n = m->inner, .k = m->hidden, .times = {0, l, moe}},
        {.n = m->hidden, .k = m->inner, .times = {0, l, moe}},
        {.n = m->vocab, .k = m->hidden, .times = {0, 0, 0, 1}},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int at = 0;
        while (at < n && (s[at].n != all[i].n || s[at].k != all[i].k)) at++;
        if (at == n) s[n++] = (struct shape){.n = all[i].n, .k = all[i].k};
        for (int p = 0; p < PARTS; p++) s[at].times[p] += all[i].times[p];
    }
    return n;
}

static void measure_shape(struct shape *s, bool bf16, int batches)
{
    const bool wanted[WAYS] = {!bf16, !bf16, !bf16, bf16, bf16};
    const size_t bytes = (size_t)s->n * (size_t)s->k * (bf16 ? 2 : 4);
    const size_t copies = MEMORY / bytes;
    struct product p;
    open_product(&p, s->n, s->k,
                 copies < 1            ? 1
                 : copies > MAX_COPIES ? MAX_COPIES
                                       : (int)copies,
                 !bf16, bf16);
    for (int b = 0; b < batches; b++) {
        double best[WAYS];
        measure(&p, wanted, 1 << b, best);
        s->ours[b] = best[bf16 ? OURS_BF16 : OURS_F32];
        s->other[b] = 1e9;
        for (int way = 0; way < WAYS; way++)
            if (way != OURS_F32 && way != OURS_BF16 && best[way] < s->other[b])
                s->other[b] = best[way];
    }
    close_product(&p);
}

static int log2_up(int x)
{
    int i = 0;
    while (1 << i < x) i++;
    return i;
}

/* Milliseconds of one part of the step at batch 2^b. */
static double part_ms(const struct cfg_preset *m, const struct shape *s, int n, int part, int b,
                      bool ours)
{
    const int picks = (1 << b) * m->topk, experts = picks < m->experts ? picks : m->experts;
    const bool routed = part == 2;
    const int at = routed ? log2_up((picks + experts - 1) / experts) : b;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += s[i].times[part] * (routed ? experts : 1) * (ours ? s[i].ours[at] : s[i].other[at]);
    return sum * 1e3;
}

static void print_step(const struct cfg_preset *m, bool bf16, int batches, const char *csv)
{
    struct shape s[8];
    const int n = list_shapes(m, s);
    FILE *out = csv ? fopen(csv, "w") : NULL;
    for (int i = 0; i < n; i++) measure_shape(&s[i], bf16, batches);
    printf(
        "All products of one decode step, %s in %s, %d threads: milliseconds, ours and %s.\n"
        "ratio: ours over theirs (above 1: the price of bits that company can't change), of the\n"
        "whole and of its parts\n%5s %9s %9s %6s",
        m->name, bf16 ? "BF16" : "FP32", threads,
        bf16 ? "oneDNN's" : "for each product the faster of OpenBLAS and oneDNN", "batch", "ours",
        "theirs", "ratio");
    for (int p = 0; p < PARTS; p++) printf(" %10s", part_names[p]);
    printf("\n");
    if (out) fprintf(out, "preset,type,batch,part,ours_ms,theirs_ms\n");
    for (int b = 0; b < batches; b++) {
        double ours[PARTS], other[PARTS], sum = 0, others = 0;
        for (int p = 0; p < PARTS; p++) {
            sum += ours[p] = part_ms(m, s, n, p, b, true);
            others += other[p] = part_ms(m, s, n, p, b, false);
            if (out)
                fprintf(out, "%s,%s,%d,%s,%.4f,%.4f\n", m->name, bf16 ? "bf16" : "f32", 1 << b,
                        part_names[p], ours[p], other[p]);
        }
        printf("%5d %9.2f %9.2f %6.2f", 1 << b, sum, others, sum / others);
        for (int p = 0; p < PARTS; p++) printf(" %10.2f", ours[p] / other[p]);
        printf("\n");
    }
    if (out) fclose(out);
}

/* oneDNN's threads are OpenMP's, which reads its variable before main: where that is not set, the
 * program starts anew with it. */
static void set_threads(char **argv)
{
    const char *known = getenv("OMP_NUM_THREADS");
    char number[16];
    snprintf(number, sizeof number, "%d", threads);
    openblas_set_num_threads(threads);
    if (known && strcmp(known, number) == 0) return;
    setenv("OMP_NUM_THREADS", number, 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    if (argc > 1) threads = atoi(argv[1]);
    set_threads(argv);
    dnnl_engine_create(&dnn_engine, dnnl_cpu, 0);
    dnnl_stream_create(&dnn_stream, dnn_engine, dnnl_stream_default_flags);
    if (argc > 2) {
        const struct cfg_preset *m = cfg_preset_find(argv[2]);
        const int largest = argc > 5 ? atoi(argv[5]) : 1 << (BATCHES - 1);
        if (!m || largest < 1 || log2_up(largest) >= BATCHES) {
            fprintf(stderr, "bench_gemm [THREADS [base|8b|34b [f32|bf16 [CSV [BATCH]]]]]\n");
            return 2;
        }
        print_step(m, argc < 4 || strcmp(argv[3], "f32") != 0, log2_up(largest) + 1,
                   argc > 4 ? argv[4] : NULL);
    } else {
        print_shape(4096, 768);
    }
    dnnl_stream_destroy(dnn_stream);
    dnnl_engine_destroy(dnn_engine);
    return 0;
}
