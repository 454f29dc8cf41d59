// SPDX-License-Identifier: Apache-2.0
//
// schema_scalar.c: the JSON texts of strings, numbers and listed values.
//
// Where characters matter (lengths, patterns, formats, names of properties) a string is written the
// shortest way: an escape only where a character needs one. Elsewhere all escapes are allowed.
#include "engine/grammar/schema.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEX         "[0-9a-fA-F]"
#define MAX_INTEGER 9999999999999999999u /* 19 digits */
#define MAX_EXACT   9007199254740992.0   /* 2^53: integers up to it are exact */

static const char any_number[] =
    "-?(?:0|[1-9][0-9]{0,18})(?:\\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?";
static const char any_integer[] = "0|-?[1-9][0-9]{0,18}";
/* What follows the opening quote; \u escapes are characters: no NUL, surrogates in pairs. */
static const char string_rest[] =
    "(?:[^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\/bfnrt]"
    "|\\\\u(?:[1-9abcefABCEF]" HEX "{3}|[dD][0-7]" HEX "{2}|0[1-9a-fA-F]" HEX "{2}"
    "|00[1-9a-fA-F]" HEX "|000[1-9a-fA-F])"
    "|\\\\u[dD][89abAB]" HEX "{2}\\\\u[dD][c-fC-F]" HEX "{2})*\"";

/* Formats, to the letter of RFC 3339, 4122 and 2673 where they have one. */
#define DATE                                                                                       \
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]"         \
    "|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])"     \
    "|(?:[02468][048]|[13579][26])00)-02-29)"
#define TIME                                                                                       \
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"                                 \
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define OCTET "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"

static const struct {
    const char *name, *pattern;
} formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"uuid", HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}"},
    {"ipv4", OCTET "(?:\\." OCTET "){3}"},
    {"email", "[A-Za-z0-9_%+-]+(?:\\.[A-Za-z0-9_%+-]+){0,8}@"
              "(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\\.){1,4}[A-Za-z]{2,12}"},
};

static void regex(struct schema *c, const char *what, const char *text, enum nfa_coding coding,
                  bool search, uint32_t from, uint32_t to)
{
    const struct regex_options opt = {what, coding, search};
    regex_read(c->n, &opt, text, strlen(text), from, to);
}

/* ---- shared rules ---------------------------------------------------------------------------- */

static void read_any(struct schema *c, uint32_t from, uint32_t to)
{
    nfa_literal(c->n, from, to, "null", 4);
    nfa_literal(c->n, from, to, "true", 4);
    nfa_literal(c->n, from, to, "false", 5);
    nfa_call(c->n, from, to, schema_shared(c, SHARED_NUMBER));
    nfa_call(c->n, from, to, schema_shared(c, SHARED_STRING));
    schema_array(c, NULL, from, to);
    schema_object(c, NULL, from, to);
}

uint32_t schema_shared(struct schema *c, enum schema_shared which)
{
    static const char *const names[] = {"any value", "string", "string's rest", "number",
                                        "integer"};
    if (c->shared[which] != NFA_NONE) return c->shared[which];
    const uint32_t rule = nfa_rule(c->n, names[which], strlen(names[which]));
    if (c->n->failed) return 0;
    const uint32_t from = c->n->rules[rule].start, to = c->n->rules[rule].end;
    c->shared[which] = rule;
    if (which == SHARED_ANY)
        read_any(c, from, to);
    else if (which == SHARED_STRING)
        nfa_call(c->n, nfa_text(c->n, from, "\""), to, schema_shared(c, SHARED_STRING_REST));
    else
        regex(c, names[which],
              which == SHARED_NUMBER    ? any_number
              : which == SHARED_INTEGER ? any_integer
                                        : string_rest,
              NFA_PLAIN, false, from, to);
    return rule;
}

/* ---- strings --------------------------------------------------------------------------------- */

static const char *text_of(struct schema *c, const cJSON *node, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(node, key);
    if (v && !cJSON_IsString(v)) schema_fail(c, "%s must be a string", key);
    return v && cJSON_IsString(v) ? v->valuestring : NULL;
}

static void read_format(struct schema *c, const char *format, uint32_t from, uint32_t to)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(formats[i].name, format) != 0) continue;
        regex(c, format, formats[i].pattern, NFA_JSON, false, from, to);
        return;
    }
    schema_fail(c, "the format \"%.60s\" is not supported", format);
}

static void read_pattern(struct schema *c, const char *pattern, uint32_t from, uint32_t to)
{
    const size_t before = schema_enter(c, "pattern", NULL, -1);
    char what[200];
    snprintf(what, sizeof what, "schema: %.*s", (int)c->path.len, c->path.data ? c->path.data : "");
    what[cfg_utf8_complete(what, strlen(what))] = '\0';
    regex(c, what, pattern, NFA_JSON, true, from, to);
    schema_leave(c, before);
}

/* min up to max characters (max < 0: any number). */
static void read_length(struct schema *c, int min, int max, uint32_t from, uint32_t to)
{
    struct runes all = {0};
    if (max >= 0 && max < min) {
        schema_fail(c, "minLength is larger than maxLength");
        return;
    }
    runes_add(&all, 0, RUNE_MAX);
    struct nfa_part part = nfa_begin(c->n);
    part.end = nfa_state(c->n);
    nfa_runes(c->n, part.start, part.end, &all, NFA_JSON);
    part = nfa_repeat(c->n, part, min, max);
    nfa_epsilon(c->n, from, part.start);
    nfa_epsilon(c->n, part.end, to);
}

void schema_string(struct schema *c, const cJSON *node, uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    const int min = schema_count(c, node, "minLength"), max = schema_count(c, node, "maxLength");
    const char *pattern = text_of(c, node, "pattern"), *format = text_of(c, node, "format");
    if (!pattern && !format && min <= 0 && max < 0) {
        nfa_call(n, from, to, schema_shared(c, SHARED_STRING));
        return;
    }
    if ((pattern != NULL) + (format != NULL) + (min > 0 || max >= 0) > 1) {
        schema_fail(c, "only one of pattern, format and minLength/maxLength is supported at once");
        return;
    }
    const uint32_t inner = nfa_text(n, from, "\""), last = nfa_state(n);
    nfa_bytes(n, last, to, '"', '"');
    if (pattern)
        read_pattern(c, pattern, inner, last);
    else if (format)
        read_format(c, format, inner, last);
    else
        read_length(c, min > 0 ? min : 0, max, inner, last);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* The decimals of lo up to hi, which have `len` digits both. A state knows how many digits were
 * written and whether they are all lo's, all hi's, both or neither. */
static void digits_of_length(struct nfa *n, uint32_t from, uint32_t to, uint64_t lo, uint64_t hi,
                             int len)
{
    char a[24], b[24];
    uint32_t now[4] = {NFA_NONE, NFA_NONE, NFA_NONE, from};
    snprintf(a, sizeof a, "%0*llu", len, (unsigned long long)lo);
    snprintf(b, sizeof b, "%0*llu", len, (unsigned long long)hi);
    for (int i = 0; i < len && !n->failed; i++) {
        uint32_t next[4] = {NFA_NONE, NFA_NONE, NFA_NONE, NFA_NONE};
        for (unsigned s = 0; s < 4; s++) {
            if (now[s] == NFA_NONE) continue;
            const char first = s & 1 ? a[i] : '0', last = s & 2 ? b[i] : '9';
            for (char d = first; d <= last; d++) {
                const unsigned t =
                    ((s & 1) && d == a[i] ? 1u : 0) | ((s & 2) && d == b[i] ? 2u : 0);
                if (next[t] == NFA_NONE) next[t] = i + 1 < len ? nfa_state(n) : to;
                nfa_bytes(n, now[s], next[t], (unsigned char)d, (unsigned char)d);
            }
        }
        memcpy(now, next, sizeof now);
    }
}

static void digits(struct nfa *n, uint32_t from, uint32_t to, uint64_t lo, uint64_t hi)
{
    uint64_t first = 0, last = 9;
    for (int len = 1; len <= 19; len++) {
        const uint64_t a = lo > first ? lo : first, b = hi < last ? hi : last;
        if (a <= b) digits_of_length(n, from, to, a, b, len);
        first = last + 1;
        last = len < 18 ? last * 10 + 9 : MAX_INTEGER;
    }
}

/* Bounds on a number: of integers, inclusive; infinite where there is none. */
struct bounds {
    double lo, hi;
};

/* The value of a bound; NAN when it is absent. */
static double bound_of(struct schema *c, const cJSON *node, const char *key, bool integer)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(node, key);
    if (!v) return (double)NAN;
    if (!cJSON_IsNumber(v))
        schema_fail(c, "%s must be a number", key);
    else if (fabs(v->valuedouble) > MAX_EXACT)
        schema_fail(c, "%s is larger than 2^53, which is not supported", key);
    else if (!integer && v->valuedouble != floor(v->valuedouble))
        schema_fail(c, "%s of a number must be a whole one here", key);
    else if (!integer && !strncmp(key, "exclusive", 9))
        schema_fail(c, "%s is supported for integers only", key);
    return v->valuedouble;
}

static struct bounds bounds_of(struct schema *c, const cJSON *node, bool integer)
{
    /* A comparison with NAN, which is what an absent bound is, leaves things as they are. */
    const double min = ceil(bound_of(c, node, "minimum", integer));
    const double above = floor(bound_of(c, node, "exclusiveMinimum", integer)) + 1;
    const double max = floor(bound_of(c, node, "maximum", integer));
    const double below = ceil(bound_of(c, node, "exclusiveMaximum", integer)) - 1;
    struct bounds b = {-INFINITY, INFINITY};
    if (min > b.lo) b.lo = min;
    if (above > b.lo) b.lo = above;
    if (max < b.hi) b.hi = max;
    if (below < b.hi) b.hi = below;
    if (b.lo > b.hi) schema_fail(c, "no number lies between its bounds");
    return b;
}

static uint64_t magnitude(double x)
{
    return isinf(x) ? MAX_INTEGER : (uint64_t)fabs(x);
}

/* lo up to hi without a sign; a number's may have a fraction as long as they stay below hi. */
static void unsigned_range(struct schema *c, bool integer, uint64_t lo, uint64_t hi, bool open,
                           uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    if (integer || open) {
        const uint32_t whole = integer ? to : nfa_state(n);
        digits(n, from, whole, lo, hi);
        if (!integer) regex(c, "fraction", "(?:\\.[0-9]{1,18})?", NFA_PLAIN, false, whole, to);
        return;
    }
    const uint32_t whole = nfa_state(n), last = nfa_state(n);
    if (hi > lo) digits(n, from, whole, lo, hi - 1);
    digits(n, from, last, hi, hi);
    regex(c, "fraction", "(?:\\.[0-9]{1,18})?", NFA_PLAIN, false, whole, to);
    regex(c, "fraction", "(?:\\.0{1,18})?", NFA_PLAIN, false, last, to);
}

void schema_number(struct schema *c, const cJSON *node, bool integer, uint32_t from, uint32_t to)
{
    const struct bounds b = bounds_of(c, node, integer);
    if (isinf(b.lo) && isinf(b.hi)) {
        nfa_call(c->n, from, to, schema_shared(c, integer ? SHARED_INTEGER : SHARED_NUMBER));
        return;
    }
    if (c->n->failed) return;
    if (b.hi >= 0)
        unsigned_range(c, integer, b.lo > 0 ? magnitude(b.lo) : 0, magnitude(b.hi), isinf(b.hi),
                       from, to);
    if (b.lo < 0) {
        const uint32_t minus = nfa_text(c->n, from, "-");
        unsigned_range(c, integer,
                       b.hi < 0  ? magnitude(b.hi)
                       : integer ? 1
                                 : 0,
                       magnitude(b.lo), isinf(b.lo), minus, to);
    }
}

/* ---- enum, const ----------------------------------------------------------------------------- */

static unsigned type_of(const cJSON *v)
{
    if (cJSON_IsNull(v)) return TYPE_NULL;
    if (cJSON_IsBool(v)) return TYPE_BOOLEAN;
    if (cJSON_IsString(v)) return TYPE_STRING;
    if (cJSON_IsArray(v)) return TYPE_ARRAY;
    if (cJSON_IsObject(v)) return TYPE_OBJECT;
    return v->valuedouble == floor(v->valuedouble) ? TYPE_INTEGER | TYPE_NUMBER : TYPE_NUMBER;
}

/* Numbers are held as doubles: an integer that one can't hold would come out as another. */
static bool is_exact(const cJSON *v)
{
    if (cJSON_IsNumber(v) && fabs(v->valuedouble) > MAX_EXACT) return false;
    for (const cJSON *w = v->child; w; w = w->next)
        if (!is_exact(w)) return false;
    return true;
}

static bool add_value(struct schema *c, const cJSON *v, unsigned types, const cJSON *equal,
                      uint32_t from, uint32_t to)
{
    if (!(type_of(v) & types) || (equal && !cJSON_Compare(v, equal, true))) return false;
    if (!is_exact(v)) {
        schema_fail(c, "enum, const: a number larger than 2^53 is not supported");
        return false;
    }
    char *text = cJSON_PrintUnformatted(v);
    if (text)
        nfa_literal(c->n, from, to, text, strlen(text));
    else
        nfa_fail(c->n, CFG_ENOMEM, "no memory for a schema");
    cJSON_free(text);
    return true;
}

void schema_values(struct schema *c, const cJSON *node, unsigned types, uint32_t from, uint32_t to)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(node, "enum");
    const cJSON *only = cJSON_GetObjectItemCaseSensitive(node, "const");
    bool some = false;
    for (const cJSON *v = node->child; v; v = v->next)
        if (!schema_is_note(v->string) && strcmp(v->string, "type") != 0 && v != list && v != only)
            schema_fail(c, "\"%.60s\" beside enum or const is not supported", v->string);
    if (list && !cJSON_IsArray(list)) schema_fail(c, "enum must be a list");
    if (!list) some = add_value(c, only, types, NULL, from, to);
    for (const cJSON *v = list ? list->child : NULL; v && !c->n->failed; v = v->next)
        some |= add_value(c, v, types, only, from, to);
    if (!some) schema_fail(c, "enum, const: no value has the type asked for");
}
