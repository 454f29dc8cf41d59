// SPDX-License-Identifier: Apache-2.0
//
// test_sched_invariants.c: what a request is answered never depends on how it was served, bit by
// bit, with the real engine on the tiny golden model, in dropless and in isolated mode: alone or
// beside others, in any chunks, with any number of threads, after losing its blocks, from cached
// blocks, as one of several answers to a prompt. And what reuse is for: prompts are computed once.
// In reference mode company does change answers, as published. Runs from the repository's root.
#include "tests/unit/sched_harness.h"

#include <stdio.h>

/* In isolated mode the capacity of so few tokens that most sequences have drops. */
static const struct setup modes[] = {
    {.capacity = CFG_CAPACITY_DROPLESS,
     .max_seqs = 48,
     .max_step_tokens = 512,
     .max_queued = 64,
     .blocks = 400},
    {.capacity = CFG_CAPACITY_ISOLATED,
     .capacity_length = 48,
     .max_seqs = 48,
     .max_step_tokens = 512,
     .max_queued = 64,
     .blocks = 400},
};
#if defined(__SANITIZE_THREAD__)
enum { MODES = 1 }; /* the threads do the same in both, at a twentieth of the speed */
#else
enum { MODES = sizeof(modes) / sizeof(modes[0]) };
#endif

/* Less of everything on the emulated device. */
static size_t n_jobs(void)
{
    return test_emulated() ? 5 : 32;
}

static bool skip_emulated(const char *what)
{
    if (test_emulated()) print_message("%s: too slow on the emulated device, NOT CHECKED\n", what);
    return test_emulated();
}

static int n_modes(void)
{
    return test_emulated() ? 1 : MODES;
}

static struct job_mix mix;

/* Random jobs; every other one begins like one of three long prompts, so that the cache is hit in
 * the middle of prompts too. */
static void mix_with_common_beginnings(unsigned seed)
{
    mix_jobs(&mix, n_jobs(), seed);
    for (size_t i = 0; i < mix.n; i += 2) {
        size_t n = 20 + (size_t)(rand_r(&seed) % (test_emulated() ? 30 : 100));
        for (size_t k = 0; k < n; k++)
            mix.prompts[i][k] = (int32_t)((k * 37 + i % 3 * 11 + k / 16 * 5) % VOCAB);
        size_t tail = (size_t)(rand_r(&seed) % 20);
        for (size_t k = 0; k < tail; k++) mix.prompts[i][n + k] = rand_r(&seed) % VOCAB;
        mix.jobs[i].n_prompt = n + tail;
        mix.jobs[i].max_new =
            (test_emulated() ? 30 : 1) + rand_r(&seed) % (test_emulated() ? 30 : 60);
    }
}

static uint64_t dropped_of(struct harness *h)
{
    struct sched_routing *g = sched_routing_total(h->sched);
    uint64_t n = 0;
    for (int i = 0; i < g->layers * g->experts; i++) n += g->by_expert[i].dropped;
    sched_routing_unref(g);
    return n;
}

/* Every answer of the mix, each job run with nothing beside it or before it. */
static struct answer *answers_alone(const struct setup *mode, uint64_t *dropped)
{
    struct harness *h = harness_ready(mode);
    for (size_t i = 0; i < mix.n; i++) {
        submit(h, &mix.jobs[i]);
        until_done(h, (int)i + 1);
    }
    struct answer *answers = malloc(sizeof(h->answers));
    assert_non_null(answers);
    memcpy(answers, h->answers, sizeof(h->answers));
    *dropped = dropped_of(h);
    harness_close(h);
    return answers;
}

/* All at once; twice = again when they are through, so that the cache knows them. */
static struct sched_stats check_together(const struct setup *set, const struct answer *expected,
                                         bool twice)
{
    struct error err = {0};
    struct harness *h = harness_ready(set);
    for (int round = 0; round <= twice; round++) {
        memset(h->answers, 0, sizeof(h->answers));
        h->n_done = 0;
        assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
        until_done(h, (int)mix.n);
        for (size_t i = 1; i <= mix.n; i++) assert_same_answer(&h->answers[i], &expected[i]);
        assert_all_given_back(h);
    }
    struct sched_stats st = stats_of(h);
    harness_close(h);
    return st;
}

static struct setup with(const struct setup *mode, int seqs, int tokens, int blocks, bool caching)
{
    struct setup set = *mode;
    set.max_seqs = seqs;
    set.max_step_tokens = tokens;
    set.blocks = blocks;
    set.prefix_caching = caching;
    return set;
}

static void the_way_of_serving_changes_nothing(void **state)
{
    (void)state;
    mix_with_common_beginnings(41);
    for (int m = 0; m < n_modes(); m++) {
        uint64_t dropped;
        struct answer *expected = answers_alone(&modes[m], &dropped);
        assert_int_equal(dropped > 0, modes[m].capacity == CFG_CAPACITY_ISOLATED);

        struct setup company = with(&modes[m], 48, 512, 400, false);
        struct setup chunks = with(&modes[m], 6, 7, 400, false);
        const int few = test_emulated() ? 8 : 15; /* blocks: one sequence fits, not all */
        struct setup short_of_blocks = with(&modes[m], 48, 64, few, false);
        struct setup cached = with(&modes[m], 8, 100, 400, true);
        struct setup cached_in_chunks = with(&modes[m], 5, 7, 400, true);
        struct setup cached_and_short = with(&modes[m], 48, 64, few, true);

        assert_int_equal(check_together(&company, expected, false).preemptions, 0);
        assert_int_equal(check_together(&chunks, expected, false).preemptions, 0);

        struct sched_stats st = check_together(&short_of_blocks, expected, false);
        assert_true(st.preemptions > 0 && st.recomputed_tokens > 0);
        assert_int_equal(st.prefix_queried_tokens, 0);

        st = check_together(&cached, expected, true);
        assert_true(st.prefix_hit_tokens > 6 * n_jobs() &&
                    st.prefix_hit_tokens < st.prefix_queried_tokens);
        st = check_together(&cached_in_chunks, expected, true);
        assert_true(st.prefix_hit_tokens > 6 * n_jobs());
        st = check_together(&cached_and_short, expected, true);
        assert_true(st.preemptions > 0 && st.prefix_evictions > 0);
        free(expected);
    }
}

/* Prompts made to pile onto one expert run beside the others, which come last in every step. */
static void a_flood_of_one_token_changes_nothing(void **state)
{
    (void)state;
    if (skip_emulated("a flood of one token")) return;
    enum { FLOOD = 10 };
    mix_with_common_beginnings(47);
    for (int m = 0; m < n_modes(); m++) {
        uint64_t dropped;
        struct answer *expected = answers_alone(&modes[m], &dropped);
        struct setup set = with(&modes[m], 60, 300, 400, false);
        set.threads = 1;
        struct error err = {0};
        struct harness *h = harness_ready(&set);
        int32_t one[200];
        for (int k = 0; k < 200; k++) one[k] = 2;
        hold(h);
        for (uint64_t i = 0; i < FLOOD; i++) {
            struct sched_job job = greedy_job(n_jobs() + 1 + i, one, 120 + i, 10);
            submit(h, &job);
        }
        wait_held(h);
        assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
        let_go(h);
        until_done(h, (int)n_jobs() + FLOOD);
        for (size_t i = 1; i <= mix.n; i++) assert_same_answer(&h->answers[i], &expected[i]);
        harness_close(h);
        free(expected);
    }
}

static void reference_mode_depends_on_company(void **state)
{
    (void)state;
    if (skip_emulated("reference mode")) return;
    struct setup reference = roomy;
    reference.capacity = CFG_CAPACITY_REFERENCE;
    struct error err = {0};
    uint64_t dropped;
    int differ = 0;
    mix_with_common_beginnings(43);
    struct answer *expected = answers_alone(&reference, &dropped);
    struct harness *h = harness_ready(&reference);
    assert_int_equal(sched_submit_all(h->sched, mix.jobs, mix.n, &err), CFG_OK);
    until_done(h, (int)mix.n);
    for (size_t i = 1; i <= mix.n; i++)
        for (int k = 0; k < expected[i].n_tokens && k < h->answers[i].n_tokens; k++)
            differ += expected[i].tokens[k].logprob != h->answers[i].tokens[k].logprob;
    assert_true(differ > 0);
    harness_close(h);
    free(expected);
}

/* Nothing published is lost or repeated by a preemption: the counts are those of one run each. */
static void a_preemption_repeats_no_figure(void **state)
{
    (void)state;
    struct setup set = with(&modes[0], 8, 64, 14, false);
    struct error err = {0};
    struct sched_job jobs[4];
    struct harness *h = harness_ready(&set);
    for (uint64_t i = 0; i < 4; i++) {
        jobs[i] = greedy_job(i + 1, some_prompt, 12 + i, 80);
        jobs[i].score_prompt = i == 3;
    }
    assert_int_equal(sched_submit_all(h->sched, jobs, 4, &err), CFG_OK);
    until_done(h, 4);
    struct sched_stats st = stats_of(h);
    assert_true(st.preemptions > 0);
    assert_int_equal(st.generated_tokens, 320);
    assert_int_equal(st.prompt_tokens, 12 + 13 + 14 + 15);
    /* The last token of each is never computed on. */
    assert_int_equal(st.step_tokens, 54 + 316 + st.recomputed_tokens);
    for (int id = 1; id <= 4; id++) assert_int_equal(h->answers[id].n_tokens, 80);
    assert_int_equal(h->answers[4].n_scores, 14);
    assert_all_given_back(h);
    harness_close(h);
}

/* Four answers to one prompt: each as if alone, the prompt computed once but for its last token;
 * in isolated mode but for what is behind its last full block. */
static void several_answers_share_the_prompt(void **state)
{
    (void)state;
    for (int m = 0; m < n_modes(); m++)
        for (int rest = 1; rest <= 9; rest += 8) {
            struct setup set = with(&modes[m], 8, 512, 200, true);
            int32_t prompt[64];
            size_t n = 48 + (size_t)rest;
            struct error err = {0};
            for (size_t k = 0; k < n; k++) prompt[k] = (int32_t)(k * k % VOCAB);
            mix.n = 4;
            for (uint64_t i = 0; i < 4; i++) {
                mix.jobs[i] = greedy_job(i + 1, prompt, n, 20 + (int)i);
                mix.jobs[i].sampling.temperature = i == 3 ? 0 : 1;
                mix.jobs[i].sampling.seed = 77 + i;
            }
            uint64_t dropped;
            struct answer *expected = answers_alone(&modes[m], &dropped);
            struct harness *h = harness_ready(&set);
            assert_int_equal(sched_submit_all(h->sched, mix.jobs, 4, &err), CFG_OK);
            until_done(h, 4);
            for (int id = 1; id <= 4; id++) {
                assert_same_answer(&h->answers[id], &expected[id]);
                const size_t shared = set.capacity == CFG_CAPACITY_ISOLATED ? 48 : n - 1;
                assert_int_equal(h->answers[id].cached_tokens, id == 1 ? 0 : shared);
            }
            const size_t rows = set.capacity == CFG_CAPACITY_ISOLATED ? (size_t)rest : 1;
            assert_int_equal(stats_of(h).prompt_tokens, n + 3 * rows);
            assert_all_given_back(h);
            harness_close(h);
            free(expected);
        }
}

/* The first of several is cancelled before its prompt is through: the others go on. */
static void siblings_survive_the_first(void **state)
{
    (void)state;
    struct setup set = with(&modes[0], 4, 8, 200, true);
    struct error err = {0};
    struct sched_job jobs[3];
    int32_t prompt[100];
    for (int k = 0; k < 100; k++) prompt[k] = k;
    for (uint64_t i = 0; i < 3; i++) jobs[i] = greedy_job(i + 1, prompt, 100, 5);
    struct harness *h = harness_ready(&set);
    hold(h);
    struct sched_job chat = greedy_job(9, some_prompt, 5, 40);
    submit(h, &chat);
    wait_held(h);
    assert_int_equal(sched_submit_all(h->sched, jobs, 3, &err), CFG_OK);
    /* On a device a step's events are told while the next one runs: it was planned without them. */
    for (int round = 0; round <= test_on_gpu(); round++) {
        hold(h);
        let_go(h);
        wait_held(h);
    } /* a step with a token for the chat and 7 rows for the first */
    assert_int_equal(stats_of(h).prompt_tokens, 5 + 7);
    assert_int_equal(stats_of(h).waiting, 2);
    sched_cancel(h->sched, 1);
    let_go(h);
    until_done(h, 4);
    assert_int_equal(h->answers[1].finish, SCHED_CANCELLED);
    assert_int_equal(h->answers[1].n_tokens, 0);
    assert_int_equal(h->answers[2].n_tokens, 5);
    assert_int_equal(h->answers[3].n_tokens, 5);
    assert_true(h->answers[3].cached_tokens >= 64);
    assert_same_answer(&h->answers[2], &h->answers[3]);
    harness_close(h);
}

/* ---- turns of a chat ------------------------------------------------------------------------- */

/* Appends an answer and what the user says next; returns the new length. */
static size_t next_turn(int32_t *chat, size_t n, const struct answer *a, size_t n_said)
{
    for (int i = 0; i < a->n_tokens; i++) chat[n++] = a->tokens[i].token;
    for (size_t i = 0; i < n_said; i++, n++) chat[n] = (int32_t)((n * 31 + i) % VOCAB);
    return n;
}

static void a_chat_computes_only_what_is_new(void **state)
{
    (void)state;
    for (int m = 0; m < n_modes(); m++) {
        struct setup set = with(&modes[m], 4, 512, 200, true);
        struct harness *h = harness_ready(&set), *plain = harness_ready(&modes[m]);
        int32_t chat[CONTEXT];
        size_t n = 0, in_cache = 0;
        uint64_t computed = 0;
        for (; n < 53; n++) chat[n] = (int32_t)(n * 7 % VOCAB);
        for (uint64_t turn = 1; turn <= 3; turn++) {
            struct sched_job job = greedy_job(turn, chat, n, 21);
            submit(h, &job);
            until_done(h, (int)turn);
            submit(plain, &job);
            until_done(plain, (int)turn);
            const struct answer *a = &h->answers[turn];
            assert_same_answer(a, &plain->answers[turn]);
            uint64_t now = stats_of(h).prompt_tokens;
            /* Whole blocks of what the turn before computed: its prompt and all it said but the
             * last token. */
            assert_int_equal(now - computed, n - in_cache);
            assert_int_equal(a->cached_tokens, in_cache);
            computed = now;
            in_cache = (n + 20) / BLOCK_SIZE * BLOCK_SIZE;
            n = next_turn(chat, n, a, 30);
        }
        assert_int_equal(stats_of(h).prefix_hit_tokens, (53 + 20) / 16 * 16 + (104 + 20) / 16 * 16);
        assert_true(stats_of(h).kv_blocks_cached > 0);
        assert_all_given_back(h);
        harness_close(h);
        harness_close(plain);
    }
}

static void nothing_is_shared_across_tenants_or_salts(void **state)
{
    (void)state;
    static const struct {
        uint32_t tenant;
        uint64_t salt[2];
        bool scores;
        int cached;
    } jobs[] = {
        {0, {0, 0}, false, 0}, {0, {0, 0}, false, 80}, {1, {0, 0}, false, 0},
        {0, {1, 0}, false, 0}, {0, {0, 1}, false, 0},  {1, {0, 1}, false, 0},
        {0, {0, 0}, true, 0},  {1, {0, 1}, false, 80}, {0, {0, 0}, false, 80},
    };
    struct setup set = with(&modes[0], 4, 512, 200, true);
    struct harness *h = harness_ready(&set);
    int32_t prompt[96];
    for (int k = 0; k < 96; k++) prompt[k] = (int32_t)(k * 5 % VOCAB);
    for (uint64_t i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++) {
        struct sched_job job = greedy_job(i + 1, prompt, 96, 3);
        job.tenant = jobs[i].tenant;
        job.cache_salt[0] = jobs[i].salt[0];
        job.cache_salt[1] = jobs[i].salt[1];
        job.score_prompt = jobs[i].scores;
        submit(h, &job);
        until_done(h, (int)i + 1);
        assert_int_equal(h->answers[i + 1].cached_tokens, jobs[i].cached);
        assert_int_equal(h->answers[i + 1].n_scores, jobs[i].scores ? 95 : 0);
        assert_int_equal(h->answers[i + 1].tokens[2].token, h->answers[1].tokens[2].token);
    }
    harness_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_way_of_serving_changes_nothing),
        cmocka_unit_test(a_flood_of_one_token_changes_nothing),
        cmocka_unit_test(reference_mode_depends_on_company),
        cmocka_unit_test(a_preemption_repeats_no_figure),
        cmocka_unit_test(several_answers_share_the_prompt),
        cmocka_unit_test(siblings_survive_the_first),
        cmocka_unit_test(a_chat_computes_only_what_is_new),
        cmocka_unit_test(nothing_is_shared_across_tenants_or_salts),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    alarm(600); /* a test that waits for ever should still end */
    return cmocka_run_group_tests_name("sched invariants", tests, NULL, NULL);
}
