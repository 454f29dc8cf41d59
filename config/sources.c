// SPDX-License-Identifier: Apache-2.0
//
// sources.c: where options come from. The order of calls in cfg_options_parse is the precedence:
// defaults, then the file, the environment and the flags, each over what was there. Every value is
// checked, also one that a stronger source replaces, and every message begins with its source:
// `--port: ...`, `OPENMOED_PORT: ...`, `FILE: key "port": ...`.
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/options.h"

static const char env_prefix[] = "OPENMOED_";
static const char cuda_library[] = "OPENMOED_CUDA_LIBRARY"; /* no option: engine/cuda_load.c */
static const double max_exact = 9007199254740992.0; /* 2^53: doubles skip integers above it */

/* ---- flags ----------------------------------------------------------------------------------- */

struct flags {
    int argc;
    char *const *argv;
    int at; /* index of the next word */
};

/* Takes one flag with its value (NULL for --help and --version). *o is NULL at the end. */
static int next_flag(struct flags *f, const struct option **o, const char **value,
                     struct error *err)
{
    *o = NULL;
    if (f->at >= f->argc) return CFG_OK;
    const char *word = f->argv[f->at++];
    if (word[0] != '-')
        return cfg_fail(err, CFG_EINVAL, "\"%.80s\": unexpected argument, see --help", word);

    size_t len = strcspn(word, "=");
    const char *inline_value = word[len] ? word + len + 1 : NULL;
    *o = len > 2 && word[1] == '-' && !memchr(word, '_', len) ? cfg_option_find(word + 2, len - 2)
                                                              : NULL;
    if (!*o)
        return cfg_fail(err, CFG_EINVAL, "%.*s: unknown option, see --help",
                        len > 80 ? 80 : (int)len, word);
    if ((*o)->kind == OPTION_HELP || (*o)->kind == OPTION_VERSION) {
        *value = NULL;
        if (inline_value) return cfg_fail(err, CFG_EINVAL, "--%s: takes no value", (*o)->name);
        return CFG_OK;
    }
    *value = inline_value;
    if (!*value && f->at < f->argc && strncmp(f->argv[f->at], "--", 2) != 0)
        *value = f->argv[f->at++];
    if (!*value) return cfg_fail(err, CFG_EINVAL, "--%s: the value is missing", (*o)->name);
    return CFG_OK;
}

static int print_and_exit(const struct option *o, struct error *err)
{
    struct cfg_buf text = {0};
    if (o->kind == OPTION_HELP)
        cfg_option_help(&text);
    else
        cfg_buf_puts(&text, "openmoed " OPENMOED_VERSION "\n");
    int rc = CFG_PARSE_EXIT;
    if (text.failed)
        rc = cfg_fail(err, CFG_ENOMEM, "out of memory");
    else if (fwrite(text.data, 1, text.len, stdout) != text.len || fflush(stdout) != 0)
        rc = cfg_fail(err, CFG_EIO, "--%s: stdout can't be written", o->name);
    cfg_buf_free(&text);
    return rc;
}

/* The first walk over the flags: their form, --help and --version, and the name of the file. */
static int scan_flags(int argc, char *const *argv, const char **config, struct error *err)
{
    struct flags f = {.argc = argc, .argv = argv, .at = 1};
    const struct option *o;
    const char *value;
    int rc;
    while ((rc = next_flag(&f, &o, &value, err)) == CFG_OK && o) {
        if (!value) return print_and_exit(o, err);
        if (o->kind == OPTION_CONFIG) *config = value;
    }
    return rc;
}

static int apply_flags(struct cfg_options *opt, int argc, char *const *argv, struct error *err)
{
    struct flags f = {.argc = argc, .argv = argv, .at = 1};
    const struct option *o;
    const char *value;
    int rc;
    while ((rc = next_flag(&f, &o, &value, err)) == CFG_OK && o) {
        rc = cfg_option_set(opt, o, value, err);
        if (rc != CFG_OK) return cfg_fail(err, rc, "--%s: %s", o->name, err->message);
    }
    return rc;
}

/* ---- environment ----------------------------------------------------------------------------- */

/* The option that a variable sets: OPENMOED_ and the name in capitals. */
static const struct option *find_variable(const char *name, size_t n)
{
    for (size_t i = 0; i < cfg_option_count; i++) {
        const struct option *o = &cfg_option_table[i];
        char known[64];
        cfg_option_env_name(o, known);
        if (o->kind != OPTION_HELP && o->kind != OPTION_VERSION && strlen(known) == n &&
            memcmp(known, name, n) == 0)
            return o;
    }
    return NULL;
}

/* Kubernetes sets OPENMOED_PORT and others in pods beside a Service of that name. */
static bool is_service_link(const char *entry, const char *value)
{
    return strncmp(entry, "OPENMOED_SERVICE_", 17) == 0 ||
           strncmp(entry, "OPENMOED_PORT_", 14) == 0 || strncmp(value, "tcp://", 6) == 0;
}

static int apply_variable(struct cfg_options *opt, const char *entry, struct error *err)
{
    size_t n = strcspn(entry, "=");
    if (!entry[n]) return CFG_OK; /* no assignment at all */
    if (n == sizeof cuda_library - 1 && memcmp(entry, cuda_library, n) == 0) return CFG_OK;
    const char *value = entry + n + 1;
    const struct option *o = find_variable(entry, n);
    int rc = o ? cfg_option_set(opt, o, value, err)
               : cfg_fail(err, CFG_EINVAL, "unknown variable, see --help");
    if (rc == CFG_OK) return rc;
    const char *hint = is_service_link(entry, value) ? " (if Kubernetes sets this for a Service: "
                                                       "enableServiceLinks: false prevents it)"
                                                     : "";
    return cfg_fail(err, rc, "%.*s: %s%s", n > 80 ? 80 : (int)n, entry, err->message, hint);
}

static int apply_environment(struct cfg_options *opt, char *const *envp, struct error *err)
{
    for (size_t i = 0; envp[i]; i++) {
        if (strncmp(envp[i], env_prefix, sizeof env_prefix - 1) != 0) continue;
        int rc = apply_variable(opt, envp[i], err);
        if (rc != CFG_OK) return rc;
    }
    return CFG_OK;
}

static const char *variable(char *const *envp, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; envp[i]; i++) {
        if (strncmp(envp[i], name, n) == 0 && envp[i][n] == '=') return envp[i] + n + 1;
    }
    return NULL;
}

/* ---- file ------------------------------------------------------------------------------------ */

static const char *type_name(const cJSON *value)
{
    return cJSON_IsString(value)   ? "a string"
           : cJSON_IsNumber(value) ? "a number"
           : cJSON_IsBool(value)   ? "a boolean"
           : cJSON_IsNull(value)   ? "null"
           : cJSON_IsArray(value)  ? "an array"
                                   : "an object";
}

/* Writes a number as a flag would give it, so that one rule judges both. */
static int number_text(double v, char out[32], struct error *err)
{
    if (v > max_exact || v < -max_exact)
        return cfg_fail(err, CFG_EINVAL, "numbers above 2^53 must be written as a string");
    bool whole = v == (double)(int64_t)v;
    snprintf(out, 32, whole ? "%.0f" : "%.15g", v);
    return CFG_OK;
}

static int apply_entry(struct cfg_options *opt, const cJSON *entry, bool *seen, struct error *err)
{
    const struct option *o = cfg_option_find(entry->string, strlen(entry->string));
    if (!o || o->kind >= OPTION_CONFIG) return cfg_fail(err, CFG_EINVAL, "unknown key, see --help");
    size_t index = (size_t)(o - cfg_option_table);
    if (seen[index]) return cfg_fail(err, CFG_EINVAL, "stands twice, in two spellings");
    seen[index] = true;

    bool numeric = o->kind == OPTION_INT || o->kind == OPTION_SIZE || o->kind == OPTION_U64 ||
                   o->kind == OPTION_SHARE;
    if (cJSON_IsString(entry)) return cfg_option_set(opt, o, entry->valuestring, err);
    if (!numeric || !cJSON_IsNumber(entry))
        return cfg_fail(err, CFG_EINVAL, "expected %s, got %s",
                        numeric ? "a number or a string" : "a string", type_name(entry));
    char text[32];
    int rc = number_text(entry->valuedouble, text, err);
    return rc == CFG_OK ? cfg_option_set(opt, o, text, err) : rc;
}

static int apply_entries(struct cfg_options *opt, const char *path, const cJSON *root,
                         struct error *err)
{
    if (!cJSON_IsObject(root))
        return cfg_fail(err, CFG_EINVAL, "%s: expected one JSON object, got %s", path,
                        type_name(root));
    bool *seen = calloc(cfg_option_count, sizeof *seen);
    if (!seen) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    int rc = CFG_OK;
    for (const cJSON *e = root->child; e && rc == CFG_OK; e = e->next) {
        rc = apply_entry(opt, e, seen, err);
        if (rc != CFG_OK) cfg_fail(err, rc, "%s: key \"%.80s\": %s", path, e->string, err->message);
    }
    free(seen);
    return rc;
}

static int apply_file(struct cfg_options *opt, const char *path, struct error *err)
{
    static const struct cfg_json_limits limits = {1 << 20, 1000, 8};
    char *text;
    size_t n;
    int rc = cfg_read_file(path, limits.max_bytes, &text, &n, err);
    if (rc != CFG_OK) return rc;
    cJSON *root = NULL;
    rc = cfg_json_parse(&root, text, n, &limits, err);
    free(text);
    if (rc != CFG_OK) return cfg_fail(err, rc, "%s: %s", path, err->message);
    rc = apply_entries(opt, path, root, err);
    cJSON_Delete(root);
    return rc;
}

/* ---- all together ---------------------------------------------------------------------------- */

static int apply_defaults(struct cfg_options *opt, struct error *err)
{
    for (size_t i = 0; i < cfg_option_count; i++) {
        const struct option *o = &cfg_option_table[i];
        if (!o->initial) continue;
        int rc = cfg_option_set(opt, o, o->initial, err);
        if (rc != CFG_OK) return cfg_fail(err, rc, "default of --%s: %s", o->name, err->message);
    }
    return CFG_OK;
}

/* The model is served under the last part of its path, unless it was given a name. */
static int name_model(struct cfg_options *opt, struct error *err)
{
    if (opt->served_model_name) return CFG_OK;
    size_t end = strlen(opt->model);
    while (end > 0 && opt->model[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && opt->model[start - 1] != '/') start--;
    bool nameless = strspn(opt->model + start, "./") >= end - start; /* "/", ".", ".." */
    opt->served_model_name =
        nameless ? strdup("openmoe") : strndup(opt->model + start, end - start);
    return opt->served_model_name ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "out of memory");
}

int cfg_options_parse(struct cfg_options *opt, int argc, char *const *argv, char *const *envp,
                      struct error *err)
{
    *opt = (struct cfg_options){0};
    const char *config = variable(envp, "OPENMOED_CONFIG");
    int rc = scan_flags(argc, argv, &config, err);
    if (rc != CFG_OK) return rc;

    rc = apply_defaults(opt, err);
    /* An empty name is reported by its own source below. */
    if (rc == CFG_OK && config && *config) rc = apply_file(opt, config, err);
    if (rc == CFG_OK) rc = apply_environment(opt, envp, err);
    if (rc == CFG_OK) rc = apply_flags(opt, argc, argv, err);
    if (rc == CFG_OK) rc = name_model(opt, err);
    if (rc != CFG_OK) cfg_options_free(opt);
    return rc;
}
