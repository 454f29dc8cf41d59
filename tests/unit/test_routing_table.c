// SPDX-License-Identifier: Apache-2.0
//
// test_routing_table.c: what the routing table learns and foretells (first choices before second
// ones, changing habits, a stream made to confuse it), expected loads, and how it is judged. The
// last test plays random traffic of random shapes against a naive model that keeps a number for
// each expert, through saving and loading too; a failure names the seed and the row. Its file is
// test_routing_file.c's.
#include "tests/unit/routing_support.h"

#include <math.h>

static void foretells(const struct routing_table *t, int32_t token, int32_t first, int32_t second)
{
    int32_t experts[2] = {-1, -1};
    assert_int_equal(routing_table_predict(t, 0, token, 2, experts), 2);
    assert_int_equal(experts[0], first);
    assert_int_equal(experts[1], second);
}

/* ---- open ------------------------------------------------------------------------------------ */

static void impossible_shapes_are_refused(void **state)
{
    (void)state;
    static const struct {
        struct routing_shape shape;
        int code;
    } cases[] = {
        {{0, 8, 2, 10}, CFG_EINVAL},         {{1, 8, 2, 0}, CFG_EINVAL},
        {{1, 8, 0, 10}, CFG_EINVAL},         {{1, 8, 9, 10}, CFG_EINVAL},
        {{1, 0, 0, 10}, CFG_EINVAL},         {{-1, 8, 2, 10}, CFG_EINVAL},
        {{1, 257, 2, 10}, CFG_EUNSUPPORTED}, {{257, 256, 2, 1}, CFG_EUNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct routing_table *t = NULL;
        struct error err = {0};
        assert_int_equal(routing_table_open(&t, &cases[i].shape, &err), cases[i].code);
        assert_null(t);
        assert_true(err.message[0]);
    }
    routing_table_close(NULL);
}

/* The largest index that two bytes hold is of use. */
static void the_largest_shape(void **state)
{
    (void)state;
    struct routing_table *t = open_table(256, 256, 1, 1);
    int32_t picks[256];
    for (int l = 0; l < 256; l++) picks[l] = 255;
    routing_table_learn(t, 0, picks, 1);
    struct routing_load *out = calloc(256 * ROUTING_SLOTS, sizeof(*out));
    assert_non_null(out);
    assert_int_equal(routing_table_expect(t, 0, out), 256);
    assert_int_equal(out[255].index, 65535);
    assert_int_equal(out[255].load, ROUTING_ONE);
    free(out);
    routing_table_close(t);
}

/* ---- learning -------------------------------------------------------------------------------- */

static void unknown_tokens(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 8, 2, 10);
    int32_t experts[2];
    struct routing_load out[MAX_ENTRIES];
    learn(t, 3, 1, 2, 1);
    static const int32_t ids[] = {0, 2, 4, 9, -1, 10, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        assert_int_equal(routing_table_predict(t, 0, ids[i], 2, experts), 0);
        assert_int_equal(routing_table_expect(t, ids[i], out), 0);
    }
    foretells(t, 3, 1, 2);
    assert_int_equal(routing_table_predict(t, 0, 3, 1, experts), 1);
    assert_int_equal(routing_table_predict(t, 0, 3, 0, experts), 0);
    routing_table_close(t);
}

static void first_choices_come_before_second_ones(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 8, 2, 4);
    /* Either order of expert numbers; both often enough for weights to be halved many times. */
    learn(t, 0, 5, 2, 1);
    learn(t, 1, 2, 5, 1);
    foretells(t, 0, 5, 2);
    foretells(t, 1, 2, 5);
    learn(t, 0, 5, 2, 2000);
    learn(t, 1, 2, 5, 2000);
    foretells(t, 0, 5, 2);
    foretells(t, 1, 2, 5);
    /* Three rows in four have 7 first, one in four 1. */
    for (int i = 0; i < 400; i++) learn(t, 2, i % 4 ? 7 : 1, i % 4 ? 1 : 7, 1);
    foretells(t, 2, 7, 1);
    routing_table_close(t);
}

/* Layers and tokens are apart, and picks are read through the stride. */
static void layers_and_tokens_are_apart(void **state)
{
    (void)state;
    struct routing_table *t = open_table(3, 8, 2, 3);
    static const int32_t picks[3 * 5] = {1, 2, -7, -7, -7, 3, 4, -7, -7, -7, 7, 0, -7, -7, -7};
    static const int32_t others[3 * 2] = {4, 5, 4, 5, 4, 5};
    routing_table_learn(t, 1, picks, 5);
    routing_table_learn(t, 0, others, 2);
    routing_table_learn(t, 2, others, 2);
    for (int l = 0; l < 3; l++) {
        int32_t experts[ROUTING_SLOTS];
        assert_int_equal(routing_table_predict(t, l, 1, ROUTING_SLOTS, experts), 2);
        assert_memory_equal(experts, picks + 5 * l, 2 * sizeof(experts[0]));
    }
    struct routing_load out[MAX_ENTRIES];
    assert_int_equal(routing_table_expect(t, 1, out), 6);
    static const int indices[6] = {1, 2, 11, 12, 23, 16};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(out[i].index, indices[i]);
        assert_int_equal(out[i].load, ROUTING_ONE);
    }
    routing_table_close(t);
}

/* Now and then another pair, a different one each time: the habit stays, and so does its load. */
static void a_habit_is_stable(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 32, 2, 1);
    learn(t, 0, 9, 4, 20);
    for (int i = 0; i < 3000; i++) {
        if (i % 3 == 0)
            learn(t, 0, 10 + i % 22, 10 + (i + 7) % 22, 1);
        else
            learn(t, 0, 9, 4, 1);
        foretells(t, 0, 9, 4);
        assert_true(load_of(t, 0, 9) > ROUTING_ONE / 2);
        assert_true(load_of(t, 0, 4) > ROUTING_ONE / 2);
    }
    routing_table_close(t);
}

/* However long the old habit was, the new one leads after about as many rows as are remembered. */
static void a_changed_habit_is_followed(void **state)
{
    (void)state;
    static const int lengths[] = {1, 10, 100, 100000};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct routing_table *t = open_table(1, 32, 2, 1);
        learn(t, 0, 1, 2, lengths[i]);
        learn(t, 0, 3, 4, 120);
        foretells(t, 0, 3, 4);
        learn(t, 0, 3, 4, 600);
        foretells(t, 0, 3, 4);
        assert_true(load_of(t, 0, 3) > ROUTING_ONE * 9 / 10);
        assert_true(load_of(t, 0, 4) > ROUTING_ONE * 9 / 10);
        assert_true(load_of(t, 0, 1) < ROUTING_ONE / 10);
        routing_table_close(t);
    }
}

/* All experts in turn, so that no slot lasts. The token stays known, the expectation stays sound,
 * other tokens keep theirs, and a habit that follows is learned as fast as by an empty table. */
static void a_stream_of_many_experts(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 256, 2, 2);
    learn(t, 1, 8, 9, 50);
    learn(t, 0, 1, 2, 1000);
    for (int i = 0; i < 5000; i++) {
        learn(t, 0, 2 * i % 256, (2 * i + 1) % 256, 1);
        struct routing_load out[MAX_ENTRIES];
        const int n = routing_table_expect(t, 0, out);
        int sum = 0;
        for (int k = 0; k < n; k++) {
            assert_in_range(out[k].load, 0, ROUTING_ONE);
            sum += out[k].load;
        }
        assert_in_range(n, 2, ROUTING_SLOTS);
        assert_in_range(sum, 2 * ROUTING_ONE - n, 2 * ROUTING_ONE);
    }
    foretells(t, 1, 8, 9);
    learn(t, 0, 200, 100, 3);
    foretells(t, 0, 200, 100);
    routing_table_close(t);
}

/* The rule of Misra and Gries: what takes more than a fifth of the weight has one of four slots,
 * whatever comes between. Here it takes a third. */
static void a_frequent_expert_keeps_its_slot(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 256, 1, 1);
    int hits = 0;
    for (int i = 0; i < 4000; i++) {
        int32_t pick = i % 3 == 0 ? 77 : 100 + i % 150, experts[ROUTING_SLOTS];
        routing_table_learn(t, 0, &pick, 1);
        int n = routing_table_predict(t, 0, 0, ROUTING_SLOTS, experts);
        for (int k = 0; k < n; k++) hits += experts[k] == 77;
    }
    assert_int_equal(hits, 4000);
    routing_table_close(t);
}

/* ---- expected loads -------------------------------------------------------------------------- */

static void loads_are_shares_of_picks(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 8, 2, 8);
    /* Always the same two: a whole pick each, though the first weighs more. */
    learn(t, 0, 6, 3, 30);
    assert_int_equal(load_of(t, 0, 6), ROUTING_ONE);
    assert_int_equal(load_of(t, 0, 3), ROUTING_ONE);
    assert_int_equal(load_of(t, 0, 0), 0);
    /* The first always the same, the second one of two: one and two halves. */
    for (int i = 0; i < 40; i++) learn(t, 1, 5, i % 2, 1);
    assert_int_equal(load_of(t, 1, 5), ROUTING_ONE);
    assert_in_range(load_of(t, 1, 0), ROUTING_ONE / 2 - 1, ROUTING_ONE / 2);
    assert_in_range(load_of(t, 1, 1), ROUTING_ONE / 2 - 1, ROUTING_ONE / 2);
    /* Four equally often: half a pick each. */
    for (int i = 0; i < 40; i++) learn(t, 2, i % 4, (i + 2) % 4, 1);
    for (int e = 0; e < 4; e++)
        assert_in_range(load_of(t, 2, e), ROUTING_ONE / 2 - 1, ROUTING_ONE / 2);
    routing_table_close(t);

    t = open_table(1, 8, 1, 1);
    for (int i = 0; i < 40; i++) {
        int32_t pick = i % 4 ? 1 : 2;
        routing_table_learn(t, 0, &pick, 1);
    }
    assert_in_range(load_of(t, 0, 1), ROUTING_ONE * 3 / 4 - 1, ROUTING_ONE * 3 / 4);
    assert_in_range(load_of(t, 0, 2), ROUTING_ONE / 4 - 1, ROUTING_ONE / 4);
    routing_table_close(t);
}

/* More choices than slots: the known ones, and others to make up the sum; over all tokens each of
 * the others about as often, so that no expert is thought busy for being numbered low. */
static void more_choices_than_slots(void **state)
{
    (void)state;
    enum { VOCAB = 320, EXPERTS = 16 };
    struct routing_table *t = open_table(2, EXPERTS, 6, VOCAB);
    static const int32_t picks[12] = {1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15};
    int sums[2 * EXPERTS] = {0};
    for (int32_t id = 0; id < VOCAB; id++) {
        routing_table_learn(t, id, picks, 6);
        struct routing_load out[2 * 6];
        bool seen[2 * EXPERTS] = {0};
        assert_int_equal(routing_table_expect(t, id, out), 12);
        for (int i = 0; i < 12; i++) {
            assert_in_range(out[i].index, i / 6 * EXPERTS, (i / 6 + 1) * EXPERTS - 1);
            assert_int_equal(out[i].load, ROUTING_ONE);
            assert_false(seen[out[i].index]);
            seen[out[i].index] = true;
            sums[out[i].index]++;
        }
        for (int k = 0; k < 4; k++) assert_true(seen[picks[k]] && seen[EXPERTS + picks[6 + k]]);
    }
    for (int i = 0; i < 2 * EXPERTS; i++) {
        bool known = (i >= 1 && i <= 4) || (i >= 26 && i <= 29);
        assert_in_range(sums[i], known ? VOCAB : 1, known ? VOCAB : VOCAB / 2);
    }
    routing_table_close(t);
}

/* ---- scores ---------------------------------------------------------------------------------- */

static void rows_are_judged_before_they_are_learned(void **state)
{
    (void)state;
    struct routing_table *t = open_table(2, 8, 2, 4);
    static const struct {
        int32_t token, picks[4];
        struct routing_score after[2]; /* of each layer */
    } rows[] = {
        {1, {1, 2, 3, 4}, {{1, 0, 0, 0}, {1, 0, 0, 0}}},
        {1, {1, 2, 4, 3}, {{2, 1, 1, 2}, {2, 1, 0, 2}}},
        {1, {5, 1, 6, 7}, {{3, 2, 1, 3}, {3, 2, 0, 2}}},
        {2, {1, 2, 3, 4}, {{4, 2, 1, 3}, {4, 2, 0, 2}}},
        {2, {1, 7, 0, 3}, {{5, 3, 2, 4}, {5, 3, 0, 3}}},
        /* Known, but third among the known: no hit. */
        {1, {0, 5, 7, 6}, {{6, 4, 2, 4}, {6, 4, 0, 3}}},
    };
    struct routing_score scores[2];
    routing_table_score(t, scores);
    static const struct routing_score none[2];
    assert_memory_equal(scores, none, sizeof none);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        routing_table_learn(t, rows[i].token, rows[i].picks, 2);
        routing_table_score(t, scores);
        assert_memory_equal(scores, rows[i].after, sizeof scores);
    }
    routing_table_close(t);
}

/* ---- against a naive model ------------------------------------------------------------------- */

enum { VOCAB = 3, LAYERS = 2, MOST = 12 };

/* One token in one layer: a number for each expert, and the order of those that are kept. */
struct naive {
    int weight[MOST], rank[MOST]; /* rank: in the row learned last, the best the highest */
    int order[MOST], n;
};

struct run {
    unsigned seed, rng;
    int row, experts, topk;
    struct naive naive[VOCAB][LAYERS];
    struct routing_score scores[LAYERS];
};

#define REQUIRE(r, what)                                                                           \
    do {                                                                                           \
        if (!(what)) fail_msg("seed %u, row %d: not so: %s", (r)->seed, (r)->row, #what);          \
    } while (0)

static int draw(struct run *r, int n)
{
    return (int)(rand_r(&r->rng) >> 4) % n;
}

static bool before(const struct naive *m, int a, int b)
{
    if (m->weight[a] != m->weight[b]) return m->weight[a] > m->weight[b];
    return m->rank[a] != m->rank[b] ? m->rank[a] > m->rank[b] : a > b;
}

static void naive_learn(struct naive *m, int experts, int topk, const int32_t *picks)
{
    memset(m->rank, 0, sizeof m->rank);
    for (int k = 0; k < topk; k++) {
        m->weight[picks[k]] += k == 0 ? 3 : 2;
        m->rank[picks[k]] = topk - k;
    }
    m->n = 0;
    for (int e = 0; e < experts; e++) {
        if (m->weight[e] == 0) continue;
        int at = m->n++;
        for (; at > 0 && before(m, e, m->order[at - 1]); at--) m->order[at] = m->order[at - 1];
        m->order[at] = e;
    }
    const int lost = m->n > ROUTING_SLOTS ? m->weight[m->order[ROUTING_SLOTS]] : 0;
    for (int i = 0; i < m->n; i++) {
        int *w = &m->weight[m->order[i]];
        *w = i >= ROUTING_SLOTS ? 0 : *w > lost ? *w - lost : 1;
    }
    if (m->n > ROUTING_SLOTS) m->n = ROUTING_SLOTS;
    if (m->weight[m->order[0]] > 255)
        for (int i = 0; i < m->n; i++) m->weight[m->order[i]] = (m->weight[m->order[i]] + 1) / 2;
}

static void naive_score(const struct naive *m, int topk, const int32_t *picks,
                        struct routing_score *score)
{
    score->rows++;
    score->known += m->n > 0;
    score->first_hits += m->n > 0 && m->order[0] == picks[0];
    for (int i = 0; i < m->n && i < topk; i++)
        for (int k = 0; k < topk; k++) score->top_hits += m->order[i] == picks[k];
}

/* Shares in picks: what is above one goes to those below it, until nobody is above. */
static void naive_shares(const struct naive *m, int topk, double *share)
{
    bool full[MOST] = {0};
    for (bool again = true; again;) {
        double left = topk < m->n ? topk : m->n, weights = 0;
        for (int i = 0; i < m->n; i++) {
            left -= full[i];
            weights += full[i] ? 0 : m->weight[m->order[i]];
        }
        again = false;
        for (int i = 0; i < m->n; i++) {
            share[i] = full[i] ? 1 : m->weight[m->order[i]] * left / weights;
            if (share[i] > 1) again = full[i] = true;
        }
    }
}

static int compare_layer(struct run *r, const struct naive *m, int layer, int32_t id,
                         const struct routing_table *t, const struct routing_load *loads)
{
    int32_t experts[ROUTING_SLOTS];
    REQUIRE(r, routing_table_predict(t, layer, id, ROUTING_SLOTS, experts) == m->n);
    for (int i = 0; i < m->n; i++) REQUIRE(r, experts[i] == m->order[i]);
    if (m->n == 0) return 0;
    const int n = m->n > r->topk ? m->n : r->topk;
    double share[MOST];
    int sum = 0;
    naive_shares(m, r->topk, share);
    for (int i = 0; i < n; i++) {
        REQUIRE(r, loads[i].load <= ROUTING_ONE);
        sum += loads[i].load;
        if (i >= m->n) continue; /* made up: see more_choices_than_slots */
        REQUIRE(r, loads[i].index == layer * r->experts + m->order[i]);
        REQUIRE(r, fabs(loads[i].load - share[i] * ROUTING_ONE) < 1.01);
    }
    REQUIRE(r, sum <= r->topk * ROUTING_ONE && sum >= r->topk * ROUTING_ONE - n);
    return n;
}

static void compare(struct run *r, const struct routing_table *t)
{
    for (int32_t id = 0; id < VOCAB; id++) {
        struct routing_load loads[LAYERS * MOST];
        int n = routing_table_expect(t, id, loads), used = 0;
        for (int l = 0; l < LAYERS; l++)
            used += compare_layer(r, &r->naive[id][l], l, id, t, loads + used);
        REQUIRE(r, used == n);
    }
}

/* topk different experts; a few of them far more often than the others, and not always the same. */
static void draw_picks(struct run *r, int32_t *picks)
{
    const int habit = r->row / 97;
    for (int k = 0; k < r->topk;) {
        int e = draw(r, 4) ? (habit + draw(r, 3)) % r->experts : draw(r, r->experts);
        bool taken = false;
        for (int j = 0; j < k; j++) taken |= picks[j] == e;
        if (!taken) picks[k++] = e;
    }
}

static void play(struct run *r, unsigned seed)
{
    *r = (struct run){.seed = seed, .rng = seed};
    r->experts = 1 + draw(r, MOST);
    r->topk = 1 + draw(r, r->experts < 6 ? r->experts : 6);
    struct routing_table *t = open_table(LAYERS, r->experts, r->topk, VOCAB);
    struct routing_table *copy = open_table(LAYERS, r->experts, r->topk, VOCAB);
    for (r->row = 0; r->row < 600; r->row++) {
        const int32_t id = draw(r, 8) % VOCAB; /* 2 comes less often than 0 and 1 */
        int32_t picks[LAYERS][MOST];
        for (int l = 0; l < LAYERS; l++) {
            draw_picks(r, picks[l]);
            naive_score(&r->naive[id][l], r->topk, picks[l], &r->scores[l]);
            naive_learn(&r->naive[id][l], r->experts, r->topk, picks[l]);
        }
        routing_table_learn(t, id, picks[0], MOST);
        compare(r, t);
        if (draw(r, 1000) == 0) {
            save(t);
            load(copy);
            compare(r, copy);
        }
    }
    struct routing_score scores[LAYERS];
    routing_table_score(t, scores);
    REQUIRE(r, memcmp(scores, r->scores, sizeof scores) == 0);
    routing_table_close(t);
    routing_table_close(copy);
}

static void agrees_with_a_naive_model(void **state)
{
    (void)state;
    struct run r;
    for (unsigned seed = 1; seed <= 60; seed++) play(&r, seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(impossible_shapes_are_refused),
        cmocka_unit_test(the_largest_shape),
        cmocka_unit_test(unknown_tokens),
        cmocka_unit_test(first_choices_come_before_second_ones),
        cmocka_unit_test(layers_and_tokens_are_apart),
        cmocka_unit_test(a_habit_is_stable),
        cmocka_unit_test(a_changed_habit_is_followed),
        cmocka_unit_test(a_stream_of_many_experts),
        cmocka_unit_test(a_frequent_expert_keeps_its_slot),
        cmocka_unit_test(loads_are_shares_of_picks),
        cmocka_unit_test(more_choices_than_slots),
        cmocka_unit_test(rows_are_judged_before_they_are_learned),
        cmocka_unit_test_setup_teardown(agrees_with_a_naive_model, make_folder, remove_folder),
    };
    return cmocka_run_group_tests_name("routing_table", tests, NULL, NULL);
}
