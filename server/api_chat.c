// SPDX-License-Identifier: Apache-2.0
//
// api_chat.c: what only POST /v1/chat/completions has: messages and their parts, the two names of
// the token limit, boolean log-probabilities. Texts are borrowed from the JSON tree until the
// conversation has become token ids; only the ids stay, in the request's arena.
#include "server/api_request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct api_field api_chat_fields[] = {
    {"messages", API_FIELD_READ, NULL},
    {"max_completion_tokens", API_FIELD_READ, NULL},
    {"top_logprobs", API_FIELD_READ, NULL},
    {"store", API_FIELD_BOOL, NULL},
    {"metadata", API_FIELD_READ, NULL},
    {"service_tier", API_FIELD_READ, NULL},
    {"safety_identifier", API_FIELD_STRING, NULL},
    {"prompt_cache_key", API_FIELD_STRING, NULL},
    {"prompt_cache_retention", API_FIELD_STRING, NULL},
    {"prompt_cache_options", API_FIELD_OBJECT, NULL},
    {"continue_final_message", API_FIELD_READ, NULL},
    {"add_generation_prompt", API_FIELD_READ, NULL},
    {"echo", API_FIELD_READ, NULL},
    {"include_reasoning", API_FIELD_BOOL, NULL},
    {"separate_reasoning", API_FIELD_BOOL, NULL},
    {"stream_reasoning", API_FIELD_BOOL, NULL},
    {"tools", API_FIELD_READ, NULL},
    {"tool_choice", API_FIELD_READ, NULL},
    {"parallel_tool_calls", API_FIELD_READ, NULL},
    {"functions", API_FIELD_REPLACED, "tools"},
    {"function_call", API_FIELD_REPLACED, "tool_choice"},
    {"modalities", API_FIELD_UNSUPPORTED, "[\"text\"]"},
    {"audio", API_FIELD_UNSUPPORTED, NULL},
    {"prediction", API_FIELD_UNSUPPORTED, NULL},
    {"web_search_options", API_FIELD_UNSUPPORTED, NULL},
    {"moderation", API_FIELD_UNSUPPORTED, NULL},
    {"reasoning_effort", API_FIELD_UNSUPPORTED, "\"none\""},
    {"verbosity", API_FIELD_UNSUPPORTED, "\"medium\""},
    {"documents", API_FIELD_UNSUPPORTED, "[]"},
    {"chat_template", API_FIELD_UNSUPPORTED, NULL},
    {"chat_template_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"media_io_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"mm_processor_kwargs", API_FIELD_UNSUPPORTED, "{}"},
    {"return_prompt_text", API_FIELD_UNSUPPORTED, "false"},
    {"return_meta_info", API_FIELD_UNSUPPORTED, "false"},
    {"return_prompt_token_ids", API_FIELD_UNSUPPORTED, "false"},
    {"return_mm_kwargs", API_FIELD_UNSUPPORTED, "true"},
    {"use_audio_in_video", API_FIELD_UNSUPPORTED, "false"},
    {"max_dynamic_patch", API_FIELD_UNSUPPORTED, NULL},
    {"min_dynamic_patch", API_FIELD_UNSUPPORTED, NULL},
    {"task", API_FIELD_UNSUPPORTED, NULL},
    {"input_ids", API_FIELD_UNSUPPORTED, NULL},
    {NULL, API_FIELD_READ, NULL},
};

const struct api_field api_message_fields[] = {
    {"role", API_FIELD_READ, NULL},
    {"content", API_FIELD_READ, NULL},
    {"name", API_FIELD_STRING, NULL},
    {"refusal", API_FIELD_READ, NULL},
    {"parsed", API_FIELD_READ, NULL}, /* the client's own reading of content, which is here too */
    {"reasoning", API_FIELD_UNSUPPORTED, "\"\""},
    {"reasoning_content", API_FIELD_UNSUPPORTED, "\"\""},
    {"annotations", API_FIELD_UNSUPPORTED, "[]"},
    {"audio", API_FIELD_UNSUPPORTED, NULL},
    {"tool_calls", API_FIELD_READ, NULL},
    {"tool_call_id", API_FIELD_READ, NULL},
    {"function_call", API_FIELD_REPLACED, "tool_calls"},
    {NULL, API_FIELD_READ, NULL},
};

const struct api_field api_text_part_fields[] = {
    {"type", API_FIELD_READ, NULL},
    {"text", API_FIELD_READ, NULL},
    {"prompt_cache_breakpoint", API_FIELD_OBJECT, NULL},
    {NULL, API_FIELD_READ, NULL},
};

const struct api_field api_refusal_part_fields[] = {
    {"type", API_FIELD_READ, NULL},
    {"refusal", API_FIELD_READ, NULL},
    {NULL, API_FIELD_READ, NULL},
};

static int read_role(const cJSON *m, const char *path, enum engine_role *out, struct api_error *err)
{
    const char *role = NULL;
    if (api_get_string(m, path, "role", &role, err)) return -1;
    if (!strcmp(role, "system") || !strcmp(role, "developer"))
        *out = ENGINE_SYSTEM;
    else if (!strcmp(role, "user") || !strcmp(role, "tool"))
        *out = ENGINE_USER;
    else if (!strcmp(role, "assistant"))
        *out = ENGINE_ASSISTANT;
    else {
        char param[API_PATH_MAX];
        return api_fail(err, 400, "invalid_value", api_path(param, path, "role"),
                        "'%s' must be system, developer, user, assistant or tool, not '%.40s'.",
                        param, role);
    }
    return 0;
}

/* One part of a content list: its text is borrowed from the tree. What the assistant refused is as
 * much its text as what it said. */
static int read_part(const cJSON *part, const char *path, enum engine_role role, const char **text,
                     struct api_error *err)
{
    if (!cJSON_IsObject(part)) return api_wrong_type(err, path, "an object", part);
    const char *type = NULL;
    if (api_get_string(part, path, "type", &type, err)) return -1;
    if (role == ENGINE_ASSISTANT && !strcmp(type, "refusal"))
        return api_check_fields(part, path, api_refusal_part_fields, NULL, err) ||
                       api_get_string(part, path, "refusal", text, err)
                   ? -1
                   : 0;
    if (strcmp(type, "text") != 0) {
        char param[API_PATH_MAX];
        return api_fail(err, 400, "invalid_value", api_path(param, path, "type"),
                        "'%s' must be text, not '%.40s': this model reads nothing else.", param,
                        type);
    }
    if (api_check_fields(part, path, api_text_part_fields, NULL, err)) return -1;
    return api_get_string(part, path, "text", text, err);
}

static const char *part_text(const cJSON *part)
{
    const cJSON *refusal = api_field(part, "refusal");
    return refusal ? refusal->valuestring : api_field(part, "text")->valuestring;
}

/* Text parts are joined by line breaks. */
static int read_parts(struct api_request *r, const cJSON *list, const char *path,
                      struct engine_message *out, struct api_error *err)
{
    if (!list->child)
        return api_fail(err, 400, "empty_array", path, "'%s' must not be empty.", path);
    size_t total = 0;
    int i = 0;
    const cJSON *part = NULL;
    cJSON_ArrayForEach(part, list)
    {
        char element[API_PATH_MAX];
        snprintf(element, sizeof element, "%.50s[%d]", path, i++);
        const char *text = NULL;
        if (read_part(part, element, out->role, &text, err)) return -1;
        total += strlen(text) + 1;
    }
    char *joined = cfg_arena_alloc(r->arena, total);
    if (!joined) return api_no_memory(err);
    char *end = joined;
    cJSON_ArrayForEach(part, list)
    {
        const char *text = part_text(part);
        size_t n = strlen(text);
        if (end != joined) *end++ = '\n';
        memcpy(end, text, n); // NOLINT(bugprone-not-null-terminated-result) ; n says where it ends
        end += n;
    }
    out->text = joined;
    out->n = (size_t)(end - joined);
    return 0;
}

static int read_content(struct api_request *r, const cJSON *m, const char *path,
                        struct engine_message *out, struct api_error *err)
{
    char param[API_PATH_MAX];
    api_path(param, path, "content");
    const cJSON *content = api_field(m, "content");
    out->text = "";
    if (!content) return out->role == ENGINE_ASSISTANT ? 0 : api_missing(err, param);
    if (cJSON_IsArray(content)) return read_parts(r, content, param, out, err);
    if (!cJSON_IsString(content))
        return api_wrong_type(err, param, "a string or an array of text parts", content);
    out->text = content->valuestring;
    out->n = strlen(out->text);
    return 0;
}

/* What stands in the place of an assistant's content. */
static int read_refusal(const cJSON *m, const char *path, struct engine_message *out,
                        struct api_error *err)
{
    const char *refusal = "";
    char param[API_PATH_MAX];
    if (!api_field(m, "refusal")) return 0;
    if (api_get_string(m, path, "refusal", &refusal, err)) return -1;
    if (!*refusal) return 0;
    if (out->role != ENGINE_ASSISTANT || out->n > 0)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "refusal"),
                        "'%s' must stand in an assistant's message without content.", param);
    out->text = refusal;
    out->n = strlen(refusal);
    return 0;
}

static int read_message(struct api_request *r, const cJSON *m, const char *path,
                        struct engine_message *out, struct api_error *err)
{
    if (!cJSON_IsObject(m)) return api_wrong_type(err, path, "an object", m);
    if (read_role(m, path, &out->role, err) ||
        api_check_fields(m, path, api_message_fields, NULL, err) ||
        read_content(r, m, path, out, err))
        return -1;
    return read_refusal(m, path, out, err);
}

/* An answer follows the user, or goes on with what the assistant has begun. */
static int check_last(const struct api_request *r, const struct engine_message *last,
                      const char *path, struct api_error *err)
{
    char param[API_PATH_MAX];
    if (!r->continue_message && last->role != ENGINE_USER)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "role"),
                        "The last message must be the user's.");
    if (r->continue_message && last->role != ENGINE_ASSISTANT)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "role"),
                        "The last message must be the assistant's when "
                        "'continue_final_message' is true.");
    if (r->continue_message && last->n == 0)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "content"),
                        "'%s' must not be empty when 'continue_final_message' is true.", param);
    return 0;
}

static int read_messages(struct api_request *r, const cJSON *root, struct engine_message **out,
                         size_t *n_out, struct api_error *err)
{
    const cJSON *list = api_field(root, "messages");
    if (!list) return api_missing(err, "messages");
    if (!cJSON_IsArray(list)) return api_wrong_type(err, "messages", "an array", list);
    size_t n = (size_t)cJSON_GetArraySize(list), i = 0;
    if (n == 0)
        return api_fail(err, 400, "empty_array", "messages", "'messages' must not be empty.");
    struct api_history h;
    struct engine_message msg = {0};
    const cJSON *m = NULL;
    char path[API_PATH_MAX];
    if (api_history_init(r, &h, n, err)) return -1;
    cJSON_ArrayForEach(m, list)
    {
        snprintf(path, sizeof path, "messages[%zu]", i++);
        msg = (struct engine_message){0};
        if (read_message(r, m, path, &msg, err) || api_history_add(r, &h, m, path, &msg, err))
            return -1;
    }
    if (check_last(r, &msg, path, err) || api_history_end(r, &h, err)) return -1;
    *out = h.msgs;
    *n_out = h.n;
    return 0;
}

/* Whether the answer goes on with the last message, and repeats it. */
static int read_continue(struct api_request *r, const cJSON *root, struct api_error *err)
{
    static const char name[] = "add_generation_prompt";
    if (api_get_bool(root, "", "continue_final_message", &r->continue_message, err) ||
        api_get_bool(root, "", "echo", &r->echo, err))
        return -1;
    bool generation = !r->continue_message;
    // A reply of its own repeats nothing: only what it goes on with is the same role's.
    r->echo = r->echo && r->continue_message;
    if (api_get_bool(root, "", name, &generation, err)) return -1;
    if (generation == r->continue_message)
        return api_fail(err, 400, "invalid_value", name,
                        "'%s' must be %s when 'continue_final_message' is %s.", name,
                        generation ? "false" : "true", generation ? "true" : "false");
    return 0;
}

static int read_limit(struct api_request *r, const cJSON *root, struct api_error *err)
{
    bool old = api_field(root, "max_tokens"), new = api_field(root, "max_completion_tokens");
    if (old && new)
        return api_fail(err, 400, "invalid_value", "max_tokens",
                        "'max_tokens' and 'max_completion_tokens' can't be set together.");
    r->max_given = old || new;
    r->max_name = new ? "max_completion_tokens" : "max_tokens";
    return api_get_int(root, r->max_name, 1, INT32_MAX, &r->max_tokens, err);
}

static int read_logprobs(struct api_request *r, const cJSON *root, struct api_error *err)
{
    bool logprobs = false;
    int64_t top = 0;
    if (api_get_bool(root, "", "logprobs", &logprobs, err) ||
        api_get_int(root, "top_logprobs", 0, ENGINE_MAX_TOP, &top, err))
        return -1;
    if (!logprobs && top > 0)
        return api_fail(err, 400, "invalid_value", "top_logprobs",
                        "'top_logprobs' is only allowed when 'logprobs' is true.");
    if (logprobs) r->sampling.n_logprobs = (int)top;
    return 0;
}

/* What the answer goes on with is repeated in front of it when `echo` asks for that. */
static int keep_begun(struct api_request *r, struct api_prompt *p,
                      const struct engine_message *last, struct api_error *err)
{
    if (!r->echo) return 0;
    p->text = cfg_arena_strndup(r->arena, last->text, last->n);
    p->text_len = last->n;
    return p->text ? 0 : api_no_memory(err);
}

int api_read_chat(struct api_request *r, const cJSON *root, struct api_error *err)
{
    struct engine_message *msgs = NULL; /* [n_msgs] */
    size_t n_msgs = 0, n = 0, skip = 0;
    if (read_limit(r, root, err) || read_logprobs(r, root, err) || read_continue(r, root, err) ||
        api_read_metadata(r, root, err) || api_read_tier(r, root, err) ||
        api_read_tools(r, root, err) || read_messages(r, root, &msgs, &n_msgs, err))
        return -1;
    if (!r->env->tokenizer) return api_tokenizer_missing(err, "messages");
    if (api_new_prompts(r, 1, "messages", err)) return -1;
    assert(msgs);

    int32_t *ids = NULL; /* [n] */
    struct api_prompt *p = &r->prompts[0];
    struct error why;
    p->turns = cfg_arena_alloc(r->arena, n_msgs * sizeof *p->turns);
    if (!p->turns) return api_no_memory(err);
    int rc =
        engine_chat_encode(r->env->tokenizer, msgs, n_msgs, &ids, &n, p->turns, &p->n_turns, &why);
    if (rc == CFG_EINVAL) return api_fail(err, 400, "invalid_value", "messages", "%s", why.message);
    if (rc) return api_fail(err, 500, NULL, "", "%s", why.message);

    const size_t kept = api_kept_tokens(r, n, &skip);
    rc = api_fit_prompt(r, p, kept, "messages", err);
    if (!rc) rc = api_keep_ids(r, p, ids + skip, kept, err);
    free(ids);
    api_cut_turns(p, skip, kept);
    return rc || !r->continue_message ? rc : keep_begun(r, p, &msgs[n_msgs - 1], err);
}
