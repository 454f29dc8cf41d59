// SPDX-License-Identifier: Apache-2.0
//
// check_quant.c: what 8-bit weights, keys and values change, against bf16 on the same device: every
// position's logits of the golden prompts and of held-out dialogues for the demo model
// (TEST_DIALOGUES, as check_demo.c, which has the accuracy of whole replies). One table: largest
// and mean difference of logits, KL divergence from bf16's distribution, how often the most likely
// token is the same, and what the true next token's log-probability loses. FP32 stands beside them
// to say what bf16 itself changes. On the emulated device there is less of it. The bounds asserted
// are several times what was seen: they catch a scale gone wrong, not a lost digit.
#include "tests/gpu/check.h"

#include <cjson/cJSON.h>

#include "tests/unit/golden.h"

enum { MAX_PROMPTS = 24, LONGEST = 256, AT_ONCE = 32, BLOCKS = LONGEST / 16 };

struct form {
    const char *name;
    enum cfg_dtype dtype;
    enum cfg_quantization weights;
    enum cfg_kv_dtype kv;
    double most_kl, least_same; /* bounds: mean KL divergence, share of same choices */
};
static const struct form forms[] = {
    {"bf16", CFG_DTYPE_BF16, CFG_QUANTIZE_NONE, CFG_KV_AUTO, 0, 1},
    {"fp32", CFG_DTYPE_F32, CFG_QUANTIZE_NONE, CFG_KV_AUTO, 0.005, 0.9},
    {"int8 weights", CFG_DTYPE_BF16, CFG_QUANTIZE_INT8, CFG_KV_AUTO, 0.02, 0.9},
    {"fp8 weights", CFG_DTYPE_BF16, CFG_QUANTIZE_FP8, CFG_KV_AUTO, 0.05, 0.75},
    {"fp8 keys, values", CFG_DTYPE_BF16, CFG_QUANTIZE_NONE, CFG_KV_FP8, 0.05, 0.8},
    {"fp8 both", CFG_DTYPE_BF16, CFG_QUANTIZE_FP8, CFG_KV_FP8, 0.1, 0.7},
};
enum { FORMS = sizeof forms / sizeof *forms };

struct prompts {
    int n, length[MAX_PROMPTS];
    int32_t ids[MAX_PROMPTS][LONGEST];
    int positions; /* of all */
};

static struct engine *open_form(const char *model, const struct form *f)
{
    const struct engine_options opt = {.model = model,
                                       .device = CFG_DEVICE_CUDA,
                                       .dtype = f->dtype,
                                       .quantization = f->weights,
                                       .kv_dtype = f->kv,
                                       .cpu_isa = "auto",
                                       .block_size = 16,
                                       .kv_bytes = (size_t)32 << 20,
                                       .max_step_tokens = LONGEST,
                                       .max_step_seqs = AT_ONCE};
    return engine_of(&opt);
}

/* Logits of every position of a prompt, [length, vocab]: keys and values of all of it first, then
 * some of its positions at a time as sequences of their own over the same blocks, in which they
 * write what is there already. */
static void logits_of(struct engine *e, const int32_t *ids, int length, float *out)
{
    const int vocab = engine_info(e)->vocab;
    struct engine_rows rows[AT_ONCE] = {{0}};
    int32_t blocks[BLOCKS];
    struct error err;
    for (int i = 0; i < BLOCKS; i++) blocks[i] = i * 5 % BLOCKS;
    assert_true(engine_info(e)->n_blocks >= BLOCKS);
    rows[0] = (struct engine_rows){.tokens = ids, .n_tokens = length, .blocks = blocks};
    if (engine_step(e, rows, 1, NULL, NULL, &err)) fail_msg("%s", err.message);
    for (int first = 0; first < length; first += AT_ONCE) {
        const int n = length - first < AT_ONCE ? length - first : AT_ONCE;
        for (int i = 0; i < n; i++)
            rows[i] = (struct engine_rows){.tokens = ids + first + i,
                                           .n_tokens = 1,
                                           .position = first + i,
                                           .blocks = blocks,
                                           .logits = out + (size_t)(first + i) * (size_t)vocab};
        if (engine_step(e, rows, n, NULL, NULL, &err)) fail_msg("%s", err.message);
    }
}

/* [positions, vocab], freed by the caller. */
static float *all_logits(const char *model, const struct form *f, const struct prompts *p,
                         int *vocab, int *usable)
{
    struct engine *e = open_form(model, f);
    *vocab = engine_info(e)->vocab;
    *usable = engine_info(e)->usable_vocab;
    float *out = malloc((size_t)p->positions * (size_t)*vocab * sizeof *out);
    assert_non_null(out);
    for (int i = 0, at = 0; i < p->n; at += p->length[i++])
        logits_of(e, p->ids[i], p->length[i], out + (size_t)at * (size_t)*vocab);
    engine_close(e);
    return out;
}

/* ---- comparison ------------------------------------------------------------------------------ */

struct errors {
    double largest, sum, kl, lost;
    int same, rows, next_rows;
};

static double log_sum(const float *x, int n)
{
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) most = fmax(most, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

static void compare_row(struct errors *to, const float *want, const float *got, int n, int next)
{
    const double log_want = log_sum(want, n), log_got = log_sum(got, n);
    int best_want = 0, best_got = 0;
    for (int i = 0; i < n; i++) {
        const double a = (double)want[i], b = (double)got[i], difference = fabs(a - b);
        if (!isfinite(b)) fail_msg("a logit is %g", b);
        to->largest = fmax(to->largest, difference);
        to->sum += difference / n;
        to->kl += exp(a - log_want) * (a - log_want - b + log_got);
        if (a > (double)want[best_want]) best_want = i;
        if (b > (double)got[best_got]) best_got = i;
    }
    to->same += best_want == best_got;
    to->rows++;
    if (next < 0) return;
    to->lost += (double)want[next] - log_want - (double)got[next] + log_got;
    to->next_rows++;
}

static void compare(const char *what, const char *model, const struct prompts *p)
{
    int vocab, usable;
    float *want = all_logits(model, &forms[0], p, &vocab, &usable);
    print_message("%s, %d positions of %d prompts, against bf16:\n", what, p->positions, p->n);
    print_message("  %-18s %10s %10s %10s %10s %12s\n", "", "largest", "mean", "KL", "same best",
                  "lost log p");
    for (int f = 1; f < FORMS; f++) {
        struct errors sum = {0};
        float *got = all_logits(model, &forms[f], p, &vocab, &usable);
        for (int i = 0, at = 0; i < p->n; i++)
            for (int k = 0; k < p->length[i]; k++, at++)
                compare_row(&sum, want + (size_t)at * (size_t)vocab,
                            got + (size_t)at * (size_t)vocab, usable,
                            k + 1 < p->length[i] ? p->ids[i][k + 1] : -1);
        free(got);
        const double kl = sum.kl / sum.rows, same = (double)sum.same / sum.rows;
        print_message("  %-18s %10.4f %10.5f %10.6f %9.2f%% %12.5f\n", forms[f].name, sum.largest,
                      sum.sum / sum.rows, kl, 100 * same, sum.lost / sum.next_rows);
        assert_true(sum.largest > 0); /* the option does something */
        assert_true(kl <= forms[f].most_kl);
        assert_true(same >= forms[f].least_same);
    }
    free(want);
}

/* ---- prompts --------------------------------------------------------------------------------- */

static void add_prompt(struct prompts *p, const int32_t *ids, size_t n, int longest)
{
    if (p->n == MAX_PROMPTS || n < 2) return;
    const int length = n < (size_t)longest ? (int)n : longest;
    memcpy(p->ids[p->n], ids, (size_t)length * sizeof *ids);
    p->length[p->n++] = length;
    p->positions += length;
}

static void on_golden_prompts(void **state)
{
    (void)state;
    static struct prompts p;
    cJSON *golden = golden_open();
    const cJSON *c;
    cJSON_ArrayForEach(c, golden_get(golden, "cases"))
    {
        int32_t ids[1024];
        if (strcmp(golden_get(c, "mode")->valuestring, "dropless") != 0) continue;
        const size_t n = golden_ints(golden_get(c, "input_ids"), ids);
        add_prompt(&p, ids, n, test_emulated() ? 24 : LONGEST);
        if (test_emulated() && p.n == 3) break;
    }
    cJSON_Delete(golden);
    assert_true(p.n > 0);
    compare("golden/tiny", "tests/golden/tiny", &p);
}

/* A dialogue as the ids a server computes for it: all but the last reply. */
static void add_dialogue(struct prompts *p, const struct engine_tokenizer *t, const cJSON *list)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    struct engine_message msgs[64];
    struct error err;
    size_t n = 0, n_ids;
    int32_t *ids;
    const cJSON *one;
    cJSON_ArrayForEach(one, list)
    {
        const char *role = cJSON_GetStringValue(cJSON_GetObjectItem(one, "role"));
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(one, "content"));
        int kind = 0;
        assert_non_null(role);
        assert_non_null(text);
        while (kind < 2 && strcmp(role, roles[kind]) != 0) kind++;
        if (n < 64) msgs[n++] = (struct engine_message){(enum engine_role)kind, text, strlen(text)};
    }
    while (n > 0 && msgs[n - 1].role != ENGINE_USER) n--;
    if (n == 0) return;
    if (engine_chat_encode(t, msgs, n, &ids, &n_ids, NULL, NULL, &err)) fail_msg("%s", err.message);
    add_prompt(p, ids, n_ids, test_emulated() ? 40 : LONGEST);
    free(ids);
}

static void on_dialogues(void **state)
{
    (void)state;
    static struct prompts p;
    const char *named = getenv("TEST_DIALOGUES");
    const char *path = named ? named : "build/gpu/dialogues.jsonl";
    const struct engine_options opt = {.model = "deploy/demo-model",
                                       .device = CFG_DEVICE_CPU,
                                       .block_size = 16,
                                       .kv_bytes = (size_t)4 << 20,
                                       .max_step_tokens = 16,
                                       .max_step_seqs = 1};
    struct engine *words = NULL; /* for its tokenizer */
    struct error err;
    char *line = NULL;
    size_t room = 0;
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s can't be read", path);
    if (engine_open(&words, &opt, &err)) fail_msg("%s", err.message);
    while (p.n < (test_emulated() ? 1 : MAX_PROMPTS) && getline(&line, &room, f) > 0) {
        cJSON *dialogue = cJSON_Parse(line);
        assert_non_null(dialogue);
        add_dialogue(&p, engine_tokenizer(words), dialogue);
        cJSON_Delete(dialogue);
    }
    free(line);
    fclose(f);
    engine_close(words);
    assert_true(p.n > 0);
    compare("demo model", "deploy/demo-model", &p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_golden_prompts),
        cmocka_unit_test(on_dialogues),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    return cmocka_run_group_tests_name("8 bits against bf16", tests, NULL, NULL);
}
