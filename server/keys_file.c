// SPDX-License-Identifier: Apache-2.0
//
// keys_file.c: from the text of a key file to a set of tenants (keys.h). Anything that is not
// exactly as it should be refuses the whole file, since a limit that is silently not there costs
// more than a start that fails. No message repeats a key or a hash: people put plain keys where
// hashes belong. Loop thread only.
#include "server/keys.h"

#include <cjson/cJSON.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
#define MAX_LIMIT       1e12
#define MIN_WEIGHT      0.001
#define MAX_WEIGHT      1000.0

static const char default_name[] = "default";

/* One reading: where we are in the file, for messages. */
struct reader {
    const char *path;
    struct keys_set *set;
    struct keys_tenant *tenant;
    const char *field;
    struct error *err;
};

CFG_PRINTF(2, 3) static int wrong(const struct reader *rd, const char *fmt, ...)
{
    char what[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (rd->field == NULL)
        return cfg_fail(rd->err, CFG_EINVAL, "%s: tenants[%zu]: %s", rd->path, rd->tenant->place,
                        what);
    return cfg_fail(rd->err, CFG_EINVAL, "%s: tenants[%zu].%.60s: %s", rd->path, rd->tenant->place,
                    rd->field, what);
}

static int no_memory(struct error *err)
{
    return cfg_fail(err, CFG_ENOMEM, "out of memory");
}

int keys_hash(const char *key, uint64_t out[4], struct error *err)
{
    _Static_assert(4 * sizeof out[0] == 32, "SHA-256 has 32 bytes");
    int rc = gnutls_hash_fast(GNUTLS_DIG_SHA256, key, strlen(key), out);
    if (rc == 0) return CFG_OK;
    return cfg_fail(err, CFG_EINTERNAL, "SHA-256: %s", gnutls_strerror(rc));
}

/* ---- fields ---------------------------------------------------------------------------------- */

static int read_name(struct reader *rd, const cJSON *v)
{
    if (!cJSON_IsString(v)) return wrong(rd, "expected a string");
    const size_t n = strlen(v->valuestring);
    if (n == 0 || n > KEYS_MAX_NAME || v->valuestring[strspn(v->valuestring, NAME_CHARACTERS)])
        return wrong(rd, "expected 1 to %d letters, digits or . _ -", KEYS_MAX_NAME);
    memcpy(rd->tenant->name, v->valuestring, n + 1);
    return CFG_OK;
}

static int read_limit(struct reader *rd, const cJSON *v, int64_t *out)
{
    const double x = v->valuedouble;
    if (!cJSON_IsNumber(v) || x < 0 || x > MAX_LIMIT || floor(x) != x)
        return wrong(rd, "expected a whole number between 0 and %.0f (0: no limit)", MAX_LIMIT);
    *out = (int64_t)x;
    return CFG_OK;
}

static int read_weight(struct reader *rd, const cJSON *v)
{
    const double x = v->valuedouble;
    if (!cJSON_IsNumber(v) || !(x >= MIN_WEIGHT && x <= MAX_WEIGHT))
        return wrong(rd, "expected a number between %g and %g", MIN_WEIGHT, MAX_WEIGHT);
    rd->tenant->rules.weight = (float)x;
    return CFG_OK;
}

static int read_models(struct reader *rd, const cJSON *v)
{
    struct keys_rules *rules = &rd->tenant->rules;
    const int n = cJSON_GetArraySize(v);
    if (!cJSON_IsArray(v) || n < 1 || n > KEYS_MAX_MODELS)
        return wrong(rd, "expected an array of 1 to %d names (without it: all models)",
                     KEYS_MAX_MODELS);
    rules->models = calloc((size_t)n, sizeof *rules->models);
    if (rules->models == NULL) return no_memory(rd->err);
    for (const cJSON *m = v->child; m != NULL; m = m->next) {
        if (!cJSON_IsString(m) || m->valuestring[0] == '\0')
            return wrong(rd, "element %zu is not a name", rules->n_models);
        rules->models[rules->n_models] = strdup(m->valuestring);
        if (rules->models[rules->n_models++] == NULL) return no_memory(rd->err);
    }
    return CFG_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* sha256: and 64 hex digits, nothing else. */
static bool parse_hash(const char *text, uint64_t out[4])
{
    static const char prefix[] = "sha256:";
    unsigned char bytes[32];
    if (strncmp(text, prefix, sizeof prefix - 1) != 0) return false;
    text += sizeof prefix - 1;
    if (strlen(text) != 2 * sizeof bytes) return false;
    for (size_t i = 0; i < sizeof bytes; i++) {
        const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        bytes[i] = (unsigned char)(high << 4 | low);
    }
    memcpy(out, bytes, sizeof bytes);
    return true;
}

/* Room for n more keys. */
static int grow_keys(struct reader *rd, size_t n)
{
    struct keys_set *set = rd->set;
    if (n > KEYS_MAX_KEYS - set->n_keys)
        return cfg_fail(rd->err, CFG_EINVAL, "%s: more than %d keys", rd->path, KEYS_MAX_KEYS);
    struct keys_key *more = realloc(set->keys, (set->n_keys + n + 1) * sizeof *more);
    if (more == NULL) return no_memory(rd->err);
    set->keys = more;
    return CFG_OK;
}

static int read_keys(struct reader *rd, const cJSON *v)
{
    struct keys_set *set = rd->set;
    uint64_t empty[4];
    if (!cJSON_IsArray(v)) return wrong(rd, "expected an array of hashes");
    int rc = grow_keys(rd, (size_t)cJSON_GetArraySize(v));
    if (rc == CFG_OK) rc = keys_hash("", empty, rd->err);
    size_t place = 0;
    for (const cJSON *k = v->child; k != NULL && rc == CFG_OK; k = k->next, place++) {
        struct keys_key *key = &set->keys[set->n_keys];
        *key = (struct keys_key){.tenant = rd->tenant, .place = place};
        if (!cJSON_IsString(k) || !parse_hash(k->valuestring, key->hash))
            rc = wrong(rd, "element %zu is not sha256: and 64 hex digits", place);
        else if (memcmp(key->hash, empty, sizeof empty) == 0)
            rc = wrong(rd, "element %zu is the hash of an empty key", place);
        else
            set->n_keys++;
    }
    return rc;
}

static int read_field(struct reader *rd, const cJSON *v)
{
    struct keys_rules *rules = &rd->tenant->rules;
    rd->field = v->string;
    if (strcmp(v->string, "name") == 0) return read_name(rd, v);
    if (strcmp(v->string, "keys") == 0) return read_keys(rd, v);
    if (strcmp(v->string, "weight") == 0) return read_weight(rd, v);
    if (strcmp(v->string, "models") == 0) return read_models(rd, v);
    if (strcmp(v->string, "max_concurrent_requests") == 0)
        return read_limit(rd, v, &rules->max_concurrent_requests);
    if (strcmp(v->string, "requests_per_minute") == 0)
        return read_limit(rd, v, &rules->requests_per_minute);
    if (strcmp(v->string, "tokens_per_minute") == 0)
        return read_limit(rd, v, &rules->tokens_per_minute);
    return wrong(rd, "unknown field");
}

/* ---- tenants --------------------------------------------------------------------------------- */

static struct keys_tenant *add_tenant(struct keys_set *set)
{
    struct keys_tenant *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->refs = 1;
    t->rules.weight = 1;
    t->place = set->n_tenants;
    set->tenants[set->n_tenants++] = t;
    return t;
}

static int read_tenant(struct reader *rd, const cJSON *o)
{
    rd->tenant = add_tenant(rd->set);
    rd->field = NULL;
    if (rd->tenant == NULL) return no_memory(rd->err);
    if (!cJSON_IsObject(o)) return wrong(rd, "expected an object");
    for (const cJSON *v = o->child; v != NULL; v = v->next) {
        int rc = read_field(rd, v);
        if (rc != CFG_OK) return rc;
    }
    rd->field = NULL;
    if (cJSON_GetObjectItemCaseSensitive(o, "name") == NULL)
        return wrong(rd, "the field name is missing");
    if (cJSON_GetObjectItemCaseSensitive(o, "keys") == NULL)
        return wrong(rd, "the field keys is missing");
    return CFG_OK;
}

static int read_root(struct reader *rd, const cJSON *root)
{
    const cJSON *list = cJSON_IsObject(root) ? root->child : NULL;
    if (list == NULL || list->next != NULL || strcmp(list->string, "tenants") != 0 ||
        !cJSON_IsArray(list))
        return cfg_fail(rd->err, CFG_EINVAL,
                        "%s: expected one object with one field, the array tenants", rd->path);
    const int n = cJSON_GetArraySize(list);
    if (n > KEYS_MAX_TENANTS)
        return cfg_fail(rd->err, CFG_EINVAL, "%s: %d tenants, at most %d are allowed", rd->path, n,
                        KEYS_MAX_TENANTS);
    int rc = CFG_OK;
    for (const cJSON *o = list->child; o != NULL && rc == CFG_OK; o = o->next)
        rc = read_tenant(rd, o);
    return rc;
}

/* --api-key is one more key of the tenant "default", which the file may have or not. */
static int add_api_key(struct reader *rd, const char *api_key)
{
    struct keys_set *set = rd->set;
    struct keys_tenant *t = NULL;
    for (size_t i = 0; i < set->n_tenants && t == NULL; i++)
        // NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker) ; n_tenants are there
        if (strcmp(set->tenants[i]->name, default_name) == 0) t = set->tenants[i];
    if (t == NULL) t = add_tenant(set);
    if (t == NULL) return no_memory(rd->err);
    memcpy(t->name, default_name, sizeof default_name);
    int rc = grow_keys(rd, 1);
    if (rc != CFG_OK) return rc;
    struct keys_key *key = &set->keys[set->n_keys];
    *key = (struct keys_key){.tenant = t, .place = SIZE_MAX};
    rc = keys_hash(api_key, key->hash, rd->err);
    if (rc == CFG_OK) set->n_keys++;
    return rc;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    const struct keys_tenant *const *s = a, *const *t = b;
    return strcmp((*s)->name, (*t)->name);
}

static int compare_hashes(const void *a, const void *b)
{
    const struct keys_key *s = a, *t = b;
    return memcmp(s->hash, t->hash, sizeof s->hash);
}

static int same_name(const struct reader *rd, const struct keys_tenant *s,
                     const struct keys_tenant *t)
{
    const bool swapped = s->place > t->place;
    return cfg_fail(rd->err, CFG_EINVAL, "%s: tenants[%zu] and tenants[%zu] are both \"%s\"",
                    rd->path, swapped ? t->place : s->place, swapped ? s->place : t->place,
                    t->name);
}

static int same_hash(const struct reader *rd, const struct keys_key *k, const struct keys_key *l)
{
    if (k->place == SIZE_MAX || l->place == SIZE_MAX)
        return cfg_fail(rd->err, CFG_EINVAL, "%s: the key of --api-key stands in the file too",
                        rd->path);
    const size_t s = k->tenant->place, t = l->tenant->place;
    if (s > t || (s == t && k->place > l->place)) return same_hash(rd, l, k);
    return cfg_fail(rd->err, CFG_EINVAL,
                    "%s: tenants[%zu].keys: element %zu stands before, as element %zu of "
                    "tenants[%zu].keys",
                    rd->path, t, l->place, k->place, s);
}

/* Brings both lists into their order, in which equals are neighbours. */
static int put_in_order(struct reader *rd)
{
    struct keys_set *set = rd->set;
    if (set->n_tenants > 0)
        // NOLINTNEXTLINE(bugprone-sizeof-expression) ; a list of pointers
        qsort(set->tenants, set->n_tenants, sizeof *set->tenants, compare_names);
    if (set->n_keys > 0) qsort(set->keys, set->n_keys, sizeof *set->keys, compare_hashes);
    for (size_t i = 1; i < set->n_tenants; i++)
        if (compare_names(&set->tenants[i - 1], &set->tenants[i]) == 0)
            return same_name(rd, set->tenants[i - 1], set->tenants[i]);
    for (size_t i = 1; i < set->n_keys; i++)
        if (compare_hashes(&set->keys[i - 1], &set->keys[i]) == 0)
            return same_hash(rd, &set->keys[i - 1], &set->keys[i]);
    return CFG_OK;
}

static void warn_of_access(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return;
    if ((st.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0)
        cfg_log(CFG_LOG_WARN, "%s: other users may read or change it (mode %o): chmod 600", path,
                (unsigned)(st.st_mode & 0777));
}

static int read_file(struct reader *rd)
{
    static const struct cfg_json_limits limits = {4 << 20, 100000, 4};
    char *text = NULL;
    size_t n = 0;
    cJSON *root = NULL;
    int rc = cfg_read_file(rd->path, limits.max_bytes, &text, &n, rd->err);
    if (rc != CFG_OK) return rc;
    rc = cfg_json_parse(&root, text, n, &limits, rd->err);
    free(text);
    if (rc != CFG_OK) return cfg_fail(rd->err, rc, "%s: %s", rd->path, rd->err->message);
    warn_of_access(rd->path);
    rc = read_root(rd, root);
    cJSON_Delete(root);
    return rc;
}

int keys_set_read(struct keys_set *out, const char *path, const char *api_key, struct error *err)
{
    struct reader rd = {.path = path != NULL ? path : "--api-key", .set = out, .err = err};
    *out = (struct keys_set){0};
    // NOLINTNEXTLINE(bugprone-sizeof-expression) ; a list of pointers
    out->tenants = calloc(KEYS_MAX_TENANTS + 1, sizeof *out->tenants);
    if (out->tenants == NULL) return no_memory(err);
    int rc = CFG_OK;
    if (path != NULL) rc = read_file(&rd);
    if (rc == CFG_OK && api_key != NULL) rc = add_api_key(&rd, api_key);
    if (rc == CFG_OK) rc = put_in_order(&rd);
    if (rc != CFG_OK) keys_set_free(out);
    return rc;
}

void keys_rules_free(struct keys_rules *rules)
{
    for (size_t i = 0; i < rules->n_models; i++) free(rules->models[i]);
    free(rules->models);
    *rules = (struct keys_rules){0};
}

void keys_set_free(struct keys_set *set)
{
    for (size_t i = 0; i < set->n_tenants; i++) keys_release(set->tenants[i]);
    free(set->tenants);
    free(set->keys);
    *set = (struct keys_set){0};
}
