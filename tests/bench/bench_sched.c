// SPDX-License-Identifier: Apache-2.0
//
// bench_sched.c: what the scheduler costs per step, beside an engine that costs nothing: its own
// sources with engine_step and the sampler replaced. The state is kept steady: so many sequences
// run, so many wait; who ends is replaced by a new arrival. "plan" is the choice of what runs (the
// queue, fairness, the rows of the step), "step" is everything the engine thread does around
// engine_step: arrivals, admission, blocks, prefix tree, results, events.
//
//   build/bench/bench_sched [steps]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "scheduler/runner.h"

static const struct engine_info *bench_info(const struct engine *e);
static int bench_step(struct engine *e, const struct engine_rows *rows, int n_rows,
                      uint64_t *dropped, struct engine_routing *routing, struct error *err);
static int bench_sampler_new(struct engine_sampler **out, const struct engine_sampling *s,
                             const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                             struct error *err);
static void bench_sampler_free(struct engine_sampler *s);

#define engine_info(e)      bench_info(e)
#define engine_step         bench_step
#define engine_sampler_new  bench_sampler_new
#define engine_sampler_free bench_sampler_free
#include "scheduler/admit.c"
#include "scheduler/runner.c"
#include "scheduler/seq.c"
#undef engine_info
#undef engine_step
#undef engine_sampler_new
#undef engine_sampler_free

enum {
    VOCAB = 32000,
    BLOCK = 16,
    CONTEXT = 2048,
    MAX_PROMPT = 512,
    TENANTS = 8,
    MAX_STEPS = 100000
};

static struct engine_info model = {.vocab = VOCAB, .context = CONTEXT, .block_size = BLOCK};

static const struct engine_info *bench_info(const struct engine *e)
{
    (void)e;
    return &model;
}

static int bench_step(struct engine *e, const struct engine_rows *rows, int n_rows,
                      uint64_t *dropped, struct engine_routing *routing, struct error *err)
{
    (void)e, (void)dropped, (void)routing, (void)err;
    for (int i = 0; i < n_rows; i++)
        if (rows[i].sampler) rows[i].sampled->token = rows[i].position % VOCAB;
    return CFG_OK;
}

static int bench_sampler_new(struct engine_sampler **out, const struct engine_sampling *s,
                             const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                             struct error *err)
{
    (void)s, (void)info, (void)prompt, (void)n_prompt, (void)err;
    *out = (struct engine_sampler *)(void *)&model; /* only whether there is one matters */
    return CFG_OK;
}

static void bench_sampler_free(struct engine_sampler *s)
{
    (void)s;
}

/* Of this thread: other work on the machine does not count. */
static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static unsigned rng = 1;
static uint64_t next_id = 1;

/* A chat: a system prompt of its tenant, then text of its own. */
static struct seq *arrival(struct runner *r, const struct sched_options *opt)
{
    struct error err;
    struct seq *q;
    int32_t prompt[MAX_PROMPT];
    const uint32_t tenant = (uint32_t)rand_r(&rng) % TENANTS;
    const size_t n = 150 + (size_t)(rand_r(&rng) % (MAX_PROMPT - 150));
    for (size_t i = 0; i < n; i++)
        prompt[i] = i < 128 ? (int32_t)(i + tenant) : rand_r(&rng) % VOCAB;
    struct sched_job job = {.id = next_id++,
                            .prompt = prompt,
                            .n_prompt = n,
                            .max_new = 32 + rand_r(&rng) % 400,
                            .tenant = tenant,
                            .priority = rand_r(&rng) % 3};
    if (seq_new(&q, &job, r->info, r->pool, opt, &err)) {
        fprintf(stderr, "bench_sched: %s\n", err.message);
        exit(1);
    }
    return q;
}

/* The planner's share, measured on a copy of its state: the choice of the next sequence and the
 * rows of the step. */
static double plan_alone(struct runner *r, struct plan_seq *copy)
{
    struct plan_turn turn = r->turn;
    const double begun = now_us();
    for (int i = 0; i < r->n_running; i++) {
        const struct seq *q = r->running[i];
        const int left = q->n_tokens - q->n_done;
        const bool decodes = left == 1 && q->n_done >= q->n_prompt;
        copy[i] = (struct plan_seq){
            .order = q->order, .prompt_left = decodes ? 0 : left, .tokens = q->tokens + q->n_done};
    }
    const struct plan_job *next = plan_next(&r->queue);
    const int rows = plan_step(&r->limits, copy, r->n_running, &turn);
    const double took = now_us() - begun;
    return next || rows > 0 ? took : 0;
}

static void one_state(int running, int waiting, int steps)
{
    static double plan[MAX_STEPS], step[MAX_STEPS];
    struct error err;
    struct runner r;
    model.n_blocks = running * (MAX_PROMPT + 432) / BLOCK + 1024;
    const struct sched_options opt = {.max_seqs = running,
                                      .max_step_tokens = running + 2048,
                                      .max_queued = waiting + 1,
                                      .prefix_caching = true};
    struct plan_seq *copy = calloc((size_t)running, sizeof *copy);
    if (!copy || runner_init(&r, NULL, &opt, &err)) exit(1);
    double sum_plan = 0, sum_step = 0;
    const int warm = 300;
    for (int k = -warm; k < steps; k++) {
        struct seq_list list = {0};
        while (r.queue.n + list.n < waiting + (running - r.n_running))
            seq_list_push(&list, arrival(&r, &opt));
        double took = now_us();
        runner_enter(&r, &list);
        runner_admit(&r, 1);
        took = now_us() - took;
        const double planned = plan_alone(&r, copy);
        const double begun = now_us();
        if (!events_reserve(&r.out, runner_max_events(&r)) || runner_step(&r, &err)) exit(1);
        runner_done(&r, NULL);
        took += now_us() - begun;
        r.out.n = 0;
        runner_settle(&r);
        seq_list_free(&r.ended);
        if (k < 0) continue;
        sum_plan += plan[k] = planned;
        sum_step += step[k] = took;
    }
    qsort(plan, (size_t)steps, sizeof plan[0], by_value);
    qsort(step, (size_t)steps, sizeof step[0], by_value);
    printf("%d,%d,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f\n", r.n_running, r.queue.n, sum_plan / steps,
           plan[steps / 2], plan[steps * 99 / 100], sum_step / steps, step[steps / 2],
           step[steps * 99 / 100]);
    runner_deinit(&r);
    free(copy);
}

int main(int argc, char **argv)
{
    static const int states[][2] = {{32, 100},   {256, 0},     {256, 1000},
                                    {256, 4096}, {1024, 1000}, {4096, 4096}};
    int steps = argc > 1 ? atoi(argv[1]) : 2000;
    if (steps < 1 || steps > MAX_STEPS) steps = 2000;
    printf("running,waiting,plan_mean_us,plan_p50_us,plan_p99_us,step_mean_us,step_p50_us,"
           "step_p99_us\n");
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        one_state(states[i][0], states[i][1], steps);
    return 0;
}
