// SPDX-License-Identifier: Apache-2.0
//
// bench_engine.c: how close the CPU engine comes to what this machine allows. Each figure stands
// beside a ceiling measured in the same run, in interleaved slices, since shared machines drift:
// decode against the read bandwidth of all threads, prefill against the peak rate of fused
// multiply-adds.
//   bench_engine [--model base|DIR] [--threads N] [--isa NAME] [--dtype f32|bf16] [--csv FILE]
#include <getopt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/cpu/kernels.h"
#include "engine/cpu/threads.h"
#include "engine/engine.h"

#define SLICES       7
#define READ_BYTES   ((size_t)768 << 20)
#define DECODE_STEPS 12
#define CONTEXT      512
#define MAX_BATCH    32

struct bench {
    const char *model, *isa, *csv;
    int threads;
    enum cfg_dtype dtype;
    struct threads *pool;
    char *big; /* [READ_BYTES] */
    struct engine *e;
    const struct engine_info *info;
    FILE *out;
};

static volatile uint64_t sink; /* keeps results alive */

/* ---- ceilings -------------------------------------------------------------------------------- */

/* Eight sequential streams a chunk, as weight kernels read. */
static void read_chunk(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const size_t chunk = (size_t)2 << 20, lane = chunk / 8 / sizeof(uint64_t);
    for (size_t c = begin; c < end; c++) {
        const uint64_t *p = (const uint64_t *)(const void *)((const char *)arg + c * chunk);
        uint64_t sum[8][8] = {{0}};
        for (size_t i = 0; i + 8 <= lane; i += 8)
            for (size_t s = 0; s < 8; s++)
                for (size_t j = 0; j < 8; j++) sum[s][j] += p[s * lane + i + j];
        for (size_t s = 0; s < 8; s++)
            for (size_t j = 0; j < 8; j++) sink += sum[s][j];
    }
}

static double read_gbps(struct bench *b)
{
    const double t = cfg_now();
    threads_for(b->pool, READ_BYTES >> 21, 1, read_chunk, b->big);
    return (double)READ_BYTES / 1e9 / (cfg_now() - t);
}

#define PEAK_ROUNDS 2000000
#define DEFINE_PEAK(name, lanes, isa)                                                              \
    __attribute__((target(isa))) static void name(void *arg, size_t begin, size_t end, int thread) \
    {                                                                                              \
        typedef float v __attribute__((vector_size(lanes * 4)));                                   \
        (void)arg, (void)thread;                                                                   \
        for (size_t c = begin; c < end; c++) {                                                     \
            v a[12], x, y;                                                                         \
            for (int i = 0; i < 12; i++) a[i] = (v){0} + (float)i;                                 \
            x = (v){0} + 0.999f + (float)c * 1e-9f, y = (v){0} + 1e-3f;                            \
            for (int r = 0; r < PEAK_ROUNDS; r++) {                                                \
                for (int i = 0; i < 12; i++) a[i] = a[i] * x + y;                                  \
                __asm__ volatile("" : "+v"(x));                                                    \
            }                                                                                      \
            for (int i = 1; i < 12; i++) a[0] += a[i];                                             \
            sink += (uint64_t)a[0][0];                                                             \
        }                                                                                          \
    }
DEFINE_PEAK(peak_avx512, 16, "avx512f")
DEFINE_PEAK(peak_avx2, 8, "avx2,fma")

/* Register-only fused multiply-adds on every thread: no product can be faster (AMX has its own
 * units). */
static double peak_gflops(struct bench *b)
{
    const int n = threads_count(b->pool);
    const bool wide = __builtin_cpu_supports("avx512f");
    const double t = cfg_now();
    threads_for(b->pool, (size_t)n, 1, wide ? peak_avx512 : peak_avx2, NULL);
    return (double)n * PEAK_ROUNDS * 12 * 2 * (wide ? 16 : 8) / 1e9 / (cfg_now() - t);
}

/* The family's own BF16 product on data that stays in the cache: the peak of AMX, where there is
 * AMX. */
static void tile_product(void *arg, size_t begin, size_t end, int thread)
{
    const struct kernels *k = arg;
    static uint16_t w[2][512 * 64], x[2][64 * 512];
    static float y[2][64 * 64];
    for (size_t i = begin; i < end; i++)
        k->gemm_bf16(x[thread % 2], 64, w[thread % 2], 1, 512, y[thread % 2], 64, 64);
}

static double tile_gflops(struct bench *b, const struct kernels *k)
{
    const size_t n = 2000;
    const double t = cfg_now();
    threads_for(b->pool, n, 50, tile_product, (void *)(uintptr_t)k);
    return (double)n * 2 * 64 * 64 * 512 / 1e9 / (cfg_now() - t);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static int fail(const struct error *err)
{
    fprintf(stderr, "bench_engine: %s\n", err->message);
    exit(1);
}

struct chats {
    struct engine_rows rows[MAX_BATCH];
    struct engine_result results[MAX_BATCH];
    int32_t tokens[MAX_BATCH][CONTEXT];
    int32_t blocks[MAX_BATCH][CONTEXT / 16 + 2];
};

static void chats_init(struct bench *b, struct chats *c)
{
    uint32_t r = 1;
    for (int s = 0; s < MAX_BATCH; s++) {
        struct engine_sampling p;
        struct error err;
        engine_sampling_defaults(&p);
        p.temperature = 0;
        for (int i = 0; i < CONTEXT; i++) {
            r = r * 1664525u + 1013904223u;
            c->tokens[s][i] = (int32_t)((r >> 8) % (uint32_t)b->info->usable_vocab);
        }
        for (int i = 0; i < CONTEXT / 16 + 2; i++) c->blocks[s][i] = s * (CONTEXT / 16 + 2) + i;
        c->rows[s] = (struct engine_rows){
            .tokens = c->tokens[s], .blocks = c->blocks[s], .sampled = &c->results[s]};
        if (engine_sampler_new(&c->rows[s].sampler, &p, b->info, NULL, 0, &err) != CFG_OK)
            fail(&err);
    }
}

static double step_seconds(struct bench *b, struct chats *c, int batch, int position, int n_tokens)
{
    struct error err;
    for (int s = 0; s < batch; s++) {
        c->rows[s].position = position;
        c->rows[s].n_tokens = n_tokens;
        c->rows[s].tokens = n_tokens > 1 ? c->tokens[s] : &c->tokens[s][position % CONTEXT];
    }
    const double t = cfg_now();
    if (engine_step(b->e, c->rows, batch, NULL, NULL, &err) != CFG_OK) fail(&err);
    return cfg_now() - t;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

/* Numbers read by one step of `batch` rows, all picks distinct at most: every weight but the
 * embedding. */
static double decode_numbers(const struct engine_info *i, int touched_experts)
{
    const double hidden = i->hidden, ffn = 4.0 * hidden * i->inner;
    const double attention = 2 * hidden * i->head_dim * (i->heads + i->kv_heads);
    return i->layers * (attention + ffn) + i->moe_layers * touched_experts * ffn +
           hidden * i->vocab;
}

static void row(struct bench *b, const char *what, int batch, double ms, double rate,
                const char *unit, double ceiling, double share)
{
    printf("%-22s %5d %10.2f %10.1f %-8s %10.1f %8.2f\n", what, batch, ms, rate, unit, ceiling,
           share);
    if (b->out)
        fprintf(b->out, "%s,%d,%.3f,%.2f,%s,%.2f,%.4f\n", what, batch, ms, rate, unit, ceiling,
                share);
}

/* KV read is counted; experts touched are known for one row only, so the share is given for
 * batch 1. */
static void bench_decode(struct bench *b, struct chats *c, int batch)
{
    double gbps[SLICES], ms[SLICES], share[SLICES];
    const double kv =
        2.0 * b->info->layers * b->info->kv_heads * b->info->head_dim * CONTEXT * batch;
    const double numbers = decode_numbers(b->info, b->info->topk) + kv;
    const double gb = numbers * (b->info->bf16 ? 2 : 4) / 1e9;
    for (int i = 0; i < SLICES; i++) {
        const double before = read_gbps(b);
        double t = 0;
        for (int s = 0; s < DECODE_STEPS; s++) t += step_seconds(b, c, batch, CONTEXT - 1, 1);
        gbps[i] = (before + read_gbps(b)) / 2;
        ms[i] = t / DECODE_STEPS * 1e3;
        share[i] = gb / (t / DECODE_STEPS) / gbps[i];
    }
    const double m = median(ms, SLICES), ceiling = median(gbps, SLICES);
    if (batch == 1)
        row(b, "decode, context 512", batch, m, gb / m * 1e3, "GB/s", ceiling,
            median(share, SLICES));
    else
        row(b, "decode, context 512", batch, m, batch / m * 1e3, "tokens/s", 0, 0);
}

static void bench_prefill(struct bench *b, struct chats *c, int n, const struct kernels *amx)
{
    double peak[SLICES], ms[SLICES], share[SLICES];
    const double hidden = b->info->hidden, vocab = b->info->vocab;
    /* the head runs on the last row only; scores and weighted values add n^2/2 pairs a head */
    const double body = decode_numbers(b->info, b->info->topk) - hidden * vocab;
    const double attention = 2.0 * b->info->layers * b->info->heads * b->info->head_dim * n * n / 2;
    const double gflop = 2 * (body * n + attention + hidden * vocab) / 1e9;
    for (int i = 0; i < SLICES; i++) {
        const double before = amx ? tile_gflops(b, amx) : peak_gflops(b);
        const double t = step_seconds(b, c, 1, 0, n);
        peak[i] = (before + (amx ? tile_gflops(b, amx) : peak_gflops(b))) / 2;
        ms[i] = t * 1e3;
        share[i] = gflop / t / peak[i];
    }
    const double m = median(ms, SLICES);
    char what[32];
    snprintf(what, sizeof what, "prefill, %d tokens", n);
    row(b, what, 1, m, gflop / m * 1e3, "GFLOP/s", median(peak, SLICES), median(share, SLICES));
}

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {{"model", 1, 0, 'm'}, {"threads", 1, 0, 't'},
                                            {"isa", 1, 0, 'i'},   {"dtype", 1, 0, 'd'},
                                            {"csv", 1, 0, 'c'},   {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'm') b->model = optarg;
        if (o == 't') b->threads = atoi(optarg);
        if (o == 'i') b->isa = optarg;
        if (o == 'd') b->dtype = strcmp(optarg, "f32") == 0 ? CFG_DTYPE_F32 : CFG_DTYPE_BF16;
        if (o == 'c') b->csv = optarg;
        if (o == '?') exit(2);
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.model = "base", .isa = "auto", .dtype = CFG_DTYPE_BF16};
    struct error err;
    parse(&b, argc, argv);
    const struct engine_options opt = {.model = b.model,
                                       .dummy = cfg_preset_find(b.model) != NULL,
                                       .dummy_seed = 1,
                                       .device = CFG_DEVICE_CPU,
                                       .dtype = b.dtype,
                                       .cpu_isa = b.isa,
                                       .threads = b.threads,
                                       .block_size = 16,
                                       .max_step_tokens = CONTEXT,
                                       .max_step_seqs = MAX_BATCH,
                                       .kv_bytes = (size_t)2 << 30};
    if (threads_open(&b.pool, b.threads, &err) != CFG_OK ||
        engine_open(&b.e, &opt, &err) != CFG_OK || engine_load(b.e, NULL, &err) != CFG_OK)
        fail(&err);
    b.info = engine_info(b.e);
    b.big = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)madvise(b.big, READ_BYTES, MADV_HUGEPAGE);
    memset(b.big, 1, READ_BYTES);
    struct chats *c = calloc(1, sizeof *c);
    chats_init(&b, c);
    b.out = b.csv ? fopen(b.csv, "w") : NULL;
    if (b.out) fprintf(b.out, "what,batch,ms,rate,unit,ceiling,share\n");

    printf("model %s, %s, %s, %d threads\n", b.model, b.info->backend,
           b.info->bf16 ? "bf16" : "f32", threads_count(b.pool));
    printf("%-22s %5s %10s %10s %-8s %10s %8s\n", "what", "batch", "ms", "rate", "", "ceiling",
           "share");
    for (int s = 0; s < MAX_BATCH; s++) step_seconds(&b, c, 1, 0, 16); /* warm */
    bench_decode(&b, c, 1);
    bench_decode(&b, c, 8);
    bench_decode(&b, c, MAX_BATCH);
    const struct kernels *amx =
        strcmp(b.info->backend, "cpu-amx") == 0 && b.info->bf16 ? kernels_find("amx") : NULL;
    bench_prefill(&b, c, 128, amx);
    bench_prefill(&b, c, CONTEXT, amx);

    if (b.out) fclose(b.out);
    for (int s = 0; s < MAX_BATCH; s++) engine_sampler_free(c->rows[s].sampler);
    free(c);
    munmap(b.big, READ_BYTES);
    engine_close(b.e);
    threads_close(b.pool);
    return 0;
}
