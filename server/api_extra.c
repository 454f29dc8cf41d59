// SPDX-License-Identifier: Apache-2.0
//
// api_extra.c: fields beside the sampling ones that both endpoints share: what the answer's
// envelope says (request_id, metadata, service_tier), what of the prompt is kept and scored, and
// which tokens and words an answer may have. Everything kept is in the request's arena.
#include "server/api_request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_REQUEST_ID     128
#define MAX_METADATA       16
#define MAX_METADATA_KEY   64
#define MAX_METADATA_VALUE 512
#define MAX_BAD_WORDS      256
#define MAX_BAD_WORD_BYTES 256

/* No vocabulary has a piece with this character in it, so no piece reaches over it. */
#define NEUTRAL "\xee\x80\x80"

/* ---- the envelope ---------------------------------------------------------------------------- */

static int read_request_id(struct api_request *r, const cJSON *root, struct api_error *err)
{
    static const char safe[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.:";
    if (!api_field(root, "request_id")) return 0;
    const char *id = NULL;
    if (api_get_string(root, "", "request_id", &id, err)) return -1;
    const size_t n = strlen(id);
    if (n < 1 || n > MAX_REQUEST_ID || strspn(id, safe) != n)
        return api_fail(err, 400, "invalid_value", "request_id",
                        "'request_id' must be 1 to %d letters, digits or -_.: characters.",
                        MAX_REQUEST_ID);
    snprintf(r->id, sizeof r->id, "%s%s", r->kind == API_CHAT ? "chatcmpl-" : "cmpl-", id);
    return 0;
}

/* Limits in characters, as OpenAI's. */
static int check_metadata(const cJSON *o, struct api_error *err)
{
    if (!cJSON_IsObject(o)) return api_wrong_type(err, "metadata", "an object", o);
    if (cJSON_GetArraySize(o) > MAX_METADATA)
        return api_fail(err, 400, "object_above_max_properties", "metadata",
                        "'metadata' may have at most %d keys.", MAX_METADATA);
    const cJSON *v = NULL;
    cJSON_ArrayForEach(v, o)
    {
        char param[API_PATH_MAX];
        api_path(param, "metadata", v->string);
        if (api_count_chars(v->string, strlen(v->string)) > MAX_METADATA_KEY)
            return api_fail(err, 400, "string_above_max_length", param,
                            "A key of 'metadata' may have at most %d characters.",
                            MAX_METADATA_KEY);
        if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
        if (api_count_chars(v->valuestring, strlen(v->valuestring)) > MAX_METADATA_VALUE)
            return api_fail(err, 400, "string_above_max_length", param,
                            "'%s' may have at most %d characters.", param, MAX_METADATA_VALUE);
    }
    return 0;
}

int api_read_metadata(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *o = api_field(root, "metadata");
    if (!o) return 0;
    if (check_metadata(o, err)) return -1;
    char *text = cJSON_PrintUnformatted(o);
    if (text) r->metadata = cfg_arena_strndup(r->arena, text, strlen(text));
    cJSON_free(text);
    return r->metadata ? 0 : api_no_memory(err);
}

int api_read_tier(struct api_request *r, const cJSON *root, struct api_error *err)
{
    static const char *const tiers[] = {"auto", "default", "flex", "scale", "priority", "fast"};
    if (!api_field(root, "service_tier")) return 0;
    const char *tier = NULL;
    if (api_get_string(root, "", "service_tier", &tier, err)) return -1;
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++)
        if (!strcmp(tier, tiers[i])) r->tier_given = true;
    if (r->tier_given) return 0;
    return api_fail(err, 400, "invalid_value", "service_tier",
                    "'service_tier' must be auto, default, flex, scale, priority or fast.");
}

/* ---- the prompt ------------------------------------------------------------------------------ */

static int read_truncation(struct api_request *r, const cJSON *root, struct api_error *err)
{
    if (api_get_int(root, "truncate_prompt_tokens", -1, INT32_MAX, &r->truncate, err)) return -1;
    if (r->truncate == 0 && api_field(root, "truncate_prompt_tokens"))
        return api_fail(err, 400, "invalid_value", "truncate_prompt_tokens",
                        "'truncate_prompt_tokens' must be -1 or at least 1.");
    if (!api_field(root, "truncation_side")) return 0;
    const char *side = NULL;
    if (api_get_string(root, "", "truncation_side", &side, err)) return -1;
    if (strcmp(side, "left") != 0 && strcmp(side, "right") != 0)
        return api_fail(err, 400, "invalid_value", "truncation_side",
                        "'truncation_side' must be left or right.");
    r->truncate_right = strcmp(side, "right") == 0;
    return 0;
}

/* The start token of a text; a chat's prompt has its own. */
static int read_special(struct api_request *r, const cJSON *root, struct api_error *err)
{
    bool add = r->kind == API_COMPLETION;
    if (api_get_bool(root, "", "add_special_tokens", &add, err)) return -1;
    r->no_start = !add;
    if (!add || r->kind == API_COMPLETION) return 0;
    return api_fail(err, 400, "unsupported_value", "add_special_tokens",
                    "'add_special_tokens' must be false: the chat format has its own.");
}

size_t api_kept_tokens(const struct api_request *r, size_t n, size_t *skip)
{
    const size_t context = (size_t)r->env->info->context;
    size_t kept = n;
    if (r->truncate > 0) kept = (size_t)r->truncate;
    if (r->truncate < 0) {
        const size_t answer = r->max_given          ? (size_t)r->max_tokens
                              : r->kind == API_CHAT ? 1
                                                    : API_USUAL_COMPLETION;
        if (answer < context) kept = context - answer;
    }
    if (kept > n) kept = n;
    *skip = r->truncate_right ? 0 : n - kept;
    return kept;
}

void api_cut_turns(struct api_prompt *p, size_t skip, size_t kept)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_turns; i++) {
        const size_t at = (size_t)p->turns[i];
        if (at >= skip + kept && i > 0) break;
        if (at > skip && n > 0) // one that began before the cut begins at 0 now
            p->turns[n++] = (int32_t)(at - skip);
        else
            p->turns[0] = 0, n = 1;
    }
    p->n_turns = n;
}

static int read_prompt_logprobs(struct api_request *r, const cJSON *root, struct api_error *err)
{
    int64_t n = -1;
    if (api_get_int(root, "prompt_logprobs", 0, ENGINE_MAX_TOP, &n, err)) return -1;
    r->n_prompt_logprobs = (int)n;
    if (n >= 0 && r->stream)
        return api_fail(err, 400, "invalid_value", "prompt_logprobs",
                        "'prompt_logprobs' is not available when 'stream' is true.");
    return 0;
}

/* ---- the answer's tokens --------------------------------------------------------------------- */

static int read_allowed(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *list = api_field(root, "allowed_token_ids");
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return api_wrong_type(err, "allowed_token_ids", "an array", list);
    if (!list->child)
        return api_fail(err, 400, "empty_array", "allowed_token_ids",
                        "'allowed_token_ids' must not be empty.");
    const size_t n = (size_t)cJSON_GetArraySize(list);
    int32_t *ids = cfg_arena_alloc(r->arena, n * sizeof *ids); /* [n] */
    if (!ids) return api_no_memory(err);
    if (api_id_list(list, "allowed_token_ids", r->env->info->usable_vocab, ids, err)) return -1;
    r->sampling.allowed = ids;
    r->sampling.n_allowed = n;
    return 0;
}

/* The ids of `before` and `word` together, without those of `before`; none when the two do not
 * part there. Kept in the arena. */
static int word_ids(struct api_request *r, const char *before, const char *word,
                    struct engine_word *out, struct api_error *err)
{
    char text[sizeof NEUTRAL + MAX_BAD_WORD_BYTES];
    const int len = snprintf(text, sizeof text, "%s%s", before, word);
    int32_t *ids = NULL, *first = NULL; /* [n], [n_first] */
    size_t n = 0, n_first = 0;
    struct error why;
    int rc = engine_encode(r->env->tokenizer, text, (size_t)len, false, &ids, &n, &why);
    if (!rc && !strcmp(before, NEUTRAL))
        rc =
            engine_encode(r->env->tokenizer, before, strlen(before), false, &first, &n_first, &why);
    *out = (struct engine_word){0};
    if (!rc && n > n_first && (!first || !memcmp(ids, first, n_first * sizeof *ids))) {
        int32_t *copy = cfg_arena_alloc(r->arena, (n - n_first) * sizeof *copy);
        if (copy) memcpy(copy, ids + n_first, (n - n_first) * sizeof *copy);
        *out = (struct engine_word){copy, n - n_first};
    }
    free(ids);
    free(first);
    if (rc) return api_fail(err, 500, NULL, "", "%s", why.message);
    return out->n > 0 && !out->ids ? api_no_memory(err) : 0;
}

/* A word has other pieces at the start of an answer, after a space, and inside a word. */
static int add_word(struct api_request *r, const char *word, struct engine_word *list, size_t *n,
                    struct api_error *err)
{
    static const char *const before[] = {"", " ", NEUTRAL};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        struct engine_word w;
        if (word_ids(r, before[i], word, &w, err)) return -1;
        bool known = w.n == 0;
        assert(known || w.ids);
        for (size_t k = 0; k < *n && !known; k++)
            known = list[k].n == w.n && !memcmp(list[k].ids, w.ids, w.n * sizeof *w.ids);
        if (!known) list[(*n)++] = w;
    }
    return 0;
}

static int read_bad_words(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *list = api_field(root, "bad_words"), *v = NULL;
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return api_wrong_type(err, "bad_words", "an array of strings", list);
    const int n = cJSON_GetArraySize(list);
    if (n > MAX_BAD_WORDS)
        return api_fail(err, 400, "array_above_max_length", "bad_words",
                        "'bad_words' may have at most %d strings, not %d.", MAX_BAD_WORDS, n);
    if (n > 0 && !r->env->tokenizer) return api_tokenizer_missing(err, "bad_words");
    struct engine_word *words = cfg_arena_alloc(r->arena, (size_t)(3 * n + 1) * sizeof *words);
    if (!words) return api_no_memory(err);
    int i = 0;
    cJSON_ArrayForEach(v, list)
    {
        char param[API_PATH_MAX];
        snprintf(param, sizeof param, "bad_words[%d]", i++);
        if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
        const char *word = v->valuestring + strspn(v->valuestring, " ");
        if (!*word || strlen(word) > MAX_BAD_WORD_BYTES)
            return api_fail(err, 400, "invalid_value", param,
                            "'%s' must have 1 to %d bytes beside spaces in front.", param,
                            MAX_BAD_WORD_BYTES);
        if (add_word(r, word, words, &r->sampling.n_words, err)) return -1;
    }
    r->sampling.words = words;
    return 0;
}

int api_read_extra(struct api_request *r, const cJSON *root, struct api_error *err)
{
    if (api_get_bool(root, "", "return_tokens_as_token_ids", &r->tokens_as_ids, err) ||
        read_request_id(r, root, err) || read_special(r, root, err) ||
        read_truncation(r, root, err) || read_prompt_logprobs(r, root, err) ||
        read_allowed(r, root, err))
        return -1;
    return read_bad_words(r, root, err);
}
