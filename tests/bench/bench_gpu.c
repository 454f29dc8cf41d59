// SPDX-License-Identifier: Apache-2.0
//
// bench_gpu.c: how close the engine comes to what a GPU allows: time of whole steps, as the
// scheduler calls them, with sampling. Decode stands beside the bytes that the step must read
// (every weight it touches once, keys and values) at the bandwidth that --gbps gives, prefill
// beside its multiplications at --tflops; tests/gpu/ceilings.py measures both. Which experts a step
// touches is counted, not guessed.
//   bench_gpu [--model 8b|base|34b] [--small] [--gbps N] [--tflops N] [--device cpu]
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

#define MAX_BATCH   256
#define STEP_ROWS   8192
#define MAX_LENGTH  2048
#define MAX_EXPERTS 1024
#define WARM        3 /* steps ahead of the timed ones: the second is recorded, the third replayed */

struct bench {
    const char *model;
    bool small; /* 8-bit weights, keys and values */
    double gbps, tflops;
    enum cfg_device device;
    struct engine *e;
    const struct engine_info *info;
    struct engine_rows rows[MAX_BATCH];
    struct engine_result results[MAX_BATCH];
    int32_t *tokens; /* [MAX_BATCH, MAX_LENGTH] */
    int32_t *blocks; /* [MAX_BATCH, MAX_LENGTH / 16] */
    struct engine_routing routing;
};

static int fail(const char *why)
{
    fprintf(stderr, "bench_gpu: %s\n", why);
    exit(1);
}

static void *room(size_t n, size_t size)
{
    void *p = calloc(n, size);
    if (!p) fail("no memory");
    return p;
}

/* Sequences share the pool's blocks when there are more than it holds: what is read then is as
 * much.
 */
static void fill_sequences(struct bench *b)
{
    const int per_seq = MAX_LENGTH / 16;
    uint32_t r = 1;
    b->tokens = room((size_t)MAX_BATCH * MAX_LENGTH, sizeof *b->tokens);
    b->blocks = room((size_t)(MAX_BATCH * per_seq), sizeof *b->blocks);
    for (int s = 0; s < MAX_BATCH; s++) {
        struct engine_sampling p;
        struct error err;
        engine_sampling_defaults(&p);
        p.temperature = 0;
        for (int i = 0; i < MAX_LENGTH; i++) {
            r = r * 1664525u + 1013904223u;
            b->tokens[s * MAX_LENGTH + i] = (int32_t)((r >> 8) % (uint32_t)b->info->usable_vocab);
        }
        for (int i = 0; i < per_seq; i++)
            b->blocks[s * per_seq + i] = (s * per_seq + i) % b->info->n_blocks;
        b->rows[s] = (struct engine_rows){.tokens = b->tokens + s * MAX_LENGTH,
                                          .blocks = b->blocks + s * per_seq,
                                          .sampled = &b->results[s]};
        if (engine_sampler_new(&b->rows[s].sampler, &p, b->info, NULL, 0, &err)) fail(err.message);
    }
    const size_t picks = (size_t)(b->info->moe_layers * b->info->topk) * STEP_ROWS;
    b->routing.experts = room(picks, sizeof *b->routing.experts);
    b->routing.weights = room(picks, sizeof *b->routing.weights);
    b->routing.kept = room(picks, sizeof *b->routing.kept);
}

static double step(struct bench *b, int batch, int position, int n_tokens)
{
    struct error err;
    for (int s = 0; s < batch; s++) {
        b->rows[s].position = position;
        b->rows[s].n_tokens = n_tokens;
        b->rows[s].tokens = b->tokens + s * MAX_LENGTH + position;
    }
    const double t = cfg_now();
    if (engine_step(b->e, b->rows, batch, NULL, &b->routing, &err)) fail(err.message);
    return cfg_now() - t;
}

static int by_value(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static double median_step(struct bench *b, int batch, int position, int n_tokens, int rounds)
{
    double t[101];
    for (int i = 0; i < WARM; i++) (void)step(b, batch, position, n_tokens);
    for (int i = 0; i < rounds; i++) t[i] = step(b, batch, position, n_tokens);
    qsort(t, (size_t)rounds, sizeof *t, by_value);
    return t[rounds / 2];
}

/* Experts that the last step touched, summed over the MoE layers. */
static int touched(const struct bench *b, int rows)
{
    int n = 0;
    for (int l = 0; l < b->info->moe_layers; l++) {
        char seen[MAX_EXPERTS] = {0};
        const int32_t *picks = b->routing.experts + (size_t)l * (size_t)(rows * b->info->topk);
        for (int i = 0; i < rows * b->info->topk; i++) {
            n += !seen[picks[i]];
            seen[picks[i]] = 1;
        }
    }
    return n;
}

/* Numbers of all weights outside experts and head, and of one expert. */
static double dense_numbers(const struct engine_info *i)
{
    const double attention = 2.0 * i->hidden * i->head_dim * (i->heads + i->kv_heads);
    return i->layers * (attention + 4.0 * i->hidden * i->inner);
}

static double expert_numbers(const struct engine_info *i)
{
    return 4.0 * i->hidden * i->inner;
}

static void bench_decode(struct bench *b, int batch, int context)
{
    const struct engine_info *i = b->info;
    if (context > i->context) return;
    const double t = median_step(b, batch, context - 1, 1, 21);
    const int experts = touched(b, batch);
    const double weights =
        dense_numbers(i) + experts * expert_numbers(i) + (double)i->hidden * i->vocab;
    const double kv = 2.0 * i->layers * i->kv_heads * i->head_dim * context * batch;
    const double bytes = (weights + kv) * (b->small ? 1 : i->bf16 ? 2 : 4);
    printf("decode  %5d %6d %9.3f ms %9.0f tokens/s %7.0f GB/s", batch, context, t * 1e3, batch / t,
           bytes / t / 1e9);
    if (b->gbps > 0)
        printf("  floor %8.3f ms, share %.2f", bytes / b->gbps / 1e6, bytes / t / 1e9 / b->gbps);
    printf("  experts %d\n", experts);
    fflush(stdout);
}

/* The head runs on each sequence's last row only. */
static void bench_prefill(struct bench *b, int batch, int length)
{
    const struct engine_info *i = b->info;
    const double rows = (double)batch * length;
    if (length > i->context) return;
    const double t = median_step(b, batch, 0, length, 7);
    const double body = dense_numbers(i) + (double)i->moe_layers * i->topk * expert_numbers(i);
    const double attention = 2.0 * i->layers * i->heads * i->head_dim * length * length / 2 * batch;
    const double flop = 2 * (body * rows + attention + (double)i->hidden * i->vocab * batch);
    printf("prefill %5d %6d %9.3f ms %9.0f tokens/s %7.1f TFLOP/s", batch, length, t * 1e3,
           rows / t, flop / t / 1e12);
    if (b->tflops > 0) printf("  share %.2f", flop / t / 1e12 / b->tflops);
    printf("\n");
    fflush(stdout);
}

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {{"model", 1, 0, 'm'},  {"small", 0, 0, 's'},
                                            {"gbps", 1, 0, 'g'},   {"tflops", 1, 0, 't'},
                                            {"device", 1, 0, 'd'}, {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'm') b->model = optarg;
        if (o == 's') b->small = true;
        if (o == 'g') b->gbps = atof(optarg);
        if (o == 't') b->tflops = atof(optarg);
        if (o == 'd' && strcmp(optarg, "cpu") == 0) b->device = CFG_DEVICE_CPU;
        if (o == '?') exit(2);
    }
}

int main(int argc, char **argv)
{
    static const int batches[] = {1, 8, 32, 64, 128, 256}, contexts[] = {512, 1500};
    static const int prompts[] = {128, 512, 2048};
    struct bench b = {.model = "8b", .device = CFG_DEVICE_CUDA};
    struct error err;
    parse(&b, argc, argv);
    const struct engine_options opt = {.model = b.model,
                                       .dummy = cfg_preset_find(b.model) != NULL,
                                       .dummy_seed = 1,
                                       .device = b.device,
                                       .dtype = CFG_DTYPE_BF16,
                                       .quantization =
                                           b.small ? CFG_QUANTIZE_FP8 : CFG_QUANTIZE_NONE,
                                       .kv_dtype = b.small ? CFG_KV_FP8 : CFG_KV_AUTO,
                                       .cpu_isa = "auto",
                                       .block_size = 16,
                                       .max_step_tokens = STEP_ROWS,
                                       .max_step_seqs = MAX_BATCH};
    if (engine_open(&b.e, &opt, &err) || engine_load(b.e, NULL, &err)) fail(err.message);
    b.info = engine_info(b.e);
    if (b.info->experts > MAX_EXPERTS) fail("too many experts");
    fill_sequences(&b);
    printf("model %s, %s, %s\n", b.model, b.info->backend,
           b.small ? "fp8 weights and keys" : "bf16");
    for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++)
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
            bench_decode(&b, batches[i], contexts[c]);
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) bench_prefill(&b, 1, prompts[i]);
    bench_prefill(&b, 4, 2048);
    for (int s = 0; s < MAX_BATCH; s++) engine_sampler_free(b.rows[s].sampler);
    engine_close(b.e);
    free(b.tokens);
    free(b.blocks);
    free(b.routing.experts);
    free(b.routing.weights);
    free(b.routing.kept);
    return 0;
}
