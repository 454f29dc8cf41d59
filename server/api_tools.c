// SPDX-License-Identifier: Apache-2.0
//
// api_tools.c: the tools of a request: checked, written down for the model, and turned into the
// text of a grammar. Names and parameters come from the JSON tree; what is kept is copied to the
// arena.
#include "server/api_tools.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "server/api_request.h"

static const char instructions[] =
    "You can call tools. To call one, reply with <tool_call>{\"name\":NAME,\"arguments\":{...}}"
    "</tool_call>. The tools:\n";

/* What tool_choice says. */
struct choice {
    bool none, free;      /* no calls; text before calls, or instead */
    bool one;             /* one call at most */
    const char *only;     /* NULL, or the one function that must be called */
    const cJSON *allowed; /* NULL, or the list of those that may be called */
};

int api_random_id(char *out, size_t cap, const char *prefix)
{
    static const char letters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    unsigned char random[24];
    char text[sizeof random + 1];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return -1;
    for (size_t i = 0; i < sizeof random; i++) text[i] = letters[random[i] % (sizeof letters - 1)];
    text[sizeof random] = '\0';
    snprintf(out, cap, "%s%s", prefix, text);
    return 0;
}

/* ---- one tool -------------------------------------------------------------------------------- */

static const cJSON *function_of(const cJSON *tool)
{
    return api_field(tool, "function");
}

static const char *name_of(const cJSON *tool)
{
    return api_field(function_of(tool), "name")->valuestring;
}

/* {"type":"function","function":{...}}: the object, or NULL after a failure. */
static const cJSON *read_function(const cJSON *tool, const char *path, struct api_error *err)
{
    static const struct api_field fields[] = {
        {"type", API_FIELD_READ, NULL}, {"function", API_FIELD_READ, NULL}, {NULL, 0, NULL}};
    char param[API_PATH_MAX];
    const char *type = NULL;
    if (!cJSON_IsObject(tool)) {
        (void)api_wrong_type(err, path, "an object", tool);
        return NULL;
    }
    if (api_get_string(tool, path, "type", &type, err)) return NULL;
    if (strcmp(type, "function") != 0) {
        (void)api_fail(err, 400, "unsupported_parameter", api_path(param, path, "type"),
                       "'%s' must be function, not '%.40s', which is not supported by this server.",
                       param, type);
        return NULL;
    }
    if (api_check_fields(tool, path, fields, NULL, err)) return NULL;
    const cJSON *f = function_of(tool);
    (void)api_path(param, path, "function");
    if (!f)
        (void)api_missing(err, param);
    else if (!cJSON_IsObject(f))
        (void)api_wrong_type(err, param, "an object", f);
    else
        return f;
    return NULL;
}

static int read_name(const cJSON *f, const char *path, struct api_error *err)
{
    char param[API_PATH_MAX];
    const char *name = NULL;
    if (api_get_string(f, path, "name", &name, err)) return -1;
    if (api_is_name(name)) return 0;
    return api_fail(err, 400, "invalid_value", api_path(param, path, "name"),
                    "'%s' must have 1 to 64 letters, digits, underscores and dashes.", param);
}

static int check_tool(const cJSON *tools, const cJSON *tool, int index, struct api_error *err)
{
    static const struct api_field fields[] = {{"name", API_FIELD_READ, NULL},
                                              {"description", API_FIELD_STRING, NULL},
                                              {"parameters", API_FIELD_OBJECT, NULL},
                                              {"strict", API_FIELD_BOOL, NULL},
                                              {NULL, API_FIELD_READ, NULL}};
    char path[API_PATH_MAX], param[API_PATH_MAX];
    snprintf(path, sizeof path, "tools[%d]", index);
    const cJSON *f = read_function(tool, path, err);
    if (!f) return -1;
    (void)api_path(param, path, "function");
    if (api_check_fields(f, param, fields, NULL, err) || read_name(f, param, err)) return -1;
    for (const cJSON *other = tools->child; other != tool; other = other->next)
        if (!strcmp(name_of(other), name_of(tool)))
            return api_fail(err, 400, "invalid_value", api_path(path, param, "name"),
                            "There are two tools of the name '%s'.", name_of(tool));
    return 0;
}

static const cJSON *find_tool(const cJSON *tools, const char *name)
{
    const cJSON *tool = NULL;
    cJSON_ArrayForEach(tool, tools) if (!strcmp(name_of(tool), name)) return tool;
    return NULL;
}

/* {"name":...,"description":...,"parameters":{...}} less what is not there. */
static int put_tool(const cJSON *tool, bool described, struct cfg_buf *out)
{
    const cJSON *f = function_of(tool);
    const cJSON *description = api_field(f, "description"),
                *parameters = api_field(f, "parameters");
    const char *name = name_of(tool);
    cfg_buf_puts(out, "{\"name\":");
    cfg_buf_json_string(out, name, strlen(name));
    if (description && described) {
        cfg_buf_puts(out, ",\"description\":");
        cfg_buf_json_string(out, description->valuestring, strlen(description->valuestring));
    }
    if (parameters) {
        char *text = cJSON_PrintUnformatted(parameters);
        if (!text) return -1;
        cfg_buf_printf(out, ",\"parameters\":");
        cfg_buf_puts(out, text);
        free(text);
    }
    cfg_buf_puts(out, "}");
    return out->failed ? -1 : 0;
}

/* ---- tool_choice ----------------------------------------------------------------------------- */

static int check_chosen(const cJSON *tools, const char *name, const char *param,
                        struct api_error *err)
{
    if (find_tool(tools, name)) return 0;
    return api_fail(err, 400, "invalid_value", param, "'%s' names '%.64s', which is no tool.",
                    param, name);
}

/* A reference to a function, in tool_choice: its name, or NULL after a failure. */
static const char *read_reference(const cJSON *v, const cJSON *tools, const char *path,
                                  struct api_error *err)
{
    static const struct api_field fields[] = {{"name", API_FIELD_READ, NULL}, {NULL, 0, NULL}};
    const cJSON *f = read_function(v, path, err);
    char param[API_PATH_MAX];
    const char *name = NULL;
    if (!f || api_check_fields(f, api_path(param, path, "function"), fields, NULL, err) ||
        api_get_string(f, param, "name", &name, err) || check_chosen(tools, name, param, err))
        return NULL;
    return name;
}

static int read_mode(const char *mode, bool none, const char *param, struct choice *c,
                     struct api_error *err)
{
    if (!strcmp(mode, "auto")) return 0;
    if (!strcmp(mode, "required")) {
        c->free = false;
        return 0;
    }
    if (none && !strcmp(mode, "none")) {
        c->none = true;
        return 0;
    }
    return api_fail(err, 400, "invalid_value", param,
                    "'%s' must be %sauto or required, not '%.40s'.", param, none ? "none, " : "",
                    mode);
}

/* {"type":"allowed_tools","allowed_tools":{"mode","tools":[...]}} */
static int read_allowed(const cJSON *v, const cJSON *tools, struct choice *c, struct api_error *err)
{
    static const struct api_field outer[] = {
        {"type", API_FIELD_READ, NULL}, {"allowed_tools", API_FIELD_READ, NULL}, {NULL, 0, NULL}};
    static const struct api_field inner[] = {
        {"mode", API_FIELD_READ, NULL}, {"tools", API_FIELD_READ, NULL}, {NULL, 0, NULL}};
    static const char path[] = "tool_choice.allowed_tools";
    const cJSON *o = api_field(v, "allowed_tools");
    const char *mode = NULL;
    if (api_check_fields(v, "tool_choice", outer, NULL, err)) return -1;
    if (!o) return api_missing(err, path);
    if (!cJSON_IsObject(o)) return api_wrong_type(err, path, "an object", o);
    if (api_check_fields(o, path, inner, NULL, err) ||
        api_get_string(o, path, "mode", &mode, err) ||
        read_mode(mode, false, "tool_choice.allowed_tools.mode", c, err))
        return -1;
    c->allowed = api_field(o, "tools");
    if (!cJSON_IsArray(c->allowed) || !c->allowed->child)
        return api_fail(err, 400, "invalid_value", "tool_choice.allowed_tools.tools",
                        "'tool_choice.allowed_tools.tools' must be a list of at least one tool.");
    const cJSON *one = NULL;
    int i = 0;
    cJSON_ArrayForEach(one, c->allowed)
    {
        char element[API_PATH_MAX];
        snprintf(element, sizeof element, "%s.tools[%d]", path, i++);
        if (!read_reference(one, tools, element, err)) return -1;
    }
    return 0;
}

static int read_choice(const cJSON *root, const cJSON *tools, struct choice *c,
                       struct api_error *err)
{
    static const char name[] = "tool_choice";
    const cJSON *v = api_field(root, name);
    const cJSON *type = cJSON_IsObject(v) ? api_field(v, "type") : NULL;
    bool parallel = true;
    *c = (struct choice){.free = true};
    if (api_get_bool(root, "", "parallel_tool_calls", &parallel, err)) return -1;
    c->one = !parallel;
    if (!v) return 0;
    if (cJSON_IsString(v)) return read_mode(v->valuestring, true, name, c, err);
    if (!cJSON_IsObject(v)) return api_wrong_type(err, name, "a string or an object", v);
    if (type && cJSON_IsString(type) && !strcmp(type->valuestring, "allowed_tools"))
        return read_allowed(v, tools, c, err);
    c->only = read_reference(v, tools, name, err);
    c->free = false;
    c->one = true;
    return c->only ? 0 : -1;
}

static bool may_call(const struct choice *c, const cJSON *tool)
{
    if (c->only) return !strcmp(c->only, name_of(tool));
    return !c->allowed || find_tool(c->allowed, name_of(tool));
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* What the answer must be when it is not a call: as response_format says. */
static int put_content(struct api_request *r, const struct choice *c, struct cfg_buf *out,
                       struct api_error *err)
{
    struct api_format *f = &r->format;
    if (!f->text) {
        cfg_buf_puts(out, c->free ? ",\"free\":true" : "");
        return 0;
    }
    if (f->kind != ENGINE_GRAMMAR_SCHEMA && f->kind != ENGINE_GRAMMAR_JSON)
        return api_fail(err, 400, "invalid_value", f->param,
                        "'%s' can't be set together with 'tools'.", f->param);
    if (c->free)
        cfg_buf_printf(out, ",\"content\":%s",
                       f->kind == ENGINE_GRAMMAR_JSON ? "{\"type\":\"object\"}" : f->text);
    f->text = NULL;
    return 0;
}

static int set_grammar(struct api_request *r, const cJSON *tools, const struct choice *c,
                       struct api_error *err)
{
    struct cfg_buf b = {0};
    const cJSON *tool = NULL;
    const char *before = "{\"tools\":[";
    int rc = 0;
    cJSON_ArrayForEach(tool, tools)
    {
        if (!may_call(c, tool)) continue;
        cfg_buf_puts(&b, before);
        if (put_tool(tool, false, &b)) rc = api_no_memory(err);
        before = ",";
    }
    cfg_buf_puts(&b, "]");
    if (!rc) rc = put_content(r, c, &b, err);
    cfg_buf_puts(&b, c->one ? "}" : ",\"many\":true}");
    if (!rc && b.failed) rc = api_no_memory(err);
    if (!rc) rc = api_set_format(r, ENGINE_GRAMMAR_TOOLS, b.data, b.len, "tools", err);
    cfg_buf_free(&b);
    r->tools.calls = true;
    r->tools.free = c->free;
    r->tools.named = c->only != NULL;
    return rc;
}

static int set_text(struct api_request *r, const cJSON *tools, struct api_error *err)
{
    struct cfg_buf b = {0};
    const cJSON *tool = NULL;
    int rc = 0;
    cfg_buf_puts(&b, instructions);
    cJSON_ArrayForEach(tool, tools)
    {
        if (tool != tools->child) cfg_buf_puts(&b, "\n");
        if (put_tool(tool, true, &b)) rc = -1;
    }
    if (!rc && !b.failed) r->tools.text = cfg_arena_strndup(r->arena, b.data, b.len);
    cfg_buf_free(&b);
    return r->tools.text ? 0 : api_no_memory(err);
}

int api_read_tools(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *tools = api_field(root, "tools"), *tool = NULL;
    struct choice choice;
    int i = 0;
    if (tools && !cJSON_IsArray(tools)) return api_wrong_type(err, "tools", "an array", tools);
    if (cJSON_GetArraySize(tools) > API_MAX_TOOLS)
        return api_fail(err, 400, "array_above_max_length", "tools",
                        "'tools' may have at most %d tools.", API_MAX_TOOLS);
    cJSON_ArrayForEach(tool, tools) if (check_tool(tools, tool, i++, err)) return -1;
    if (read_choice(root, tools, &choice, err)) return -1;
    if (i == 0 && !choice.none && api_field(root, "tool_choice"))
        return api_fail(err, 400, "invalid_value", "tool_choice",
                        "'tool_choice' is only allowed when there are 'tools'.");
    if (i == 0 || choice.none) return 0;
    return set_text(r, tools, err) || set_grammar(r, tools, &choice, err) ? -1 : 0;
}
