// SPDX-License-Identifier: Apache-2.0
//
// api_misc.c: the small endpoints: tokenize, detokenize, models, version. Each turns a body into an
// answer in one call and keeps nothing. Any thread.
#include "server/api_tables.h"

#include <stdlib.h>
#include <string.h>

const struct api_field api_tokenize_fields[] = {
    {"model", API_FIELD_READ, NULL},
    {"prompt", API_FIELD_READ, NULL},
    {"add_special_tokens", API_FIELD_READ, NULL},
    {"return_token_strs", API_FIELD_READ, NULL},
    /* of vLLM, whose /tokenize takes chats too */
    {"add_generation_prompt", API_FIELD_UNSUPPORTED, "true"},
    {"continue_final_message", API_FIELD_UNSUPPORTED, "false"},
    {"chat_template_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"mm_processor_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"media_io_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"messages", API_FIELD_UNSUPPORTED, NULL},
    {"tools", API_FIELD_UNSUPPORTED, NULL},
    {"chat_template", API_FIELD_UNSUPPORTED, NULL},
    {NULL, API_FIELD_READ, NULL},
};
const struct api_field api_detokenize_fields[] = {
    {"model", API_FIELD_READ, NULL},
    {"tokens", API_FIELD_READ, NULL},
    {NULL, API_FIELD_READ, NULL},
};

static int check(const cJSON *root, const struct api_field *fields, const struct api_env *env,
                 struct api_error *err)
{
    if (api_check_model(root, false, env, err) || api_check_fields(root, "", fields, NULL, err))
        return -1;
    if (!env->tokenizer)
        return api_fail(err, 400, "tokenizer_missing", "", "The served model has no tokenizer.");
    return 0;
}

static int tokenize(const cJSON *root, const struct api_env *env, struct cfg_buf *out,
                    struct api_error *err)
{
    const char *prompt = NULL;
    bool special = true, pieces = false;
    if (check(root, api_tokenize_fields, env, err) ||
        api_get_string(root, "", "prompt", &prompt, err) ||
        api_get_bool(root, "", "add_special_tokens", &special, err) ||
        api_get_bool(root, "", "return_token_strs", &pieces, err))
        return -1;
    int32_t *ids = NULL; /* [n] */
    size_t n = 0;
    struct error why;
    if (engine_encode(env->tokenizer, prompt, strlen(prompt), special, &ids, &n, &why))
        return api_fail(err, 500, NULL, "", "%s", why.message);
    cfg_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":[", n, env->info->context);
    for (size_t i = 0; i < n; i++) cfg_buf_printf(out, i ? ",%d" : "%d", (int)ids[i]);
    cfg_buf_puts(out, pieces ? "],\"token_strs\":[" : "]}");
    for (size_t i = 0; pieces && i < n; i++) {
        const char *piece = engine_token_piece(env->tokenizer, ids[i]);
        if (i) cfg_buf_puts(out, ",");
        cfg_buf_json_string(out, piece, strlen(piece));
    }
    if (pieces) cfg_buf_puts(out, "]}");
    free(ids);
    return out->failed ? api_no_memory(err) : 0;
}

static int detokenize(const cJSON *root, const struct api_env *env, struct cfg_buf *out,
                      struct api_error *err)
{
    if (check(root, api_detokenize_fields, env, err)) return -1;
    const cJSON *list = api_field(root, "tokens");
    if (!list) return api_missing(err, "tokens");
    if (!cJSON_IsArray(list)) return api_wrong_type(err, "tokens", "an array of token ids", list);
    size_t n = (size_t)cJSON_GetArraySize(list), len = 0;
    int32_t *ids = calloc(n + 1, sizeof *ids); /* [n] */
    if (!ids) return api_no_memory(err);
    char *text = NULL;
    struct error why;
    int rc = api_id_list(list, "tokens", env->info->usable_vocab, ids, err);
    if (!rc && engine_decode(env->tokenizer, ids, n, &text, &len, &why))
        rc = api_fail(err, 500, NULL, "", "%s", why.message);
    free(ids);
    if (rc) return rc;
    cfg_buf_puts(out, "{\"prompt\":");
    cfg_buf_json_string(out, text, len);
    cfg_buf_puts(out, "}");
    free(text);
    return out->failed ? api_no_memory(err) : 0;
}

int api_tokenize(const char *body, size_t n, const struct api_env *env, struct cfg_buf *out,
                 struct api_error *err)
{
    cJSON *root = NULL;
    if (api_json_object(&root, body, n, env, err)) return -1;
    int rc = tokenize(root, env, out, err);
    cJSON_Delete(root);
    return rc;
}

int api_detokenize(const char *body, size_t n, const struct api_env *env, struct cfg_buf *out,
                   struct api_error *err)
{
    cJSON *root = NULL;
    if (api_json_object(&root, body, n, env, err)) return -1;
    int rc = detokenize(root, env, out, err);
    cJSON_Delete(root);
    return rc;
}

static void model_object(const struct api_env *env, struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"id\":");
    cfg_buf_json_string(out, env->model_name, strlen(env->model_name));
    cfg_buf_printf(out,
                   ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"openmoed\",\"root\":",
                   (long long)env->created);
    cfg_buf_json_string(out, env->model_name, strlen(env->model_name));
    cfg_buf_printf(out, ",\"parent\":null,\"max_model_len\":%d}", env->info->context);
}

void api_models(const struct api_env *env, struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    if (env->model_name) model_object(env, out);
    cfg_buf_puts(out, "]}");
}

int api_model(const char *id, const struct api_env *env, struct cfg_buf *out, struct api_error *err)
{
    if (!env->model_name || strcmp(id, env->model_name) != 0)
        return api_fail(err, 404, "model_not_found", "model", "The model '%.200s' does not exist.",
                        id);
    model_object(env, out);
    return 0;
}

void api_version(struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"version\":\"" OPENMOED_VERSION "\"}");
}
