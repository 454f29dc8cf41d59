// SPDX-License-Identifier: Apache-2.0
//
// bench_chats.c: tokens a second of the engine alone, for comparison with the served endpoint
// (tests/load/served.py): engine_step in a loop over chats that all begin at once, prompts in
// chunks of what a step has room for, then one token each and step, sampled as the server's
// defaults do and fed back. The first --cached tokens of every prompt are computed once and shared,
// as the prefix cache has it. Prints CSV: one row a round. One thread beside the engine's own.
//
//   build/bench/bench_chats --chats N [--prompt N] [--cached N] [--new N] [--rounds N]
//       [--step-tokens N] [--threads N] [--model DIR] [--device cpu|cuda]
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum { BLOCK = 16 };

struct chat {
    int32_t *tokens; /* [prompt + new], its prompt, then what it samples */
    int32_t *blocks; /* [blocks_each] */
    int done;        /* positions computed */
    int known;       /* tokens */
    struct engine_sampler *sampler;
};

struct bench {
    const char *model;
    enum cfg_device device;
    int chats, prompt, cached, fresh, rounds, step_tokens, threads;
    struct engine *e;
    const struct engine_info *info;
    struct chat *list;         /* [chats] */
    struct engine_rows *rows;  /* [chats] */
    struct engine_result *got; /* [chats] */
    int *who;                  /* [chats] chat of each of rows */
};

static void stop_program(const char *why)
{
    fprintf(stderr, "bench_chats: %s\n", why);
    exit(1);
}

static void *room(int n, size_t size)
{
    void *p = calloc((size_t)n, size);
    if (!p) stop_program("no memory");
    return p;
}

/* The shared beginning stands in the first blocks of the pool; each chat's own follow. */
static void init_chats(struct bench *b)
{
    const int shared = b->cached / BLOCK, blocks = (b->prompt + b->fresh + BLOCK - 1) / BLOCK;
    if (shared + b->chats * (blocks - shared) > b->info->n_blocks)
        stop_program("too many chats for the memory of keys and values");
    uint32_t r = 1;
    b->list = room(b->chats, sizeof b->list[0]);
    b->rows = room(b->chats, sizeof b->rows[0]);
    b->got = room(b->chats, sizeof b->got[0]);
    b->who = room(b->chats, sizeof b->who[0]);
    for (int s = 0; s < b->chats; s++) {
        struct chat *c = &b->list[s];
        c->tokens = room(b->prompt + b->fresh, sizeof c->tokens[0]);
        c->blocks = room(blocks, sizeof c->blocks[0]);
        for (int i = 0; i < blocks; i++) c->blocks[i] = i < shared ? i : s * (blocks - shared) + i;
        for (int i = 0; i < b->prompt; i++) {
            r = r * 1664525u + 1013904223u;
            c->tokens[i] = i < b->cached && s > 0
                               ? b->list[0].tokens[i]
                               : (int32_t)((r >> 8) % (uint32_t)b->info->usable_vocab);
        }
    }
}

static void begin_round(struct bench *b, int round)
{
    struct error err;
    for (int s = 0; s < b->chats; s++) {
        struct chat *c = &b->list[s];
        struct engine_sampling p;
        engine_sampling_defaults(&p);
        p.seed = (uint64_t)(round * b->chats + s + 1);
        engine_sampler_free(c->sampler);
        c->done = b->cached;
        c->known = b->prompt;
        if (engine_sampler_new(&c->sampler, &p, b->info, c->tokens, (size_t)b->prompt, &err))
            stop_program(err.message);
    }
}

static void step(struct bench *b, int n)
{
    struct error err;
    if (engine_step(b->e, b->rows, n, NULL, NULL, &err)) stop_program(err.message);
    for (int i = 0; i < n; i++) {
        struct chat *c = &b->list[b->who[i]];
        c->done += b->rows[i].n_tokens;
        if (b->rows[i].sampler) c->tokens[c->known++] = b->rows[i].sampled->token;
    }
}

/* Tokens that decode first, then prompts in order; false when all answers are whole. */
static bool run_step(struct bench *b)
{
    int n = 0, left = b->step_tokens;
    for (int prompts = 0; prompts < 2; prompts++)
        for (int s = 0; s < b->chats && left > 0; s++) {
            struct chat *c = &b->list[s];
            const int open = c->known - c->done;
            if (c->known == b->prompt + b->fresh || (c->done < b->prompt) != prompts) continue;
            const int rows = open < left ? open : left;
            b->who[n] = s;
            b->rows[n] = (struct engine_rows){.tokens = c->tokens + c->done,
                                              .n_tokens = rows,
                                              .position = c->done,
                                              .blocks = c->blocks,
                                              .sampled = &b->got[n],
                                              .sampler = rows == open ? c->sampler : NULL};
            left -= rows;
            n++;
        }
    if (n > 0) step(b, n);
    return n > 0;
}

/* The beginning that all share, left in the cache. */
static void compute_shared(struct bench *b)
{
    struct error err;
    for (int at = 0; at < b->cached; at += b->step_tokens) {
        const int left = b->cached - at;
        const struct engine_rows rows = {.tokens = b->list[0].tokens + at,
                                         .n_tokens = left < b->step_tokens ? left : b->step_tokens,
                                         .position = at,
                                         .blocks = b->list[0].blocks};
        if (engine_step(b->e, &rows, 1, NULL, NULL, &err)) stop_program(err.message);
    }
}

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {{"chats", 1, 0, 'b'},   {"prompt", 1, 0, 'p'},
                                            {"cached", 1, 0, 'c'},  {"new", 1, 0, 'n'},
                                            {"rounds", 1, 0, 'r'},  {"step-tokens", 1, 0, 's'},
                                            {"threads", 1, 0, 't'}, {"model", 1, 0, 'm'},
                                            {"device", 1, 0, 'd'},  {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'b') b->chats = atoi(optarg);
        if (o == 'p') b->prompt = atoi(optarg);
        if (o == 'c') b->cached = atoi(optarg);
        if (o == 'n') b->fresh = atoi(optarg);
        if (o == 'r') b->rounds = atoi(optarg);
        if (o == 's') b->step_tokens = atoi(optarg);
        if (o == 't') b->threads = atoi(optarg);
        if (o == 'm') b->model = optarg;
        if (o == 'd' && strcmp(optarg, "cuda") == 0) b->device = CFG_DEVICE_CUDA;
        if (o == '?') exit(2);
    }
    if (optind < argc || b->chats < 1 || b->fresh < 1 || b->rounds < 1 ||
        b->step_tokens < b->chats || b->cached < 0 || b->cached % BLOCK || b->prompt <= b->cached)
        stop_program("its options stand in the head of its source; --cached is a multiple of 16 "
                     "below --prompt, --step-tokens at least --chats");
}

static void open_model(struct bench *b)
{
    struct error err;
    const struct engine_options opt = {.model = b->model,
                                       .dummy = cfg_preset_find(b->model) != NULL,
                                       .dummy_seed = 1,
                                       .device = b->device,
                                       .cpu_isa = "auto",
                                       .threads = b->threads,
                                       .block_size = BLOCK,
                                       .max_step_tokens = b->step_tokens,
                                       .max_step_seqs = b->chats,
                                       .kv_bytes =
                                           b->device == CFG_DEVICE_CPU ? (size_t)2 << 30 : 0};
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    if (engine_open(&b->e, &opt, &err) || engine_load(b->e, NULL, &err)) stop_program(err.message);
    b->info = engine_info(b->e);
    if (b->prompt + b->fresh > b->info->context) stop_program("longer than the model's context");
}

int main(int argc, char **argv)
{
    struct bench b = {.model = "deploy/demo-model",
                      .device = CFG_DEVICE_CPU,
                      .chats = 1,
                      .prompt = 200,
                      .fresh = 128,
                      .rounds = 3,
                      .step_tokens = 512};
    parse(&b, argc, argv);
    open_model(&b);
    init_chats(&b);
    compute_shared(&b);
    printf("chats,prompt,cached,new,seconds,tokens_per_s,steps,step_ms\n");
    for (int round = 0; round < b.rounds; round++) {
        int steps = 0;
        begin_round(&b, round);
        const double begun = cfg_now();
        while (run_step(&b)) steps++;
        const double seconds = cfg_now() - begun;
        printf("%d,%d,%d,%d,%.4f,%.1f,%d,%.3f\n", b.chats, b.prompt, b.cached, b.fresh, seconds,
               b.chats * b.fresh / seconds, steps, seconds / steps * 1e3);
    }
    for (int s = 0; s < b.chats; s++) {
        engine_sampler_free(b.list[s].sampler);
        free(b.list[s].tokens);
        free(b.list[s].blocks);
    }
    free(b.list), free(b.rows), free(b.got), free(b.who);
    engine_close(b.e);
    return 0;
}
