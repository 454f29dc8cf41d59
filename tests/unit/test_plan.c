// SPDX-License-Identifier: Apache-2.0
//
// test_plan.c: the queue and the make-up of a step (scheduler/plan.h), by hand-made states and by
// small simulations that run whole prompts to their end without an engine.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdlib.h>

#include "scheduler/plan.h"

static void admits_by_seats_and_blocks(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 2, .max_step_tokens = 8};
    assert_true(plan_admits(&lim, 1, 0, 5, 5));
    assert_false(plan_admits(&lim, 2, 0, 5, 5));
    assert_false(plan_admits(&lim, 0, 0, 4, 5));
    /* A block stays for each that may grow, unless it would be alone. */
    assert_true(plan_admits(&lim, 1, 2, 7, 5));
    assert_false(plan_admits(&lim, 1, 2, 6, 5));
    assert_true(plan_admits(&lim, 0, 1, 5, 5));
}

static void decodes_come_first(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 4, .max_step_tokens = 10};
    struct plan_seq seqs[4] = {{.order = 1, .prompt_left = 1000},
                               {.order = 2},
                               {.order = 3},
                               {.order = 4, .prompt_left = 3}};
    struct plan_turn turn = {.order = 4};
    assert_int_equal(plan_step(&lim, seqs, 4, &turn), 10);
    assert_int_equal(seqs[0].rows, 5);
    assert_int_equal(seqs[1].rows, 1);
    assert_int_equal(seqs[2].rows, 1);
    assert_int_equal(seqs[3].rows, 3);
    /* The long prompt has had 5 rows of a turn that goes on with the next step. */
    assert_int_equal(turn.order, 1);
    assert_int_equal(turn.used, 5);
}

static void an_empty_plan_has_no_rows(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 4, .max_step_tokens = 10};
    struct plan_seq decoding[2] = {{.order = 7}, {.order = 9}};
    struct plan_turn turn = {.order = 5};
    assert_int_equal(plan_step(&lim, decoding, 0, &turn), 0);
    assert_int_equal(plan_step(&lim, decoding, 2, &turn), 2);
    assert_int_equal(turn.order, 5);
}

/* A budget below the quantum serves one prompt a step until its turn is used up, then the next,
 * also past a gap in the orders. */
static void turns_go_on_where_they_stopped(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 3, .max_step_tokens = PLAN_QUANTUM / 2};
    struct plan_seq seqs[3] = {{.order = 3, .prompt_left = 999},
                               {.order = 5, .prompt_left = 999},
                               {.order = 20, .prompt_left = 999}};
    static const int served[8] = {0, 0, 1, 1, 2, 2, 0, 0};
    struct plan_turn turn = {0};
    for (int step = 0; step < 8; step++) {
        assert_int_equal(plan_step(&lim, seqs, 3, &turn), PLAN_QUANTUM / 2);
        for (int i = 0; i < 3; i++)
            assert_int_equal(seqs[i].rows, i == served[step] ? PLAN_QUANTUM / 2 : 0);
    }
}

/* The one whose turn was cut short has gone: the next in order has a whole turn. */
static void a_turn_left_behind_is_not_inherited(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 3, .max_step_tokens = PLAN_QUANTUM + 11};
    struct plan_seq seqs[3] = {
        {.order = 3, .prompt_left = 999}, {.order = 5}, {.order = 20, .prompt_left = 999}};
    struct plan_turn turn = {.order = 4, .used = 60};
    assert_int_equal(plan_step(&lim, seqs, 3, &turn), PLAN_QUANTUM + 11);
    assert_int_equal(seqs[0].rows, 10);
    assert_int_equal(seqs[1].rows, 1);
    assert_int_equal(seqs[2].rows, PLAN_QUANTUM);
    assert_int_equal(turn.order, 3);
    assert_int_equal(turn.used, 10);
}

static void any_state_is_planned_within_the_rules(void **state)
{
    (void)state;
    unsigned seed = 5;
    for (int round = 0; round < 3000; round++) {
        struct plan_seq seqs[24];
        struct plan_limits lim = {.max_seqs = 24, .max_step_tokens = 24 + rand_r(&seed) % 400};
        int n = rand_r(&seed) % 25;
        uint64_t order = 0;
        struct plan_turn turn = {.order = (uint64_t)(rand_r(&seed) % 60)};
        int wanted = 0;
        for (int i = 0; i < n; i++) {
            order += 1 + (uint64_t)(rand_r(&seed) % 3);
            int left = rand_r(&seed) % 3 == 0 ? 0 : 1 + rand_r(&seed) % 200;
            seqs[i] = (struct plan_seq){.order = order, .prompt_left = left, .rows = -77};
            wanted += left > 0 ? left : 1;
        }
        int rows = plan_step(&lim, seqs, n, &turn), sum = 0;
        for (int i = 0; i < n; i++) {
            sum += seqs[i].rows;
            if (seqs[i].prompt_left == 0)
                assert_int_equal(seqs[i].rows, 1);
            else
                assert_in_range(seqs[i].rows, 0, seqs[i].prompt_left);
        }
        assert_int_equal(sum, rows);
        /* No row is left idle while a prompt wants it. */
        assert_int_equal(rows, wanted < lim.max_step_tokens ? wanted : lim.max_step_tokens);
    }
}

/* Runs one step of a simulation: prefilled rows are done. */
static void simulate(const struct plan_limits *lim, struct plan_seq *seqs, int n,
                     struct plan_turn *turn)
{
    (void)plan_step(lim, seqs, n, turn);
    for (int i = 0; i < n; i++)
        if (seqs[i].prompt_left > 0) seqs[i].prompt_left -= seqs[i].rows;
}

static void long_prompts_advance_together(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 8, .max_step_tokens = 150};
    struct plan_seq seqs[5] = {{.order = 1},
                               {.order = 2, .prompt_left = 3000},
                               {.order = 3, .prompt_left = 3000},
                               {.order = 4},
                               {.order = 5, .prompt_left = 3000}};
    struct plan_turn turn = {0};
    for (int step = 0; step < 55; step++) {
        simulate(&lim, seqs, 5, &turn);
        int least = seqs[1].prompt_left, most = least;
        for (int i = 2; i < 5; i += i == 2 ? 2 : 1) {
            if (seqs[i].prompt_left < least) least = seqs[i].prompt_left;
            if (seqs[i].prompt_left > most) most = seqs[i].prompt_left;
        }
        assert_true(least > 0);
        assert_in_range(most - least, 0, PLAN_QUANTUM); /* nobody is more than a turn ahead */
    }
}

static void a_short_prompt_overtakes_long_ones(void **state)
{
    (void)state;
    struct plan_limits lim = {.max_seqs = 8, .max_step_tokens = PLAN_QUANTUM};
    struct plan_seq seqs[4] = {{.order = 1, .prompt_left = 5000},
                               {.order = 2, .prompt_left = 5000},
                               {.order = 3, .prompt_left = 5000},
                               {.order = 4, .prompt_left = PLAN_QUANTUM}};
    struct plan_turn turn = {0};
    int steps = 0;
    for (; seqs[3].prompt_left > 0; steps++) simulate(&lim, seqs, 4, &turn);
    assert_int_equal(steps, 4);
}

/* ---- the queue ------------------------------------------------------------------------------ */

enum { MAX_JOBS = 4096 };

struct crowd {
    struct plan_queue queue;
    struct plan_tenant tenants[3];
    struct plan_job jobs[MAX_JOBS];
    int n;
};

static struct crowd *crowd_new(float w0, float w1, float w2)
{
    struct crowd *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    const float weights[3] = {w0, w1, w2};
    for (uint32_t i = 0; i < 3; i++) {
        c->tenants[i] = (struct plan_tenant){.id = 10 + i, .weight = weights[i]};
        assert_null(plan_tenant(&c->queue, 10 + i));
        plan_add_tenant(&c->queue, &c->tenants[i]);
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_ptr_equal(plan_tenant(&c->queue, 10 + i), &c->tenants[i]);
    return c;
}

static struct plan_job *arrive(struct crowd *c, int tenant, int priority)
{
    assert_in_range(c->n, 0, MAX_JOBS - 1);
    struct plan_job *job = &c->jobs[c->n++];
    *job = (struct plan_job){.tenant = &c->tenants[tenant], .priority = priority, .n_prompt = 10};
    plan_enter(&c->queue, job);
    return job;
}

/* The next one starts, is served so many tokens and ends. */
static struct plan_job *serve(struct crowd *c, int tokens)
{
    struct plan_job *job = plan_next(&c->queue);
    if (!job) return NULL;
    plan_take(&c->queue, job);
    plan_charge(job, tokens);
    plan_leave(&c->queue, job);
    return job;
}

static void priority_then_arrival(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    static const int priority[6] = {0, 1, -1, 0, -1, 1}, expected[6] = {2, 4, 0, 3, 1, 5};
    for (int i = 0; i < 6; i++) arrive(c, 0, priority[i]);
    assert_int_equal(c->queue.n, 6);
    assert_int_equal(c->queue.n_prompt, 60);
    for (int i = 0; i < 6; i++) assert_ptr_equal(serve(c, 5), &c->jobs[expected[i]]);
    assert_null(plan_next(&c->queue));
    assert_int_equal(c->queue.n_prompt, 0);
    free(c);
}

/* More urgent ones keep coming, one for each that is served. */
static void the_least_urgent_is_served_in_the_end(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    struct plan_job *patient = arrive(c, 0, 3);
    int overtaken = 0;
    arrive(c, 0, 0);
    while (serve(c, 5) != patient) {
        overtaken++;
        arrive(c, 0, 0);
    }
    assert_int_equal(overtaken, 3 * PLAN_AGING - 1);
    free(c);
    c = crowd_new(1, 1, 1);
    struct plan_job *extreme = arrive(c, 0, INT32_MAX);
    struct plan_job *urgent = arrive(c, 0, INT32_MIN);
    assert_int_equal(extreme->key, PLAN_MAX_PRIORITY * PLAN_AGING);
    assert_ptr_equal(plan_next(&c->queue), urgent);
    free(c);
}

static void tenants_share_by_weight(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 3, 0.5f);
    int tokens[3] = {0};
    unsigned seed = 4;
    for (int i = 0; i < 1200; i++) arrive(c, i % 3, i % 7 == 0 ? -5 : 0);
    for (int i = 0; i < 500; i++) {
        int n = 1 + rand_r(&seed) % 40;
        struct plan_job *job = serve(c, n);
        tokens[job->tenant->id - 10] += n;
    }
    for (int t = 0; t < 3; t++) assert_non_null(c->tenants[t].head);
    /* Never more than one job ahead, each counted by its tenant's weight. */
    assert_true(abs(tokens[1] / 3 - tokens[0]) <= 40);
    assert_true(abs(tokens[2] * 2 - tokens[0]) <= 80);
    free(c);
}

/* One job against a tenant that always has a thousand waiting. */
static void a_crowd_does_not_hide_a_single_job(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    for (int i = 0; i < 1000; i++) arrive(c, 0, -1000);
    for (int i = 0; i < 100; i++) serve(c, 50);
    struct plan_job *single = arrive(c, 1, 1000);
    struct plan_job *first = serve(c, 50);
    assert_true(first == single || serve(c, 50) == single);
    free(c);
}

static void being_away_earns_nothing(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    for (int i = 0; i < 1000; i++) arrive(c, 0, 0);
    for (int i = 0; i < 500; i++) serve(c, 10);
    /* Tenant 1 comes: from now on both get half. */
    for (int i = 0; i < 1000; i++) arrive(c, 1, 0);
    int of[2] = {0};
    for (int i = 0; i < 200; i++) of[serve(c, 10)->tenant == &c->tenants[1]]++;
    assert_in_range(of[1], 99, 101);
    /* All gone: who is new then does not start from zero either. */
    while (serve(c, 10)) continue;
    arrive(c, 2, 0);
    assert_true(c->tenants[2].served >= 9900);
    free(c);
}

static void who_yields_returns_to_its_place(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    for (int i = 0; i < 6; i++) arrive(c, 0, 0);
    struct plan_job *taken[3];
    for (int i = 0; i < 3; i++) {
        taken[i] = plan_next(&c->queue);
        plan_take(&c->queue, taken[i]);
    }
    plan_return(&c->queue, taken[2]);
    plan_return(&c->queue, taken[0]);
    assert_int_equal(c->queue.n, 5);
    static const int expected[5] = {0, 2, 3, 4, 5};
    for (int i = 0; i < 5; i++) assert_ptr_equal(serve(c, 1), &c->jobs[expected[i]]);
    free(c);
}

static void who_is_held_is_passed_over(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    for (int i = 0; i < 3; i++) arrive(c, 0, 0);
    c->jobs[0].held = c->jobs[1].held = true;
    assert_ptr_equal(serve(c, 1), &c->jobs[2]);
    assert_null(plan_next(&c->queue));
    c->jobs[0].held = false;
    assert_ptr_equal(serve(c, 1), &c->jobs[0]);
    free(c);
}

static void the_youngest_tenants_last_yields(void **state)
{
    (void)state;
    struct crowd *c = crowd_new(1, 1, 1);
    const struct plan_job *running[5] = {arrive(c, 0, 0), arrive(c, 1, 2), arrive(c, 1, -1),
                                         arrive(c, 0, 1), arrive(c, 1, 0)};
    assert_int_equal(plan_victim(running, 5), 1); /* of tenant 1 the least urgent */
    assert_int_equal(plan_victim(running, 4), 3);
    assert_int_equal(plan_victim(running, 1), 0);
    /* Within one priority the youngest. */
    const struct plan_job *equal[3] = {arrive(c, 2, 0), arrive(c, 2, 0), arrive(c, 2, 0)};
    assert_int_equal(plan_victim(equal, 3), 2);
    free(c);
}

/* ---- expert load ------------------------------------------------------------------------------
 */

/* One layer of 4 experts, one pick a token: token t goes to expert t % 4, and 9 is unknown. */
static struct routing_table *modulo_table(void)
{
    struct error err = {0};
    struct routing_table *t;
    const struct routing_shape shape = {.layers = 1, .experts = 4, .topk = 1, .vocab = 16};
    assert_int_equal(routing_table_open(&t, &shape, &err), CFG_OK);
    for (int32_t token = 0; token < 8; token++) {
        const int32_t expert = token % 4;
        routing_table_learn(t, token, &expert, 1);
    }
    return t;
}

static void open_load(struct plan_load *load, const struct routing_table *t, int most)
{
    struct error err = {0};
    assert_int_equal(plan_load_open(load, t, 1, 4, 1, most, &err), CFG_OK);
}

static void rows_fit_until_an_expert_is_full(void **state)
{
    (void)state;
    static const int32_t ones[6] = {1, 1, 1, 1, 1, 1}, each[6] = {1, 2, 3, 4, 5, 6},
                         unknown[20] = {9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9};
    struct routing_table *t = modulo_table();
    struct plan_load load;
    open_load(&load, t, 3);
    plan_load_begin(&load);
    assert_int_equal(plan_load_add(&load, ones, 6, false), 3);
    assert_int_equal(plan_load_add(&load, each, 6, false), 0); /* its first row goes there too */
    assert_int_equal(plan_load_add(&load, each + 1, 5, false), 3); /* until 5 comes back to 1 */
    assert_int_equal(plan_load_add(&load, ones, 2, true), 2);
    plan_load_begin(&load);
    /* Of the unknown a quarter each: 3 x 4 rows, then every expert is full for everybody. */
    assert_int_equal(plan_load_add(&load, unknown, 20, false), 12);
    assert_int_equal(plan_load_add(&load, ones, 1, false), 0);
    plan_load_close(&load);
    routing_table_close(t);
}

static void prompts_wait_for_their_experts(void **state)
{
    (void)state;
    static int32_t flood[500], other[40], decode[1] = {1};
    for (int i = 0; i < 500; i++) flood[i] = 1;
    for (int i = 0; i < 40; i++) other[i] = 2 + i % 2;
    struct routing_table *t = modulo_table();
    struct plan_load load;
    open_load(&load, t, 20);
    struct plan_limits lim = {.max_seqs = 8, .max_step_tokens = 200, .load = &load};
    struct plan_turn turn = {0};
    struct plan_seq seqs[3] = {{.order = 1, .tokens = decode},
                               {.order = 2, .prompt_left = 500, .tokens = flood},
                               {.order = 3, .prompt_left = 40, .tokens = other}};
    assert_int_equal(plan_step(&lim, seqs, 3, &turn), 1 + 19 + 40);
    assert_int_equal(seqs[0].rows, 1);
    assert_int_equal(seqs[1].rows, 19); /* the decode is at the same expert */
    assert_int_equal(seqs[2].rows, 40); /* nobody is in its way */
    assert_int_equal(seqs[1].deferred, 0);
    plan_load_close(&load);
    routing_table_close(t);
}

/* Decodes that fill an expert keep prompts away from it, but not for ever, and only by so much. */
static void nobody_starves_for_an_expert(void **state)
{
    (void)state;
    enum { DECODES = 30, PROMPTS = 3, N = DECODES + PROMPTS };
    static int32_t flood[100], decode[1] = {1};
    for (int i = 0; i < 100; i++) flood[i] = 1;
    struct routing_table *t = modulo_table();
    struct plan_load load;
    open_load(&load, t, 20);
    struct plan_limits lim = {.max_seqs = 64, .max_step_tokens = 300, .load = &load};
    struct plan_turn turn = {0};
    struct plan_seq seqs[N];
    for (int i = 0; i < N; i++)
        seqs[i] = (struct plan_seq){.order = (uint64_t)i + 1, .tokens = decode};
    for (int i = DECODES; i < N; i++) {
        seqs[i].prompt_left = 100;
        seqs[i].tokens = flood;
    }
    int steps = 0, left = PROMPTS * 100, most = 0;
    while (left > 0) {
        const int rows = plan_step(&lim, seqs, N, &turn);
        assert_true(rows <= DECODES + PLAN_LEAST);
        most = rows > most ? rows : most;
        for (int i = DECODES; i < N; i++) {
            if (seqs[i].prompt_left == 0) continue;
            if (seqs[i].prompt_left == seqs[i].rows) { /* through: it does not decode here */
                left -= seqs[i].rows;
                seqs[i].prompt_left = 0;
                seqs[i].tokens = decode;
                continue;
            }
            seqs[i].prompt_left -= seqs[i].rows;
            left -= seqs[i].rows;
        }
        assert_in_range(++steps, 1, PROMPTS * (100 / PLAN_LEAST + 1) * (PLAN_PATIENCE + 1));
    }
    assert_int_equal(most, DECODES + PLAN_LEAST);
    plan_load_close(&load);
    routing_table_close(t);
}

/* A limit of one token still moves: the first row always fits an empty step. */
static void the_smallest_limit_moves(void **state)
{
    (void)state;
    static const int32_t tokens[30] = {1, 1, 1, 9, 9, 9, 9, 9, 9, 2};
    struct routing_table *t = modulo_table();
    struct plan_load load;
    open_load(&load, t, 1);
    struct plan_limits lim = {.max_seqs = 1, .max_step_tokens = 100, .load = &load};
    struct plan_turn turn = {0};
    struct plan_seq q = {.order = 1, .prompt_left = 30, .tokens = tokens};
    for (int steps = 0; q.prompt_left > 0; steps++) {
        assert_in_range(plan_step(&lim, &q, 1, &turn), 1, 4);
        q.tokens += q.rows;
        q.prompt_left -= q.rows;
        assert_in_range(steps, 0, 29);
    }
    plan_load_close(&load);
    routing_table_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(admits_by_seats_and_blocks),
        cmocka_unit_test(decodes_come_first),
        cmocka_unit_test(an_empty_plan_has_no_rows),
        cmocka_unit_test(turns_go_on_where_they_stopped),
        cmocka_unit_test(a_turn_left_behind_is_not_inherited),
        cmocka_unit_test(any_state_is_planned_within_the_rules),
        cmocka_unit_test(long_prompts_advance_together),
        cmocka_unit_test(a_short_prompt_overtakes_long_ones),
        cmocka_unit_test(priority_then_arrival),
        cmocka_unit_test(the_least_urgent_is_served_in_the_end),
        cmocka_unit_test(tenants_share_by_weight),
        cmocka_unit_test(a_crowd_does_not_hide_a_single_job),
        cmocka_unit_test(being_away_earns_nothing),
        cmocka_unit_test(who_yields_returns_to_its_place),
        cmocka_unit_test(who_is_held_is_passed_over),
        cmocka_unit_test(the_youngest_tenants_last_yields),
        cmocka_unit_test(rows_fit_until_an_expert_is_full),
        cmocka_unit_test(prompts_wait_for_their_experts),
        cmocka_unit_test(nobody_starves_for_an_expert),
        cmocka_unit_test(the_smallest_limit_moves),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
