// SPDX-License-Identifier: Apache-2.0
//
// api_history.c: calls and results of earlier turns as the model was taught them: a call is part of
// the assistant's text; results that follow one another are one turn of the user, which the user's
// own message joins. Every result must answer a call before it, and every call must be answered
// before somebody else speaks. Part of parsing: any thread; texts live in the request's arena.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_request.h"

enum kind { PLAIN, RESULT, AFTER_RESULT };

static const char result_begin[] = "<tool_response>", result_end[] = "</tool_response>";

int api_history_init(struct api_request *r, struct api_history *h, size_t n_messages,
                     struct api_error *err)
{
    *h = (struct api_history){0};
    h->msgs = cfg_arena_alloc(r->arena, (n_messages + 2) * sizeof *h->msgs);
    h->kinds = cfg_arena_alloc(r->arena, n_messages + 2);
    return h->msgs && h->kinds ? 0 : api_no_memory(err);
}

/* Copies what a buffer gathered to a message, and frees it. */
static int keep_text(struct api_request *r, struct engine_message *msg, struct cfg_buf *b,
                     struct api_error *err)
{
    msg->text = b->failed ? NULL : cfg_arena_strndup(r->arena, b->data ? b->data : "", b->len);
    msg->n = b->len;
    cfg_buf_free(b);
    return msg->text ? 0 : api_no_memory(err);
}

/* ---- the assistant's calls ------------------------------------------------------------------- */

/* The arguments, printed anew without white space; what is no JSON object, as those of an answer
 * that was cut, as they are. */
static int put_arguments(const char *text, struct cfg_buf *out, struct api_error *err)
{
    const size_t n = strlen(text);
    const struct cfg_json_limits limits = {.max_bytes = n, .max_values = 65536, .max_depth = 64};
    cJSON *o = NULL;
    struct error why;
    if (n == 0 || cfg_json_parse(&o, text, n, &limits, &why) || !cJSON_IsObject(o)) {
        cJSON_Delete(o);
        cfg_buf_puts(out, n ? text : "{}");
        return 0;
    }
    char *compact = cJSON_PrintUnformatted(o);
    cJSON_Delete(o);
    if (!compact) return api_no_memory(err);
    cfg_buf_puts(out, compact);
    free(compact);
    return 0;
}

static int put_call(struct api_history *h, const cJSON *call, const char *path, struct cfg_buf *out,
                    struct api_error *err)
{
    static const struct api_field fields[] = {{"id", API_FIELD_READ, NULL},
                                              {"type", API_FIELD_READ, NULL},
                                              {"function", API_FIELD_READ, NULL},
                                              {"index", API_FIELD_READ, NULL},
                                              {NULL, API_FIELD_READ, NULL}};
    static const struct api_field inner[] = {
        {"name", API_FIELD_READ, NULL},
        {"arguments", API_FIELD_READ, NULL},
        {"parsed_arguments", API_FIELD_READ, NULL}, // the client's own reading of them
        {NULL, API_FIELD_READ, NULL}};
    char param[API_PATH_MAX], place[API_PATH_MAX];
    const char *id = NULL, *type = NULL, *name = NULL, *arguments = NULL;
    if (!cJSON_IsObject(call)) return api_wrong_type(err, path, "an object", call);
    if (api_check_fields(call, path, fields, NULL, err) ||
        api_get_string(call, path, "id", &id, err) ||
        api_get_string(call, path, "type", &type, err))
        return -1;
    if (strcmp(type, "function") != 0)
        return api_fail(err, 400, "unsupported_parameter", api_path(param, path, "type"),
                        "'%s' must be function, not '%.40s'.", param, type);
    const cJSON *f = api_field(call, "function");
    (void)api_path(param, path, "function");
    if (!f) return api_missing(err, param);
    if (!cJSON_IsObject(f)) return api_wrong_type(err, param, "an object", f);
    if (api_check_fields(f, param, inner, NULL, err) ||
        api_get_string(f, param, "name", &name, err) ||
        api_get_string(f, param, "arguments", &arguments, err))
        return -1;
    if (!api_is_name(name))
        return api_fail(err, 400, "invalid_value", api_path(place, param, "name"),
                        "'%s' must have 1 to 64 letters, digits, underscores and dashes.", place);
    cfg_buf_printf(out, API_CALL_BEGIN "{\"name\":\"%s\",\"arguments\":", name);
    if (put_arguments(arguments, out, err)) return -1;
    cfg_buf_puts(out, "}" API_CALL_END);
    h->waiting[h->n_waiting++] = id;
    return 0;
}

static int add_calls(struct api_request *r, struct api_history *h, const cJSON *calls,
                     const char *path, struct engine_message *msg, struct api_error *err)
{
    char element[API_PATH_MAX];
    struct cfg_buf b = {0};
    const cJSON *call = NULL;
    int i = 0, rc = 0;
    if (!cJSON_IsArray(calls))
        return api_wrong_type(err, api_path(element, path, "tool_calls"), "an array", calls);
    const size_t n = (size_t)cJSON_GetArraySize(calls);
    if (n == 0) return 0;
    h->waiting = cfg_arena_alloc(r->arena, n * sizeof *h->waiting);
    if (!h->waiting) return api_no_memory(err);
    cfg_buf_append(&b, msg->text, msg->n);
    cJSON_ArrayForEach(call, calls)
    {
        snprintf(element, sizeof element, "%.30s.tool_calls[%d]", path, i++);
        if (!rc) rc = put_call(h, call, element, &b, err);
    }
    if (!rc) return keep_text(r, msg, &b, err);
    cfg_buf_free(&b);
    return rc;
}

/* ---- results --------------------------------------------------------------------------------- */

/* A result answers one of the calls that wait. */
static int take_result(struct api_history *h, const cJSON *m, const char *path,
                       struct api_error *err)
{
    char param[API_PATH_MAX];
    const char *id = NULL;
    if (api_get_string(m, path, "tool_call_id", &id, err)) return -1;
    for (size_t i = 0; i < h->n_waiting; i++) {
        if (strcmp(h->waiting[i], id) != 0) continue;
        h->waiting[i] = h->waiting[--h->n_waiting];
        h->n_results++;
        return 0;
    }
    return api_fail(err, 400, "invalid_value", api_path(param, path, "tool_call_id"),
                    "'%s' is not the id of a call in the assistant's message before it, or was "
                    "answered already: messages with the role tool must answer 'tool_calls'.",
                    param);
}

static int check_answered(const struct api_history *h, const char *path, struct api_error *err)
{
    char param[API_PATH_MAX];
    if (h->n_waiting == 0) return 0;
    return api_fail(
        err, 400, "invalid_value", api_path(param, path, "role"),
        "An assistant's message with 'tool_calls' must be followed by messages with the "
        "role tool that answer each 'tool_call_id'. There is none for '%.64s'.",
        h->waiting[0]);
}

/* ---- the conversation ------------------------------------------------------------------------ */

int api_history_add(struct api_request *r, struct api_history *h, const cJSON *m, const char *path,
                    const struct engine_message *msg, struct api_error *err)
{
    char param[API_PATH_MAX];
    const cJSON *calls = api_field(m, "tool_calls");
    const bool result = !strcmp(api_field(m, "role")->valuestring, "tool");
    const size_t at = h->n++;
    if (calls && msg->role != ENGINE_ASSISTANT)
        return api_fail(err, 400, "invalid_value", api_path(param, path, "tool_calls"),
                        "'%s' is only allowed in an assistant's message.", param);
    if (!result && api_field(m, "tool_call_id"))
        return api_fail(err, 400, "invalid_value", api_path(param, path, "tool_call_id"),
                        "'%s' is only allowed in a message with the role tool.", param);
    h->msgs[at] = *msg;
    if (result) {
        h->kinds[at] = RESULT;
        return take_result(h, m, path, err);
    }
    if (check_answered(h, path, err)) return -1;
    if (msg->role == ENGINE_USER && at > 0 && h->kinds[at - 1] == RESULT)
        h->kinds[at] = AFTER_RESULT;
    return calls ? add_calls(r, h, calls, path, &h->msgs[at], err) : 0;
}

/* One turn of the user, from the results at `first` on. Returns the index after them. */
static size_t join_results(struct api_history *h, size_t first, struct cfg_buf *b)
{
    size_t i = first;
    for (; i < h->n && h->kinds[i] == RESULT; i++) {
        cfg_buf_puts(b, result_begin);
        cfg_buf_append(b, h->msgs[i].text, h->msgs[i].n);
        cfg_buf_puts(b, result_end);
    }
    if (i < h->n && h->kinds[i] == AFTER_RESULT) {
        cfg_buf_puts(b, "\n");
        cfg_buf_append(b, h->msgs[i].text, h->msgs[i].n);
        i++;
    }
    return i;
}

static int join_all(struct api_request *r, struct api_history *h, struct api_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < h->n; n++) {
        if (h->kinds[i] != RESULT) {
            h->msgs[n] = h->msgs[i++];
            continue;
        }
        struct cfg_buf b = {0};
        i = join_results(h, i, &b);
        h->msgs[n].role = ENGINE_USER;
        if (keep_text(r, &h->msgs[n], &b, err)) return -1;
    }
    h->n = n;
    return 0;
}

/* The tools stand at the end of the system message; the usual one where the request has none. */
static void add_tools(const struct api_tools *tools, struct api_history *h)
{
    size_t after = 0, texts = 0; // behind the last one; bytes of them all
    for (size_t i = 0; i < h->n; i++) {
        if (h->msgs[i].role != ENGINE_SYSTEM) continue;
        after = i + 1;
        texts += h->msgs[i].n;
    }
    const struct engine_message usual = {ENGINE_SYSTEM, engine_default_system,
                                         strlen(engine_default_system)};
    const struct engine_message own = {ENGINE_SYSTEM, tools->text, strlen(tools->text)};
    if (after > 0 && texts == 0) {
        h->msgs[after - 1] = own; // an empty text is not continued, but replaced
        return;
    }
    const size_t by = after == 0 ? 2 : 1;
    memmove(h->msgs + after + by, h->msgs + after, (h->n - after) * sizeof *h->msgs);
    h->n += by;
    if (by == 2) h->msgs[0] = usual;
    h->msgs[after + by - 1] = own;
}

int api_history_end(struct api_request *r, struct api_history *h, struct api_error *err)
{
    char path[API_PATH_MAX];
    snprintf(path, sizeof path, "messages[%zu]", h->n > 0 ? h->n - 1 : 0);
    if (check_answered(h, path, err)) return -1;
    if (h->n_results > 0 && join_all(r, h, err)) return -1;
    if (r->tools.text) add_tools(&r->tools, h);
    return 0;
}
