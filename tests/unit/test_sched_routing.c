// SPDX-License-Identifier: Apache-2.0
//
// test_sched_routing.c: the counters of the router's decisions against the engine's own account of
// the same sequence; each token counted once, whatever preemption and chunks make of it; the table
// of earlier picks over restarts; and the limit of tokens per expert, which changes no answer.
#include "tests/unit/sched_harness.h"

#include <stdio.h>
#include <sys/stat.h>

static const struct setup isolated = {.max_seqs = 48,
                                      .max_step_tokens = 512,
                                      .max_queued = 64,
                                      .blocks = 400,
                                      .capacity = CFG_CAPACITY_ISOLATED,
                                      .capacity_length = 32};

static int32_t long_prompt[150];

static void make_prompt(void)
{
    for (int i = 0; i < 150; i++) long_prompt[i] = i % 3 == 0 ? 2 : (i * 29 + 5) % VOCAB;
}

/* What the engine itself says of these tokens, 40 at a time. */
static void count_directly(struct engine *e, const int32_t *tokens, int n,
                           struct sched_routing *out)
{
    enum { CHUNK = 40 };
    const struct engine_info *info = engine_info(e);
    const size_t picks = (size_t)(info->moe_layers * CHUNK * info->topk);
    int32_t blocks[CONTEXT / BLOCK_SIZE];
    struct engine_routing trace = {calloc(picks, sizeof(int32_t)), calloc(picks, sizeof(float)),
                                   calloc(picks, 1)};
    uint16_t *spent = calloc((size_t)info->budget_len + 1, sizeof(*spent));
    struct error err = {0};
    for (int i = 0; i < CONTEXT / BLOCK_SIZE; i++) blocks[i] = i;
    for (int at = 0; at < n; at += CHUNK) {
        const int rows_here = n - at < CHUNK ? n - at : CHUNK, per_layer = rows_here * info->topk;
        struct engine_rows rows = {.tokens = tokens + at,
                                   .n_tokens = rows_here,
                                   .position = at,
                                   .blocks = blocks,
                                   .spent = info->budget_len ? spent : NULL};
        if (engine_step(e, &rows, 1, NULL, &trace, &err)) fail_msg("%s", err.message);
        for (int i = 0; i < info->moe_layers * per_layer; i++) {
            struct sched_picks *p =
                &out->by_expert[i / per_layer * info->experts + trace.experts[i]];
            p->made++;
            p->dropped += !trace.kept[i];
        }
    }
    free(trace.experts), free(trace.weights), free(trace.kept), free(spent);
}

static struct sched_picks sum_of(const struct sched_picks *list, int n)
{
    struct sched_picks sum = {0};
    for (int i = 0; i < n; i++) {
        sum.made += list[i].made;
        sum.dropped += list[i].dropped;
    }
    return sum;
}

static void assert_sums_agree(const struct sched_routing *g, uint64_t tokens, int topk)
{
    const struct sched_picks all = sum_of(g->by_expert, g->layers * g->experts),
                             positions = sum_of(g->by_position, SCHED_POSITIONS),
                             turns = sum_of(g->by_turn, SCHED_TURNS);
    assert_int_equal(g->tokens, tokens);
    assert_int_equal(all.made, tokens * (uint64_t)(g->layers * topk));
    assert_int_equal(positions.made, all.made);
    assert_int_equal(positions.dropped, all.dropped);
    assert_int_equal(turns.made, all.made);
    assert_int_equal(turns.dropped, all.dropped);
}

/* One sequence with counters of its own, among others, in chunks and short of blocks. */
static void check_counts(const struct setup *set, bool preempted)
{
    struct error err = {0};
    struct harness *h = harness_ready(set);
    const struct engine_info *info = engine_info(h->engine);
    struct sched_routing *own = sched_routing_new(info), *expected = sched_routing_new(info);
    static const int32_t turns[] = {0, 70, 100, 110};
    struct sched_job jobs[5];
    for (uint64_t i = 0; i < 5; i++) jobs[i] = greedy_job(i + 1, long_prompt, 120 + i, 30);
    jobs[2].routing = own;
    jobs[2].turns = turns;
    jobs[2].n_turns = 4;
    assert_int_equal(sched_submit_all(h->sched, jobs, 5, &err), CFG_OK);
    until_done(h, 5);
    const struct sched_stats st = stats_of(h);
    assert_int_equal(st.preemptions > 0, preempted);

    /* All 122 of the prompt and what was generated, but for the last one. */
    int32_t tokens[CONTEXT];
    memcpy(tokens, long_prompt, 122 * sizeof(tokens[0]));
    for (int i = 0; i < 29; i++) tokens[122 + i] = h->answers[3].tokens[i].token;
    assert_int_equal(own->refs, 1);
    assert_sums_agree(own, 151, info->topk);
    struct sched_routing *total = sched_routing_total(h->sched);
    assert_sums_agree(total, st.prompt_tokens + st.generated_tokens - 5, info->topk);

    const uint64_t each = (uint64_t)(info->moe_layers * info->topk);
    assert_int_equal(own->by_position[0].made, 64 * each);
    assert_int_equal(own->by_position[1].made, 64 * each);
    assert_int_equal(own->by_position[2].made, 23 * each);
    assert_int_equal(own->by_turn[0].made, 70 * each);
    assert_int_equal(own->by_turn[1].made, 30 * each);
    assert_int_equal(own->by_turn[2].made, 10 * each);
    assert_int_equal(own->by_turn[3].made, 41 * each);

    count_directly(h->engine, tokens, 151, expected); /* the engine thread sleeps: nothing runs */
    assert_memory_equal(own->by_expert, expected->by_expert,
                        sizeof(own->by_expert[0]) * (size_t)(own->layers * own->experts));
    assert_int_equal(sum_of(own->by_position, SCHED_POSITIONS).dropped > 0,
                     set->capacity == CFG_CAPACITY_ISOLATED);
    sched_routing_unref(total);
    sched_routing_unref(own);
    sched_routing_unref(expected);
    harness_close(h);
}

static void every_token_is_counted_once(void **state)
{
    (void)state;
    const struct setup *modes[] = {&roomy, &isolated};
    for (int m = 0; m < 2; m++) {
        struct setup set = *modes[m];
        check_counts(&set, false);
        set.max_step_tokens = 50;
        set.prefix_caching = true;
        check_counts(&set, false);
        set.blocks = 22;
        check_counts(&set, true);
    }
}

/* A prompt that is to be counted is computed, even when the cache has it. */
static void counted_prompts_are_not_taken_from_the_cache(void **state)
{
    (void)state;
    struct setup set = isolated;
    set.prefix_caching = true;
    struct harness *h = harness_ready(&set);
    struct sched_routing *own[2];
    for (uint64_t i = 0; i < 4; i++) {
        struct sched_job job = greedy_job(i + 1, long_prompt, 130, 5);
        if (i == 1 || i == 2) job.routing = own[i - 1] = sched_routing_new(engine_info(h->engine));
        submit(h, &job);
        until_done(h, (int)i + 1);
        assert_int_equal(h->answers[i + 1].cached_tokens, i == 3 ? 128 : 0);
    }
    assert_int_equal(own[0]->tokens, 134);
    assert_memory_equal(own[0]->by_expert, own[1]->by_expert,
                        sizeof(own[0]->by_expert[0]) * (size_t)(own[0]->layers * own[0]->experts));
    sched_routing_unref(own[0]);
    sched_routing_unref(own[1]);
    harness_close(h);
}

/* Isolated mode: the budget is known at the end of each block, not only where a step ended. */
static void a_short_common_beginning_is_reused(void **state)
{
    (void)state;
    struct setup set = isolated;
    set.capacity_length = 16;
    struct harness *plain = harness_ready(&set);
    set.prefix_caching = true;
    struct harness *h = harness_ready(&set);
    int32_t prompt[2][60];
    for (int i = 0; i < 60; i++) {
        prompt[0][i] = long_prompt[i];
        prompt[1][i] = i < 37 ? long_prompt[i] : 300 - i;
    }
    for (uint64_t i = 0; i < 2; i++) {
        struct sched_job job = greedy_job(i + 1, prompt[i], 60, 12);
        submit(h, &job);
        until_done(h, (int)i + 1);
        submit(plain, &job);
        until_done(plain, (int)i + 1);
        assert_same_answer(&h->answers[i + 1], &plain->answers[i + 1]);
    }
    assert_int_equal(h->answers[2].cached_tokens, 32);
    harness_close(h);
    harness_close(plain);
}

/* ---- the table and the limit ----------------------------------------------------------------- */

static struct sched_layer layer_of(struct harness *h, int layer)
{
    struct sched_layer layers[16];
    assert_in_range(engine_info(h->engine)->moe_layers, 1, 16);
    sched_layers(h->sched, layers);
    return layers[layer];
}

static void the_table_outlives_the_process(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof(path), "/tmp/openmoed-table-%d", (int)getpid());
    struct setup set = roomy;
    set.routing_table = path;
    for (uint64_t run = 0; run < 2; run++) {
        struct harness *h = harness_ready(&set);
        struct sched_job job = greedy_job(1, long_prompt, 100, 1);
        submit(h, &job);
        until_done(h, 1);
        const struct sched_layer first = layer_of(h, 0);
        assert_int_equal(first.judged, 100);
        assert_true(first.first_hits <= first.known && first.top_hits <= 2 * first.known);
        assert_true(first.largest > 0 && first.steps == 1);
        if (run == 0) assert_true(first.known > 30 && first.known < 100); /* token 2 comes again */
        if (run == 1) assert_int_equal(first.known, 100);
        if (run == 1) assert_true(first.first_hits > 50); /* the first layer sees little else */
        harness_close(h);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("something else", f);
    fclose(f);
    struct error err = {0};
    struct harness bad = {0};
    struct engine_options eo = {.model = TINY,
                                .cpu_isa = "auto",
                                .threads = 1,
                                .block_size = BLOCK_SIZE,
                                .kv_bytes = 20 * BLOCK_BYTES,
                                .max_step_tokens = 64,
                                .max_step_seqs = 4};
    assert_int_equal(engine_open(&bad.engine, &eo, &err), CFG_OK);
    struct sched_options so = {.max_seqs = 4,
                               .max_step_tokens = 64,
                               .max_queued = 4,
                               .routing_table = path,
                               .notify = on_notify,
                               .notify_arg = &bad};
    assert_int_equal(sched_open(&bad.sched, bad.engine, &so, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, path));
    engine_close(bad.engine);
    FILE *kept = fopen(path, "r"); /* and it is not overwritten */
    char text[32] = "";
    assert_non_null(fgets(text, sizeof(text), kept));
    assert_string_equal(text, "something else");
    fclose(kept);
    remove(path);
}

/* A flood of one token beside chats: the busiest expert of a step stays near the limit, nobody
 * waits for ever, and the answers are those without a limit. */
static void the_limit_bounds_a_flood(void **state)
{
    (void)state;
    enum { LIMIT = 24, FLOODS = 6 };
    int32_t flood[200];
    for (int i = 0; i < 200; i++) flood[i] = 2;
    uint64_t largest[2];
    struct answer *answers[2];
    for (int limited = 0; limited < 2; limited++) {
        struct setup set = roomy;
        set.max_step_tokens = 256;
        set.max_expert_tokens = limited ? LIMIT : 0;
        struct error err = {0};
        struct harness *h = harness_ready(&set);
        struct sched_job jobs[FLOODS + 4];
        /* Learn first what there is to know. */
        struct sched_job lesson = greedy_job(60, long_prompt, 150, 10);
        submit(h, &lesson);
        until_done(h, 1);
        const uint64_t before = layer_of(h, 0).largest;
        for (uint64_t i = 0; i < FLOODS; i++) jobs[i] = greedy_job(i + 1, flood, 200, 4);
        for (uint64_t i = FLOODS; i < FLOODS + 4; i++)
            jobs[i] = greedy_job(i + 1, long_prompt + i, 100, 40);
        assert_int_equal(sched_submit_all(h->sched, jobs, FLOODS + 4, &err), CFG_OK);
        until_done(h, FLOODS + 5);
        const struct sched_layer l = layer_of(h, 0);
        largest[limited] = l.largest - before;
        /* A step's busiest expert, on average: the limit, what the running add, one overdue prompt.
         */
        if (limited) assert_true(largest[1] <= (l.steps - 1) * (LIMIT + 16 + 10));
        assert_int_equal(stats_of(h).deferrals > 0, limited);
        answers[limited] = malloc(sizeof(h->answers));
        memcpy(answers[limited], h->answers, sizeof(h->answers));
        harness_close(h);
    }
    for (int id = 1; id <= FLOODS + 4; id++) assert_same_answer(&answers[0][id], &answers[1][id]);
    free(answers[0]);
    free(answers[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_is_counted_once),
        cmocka_unit_test(counted_prompts_are_not_taken_from_the_cache),
        cmocka_unit_test(a_short_common_beginning_is_reused),
        cmocka_unit_test(the_table_outlives_the_process),
        cmocka_unit_test(the_limit_bounds_a_flood),
    };
    make_prompt();
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    alarm(600);
    return cmocka_run_group_tests_name("sched routing", tests, NULL, NULL);
}
