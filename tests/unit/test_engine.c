// SPDX-License-Identifier: Apache-2.0
//
// test_engine.c: what the engine promises beyond the golden numbers: in dropless mode a sequence's
// logits are bit-equal alone, beside 31 strangers, in any row, in any chunking, with any number of
// threads and in both data types; in reference mode company does change them; and bad steps and
// options are refused by name.
#include "tests/unit/golden.h"

#define PROMPT  60
#define COMPANY 31

struct run {
    enum cfg_dtype dtype;
    enum cfg_capacity capacity;
    int threads, chunk; /* tokens of our sequence per step */
    int company, row;   /* strangers in each step, and how many of them stand before us */
    bool copies;        /* strangers all say one token */
};

static int32_t token_at(int seq, int i)
{
    return (int32_t)(((unsigned)seq * 7919u + (unsigned)i * 104729u + 13u) % TINY_VOCAB);
}

static void set_stranger(struct engine_rows *r, int s, int step, bool copies, int32_t *tokens,
                         int32_t *block)
{
    for (int i = 0; i < 4; i++) tokens[i] = copies ? 5 : token_at(s + 2, step * 4 + i);
    *block = 8 + s;
    *r = (struct engine_rows){
        .tokens = tokens, .n_tokens = 1 + s % 4, .position = step % 3 * 4, .blocks = block};
}

/* Logits after our prompt under the given circumstances. */
static void logits_of(const struct run *run, float out[TINY_VOCAB])
{
    struct engine_options opt = tiny_options("tests/golden/tiny");
    opt.dtype = run->dtype;
    opt.capacity = run->capacity;
    opt.threads = run->threads;
    struct engine *e = engine_of(&opt);
    struct engine_rows rows[COMPANY + 1];
    struct error err;
    int32_t prompt[PROMPT], ours[PROMPT / 16 + 1] = {3, 0, 5, 1}, tokens[COMPANY][4],
                                               blocks[COMPANY];
    for (int i = 0; i < PROMPT; i++) prompt[i] = token_at(0, i);
    for (int at = 0, step = 0; at < PROMPT; at += run->chunk, step++) {
        int n = 0;
        for (int s = 0; s < run->company; s++) {
            if (s == run->row) n++;
            set_stranger(&rows[n++], s, step, run->copies, tokens[s], &blocks[s]);
        }
        const int me = run->row < run->company ? run->row : run->company;
        const int left = PROMPT - at, some = run->chunk < left ? run->chunk : left;
        rows[me] = (struct engine_rows){
            .tokens = prompt + at, .n_tokens = some, .position = at, .blocks = ours, .logits = out};
        if (engine_step(e, rows, run->company + 1, NULL, NULL, &err) != CFG_OK)
            fail_msg("%s", err.message);
    }
    engine_close(e);
}

static void company_changes_nothing(void **state)
{
    (void)state;
    for (int dtype = CFG_DTYPE_F32; dtype <= CFG_DTYPE_BF16; dtype++) {
        float alone[TINY_VOCAB], got[TINY_VOCAB];
        const struct run base = {.dtype = dtype, .threads = 1, .chunk = PROMPT};
        logits_of(&base, alone);
        const struct run others[] = {
            {.dtype = dtype, .threads = 2, .chunk = PROMPT},
            {.dtype = dtype, .threads = 5, .chunk = PROMPT, .company = COMPANY, .row = 0},
            {.dtype = dtype, .threads = 2, .chunk = 1},
            {.dtype = dtype, .threads = 2, .chunk = 7, .company = 3, .row = 2},
            {.dtype = dtype, .threads = 2, .chunk = 33, .company = COMPANY, .row = COMPANY},
            {.dtype = dtype, .threads = 1, .chunk = 16, .company = COMPANY, .row = 11},
            {.dtype = dtype,
             .threads = 2,
             .chunk = 10,
             .company = COMPANY,
             .row = 5,
             .copies = true},
        };
        for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
            logits_of(&others[i], got);
            if (memcmp(alone, got, sizeof got) != 0)
                fail_msg("dtype %d, circumstances %zu: other logits", dtype, i);
        }
    }
}

/* The published behaviour, which dropless mode exists to avoid: neighbours fill the experts. */
static void company_matters_in_reference_mode(void **state)
{
    (void)state;
    float alone[TINY_VOCAB], got[TINY_VOCAB];
    const struct run base = {
        .dtype = CFG_DTYPE_F32, .capacity = CFG_CAPACITY_REFERENCE, .threads = 1, .chunk = PROMPT};
    struct run crowded = base;
    crowded.company = crowded.row = COMPANY;
    crowded.copies = true;
    logits_of(&base, alone);
    logits_of(&crowded, got);
    assert_memory_not_equal(alone, got, sizeof got);
}

static void types_differ_slightly(void **state)
{
    (void)state;
    float f32[TINY_VOCAB], bf16[TINY_VOCAB];
    const struct run a = {.dtype = CFG_DTYPE_F32, .threads = 1, .chunk = PROMPT};
    const struct run b = {.dtype = CFG_DTYPE_BF16, .threads = 1, .chunk = PROMPT};
    logits_of(&a, f32);
    logits_of(&b, bf16);
    double worst = 0;
    for (int i = 0; i < TINY_VOCAB; i++) {
        const double d = (double)(f32[i] - bf16[i]);
        worst = d > worst ? d : -d > worst ? -d : worst;
    }
    assert_true(worst > 0); /* it really computes in BF16 */
    assert_true(worst < 0.15);
}

static void bad_steps_are_refused(void **state)
{
    (void)state;
    struct engine_options opt = tiny_options("tests/golden/tiny");
    opt.max_step_tokens = 8;
    opt.max_step_seqs = 2;
    opt.max_model_len = 32;
    struct engine *e = engine_of(&opt);
    struct error err;
    int32_t tokens[16] = {1, 2, 3}, blocks[16] = {0, 1};
    assert_int_equal(engine_info(e)->context, 32);

    struct engine_rows r[3] = {{.tokens = tokens, .n_tokens = 9, .blocks = blocks}};
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_EINVAL);
    r[0].n_tokens = 0;
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_EINVAL);
    r[0].n_tokens = 2, r[0].position = 31;
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "context"));
    r[0].position = 0;
    tokens[1] = TINY_VOCAB;
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "512"));
    tokens[1] = -1;
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_EINVAL);
    tokens[1] = 2;
    r[1] = r[2] = r[0];
    assert_int_equal(engine_step(e, r, 3, NULL, NULL, &err), CFG_EINVAL);
    assert_int_equal(engine_step(e, r, 1, NULL, NULL, &err), CFG_OK); /* and goes on */
    engine_close(e);
}

static void refuse(const struct engine_options *opt, const char *word)
{
    struct engine *e = NULL;
    struct error err;
    assert_int_not_equal(engine_open(&e, opt, &err), CFG_OK);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not name \"%s\"", err.message, word);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    struct engine_options opt = tiny_options("tests/golden/tiny");
    opt.max_model_len = 257;
    refuse(&opt, "--max-model-len");
    opt = tiny_options("tests/golden/nowhere");
    refuse(&opt, "tests/golden/nowhere");
    opt = tiny_options("tests/golden/tiny");
    opt.kv_bytes = 100;
    refuse(&opt, "--kv-cache-memory");
    opt = tiny_options("tests/golden/tiny");
    opt.device = CFG_DEVICE_CUDA;
    refuse(&opt, "--device cuda");
    opt = tiny_options("tests/golden/tiny");
    opt.kv_bytes = (size_t)4 << 40;
    refuse(&opt, "4398.0 GB for keys and values");
    opt = tiny_options("9b");
    opt.dummy = true;
    refuse(&opt, "9b");
}

static void loading_can_be_stopped(void **state)
{
    (void)state;
    const struct engine_options opt = tiny_options("tests/golden/tiny");
    const volatile bool stop = true;
    struct engine *e;
    struct error err;
    assert_int_equal(engine_open(&e, &opt, &err), CFG_OK);
    assert_int_equal(engine_load(e, &stop, &err), CFG_ECLOSED);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(company_matters_in_reference_mode),
        cmocka_unit_test(types_differ_slightly),
        cmocka_unit_test(bad_steps_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(loading_can_be_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
