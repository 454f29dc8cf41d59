// SPDX-License-Identifier: Apache-2.0
//
// check_steps.c: recorded steps. Decodes of many sizes, samplers and lengths run through an engine
// that records and replays them and through one that is kept from it (a row's logits are asked
// for); tokens, log-probabilities, picks and budgets must be the same to the bit. And what a
// backend promises of begin: a step is recorded the second time, replayed from the third on, and
// runs the plain way whenever something in it does not fit.
#include "tests/gpu/check.h"

#include "tests/unit/golden.h"

enum { SEQS = 11, STEPS = 34, PROMPT = 5 };

/* ---- the whole engine ------------------------------------------------------------------------ */

struct seq {
    struct engine_sampler *sampler;
    int32_t blocks[8], token;
    int position;
    uint16_t spent[16];
};

struct step {
    struct engine_result results[SEQS];
    int32_t experts[2 * SEQS * 2];
    uint8_t kept[2 * SEQS * 2];
};

struct run {
    struct step steps[STEPS];
    struct seq seqs[SEQS];
    uint64_t dropped[2];
};

/* How many sequences decode in each step: runs of one size, changes, and sizes that share a rung.
 */
static const int active[STEPS] = {5, 5, 5, 7, 6, 8, 3, 3,  4,  3, 11, 11, 10, 9, 1, 1, 1,
                                  2, 2, 2, 5, 5, 8, 8, 11, 11, 3, 3,  3,  1,  5, 5, 5, 5};

static void start_seq(struct engine *e, struct seq *s, int i)
{
    struct engine_sampling p;
    struct error err;
    int32_t prompt[PROMPT];
    engine_sampling_defaults(&p);
    p.temperature = i % 3 == 0 ? 0 : 0.9f;
    p.top_p = i % 3 == 1 ? 0.8f : 1;
    p.repetition_penalty = i % 4 == 2 ? 1.4f : 1;
    p.n_logprobs = i % 2 ? 3 : -1;
    p.seed = 1000 + (uint64_t)i;
    for (int k = 0; k < PROMPT; k++) prompt[k] = (int32_t)((i * 37 + k * 101) % TINY_VOCAB);
    for (int b = 0; b < 8; b++) s->blocks[b] = (i * 8 + b) * 37 % TINY_BLOCKS;
    assert_int_equal(engine_sampler_new(&s->sampler, &p, engine_info(e), prompt, PROMPT, &err),
                     CFG_OK);
    struct engine_result first;
    struct engine_rows r = {.tokens = prompt,
                            .n_tokens = PROMPT,
                            .blocks = s->blocks,
                            .spent = engine_info(e)->budget_len ? s->spent : NULL,
                            .sampler = s->sampler,
                            .sampled = &first};
    if (engine_step(e, &r, 1, NULL, NULL, &err) != CFG_OK) fail_msg("%s", err.message);
    s->token = first.token;
    s->position = PROMPT;
}

/* `plain` asks for logits, which keeps the step from being recorded. */
static void decode(struct engine *e, struct run *run, int step, bool plain)
{
    static float logits[TINY_VOCAB];
    float weights[2 * SEQS * 2];
    struct step *out = &run->steps[step];
    struct engine_routing routing = {out->experts, weights, out->kept};
    struct engine_rows rows[SEQS] = {0};
    struct error err;
    const int n = active[step];
    for (int i = 0; i < n; i++) {
        struct seq *s = &run->seqs[(i + step) % SEQS];
        rows[i] = (struct engine_rows){.tokens = &s->token,
                                       .n_tokens = 1,
                                       .position = s->position++,
                                       .blocks = s->blocks,
                                       .spent = engine_info(e)->budget_len ? s->spent : NULL,
                                       .sampler = s->sampler,
                                       .sampled = &out->results[i],
                                       .logits = plain && i == 0 ? logits : NULL};
    }
    if (engine_step(e, rows, n, run->dropped, &routing, &err) != CFG_OK)
        fail_msg("%s", err.message);
    for (int i = 0; i < n; i++) run->seqs[(i + step) % SEQS].token = out->results[i].token;
}

static void run_engine(const struct engine_options *opt, bool plain, struct run *run)
{
    struct engine *e = engine_of(opt);
    memset(run, 0, sizeof *run);
    for (int i = 0; i < SEQS; i++) start_seq(e, &run->seqs[i], i);
    for (int s = 0; s < STEPS; s++) decode(e, run, s, plain);
    for (int i = 0; i < SEQS; i++) engine_sampler_free(run->seqs[i].sampler);
    engine_close(e);
}

static void recorded_steps_give_the_same_bits(void **state)
{
    (void)state;
    static struct run plain, recorded;
    for (int c = 0; c < 4; c += test_emulated() ? 3 : 1) {
        struct engine_options opt = tiny_options("tests/golden/tiny");
        opt.device = CFG_DEVICE_CUDA;
        opt.dtype = c % 2 ? CFG_DTYPE_BF16 : CFG_DTYPE_F32;
        opt.capacity = c / 2 ? CFG_CAPACITY_ISOLATED : CFG_CAPACITY_DROPLESS;
        opt.capacity_length = 12;
        opt.max_step_seqs = SEQS; /* the last rung is no multiple of anything */
        run_engine(&opt, true, &plain);
        run_engine(&opt, false, &recorded);
        for (int s = 0; s < STEPS; s++)
            if (memcmp(&plain.steps[s], &recorded.steps[s], sizeof plain.steps[s]) != 0)
                fail_msg("case %d: step %d differs when it is recorded", c, s);
        for (int i = 0; i < SEQS; i++)
            assert_memory_equal(plain.seqs[i].spent, recorded.seqs[i].spent,
                                sizeof plain.seqs[i].spent);
        assert_memory_equal(plain.dropped, recorded.dropped, sizeof plain.dropped);
        assert_int_equal(plain.dropped[0] + plain.dropped[1] > 0, c / 2);
    }
}

/* A step whose recording fails has not run: it runs unrecorded, and after three of them nothing is
 * recorded any more. */
static void steps_run_where_recording_fails(void **state)
{
    (void)state;
    static struct run plain, failing;
    if (!test_emulated()) skip(); /* a device can't be told to fail */
    struct engine_options opt = tiny_options("tests/golden/tiny");
    opt.device = CFG_DEVICE_CUDA;
    opt.dtype = CFG_DTYPE_BF16;
    opt.capacity = CFG_CAPACITY_ISOLATED;
    opt.capacity_length = 12;
    opt.max_step_seqs = SEQS;
    run_engine(&opt, true, &plain);
    setenv("EMU_NO_GRAPHS", "1", 1);
    run_engine(&opt, false, &failing);
    unsetenv("EMU_NO_GRAPHS");
    assert_memory_equal(plain.steps, failing.steps, sizeof plain.steps);
    assert_memory_equal(plain.dropped, failing.dropped, sizeof plain.dropped);
}

/* ---- begin ----------------------------------------------------------------------------------- */

/* The least that can be called a model: embedding, norm, head. */
struct mini {
    struct side side;
    struct backend_options opt;
    struct weight *table, *head;
    float *ones, *x, *in, *h, *logits;
};

static struct mini open_mini(bool bf16)
{
    struct mini m = {.opt = small_options(bf16)};
    const size_t vocab = (size_t)m.opt.vocab, hidden = (size_t)m.opt.hidden;
    float *table = random_numbers(vocab * hidden, 1, true);
    float *head = random_numbers(vocab * hidden, 1, true), ones[1024];
    struct error err;
    for (size_t i = 0; i < hidden; i++) ones[i] = 1;
    m.side = open_gpu(&m.opt);
    const struct weight_source src = {
        .data = table, .type = TENSOR_F32, .rows = (int64_t)vocab, .cols = (int64_t)hidden};
    assert_int_equal(m.side.ops->table_new(m.side.be, &src, &m.table, &err), CFG_OK);
    m.head = put_weight(&m.side, head, m.opt.vocab, m.opt.hidden, false);
    m.ones = put(&m.side, ones, hidden);
    m.x = blank(&m.side, 64 * hidden);
    m.in = blank(&m.side, 64 * hidden);
    m.h = blank(&m.side, 64 * hidden);
    m.logits = blank(&m.side, 64 * vocab);
    free(table), free(head);
    return m;
}

struct mini_step {
    int32_t tokens[16], positions[16], seqs[16], blocks[16];
    const int32_t *tables[16];
    struct engine_sampling sampling;
    struct op_sample samples[16];
    struct engine_result results[16];
    struct op_batch batch;
};

static void mini_decode(struct mini_step *s, int n, int position)
{
    *s = (struct mini_step){0};
    engine_sampling_defaults(&s->sampling);
    s->sampling.temperature = 0;
    for (int i = 0; i < n; i++) {
        s->tokens[i] = below(512);
        s->positions[i] = position;
        s->seqs[i] = i;
        s->tables[i] = s->blocks;
        s->samples[i] =
            (struct op_sample){.cfg = &s->sampling, .usable = 512, .out = &s->results[i]};
        s->results[i].token = -1;
    }
    s->batch = (struct op_batch){.n_rows = n,
                                 .n_seqs = n,
                                 .n_heads = n,
                                 .tokens = s->tokens,
                                 .positions = s->positions,
                                 .seq_of_row = s->seqs,
                                 .block_tables = s->tables,
                                 .head_rows = s->seqs,
                                 .samples = s->samples};
}

/* Runs the step; returns what begin said. */
static bool mini_run(const struct mini *m, struct mini_step *s)
{
    const struct ops *ops = m->side.ops;
    const int n = s->batch.n_rows, hidden = m->opt.hidden;
    const bool asked = ops->begin(m->side.be, &s->batch);
    if (asked) {
        const struct op_matmul head = {m->head, m->h, m->logits};
        ops->embed(m->side.be, m->table, m->x);
        ops->gather(m->side.be, m->x, s->batch.head_rows, n, hidden, m->in);
        ops->rmsnorm(m->side.be, m->in, m->ones, 1e-6f, n, hidden, m->h);
        ops->matmul(m->side.be, &head, 1, n);
        ops->sample(m->side.be, m->logits, m->opt.vocab, s->samples, n);
    }
    sync_side(&m->side);
    return asked;
}

static void begin_records_the_second_and_replays_the_third(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct mini m = open_mini(bf16);
        struct mini_step s, again;
        static const int sizes[] = {3, 4, 3, 4, 2}; /* 3 and 4 are padded to 4 */
        static const bool asked[] = {true, true, false, false, true};
        for (int i = 0; i < 5; i++) {
            mini_decode(&s, sizes[i], 20);
            again = s;
            again.batch.wants_logits = true; /* the plain way */
            again.batch.samples = again.samples;
            for (int k = 0; k < sizes[i]; k++) again.samples[k].out = &again.results[k];
            assert_int_equal(mini_run(&m, &s), asked[i]);
            assert_true(mini_run(&m, &again));
            for (int k = 0; k < sizes[i]; k++) {
                assert_in_range(s.results[k].token, 0, 511);
                assert_int_equal(s.results[k].token, again.results[k].token);
            }
        }
        close_side(&m.side);
    }
}

/* What a recording is known by, each changed alone, does not replay the one there is. */
static void what_does_not_fit_is_not_replayed(void **state)
{
    (void)state;
    struct mini m = open_mini(true);
    struct mini_step s;
    for (int i = 0; i < 3; i++) {
        mini_decode(&s, 4, 20);
        assert_int_equal(mini_run(&m, &s), i < 2);
    }
    mini_decode(&s, 4, 63); /* the same tile */
    assert_false(mini_run(&m, &s));
    mini_decode(&s, 4, 64); /* one more */
    assert_true(mini_run(&m, &s));
    mini_decode(&s, 4, 20);
    s.samples[2].cfg = NULL; /* scored */
    assert_true(mini_run(&m, &s));
    assert_int_equal(s.results[2].token, 0);
    assert_true(s.results[2].logprob < 0);
    mini_decode(&s, 4, 20);
    s.sampling.n_logprobs = 2;
    assert_true(mini_run(&m, &s));
    assert_int_equal(s.results[3].n_top, 2);
    mini_decode(&s, 4, 20);
    s.batch.capacity = 2; /* the rule that counts a call's rows */
    assert_true(mini_run(&m, &s));
    mini_decode(&s, 4, 20);
    s.batch.wants_logits = true;
    assert_true(mini_run(&m, &s));
    mini_decode(&s, 4, 20);
    assert_false(mini_run(&m, &s)); /* it is still there */
    close_side(&m.side);
}

/* More shapes than there is room for: the longest unused goes, all stay right. */
static void old_recordings_go(void **state)
{
    (void)state;
    struct mini m = open_mini(true);
    struct mini_step s;
    struct op_adjust entry = {.id = 7, .bias = 1000};
    for (int round = 0; round < 3; round++)
        for (int n = 1; n <= 16; n++)
            for (int kind = 0; kind < 12; kind++) {
                mini_decode(&s, n, kind / 4 * 64);
                if (kind & 1) s.sampling.n_logprobs = 0;
                for (int i = 0; kind & 2 && i < n; i++)
                    s.samples[i].adjust = &entry, s.samples[i].n_adjust = 1;
                (void)mini_run(&m, &s);
                for (int i = 0; i < n; i++) {
                    assert_in_range(s.results[i].token, 0, 511);
                    if (kind & 2) assert_int_equal(s.results[i].token, 7);
                }
            }
    close_side(&m.side);
}

/* Masks and penalties are uploaded anew for each step, recorded or not; the best allowed id wins,
 * and where none is allowed the end does. */
static void masks_and_penalties_follow_the_step(void **state)
{
    (void)state;
    struct mini m = open_mini(false);
    const int n = 5, usable = 509, eos = 3;
    static float logits[5 * 512];
    for (int round = 0; round < 12; round++) {
        struct mini_step s;
        uint32_t mask[5][16] = {{0}};
        struct op_adjust entries[5][40];
        const bool recorded = round % 4 != 0;
        mini_decode(&s, n, 20);
        s.batch.wants_logits = !recorded;
        for (int i = 0; i < n; i++) {
            struct op_sample *o = &s.samples[i];
            o->usable = usable;
            o->eos_id = eos;
            o->mask = i == 4 ? NULL : mask[i];
            o->adjust = entries[i];
            o->n_adjust = (size_t)below(40);
            for (size_t k = 0; k < o->n_adjust; k++)
                entries[i][k] =
                    (struct op_adjust){.id = (int32_t)((int)k * 13 + i), .bias = 50 * uniform()};
            for (int id = 0; i < 3 && id < usable; id++)
                if (below(7) == 0) mask[i][id / 32] |= 1u << id % 32;
        }
        struct mini_step plain = s;
        plain.batch.wants_logits = true;
        plain.batch.samples = plain.samples;
        for (int i = 0; i < n; i++) plain.samples[i] = (struct op_sample){.target = -1};
        assert_true(mini_run(&m, &plain)); /* only for its logits */
        get(&m.side, m.logits, (size_t)(n * 512), logits);
        (void)mini_run(&m, &s);
        for (int i = 0; i < n; i++) {
            int best = -1;
            float *row = logits + i * 512;
            for (size_t k = 0; k < s.samples[i].n_adjust; k++)
                row[entries[i][k].id] += entries[i][k].bias;
            for (int id = 0; id < usable; id++)
                if ((i == 4 || mask[i][id / 32] >> id % 32 & 1) &&
                    (best < 0 || row[id] > row[best]))
                    best = id;
            assert_int_equal(s.results[i].token, i == 3 ? eos : best);
        }
    }
    close_side(&m.side);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(begin_records_the_second_and_replays_the_third),
        cmocka_unit_test(what_does_not_fit_is_not_replayed),
        cmocka_unit_test(old_recordings_go),
        cmocka_unit_test(masks_and_penalties_follow_the_step),
        cmocka_unit_test(recorded_steps_give_the_same_bits),
        cmocka_unit_test(steps_run_where_recording_fails),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    return cmocka_run_group_tests_name("recorded steps", tests, NULL, NULL);
}
