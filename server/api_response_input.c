// SPDX-License-Identifier: Apache-2.0
//
// api_response_input.c: items to messages. A message item is a message; calls join the assistant's
// message before them; a result is a message of the role tool. What an item may have is checked
// here, and its values where they become a chat. Items get ids where the client gave none, since
// they can be listed. Part of parsing: any thread.
#include "server/api_response_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_request.h"
#include "server/api_responses.h"

void response_input_free(struct response_input *in)
{
    cJSON_Delete(in->items);
    cJSON_Delete(in->messages);
    free(in->sources);
}

static const char *string_of(const cJSON *o, const char *name)
{
    const cJSON *v = api_field(o, name);
    return cJSON_IsString(v) ? v->valuestring : "";
}

static int add_string(cJSON *to, const char *name, const char *text, struct api_error *err)
{
    return cJSON_AddStringToObject(to, name, text) ? 0 : api_no_memory(err);
}

/* ---- messages ---------------------------------------------------------------------------------
 */

static cJSON *new_message(struct response_input *in, const char *role, struct response_source from,
                          struct api_error *err)
{
    cJSON *m = cJSON_CreateObject();
    struct response_source *more =
        realloc(in->sources, ((size_t)in->n_messages + 1) * sizeof *more);
    if (more) in->sources = more;
    if (!m || !more || !cJSON_AddStringToObject(m, "role", role) ||
        !cJSON_AddItemToArray(in->messages, m)) {
        cJSON_Delete(m);
        (void)api_no_memory(err);
        return NULL;
    }
    in->sources[in->n_messages++] = from;
    in->n_turns += !strcmp(role, "user");
    return m;
}

/* A part of a text as a chat has it; NULL after a failure. */
static cJSON *read_part(const cJSON *part, const char *path, struct api_error *err)
{
    static const struct api_field fields[] = {
        {"type", API_FIELD_READ, NULL},      {"text", API_FIELD_STRING, NULL},
        {"refusal", API_FIELD_STRING, NULL}, {"annotations", API_FIELD_READ, NULL},
        {"logprobs", API_FIELD_READ, NULL},  {"prompt_cache_breakpoint", API_FIELD_OBJECT, NULL},
        {"parsed", API_FIELD_READ, NULL}, // the client's own reading of the text
        {NULL, API_FIELD_READ, NULL}};
    char param[API_PATH_MAX];
    const char *type = NULL, *text = NULL;
    if (!cJSON_IsObject(part)) {
        (void)api_wrong_type(err, path, "an object", part);
        return NULL;
    }
    if (api_get_string(part, path, "type", &type, err)) return NULL;
    const bool refusal = !strcmp(type, "refusal");
    if (!refusal && strcmp(type, "input_text") != 0 && strcmp(type, "output_text") != 0 &&
        strcmp(type, "text") != 0) {
        (void)api_fail(err, 400, "invalid_value", api_path(param, path, "type"),
                       "'%s' must be input_text, output_text or refusal, not '%.40s': this model "
                       "reads nothing else.",
                       param, type);
        return NULL;
    }
    if (api_check_fields(part, path, fields, NULL, err) ||
        api_get_string(part, path, refusal ? "refusal" : "text", &text, err))
        return NULL;
    cJSON *out = cJSON_CreateObject();
    if (!out || add_string(out, "type", "text", err) || add_string(out, "text", text, err)) {
        cJSON_Delete(out);
        (void)api_no_memory(err);
        return NULL;
    }
    return out;
}

/* A text or a list of parts, as the message's content. */
static int add_content(const cJSON *v, const char *path, cJSON *m, struct api_error *err)
{
    if (!v) return api_missing(err, path);
    if (cJSON_IsString(v)) return add_string(m, "content", v->valuestring, err);
    if (!cJSON_IsArray(v)) return api_wrong_type(err, path, "a string or an array", v);
    cJSON *list = cJSON_AddArrayToObject(m, "content");
    const cJSON *part = NULL;
    int i = 0;
    if (!list) return api_no_memory(err);
    if (!v->child) return api_fail(err, 400, "empty_array", path, "'%s' must not be empty.", path);
    cJSON_ArrayForEach(part, v)
    {
        char element[API_PATH_MAX];
        snprintf(element, sizeof element, "%.50s[%d]", path, i++);
        cJSON *out = read_part(part, element, err);
        if (!out || !cJSON_AddItemToArray(list, out)) return -1;
    }
    return 0;
}

static int read_message(struct response_input *in, const cJSON *item, const char *path, int index,
                        struct api_error *err)
{
    static const struct api_field fields[] = {
        {"type", API_FIELD_READ, NULL},     {"role", API_FIELD_READ, NULL},
        {"content", API_FIELD_READ, NULL},  {"id", API_FIELD_STRING, NULL},
        {"status", API_FIELD_STRING, NULL}, {"phase", API_FIELD_STRING, NULL},
        {NULL, API_FIELD_READ, NULL}};
    char param[API_PATH_MAX];
    const char *role = NULL;
    if (api_check_fields(item, path, fields, NULL, err) ||
        api_get_string(item, path, "role", &role, err))
        return -1;
    if (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0 &&
        strcmp(role, "system") != 0 && strcmp(role, "developer") != 0)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "role"),
                        "'%s' must be system, developer, user or assistant, not '%.40s'.", param,
                        role);
    cJSON *m = new_message(in, role, (struct response_source){index, -1}, err);
    if (!m) return -1;
    return add_content(api_field(item, "content"), api_path(param, path, "content"), m, err);
}

/* ---- calls and results ------------------------------------------------------------------------
 */

/* Calls that follow one another, or a text of the assistant, are one message. */
static cJSON *calls_of_last(struct response_input *in, int index, struct api_error *err)
{
    cJSON *m = cJSON_GetArrayItem(in->messages, in->n_messages - 1);
    if (!m || strcmp(string_of(m, "role"), "assistant") != 0)
        m = new_message(in, "assistant", (struct response_source){-1, index}, err);
    if (!m) return NULL;
    cJSON *list = cJSON_GetObjectItemCaseSensitive(m, "tool_calls");
    if (list) return list;
    in->sources[in->n_messages - 1].calls = index;
    list = cJSON_AddArrayToObject(m, "tool_calls");
    if (!list) (void)api_no_memory(err);
    return list;
}

static int read_call(struct response_input *in, const cJSON *item, const char *path, int index,
                     struct api_error *err)
{
    static const struct api_field fields[] = {
        {"type", API_FIELD_READ, NULL},
        {"id", API_FIELD_STRING, NULL},
        {"call_id", API_FIELD_READ, NULL},
        {"name", API_FIELD_READ, NULL},
        {"arguments", API_FIELD_READ, NULL},
        {"status", API_FIELD_STRING, NULL},
        {"parsed_arguments", API_FIELD_READ, NULL}, // likewise
        {NULL, API_FIELD_READ, NULL}};
    const char *id = NULL, *name = NULL, *arguments = NULL;
    if (api_check_fields(item, path, fields, NULL, err) ||
        api_get_string(item, path, "call_id", &id, err) ||
        api_get_string(item, path, "name", &name, err) ||
        api_get_string(item, path, "arguments", &arguments, err))
        return -1;
    cJSON *list = calls_of_last(in, index, err);
    if (!list) return -1;
    cJSON *call = cJSON_CreateObject(), *f = NULL;
    if (!call || !cJSON_AddItemToArray(list, call)) {
        cJSON_Delete(call);
        return api_no_memory(err);
    }
    if (add_string(call, "id", id, err) || add_string(call, "type", "function", err)) return -1;
    f = cJSON_AddObjectToObject(call, "function");
    if (!f) return api_no_memory(err);
    return add_string(f, "name", name, err) || add_string(f, "arguments", arguments, err) ? -1 : 0;
}

static int read_result(struct response_input *in, const cJSON *item, const char *path, int index,
                       struct api_error *err)
{
    static const struct api_field fields[] = {
        {"type", API_FIELD_READ, NULL},     {"id", API_FIELD_STRING, NULL},
        {"call_id", API_FIELD_READ, NULL},  {"output", API_FIELD_READ, NULL},
        {"status", API_FIELD_STRING, NULL}, {NULL, API_FIELD_READ, NULL}};
    char param[API_PATH_MAX];
    const char *id = NULL;
    if (api_check_fields(item, path, fields, NULL, err) ||
        api_get_string(item, path, "call_id", &id, err))
        return -1;
    cJSON *m = new_message(in, "tool", (struct response_source){index, -1}, err);
    if (!m || add_string(m, "tool_call_id", id, err)) return -1;
    return add_content(api_field(item, "output"), api_path(param, path, "output"), m, err);
}

static int read_item(struct response_input *in, const cJSON *item, const char *path, int index,
                     struct api_error *err)
{
    char param[API_PATH_MAX];
    if (!cJSON_IsObject(item)) return api_wrong_type(err, path, "an object", item);
    const cJSON *kind = api_field(item, "type");
    const char *type = "message";
    if (kind && api_get_string(item, path, "type", &type, err)) return -1;
    if (!strcmp(type, "message")) return read_message(in, item, path, index, err);
    if (!strcmp(type, "function_call")) return read_call(in, item, path, index, err);
    if (!strcmp(type, "function_call_output")) return read_result(in, item, path, index, err);
    return api_fail(err, 400, "unsupported_parameter", api_path(param, path, "type"),
                    "'%s' must be message, function_call or function_call_output, not '%.40s', "
                    "which is not supported by this server.",
                    param, type);
}

/* ---- the conversation -------------------------------------------------------------------------
 */

/* Nothing that a conversation needs, and more than the rest of it. */
static void drop_logprobs(cJSON *item)
{
    cJSON *part = NULL;
    cJSON_ArrayForEach(part, cJSON_GetObjectItemCaseSensitive(item, "content"))
    {
        cJSON_DeleteItemFromObjectCaseSensitive(part, "logprobs");
    }
}

/* All of an earlier response: what it was asked, and what it answered. */
static int read_previous(struct response_input *in, const char *id, const struct api_env *env,
                         uint32_t tenant, struct api_error *err)
{
    struct cfg_buf body = {0}, items = {0};
    if (!api_store_get(env->store, tenant, id, &body, &items))
        return api_fail(err, 400, "previous_response_not_found", "previous_response_id",
                        "There is no response '%.60s' to go on with.", id);
    in->size += body.len + items.len;
    cJSON *response = body.failed ? NULL : cJSON_ParseWithLength(body.data, body.len);
    in->items = items.failed ? NULL : cJSON_ParseWithLength(items.data, items.len);
    cJSON *output = cJSON_DetachItemFromObjectCaseSensitive(response, "output");
    cJSON *item = NULL;
    bool ok = in->items && output;
    while (ok && (item = cJSON_DetachItemFromArray(output, 0))) {
        drop_logprobs(item);
        ok = cJSON_AddItemToArray(in->items, item);
    }
    cJSON_Delete(output);
    cJSON_Delete(response);
    cfg_buf_free(&body);
    cfg_buf_free(&items);
    return ok ? 0 : api_no_memory(err);
}

/* A copy of an item with what the client may leave out. */
static int add_item(struct response_input *in, const cJSON *item, struct api_error *err)
{
    char id[40];
    cJSON *copy = cJSON_Duplicate(item, true);
    if (!copy || !cJSON_AddItemToArray(in->items, copy)) {
        cJSON_Delete(copy);
        return api_no_memory(err);
    }
    if (!cJSON_IsObject(copy)) return 0;
    if (!api_field(copy, "type") && add_string(copy, "type", "message", err)) return -1;
    if (!api_field(copy, "status") && add_string(copy, "status", "completed", err)) return -1;
    const bool message = !strcmp(string_of(copy, "type"), "message");
    if (!api_field(copy, "id") &&
        (api_random_id(id, sizeof id, message ? "msg_" : "fc_") || add_string(copy, "id", id, err)))
        return api_no_memory(err);
    const cJSON *content = api_field(copy, "content");
    if (!message || !cJSON_IsString(content)) return 0;
    // A text is one part of the list that messages have.
    cJSON *list = cJSON_CreateArray(), *part = cJSON_CreateObject();
    const bool said = !strcmp(string_of(copy, "role"), "assistant");
    if (!list || !part || add_string(part, "type", said ? "output_text" : "input_text", err) ||
        add_string(part, "text", content->valuestring, err) || !cJSON_AddItemToArray(list, part)) {
        cJSON_Delete(list);
        cJSON_Delete(part);
        return api_no_memory(err);
    }
    cJSON_ReplaceItemInObjectCaseSensitive(copy, "content", list);
    return 0;
}

static int add_input(struct response_input *in, const cJSON *root, struct api_error *err)
{
    const cJSON *input = api_field(root, "input"), *item = NULL;
    if (!input) return api_missing(err, "input");
    in->plain = cJSON_IsString(input);
    if (in->plain) {
        cJSON *m = cJSON_CreateObject();
        int rc = m ? add_string(m, "role", "user", err) : api_no_memory(err);
        if (!rc) rc = add_string(m, "content", input->valuestring, err);
        if (!rc) rc = add_item(in, m, err);
        cJSON_Delete(m);
        return rc;
    }
    if (!cJSON_IsArray(input)) return api_wrong_type(err, "input", "a string or an array", input);
    if (!input->child && in->n_before == 0)
        return api_fail(err, 400, "empty_array", "input", "'input' must not be empty.");
    cJSON_ArrayForEach(item, input) if (add_item(in, item, err)) return -1;
    return 0;
}

int response_input_read(struct response_input *in, const cJSON *root, const struct api_env *env,
                        uint32_t tenant, struct api_error *err)
{
    const cJSON *previous = api_field(root, "previous_response_id"), *item = NULL;
    const cJSON *instructions = api_field(root, "instructions");
    if (previous && read_previous(in, previous->valuestring, env, tenant, err)) return -1;
    if (!in->items) in->items = cJSON_CreateArray();
    in->messages = cJSON_CreateArray();
    if (!in->items || !in->messages) return api_no_memory(err);
    in->n_before = cJSON_GetArraySize(in->items);
    if (add_input(in, root, err)) return -1;
    if (instructions) {
        cJSON *m = new_message(in, "system", (struct response_source){-1, -1}, err);
        if (!m || add_string(m, "content", instructions->valuestring, err)) return -1;
    }
    int i = 0;
    cJSON_ArrayForEach(item, in->items)
    {
        char path[API_PATH_MAX];
        snprintf(path, sizeof path, "input[%d]", i - in->n_before);
        if (read_item(in, item, path, i++, err)) return -1;
    }
    return 0;
}

cJSON *response_messages(const struct response_input *in, int drop)
{
    cJSON *out = cJSON_CreateArray();
    const cJSON *m = NULL;
    int turn = 0; /* of the user, counted from 1 */
    cJSON_ArrayForEach(m, in->messages)
    {
        const char *role = string_of(m, "role");
        turn += !strcmp(role, "user");
        const bool system = !strcmp(role, "system") || !strcmp(role, "developer");
        if (!system && drop > 0 && turn <= drop) continue;
        cJSON *copy = cJSON_Duplicate(m, true);
        if (cJSON_AddItemToArray(out, copy)) continue;
        cJSON_Delete(copy);
        cJSON_Delete(out);
        return NULL;
    }
    return out;
}

void response_place(const struct response_input *in, const char *param, char *out, size_t cap)
{
    int message = -1, call = -1, n = 0, item = -1;
    const char *rest = param;
    if (sscanf(param, "messages[%d]%n", &message, &n) == 1 && n > 0) rest = param + n;
    if (message < 0 || message >= in->n_messages) {
        snprintf(out, cap, "input");
        return;
    }
    const struct response_source from = in->sources[message];
    n = 0;
    item = from.text;
    if (sscanf(rest, ".tool_calls[%d]%n", &call, &n) == 1 && n > 0) {
        item = from.calls + call;
        rest += n;
        if (!strncmp(rest, ".function", 9)) rest += 9;
    } else if (item < 0) {
        item = from.calls;
    }
    if (item < 0)
        snprintf(out, cap, "instructions");
    else if (item < in->n_before)
        snprintf(out, cap, "previous_response_id");
    else if (in->plain)
        snprintf(out, cap, "input");
    else
        snprintf(out, cap, "input[%d]%s", item - in->n_before,
                 !strcmp(rest, ".tool_call_id") ? ".call_id" : rest);
}
