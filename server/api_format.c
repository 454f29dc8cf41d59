// SPDX-License-Identifier: Apache-2.0
//
// api_format.c: from response_format, structured_outputs and the older guided_* fields to the
// grammar of a request's sampling. Part of parsing: any thread.
#include "server/api_format.h"

#include <stdlib.h>
#include <string.h>

#include "server/api_request.h"

const struct api_field api_output_fields[] = {
    {"json", API_FIELD_READ, NULL},
    {"regex", API_FIELD_READ, NULL},
    {"choice", API_FIELD_READ, NULL},
    {"grammar", API_FIELD_READ, NULL},
    {"json_object", API_FIELD_READ, NULL},
    {"structural_tag", API_FIELD_UNSUPPORTED, NULL},
    {"whitespace_pattern", API_FIELD_UNSUPPORTED, NULL},
    {"disable_any_whitespace", API_FIELD_UNSUPPORTED, "false"},
    {"disable_additional_properties", API_FIELD_UNSUPPORTED, "false"},
    {NULL, API_FIELD_READ, NULL},
};

/* The fields whose value is a grammar, and of which kind. */
struct source {
    const char *name;
    enum engine_grammar_kind kind;
};
static const struct source guided[] = {
    {"guided_json", ENGINE_GRAMMAR_SCHEMA},
    {"guided_regex", ENGINE_GRAMMAR_REGEX},
    {"guided_choice", ENGINE_GRAMMAR_CHOICE},
    {"guided_grammar", ENGINE_GRAMMAR_GBNF},
    {NULL, ENGINE_GRAMMAR_JSON},
};
static const struct source outputs[] = {
    {"json", ENGINE_GRAMMAR_SCHEMA},   {"regex", ENGINE_GRAMMAR_REGEX},
    {"choice", ENGINE_GRAMMAR_CHOICE}, {"grammar", ENGINE_GRAMMAR_GBNF},
    {NULL, ENGINE_GRAMMAR_JSON},
};

bool api_is_slow(const char *body, size_t n)
{
    // The last is how a name could be written so that it is not seen here.
    static const char *const signs[] = {
        "\"response_format\"", "\"structured_outputs\"",   "\"guided_",  "\"tools\"",
        "\"bad_words\"",       "\"previous_response_id\"", "\"format\"", "\\u00"};
    for (size_t i = 0; n > 0 && i < sizeof signs / sizeof *signs; i++)
        if (memmem(body, n, signs[i], strlen(signs[i]))) return true;
    return false;
}

bool api_is_name(const char *s)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    const size_t n = strlen(s);
    return n >= 1 && n <= 64 && strspn(s, allowed) == n;
}

int api_set_format(struct api_request *r, enum engine_grammar_kind kind, const char *text, size_t n,
                   const char *param, struct api_error *err)
{
    struct api_format *f = &r->format;
    if (f->text)
        return api_fail(err, 400, "invalid_value", param, "'%s' and '%s' can't be set together.",
                        f->param, param);
    f->text = cfg_arena_strndup(r->arena, text, n);
    f->n = n;
    f->kind = kind;
    (void)api_path(f->param, "", param);
    return f->text ? 0 : api_no_memory(err);
}

static int set_json(struct api_request *r, enum engine_grammar_kind kind, const cJSON *v,
                    const char *param, struct api_error *err)
{
    char *text = cJSON_PrintUnformatted(v);
    if (!text) return api_no_memory(err);
    const int rc = api_set_format(r, kind, text, strlen(text), param, err);
    free(text);
    return rc;
}

/* A schema may come as text too, the others of the form their kind wants. */
static int read_source(struct api_request *r, const cJSON *v, enum engine_grammar_kind kind,
                       const char *param, struct api_error *err)
{
    if (kind == ENGINE_GRAMMAR_CHOICE) {
        if (!cJSON_IsArray(v)) return api_wrong_type(err, param, "an array of strings", v);
        return set_json(r, kind, v, param, err);
    }
    if (kind == ENGINE_GRAMMAR_SCHEMA && (cJSON_IsObject(v) || cJSON_IsBool(v)))
        return set_json(r, kind, v, param, err);
    if (!cJSON_IsString(v))
        return api_wrong_type(
            err, param, kind == ENGINE_GRAMMAR_SCHEMA ? "an object or a string" : "a string", v);
    return api_set_format(r, kind, v->valuestring, strlen(v->valuestring), param, err);
}

static int read_sources(struct api_request *r, const cJSON *o, const char *path,
                        const struct source *list, struct api_error *err)
{
    for (; list->name; list++) {
        const cJSON *v = api_field(o, list->name);
        char param[API_PATH_MAX];
        if (v && read_source(r, v, list->kind, api_path(param, path, list->name), err)) return -1;
    }
    return 0;
}

static int read_outputs(struct api_request *r, const cJSON *root, struct api_error *err)
{
    static const char name[] = "structured_outputs";
    const cJSON *o = api_field(root, name);
    bool any = false;
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, name, "an object", o);
    if (api_check_fields(o, name, api_output_fields, NULL, err) ||
        read_sources(r, o, name, outputs, err) || api_get_bool(o, name, "json_object", &any, err))
        return -1;
    if (any) return api_set_format(r, ENGINE_GRAMMAR_JSON, "", 0, "structured_outputs", err);
    if (r->format.text) return 0;
    return api_fail(err, 400, "invalid_value", name,
                    "'%s' must have one of json, regex, choice, grammar and json_object.", name);
}

/* {"name", "description", "schema", "strict"}; path names the object. */
static int read_schema(struct api_request *r, const cJSON *o, const char *path,
                       struct api_error *err)
{
    static const struct api_field fields[] = {
        {"name", API_FIELD_READ, NULL},   {"description", API_FIELD_STRING, NULL},
        {"schema", API_FIELD_READ, NULL}, {"strict", API_FIELD_BOOL, NULL},
        {NULL, API_FIELD_READ, NULL},
    };
    char param[API_PATH_MAX];
    const char *name = NULL;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, path, "an object", o);
    if (api_check_fields(o, path, fields, NULL, err) || api_get_string(o, path, "name", &name, err))
        return -1;
    if (!api_is_name(name))
        return api_fail(err, 400, "invalid_value", api_path(param, path, "name"),
                        "'%s' must have 1 to 64 letters, digits, underscores and dashes.", param);
    const cJSON *schema = api_field(o, "schema");
    (void)api_path(param, path, "schema");
    if (!schema) return api_set_format(r, ENGINE_GRAMMAR_JSON, "", 0, param, err);
    if (!cJSON_IsObject(schema)) return api_wrong_type(err, param, "an object", schema);
    return set_json(r, ENGINE_GRAMMAR_SCHEMA, schema, param, err);
}

static int read_response_format(struct api_request *r, const cJSON *root, struct api_error *err)
{
    static const struct api_field fields[] = {{"type", API_FIELD_READ, NULL},
                                              {"json_schema", API_FIELD_READ, NULL},
                                              {NULL, API_FIELD_READ, NULL}};
    static const char name[] = "response_format";
    const cJSON *o = api_field(root, name);
    const char *type = NULL;
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, name, "an object", o);
    if (api_check_fields(o, name, fields, NULL, err) || api_get_string(o, name, "type", &type, err))
        return -1;
    const cJSON *schema = api_field(o, "json_schema");
    if (!strcmp(type, "json_schema")) {
        if (!schema) return api_missing(err, "response_format.json_schema");
        return read_schema(r, schema, "response_format.json_schema", err);
    }
    if (schema)
        return api_fail(err, 400, "invalid_value", "response_format.json_schema",
                        "'response_format.json_schema' is only allowed when the type is "
                        "json_schema.");
    if (!strcmp(type, "json_object"))
        return api_set_format(r, ENGINE_GRAMMAR_JSON, "", 0, name, err);
    if (!strcmp(type, "text")) return 0;
    return api_fail(err, 400, "invalid_value", "response_format.type",
                    "'response_format.type' must be text, json_object or json_schema, not '%.40s'.",
                    type);
}

int api_read_format(struct api_request *r, const cJSON *root, struct api_error *err)
{
    if (read_response_format(r, root, err) || read_outputs(r, root, err)) return -1;
    return read_sources(r, root, "", guided, err);
}

int api_compile_format(struct api_request *r, struct api_error *err)
{
    static const char *const codes[] = {
        [ENGINE_GRAMMAR_JSON] = "invalid_value",
        [ENGINE_GRAMMAR_REGEX] = "invalid_value",
        [ENGINE_GRAMMAR_CHOICE] = "invalid_value",
        [ENGINE_GRAMMAR_GBNF] = "invalid_value",
        [ENGINE_GRAMMAR_SCHEMA] = "invalid_json_schema",
        [ENGINE_GRAMMAR_TOOLS] = "invalid_function_parameters",
    };
    const struct api_format *f = &r->format;
    const struct api_env *env = r->env;
    struct error why;
    if (!f->text) return 0;
    if (!env->tokenizer) return api_tokenizer_missing(err, f->param);
    if (r->ignore_eos)
        return api_fail(err, 400, "invalid_value", "ignore_eos",
                        "'ignore_eos' and '%s' can't be set together: an answer of a given form "
                        "has an end.",
                        f->param);
    const struct api_grammars_key key = {r->tenant, f->kind, f->text, f->n};
    const int rc = api_grammars_get(env->grammars, &r->sampling.grammar, env->tokenizer,
                                    env->info->usable_vocab, &key, &why);
    if (rc == CFG_EINVAL)
        return api_fail(err, 400, codes[f->kind], f->param, "'%s': %s.", f->param, why.message);
    if (rc == CFG_EFULL) return api_fail(err, 503, NULL, "", "Too many large grammars at once.");
    if (rc) return api_fail(err, 500, NULL, "", "%s", why.message);
    return 0;
}
