// SPDX-License-Identifier: Apache-2.0
//
// api_fields.c: named fields out of a JSON body, with type and range. Codes are those OpenAI's API
// answers with, so that a client's error handling works unchanged. Nothing here keeps a pointer
// into the tree. Any thread.
#include "server/api_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int api_json_object(cJSON **out, const char *body, size_t n, const struct api_env *env,
                    struct api_error *err)
{
    struct cfg_json_limits limits = {
        .max_bytes = n, .max_values = (size_t)env->json_values, .max_depth = env->json_depth};
    struct error why;
    *out = NULL;
    int rc = cfg_json_parse(out, body, n, &limits, &why);
    if (rc == CFG_ENOMEM) return api_no_memory(err);
    if (rc) return api_fail(err, 400, NULL, "", "Request body: %s", why.message);
    if (cJSON_IsObject(*out)) return 0;
    cJSON_Delete(*out);
    *out = NULL;
    return api_fail(err, 400, "invalid_type", "", "The body must be a JSON object.");
}

const cJSON *api_field(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

const char *api_path(char buf[API_PATH_MAX], const char *path, const char *name)
{
    snprintf(buf, API_PATH_MAX, "%s%s%s", path, *path ? "." : "", name);
    return buf;
}

static const char *type_name(const cJSON *v)
{
    if (cJSON_IsString(v)) return "a string";
    if (cJSON_IsNumber(v)) return "a number";
    if (cJSON_IsBool(v)) return "a boolean";
    if (cJSON_IsArray(v)) return "an array";
    if (cJSON_IsObject(v)) return "an object";
    return "null";
}

int api_wrong_type(struct api_error *err, const char *param, const char *expected, const cJSON *got)
{
    return api_fail(err, 400, "invalid_type", param, "'%s' must be %s, not %s.", param, expected,
                    type_name(got));
}

int api_missing(struct api_error *err, const char *param)
{
    return api_fail(err, 400, "missing_required_parameter", param, "'%s' is required.", param);
}

int api_no_memory(struct api_error *err)
{
    return api_fail(err, 500, NULL, "", "There is not enough memory for this request.");
}

/* ---- which fields a body may have ------------------------------------------------------------ */

static const struct api_field *find_field(const struct api_field *table, const char *name)
{
    for (; table && table->name; table++)
        if (!strcmp(table->name, name)) return table;
    return NULL;
}

static bool asks_for_nothing(const cJSON *v, const char *harmless)
{
    if (!harmless) return false;
    cJSON *want = cJSON_Parse(harmless);
    bool same = want && cJSON_Compare(v, want, true);
    cJSON_Delete(want);
    return same;
}

static int check_field(const cJSON *v, const struct api_field *f, const char *param,
                       struct api_error *err)
{
    switch (f->rule) {
    case API_FIELD_READ:
        return 0;
    case API_FIELD_STRING:
        return cJSON_IsString(v) ? 0 : api_wrong_type(err, param, "a string", v);
    case API_FIELD_BOOL:
        return cJSON_IsBool(v) ? 0 : api_wrong_type(err, param, "a boolean", v);
    case API_FIELD_OBJECT:
        return cJSON_IsObject(v) ? 0 : api_wrong_type(err, param, "an object", v);
    case API_FIELD_REPLACED:
        return api_fail(err, 400, "unsupported_parameter", param,
                        "'%s' is not supported by this server: use '%s'.", param, f->harmless);
    case API_FIELD_UNSUPPORTED:
        break;
    }
    if (asks_for_nothing(v, f->harmless)) return 0;
    return api_fail(err, 400, "unsupported_parameter", param,
                    "'%s' is not supported by this server.", param);
}

int api_check_fields(const cJSON *o, const char *path, const struct api_field *a,
                     const struct api_field *b, struct api_error *err)
{
    const cJSON *v = NULL;
    cJSON_ArrayForEach(v, o)
    {
        if (cJSON_IsNull(v)) continue;
        char param[API_PATH_MAX];
        api_path(param, path, v->string);
        const struct api_field *f = find_field(a, v->string);
        if (!f) f = find_field(b, v->string);
        if (!f)
            return api_fail(err, 400, "unknown_parameter", param, "'%s' is no known parameter.",
                            param);
        if (check_field(v, f, param, err)) return -1;
    }
    return 0;
}

/* ---- readers --------------------------------------------------------------------------------- */

int api_get_bool(const cJSON *o, const char *path, const char *name, bool *out,
                 struct api_error *err)
{
    const cJSON *v = api_field(o, name);
    if (!v) return 0;
    char param[API_PATH_MAX];
    if (!cJSON_IsBool(v)) return api_wrong_type(err, api_path(param, path, name), "a boolean", v);
    *out = cJSON_IsTrue(v);
    return 0;
}

int api_get_float(const cJSON *o, const char *name, double lo, double hi, float *out,
                  struct api_error *err)
{
    const cJSON *v = api_field(o, name);
    if (!v) return 0;
    if (!cJSON_IsNumber(v)) return api_wrong_type(err, name, "a number", v);
    double x = v->valuedouble;
    if (x < lo || x > hi || isnan(x))
        return api_fail(err, 400, x > hi ? "decimal_above_max_value" : "decimal_below_min_value",
                        name, "'%s' must be between %g and %g, not %g.", name, lo, hi, x);
    *out = (float)x;
    return 0;
}

/* A value that must be an integer in [lo, hi]. */
static int int_value(const cJSON *v, const char *param, int64_t lo, int64_t hi, int64_t *out,
                     struct api_error *err)
{
    if (!cJSON_IsNumber(v) || floor(v->valuedouble) != v->valuedouble)
        return cJSON_IsNumber(v)
                   ? api_fail(err, 400, "invalid_type", param, "'%s' must be an integer, not %g.",
                              param, v->valuedouble)
                   : api_wrong_type(err, param, "an integer", v);
    // cJSON reads numbers as doubles, and so are the limits compared: the largest int64 is then
    // 2^63 on both sides, which must not reach the cast.
    double x = v->valuedouble;
    if (x < (double)lo || x > (double)hi)
        return api_fail(err, 400,
                        x < (double)lo ? "integer_below_min_value" : "integer_above_max_value",
                        param, "'%s' must be between %lld and %lld, not %.0f.", param,
                        (long long)lo, (long long)hi, x);
    *out = x < 0x1p63 ? (int64_t)x : INT64_MAX;
    return 0;
}

int api_get_int(const cJSON *o, const char *name, int64_t lo, int64_t hi, int64_t *out,
                struct api_error *err)
{
    const cJSON *v = api_field(o, name);
    return v ? int_value(v, name, lo, hi, out, err) : 0;
}

int api_get_string(const cJSON *o, const char *path, const char *name, const char **out,
                   struct api_error *err)
{
    char param[API_PATH_MAX];
    api_path(param, path, name);
    const cJSON *v = api_field(o, name);
    if (!v) return api_missing(err, param);
    if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
    *out = v->valuestring;
    return 0;
}

int api_id_list(const cJSON *list, const char *param, int vocab, int32_t *ids,
                struct api_error *err)
{
    size_t i = 0;
    const cJSON *v = NULL;
    cJSON_ArrayForEach(v, list)
    {
        int64_t id = -1;
        // The element's name is only spelled out for an error: lists of ids are long.
        if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < vocab &&
            floor(v->valuedouble) == v->valuedouble) {
            ids[i++] = (int32_t)v->valuedouble;
            continue;
        }
        char element[API_PATH_MAX];
        snprintf(element, sizeof element, "%s[%zu]", param, i);
        return int_value(v, element, 0, vocab - 1, &id, err);
    }
    return 0;
}

int api_check_model(const cJSON *o, bool required, const struct api_env *env, struct api_error *err)
{
    if (!required && env->model_name && !api_field(o, "model")) return 0;
    const char *model = "";
    if (api_get_string(o, "", "model", &model, err)) return -1;
    if (env->model_name && !strcmp(model, env->model_name)) return 0;
    return api_fail(err, 404, "model_not_found", "model", "The model '%.200s' does not exist.",
                    model);
}
