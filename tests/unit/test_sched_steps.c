// SPDX-License-Identifier: Apache-2.0
//
// test_sched_steps.c: what the scheduler asks of the engine, step by step, and what it does when
// the engine fails, loads for long or memory runs out. The scheduler's two stateful sources are
// compiled into this file with engine_step, engine_load and realloc replaced by wrappers: they
// watch every call, fail on demand, and otherwise do the real thing on the tiny golden model.
#include "tests/unit/sched_harness.h"

#include <stdio.h>

static int watched_step(struct engine *e, const struct engine_rows *rows, int n_rows,
                        uint64_t *dropped, struct engine_routing *routing, struct error *err);
static int watched_load(struct engine *e, const volatile bool *stop, struct error *err);
static void watched_on_launch(struct engine *e, void (*fn)(void *arg), void *arg);
static void *short_realloc(void *p, size_t n);

#define engine_step      watched_step
#define engine_load      watched_load
#define engine_on_launch watched_on_launch
#define realloc          short_realloc
#include "scheduler/runner.c"
#include "scheduler/sched.c"
#undef engine_step
#undef engine_load
#undef engine_on_launch
#undef realloc

#define MAX_STEPS 512

/* Written by the engine thread in a step; the test reads it while that thread is held or idle. */
static struct {
    int n; /* steps begun */
    struct {
        int n_seqs, n_tokens;
        int position[8], rows[8];
        bool samples[8];
    } step[MAX_STEPS];
    int fail_next; /* so many steps fail */
    char fail_text[64];
} seen;

static struct {
    sem_t begun, go_on;
    bool until_stopped, wait, fail;
} loading;

/* An engine whose steps run elsewhere: the scheduler has time once each is on its way. */
static struct {
    bool on;
    void (*fn)(void *arg);
    void *arg;
} device;

static atomic_int failing_reallocs;

static int watched_step(struct engine *e, const struct engine_rows *rows, int n_rows,
                        uint64_t *dropped, struct engine_routing *routing, struct error *err)
{
    if (seen.n < MAX_STEPS) {
        seen.step[seen.n].n_seqs = n_rows;
        seen.step[seen.n].n_tokens = 0;
        for (int i = 0; i < n_rows; i++) {
            seen.step[seen.n].n_tokens += rows[i].n_tokens;
            if (i >= 8) continue;
            seen.step[seen.n].position[i] = rows[i].position;
            seen.step[seen.n].rows[i] = rows[i].n_tokens;
            seen.step[seen.n].samples[i] = rows[i].sampler != NULL;
        }
    }
    seen.n++;
    if (seen.fail_next > 0) {
        seen.fail_next--;
        return cfg_fail(err, CFG_EIO, "%s", seen.fail_text);
    }
    if (device.on) device.fn(device.arg);
    return engine_step(e, rows, n_rows, dropped, routing, err);
}

static void watched_on_launch(struct engine *e, void (*fn)(void *arg), void *arg)
{
    ((struct engine_info *)engine_info(e))->async = device.on; /* the engine's own memory */
    device.fn = fn;
    device.arg = arg;
}

static int watched_load(struct engine *e, const volatile bool *stop, struct error *err)
{
    sem_post(&loading.begun);
    while (loading.until_stopped && !__atomic_load_n(stop, __ATOMIC_RELAXED)) usleep(500);
    if (loading.until_stopped) return cfg_fail(err, CFG_ECLOSED, "stopped");
    if (loading.wait) sem_wait(&loading.go_on);
    if (loading.fail) return cfg_fail(err, CFG_EIO, "the disk went away");
    return engine_load(e, stop, err);
}

static void *short_realloc(void *p, size_t n)
{
    if (atomic_fetch_sub(&failing_reallocs, 1) > 0) return NULL;
    return realloc(p, n);
}

static int fresh(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof(seen));
    memset(&loading, 0, sizeof(loading));
    memset(&device, 0, sizeof(device));
    sem_init(&loading.begun, 0, 0);
    sem_init(&loading.go_on, 0, 0);
    atomic_store(&failing_reallocs, 0);
    return 0;
}

static void fail_steps(int n, const char *text)
{
    seen.fail_next = n;
    snprintf(seen.fail_text, sizeof(seen.fail_text), "%s", text);
}

/* ---- what a step holds ----------------------------------------------------------------------- */

/* Chat 1 decodes while prompts 2 and 3 prefill: it gets its token in every step, and they share
 * what is left to the last row. */
static void a_running_chat_never_waits_for_prompts(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 3, .max_step_tokens = 41, .max_queued = 8, .blocks = 64};
    static int32_t prompt[200];
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 24, 30);
    submit(h, &job);
    wait_held(h);
    job = greedy_job(2, prompt, 200, 2);
    submit(h, &job);
    job.id = 3;
    submit(h, &job);
    let_go(h);
    until_done(h, 3);
    assert_int_equal(seen.n, 30);
    for (int k = 1; k < 30; k++) {
        assert_int_equal(seen.step[k].position[0], 24 + k - 1);
        assert_int_equal(seen.step[k].rows[0], 1);
        assert_true(seen.step[k].samples[0]);
        /* 400 prompt rows, 40 a step */
        if (k <= 10) assert_int_equal(seen.step[k].n_tokens, 41);
    }
    assert_int_equal(seen.step[1].rows[1], 40);
    assert_int_equal(seen.step[2].rows[1], 24); /* the rest of its turn of 64 */
    assert_int_equal(seen.step[2].rows[2], 16);
    harness_close(h);
}

/* With a device, a step's events go out while the next step runs: the same ones, in order, none
 * lost at the end, with failures, cancels and full queues of events in between. */
static void a_device_hides_the_work_after_a_step(void **state)
{
    (void)state;
    struct answer *answers[2];
    uint64_t tokens[2];
    for (int on = 0; on < 2; on++) {
        device.on = on;
        struct setup set = {.max_seqs = 3, .max_step_tokens = 41, .max_queued = 40, .blocks = 20};
        struct error err = {0};
        struct sched_job jobs[30];
        struct harness *h = harness_ready(&set);
        for (uint64_t i = 0; i < 30; i++) {
            jobs[i] = greedy_job(i + 1, some_prompt, 1 + i % 24, 3 + (int)(i * 7 % 60));
            jobs[i].score_prompt = i % 5 == 0;
        }
        assert_int_equal(sched_submit_all(h->sched, jobs, 30, &err), CFG_OK);
        until_done(h, 30);
        assert_all_given_back(h);
        struct sched_routing *g = sched_routing_total(h->sched);
        tokens[on] = g->tokens;
        sched_routing_unref(g);
        answers[on] = malloc(sizeof(h->answers));
        memcpy(answers[on], h->answers, sizeof(h->answers));

        /* One that fails and one that is cancelled still get their end. */
        memset(h->answers, 0, sizeof(h->answers));
        struct sched_job job = greedy_job(1, some_prompt, 10, 200);
        submit(h, &job);
        sched_cancel(h->sched, 1);
        until_done(h, 31);
        assert_int_equal(h->answers[1].finish, SCHED_CANCELLED);
        fail_steps(1, "gone");
        job.id = 2;
        submit(h, &job);
        until_done(h, 32);
        assert_int_equal(h->answers[2].finish, SCHED_ERROR);
        harness_close(h);
    }
    for (int id = 1; id <= 30; id++) assert_same_answer(&answers[0][id], &answers[1][id]);
    assert_int_equal(tokens[0], tokens[1]);
    free(answers[0]);
    free(answers[1]);
}

static void a_prompt_samples_from_its_last_row_only(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 2, .max_step_tokens = 10, .max_queued = 8, .blocks = 64};
    struct harness *h = harness_ready(&set);
    struct sched_job job = greedy_job(1, some_prompt, 24, 3);
    submit(h, &job);
    until_done(h, 1);
    static const int position[5] = {0, 10, 20, 24, 25}, rows[5] = {10, 10, 4, 1, 1};
    assert_int_equal(seen.n, 5);
    for (int k = 0; k < 5; k++) {
        assert_int_equal(seen.step[k].n_seqs, 1);
        assert_int_equal(seen.step[k].position[0], position[k]);
        assert_int_equal(seen.step[k].rows[0], rows[k]);
        assert_int_equal(seen.step[k].samples[0], k >= 2);
    }
    harness_close(h);
}

static void steps_stay_within_the_limits(void **state)
{
    (void)state;
    static struct job_mix mix;
    struct setup set = {.max_seqs = 5, .max_step_tokens = 9, .max_queued = 64, .blocks = 64};
    struct error err = {0};
    struct harness *h = harness_ready(&set);
    mix_jobs(&mix, 30, 41);
    assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
    until_done(h, 30);
    int most_seqs = 0, most_tokens = 0;
    assert_in_range(seen.n, 1, MAX_STEPS);
    for (int k = 0; k < seen.n; k++) {
        if (seen.step[k].n_seqs > most_seqs) most_seqs = seen.step[k].n_seqs;
        if (seen.step[k].n_tokens > most_tokens) most_tokens = seen.step[k].n_tokens;
    }
    assert_int_equal(most_seqs, 5);
    assert_int_equal(most_tokens, 9);
    harness_close(h);
}

static void a_cancel_comes_before_the_next_step(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 2, .max_step_tokens = 64, .max_queued = 8, .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 24, 30);
    submit(h, &job);
    wait_held(h);
    sched_cancel(h->sched, 1);
    let_go(h);
    until_done(h, 1);
    assert_int_equal(h->answers[1].finish, SCHED_CANCELLED);
    assert_int_equal(seen.n, 1);
    harness_close(h);
}

/* ---- an engine that fails -------------------------------------------------------------------- */

static void a_failed_step_ends_its_sequences_only(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 2, .max_step_tokens = 64, .max_queued = 8, .blocks = 64};
    struct harness *h = harness_ready(&set);
    struct error err = {0};
    struct sched_job jobs[3];
    for (uint64_t i = 0; i < 3; i++) jobs[i] = greedy_job(i + 1, some_prompt, 12, 9);
    hold(h);
    assert_int_equal(sched_submit_all(h->sched, jobs, 3, &err), CFG_OK);
    wait_held(h);
    fail_steps(1, "out of device memory");
    let_go(h);
    until_done(h, 3);
    for (int id = 1; id <= 2; id++) {
        assert_int_equal(h->answers[id].finish, SCHED_ERROR);
        assert_string_equal(h->answers[id].message, "out of device memory");
        assert_int_equal(h->answers[id].n_tokens, 1);
    }
    assert_int_equal(h->answers[3].finish, SCHED_LENGTH);
    assert_int_equal(h->answers[3].n_tokens, 9);
    assert_all_given_back(h);
    harness_close(h);
}

/* Two rows a step: prompt 1 has its turn when the step fails, prompt 2 had no row in it. */
static void a_sequence_without_rows_survives_a_failed_step(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 2, .max_step_tokens = 2, .max_queued = 8, .blocks = 64};
    struct harness *h = harness_open(&set);
    wait_ready(h);
    struct error err = {0};
    struct sched_job jobs[2] = {greedy_job(1, some_prompt, 24, 3),
                                greedy_job(2, some_prompt, 20, 3)};
    fail_steps(1, "a bad step");
    assert_int_equal(sched_submit_all(h->sched, jobs, 2, &err), CFG_OK);
    until_done(h, 2);
    assert_int_equal(h->answers[1].finish, SCHED_ERROR);
    assert_int_equal(h->answers[2].finish, SCHED_LENGTH);
    assert_int_equal(h->answers[2].n_tokens, 3);
    assert_all_given_back(h);
    harness_close(h);
}

/* Kept messages are bounded; those handed out stay as they are. */
static void many_different_failures_are_told_apart_up_to_a_point(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    const char *first = NULL;
    for (int i = 0; i < MAX_MESSAGES + 3; i++) {
        char text[32];
        snprintf(text, sizeof(text), "failure %d", i);
        fail_steps(1, text);
        struct sched_job job = greedy_job((uint64_t)i + 1, some_prompt, 3, 3);
        submit(h, &job);
        until_done(h, i + 1);
        const char *message = h->events.items[h->events.n - 1].message;
        if (i == 0) first = message;
        if (i < MAX_MESSAGES)
            assert_string_equal(message, text);
        else
            assert_non_null(strstr(message, "see the log"));
    }
    assert_string_equal(first, "failure 0");
    fail_steps(1, "failure 0");
    struct sched_job job = greedy_job(60, some_prompt, 3, 3);
    submit(h, &job);
    until_done(h, MAX_MESSAGES + 4);
    assert_ptr_equal(h->events.items[h->events.n - 1].message, first);
    harness_close(h);
}

/* Memory is out when the first step wants room, and again when a full buffer nobody takes must grow
 * at publication. */
static void no_memory_for_events_delays_but_loses_none(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    atomic_store(&failing_reallocs, 1);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 24, 90);
    submit(h, &job);
    wait_held(h);
    assert_true(atomic_load(&failing_reallocs) <= 0);
    for (int tokens = 1; tokens < 64; tokens++) {
        hold(h);
        let_go(h);
        wait_held(h);
    }
    atomic_store(&failing_reallocs, 2);
    let_go(h);
    while (atomic_load(&failing_reallocs) > 0) usleep(500);
    until_done(h, 1);
    assert_int_equal(h->answers[1].n_tokens, 90);
    harness_close(h);
}

/* ---- loading --------------------------------------------------------------------------------- */

static void close_stops_a_load(void **state)
{
    (void)state;
    loading.until_stopped = true;
    struct harness *h = harness_open(&roomy);
    sem_wait(&loading.begun);
    assert_int_equal(stats_of(h).state, SCHED_LOADING);
    struct sched_job job = greedy_job(1, some_prompt, 3, 3);
    assert_int_equal(try_submit(h, &job), CFG_ECLOSED);
    harness_close(h); /* would wait for ever if the load were not told */
}

static void a_failed_load_is_told(void **state)
{
    (void)state;
    struct error err;
    loading.fail = true;
    struct harness *h = harness_open(&roomy);
    sem_wait(&h->notified);
    assert_int_equal(stats_of(h).state, SCHED_FAILED);
    sched_failure(h->sched, &err);
    assert_string_equal(err.message, "the disk went away");
    struct sched_job job = greedy_job(1, some_prompt, 3, 3);
    assert_int_equal(try_submit(h, &job), CFG_ECLOSED);
    sched_cancel(h->sched, 1);
    sched_drain(h->sched);
    assert_int_equal(stats_of(h).state, SCHED_FAILED);
    assert_int_equal(take(h), 0);
    harness_close(h);
}

static void a_drain_during_the_load_stays(void **state)
{
    (void)state;
    struct error err;
    loading.wait = true;
    struct harness *h = harness_open(&roomy);
    sem_wait(&loading.begun);
    sched_drain(h->sched);
    sem_post(&loading.go_on);
    sem_wait(&h->notified);
    assert_int_equal(stats_of(h).state, SCHED_DRAINING);
    struct sched_job job = greedy_job(1, some_prompt, 3, 3);
    assert_int_equal(try_submit(h, &job), CFG_ECLOSED);
    sched_failure(h->sched, &err);
    assert_string_equal(err.message, "");
    harness_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_running_chat_never_waits_for_prompts, fresh),
        cmocka_unit_test_setup(a_device_hides_the_work_after_a_step, fresh),
        cmocka_unit_test_setup(a_prompt_samples_from_its_last_row_only, fresh),
        cmocka_unit_test_setup(steps_stay_within_the_limits, fresh),
        cmocka_unit_test_setup(a_cancel_comes_before_the_next_step, fresh),
        cmocka_unit_test_setup(a_failed_step_ends_its_sequences_only, fresh),
        cmocka_unit_test_setup(a_sequence_without_rows_survives_a_failed_step, fresh),
        cmocka_unit_test_setup(many_different_failures_are_told_apart_up_to_a_point, fresh),
        cmocka_unit_test_setup(no_memory_for_events_delays_but_loses_none, fresh),
        cmocka_unit_test_setup(close_stops_a_load, fresh),
        cmocka_unit_test_setup(a_failed_load_is_told, fresh),
        cmocka_unit_test_setup(a_drain_during_the_load_stays, fresh),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    alarm(300); /* a test that waits for ever should still end */
    return cmocka_run_group_tests_name("sched steps", tests, NULL, NULL);
}
