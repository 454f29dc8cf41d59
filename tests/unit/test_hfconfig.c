// SPDX-License-Identifier: Apache-2.0
//
// test_hfconfig.c: config.json: defaults, both generations of key names, ranges, and refusals that
// must name the key. Run from the repository's root (it reads tests/golden).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/hfconfig.h"

#define REQUIRED_KEYS                                                                              \
    "\"num_hidden_layers\":12,\"hidden_size\":768,\"intermediate_size\":2048,"                     \
    "\"num_attention_heads\":12,\"head_dim\":64,\"vocab_size\":256384,\"num_experts\":16,"         \
    "\"moe_layer_interval\":4"

/* Parses an exactly sized copy, so that a sanitizer sees any step past its end. */
static int parse(struct hfconfig *c, const char *text, size_t n, struct error *err)
{
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, text, n);
    int rc = hfconfig_parse(c, copy, n, err);
    free(copy);
    return rc;
}

static void parse_ok(struct hfconfig *c, const char *text)
{
    struct error err = {0};
    if (parse(c, text, strlen(text), &err) != CFG_OK) fail_msg("%s: %s", text, err.message);
}

static void test_defaults(void **state)
{
    struct hfconfig c;
    (void)state;
    parse_ok(&c, "{" REQUIRED_KEYS "}");
    assert_int_equal(c.layers, 12);
    assert_int_equal(c.hidden, 768);
    assert_int_equal(c.inner, 2048);
    assert_int_equal(c.heads, 12);
    assert_int_equal(c.kv_heads, 12);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.vocab, 256384);
    assert_int_equal(c.context, 2048);
    assert_int_equal(c.experts, 16);
    assert_int_equal(c.topk, 2);
    assert_int_equal(c.moe_interval, 4);
    assert_int_equal(c.min_capacity, 4);
    assert_true(c.capacity_factor_eval == 2.0F);
    assert_true(c.drop_tokens);
    assert_true(c.rms_eps == 1e-6F);
    assert_true(c.rope_theta == 10000.0F);
    assert_int_equal(c.bos_id, 0);
    assert_int_equal(c.eos_id, 1);
    assert_int_equal(c.pad_id, 0);
    assert_int_equal(c.dtype, CFG_DTYPE_AUTO);
}

static void test_older_spellings(void **state)
{
    struct hfconfig c;
    (void)state;
    parse_ok(&c, "{" REQUIRED_KEYS ",\"topk\":3,\"capacity_factor_eval\":1.5,\"min_capacity\":8,"
                 "\"drop_tks\":false,\"gated\":true}");
    assert_int_equal(c.topk, 3);
    assert_true(c.capacity_factor_eval == 1.5F);
    assert_int_equal(c.min_capacity, 8);
    assert_false(c.drop_tokens);

    parse_ok(&c, "{" REQUIRED_KEYS ",\"router_topk\":1,\"router_capacity_factor_eval\":3,"
                 "\"router_min_capacity\":6,\"router_drop_tks\":false}");
    assert_int_equal(c.topk, 1);
    assert_true(c.capacity_factor_eval == 3.0F);
    assert_int_equal(c.min_capacity, 6);
    assert_false(c.drop_tokens);

    /* where both stand, the newer one holds, in any order; null is as good as absent */
    parse_ok(&c, "{" REQUIRED_KEYS ",\"router_topk\":2,\"topk\":4,\"min_capacity\":9,"
                 "\"router_min_capacity\":5,\"drop_tks\":false,\"router_drop_tks\":true,"
                 "\"capacity_factor_eval\":7,\"router_capacity_factor_eval\":null}");
    assert_int_equal(c.topk, 2);
    assert_int_equal(c.min_capacity, 5);
    assert_true(c.drop_tokens);
    assert_true(c.capacity_factor_eval == 7.0F);
}

static void test_optional_keys(void **state)
{
    struct hfconfig c;
    (void)state;
    parse_ok(&c, "{" REQUIRED_KEYS ",\"num_key_value_heads\":4,\"max_position_embeddings\":4096,"
                 "\"rms_norm_eps\":1e-5,\"rope_theta\":500000,\"bos_token_id\":2,"
                 "\"eos_token_id\":3,\"pad_token_id\":4,\"torch_dtype\":\"bfloat16\","
                 "\"hidden_act\":\"swiglu\",\"mlp_gated\":true,\"rope_scaling\":null,"
                 "\"tie_word_embeddings\":false,\"attention_bias\":false,"
                 "\"architectures\":[\"X\",\"OpenMoeForCausalLM\"],\"model_type\":\"llama\","
                 "\"some_new_key\":{\"a\":[1,2]},\"transformers_version\":\"4.34.0\"}");
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.context, 4096);
    assert_true(c.rms_eps == 1e-5F);
    assert_true(c.rope_theta == 500000.0F);
    assert_int_equal(c.bos_id, 2);
    assert_int_equal(c.eos_id, 3);
    assert_int_equal(c.pad_id, 4);
    assert_int_equal(c.dtype, CFG_DTYPE_BF16);
}

static void test_dtypes(void **state)
{
    struct hfconfig c;
    (void)state;
    parse_ok(&c, "{" REQUIRED_KEYS ",\"torch_dtype\":\"float32\"}");
    assert_int_equal(c.dtype, CFG_DTYPE_F32);
    parse_ok(&c, "{" REQUIRED_KEYS ",\"torch_dtype\":\"float16\"}");
    assert_int_equal(c.dtype, CFG_DTYPE_F32);
    parse_ok(&c, "{" REQUIRED_KEYS ",\"dtype\":\"bfloat16\"}");
    assert_int_equal(c.dtype, CFG_DTYPE_BF16);
    parse_ok(&c, "{" REQUIRED_KEYS ",\"torch_dtype\":null}");
    assert_int_equal(c.dtype, CFG_DTYPE_AUTO);
}

struct refusal {
    const char *text;  /* the whole file */
    const char *named; /* must be in the message */
};

#define WITH(extra) "{" REQUIRED_KEYS "," extra "}"
#define SHAPE(l, h, i, n, d, v, e, m)                                                              \
    "{\"num_hidden_layers\":" l ",\"hidden_size\":" h ",\"intermediate_size\":" i                  \
    ",\"num_attention_heads\":" n ",\"head_dim\":" d ",\"vocab_size\":" v ",\"num_experts\":" e    \
    ",\"moe_layer_interval\":" m "}"

static const struct refusal refusals[] = {
    {"", "config.json"},
    {"[]", "no JSON object"},
    {"{", "config.json"},
    {"{" REQUIRED_KEYS "} x", "config.json"},
    {WITH("\"head_dim\":64"), "head_dim"}, /* twice */
    {"{}", "num_hidden_layers is missing"},
    {"{\"num_hidden_layers\":12}", "hidden_size is missing"},
    {SHAPE("null", "8", "8", "1", "8", "8", "8", "1"), "num_hidden_layers is missing"},
    {SHAPE("2", "8", "8", "1", "8", "8", "null", "1"), "num_experts is missing"},
    {SHAPE("2", "8", "8", "1", "8", "8", "8", "null"), "moe_layer_interval is missing"},
    {SHAPE("2", "8", "8", "1", "null", "8", "8", "1"), "head_dim is missing"},
    {SHAPE("0", "8", "8", "1", "8", "8", "8", "1"), "num_hidden_layers"},
    {SHAPE("5000", "8", "8", "1", "8", "8", "8", "1"), "num_hidden_layers"},
    {SHAPE("2", "-8", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "8.5", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "\"8\"", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "true", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "[8]", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "1048577", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "1e30", "8", "1", "8", "8", "8", "1"), "hidden_size"},
    {SHAPE("2", "8", "1e300", "1", "8", "8", "8", "1"), "intermediate_size"},
    {SHAPE("2", "8", "8", "0", "8", "8", "8", "1"), "num_attention_heads"},
    {SHAPE("2", "8", "8", "1", "7", "8", "8", "1"), "head_dim 7 is odd"},
    {SHAPE("2", "8", "8", "1048576", "2", "8", "8", "1"), "num_attention_heads x head_dim"},
    {SHAPE("2", "1048576", "8", "1", "8", "2097152", "8", "1"), "vocab_size x hidden_size"},
    {SHAPE("2", "1048576", "1048576", "1", "8", "8", "4096", "1"), "intermediate_size"},
    {SHAPE("2", "1048576", "8", "1048576", "1048576", "8", "8", "1"), "num_attention_heads x"},
    {SHAPE("2", "8", "8", "1", "8", "16777217", "8", "1"), "vocab_size"},
    {SHAPE("2", "8", "8", "1", "8", "8", "1", "1"), "router_topk 2 is over num_experts 1"},
    {SHAPE("2", "8", "8", "1", "8", "8", "8", "3"), "moe_layer_interval 3"},
    {SHAPE("2", "8", "8", "1", "8", "8", "8", "0"), "moe_layer_interval"},
    {WITH("\"num_key_value_heads\":5"), "num_key_value_heads 5"},
    {WITH("\"num_key_value_heads\":24"), "num_key_value_heads 24"},
    {WITH("\"max_position_embeddings\":0"), "max_position_embeddings"},
    {WITH("\"router_topk\":17"), "router_topk 17"},
    {WITH("\"router_topk\":0"), "router_topk"},
    {WITH("\"topk\":0"), "config.json: topk"},
    {WITH("\"min_capacity\":0"), "config.json: min_capacity"},
    {WITH("\"router_min_capacity\":0"), "router_min_capacity"},
    {WITH("\"router_capacity_factor_eval\":0"), "router_capacity_factor_eval"},
    {WITH("\"capacity_factor_eval\":\"2\""), "config.json: capacity_factor_eval"},
    {WITH("\"router_drop_tks\":1"), "router_drop_tks"},
    {WITH("\"drop_tks\":\"yes\""), "config.json: drop_tks"},
    {WITH("\"rms_norm_eps\":0"), "rms_norm_eps"},
    {WITH("\"rms_norm_eps\":2"), "rms_norm_eps"},
    {WITH("\"rope_theta\":-1"), "rope_theta"},
    {WITH("\"eos_token_id\":256384"), "eos_token_id"},
    {WITH("\"eos_token_id\":[1,2]"), "eos_token_id"},
    {WITH("\"pad_token_id\":-1"), "pad_token_id"},
    {WITH("\"torch_dtype\":\"float8_e4m3fn\""), "float8_e4m3fn"},
    {WITH("\"torch_dtype\":16"), "torch_dtype"},
    {WITH("\"dtype\":\"int8\""), "config.json: dtype \"int8\""},
    {WITH("\"tie_word_embeddings\":true"), "tie_word_embeddings"},
    {WITH("\"tie_word_embeddings\":\"no\""), "tie_word_embeddings"},
    {WITH("\"attention_bias\":true"), "attention_bias"},
    {WITH("\"mlp_bias\":true"), "mlp_bias"},
    {WITH("\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}"), "rope_scaling"},
    {WITH("\"rope_parameters\":{\"rope_theta\":1}"), "rope_parameters"},
    {WITH("\"sliding_window\":1024"), "sliding_window"},
    {WITH("\"quantization_config\":{}"), "quantization_config"},
    {WITH("\"hidden_act\":\"silu\""), "hidden_act"},
    {WITH("\"hidden_act\":7"), "hidden_act"},
    {WITH("\"mlp_gated\":false"), "mlp_gated"},
    {WITH("\"gated\":false"), "mlp_gated"},
    {WITH("\"architectures\":[\"LlamaForCausalLM\"]"), "LlamaForCausalLM"},
    {WITH("\"architectures\":[]"), "architecture"},
    {WITH("\"architectures\":\"OpenMoeForCausalLM\""), "architecture"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        struct hfconfig c;
        struct error err = {0};
        const char *text = refusals[i].text;
        if (parse(&c, text, strlen(text), &err) == CFG_OK) fail_msg("accepted: %s", text);
        if (!strstr(err.message, refusals[i].named))
            fail_msg("%s\nsays \"%s\", not \"%s\"", text, err.message, refusals[i].named);
    }
}

static void test_every_truncation_fails(void **state)
{
    static const char text[] = WITH("\"topk\":2,\"torch_dtype\":\"float32\"");
    struct hfconfig c;
    struct error err;
    (void)state;
    for (size_t n = 0; n < sizeof text - 1; n++)
        assert_int_not_equal(parse(&c, text, n, &err), CFG_OK);
    assert_int_equal(parse(&c, text, sizeof text - 1, &err), CFG_OK);
}

static void test_golden_folders(void **state)
{
    struct hfconfig c;
    struct error err = {0};
    (void)state;
    assert_int_equal(hfconfig_read(&c, "tests/golden/tiny", &err), CFG_OK);
    assert_int_equal(c.layers, 4);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.inner, 96);
    assert_int_equal(c.heads, 6);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.experts, 8);
    assert_int_equal(c.moe_interval, 2);
    assert_int_equal(c.vocab, 512);
    assert_int_equal(c.context, 256);
    assert_int_equal(c.dtype, CFG_DTYPE_F32);
    assert_int_equal(hfconfig_read(&c, "tests/golden/tiny/bf16", &err), CFG_OK);
    assert_int_equal(c.dtype, CFG_DTYPE_BF16);
    assert_int_equal(hfconfig_read(&c, "tests/golden", &err), CFG_ENOTFOUND);
    assert_non_null(strstr(err.message, "config.json"));
}

static void test_presets(void **state)
{
    static const char *const names[] = {"base", "8b", "34b"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        const struct cfg_preset *p = cfg_preset_find(names[i]);
        struct hfconfig c;
        assert_non_null(p);
        hfconfig_from_preset(&c, p);
        assert_int_equal(c.layers, p->layers);
        assert_int_equal(c.hidden, p->hidden);
        assert_int_equal(c.inner, p->inner);
        assert_int_equal(c.heads, p->heads);
        assert_int_equal(c.kv_heads, p->kv_heads);
        assert_int_equal(c.head_dim, p->head_dim);
        assert_int_equal(c.experts, p->experts);
        assert_int_equal(c.topk, 2);
        assert_int_equal(c.moe_interval, p->moe_interval);
        assert_int_equal(c.vocab, 256384);
        assert_int_equal(c.context, 2048);
        assert_int_equal(c.min_capacity, 4);
        assert_true(c.capacity_factor_eval == 2.0F);
        assert_true(c.drop_tokens);
        assert_true(c.rms_eps == 1e-6F && c.rope_theta == 10000.0F);
        assert_int_equal(c.eos_id, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_older_spellings),
        cmocka_unit_test(test_optional_keys),  cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_every_truncation_fails),
        cmocka_unit_test(test_golden_folders), cmocka_unit_test(test_presets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
