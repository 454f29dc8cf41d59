// SPDX-License-Identifier: Apache-2.0
//
// test_golden.c: the engine against the numbers of the published implementation, for every form of
// the checkpoint and every kernel family this machine runs: logits, log-probabilities, experts,
// kept picks and greedy tokens, in dropless and reference mode, and the batch in which company
// changes who is dropped.
#include "tests/unit/golden.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/checkpoint.h"

#define TOLERANCE 1e-4
#define MAX_ROWS  256

struct setup {
    struct engine *e;
    const struct engine_info *info;
    int32_t tables[4][16]; /* block tables of four sequences, scattered on purpose */
};

static void open_setup(struct setup *s, const char *folder, const char *isa,
                       enum cfg_capacity capacity)
{
    struct engine_options opt = tiny_options(folder);
    opt.cpu_isa = isa;
    opt.capacity = capacity;
    s->e = engine_of(&opt);
    s->info = engine_info(s->e);
    for (int q = 0; q < 4; q++)
        for (int b = 0; b < 16; b++) s->tables[q][b] = (q * 16 + b) * 37 % s->info->n_blocks;
}

static struct engine_sampler *greedy_sampler(const struct setup *s)
{
    struct engine_sampling p;
    struct engine_sampler *out;
    struct error err;
    engine_sampling_defaults(&p);
    p.temperature = 0;
    assert_int_equal(engine_sampler_new(&out, &p, s->info, NULL, 0, &err), CFG_OK);
    return out;
}

static void check_logits(const cJSON *want, const float *got)
{
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, want)
    {
        if (!(fabs(item->valuedouble - (double)got[i]) <= TOLERANCE))
            fail_msg("logit %d: %g, expected %g", i, (double)got[i], item->valuedouble);
        i++;
    }
    assert_int_equal(i, TINY_VOCAB);
}

static void check_routing(const cJSON *layers, const struct engine_routing *r, int n_rows)
{
    int l = 0;
    const cJSON *layer;
    cJSON_ArrayForEach(layer, layers)
    {
        for (int row = 0; row < n_rows; row++)
            for (int k = 0; k < 2; k++) {
                const int at = (l * n_rows + row) * 2 + k;
                const cJSON *e =
                    cJSON_GetArrayItem(cJSON_GetArrayItem(golden_get(layer, "experts"), row), k);
                const cJSON *w =
                    cJSON_GetArrayItem(cJSON_GetArrayItem(golden_get(layer, "weights"), row), k);
                const cJSON *kept =
                    cJSON_GetArrayItem(cJSON_GetArrayItem(golden_get(layer, "kept"), row), k);
                assert_int_equal(r->experts[at], e->valueint);
                assert_int_equal(r->kept[at], kept->valueint);
                assert_true(fabs((double)r->weights[at] - w->valuedouble) <= TOLERANCE);
            }
        l++;
    }
    assert_int_equal(l, 2);
}

struct trace {
    int32_t experts[2 * MAX_ROWS * 2];
    float weights[2 * MAX_ROWS * 2];
    uint8_t kept[2 * MAX_ROWS * 2];
};

static struct engine_routing routing_of(struct trace *t)
{
    return (struct engine_routing){.experts = t->experts, .weights = t->weights, .kept = t->kept};
}

static void check_greedy(const struct setup *s, const cJSON *want, int32_t first, int position)
{
    struct error err;
    struct engine_sampler *sampler = greedy_sampler(s);
    int32_t token = first;
    const cJSON *item;
    cJSON_ArrayForEach(item, want)
    {
        struct engine_result result;
        assert_int_equal(token, item->valueint);
        struct engine_rows rows = {.tokens = &token,
                                   .n_tokens = 1,
                                   .position = position++,
                                   .blocks = s->tables[0],
                                   .sampler = sampler,
                                   .sampled = &result};
        assert_int_equal(engine_step(s->e, &rows, 1, NULL, NULL, &err), CFG_OK);
        token = result.token;
    }
    engine_sampler_free(sampler);
}

static void check_case(const struct setup *s, const cJSON *c)
{
    static struct trace trace;
    static struct engine_result scored[MAX_ROWS];
    static float logits[TINY_VOCAB];
    struct engine_routing routing = routing_of(&trace);
    struct engine_result sampled;
    struct error err;
    int32_t ids[MAX_ROWS], targets[MAX_ROWS];
    uint64_t dropped[2] = {0}, want_dropped = 0;

    const int n = (int)golden_ints(golden_get(c, "input_ids"), ids);
    for (int i = 0; i < n; i++) targets[i] = i + 1 < n ? ids[i + 1] : -1;
    struct engine_sampler *sampler = greedy_sampler(s);
    struct engine_rows rows = {.tokens = ids,
                               .n_tokens = n,
                               .blocks = s->tables[0],
                               .sampler = sampler,
                               .sampled = &sampled,
                               .targets = targets,
                               .scored = scored,
                               .logits = logits};
    if (engine_step(s->e, &rows, 1, dropped, &routing, &err) != CFG_OK) fail_msg("%s", err.message);
    engine_sampler_free(sampler);

    check_logits(golden_get(c, "last_logits"), logits);
    check_routing(golden_get(c, "routing"), &routing, n);
    for (int i = 0; i + 1 < n; i++) {
        const cJSON *want = cJSON_GetArrayItem(golden_get(c, "logprob_of_inputs"), i);
        assert_true(fabs(want->valuedouble - (double)scored[i].logprob) <= TOLERANCE);
        assert_int_equal(scored[i].token, ids[i + 1]);
    }
    for (int i = 0; i < 2 * n * 2; i++) want_dropped += !trace.kept[i];
    assert_int_equal(dropped[0] + dropped[1], want_dropped);
    check_greedy(s, golden_get(c, "greedy"), sampled.token, n);
}

/* Every case of golden.json in its mode; on the emulated device, of further forms the first. */
static void check_form(const char *folder, const char *isa)
{
    cJSON *golden = golden_open();
    const bool brief = test_emulated() && strcmp(folder, "tests/golden/tiny") != 0;
    int checked = 0;
    for (int mode = 0; mode < 2; mode++) {
        struct setup s;
        const char *name = mode ? "reference" : "dropless";
        open_setup(&s, folder, isa, mode ? CFG_CAPACITY_REFERENCE : CFG_CAPACITY_DROPLESS);
        const cJSON *c;
        cJSON_ArrayForEach(c, golden_get(golden, "cases"))
        {
            if (strcmp(golden_get(c, "mode")->valuestring, name) != 0) continue;
            check_case(&s, c);
            checked++;
            if (brief) break;
        }
        engine_close(s.e);
    }
    assert_int_equal(checked, brief ? 2 : cJSON_GetArraySize(golden_get(golden, "cases")));
    cJSON_Delete(golden);
}

/* Two sequences in one forward call: the second loses picks to the first. */
static void check_batch(const char *isa)
{
    cJSON *golden = golden_open();
    const cJSON *b = golden_get(golden, "batch");
    static struct trace trace;
    static float logits[2][TINY_VOCAB];
    struct engine_routing routing = routing_of(&trace);
    struct engine_rows rows[2];
    struct error err;
    struct setup s;
    int32_t ids[2][MAX_ROWS];
    int n = 0;
    open_setup(&s, "tests/golden/tiny", isa, CFG_CAPACITY_REFERENCE);
    for (int q = 0; q < 2; q++) {
        n = (int)golden_ints(cJSON_GetArrayItem(golden_get(b, "input_ids"), q), ids[q]);
        rows[q] = (struct engine_rows){
            .tokens = ids[q], .n_tokens = n, .blocks = s.tables[q], .logits = logits[q]};
    }
    assert_int_equal(engine_step(s.e, rows, 2, NULL, &routing, &err), CFG_OK);
    for (int q = 0; q < 2; q++)
        check_logits(cJSON_GetArrayItem(golden_get(b, "last_logits"), q), logits[q]);
    check_routing(golden_get(b, "routing"), &routing, 2 * n);
    engine_close(s.e);
    cJSON_Delete(golden);
}

static const char *const families[] = {"reference", "generic", "avx2", "avx512", "amx"};

static bool family_runs(const char *isa)
{
    struct engine_options opt = tiny_options("tests/golden/tiny");
    struct engine *e = NULL;
    struct error err;
    opt.cpu_isa = isa;
    const bool runs = engine_open(&e, &opt, &err) == CFG_OK;
    if (runs) engine_close(e);
    return runs;
}

static void every_family_agrees(void **state)
{
    (void)state;
    int ran = 0;
    if (test_on_gpu()) {
        check_form("tests/golden/tiny", "auto");
        check_batch("auto");
        return;
    }
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (!family_runs(families[i])) {
            print_message("kernel family %s: this machine can't run it, NOT CHECKED\n",
                          families[i]);
            continue;
        }
        check_form("tests/golden/tiny", families[i]);
        check_batch(families[i]);
        ran++;
    }
    assert_true(ran >= 2);
}

static void bf16_shards_agree(void **state)
{
    (void)state;
    check_form("tests/golden/tiny/bf16", "auto");
}

static void torch_shards_agree(void **state)
{
    (void)state;
    check_form("tests/golden/tiny/torch", "auto");
}

/* ---- the second spelling of the MoE tensors, made from the first ----------------------------- */

struct writer {
    struct cfg_buf header, data;
};

static void put_tensor(struct writer *w, const char *name, const int64_t *dims, int n_dims,
                       const float *x)
{
    size_t n = 1;
    cfg_buf_printf(&w->header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", w->header.len ? "," : "{",
                   name);
    for (int i = 0; i < n_dims; i++) {
        cfg_buf_printf(&w->header, "%s%lld", i ? "," : "", (long long)dims[i]);
        n *= (size_t)dims[i];
    }
    cfg_buf_printf(&w->header, "],\"data_offsets\":[%zu,%zu]}", w->data.len,
                   w->data.len + n * sizeof *x);
    cfg_buf_append(&w->data, x, n * sizeof *x);
}

/* [experts, in, out] -> experts matrices [out, in] under the community's names. */
static void put_experts(struct writer *w, const struct tensor *t, const char *proj)
{
    const int64_t in = t->dims[1], out = t->dims[2], dims[] = {out, in};
    const float *x = t->data;
    float *transposed = malloc((size_t)(in * out) * sizeof *transposed);
    const int prefix = (int)(strstr(t->name, "experts.") - t->name) + 8;
    for (int64_t e = 0; e < t->dims[0]; e++) {
        char name[128];
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o++)
                memcpy(&transposed[o * in + i], &x[(e * in + i) * out + o], sizeof *x);
        snprintf(name, sizeof name, "%.*s%d.%s.weight", prefix, t->name, (int)e, proj);
        put_tensor(w, name, dims, 2, transposed);
    }
    free(transposed);
}

static void write_second_spelling(const char *folder)
{
    struct checkpoint *c;
    struct error err;
    struct writer w = {0};
    char path[256], *config;
    size_t config_n;
    assert_int_equal(checkpoint_open(&c, "tests/golden/tiny", &err), CFG_OK);
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct tensor *t = checkpoint_at(c, i);
        const char *gate = strstr(t->name, "mlp.gate_weight");
        char name[128];
        if (strstr(t->name, "experts.wi_gate"))
            put_experts(&w, t, "gate_proj");
        else if (strstr(t->name, "experts.wi_up"))
            put_experts(&w, t, "up_proj");
        else if (strstr(t->name, "experts.wo"))
            put_experts(&w, t, "down_proj");
        else if (gate) {
            snprintf(name, sizeof name, "%.*smlp.gate.weight", (int)(gate - t->name), t->name);
            put_tensor(&w, name, t->dims, t->n_dims, t->data);
        } else
            put_tensor(&w, t->name, t->dims, t->n_dims, t->data);
    }
    checkpoint_close(c);
    cfg_buf_puts(&w.header, "}");
    mkdir(folder, 0755);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    const uint64_t n = w.header.len;
    fwrite(&n, sizeof n, 1, f);
    fwrite(w.header.data, 1, w.header.len, f);
    fwrite(w.data.data, 1, w.data.len, f);
    fclose(f);
    cfg_buf_free(&w.header);
    cfg_buf_free(&w.data);
    assert_int_equal(
        cfg_read_file("tests/golden/tiny/config.json", 1 << 20, &config, &config_n, &err), CFG_OK);
    snprintf(path, sizeof path, "%s/config.json", folder);
    f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(config, 1, config_n, f);
    fclose(f);
    free(config);
}

static void second_spelling_agrees(void **state)
{
    (void)state;
    char folder[] = "/tmp/openmoed-golden-XXXXXX", path[256];
    assert_non_null(mkdtemp(folder));
    write_second_spelling(folder);
    check_form(folder, "auto");
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_agrees),
        cmocka_unit_test(bf16_shards_agree),
        cmocka_unit_test(torch_shards_agree),
        cmocka_unit_test(second_spelling_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
