// SPDX-License-Identifier: Apache-2.0
//
// sched_harness.h: a scheduler on the tiny golden model, as its tests drive it. The test is the
// loop thread: it submits, waits for notify and files events as answers by job id, checking the
// order that scheduler.h promises. hold() stops the engine thread inside notify, between two steps,
// so that tests meet the scheduler in a known state instead of racing it.
#ifndef OPENMOED_SCHED_HARNESS_H
#define OPENMOED_SCHED_HARNESS_H

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/scheduler.h"

#define TINY       "tests/golden/tiny"
#define CONTEXT    256
#define VOCAB      512
#define BLOCK_SIZE 16
/* F32 keys and values of one block: 4 layers x 2 x 6 heads x 16. */
#define BLOCK_BYTES (BLOCK_SIZE * 4 * 2 * 6 * 16 * sizeof(float))
#define MAX_ID      64

struct answer {
    struct engine_result tokens[CONTEXT];
    int n_tokens;
    struct engine_result scores[CONTEXT]; /* of prompt token 1, 2, ... */
    int n_scores;
    bool ended; /* the last token was an end */
    bool done;
    int cached_tokens;
    enum sched_finish finish;
    char message[512];
};

struct harness {
    struct engine *engine;
    struct sched *sched;
    struct sched_events events;
    struct answer answers[MAX_ID]; /* by job id */
    int n_done;
    sem_t notified, held, gate;
    atomic_bool hold;
};

static inline void on_notify(void *arg)
{
    struct harness *h = arg;
    bool stop = atomic_exchange(&h->hold, false); /* asked for before this notify, not after it */
    sem_post(&h->notified);
    if (stop) {
        sem_post(&h->held);
        sem_wait(&h->gate);
    }
}

struct setup {
    enum cfg_capacity capacity;
    int max_seqs, max_step_tokens, max_queued, blocks;
    int capacity_length;
    int threads; /* 0 = 2 */
    size_t max_queued_tokens;
    double queue_timeout_s;
    bool prefix_caching;
};
static const struct setup roomy = {
    .max_seqs = 48, .max_step_tokens = 512, .max_queued = 64, .blocks = 400};

static inline struct harness *harness_open(const struct setup *set)
{
    struct error err = {0};
    struct harness *h = calloc(1, sizeof(*h));
    assert_non_null(h);
    sem_init(&h->notified, 0, 0);
    sem_init(&h->held, 0, 0);
    sem_init(&h->gate, 0, 0);
    struct engine_options eo = {.model = TINY,
                                .device = CFG_DEVICE_CPU,
                                .cpu_isa = "auto",
                                .threads = set->threads ? set->threads : 2,
                                .capacity = set->capacity,
                                .capacity_length = set->capacity_length,
                                .block_size = BLOCK_SIZE,
                                .kv_bytes = (size_t)set->blocks * BLOCK_BYTES,
                                .max_step_tokens = set->max_step_tokens,
                                .max_step_seqs = set->max_seqs};
    if (engine_open(&h->engine, &eo, &err)) fail_msg("engine_open: %s", err.message);
    assert_int_equal(engine_info(h->engine)->n_blocks, set->blocks);
    struct sched_options so = {.max_seqs = set->max_seqs,
                               .max_step_tokens = set->max_step_tokens,
                               .max_queued = set->max_queued,
                               .max_queued_tokens = set->max_queued_tokens,
                               .queue_timeout_s = set->queue_timeout_s,
                               .prefix_caching = set->prefix_caching,
                               .notify = on_notify,
                               .notify_arg = h};
    if (sched_open(&h->sched, h->engine, &so, &err)) fail_msg("sched_open: %s", err.message);
    return h;
}

static inline void harness_close(struct harness *h)
{
    sched_close(h->sched);
    engine_close(h->engine);
    sched_events_free(&h->events);
    sem_destroy(&h->notified);
    sem_destroy(&h->held);
    sem_destroy(&h->gate);
    free(h);
}

static inline struct sched_stats stats_of(struct harness *h)
{
    struct sched_stats st;
    sched_stats(h->sched, &st);
    return st;
}

/* The end of the load is notified too. */
static inline void wait_ready(struct harness *h)
{
    sem_wait(&h->notified);
    struct error err;
    sched_failure(h->sched, &err);
    if (stats_of(h).state != SCHED_READY) fail_msg("not ready: %s", err.message);
}

static inline struct harness *harness_ready(const struct setup *set)
{
    struct harness *h = harness_open(set);
    wait_ready(h);
    return h;
}

/* Checks the order of one job's events while filing them. */
static inline void file_event(struct harness *h, const struct sched_event *ev)
{
    assert_in_range(ev->id, 1, MAX_ID - 1);
    struct answer *a = &h->answers[ev->id];
    assert_false(a->done);
    assert_true(ev->time > 0 && ev->queued_s >= 0);
    if (ev->kind == SCHED_PROMPT_SCORE) {
        assert_int_equal(a->n_tokens, 0);
        assert_int_equal(ev->position, a->n_scores + 1);
        assert_true(ev->queued_s == 0);
        a->scores[a->n_scores++] = ev->result;
    } else if (ev->kind == SCHED_TOKEN) {
        assert_false(a->ended);
        if (a->n_tokens > 0) assert_true(ev->queued_s == 0 && ev->cached_tokens == 0);
        if (a->n_tokens == 0) a->cached_tokens = ev->cached_tokens;
        assert_in_range(a->n_tokens, 0, CONTEXT - 1);
        a->tokens[a->n_tokens++] = ev->result;
        a->ended = ev->end;
    } else {
        a->done = true;
        a->finish = ev->finish;
        assert_int_equal(ev->finish == SCHED_STOP, a->ended);
        assert_int_equal(ev->finish == SCHED_ERROR || ev->finish == SCHED_TIMEOUT,
                         ev->message != NULL);
        if (a->n_tokens > 0) assert_int_equal(a->cached_tokens, ev->cached_tokens);
        a->cached_tokens = ev->cached_tokens;
        if (ev->message) strcpy(a->message, ev->message);
        h->n_done++;
    }
}

/* Takes and files what is there; returns the number of events. */
static inline size_t take(struct harness *h)
{
    sched_take(h->sched, &h->events);
    for (size_t i = 0; i < h->events.n; i++) file_event(h, &h->events.items[i]);
    return h->events.n;
}

static inline void until_done(struct harness *h, int n_done)
{
    while (take(h), h->n_done < n_done) sem_wait(&h->notified);
    assert_int_equal(h->n_done, n_done);
}

/* Stops the engine thread in the notify of the next step that has events. */
static inline void hold(struct harness *h)
{
    atomic_store(&h->hold, true);
}

static inline void wait_held(struct harness *h)
{
    sem_wait(&h->held);
}

static inline void let_go(struct harness *h)
{
    sem_post(&h->gate);
}

/* A greedy job that runs to max_new. */
static inline struct sched_job greedy_job(uint64_t id, const int32_t *prompt, size_t n, int max_new)
{
    struct sched_job job = {.id = id, .prompt = prompt, .n_prompt = n, .max_new = max_new};
    engine_sampling_defaults(&job.sampling);
    job.sampling.temperature = 0;
    return job;
}

static inline void submit(struct harness *h, const struct sched_job *job)
{
    struct error err = {0};
    if (sched_submit(h->sched, job, &err)) fail_msg("sched_submit: %s", err.message);
}

static inline int try_submit(struct harness *h, const struct sched_job *job)
{
    struct error err;
    return sched_submit(h->sched, job, &err);
}

static const int32_t some_prompt[24] = {2,  9,  511, 3, 40, 7,  2,   2,  3, 16, 88, 100,
                                        12, 31, 2,   5, 6,  77, 400, 13, 3, 3,  2,  250};

/* Jobs of many kinds, the same for the same seed. Owns the arrays of its jobs. */
struct job_mix {
    struct sched_job jobs[MAX_ID];
    int32_t prompts[MAX_ID][160];
    int32_t ends[MAX_ID][2];
    size_t n;
};

static inline void mix_jobs(struct job_mix *mix, size_t n, unsigned seed)
{
    mix->n = n;
    for (size_t i = 0; i < n; i++) {
        size_t n_prompt = 1 + (size_t)(rand_r(&seed) % (i % 5 == 0 ? 160 : 30));
        for (size_t k = 0; k < n_prompt; k++) mix->prompts[i][k] = rand_r(&seed) % VOCAB;
        for (int k = 0; k < 2; k++) mix->ends[i][k] = rand_r(&seed) % VOCAB;
        struct sched_job *job = &mix->jobs[i];
        *job = greedy_job(i + 1, mix->prompts[i], n_prompt, rand_r(&seed) % 40);
        job->score_prompt = i % 4 == 1;
        job->sampling.n_logprobs = i % 3 == 0 ? 3 : 0;
        job->sampling.ends = mix->ends[i];
        job->sampling.n_ends = 2;
        job->ignore_ends = i % 7 == 3;
        if (i % 2 == 0) continue;
        job->sampling.temperature = 1.2f;
        job->sampling.top_p = 0.9f;
        job->sampling.repetition_penalty = i % 6 == 1 ? 1.3f : 1.0f;
        job->sampling.seed = 1000 + i;
    }
}

static inline void assert_same_result(const struct engine_result *a, const struct engine_result *b)
{
    assert_int_equal(a->token, b->token);
    assert_memory_equal(&a->logprob, &b->logprob, sizeof(a->logprob));
    assert_int_equal(a->n_top, b->n_top);
    for (int k = 0; k < a->n_top; k++) {
        assert_int_equal(a->top[k].id, b->top[k].id);
        assert_memory_equal(&a->top[k].logprob, &b->top[k].logprob, sizeof(a->logprob));
    }
}

/* Token by token, bit by bit. */
static inline void assert_same_answer(const struct answer *a, const struct answer *b)
{
    assert_true(a->done && b->done);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_scores, b->n_scores);
    for (int i = 0; i < a->n_tokens; i++) assert_same_result(&a->tokens[i], &b->tokens[i]);
    for (int i = 0; i < a->n_scores; i++) assert_same_result(&a->scores[i], &b->scores[i]);
}

static inline void assert_all_given_back(struct harness *h)
{
    struct sched_stats st = stats_of(h);
    assert_int_equal(st.running, 0);
    assert_int_equal(st.waiting, 0);
    assert_int_equal(st.kv_blocks_free, st.kv_blocks_total);
}

#endif
