// SPDX-License-Identifier: Apache-2.0
//
// api_completion.c: what only POST /v1/completions has: the prompt in its four forms (text, list of
// texts, list of ids, list of lists of ids), echo, counted log-probabilities. A text gets the start
// token in front; ids are taken as they are.
#include "server/api_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct api_field api_completion_fields[] = {
    {"prompt", API_FIELD_READ, NULL},  {"echo", API_FIELD_READ, NULL},
    {"best_of", API_FIELD_READ, NULL}, {"suffix", API_FIELD_UNSUPPORTED, "\"\""},
    {NULL, API_FIELD_READ, NULL},
};

static int keep_text(struct api_request *r, struct api_prompt *p, const char *text, size_t n,
                     struct api_error *err)
{
    p->text = cfg_arena_strndup(r->arena, text, n);
    p->text_len = n;
    return p->text ? 0 : api_no_memory(err);
}

/* The text of a prompt that is known by its ids alone. */
static int echo_ids(struct api_request *r, struct api_prompt *p, struct api_error *err)
{
    if (!r->env->tokenizer) return keep_text(r, p, "", 0, err);
    char *text = NULL;
    size_t len = 0;
    struct error why;
    if (engine_decode(r->env->tokenizer, p->ids, p->n, &text, &len, &why))
        return api_fail(err, 500, NULL, "", "%s", why.message);
    int rc = keep_text(r, p, text, len, err);
    free(text);
    return rc;
}

static int read_text(struct api_request *r, const cJSON *v, const char *param, struct api_prompt *p,
                     struct api_error *err)
{
    if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
    if (!r->env->tokenizer) return api_tokenizer_missing(err, param);
    const char *text = v->valuestring;
    size_t len = strlen(text), n = 0, skip = 0;
    int32_t *ids = NULL; /* [n] */
    struct error why;
    int rc = engine_encode(r->env->tokenizer, text, len, !r->no_start, &ids, &n, &why);
    if (rc)
        return api_fail(err, rc == CFG_EINVAL ? 400 : 500, NULL, rc == CFG_EINVAL ? param : "",
                        "%s", why.message);
    const size_t kept = api_kept_tokens(r, n, &skip);
    rc = kept == 0 ? api_fail(err, 400, "invalid_value", param, "'%s' has no tokens.", param)
                   : api_fit_prompt(r, p, kept, param, err);
    if (!rc) rc = api_keep_ids(r, p, ids + skip, kept, err);
    free(ids);
    if (rc || !r->echo) return rc;
    return kept == n ? keep_text(r, p, text, len, err) : echo_ids(r, p, err);
}

static int read_ids(struct api_request *r, const cJSON *list, const char *param,
                    struct api_prompt *p, struct api_error *err)
{
    if (!cJSON_IsArray(list)) return api_wrong_type(err, param, "an array of token ids", list);
    size_t n = (size_t)cJSON_GetArraySize(list);
    if (n == 0) return api_fail(err, 400, "empty_array", param, "'%s' must not be empty.", param);
    size_t skip = 0;
    const size_t kept = api_kept_tokens(r, n, &skip);
    if (api_fit_prompt(r, p, kept, param, err)) return -1;
    int32_t *ids = cfg_arena_alloc(r->arena, n * sizeof *ids); /* [n] */
    if (!ids) return api_no_memory(err);
    if (api_id_list(list, param, r->env->info->usable_vocab, ids, err)) return -1;
    p->ids = ids + skip;
    p->n = kept;
    return r->echo ? echo_ids(r, p, err) : 0;
}

static int read_prompt(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *prompt = api_field(root, "prompt");
    if (!prompt) return api_missing(err, "prompt");
    bool text = cJSON_IsString(prompt);
    if (!text && !cJSON_IsArray(prompt))
        return api_wrong_type(err, "prompt", "a string or an array", prompt);
    const cJSON *first = prompt->child;
    if (!text && !first)
        return api_fail(err, 400, "empty_array", "prompt", "'prompt' must not be empty.");
    if (text || cJSON_IsNumber(first)) {
        if (api_new_prompts(r, 1, "prompt", err)) return -1;
        return text ? read_text(r, prompt, "prompt", &r->prompts[0], err)
                    : read_ids(r, prompt, "prompt", &r->prompts[0], err);
    }
    if (!cJSON_IsString(first) && !cJSON_IsArray(first))
        return api_wrong_type(err, "prompt[0]", "a string, a token id or an array of token ids",
                              first);
    if (api_new_prompts(r, (size_t)cJSON_GetArraySize(prompt), "prompt", err)) return -1;
    const cJSON *v = first;
    for (size_t i = 0; i < r->n_prompts; i++, v = v->next) {
        char param[API_PATH_MAX];
        snprintf(param, sizeof param, "prompt[%zu]", i);
        int rc = cJSON_IsString(first) ? read_text(r, v, param, &r->prompts[i], err)
                                       : read_ids(r, v, param, &r->prompts[i], err);
        if (rc) return -1;
    }
    return 0;
}

int api_read_completion(struct api_request *r, const cJSON *root, struct api_error *err)
{
    int64_t logprobs = -1, best_of = (int64_t)r->n;
    if (api_get_bool(root, "", "echo", &r->echo, err) ||
        api_get_int(root, "logprobs", 0, 5, &logprobs, err) ||
        api_get_int(root, "best_of", 1, API_MAX_N, &best_of, err))
        return -1;
    if (best_of != (int64_t)r->n)
        return api_fail(err, 400, "unsupported_value", "best_of",
                        "'best_of' is only supported when it equals 'n'.");
    r->sampling.n_logprobs = (int)logprobs;
    // Nothing to generate makes sense only where the prompt itself is the answer.
    r->max_name = "max_tokens";
    r->max_given = api_field(root, "max_tokens") != NULL;
    if (api_get_int(root, "max_tokens", r->echo ? 0 : 1, INT32_MAX, &r->max_tokens, err)) return -1;
    return read_prompt(r, root, err);
}
