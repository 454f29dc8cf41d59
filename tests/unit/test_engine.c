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

/* Circumstances that leave the kernels of a GPU as they are, or take the emulated one too long. */
static bool worth_running(const struct run *run)
{
    if (!test_on_gpu()) return true;
    return run->threads == 2 && !(test_emulated() && run->chunk == 1);
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
            if (!worth_running(&others[i])) continue;
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

/* A sequence that goes on from copied blocks gives the same logits as from its own. */
static void copied_blocks_are_equal(void **state)
{
    (void)state;
    for (int reference = 0; reference < 2; reference++) {
        struct engine_options opt = tiny_options("tests/golden/tiny");
        opt.cpu_isa = reference ? "reference" : "auto";
        if (reference) opt.device = CFG_DEVICE_CPU;
        struct engine *e = engine_of(&opt);
        struct error err;
        float first[TINY_VOCAB], second[TINY_VOCAB];
        int32_t prompt[21], a[2] = {4, 9}, b[2] = {17, 2};
        for (int i = 0; i < 21; i++) prompt[i] = token_at(0, i);
        struct engine_rows r = {.tokens = prompt, .n_tokens = 20, .blocks = a};
        assert_int_equal(engine_step(e, &r, 1, NULL, NULL, &err), CFG_OK);
        const struct engine_block_copy copies[] = {{4, 17}, {9, 2}};
        assert_int_equal(engine_copy_blocks(e, copies, 2, &err), CFG_OK);
        r = (struct engine_rows){
            .tokens = prompt + 20, .n_tokens = 1, .position = 20, .blocks = a, .logits = first};
        assert_int_equal(engine_step(e, &r, 1, NULL, NULL, &err), CFG_OK);
        r.blocks = b, r.logits = second;
        assert_int_equal(engine_step(e, &r, 1, NULL, NULL, &err), CFG_OK);
        assert_memory_equal(first, second, sizeof first);
        const struct engine_block_copy bad = {0, TINY_BLOCKS};
        assert_int_equal(engine_copy_blocks(e, &bad, 1, &err), CFG_EINVAL);
        engine_close(e);
    }
}

/* ---- isolated mode ----------------------------------------------------------------------------
 */

#define ISOLATED_LENGTH                                                                            \
    12 /* tokens: a capacity small enough that most of the prompt's end is dropped */

/* Our prompt in chunks, beside strangers with budgets of their own; kept[layer][position][pick]
 * comes back together with the picks and the last logits. */
struct isolated {
    int32_t picks[2][PROMPT][2];
    uint8_t kept[2][PROMPT][2];
    float logits[TINY_VOCAB];
    uint16_t spent[2 * 8];
    uint64_t dropped[2];
};

static void run_isolated(const char *isa, int chunk, int company, struct isolated *out)
{
    struct engine_options opt = tiny_options("tests/golden/tiny");
    opt.cpu_isa = isa;
    if (strcmp(isa, "reference") == 0) opt.device = CFG_DEVICE_CPU;
    opt.capacity = CFG_CAPACITY_ISOLATED;
    opt.capacity_length = ISOLATED_LENGTH;
    struct engine *e = engine_of(&opt);
    const struct engine_info *info = engine_info(e);
    static int32_t experts[2 * 256 * 2];
    static float weights[2 * 256 * 2];
    static uint8_t kept[2 * 256 * 2];
    struct engine_routing routing = {experts, weights, kept};
    struct engine_rows rows[COMPANY + 1];
    struct error err;
    int32_t prompt[PROMPT], ours[PROMPT / 16 + 1] = {3, 0, 5, 1}, tokens[COMPANY][4],
                                               blocks[COMPANY];
    uint16_t theirs[COMPANY][2 * 8];
    *out = (struct isolated){0};
    assert_int_equal(info->budget_len, 16);
    for (int i = 0; i < PROMPT; i++) prompt[i] = token_at(0, i);
    for (int at = 0, step = 0; at < PROMPT; at += chunk, step++) {
        const int some = chunk < PROMPT - at ? chunk : PROMPT - at;
        int before = 0, total = some;
        memset(theirs, 0, sizeof theirs);
        for (int s = 0; s < company; s++) {
            set_stranger(&rows[s], s, 0, true, tokens[s], &blocks[s]);
            rows[s].spent = theirs[s];
            before += rows[s].n_tokens;
        }
        total += before;
        rows[company] = (struct engine_rows){.tokens = prompt + at,
                                             .n_tokens = some,
                                             .position = at,
                                             .blocks = ours,
                                             .spent = out->spent,
                                             .logits = out->logits};
        if (engine_step(e, rows, company + 1, company ? NULL : out->dropped, &routing, &err) !=
            CFG_OK)
            fail_msg("%s", err.message);
        for (int l = 0; l < 2; l++)
            for (int i = 0; i < some; i++)
                for (int k = 0; k < 2; k++) {
                    out->picks[l][at + i][k] = experts[(l * total + before + i) * 2 + k];
                    out->kept[l][at + i][k] = kept[(l * total + before + i) * 2 + k];
                }
    }
    engine_close(e);
}

/* The rule told over again: capacity of a sequence of 12 tokens and 8 experts is floor(2 * 2 * 12 /
 * 8) = 6. */
static void check_against_brute_force(const struct isolated *run)
{
    uint64_t dropped = 0;
    for (int l = 0; l < 2; l++)
        for (int p = 0; p < PROMPT; p++)
            for (int k = 0; k < 2; k++) {
                int taken = 0; /* by earlier positions, or by the first choice here */
                for (int q = 0; q <= p; q++)
                    for (int j = 0; j < (q < p ? 2 : k); j++)
                        taken += run->kept[l][q][j] && run->picks[l][q][j] == run->picks[l][p][k];
                assert_int_equal(run->kept[l][p][k], taken < 6);
                dropped += !run->kept[l][p][k];
            }
    assert_true(dropped > 0);
    assert_int_equal(run->dropped[0] + run->dropped[1], dropped);
}

static void isolated_budgets_are_a_sequences_own(void **state)
{
    (void)state;
    static struct isolated alone, other;
    run_isolated("auto", PROMPT, 0, &alone);
    check_against_brute_force(&alone);
    static const int chunks[] = {1, 7, 33, PROMPT};
    for (size_t i = test_emulated(); i < sizeof chunks / sizeof *chunks; i++) {
        run_isolated("auto", chunks[i], COMPANY,
                     &other); /* hundreds of copies of one token as company */
        assert_memory_equal(alone.logits, other.logits, sizeof alone.logits);
        assert_memory_equal(alone.kept, other.kept, sizeof alone.kept);
        assert_memory_equal(alone.spent, other.spent, sizeof alone.spent);
    }
    run_isolated("reference", PROMPT, 0, &other);
    assert_memory_equal(alone.kept, other.kept, sizeof alone.kept);
    for (int i = 0; i < TINY_VOCAB; i++) {
        const float d = alone.logits[i] - other.logits[i];
        assert_true(d < 1e-4f && d > -1e-4f);
    }
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
    opt.gpu = 1000;
    refuse(&opt, "--device cuda");
    opt.device = CFG_DEVICE_CPU;
    opt.kv_dtype = CFG_KV_FP8;
    refuse(&opt, "need a GPU");
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
        cmocka_unit_test(copied_blocks_are_equal),
        cmocka_unit_test(isolated_budgets_are_a_sequences_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
