// SPDX-License-Identifier: Apache-2.0
//
// check_sample.c: the sampler on the device against engine/sampler.c, with the same seeds, settings
// and rows: the same tokens (a draw may differ where rounding decides: one in a thousand is
// allowed, and none is seen), log-probabilities and alternatives; the distribution that is drawn
// from; odd logits; and that a row's result does not depend on the rows beside it.
#include "tests/gpu/check.h"

#include <float.h>

#include "engine/sampler.h"

#define MAX_BATCH 32
#define EOS       1

/* Rows that are sampled together, with one sampler for each side. */
struct rows {
    struct side gpu;
    int vocab, usable, n;
    float *logits; /* [n, vocab] as the model scored them */
    struct engine_sampler *mine[MAX_BATCH], *theirs[MAX_BATCH];
    struct engine_result got[MAX_BATCH], want[MAX_BATCH];
};

static struct rows open_rows(int vocab, int usable)
{
    struct backend_options opt = small_options(true);
    opt.vocab = vocab;
    opt.max_seqs = MAX_BATCH;
    struct rows r = {.gpu = open_gpu(&opt), .vocab = vocab, .usable = usable};
    r.logits = malloc(MAX_BATCH * (size_t)vocab * sizeof *r.logits);
    assert_non_null(r.logits);
    return r;
}

static void close_rows(struct rows *r)
{
    for (int i = 0; i < r->n; i++) {
        engine_sampler_free(r->mine[i]);
        engine_sampler_free(r->theirs[i]);
    }
    close_side(&r->gpu);
    free(r->logits);
}

static float *row_of(struct rows *r, int i)
{
    return r->logits + (size_t)i * (size_t)r->vocab;
}

static float normal(void)
{
    const double a = 0.5 * (1 + (double)uniform()) + 1e-9, b = (double)uniform();
    return (float)(sqrt(-2 * log(a)) * cos(3.141592653589793 * b));
}

/* One more row of normal logits; what the tokenizer does not know looks tempting. */
static int add_row(struct rows *r, const struct engine_sampling *s, float spread,
                   const int32_t *prompt, size_t n_prompt)
{
    const struct engine_info info = {
        .vocab = r->vocab, .usable_vocab = r->usable, .context = 512, .eos_id = EOS};
    struct error err;
    const int i = r->n++;
    assert_true(i < MAX_BATCH);
    for (int id = 0; id < r->vocab; id++)
        row_of(r, i)[id] = id < r->usable ? spread * normal() : 1000.0f;
    assert_int_equal(engine_sampler_new(&r->mine[i], s, &info, prompt, n_prompt, &err), CFG_OK);
    assert_int_equal(engine_sampler_new(&r->theirs[i], s, &info, prompt, n_prompt, &err), CFG_OK);
    return i;
}

/* The device samples rows first .. first+n-1 into got. A batch that is read is never recorded. */
static void sample_rows(struct rows *r, int first, int n, float *logits, bool recorded)
{
    static const int32_t zeros[MAX_BATCH];
    int32_t rows[MAX_BATCH];
    struct op_sample list[MAX_BATCH];
    const struct op_batch b = {.n_rows = n,
                               .n_seqs = n,
                               .positions = zeros,
                               .seq_of_row = rows,
                               .n_heads = n,
                               .head_rows = rows,
                               .samples = list,
                               .wants_logits = !recorded};
    memset(r->got + first, 0xff, (size_t)n * sizeof *r->got);
    for (int i = 0; i < n; i++) {
        rows[i] = i;
        list[i] = (struct op_sample){.sampler = r->mine[first + i],
                                     .target = -1,
                                     .usable = r->usable,
                                     .out = &r->got[first + i]};
        sampler_view(r->mine[first + i], &list[i]);
    }
    if (r->gpu.ops->begin(r->gpu.be, &b)) r->gpu.ops->sample(r->gpu.be, logits, r->vocab, list, n);
    sync_side(&r->gpu);
}

/* One step of all rows on both sides. */
static void step(struct rows *r)
{
    float *copy = malloc((size_t)r->vocab * sizeof *copy);
    assert_non_null(copy);
    sample_rows(r, 0, r->n, put(&r->gpu, r->logits, (size_t)r->n * (size_t)r->vocab), false);
    for (int i = 0; i < r->n; i++) {
        memset(&r->want[i], 0xff, sizeof r->want[i]);
        memcpy(copy, row_of(r, i), (size_t)r->vocab * sizeof *copy);
        sampler_pick(r->theirs[i], copy, r->usable, &r->want[i]);
        sampler_note(r->mine[i], r->want[i].token); /* should they differ, both go on alike */
    }
    free(copy);
}

static int differing(const struct rows *r)
{
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        assert_in_range(r->got[i].token, 0, r->usable - 1);
        n += r->got[i].token != r->want[i].token;
    }
    return n;
}

static struct engine_sampling defaults(uint64_t seed)
{
    struct engine_sampling s;
    engine_sampling_defaults(&s);
    s.seed = seed;
    return s;
}

static struct engine_sampling greedy(void)
{
    struct engine_sampling s = defaults(0);
    s.temperature = 0;
    return s;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static void greedy_takes_the_first_of_the_best(void **state)
{
    (void)state;
    const struct engine_sampling s = greedy();
    struct rows r = open_rows(9003, 9000); /* three parts; rows that are not aligned */
    for (int i = 0; i < 6; i++) add_row(&r, &s, 1, NULL, 0);
    row_of(&r, 0)[8999] = 9;
    row_of(&r, 1)[4095] = row_of(&r, 1)[4096] = row_of(&r, 1)[8000] = 9;
    row_of(&r, 2)[5000] = INFINITY, row_of(&r, 2)[6000] = FLT_MAX, row_of(&r, 2)[3] = NAN;
    for (int i = 0; i < 9000; i++) row_of(&r, 3)[i] = i == 7000 || i == 8500 ? -0.0f : -1.0f;
    row_of(&r, 3)[8600] = 0.0f; /* as great as -0 */
    for (int i = 0; i < 9000; i++) row_of(&r, 4)[i] = -INFINITY;
    for (int i = 0; i < 9000; i++) row_of(&r, 5)[i] = i % 2 ? NAN : -FLT_MAX;
    step(&r);
    static const int32_t want[] = {8999, 4095, 5000, 7000, EOS, EOS};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(r.got[i].token, want[i]);
        assert_int_equal(r.want[i].token, want[i]);
        assert_int_equal(r.got[i].n_top, 0);
        assert_true(r.got[i].logprob == 0.0f);
    }
    close_rows(&r);
}

static const struct {
    float temperature, top_p, min_p;
    int top_k;
} settings[] = {
    {1, 1, 0, 0},       {0.3f, 1, 0, 0},        {2.5f, 1, 0, 0},     {1, 1, 0, 5},
    {1, 1, 0, 1},       {1, 0.9f, 0, 0},        {1, 0.3f, 0, 0},     {1, 1e-6f, 0, 0},
    {1, 1, 0.1f, 0},    {1, 1, 1, 0},           {0.7f, 0.8f, 0, 20}, {1.5f, 0.95f, 0.05f, 40},
    {3, 0.5f, 0.3f, 7}, {1, 0.999f, 0, 699},    {1, 1, 0, 100000},   {0.05f, 0.95f, 0, 0},
    {8, 0.95f, 0, 0},   {1, 0.9999999f, 0, 0},  {1.2f, 1, 1e-4f, 0}, {1, 0.5f, 0, 1000},
    {0, 0.5f, 0.5f, 3}, {0.8f, 0.95f, 0, 2000}, {5, 1, 0, 3000},     {1, 0.7f, 1e-6f, 0},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

static struct engine_sampling setting(int i, uint64_t seed)
{
    struct engine_sampling s = defaults(seed);
    s.temperature = settings[i].temperature;
    s.top_p = settings[i].top_p;
    s.min_p = settings[i].min_p;
    s.top_k = settings[i].top_k;
    return s;
}

static void draws_are_the_samplers(void **state)
{
    (void)state;
    static const int vocabs[] = {300, 701, 4096, 9003};
    enum { STEPS = 12 };
    int draws = 0, different = 0;
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        struct rows r = open_rows(vocabs[v], vocabs[v] - 4);
        for (int i = 0; i < SETTINGS; i++) {
            const struct engine_sampling s = setting(i, 1000 * v + (uint64_t)i);
            add_row(&r, &s, i % 3 ? 2.0f : 4.0f, NULL, 0);
        }
        for (int i = 0; i < STEPS; i++, draws += SETTINGS) {
            step(&r);
            different += differing(&r);
        }
        close_rows(&r);
    }
    if (different > draws / 1000) fail_msg("%d of %d draws differ", different, draws);
}

/* Filters that cut through equal logits keep the lower ids; a flat row keeps all that it may. */
static void ties_are_cut_by_id(void **state)
{
    (void)state;
    enum { V = 6000 };
    struct rows r = open_rows(V, V);
    for (int i = 0; i < SETTINGS; i++) {
        const struct engine_sampling s = setting(i, (uint64_t)i);
        add_row(&r, &s, 1, NULL, 0);
        for (int id = 0; id < V; id++)
            row_of(&r, i)[id] = i % 2 ? 0.25f : (float)((uint32_t)id * 2654435761u >> 30);
    }
    for (int i = 0; i < 8; i++) {
        step(&r);
        assert_int_equal(differing(&r), 0);
    }
    close_rows(&r);
}

/* ---- changed logits -------------------------------------------------------------------------- */

static void penalties_bias_and_bans(void **state)
{
    (void)state;
    enum { V = 200 };
    static const int32_t prompt[] = {2, 5, 5, 9, -1, 4000, 120}, ends[] = {EOS, 7, 999, -3};
    static const struct engine_bias bias[] = {{5, 1.25f}, {20, -100}, {21, 3}, {5, 0.5f}};
    struct rows r = open_rows(V, V - 10);
    for (int i = 0; i < 12; i++) {
        struct engine_sampling s = i % 2 ? defaults((uint64_t)i) : greedy();
        if (i & 2) s.repetition_penalty = 1.3f;
        if (i & 4) s.presence_penalty = 0.5f, s.frequency_penalty = -0.25f;
        if (i > 3) s.bias = bias, s.n_bias = 4;
        if (i > 5) s.min_tokens = 8, s.ends = ends, s.n_ends = 4;
        if (i > 9) s.top_k = 20;
        s.n_logprobs = i % 4 - 1;
        add_row(&r, &s, 2, prompt, sizeof prompt / sizeof *prompt);
        if (i > 5) row_of(&r, i)[EOS] = row_of(&r, i)[7] = 12; /* as soon as they may */
    }
    int ended = 0;
    for (int i = 0; i < 30; i++) {
        step(&r);
        assert_int_equal(differing(&r), 0);
        for (int k = 6; k < r.n; k++) {
            const bool end = r.got[k].token == EOS || r.got[k].token == 7;
            assert_true(i >= 8 || !end);
            ended += end;
        }
        for (int k = 0; k < r.n; k++)
            assert_true(fabsf(r.got[k].logprob - r.want[k].logprob) < 2e-5f);
    }
    assert_true(ended > 30);
    close_rows(&r);
}

/* OpenAI's extremes: +100 forces, -100 bans, within reason; everything banned ends the answer. */
static void bias_extremes(void **state)
{
    (void)state;
    enum { V = 50 };
    static const struct engine_bias force[] = {{33, 100}}, ban[] = {{10, -100}};
    static const int32_t ends[] = {4};
    struct engine_sampling s = defaults(1);
    struct rows r = open_rows(V, V);
    s.bias = force;
    s.n_bias = 1;
    add_row(&r, &s, 5, NULL, 0);
    s.bias = ban;
    add_row(&r, &s, 5, NULL, 0);
    row_of(&r, 1)[10] = 25;
    s = defaults(2);
    s.min_tokens = 1000;
    s.ends = ends;
    s.n_ends = 1;
    s.n_logprobs = 0;
    add_row(&r, &s, 0, NULL, 0);
    for (int i = 0; i < V; i++) row_of(&r, 2)[i] = i == 4 ? 3.0f : -INFINITY;
    for (int i = 0; i < 60; i++) {
        step(&r);
        assert_int_equal(r.got[0].token, 33);
        assert_int_not_equal(r.got[1].token, 10);
        assert_int_equal(r.got[2].token, EOS);
        assert_true(r.got[2].logprob == -INFINITY);
        assert_int_equal(differing(&r), 0);
    }
    close_rows(&r);
}

/* ---- log-probabilities ----------------------------------------------------------------------- */

/* float rounding of sums over the row, and of the logarithm */
static const float near = 3e-5f;

static void assert_same_result(const struct engine_result *got, const struct engine_result *want)
{
    assert_int_equal(got->token, want->token);
    assert_int_equal(got->n_top, want->n_top);
    assert_true(got->logprob == want->logprob || fabsf(got->logprob - want->logprob) <= near);
    for (int i = 0; i < want->n_top; i++) {
        assert_int_equal(got->top[i].id, want->top[i].id);
        assert_true(fabsf(got->top[i].logprob - want->top[i].logprob) <= near);
    }
}

static void logprobs_are_the_models(void **state)
{
    (void)state;
    enum { V = 9002 };
    static const int32_t prompt[] = {100};
    static const struct engine_bias bias[] = {{8500, 60}};
    struct rows r = open_rows(V, V - 2);
    for (int i = 0; i < 6; i++) {
        struct engine_sampling s = setting(i, (uint64_t)i);
        s.n_logprobs = i == 5 ? ENGINE_MAX_TOP : 4 * i;
        if (i == 2) s.repetition_penalty = 2, s.presence_penalty = 60, s.bias = bias, s.n_bias = 1;
        add_row(&r, &s, 3, prompt, 1);
        row_of(&r, i)[100] = row_of(&r, i)[200] = row_of(&r, i)[9] = 14.5f;
    }
    for (int i = 0; i < 9000; i++) /* fewer possible ids than alternatives */
        row_of(&r, 5)[i] = i % 1000 == 77 ? (float)(i % 7) : i % 2 ? NAN : -INFINITY;
    for (int i = 0; i < 4; i++) {
        step(&r);
        for (int k = 0; k < r.n; k++) assert_same_result(&r.got[k], &r.want[k]);
        if (i == 0) assert_int_equal(r.got[2].token, 8500);
        assert_int_equal(r.got[5].n_top, 9);
    }
    close_rows(&r);
}

static void targets_are_scored(void **state)
{
    (void)state;
    enum { V = 9002, N = 24 };
    static const int32_t targets[] = {0, 5, 4095, 4096, 8999, 9000, 9001, -1};
    struct rows r = open_rows(V, V - 2);
    int32_t rows[N], zeros[N] = {0};
    struct op_sample list[N];
    const struct op_batch b = {.n_rows = N,
                               .n_seqs = 1,
                               .positions = zeros,
                               .seq_of_row = zeros,
                               .n_heads = N,
                               .head_rows = rows,
                               .samples = list};
    for (int i = 0; i < N * V; i++) r.logits[i] = i % V < V - 2 ? 2 * normal() : 1000.0f;
    for (int i = 0; i < N; i++) {
        rows[i] = i;
        list[i] = (struct op_sample){.target = targets[i % 8],
                                     .n_top = i < 20 ? i : 500,
                                     .usable = i == 9 ? 4 : V - 2,
                                     .out = &r.got[i]};
    }
    list[23].out = NULL; /* nobody asks */
    memset(r.got, 0xff, sizeof r.got);
    begin_side(&r.gpu, &b);
    r.gpu.ops->sample(r.gpu.be, put(&r.gpu, r.logits, N * V), V, list, 20);
    r.gpu.ops->sample(r.gpu.be, put(&r.gpu, r.logits + 20 * V, 4 * V), V, list + 20, 4);
    sync_side(&r.gpu);
    for (int i = 0; i < N - 1; i++) {
        sampler_score(row_of(&r, i), list[i].usable, list[i].target, list[i].n_top, &r.want[i]);
        assert_same_result(&r.got[i], &r.want[i]);
    }
    close_rows(&r);
}

/* ---- distributions --------------------------------------------------------------------------- */

/* Chi-square of draws over many steps and seeds; its 99.99% quantile is about k + 3.8 sqrt(2k) + 9
 * for k degrees of freedom. */
static void draws_fit_the_distribution(void **state)
{
    (void)state;
    enum { V = 60, STEPS = 100 };
    static const float temperatures[] = {0.5f, 1, 2.5f};
    for (int t = 0; t < 3; t++) {
        struct rows r = open_rows(V, V);
        struct engine_sampling s = defaults(0);
        s.temperature = temperatures[t];
        for (int i = 0; i < MAX_BATCH; i++) {
            s.seed = (uint64_t)(100 * t + i);
            add_row(&r, &s, 1.5f, NULL, 0);
            memcpy(row_of(&r, i), r.logits, V * sizeof *r.logits);
        }
        float *logits = put(&r.gpu, r.logits, MAX_BATCH * V); /* a draw leaves them alone */
        int seen[V] = {0};
        for (int i = 0; i < STEPS; i++) {
            sample_rows(&r, 0, MAX_BATCH, logits, true);
            for (int k = 0; k < MAX_BATCH; k++) {
                seen[r.got[k].token]++;
                sampler_note(r.mine[k], r.got[k].token);
            }
        }
        double sum = 0, chi = 0, rest = 0, seen_of_rest = 0;
        int cells = -1;
        for (int i = 0; i < V; i++) sum += exp((double)(r.logits[i] / temperatures[t]));
        for (int i = 0; i < V; i++) {
            const double want =
                exp((double)(r.logits[i] / temperatures[t])) / sum * STEPS * MAX_BATCH;
            if (want < 8) { /* cells too small for the approximation are one cell */
                rest += want;
                seen_of_rest += seen[i];
                continue;
            }
            chi += (seen[i] - want) * (seen[i] - want) / want;
            cells++;
        }
        if (rest >= 1) chi += (seen_of_rest - rest) * (seen_of_rest - rest) / rest, cells++;
        assert_true(cells > 5);
        assert_true(chi <= cells + 3.8 * sqrt(2.0 * cells) + 9);
        close_rows(&r);
    }
}

/* ---- odd logits ------------------------------------------------------------------------------ */

/* Whatever the logits hold, a pick ends with an id that may be picked, and mostly the same as the
 * sampler's: among weights beyond all bounds the two may round differently. */
static void odd_logits(void **state)
{
    (void)state;
    enum { V = 300, USABLE = 290 };
    static const float odd[] = {NAN,      -NAN, INFINITY, -INFINITY, FLT_MAX,
                                -FLT_MAX, 0,    -0.0f,    1e-40f,    1};
    static const float temperatures[] = {0, 1e-30f, 1e-4f, 1, 1e30f, FLT_MAX};
    int draws = 0, different = 0;
    for (int t = 0; t < 6; t++) {
        struct rows r = open_rows(V, USABLE);
        for (int round = 0; round < MAX_BATCH; round++) {
            struct engine_sampling s = defaults((uint64_t)round);
            s.temperature = temperatures[t];
            s.n_logprobs = 5;
            if (round & 1) s.top_k = 10;
            if (round & 2) s.top_p = 0.6f;
            if (round & 4) s.min_p = 0.2f;
            if (round & 8) s.repetition_penalty = 1e30f, s.frequency_penalty = -2;
            const int i = add_row(&r, &s, 1, NULL, 0), kinds = 1 + round % 10;
            for (int k = 0; k < V; k++) row_of(&r, i)[k] = odd[(round + below(kinds)) % 10];
        }
        for (int i = 0; i < 3; i++, draws += r.n) {
            step(&r);
            different += differing(&r);
            for (int k = 0; k < r.n; k++) {
                const struct engine_result *got = &r.got[k];
                const float x = row_of(&r, k)[got->token];
                assert_true(got->logprob <= 0 && got->n_top >= 0 && got->n_top <= 5);
                if (x == -INFINITY || isnan(x)) assert_int_equal(got->token, EOS);
            }
        }
        close_rows(&r);
    }
    if (different > draws / 100) fail_msg("%d of %d draws differ", different, draws);
}

/* ---- company --------------------------------------------------------------------------------- */

static void company_changes_nothing(void **state)
{
    (void)state;
    enum { V = 5001 };
    static const int32_t prompt[] = {3, 4, 5};
    struct rows r = open_rows(V, V - 7);
    for (int i = 0; i < SETTINGS; i++) { /* rows of every kind, so that all kernels run */
        struct engine_sampling s = setting(i, (uint64_t)i);
        if (i % 3 == 0) s.n_logprobs = i % 20;
        if (i % 4 == 0) s.repetition_penalty = 1.5f;
        add_row(&r, &s, 2, prompt, 3);
    }
    struct engine_result together[SETTINGS];
    step(&r);
    memcpy(together, r.got, sizeof together);
    for (int i = 0; i < SETTINGS; i++) { /* the samplers have moved on: so do both runs */
        const struct engine_info info = {
            .vocab = V, .usable_vocab = V - 7, .context = 512, .eos_id = EOS};
        struct engine_sampling s = setting(i, (uint64_t)i);
        struct error err;
        if (i % 3 == 0) s.n_logprobs = i % 20;
        if (i % 4 == 0) s.repetition_penalty = 1.5f;
        engine_sampler_free(r.mine[i]);
        assert_int_equal(engine_sampler_new(&r.mine[i], &s, &info, prompt, 3, &err), CFG_OK);
        sample_rows(&r, i, 1, put(&r.gpu, row_of(&r, i), V), false);
        assert_int_equal(r.got[i].token, together[i].token);
        assert_int_equal(r.got[i].n_top, together[i].n_top);
        assert_memory_equal(&r.got[i].logprob, &together[i].logprob, sizeof(float));
        assert_memory_equal(r.got[i].top, together[i].top,
                            (size_t)together[i].n_top * sizeof *together[i].top);
    }
    close_rows(&r);
}

/* Three draws are recorded as four rows; replays draw for the step they are in. */
static void recorded_steps_draw_on(void **state)
{
    (void)state;
    enum { V = 700 };
    struct rows r = open_rows(V, V);
    for (int i = 0; i < 3; i++) {
        const struct engine_sampling s = setting(3 + i, (uint64_t)i);
        add_row(&r, &s, 2, NULL, 0);
    }
    float *logits = put(&r.gpu, r.logits, 4 * V), *copy = malloc(V * sizeof *copy);
    assert_non_null(copy);
    for (int i = 0; i < 6; i++) {
        sample_rows(&r, 0, 3, logits, true);
        for (int k = 0; k < 3; k++) {
            memcpy(copy, row_of(&r, k), V * sizeof *copy);
            sampler_pick(r.theirs[k], copy, V, &r.want[k]);
            sampler_note(r.mine[k], r.want[k].token);
            assert_int_equal(r.got[k].token, r.want[k].token);
        }
    }
    free(copy);
    close_rows(&r);
}

/* ---- the real size --------------------------------------------------------------------------- */

static void the_real_vocabulary(void **state)
{
    (void)state;
    enum { V = 256384, USABLE = 256300 };
    static const int kinds[] = {0, 20, 5, 11, 10, 13, 16};
    struct rows r = open_rows(V, USABLE);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct engine_sampling s = setting(kinds[i], i);
        s.n_logprobs = i == 2 ? ENGINE_MAX_TOP : -1;
        add_row(&r, &s, 2.5f, NULL, 0);
    }
    for (int i = 0; i < 3; i++) {
        step(&r);
        assert_int_equal(differing(&r), 0);
        assert_same_result(&r.got[2], &r.want[2]);
    }
    close_rows(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_first_of_the_best),
        cmocka_unit_test(draws_are_the_samplers),
        cmocka_unit_test(ties_are_cut_by_id),
        cmocka_unit_test(penalties_bias_and_bans),
        cmocka_unit_test(bias_extremes),
        cmocka_unit_test(logprobs_are_the_models),
        cmocka_unit_test(targets_are_scored),
        cmocka_unit_test(draws_fit_the_distribution),
        cmocka_unit_test(odd_logits),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(recorded_steps_draw_on),
        cmocka_unit_test(the_real_vocabulary),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
