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
#include "tests/unit/device.h"

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
    int max_expert_tokens;
    const char *routing_table;
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
                                .device = test_device(),
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
                               .max_expert_tokens = set->max_expert_tokens,
                               .routing_table = set->routing_table,
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

static inline void assert_all_given_back(struct harness *h)
{
    struct sched_stats st = stats_of(h);
    assert_int_equal(st.running, 0);
    assert_int_equal(st.waiting, 0);
    assert_int_equal(st.kv_blocks_free, st.kv_blocks_total);
}

#include "tests/unit/sched_jobs.h"

#endif
