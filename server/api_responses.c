// SPDX-License-Identifier: Apache-2.0
//
// api_responses.c: a body of POST /v1/responses as the chat request that says the same. Its fields
// are checked here as far as their names and shapes differ; the rest is checked where a chat's is,
// and what that blames is named after where it came from. Items of the input become messages in
// api_response_input.c. Part of parsing: any thread.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_request.h"
#include "server/api_response_input.h"
#include "server/api_tables.h"

const struct api_field api_response_fields[] = {
    {"model", API_FIELD_READ, NULL},
    {"input", API_FIELD_READ, NULL},
    {"instructions", API_FIELD_STRING, NULL},
    {"previous_response_id", API_FIELD_STRING, NULL},
    {"max_output_tokens", API_FIELD_READ, NULL},
    {"text", API_FIELD_READ, NULL},
    {"include", API_FIELD_READ, NULL},
    {"top_logprobs", API_FIELD_READ, NULL},
    {"tools", API_FIELD_READ, NULL},
    {"tool_choice", API_FIELD_READ, NULL},
    {"parallel_tool_calls", API_FIELD_READ, NULL},
    {"store", API_FIELD_BOOL, NULL},
    {"stream", API_FIELD_READ, NULL},
    {"stream_options", API_FIELD_READ, NULL},
    {"truncation", API_FIELD_READ, NULL},
    {"temperature", API_FIELD_READ, NULL},
    {"top_p", API_FIELD_READ, NULL},
    {"metadata", API_FIELD_READ, NULL},
    {"service_tier", API_FIELD_READ, NULL},
    {"user", API_FIELD_STRING, NULL},
    {"safety_identifier", API_FIELD_STRING, NULL},
    {"prompt_cache_key", API_FIELD_STRING, NULL},
    {"prompt_cache_retention", API_FIELD_STRING, NULL},
    {"prompt_cache_options", API_FIELD_OBJECT, NULL},
    {"background", API_FIELD_UNSUPPORTED, "false"},
    {"background_options", API_FIELD_UNSUPPORTED, NULL},
    {"conversation", API_FIELD_UNSUPPORTED, NULL},
    {"context_management", API_FIELD_UNSUPPORTED, "[]"},
    {"max_tool_calls", API_FIELD_UNSUPPORTED, NULL},
    {"prompt", API_FIELD_UNSUPPORTED, NULL},
    {"reasoning", API_FIELD_READ, NULL},
    {"moderation", API_FIELD_UNSUPPORTED, NULL},
    {"access_programs", API_FIELD_UNSUPPORTED, NULL},
    {"image", API_FIELD_UNSUPPORTED, NULL},
    /* beyond OpenAI's, as for chats */
    {"top_k", API_FIELD_READ, NULL},
    {"min_p", API_FIELD_READ, NULL},
    {"seed", API_FIELD_READ, NULL},
    {"stop", API_FIELD_READ, NULL},
    {"min_tokens", API_FIELD_READ, NULL},
    {"presence_penalty", API_FIELD_READ, NULL},
    {"frequency_penalty", API_FIELD_READ, NULL},
    {"repetition_penalty", API_FIELD_READ, NULL},
    {"logit_bias", API_FIELD_READ, NULL},
    {"ignore_eos", API_FIELD_READ, NULL},
    {"priority", API_FIELD_READ, NULL},
    {"timeout", API_FIELD_READ, NULL},
    {"cache_salt", API_FIELD_READ, NULL},
    {NULL, API_FIELD_READ, NULL},
};

/* Those that a chat has under the same name and with the same meaning. */
static const char *const same[] = {"model",
                                   "stream",
                                   "temperature",
                                   "top_p",
                                   "metadata",
                                   "service_tier",
                                   "user",
                                   "parallel_tool_calls",
                                   "top_k",
                                   "min_p",
                                   "seed",
                                   "stop",
                                   "min_tokens",
                                   "presence_penalty",
                                   "frequency_penalty",
                                   "repetition_penalty",
                                   "logit_bias",
                                   "ignore_eos",
                                   "priority",
                                   "timeout",
                                   "cache_salt"};

/* ---- the fields that differ -------------------------------------------------------------------
 */

static int add_copy(cJSON *to, const char *name, const cJSON *v, struct api_error *err)
{
    cJSON *copy = cJSON_Duplicate(v, true);
    if (copy && cJSON_AddItemToObject(to, name, copy)) return 0;
    cJSON_Delete(copy);
    return api_no_memory(err);
}

static bool is_object(const cJSON *v, const char *type)
{
    const cJSON *t = cJSON_IsObject(v) ? api_field(v, "type") : NULL;
    return t && cJSON_IsString(t) && !strcmp(t->valuestring, type);
}

/* {"type":"function", ...} as {"type":"function","function":{...}}; anything else as it is. */
static cJSON *nest_function(const cJSON *v)
{
    if (!is_object(v, "function")) return cJSON_Duplicate(v, true);
    cJSON *o = cJSON_CreateObject(), *f = cJSON_Duplicate(v, true);
    cJSON_DeleteItemFromObjectCaseSensitive(f, "type");
    if (!cJSON_AddStringToObject(o, "type", "function")) return NULL;
    cJSON_AddItemToObject(o, "function", f);
    return o;
}

static int add_list(cJSON *to, const char *name, const cJSON *list, struct api_error *err)
{
    cJSON *out = cJSON_AddArrayToObject(to, name);
    const cJSON *v = NULL;
    if (!out) return api_no_memory(err);
    cJSON_ArrayForEach(
        v, list) if (!cJSON_AddItemToArray(out, nest_function(v))) return api_no_memory(err);
    return 0;
}

static int add_tools(const cJSON *root, cJSON *chat, struct api_error *err)
{
    const cJSON *tools = api_field(root, "tools"), *choice = api_field(root, "tool_choice");
    if (tools && !cJSON_IsArray(tools)) return api_wrong_type(err, "tools", "an array", tools);
    if (tools && add_list(chat, "tools", tools, err)) return -1;
    if (!choice) return 0;
    // "auto" is what OpenAI's own answers say where there are no tools.
    if (cJSON_IsString(choice) && !strcmp(choice->valuestring, "auto")) return 0;
    if (!is_object(choice, "allowed_tools"))
        return cJSON_AddItemToObject(chat, "tool_choice", nest_function(choice))
                   ? 0
                   : api_no_memory(err);
    cJSON *out = cJSON_AddObjectToObject(chat, "tool_choice");
    cJSON *inner = out ? cJSON_AddObjectToObject(out, "allowed_tools") : NULL;
    if (!inner || !cJSON_AddStringToObject(out, "type", "allowed_tools")) return api_no_memory(err);
    for (const cJSON *v = choice->child; v; v = v->next) {
        if (!strcmp(v->string, "type")) continue;
        if (!strcmp(v->string, "tools") && cJSON_IsArray(v) ? add_list(inner, "tools", v, err)
                                                            : add_copy(inner, v->string, v, err))
            return -1;
    }
    return 0;
}

static int add_format(const cJSON *root, cJSON *chat, struct api_error *err)
{
    static const struct api_field fields[] = {{"format", API_FIELD_READ, NULL},
                                              {"verbosity", API_FIELD_UNSUPPORTED, "\"medium\""},
                                              {NULL, API_FIELD_READ, NULL}};
    const cJSON *text = api_field(root, "text");
    if (!text) return 0;
    if (!cJSON_IsObject(text)) return api_wrong_type(err, "text", "an object", text);
    if (api_check_fields(text, "text", fields, NULL, err)) return -1;
    const cJSON *format = api_field(text, "format");
    if (!format) return 0;
    if (!is_object(format, "json_schema")) return add_copy(chat, "response_format", format, err);
    cJSON *out = cJSON_AddObjectToObject(chat, "response_format");
    cJSON *schema = cJSON_Duplicate(format, true);
    cJSON_DeleteItemFromObjectCaseSensitive(schema, "type");
    if (schema && out && cJSON_AddStringToObject(out, "type", "json_schema") &&
        cJSON_AddItemToObject(out, "json_schema", schema))
        return 0;
    cJSON_Delete(schema);
    return api_no_memory(err);
}

/* What may be included: log-probabilities; the others are of things that no answer here has. */
static int read_include(const cJSON *root, bool *logprobs, struct api_error *err)
{
    static const char *const known[] = {"message.output_text.logprobs",
                                        "reasoning.encrypted_content",
                                        "file_search_call.results",
                                        "web_search_call.results",
                                        "web_search_call.action.sources",
                                        "message.input_image.image_url",
                                        "computer_call_output.output.image_url",
                                        "code_interpreter_call.outputs"};
    const cJSON *list = api_field(root, "include"), *v = NULL;
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return api_wrong_type(err, "include", "an array", list);
    int i = 0;
    cJSON_ArrayForEach(v, list)
    {
        char param[API_PATH_MAX];
        snprintf(param, sizeof param, "include[%d]", i++);
        if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
        size_t k = 0;
        while (k < sizeof known / sizeof *known && strcmp(known[k], v->valuestring) != 0) k++;
        if (k == sizeof known / sizeof *known)
            return api_fail(err, 400, "invalid_value", param, "'%s' can't be '%.60s'.", param,
                            v->valuestring);
        *logprobs |= k == 0;
    }
    return 0;
}

static int add_logprobs(const cJSON *root, cJSON *chat, struct api_error *err)
{
    const cJSON *top = api_field(root, "top_logprobs");
    bool logprobs = top && cJSON_IsNumber(top) && top->valuedouble > 0;
    if (read_include(root, &logprobs, err)) return -1;
    if (logprobs && !cJSON_AddTrueToObject(chat, "logprobs")) return api_no_memory(err);
    if (!top || (!logprobs && cJSON_IsNumber(top) && !(top->valuedouble < 0))) return 0;
    if (!logprobs && !cJSON_AddTrueToObject(chat, "logprobs")) return api_no_memory(err);
    return add_copy(chat, "top_logprobs", top, err);
}

static int check_stream_options(const cJSON *root, struct api_error *err)
{
    static const struct api_field fields[] = {
        {"include_obfuscation", API_FIELD_UNSUPPORTED, "false"}, {NULL, API_FIELD_READ, NULL}};
    const cJSON *o = api_field(root, "stream_options");
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, "stream_options", "an object", o);
    return api_check_fields(o, "stream_options", fields, NULL, err);
}

/* No model of the family reasons apart from its answer. */
static int check_reasoning(const cJSON *root, struct api_error *err)
{
    static const struct api_field fields[] = {{"effort", API_FIELD_UNSUPPORTED, "\"none\""},
                                              {"summary", API_FIELD_UNSUPPORTED, NULL},
                                              {"generate_summary", API_FIELD_UNSUPPORTED, NULL},
                                              {"context", API_FIELD_UNSUPPORTED, NULL},
                                              {"mode", API_FIELD_UNSUPPORTED, NULL},
                                              {NULL, API_FIELD_READ, NULL}};
    const cJSON *o = api_field(root, "reasoning");
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, "reasoning", "an object", o);
    return api_check_fields(o, "reasoning", fields, NULL, err);
}

/* All but the messages. */
static int add_fields(const cJSON *root, cJSON *chat, struct api_error *err)
{
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        const cJSON *v = api_field(root, same[i]);
        if (v && add_copy(chat, same[i], v, err)) return -1;
    }
    const cJSON *max = api_field(root, "max_output_tokens");
    if (max && add_copy(chat, "max_completion_tokens", max, err)) return -1;
    return add_tools(root, chat, err) || add_format(root, chat, err) ||
                   add_logprobs(root, chat, err) || check_stream_options(root, err) ||
                   check_reasoning(root, err)
               ? -1
               : 0;
}

/* ---- what is blamed ---------------------------------------------------------------------------
 */

/* Puts `new` in the place of `old` in the message. */
static void rename_field(struct api_error *err, const char *old, const char *new)
{
    char text[sizeof err->message];
    const size_t n = strlen(old);
    if (!n || !strcmp(old, new)) return;
    snprintf(text, sizeof text, "%s", err->message);
    char *to = err->message, *end = to + sizeof err->message - 1;
    for (const char *s = text; *s && to < end;) {
        if (strncmp(s, old, n) != 0) {
            *to++ = *s++;
            continue;
        }
        to += snprintf(to, (size_t)(end - to) + 1, "%s", new);
        if (to > end) to = end;
        s += n;
    }
    *to = '\0';
}

static void blame(const struct response_input *in, struct api_error *err)
{
    static const struct {
        const char *chat, *response;
    } names[] = {{"max_completion_tokens", "max_output_tokens"},
                 {"response_format.json_schema", "text.format"},
                 {"response_format", "text.format"},
                 {"tool_choice.function", "tool_choice"},
                 {"tool_choice.allowed_tools", "tool_choice"}};
    char old[sizeof err->param], new[2 * sizeof err->param] = "";
    snprintf(old, sizeof old, "%s", err->param);
    rename_field(err, "max_completion_tokens", "max_output_tokens");
    for (size_t i = 0; i < sizeof names / sizeof *names && !*new; i++) {
        const size_t n = strlen(names[i].chat);
        if (!strncmp(old, names[i].chat, n))
            snprintf(new, sizeof new, "%s%s", names[i].response, old + n);
    }
    char *part = strstr(old, ".function");
    if (!*new && !strncmp(old, "tools[", 6) && part)
        snprintf(new, sizeof new, "%.*s%s", (int)(part - old), old, part + strlen(".function"));
    if (!*new && !strncmp(old, "messages", 8)) response_place(in, old, new, sizeof new);
    if (!*new) return;
    new[sizeof err->param - 1] = '\0';
    rename_field(err, old, new);
    memcpy(err->param, new, sizeof err->param);
}

/* ---- the answer repeats the request -----------------------------------------------------------
 */

static void put_field(const cJSON *root, const char *name, const char *usual, struct cfg_buf *out)
{
    const cJSON *v = api_field(root, name);
    char *text = v ? cJSON_PrintUnformatted(v) : NULL;
    cfg_buf_printf(out, ",\"%s\":", name);
    cfg_buf_puts(out, text ? text : usual);
    cJSON_free(text);
}

static void put_echo(const cJSON *root, struct cfg_buf *out)
{
    static const struct {
        const char *name, *usual;
    } fields[] = {{"model", "null"},
                  {"instructions", "null"},
                  {"max_output_tokens", "null"},
                  {"parallel_tool_calls", "true"},
                  {"previous_response_id", "null"},
                  {"prompt_cache_key", "null"},
                  {"safety_identifier", "null"},
                  {"store", "true"},
                  {"temperature", "1"},
                  {"tool_choice", "\"auto\""},
                  {"tools", "[]"},
                  {"top_logprobs", "0"},
                  {"top_p", "1"},
                  {"truncation", "\"disabled\""},
                  {"user", "null"},
                  {"metadata", "{}"}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        put_field(root, fields[i].name, fields[i].usual, out);
    const cJSON *text = api_field(root, "text");
    char *format = text && api_field(text, "format")
                       ? cJSON_PrintUnformatted(api_field(text, "format"))
                       : NULL;
    cfg_buf_puts(out, ",\"text\":{\"format\":");
    cfg_buf_puts(out, format ? format : "{\"type\":\"text\"}");
    cfg_buf_puts(out,
                 "},\"background\":false,\"max_tool_calls\":null,\"reasoning\":{\"effort\":null,"
                 "\"summary\":null},\"service_tier\":\"default\"");
    cJSON_free(format);
}

/* What the answer needs to know, in the arena. */
static int keep_response(struct api_request *r, const cJSON *root, const struct response_input *in,
                         struct api_error *err)
{
    struct api_response *p = cfg_arena_alloc(r->arena, sizeof *p);
    struct cfg_buf echo = {0};
    const cJSON *store = api_field(root, "store");
    size_t n_items = 0;
    char *items = cJSON_PrintUnformatted(in->items);
    if (p && items) {
        put_echo(root, &echo);
        p->store = !store || cJSON_IsTrue(store);
        n_items = strlen(items);
        p->items = cfg_arena_strndup(r->arena, items, n_items);
        p->echo = echo.failed ? NULL : cfg_arena_strndup(r->arena, echo.data, echo.len);
    }
    cfg_buf_free(&echo);
    cJSON_free(items);
    if (!p || !p->items || !p->echo || api_random_id(p->message_id, sizeof p->message_id, "msg_") ||
        api_random_id(r->id, sizeof r->id, "resp_"))
        return api_no_memory(err);
    if (p->store && n_items > API_MAX_CONVERSATION)
        return api_fail(err, 400, "invalid_value", "store",
                        "A conversation that is kept may have at most %d bytes, and this one has "
                        "%zu: set 'store' to false, or begin a new one.",
                        API_MAX_CONVERSATION, n_items);
    r->response = p;
    return 0;
}

/* ---- all together -----------------------------------------------------------------------------
 */

/* One try: the conversation without its first `drop` turns. */
static int attempt(struct api_request **out, const cJSON *fields, const struct response_input *in,
                   int drop, const struct api_env *env, uint32_t tenant, struct api_error *err)
{
    cJSON *chat = cJSON_Duplicate(fields, true);
    cJSON *messages = chat ? response_messages(in, drop) : NULL;
    int rc = -1;
    if (!messages || !cJSON_AddItemToObject(chat, "messages", messages))
        (void)api_no_memory(err);
    else
        rc = api_parse_object(out, API_CHAT, chat, in->size, env, tenant, err);
    cJSON_Delete(chat);
    return rc;
}

/* truncation "auto": as few turns are dropped from the front as make the rest fit. */
static int attempt_all(struct api_request **out, const cJSON *fields,
                       const struct response_input *in, bool truncate, const struct api_env *env,
                       uint32_t tenant, struct api_error *err)
{
    int rc = attempt(out, fields, in, 0, env, tenant, err), low = 1, high = in->n_turns - 1;
    const char *full = "context_length_exceeded";
    if (!rc || !truncate || !err->code || strcmp(err->code, full) != 0) return rc;
    while (low <= high) {
        const int middle = low + (high - low) / 2;
        struct api_request *r = NULL;
        if (!attempt(&r, fields, in, middle, env, tenant, err)) {
            api_request_free(*out);
            *out = r;
            rc = 0;
            high = middle - 1;
        } else if (!err->code || strcmp(err->code, full) != 0) {
            api_request_free(*out);
            *out = NULL;
            return -1;
        } else {
            low = middle + 1;
        }
    }
    if (!rc) *err = (struct api_error){0}; // of a try that did not fit
    return rc;
}

static int read_truncation(const cJSON *root, bool *truncate, struct api_error *err)
{
    const char *mode = "disabled";
    if (api_field(root, "truncation") && api_get_string(root, "", "truncation", &mode, err))
        return -1;
    *truncate = !strcmp(mode, "auto");
    if (*truncate || !strcmp(mode, "disabled")) return 0;
    return api_fail(err, 400, "invalid_value", "truncation",
                    "'truncation' must be auto or disabled, not '%.40s'.", mode);
}

static int parse(struct api_request **out, const cJSON *root, size_t n, cJSON *fields,
                 struct response_input *in, const struct api_env *env, uint32_t tenant,
                 struct api_error *err)
{
    bool truncate = false;
    in->size = n;
    if (api_check_model(root, true, env, err) ||
        api_check_fields(root, "", api_response_fields, NULL, err) ||
        read_truncation(root, &truncate, err) || !fields || add_fields(root, fields, err) ||
        response_input_read(in, root, env, tenant, err))
        return -1;
    int rc = attempt_all(out, fields, in, truncate, env, tenant, err);
    if (rc)
        blame(in, err);
    else
        rc = keep_response(*out, root, in, err);
    if (!rc) return 0;
    api_request_free(*out);
    *out = NULL;
    return -1;
}

int api_parse_response(struct api_request **out, const char *body, size_t n,
                       const struct api_env *env, uint32_t tenant, struct api_error *err)
{
    cJSON *root = NULL, *fields = cJSON_CreateObject();
    struct response_input in = {0};
    *out = NULL;
    int rc = fields ? api_json_object(&root, body, n, env, err) : api_no_memory(err);
    if (!rc) rc = parse(out, root, n, fields, &in, env, tenant, err);
    response_input_free(&in);
    cJSON_Delete(fields);
    cJSON_Delete(root);
    return rc;
}
