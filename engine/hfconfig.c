// SPDX-License-Identifier: Apache-2.0
//
// hfconfig.c: config.json of a model folder. One table lists the keys that are numbers, with both
// spellings, default and range; settings that the engine does not compute are refused by name
// rather than ignored, for they would change the answers; all other keys are ignored, since every
// version of the exporting library adds some. Pure functions of the text.
#include "engine/hfconfig.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)1 << 20)
#define MAX_WIDTH        (1 << 20)
#define MAX_COUNT        4096 /* layers, experts */
#define MAX_PRODUCT      ((int64_t)1 << 40)
#define REQUIRED         (-1)

struct int_key {
    const char *name, *older; /* older may be NULL; the newer spelling wins */
    size_t offset;
    int fallback; /* REQUIRED: the key must be there */
    int min, max;
};

#define AT(field) offsetof(struct hfconfig, field)

/* In the order of the struct. kv_heads 0 stands for "as heads". */
static const struct int_key int_keys[] = {
    {"num_hidden_layers", NULL, AT(layers), REQUIRED, 1, MAX_COUNT},
    {"hidden_size", NULL, AT(hidden), REQUIRED, 1, MAX_WIDTH},
    {"intermediate_size", NULL, AT(inner), REQUIRED, 1, MAX_WIDTH},
    {"num_attention_heads", NULL, AT(heads), REQUIRED, 1, MAX_WIDTH},
    {"num_key_value_heads", NULL, AT(kv_heads), 0, 1, MAX_WIDTH},
    {"head_dim", NULL, AT(head_dim), REQUIRED, 2, MAX_WIDTH},
    {"vocab_size", NULL, AT(vocab), REQUIRED, 2, 1 << 24},
    {"max_position_embeddings", NULL, AT(context), 2048, 1, 1 << 24},
    {"num_experts", NULL, AT(experts), REQUIRED, 1, MAX_COUNT},
    {"router_topk", "topk", AT(topk), 2, 1, MAX_COUNT},
    {"moe_layer_interval", NULL, AT(moe_interval), REQUIRED, 1, MAX_COUNT},
    {"router_min_capacity", "min_capacity", AT(min_capacity), 4, 1, MAX_WIDTH},
    {"bos_token_id", NULL, AT(bos_id), 0, 0, 1 << 24},
    {"eos_token_id", NULL, AT(eos_id), 1, 0, 1 << 24},
    {"pad_token_id", NULL, AT(pad_id), 0, 0, 1 << 24},
};

struct float_key {
    const char *name, *older;
    size_t offset;
    double fallback, min, max;
};

static const struct float_key float_keys[] = {
    {"router_capacity_factor_eval", "capacity_factor_eval", AT(capacity_factor_eval), 2.0, 1e-3,
     1e4},
    {"rms_norm_eps", NULL, AT(rms_eps), 1e-6, 1e-12, 1.0},
    {"rope_theta", NULL, AT(rope_theta), 10000.0, 1.0, 1e12},
};

/* A key that is missing and a key that is null mean the same: the default. */
static const cJSON *value_of(const cJSON *root, const char *name)
{
    const cJSON *j = name ? cJSON_GetObjectItemCaseSensitive(root, name) : NULL;
    return j && !cJSON_IsNull(j) ? j : NULL;
}

/* The key under either spelling; *name becomes the one found. */
static const cJSON *either(const cJSON *root, const char **name, const char *older)
{
    const cJSON *j = value_of(root, *name);
    if (j || !older) return j;
    j = value_of(root, older);
    if (j) *name = older;
    return j;
}

static int read_ints(struct hfconfig *c, const cJSON *root, struct error *err)
{
    for (size_t i = 0; i < sizeof int_keys / sizeof int_keys[0]; i++) {
        const struct int_key *k = &int_keys[i];
        const char *name = k->name;
        const cJSON *j = either(root, &name, k->older);
        if (!j && k->fallback == REQUIRED)
            return cfg_fail(err, CFG_EINVAL, "config.json: %s is missing", name);
        double d = !j ? k->fallback : cJSON_IsNumber(j) ? j->valuedouble : NAN;
        if (j && (!(d >= k->min && d <= k->max) || d != floor(d)))
            return cfg_fail(err, CFG_EINVAL, "config.json: %s must be a whole number from %d to %d",
                            name, k->min, k->max);
        const int value = (int)d;
        memcpy((char *)c + k->offset, &value, sizeof value);
    }
    if (c->kv_heads == 0) c->kv_heads = c->heads;
    return CFG_OK;
}

static int read_floats(struct hfconfig *c, const cJSON *root, struct error *err)
{
    for (size_t i = 0; i < sizeof float_keys / sizeof float_keys[0]; i++) {
        const struct float_key *k = &float_keys[i];
        const char *name = k->name;
        const cJSON *j = either(root, &name, k->older);
        double d = j ? (cJSON_IsNumber(j) ? j->valuedouble : NAN) : k->fallback;
        if (!(d >= k->min && d <= k->max))
            return cfg_fail(err, CFG_EINVAL, "config.json: %s must be a number from %g to %g", name,
                            k->min, k->max);
        const float value = (float)d;
        memcpy((char *)c + k->offset, &value, sizeof value);
    }
    return CFG_OK;
}

/* Sets *out to the key's truth value, or leaves it when the key is missing. */
static int read_bool(const cJSON *root, const char *name, const char *older, bool *out,
                     struct error *err)
{
    const cJSON *j = either(root, &name, older);
    if (j && !cJSON_IsBool(j))
        return cfg_fail(err, CFG_EINVAL, "config.json: %s must be true or false", name);
    if (j) *out = cJSON_IsTrue(j);
    return CFG_OK;
}

static int read_dtype(struct hfconfig *c, const cJSON *root, struct error *err)
{
    const char *name = "torch_dtype";
    const cJSON *j = value_of(root, name);
    if (!j) j = value_of(root, name = "dtype"); /* its name in later exports */
    c->dtype = CFG_DTYPE_AUTO;
    if (!j) return CFG_OK;
    const char *s = cJSON_IsString(j) ? j->valuestring : "";
    if (strcmp(s, "bfloat16") == 0) {
        c->dtype = CFG_DTYPE_BF16;
    } else if (strcmp(s, "float32") == 0 || strcmp(s, "float16") == 0) {
        c->dtype = CFG_DTYPE_F32; /* float16 overflows in this family: computed in F32 */
    } else {
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "config.json: %s \"%.64s\" is not float32, bfloat16 or float16", name, s);
    }
    return CFG_OK;
}

static int refuse(struct error *err, const char *what)
{
    return cfg_fail(err, CFG_EUNSUPPORTED, "config.json: %s is not supported", what);
}

/* Settings of related architectures that would change what must be computed. */
static int refuse_unsupported(const cJSON *root, struct error *err)
{
    static const char *const must_be_false[] = {"tie_word_embeddings", "attention_bias",
                                                "mlp_bias"};
    static const char *const must_be_null[] = {"rope_scaling", "rope_parameters", "sliding_window",
                                               "quantization_config"};
    char what[96];
    bool gated = true;
    for (size_t i = 0; i < sizeof must_be_false / sizeof must_be_false[0]; i++) {
        bool set = false;
        int rc = read_bool(root, must_be_false[i], NULL, &set, err);
        if (rc != CFG_OK) return rc;
        snprintf(what, sizeof what, "%s true", must_be_false[i]);
        if (set) return refuse(err, what);
    }
    for (size_t i = 0; i < sizeof must_be_null / sizeof must_be_null[0]; i++) {
        snprintf(what, sizeof what, "%s other than null", must_be_null[i]);
        if (value_of(root, must_be_null[i])) return refuse(err, what);
    }
    int rc = read_bool(root, "mlp_gated", "gated", &gated, err);
    if (rc != CFG_OK) return rc;
    if (!gated) return refuse(err, "mlp_gated false");
    const cJSON *act = value_of(root, "hidden_act");
    if (act && (!cJSON_IsString(act) || strcmp(act->valuestring, "swiglu") != 0))
        return refuse(err, "hidden_act other than \"swiglu\"");
    return CFG_OK;
}

/* A LLaMA folder has most of the keys, too: its name tells them apart. */
static int check_architecture(const cJSON *root, struct error *err)
{
    const cJSON *list = value_of(root, "architectures");
    if (!list) return CFG_OK;
    for (const cJSON *j = cJSON_IsArray(list) ? list->child : NULL; j; j = j->next) {
        if (cJSON_IsString(j) && strcmp(j->valuestring, "OpenMoeForCausalLM") == 0) return CFG_OK;
    }
    const cJSON *first = cJSON_IsArray(list) ? list->child : NULL;
    return cfg_fail(err, CFG_EUNSUPPORTED,
                    "config.json: architecture %.64s is not OpenMoeForCausalLM",
                    first && cJSON_IsString(first) ? first->valuestring : "(none)");
}

static int check_product(const char *what, int64_t a, int64_t b, int64_t c, struct error *err)
{
    int64_t p = 0;
    if (__builtin_mul_overflow(a, b, &p) || __builtin_mul_overflow(p, c, &p) || p > MAX_PRODUCT)
        return cfg_fail(err, CFG_EINVAL, "config.json: %s is larger than 2^40", what);
    return CFG_OK;
}

/* What no key shows alone. */
static int check_together(const struct hfconfig *c, struct error *err)
{
    int rc = check_product("vocab_size x hidden_size", c->vocab, c->hidden, 1, err);
    if (rc == CFG_OK)
        rc = check_product("num_attention_heads x head_dim x hidden_size", c->heads, c->head_dim,
                           c->hidden, err);
    if (rc == CFG_OK)
        rc = check_product("num_experts x hidden_size x intermediate_size", c->experts,
                           2 * (int64_t)c->hidden, c->inner, err);
    if (rc != CFG_OK) return rc;
    if ((int64_t)c->heads * c->head_dim > MAX_WIDTH)
        return cfg_fail(err, CFG_EINVAL, "config.json: num_attention_heads x head_dim is over %d",
                        MAX_WIDTH);
    if (c->head_dim % 2)
        return cfg_fail(err, CFG_EINVAL, "config.json: head_dim %d is odd: it cannot be rotated",
                        c->head_dim);
    if (c->heads % c->kv_heads)
        return cfg_fail(err, CFG_EINVAL,
                        "config.json: num_key_value_heads %d does not divide num_attention_heads "
                        "%d",
                        c->kv_heads, c->heads);
    if (c->topk > c->experts)
        return cfg_fail(err, CFG_EINVAL, "config.json: router_topk %d is over num_experts %d",
                        c->topk, c->experts);
    if (c->moe_interval > c->layers)
        return cfg_fail(err, CFG_EINVAL,
                        "config.json: moe_layer_interval %d leaves no MoE layer among %d",
                        c->moe_interval, c->layers);
    if (c->bos_id >= c->vocab || c->eos_id >= c->vocab || c->pad_id >= c->vocab)
        return cfg_fail(err, CFG_EINVAL,
                        "config.json: bos_token_id %d, eos_token_id %d or pad_token_id %d is not "
                        "below vocab_size %d",
                        c->bos_id, c->eos_id, c->pad_id, c->vocab);
    return CFG_OK;
}

static int read_root(struct hfconfig *c, const cJSON *root, struct error *err)
{
    if (!cJSON_IsObject(root)) return cfg_fail(err, CFG_EINVAL, "config.json: no JSON object");
    int rc = check_architecture(root, err);
    if (rc == CFG_OK) rc = refuse_unsupported(root, err);
    if (rc == CFG_OK) rc = read_ints(c, root, err);
    if (rc == CFG_OK) rc = read_floats(c, root, err);
    c->drop_tokens = true;
    if (rc == CFG_OK) rc = read_bool(root, "router_drop_tks", "drop_tks", &c->drop_tokens, err);
    if (rc == CFG_OK) rc = read_dtype(c, root, err);
    if (rc == CFG_OK) rc = check_together(c, err);
    return rc;
}

int hfconfig_parse(struct hfconfig *out, const char *text, size_t n, struct error *err)
{
    const struct cfg_json_limits limits = {
        .max_bytes = MAX_CONFIG_BYTES, .max_values = 100000, .max_depth = 32};
    cJSON *root = NULL;
    struct error inner;
    memset(out, 0, sizeof *out);
    int rc = cfg_json_parse(&root, text, n, &limits, &inner);
    if (rc != CFG_OK) return cfg_fail(err, rc, "config.json: %.400s", inner.message);
    rc = read_root(out, root, err);
    cJSON_Delete(root);
    return rc;
}

int hfconfig_read(struct hfconfig *out, const char *folder, struct error *err)
{
    char *path = NULL, *text = NULL;
    size_t n = 0;
    memset(out, 0, sizeof *out);
    if (asprintf(&path, "%s/config.json", folder) < 0)
        return cfg_fail(err, CFG_ENOMEM, "no memory for the path of config.json");
    int rc = cfg_read_file(path, MAX_CONFIG_BYTES, &text, &n, err);
    if (rc == CFG_OK) rc = hfconfig_parse(out, text, n, err);
    free(path);
    free(text);
    return rc;
}

void hfconfig_from_preset(struct hfconfig *out, const struct cfg_preset *p)
{
    *out = (struct hfconfig){
        .layers = p->layers,
        .hidden = p->hidden,
        .inner = p->inner,
        .heads = p->heads,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .vocab = p->vocab,
        .context = p->context,
        .experts = p->experts,
        .topk = p->topk,
        .moe_interval = p->moe_interval,
        .min_capacity = 4,
        .capacity_factor_eval = 2.0F,
        .drop_tokens = true,
        .rms_eps = 1e-6F,
        .rope_theta = 10000.0F,
        .bos_id = 0,
        .eos_id = 1,
        .pad_id = 0,
        .dtype = CFG_DTYPE_AUTO,
    };
}
