// SPDX-License-Identifier: Apache-2.0
//
// bench_gemm.c: our matrix products beside OpenBLAS (FP32) and oneDNN (BF16) in the same run, at
// the shapes of OpenMoE-Base/16E's dense FFN gate, few rows to many. The libraries may be faster
// somewhere; neither promises that a row's bits do not depend on the number of rows, which is the
// engine's first rule, so the last column says whether row 0 of each batch equalled row 0 computed
// alone.
//   bench_gemm [THREADS]
#include <cblas.h>
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/cpu/fast.h"

#define K        768
#define N        4096
#define COPIES   16 /* matrices in turn, so that weights come from memory as in a decode step */
#define MAX_ROWS 512
#define ROUNDS   5

extern void openblas_set_num_threads(int n);

static float *x, *y, *alone; /* [MAX_ROWS, K], [MAX_ROWS, N], [N] */
static struct error err;

static void fill(float *p, size_t n)
{
    uint32_t r = 1;
    for (size_t i = 0; i < n; i++) {
        r = r * 1664525u + 1013904223u;
        p[i] = round_bf16((float)(r >> 8) * 0x1p-23f - 1.0f);
    }
}

/* One way to compute y = x W^T with the i-th matrix. */
struct way {
    const char *name;
    void (*run)(void *arg, int rows, int i);
    void *arg;
    size_t weight_size;
};

static void measure(const struct way *w, int rows)
{
    double best = 1e9;
    w->run(w->arg, 1, 0);
    memcpy(alone, y, N * sizeof *y);
    w->run(w->arg, rows, 0);
    const int same = memcmp(alone, y, N * sizeof *y) == 0;
    for (int r = 0; r < ROUNDS; r++) {
        const int n = rows > 32 ? 2 : COPIES;
        const double t = cfg_now();
        for (int i = 0; i < n; i++) w->run(w->arg, rows, i);
        const double each = (cfg_now() - t) / n;
        best = each < best ? each : best;
    }
    printf("%-16s %5d %9.3f ms %8.1f GB/s %8.1f GFLOP/s   %s\n", w->name, rows, best * 1e3,
           (double)w->weight_size * K * N / 1e9 / best, 2.0 * rows * K * N / 1e9 / best,
           same ? "same" : "DIFFERENT");
}

/* ---- ours ------------------------------------------------------------------------------------ */

struct ours {
    const struct ops *ops;
    void *be;
    struct weight *w[COPIES];
};

static void run_ours(void *arg, int rows, int i)
{
    struct ours *o = arg;
    const struct op_matmul m = {.w = o->w[i], .x = x, .y = y};
    o->ops->matmul(o->be, &m, 1, rows);
}

static void open_ours(struct ours *o, bool bf16, int threads, const float *weights)
{
    const struct backend_options opt = {.isa = "auto",
                                        .threads = threads,
                                        .bf16 = bf16,
                                        .max_rows = MAX_ROWS,
                                        .hidden = K,
                                        .inner = N,
                                        .experts = 2,
                                        .topk = 2,
                                        .heads = 1,
                                        .head_dim = 64,
                                        .context = 16};
    if (cpu_open(&o->ops, &o->be, &opt, &err) != CFG_OK) exit(1);
    for (int i = 0; i < COPIES; i++) {
        const struct weight_source src = {
            .data = weights, .type = TENSOR_F32, .rows = N, .cols = K};
        if (o->ops->weight_new(o->be, &src, &o->w[i], &err) != CFG_OK) exit(1);
    }
}

/* ---- OpenBLAS, FP32 -------------------------------------------------------------------------- */

static void run_blas(void *arg, int rows, int i)
{
    const float *w = (const float *)arg + (size_t)i * N * K;
    if (rows == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, N, K, 1, w, K, x, 1, 0, y, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, N, K, 1, x, K, w, K, 0, y, N);
}

/* ---- oneDNN, BF16 inputs and weights in the layout it prefers -------------------------------- */

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    uint16_t *x, *w; /* [MAX_ROWS, K], [COPIES, N, K] */
    int rows;        /* of the primitive in hand */
    dnnl_primitive_t matmul;
    dnnl_memory_t src, dst, weights[COPIES];
};

static dnnl_memory_desc_t describe(int64_t a, int64_t b, dnnl_data_type_t type,
                                   dnnl_format_tag_t tag)
{
    const dnnl_dims_t dims = {a, b};
    dnnl_memory_desc_t d;
    dnnl_memory_desc_init_by_tag(&d, 2, dims, type, tag);
    return d;
}

static void run_reorder(struct onednn *o, dnnl_memory_t from, dnnl_memory_t to)
{
    const dnnl_memory_desc_t *a, *b;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t p;
    dnnl_memory_get_memory_desc(from, &a);
    dnnl_memory_get_memory_desc(to, &b);
    dnnl_reorder_primitive_desc_create(&pd, a, o->engine, b, o->engine, NULL);
    dnnl_primitive_create(&p, pd);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    dnnl_primitive_execute(p, o->stream, 2, args);
    dnnl_stream_wait(o->stream);
    dnnl_primitive_destroy(p);
    dnnl_primitive_desc_destroy(pd);
}

/* One primitive per number of rows; weights are brought into the layout it asks for. */
static void prepare(struct onednn *o, int rows)
{
    const dnnl_memory_desc_t s = describe(rows, K, dnnl_bf16, dnnl_ab),
                             any = describe(K, N, dnnl_bf16, dnnl_format_tag_any);
    const dnnl_memory_desc_t d = describe(rows, N, dnnl_f32, dnnl_ab),
                             plain = describe(K, N, dnnl_bf16, dnnl_ba);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_matmul_desc_init(&desc, &s, &any, NULL, &d);
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, o->engine, NULL) != dnnl_success) exit(1);
    dnnl_primitive_create(&o->matmul, pd);
    const dnnl_memory_desc_t *best = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_memory_create(&o->src, &s, o->engine, o->x);
    dnnl_memory_create(&o->dst, &d, o->engine, y);
    for (int i = 0; i < COPIES; i++) {
        dnnl_memory_t file;
        dnnl_memory_create(&file, &plain, o->engine, o->w);
        dnnl_memory_create(&o->weights[i], best, o->engine, DNNL_MEMORY_ALLOCATE);
        run_reorder(o, file, o->weights[i]);
        dnnl_memory_destroy(file);
    }
    dnnl_primitive_desc_destroy(pd);
    o->rows = rows;
}

static void run_onednn(void *arg, int rows, int i)
{
    struct onednn *o = arg;
    if (o->rows != rows) {
        for (int c = 0; o->rows && c < COPIES; c++) dnnl_memory_destroy(o->weights[c]);
        prepare(o, rows);
    }
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, o->src}, {DNNL_ARG_WEIGHTS, o->weights[i]}, {DNNL_ARG_DST, o->dst}};
    dnnl_primitive_execute(o->matmul, o->stream, 3, args);
    dnnl_stream_wait(o->stream);
}

int main(int argc, char **argv)
{
    static const int row_counts[] = {1, 2, 4, 8, 16, 32, 128, 512};
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
    char number[16];
    float *w = malloc((size_t)COPIES * N * K * sizeof *w);
    x = malloc((size_t)MAX_ROWS * K * sizeof *x);
    y = malloc((size_t)MAX_ROWS * N * sizeof *y);
    alone = malloc(N * sizeof *alone);
    fill(x, (size_t)MAX_ROWS * K);
    for (int i = 0; i < COPIES; i++) fill(w + (size_t)i * N * K, (size_t)N * K);
    snprintf(number, sizeof number, "%d", threads);
    setenv("OMP_NUM_THREADS", number, 1);
    openblas_set_num_threads(threads);

    struct ours f32, bf16;
    struct onednn dnn = {0};
    open_ours(&f32, false, threads, w);
    open_ours(&bf16, true, threads, w);
    dnnl_engine_create(&dnn.engine, dnnl_cpu, 0);
    dnnl_stream_create(&dnn.stream, dnn.engine, dnnl_stream_default_flags);
    dnn.x = malloc((size_t)MAX_ROWS * K * sizeof *dnn.x);
    dnn.w = malloc((size_t)N * K * sizeof *dnn.w);
    for (size_t i = 0; i < (size_t)MAX_ROWS * K; i++) dnn.x[i] = f32_to_bf16(x[i]);
    for (size_t i = 0; i < (size_t)N * K; i++) dnn.w[i] = f32_to_bf16(w[i]);

    const struct way ways[] = {{"ours f32", run_ours, &f32, 4},
                               {"OpenBLAS f32", run_blas, w, 4},
                               {"ours bf16", run_ours, &bf16, 2},
                               {"oneDNN bf16", run_onednn, &dnn, 2}};
    printf("y[rows, %d] = x[rows, %d] W^T, %d threads, %s\n", N, K, threads, f32.ops->name);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) measure(&ways[i], row_counts[r]);
    return 0;
}
