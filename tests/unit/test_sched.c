// SPDX-License-Identifier: Apache-2.0
//
// test_sched.c: the scheduler with the real engine on the tiny golden model: answers are the golden
// ones and do not depend on company, chunks or cancelled neighbours; limits, refusals, cancels,
// draining and closing. Runs from the repository's root. What the real engine can't be made to do
// (fail, load for long) is in test_sched_steps.c.
#include "tests/unit/sched_harness.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>

/* ---- answers --------------------------------------------------------------------------------- */

static cJSON *golden_cases(cJSON **root)
{
    char *text;
    size_t n;
    struct error err = {0};
    if (cfg_read_file(TINY "/golden.json", 64u << 20, &text, &n, &err)) fail_msg("%s", err.message);
    *root = cJSON_ParseWithLength(text, n);
    free(text);
    assert_non_null(*root);
    return cJSON_GetObjectItem(*root, "cases");
}

static int ids_of(const cJSON *array, int32_t *out)
{
    int n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        assert_in_range(n, 0, CONTEXT - 1);
        out[n++] = (int32_t)item->valuedouble;
    }
    return n;
}

/* One job alone against one golden case. */
static void check_case(const struct setup *set, const cJSON *c)
{
    int32_t prompt[CONTEXT], greedy[CONTEXT];
    int n_prompt = ids_of(cJSON_GetObjectItem(c, "input_ids"), prompt);
    int n_greedy = ids_of(cJSON_GetObjectItem(c, "greedy"), greedy);
    const cJSON *scores = cJSON_GetObjectItem(c, "logprob_of_inputs");
    struct harness *h = harness_ready(set);
    struct sched_job job = greedy_job(7, prompt, (size_t)n_prompt, n_greedy);
    job.score_prompt = true;
    submit(h, &job);
    until_done(h, 1);
    const struct answer *a = &h->answers[7];
    assert_int_equal(a->finish, SCHED_LENGTH);
    assert_int_equal(a->n_tokens, n_greedy);
    for (int i = 0; i < n_greedy; i++) assert_int_equal(a->tokens[i].token, greedy[i]);
    assert_int_equal(a->n_scores, n_prompt - 1);
    assert_int_equal(cJSON_GetArraySize(scores), n_prompt - 1);
    int i = 0;
    const cJSON *score;
    cJSON_ArrayForEach(score, scores)
    {
        assert_int_equal(a->scores[i].token, prompt[i + 1]);
        double off = fabs((double)a->scores[i].logprob - score->valuedouble);
        if (!(off < 1e-4)) fail_msg("logprob of input %d is off by %g", i + 1, off);
        i++;
    }
    assert_all_given_back(h);
    harness_close(h);
}

static void answers_are_the_golden_ones(void **state)
{
    (void)state;
    cJSON *root, *cases = golden_cases(&root);
    const cJSON *c;
    int n_dropless = 0;
    cJSON_ArrayForEach(c, cases)
    {
        struct setup set = roomy;
        if (strcmp(cJSON_GetObjectItem(c, "mode")->valuestring, "dropless") == 0)
            n_dropless++;
        else
            set.capacity = CFG_CAPACITY_REFERENCE;
        check_case(&set, c);
    }
    cJSON_Delete(root);
    assert_true(n_dropless > 0);
}

/* Every answer of the mix, each job run with nothing beside it. */
static struct answer *alone(const struct job_mix *mix)
{
    struct harness *h = harness_ready(&roomy);
    for (size_t i = 0; i < mix->n; i++) {
        submit(h, &mix->jobs[i]);
        until_done(h, (int)i + 1);
    }
    struct answer *answers = malloc(sizeof(h->answers));
    assert_non_null(answers);
    memcpy(answers, h->answers, sizeof(h->answers));
    assert_all_given_back(h);
    harness_close(h);
    return answers;
}

static void company_changes_nothing(void **state)
{
    (void)state;
    static struct job_mix mix;
    static const struct setup setups[] = {
        {.max_seqs = 48, .max_step_tokens = 512, .max_queued = 64, .blocks = 400},
        /* few seats, small chunks: prompts cross many steps, jobs wait */
        {.max_seqs = 6, .max_step_tokens = 7, .max_queued = 64, .blocks = 400},
        /* few blocks: admission waits for memory */
        {.max_seqs = 48, .max_step_tokens = 50, .max_queued = 64, .blocks = 16},
    };
    mix_jobs(&mix, 40, 17);
    struct answer *expected = alone(&mix);
    int stopped = 0;
    for (size_t i = 1; i <= mix.n; i++) stopped += expected[i].finish == SCHED_STOP;
    assert_in_range(stopped, 1, 39); /* the mix has both kinds of ending */
    for (size_t k = 0; k < sizeof(setups) / sizeof(setups[0]); k++) {
        struct error err = {0};
        struct harness *h = harness_ready(&setups[k]);
        assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
        until_done(h, (int)mix.n);
        for (size_t i = 1; i <= mix.n; i++) assert_same_answer(&h->answers[i], &expected[i]);
        assert_all_given_back(h);
        harness_close(h);
    }
    free(expected);
}

static void an_end_id_ends_unless_ignored(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    struct sched_job job = greedy_job(1, some_prompt, 24, 12);
    submit(h, &job);
    until_done(h, 1);
    const struct answer *a = &h->answers[1];
    assert_int_equal(a->n_tokens, 12);
    int32_t end = a->tokens[5].token;
    int first = 0;
    while (a->tokens[first].token != end) first++;

    job.id = 2;
    job.sampling.ends = &end;
    job.sampling.n_ends = 1;
    submit(h, &job);
    job.id = 3;
    job.ignore_ends = true;
    submit(h, &job);
    until_done(h, 3);
    assert_int_equal(h->answers[2].finish, SCHED_STOP);
    assert_int_equal(h->answers[2].n_tokens, first + 1);
    assert_int_equal(h->answers[2].tokens[first].token, end);
    assert_same_answer(&h->answers[3], a);
    harness_close(h);
}

static void a_prompt_can_be_scored_without_an_answer(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    struct sched_job job = greedy_job(1, some_prompt, 24, 0);
    submit(h, &job);
    job.id = 2;
    job.score_prompt = true;
    job.sampling.n_logprobs = 4;
    submit(h, &job);
    job.id = 3;
    job.n_prompt = 1;
    submit(h, &job);
    until_done(h, 3);
    for (int id = 1; id <= 3; id++) {
        assert_int_equal(h->answers[id].finish, SCHED_LENGTH);
        assert_int_equal(h->answers[id].n_tokens, 0);
        assert_int_equal(h->answers[id].n_scores, id == 2 ? 23 : 0);
    }
    assert_int_equal(h->answers[2].scores[22].token, some_prompt[23]);
    assert_int_equal(h->answers[2].scores[22].n_top, 4);
    assert_int_equal(stats_of(h).generated_tokens, 0);
    assert_int_equal(stats_of(h).prompt_tokens, 49);
    harness_close(h);
}

/* ---- limits and refusals --------------------------------------------------------------------- */

static void length_is_bound_by_context_and_pool(void **state)
{
    (void)state;
    static int32_t prompt[CONTEXT + 1]; /* all zero */
    struct harness *h = harness_ready(&roomy);
    struct error err = {0};
    struct sched_job job = greedy_job(1, prompt, CONTEXT, 1);
    assert_int_equal(sched_submit(h->sched, &job, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "256"));
    job.max_new = 0;
    submit(h, &job);
    job = greedy_job(2, prompt, CONTEXT + 1, 0);
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    job = greedy_job(3, prompt, CONTEXT - 1, 1000000);
    submit(h, &job);
    job = greedy_job(4, prompt, CONTEXT - 20, 1000000);
    submit(h, &job);
    until_done(h, 3);
    assert_int_equal(h->answers[3].n_tokens, 1);
    assert_int_equal(h->answers[4].n_tokens, 20);
    assert_int_equal(h->answers[4].finish, SCHED_LENGTH);
    harness_close(h);

    struct setup small = roomy;
    small.blocks = 4;
    h = harness_ready(&small);
    job = greedy_job(1, prompt, 64, 1);
    assert_int_equal(sched_submit(h->sched, &job, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "--kv-cache-memory"));
    job = greedy_job(2, prompt, 60, 1000000);
    submit(h, &job);
    until_done(h, 1);
    assert_int_equal(h->answers[2].n_tokens, 4);
    assert_all_given_back(h);
    harness_close(h);
}

static void malformed_jobs_are_refused(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    int32_t bad[3] = {1, VOCAB, 2};
    struct sched_job good = greedy_job(1, some_prompt, 3, 4), job;
    job = good, job.id = 0;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    job = good, job.n_prompt = 0;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    job = good, job.max_new = -1;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    job = good, job.prompt = bad;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    bad[1] = -1;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    job = good, job.max_new = 0, job.sampling.n_logprobs = ENGINE_MAX_TOP + 1;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    submit(h, &good);
    until_done(h, 1);
    assert_int_equal(h->answers[1].n_tokens, 4);
    harness_close(h);
}

static void impossible_options_are_refused(void **state)
{
    (void)state;
    struct harness *h = harness_open(&roomy);
    struct sched *second;
    struct error err = {0};
    struct sched_options so = {
        .max_seqs = 9, .max_step_tokens = 8, .max_queued = 1, .notify = on_notify};
    assert_int_equal(sched_open(&second, h->engine, &so, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "--max-num-batched-tokens"));
    assert_null(second);
    so.max_seqs = 0;
    assert_int_equal(sched_open(&second, h->engine, &so, &err), CFG_EINVAL);
    harness_close(h);
}

/* One seat, taken by job 1, whose thread is held after its first token; three queue places. */
static struct harness *one_seat_taken(void)
{
    struct setup set = {.max_seqs = 1, .max_step_tokens = 64, .max_queued = 3, .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 8, 30);
    submit(h, &job);
    wait_held(h);
    return h;
}

static void a_full_queue_refuses_all_or_none(void **state)
{
    (void)state;
    struct harness *h = one_seat_taken();
    struct sched_job jobs[4];
    struct error err = {0};
    for (uint64_t i = 0; i < 4; i++) jobs[i] = greedy_job(2 + i, some_prompt, 5, 3);
    assert_int_equal(sched_submit_all(h->sched, jobs, 4, &err), CFG_EINVAL); /* can never fit */
    assert_int_equal(sched_submit_all(h->sched, jobs, 2, &err), CFG_OK);
    assert_int_equal(stats_of(h).running, 1);
    assert_int_equal(stats_of(h).waiting, 2);
    assert_int_equal(sched_submit_all(h->sched, jobs + 2, 2, &err), CFG_EFULL);
    assert_int_equal(stats_of(h).waiting, 2);
    submit(h, &jobs[2]); /* its id was not kept by the refused call */
    assert_int_equal(try_submit(h, &jobs[3]), CFG_EFULL);
    let_go(h);
    until_done(h, 4);
    submit(h, &jobs[3]);
    until_done(h, 5);
    for (int id = 2; id <= 5; id++) assert_int_equal(h->answers[id].n_tokens, 3);
    assert_all_given_back(h);
    harness_close(h);
}

static void an_id_in_use_is_refused(void **state)
{
    (void)state;
    struct harness *h = one_seat_taken();
    struct error err;
    struct sched_job jobs[2] = {greedy_job(2, some_prompt, 5, 3), greedy_job(1, some_prompt, 5, 3)};
    assert_int_equal(sched_submit_all(h->sched, jobs, 2, &err), CFG_EINVAL); /* 1 is running */
    jobs[1].id = 2;
    assert_int_equal(sched_submit_all(h->sched, jobs, 2, &err), CFG_EINVAL); /* twice in the list */
    assert_int_equal(stats_of(h).waiting, 0);
    submit(h, &jobs[0]);
    assert_int_equal(try_submit(h, &jobs[0]), CFG_EINVAL); /* waiting */
    let_go(h);
    until_done(h, 2);
    h->answers[2] = (struct answer){0};
    submit(h, &jobs[0]); /* free again after its DONE */
    until_done(h, 3);
    assert_int_equal(h->answers[2].n_tokens, 3);
    harness_close(h);
}

static void a_queue_of_tokens_is_bounded_too(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 1,
                        .max_step_tokens = 64,
                        .max_queued = 30,
                        .max_queued_tokens = 20,
                        .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job =
        greedy_job(1, some_prompt, 24, 3); /* more than 20, but it need not wait */
    submit(h, &job);
    wait_held(h);
    struct error err = {0};
    struct sched_job jobs[3] = {greedy_job(2, some_prompt, 7, 3), greedy_job(3, some_prompt, 7, 3),
                                greedy_job(4, some_prompt, 7, 3)};
    assert_int_equal(sched_submit_all(h->sched, jobs, 2, &err), CFG_OK);
    assert_int_equal(stats_of(h).waiting_tokens, 14);
    assert_int_equal(sched_submit(h->sched, &jobs[2], &err), CFG_EFULL);
    assert_non_null(strstr(err.message, "prompt tokens are waiting"));
    jobs[2].n_prompt = 6;
    submit(h, &jobs[2]);
    assert_int_equal(stats_of(h).waiting_tokens, 20);
    let_go(h);
    until_done(h, 4);
    assert_int_equal(stats_of(h).waiting_tokens, 0);
    harness_close(h);
}

/* One seat: who gets it next shows in the order of the DONE events. */
static void seats_go_by_priority_and_tenant(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 1, .max_step_tokens = 64, .max_queued = 9, .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 8, 3);
    submit(h, &job);
    wait_held(h);
    static const int priority[6] = {0, 0, -1, 5, 5, 5};
    for (uint64_t i = 0; i < 6; i++) {
        job = greedy_job(2 + i, some_prompt, 8, 3);
        job.priority = priority[i];
        job.tenant = i >= 3 ? 7 : 0;
        job.weight = i >= 3 ? 2 : 1;
        submit(h, &job);
    }
    let_go(h);
    uint64_t order[8];
    size_t n = 0;
    while (n < 7) {
        sched_take(h->sched, &h->events);
        for (size_t i = 0; i < h->events.n; i++)
            if (h->events.items[i].kind == SCHED_DONE) order[n++] = h->events.items[i].id;
        if (n < 7) sem_wait(&h->notified);
    }
    /* 8 + 3 tokens each. Tenant 0 has 9 when tenant 7 comes, and 11 when job 1 ends; tenant 7's
     * count half: 14.5 after job 5, when it is 4's turn (22); then 20 and 25.5 after 6 and 7. */
    static const uint64_t expected[7] = {1, 5, 4, 6, 7, 2, 3};
    for (int i = 0; i < 7; i++) assert_int_equal(order[i], expected[i]);
    harness_close(h);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void a_deadline_ends_what_waits_and_what_runs(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 1, .max_step_tokens = 64, .max_queued = 9, .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 8, 200);
    job.timeout_s = 0.2;
    submit(h, &job);
    wait_held(h);
    job = greedy_job(2, some_prompt, 8, 5);
    job.timeout_s = 1e-9;
    submit(h, &job);
    job = greedy_job(3, some_prompt, 8, 5);
    job.timeout_s = 1e9;
    submit(h, &job);
    job.timeout_s = -1;
    job.id = 4;
    assert_int_equal(try_submit(h, &job), CFG_EINVAL);
    usleep(250000);
    let_go(h);
    until_done(h, 3);
    for (int id = 1; id <= 2; id++) {
        assert_int_equal(h->answers[id].finish, SCHED_TIMEOUT);
        assert_non_null(strstr(h->answers[id].message, "timeout"));
        assert_in_range(h->answers[id].n_tokens, 0, 2 - id);
    }
    assert_int_equal(h->answers[3].finish, SCHED_LENGTH);
    assert_int_equal(h->answers[3].n_tokens, 5);
    assert_int_equal(stats_of(h).timeouts, 2);
    assert_all_given_back(h);
    harness_close(h);
}

static void the_queue_has_a_deadline_of_its_own(void **state)
{
    (void)state;
    struct setup set = {.max_seqs = 1,
                        .max_step_tokens = 64,
                        .max_queued = 9,
                        .queue_timeout_s = 0.1,
                        .blocks = 64};
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job job = greedy_job(1, some_prompt, 8, 40);
    submit(h, &job);
    wait_held(h);
    job.id = 2;
    submit(h, &job);
    usleep(150000);
    let_go(h);
    until_done(h, 2);
    assert_int_equal(h->answers[1].finish, SCHED_LENGTH); /* it runs: only waiting is limited */
    assert_int_equal(h->answers[2].finish, SCHED_TIMEOUT);
    assert_non_null(strstr(h->answers[2].message, "queue"));
    assert_int_equal(h->answers[2].n_tokens, 0);
    harness_close(h);
}

/* ---- cancel, drain, close -------------------------------------------------------------------- */

static void cancels_end_what_runs_and_what_waits(void **state)
{
    (void)state;
    struct harness *h = one_seat_taken();
    struct sched_job job = greedy_job(2, some_prompt, 5, 3);
    submit(h, &job);
    job.id = 3;
    submit(h, &job);
    sched_cancel(h->sched, 99); /* unknown */
    sched_cancel(h->sched, 2);  /* before admission */
    sched_cancel(h->sched, 2);
    sched_cancel(h->sched, 1); /* running: no token after the one it has */
    take(h);
    assert_int_equal(h->answers[1].n_tokens, 1);
    let_go(h);
    until_done(h, 3);
    assert_int_equal(h->answers[1].finish, SCHED_CANCELLED);
    assert_int_equal(h->answers[1].n_tokens, 1);
    assert_int_equal(h->answers[2].finish, SCHED_CANCELLED);
    assert_int_equal(h->answers[2].n_tokens, 0);
    assert_int_equal(h->answers[3].finish, SCHED_LENGTH);
    sched_cancel(h->sched, 1); /* over */
    assert_all_given_back(h);
    harness_close(h);
}

/* Cancels fall at random points of prefill and decode; blocks come back, and the answers of the
 * others are what they are alone. */
static void cancelled_neighbours_change_nothing(void **state)
{
    (void)state;
    static struct job_mix mix;
    struct setup set = {.max_seqs = 12, .max_step_tokens = 24, .max_queued = 64, .blocks = 60};
    mix_jobs(&mix, 40, 23);
    struct answer *expected = alone(&mix);
    int cancelled = 0;
    unsigned seed = 3;
    for (int round = 0; round < 4; round++) {
        struct error err = {0};
        struct harness *h = harness_ready(&set);
        assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
        while (take(h), h->n_done < (int)mix.n) {
            if (rand_r(&seed) % 3 == 0) sched_cancel(h->sched, 1 + (uint64_t)rand_r(&seed) % 40);
            sem_wait(&h->notified);
        }
        for (size_t i = 1; i <= mix.n; i++) {
            struct answer *a = &h->answers[i];
            if (a->finish != SCHED_CANCELLED) {
                assert_same_answer(a, &expected[i]);
                continue;
            }
            cancelled++;
            assert_in_range(a->n_tokens, 0, expected[i].n_tokens);
            for (int k = 0; k < a->n_tokens; k++)
                assert_same_result(&a->tokens[k], &expected[i].tokens[k]);
        }
        assert_all_given_back(h);
        harness_close(h);
    }
    free(expected);
    assert_true(cancelled > 0);
}

static void drain_finishes_what_it_has(void **state)
{
    (void)state;
    struct harness *h = one_seat_taken();
    struct sched_job job = greedy_job(2, some_prompt, 5, 3);
    submit(h, &job);
    sched_drain(h->sched);
    assert_int_equal(stats_of(h).state, SCHED_DRAINING);
    job.id = 3;
    assert_int_equal(try_submit(h, &job), CFG_ECLOSED);
    let_go(h);
    until_done(h, 2);
    assert_int_equal(h->answers[1].n_tokens, 30);
    assert_int_equal(h->answers[2].n_tokens, 3);
    assert_int_equal(try_submit(h, &job), CFG_ECLOSED);
    assert_all_given_back(h);
    harness_close(h);
}

/* Closing with jobs running, waiting, cancelled and events not taken leaves nothing behind (the
 * sanitizers watch). */
static void close_cuts_everything_short(void **state)
{
    (void)state;
    static struct job_mix mix;
    mix_jobs(&mix, 40, 29);
    struct setup set = {.max_seqs = 4, .max_step_tokens = 16, .max_queued = 64, .blocks = 64};
    for (int steps = 0; steps < 6; steps++) {
        struct error err = {0};
        struct harness *h = harness_ready(&set);
        assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
        for (int i = 0; i < steps; i++) sem_wait(&h->notified);
        sched_cancel(h->sched, 2);
        harness_close(h);
    }
    harness_close(harness_open(&roomy)); /* perhaps still loading */
    sched_close(NULL);
}

static void figures_add_up(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    assert_all_given_back(h);
    struct sched_job job = greedy_job(1, some_prompt, 24, 10);
    submit(h, &job);
    until_done(h, 1);
    struct sched_stats st = stats_of(h);
    assert_int_equal(st.state, SCHED_READY);
    assert_int_equal(st.kv_blocks_total, roomy.blocks);
    assert_int_equal(st.steps, 10);
    assert_int_equal(st.step_tokens, 24 + 9);
    assert_int_equal(st.prompt_tokens, 24);
    assert_int_equal(st.generated_tokens, 10);
    assert_true(st.step_seconds > 0);
    uint64_t timed = 0;
    double least = 0; /* every step in its bucket: their lower bounds are below the sum */
    for (int i = 0; i <= SCHED_STEP_BOUNDS; i++) {
        timed += st.step_counts[i];
        if (i > 0) least += (double)st.step_counts[i] * sched_step_bounds[i - 1];
    }
    assert_int_equal(timed, st.steps);
    assert_true(least <= st.step_seconds);
    harness_close(h);
}

static void events_wait_for_a_slow_taker(void **state)
{
    (void)state;
    struct harness *h = harness_ready(&roomy);
    struct sched_job job = greedy_job(1, some_prompt, 24, 200);
    job.score_prompt = true;
    submit(h, &job);
    for (int steps = 0; steps < 200; steps++) sem_wait(&h->notified);
    assert_int_equal(take(h), 23 + 200 + 1);
    assert_true(h->answers[1].done);
    assert_int_equal(take(h), 0);
    harness_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_the_golden_ones),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(an_end_id_ends_unless_ignored),
        cmocka_unit_test(a_prompt_can_be_scored_without_an_answer),
        cmocka_unit_test(length_is_bound_by_context_and_pool),
        cmocka_unit_test(malformed_jobs_are_refused),
        cmocka_unit_test(impossible_options_are_refused),
        cmocka_unit_test(a_full_queue_refuses_all_or_none),
        cmocka_unit_test(an_id_in_use_is_refused),
        cmocka_unit_test(a_queue_of_tokens_is_bounded_too),
        cmocka_unit_test(seats_go_by_priority_and_tenant),
        cmocka_unit_test(a_deadline_ends_what_waits_and_what_runs),
        cmocka_unit_test(the_queue_has_a_deadline_of_its_own),
        cmocka_unit_test(cancels_end_what_runs_and_what_waits),
        cmocka_unit_test(cancelled_neighbours_change_nothing),
        cmocka_unit_test(drain_finishes_what_it_has),
        cmocka_unit_test(close_cuts_everything_short),
        cmocka_unit_test(figures_add_up),
        cmocka_unit_test(events_wait_for_a_slow_taker),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    alarm(300); /* a test that waits for ever should still end */
    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
