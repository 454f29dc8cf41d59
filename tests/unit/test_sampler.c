// SPDX-License-Identifier: Apache-2.0
//
// Sampler: distributions against a plain reference in double precision that sorts, and every knob's
// effect on the logits. Seeds are fixed, so that each run draws the same numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

#define BIG_VOCAB  256384
#define BIG_USABLE 256300

static uint64_t test_random;

#define assert_near(a, b, tolerance) assert_true(fabs((double)(a) - (double)(b)) <= (tolerance))

static double uniform(void)
{
    test_random = test_random * 6364136223846793005u + 1442695040888963407u;
    return ((double)(test_random >> 33) + 0.5) / 2147483648.0;
}

static void fill(float *x, int n, uint64_t seed, double spread)
{
    test_random = seed;
    for (int i = 0; i < n; i++)
        x[i] = (float)(spread * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static struct engine_sampler *sampler(const struct engine_sampling *s, int usable,
                                      const int32_t *prompt, size_t n_prompt)
{
    struct engine_info info = {
        .vocab = usable, .usable_vocab = usable, .context = 512, .eos_id = 1};
    struct engine_sampler *out;
    struct error err;
    assert_int_equal(engine_sampler_new(&out, s, &info, prompt, n_prompt, &err), CFG_OK);
    return out;
}

static struct engine_sampling defaults(void)
{
    struct engine_sampling s;
    engine_sampling_defaults(&s);
    return s;
}

static struct engine_sampling greedy(void)
{
    struct engine_sampling s = defaults();
    s.temperature = 0;
    return s;
}

/* One pick from a copy of the logits, which is left in `after` when that is not NULL. */
static struct engine_result pick(struct engine_sampler *s, const float *logits, int vocab,
                                 int usable, float *after)
{
    struct engine_result r;
    float *copy = malloc((size_t)vocab * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, logits, (size_t)vocab * sizeof *copy);
    sampler_pick(s, copy, usable, &r);
    if (after) memcpy(after, copy, (size_t)vocab * sizeof *copy);
    free(copy);
    return r;
}

/* ---- the reference --------------------------------------------------------------------------- */

struct candidate {
    int id;
    double p;
};

static int by_probability(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id - y->id;
}

/* p[n]: the distribution that is drawn from. Returns the number of ids it keeps. */
static int reference(const float *logits, int n, const struct engine_sampling *s, double *p)
{
    struct candidate *c = malloc((size_t)n * sizeof *c);
    assert_non_null(c);
    double max = -INFINITY, sum = 0, kept = 0;
    for (int i = 0; i < n; i++) max = fmax(max, (double)logits[i]);
    for (int i = 0; i < n; i++) {
        c[i] = (struct candidate){i, exp(((double)logits[i] - max) / (double)s->temperature)};
        p[i] = 0;
    }
    qsort(c, (size_t)n, sizeof *c, by_probability);
    int m = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    for (int i = 0; i < m; i++) sum += c[i].p;
    if (s->top_p < 1) {
        double before = 0;
        int keep = 0;
        while (keep < m && (keep == 0 || before < (double)s->top_p * sum)) before += c[keep++].p;
        m = keep;
    }
    while (m > 1 && c[m - 1].p < (double)s->min_p * c[0].p) m--;
    for (int i = 0; i < m; i++) kept += c[i].p;
    for (int i = 0; i < m; i++) p[c[i].id] = c[i].p / kept;
    free(c);
    return m;
}

/* Draws with one sampler over many steps; every id drawn must be one the reference keeps, every id
 * that is kept with a fair chance must turn up, and the frequencies must fit (chi-square; its
 * 99.99% quantile is about k + 3.8 sqrt(2k) + 9 for k degrees of freedom). */
static void check_distribution(const float *logits, int n, const struct engine_sampling *s,
                               int draws)
{
    double *p = malloc((size_t)n * sizeof *p);
    int *seen = calloc((size_t)n, sizeof *seen);
    assert_true(p && seen);
    int kept = reference(logits, n, s, p);
    struct engine_sampler *smp = sampler(s, n, NULL, 0);
    for (int i = 0; i < draws; i++) {
        int32_t id = pick(smp, logits, n, n, NULL).token;
        assert_in_range(id, 0, n - 1);
        assert_true(p[id] > 0);
        seen[id]++;
    }
    double chi = 0, rest_p = 0;
    int cells = 0, rest = 0;
    for (int i = 0; i < n; i++) {
        double expected = p[i] * draws;
        if (expected < 8) { /* cells too small for the approximation are one cell */
            rest_p += p[i];
            rest += seen[i];
            continue;
        }
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        cells++;
    }
    if (rest_p * draws >= 1) {
        chi += (rest - rest_p * draws) * (rest - rest_p * draws) / (rest_p * draws);
        cells++;
    }
    assert_true(cells >= 1 && cells <= kept + 1);
    int k = cells - 1;
    assert_true(chi <= k + 3.8 * sqrt(2.0 * k) + 9);
    engine_sampler_free(smp);
    free(seen);
    free(p);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_greedy(void **state)
{
    (void)state;
    float x[40] = {0};
    x[7] = x[31] = 2.5f;
    x[38] = 99; /* padding */
    struct engine_sampling s = greedy();
    struct engine_sampler *smp = sampler(&s, 36, NULL, 0);
    assert_int_equal(pick(smp, x, 40, 36, NULL).token, 7);
    x[3] = NAN;
    x[31] = 2.6f;
    assert_int_equal(pick(smp, x, 40, 36, NULL).token, 31);
    x[12] = INFINITY;
    x[13] = INFINITY;
    assert_int_equal(pick(smp, x, 40, 36, NULL).token, 12);
    engine_sampler_free(smp);
}

static void test_plain_distribution(void **state)
{
    (void)state;
    float x[60];
    fill(x, 60, 11, 1.5);
    struct engine_sampling s = defaults();
    const float temperatures[] = {0.3f, 1, 2.5f};
    for (size_t i = 0; i < 3; i++) {
        s.temperature = temperatures[i];
        s.seed = 100 + i;
        check_distribution(x, 60, &s, 20000);
    }
}

static void test_filters(void **state)
{
    (void)state;
    const struct {
        float temperature, top_p, min_p;
        int top_k;
    } sets[] = {{1, 1, 0, 5},       {1, 1, 0, 1},        {1, 0.9f, 0, 0},
                {1, 0.3f, 0, 0},    {1, 1e-6f, 0, 0},    {1, 1, 0.1f, 0},
                {1, 1, 1, 0},       {0.7f, 0.8f, 0, 20}, {1.5f, 0.95f, 0.05f, 40},
                {3, 0.5f, 0.3f, 7}, {1, 0.999f, 0, 699}, {1, 1, 0, 900}};
    float x[700];
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        fill(x, 700, 50 + i, 2);
        struct engine_sampling s = defaults();
        s.temperature = sets[i].temperature;
        s.top_p = sets[i].top_p;
        s.min_p = sets[i].min_p;
        s.top_k = sets[i].top_k;
        s.seed = i;
        check_distribution(x, 700, &s, 4000);
    }
}

/* Filters that cut through equal logits keep the lower ids. */
static void test_filter_ties(void **state)
{
    (void)state;
    float x[400] = {0};
    struct engine_sampling s = defaults();
    s.top_k = 3;
    check_distribution(x, 400, &s, 600);
    s.top_k = 0;
    s.top_p = 0.5f;
    check_distribution(x, 400, &s, 4000);
    s.top_k = 300;
    check_distribution(x, 400, &s, 4000);
    for (int i = 0; i < 400; i += 2) x[i] = 1;
    s.top_k = 201;
    s.top_p = 1;
    check_distribution(x, 400, &s, 4000);
    s.min_p = 0.5f;
    check_distribution(x, 400, &s, 4000);
}

static void test_big_vocabulary(void **state)
{
    (void)state;
    float *x = malloc(BIG_VOCAB * sizeof *x);
    double *p = malloc(BIG_VOCAB * sizeof *p);
    assert_true(x && p);
    for (int kind = 0; kind < 4; kind++) {
        fill(x, BIG_VOCAB, 77, 2.5);
        for (int i = BIG_USABLE; i < BIG_VOCAB; i++) x[i] = 1000;
        struct engine_sampling s = defaults();
        s.seed = 5;
        if (kind == 1) s.top_k = 40;
        if (kind == 2) s.top_p = 0.8f;
        if (kind == 3) s.top_p = 0.7f, s.top_k = 5000, s.min_p = 0.02f, s.temperature = 1.3f;
        reference(x, BIG_USABLE, &s, p);
        struct engine_sampler *smp = sampler(&s, BIG_USABLE, NULL, 0);
        for (int i = 0; i < 30; i++) {
            int32_t id = pick(smp, x, BIG_VOCAB, BIG_USABLE, NULL).token;
            assert_in_range(id, 0, BIG_USABLE - 1);
            assert_true(p[id] > 0);
        }
        engine_sampler_free(smp);
    }
    free(p);
    free(x);
}

static void test_penalties_and_bias(void **state)
{
    (void)state;
    enum { N = 30 };
    float x[N], after[N];
    fill(x, N, 3, 2);
    const int32_t prompt[] = {2, 5, 5, 9, -1, 4000};
    const struct engine_bias bias[] = {{5, 1.25f}, {20, -100}, {21, 3}};
    struct engine_sampling s = greedy();
    s.repetition_penalty = 1.3f;
    s.presence_penalty = 0.5f;
    s.frequency_penalty = 0.25f;
    s.bias = bias;
    s.n_bias = 3;
    struct engine_sampler *smp = sampler(&s, N, prompt, 6);
    int counts[N] = {0};
    for (int step = 0; step < 25; step++) {
        float want[N];
        int best = 0;
        for (int i = 0; i < N; i++) {
            want[i] = x[i] + (i == 5 ? 1.25f : i == 20 ? -100.0f : i == 21 ? 3.0f : 0.0f);
            if (i == 2 || i == 5 || i == 9 || counts[i])
                want[i] = want[i] > 0 ? want[i] / 1.3f : want[i] * 1.3f;
            if (counts[i]) want[i] -= 0.5f + 0.25f * (float)counts[i];
        }
        for (int i = 0; i < N; i++)
            if (want[i] > want[best]) best = i;
        struct engine_result r = pick(smp, x, N, N, after);
        for (int i = 0; i < N; i++) assert_near(after[i], want[i], 1e-4);
        assert_int_equal(r.token, best);
        counts[best]++;
    }
    int distinct = 0;
    for (int i = 0; i < N; i++) distinct += counts[i] > 0;
    assert_true(distinct > 3); /* the penalties did move the choice */
    assert_int_equal(counts[20], 0);
    engine_sampler_free(smp);
}

/* OpenAI's extremes: +100 forces, -100 bans, whatever the model thinks within reason. */
static void test_bias_extremes(void **state)
{
    (void)state;
    float x[50];
    fill(x, 50, 8, 5);
    x[10] = 25;
    const struct engine_bias force[] = {{33, 100}, {10, -100}};
    struct engine_sampling s = defaults();
    s.bias = force;
    s.n_bias = 1;
    struct engine_sampler *smp = sampler(&s, 50, NULL, 0);
    for (int i = 0; i < 200; i++) assert_int_equal(pick(smp, x, 50, 50, NULL).token, 33);
    engine_sampler_free(smp);
    s.bias = force + 1;
    smp = sampler(&s, 50, NULL, 0);
    for (int i = 0; i < 200; i++) assert_int_not_equal(pick(smp, x, 50, 50, NULL).token, 10);
    engine_sampler_free(smp);
}

static void test_min_tokens(void **state)
{
    (void)state;
    float x[20] = {0};
    x[1] = 9;
    x[7] = 8;
    x[4] = 5;
    const int32_t ends[] = {1, 7, 999, -3};
    for (int random = 0; random < 2; random++) {
        struct engine_sampling s = random ? defaults() : greedy();
        s.min_tokens = 3;
        s.ends = ends;
        s.n_ends = 4;
        struct engine_sampler *smp = sampler(&s, 20, NULL, 0);
        for (int i = 0; i < 3; i++) {
            int32_t id = pick(smp, x, 20, 20, NULL).token;
            assert_true(id != 1 && id != 7);
        }
        int ended = 0;
        for (int i = 0; i < 20; i++) ended += pick(smp, x, 20, 20, NULL).token == 1;
        assert_true(random ? ended > 5 : ended == 20);
        engine_sampler_free(smp);
    }
}

static void run(const struct engine_sampling *s, const float *x, int n, int32_t *ids, int n_ids)
{
    struct engine_sampler *smp = sampler(s, n, NULL, 0);
    for (int i = 0; i < n_ids; i++) ids[i] = pick(smp, x, n, n, NULL).token;
    engine_sampler_free(smp);
}

static void test_seeds(void **state)
{
    (void)state;
    float x[500];
    fill(x, 500, 21, 1);
    int32_t a[60], b[60], c[60];
    struct engine_sampling s = defaults();
    s.seed = 12345;
    run(&s, x, 500, a, 60);
    run(&s, x, 500, b, 60);
    assert_memory_equal(a, b, sizeof a);
    s.seed = 12346;
    run(&s, x, 500, c, 60);
    int same = 0;
    for (int i = 0; i < 60; i++) same += a[i] == c[i];
    assert_true(same < 15);

    /* Another sampler at work in between changes nothing. */
    struct engine_sampler *first = sampler(&s, 500, NULL, 0);
    struct engine_sampling other = defaults();
    other.seed = 1;
    other.top_k = 7;
    struct engine_sampler *second = sampler(&other, 500, NULL, 0);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(pick(first, x, 500, 500, NULL).token, c[i]);
        pick(second, x, 500, 500, NULL);
    }
    engine_sampler_free(first);
    engine_sampler_free(second);
}

/* The noise belongs to the id: what a filter removes does not disturb the race among the rest. */
static void test_noise_belongs_to_ids(void **state)
{
    (void)state;
    float x[300];
    fill(x, 300, 4, 1);
    double p[300];
    struct engine_sampling s = defaults(), cut = defaults();
    cut.top_k = 60;
    s.seed = cut.seed = 9;
    int32_t all[200], some[200];
    run(&s, x, 300, all, 200);
    run(&cut, x, 300, some, 200);
    reference(x, 300, &cut, p);
    int inside = 0;
    for (int i = 0; i < 200; i++) {
        if (!(p[all[i]] > 0)) continue;
        inside++;
        assert_int_equal(all[i], some[i]);
    }
    assert_true(inside > 50 && inside < 200);
}

static double log_norm_of(const float *x, int n)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) max = fmax(max, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

static void check_top(const struct engine_result *r, const float *x, int n, int n_top)
{
    double norm = log_norm_of(x, n);
    assert_int_equal(r->n_top, n_top);
    for (int i = 0; i < n_top; i++) {
        assert_near(r->top[i].logprob, (double)x[r->top[i].id] - norm, 2e-5);
        int better = 0; /* ids that must stand before this one */
        for (int j = 0; j < n; j++)
            better += x[j] > x[r->top[i].id] || (x[j] == x[r->top[i].id] && j < r->top[i].id);
        assert_int_equal(better, i);
    }
}

/* Logprobs are the model's own, whatever was done to the logits before the choice. */
static void test_logprobs(void **state)
{
    (void)state;
    float *x = malloc(BIG_VOCAB * sizeof *x);
    assert_non_null(x);
    fill(x, BIG_VOCAB, 31, 3);
    x[100] = x[200] = x[9000] = 14.5f;
    for (int i = BIG_USABLE; i < BIG_VOCAB; i++) x[i] = 1000;
    const int32_t prompt[] = {100};
    const struct engine_bias bias[] = {{250000, 60}};
    struct engine_sampling s = defaults();
    s.n_logprobs = ENGINE_MAX_TOP;
    s.temperature = 0.5f;
    s.repetition_penalty = 2;
    s.presence_penalty = 60;
    s.bias = bias;
    s.n_bias = 1;
    struct engine_sampler *smp = sampler(&s, BIG_USABLE, prompt, 1);
    double norm = log_norm_of(x, BIG_USABLE);
    for (int i = 0; i < 3; i++) {
        struct engine_result r = pick(smp, x, BIG_VOCAB, BIG_USABLE, NULL);
        if (i == 0) assert_int_equal(r.token, 250000);
        assert_near(r.logprob, (double)x[r.token] - norm, 2e-5);
        check_top(&r, x, BIG_USABLE, ENGINE_MAX_TOP);
    }
    engine_sampler_free(smp);

    s = greedy();
    s.n_logprobs = 0;
    smp = sampler(&s, BIG_USABLE, NULL, 0);
    struct engine_result r = pick(smp, x, BIG_VOCAB, BIG_USABLE, NULL);
    assert_int_equal(r.n_top, 0);
    assert_near(r.logprob, (double)x[r.token] - norm, 2e-5);
    engine_sampler_free(smp);
    free(x);
}

static void test_score(void **state)
{
    (void)state;
    float x[90], before[90];
    fill(x, 90, 6, 2);
    x[3] = x[60];
    memcpy(before, x, sizeof x);
    struct engine_result r;
    double norm = log_norm_of(x, 80);
    for (int32_t id = 0; id < 80; id++) {
        sampler_score(x, 80, id, 7, &r);
        assert_int_equal(r.token, id);
        assert_near(r.logprob, (double)x[id] - norm, 1e-5);
        check_top(&r, x, 80, 7);
    }
    sampler_score(x, 80, 85, 0, &r);
    assert_true(r.logprob == -INFINITY);
    assert_int_equal(r.n_top, 0);
    sampler_score(x, 80, -1, 500, &r);
    assert_true(r.logprob == -INFINITY);
    assert_int_equal(r.n_top, ENGINE_MAX_TOP);
    assert_memory_equal(x, before, sizeof x);
    sampler_score(x, 4, 2, 10, &r);
    check_top(&r, x, 4, 4);
}

/* Whatever the logits hold, a pick ends with an id that may be picked. */
static void test_odd_logits(void **state)
{
    (void)state;
    const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, -0.0f, 1e-40f, 1};
    const float temperatures[] = {0, 1e-30f, 1e-4f, 1, 1e30f, FLT_MAX};
    float x[300];
    for (int t = 0; t < 6; t++) {
        for (int round = 0; round < 60; round++) {
            test_random = (uint64_t)round;
            int kinds = 1 + round % 10;
            for (int i = 0; i < 300; i++) x[i] = odd[(round + (int)(uniform() * kinds)) % 10];
            struct engine_sampling s = defaults();
            s.temperature = temperatures[t];
            s.seed = (uint64_t)round;
            s.n_logprobs = 5;
            if (round & 1) s.top_k = 10;
            if (round & 2) s.top_p = 0.6f;
            if (round & 4) s.min_p = 0.2f;
            if (round & 8) s.repetition_penalty = 1e30f, s.frequency_penalty = -2;
            struct engine_sampler *smp = sampler(&s, 290, NULL, 0);
            for (int i = 0; i < 4; i++) {
                struct engine_result r = pick(smp, x, 300, 290, NULL);
                assert_in_range(r.token, 0, 289);
                assert_true(r.logprob <= 0);
                assert_true(r.n_top >= 0 && r.n_top <= 5);
                if (x[r.token] == -INFINITY || isnan(x[r.token])) assert_int_equal(r.token, 1);
            }
            engine_sampler_free(smp);
        }
    }
    for (int i = 0; i < 300; i++) x[i] = NAN; /* nothing is possible: the answer ends */
    struct engine_sampling s = defaults();
    struct engine_sampler *smp = sampler(&s, 290, NULL, 0);
    assert_int_equal(pick(smp, x, 300, 290, NULL).token, 1);
    engine_sampler_free(smp);
}

static void test_bad_settings(void **state)
{
    (void)state;
    const struct engine_bias bad_id = {70, 1}, bad_value = {3, NAN};
    struct engine_info info = {.vocab = 64, .usable_vocab = 64, .context = 8};
    for (int i = 0; i < 14; i++) {
        struct engine_sampling s = defaults();
        if (i == 0) s.temperature = -1;
        if (i == 1) s.temperature = NAN;
        if (i == 2) s.top_p = 0;
        if (i == 3) s.top_p = 1.5f;
        if (i == 4) s.min_p = -0.1f;
        if (i == 5) s.min_p = NAN;
        if (i == 6) s.top_k = -1;
        if (i == 7) s.presence_penalty = INFINITY;
        if (i == 8) s.frequency_penalty = NAN;
        if (i == 9) s.repetition_penalty = 0;
        if (i == 10) s.n_logprobs = ENGINE_MAX_TOP + 1;
        if (i == 11) s.min_tokens = -1;
        if (i == 12) s.bias = &bad_id, s.n_bias = 1;
        if (i == 13) s.bias = &bad_value, s.n_bias = 1;
        struct engine_sampler *smp = (struct engine_sampler *)&info;
        struct error err = {0};
        assert_int_equal(engine_sampler_new(&smp, &s, &info, NULL, 0, &err), CFG_EINVAL);
        assert_null(smp);
        assert_true(strlen(err.message) > 8);
    }
    engine_sampler_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),         cmocka_unit_test(test_plain_distribution),
        cmocka_unit_test(test_filters),        cmocka_unit_test(test_filter_ties),
        cmocka_unit_test(test_big_vocabulary), cmocka_unit_test(test_penalties_and_bias),
        cmocka_unit_test(test_bias_extremes),  cmocka_unit_test(test_min_tokens),
        cmocka_unit_test(test_seeds),          cmocka_unit_test(test_noise_belongs_to_ids),
        cmocka_unit_test(test_logprobs),       cmocka_unit_test(test_score),
        cmocka_unit_test(test_odd_logits),     cmocka_unit_test(test_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
