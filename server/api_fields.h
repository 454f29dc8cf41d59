// SPDX-License-Identifier: Apache-2.0
//
// api_fields.h (private to server/api_*.c): reading named fields of a parsed request body. Every
// reader takes the object, the path of that object ("" for the body itself, "messages[2]" for a
// part of it) and the field's name; an absent or null field leaves *out as it was. A wrong type or
// range fails with status 400 and path.name in `param`. All return 0 or -1 with err filled.
#ifndef OPENMOED_API_FIELDS_H
#define OPENMOED_API_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "server/api.h"

#define API_PATH_MAX 64

/* What a body may contain. Fields that are accepted without effect are still checked for their
 * type; unsupported ones are refused unless their value asks for nothing. */
enum api_field_rule {
    API_FIELD_READ, /* some reader looks at it */
    API_FIELD_STRING,
    API_FIELD_BOOL,
    API_FIELD_OBJECT,
    API_FIELD_UNSUPPORTED,
    API_FIELD_REPLACED, /* refused too; `harmless` names the field to use */
};
struct api_field {
    const char *name; /* NULL ends a table */
    enum api_field_rule rule;
    const char *harmless; /* UNSUPPORTED: JSON text of the one value that is accepted, or NULL */
};

/* Parses a body that must be one JSON object; *out is the caller's (cJSON_Delete). */
int api_json_object(cJSON **out, const char *body, size_t n, const struct api_env *env,
                    struct api_error *err) CFG_WARN_UNUSED;
/* Every field of o must stand in one of the two tables (b may be NULL). */
int api_check_fields(const cJSON *o, const char *path, const struct api_field *a,
                     const struct api_field *b, struct api_error *err) CFG_WARN_UNUSED;

/* NULL when the field is absent or null. */
const cJSON *api_field(const cJSON *o, const char *name);
/* path.name, cut to API_PATH_MAX. Returns buf. */
const char *api_path(char buf[API_PATH_MAX], const char *path, const char *name);

int api_wrong_type(struct api_error *err, const char *param, const char *expected,
                   const cJSON *got);
int api_missing(struct api_error *err, const char *param);
int api_no_memory(struct api_error *err);

int api_get_bool(const cJSON *o, const char *path, const char *name, bool *out,
                 struct api_error *err) CFG_WARN_UNUSED;
int api_get_float(const cJSON *o, const char *name, double lo, double hi, float *out,
                  struct api_error *err) CFG_WARN_UNUSED;
int api_get_int(const cJSON *o, const char *name, int64_t lo, int64_t hi, int64_t *out,
                struct api_error *err) CFG_WARN_UNUSED;
/* The string of a required field: borrowed from the tree. */
int api_get_string(const cJSON *o, const char *path, const char *name, const char **out,
                   struct api_error *err) CFG_WARN_UNUSED;
/* `list` as token ids in [0, vocab) into ids, which has room for all of its elements. */
int api_id_list(const cJSON *list, const char *param, int vocab, int32_t *ids,
                struct api_error *err) CFG_WARN_UNUSED;
/* "model": required, and the served one (404 otherwise). */
int api_check_model(const cJSON *o, bool required, const struct api_env *env,
                    struct api_error *err) CFG_WARN_UNUSED;

#endif
