// SPDX-License-Identifier: Apache-2.0
//
// json.c: strict JSON. cJSON is a forgiving parser: it cuts strings at \u0000, takes raw control
// characters, bad UTF-8, 007 and 1., ignores what follows the value, reads no more than 63
// characters of a number and keeps both of two equal keys. So one pass over the bytes checks the
// whole grammar of RFC 8259 first, without recursion or allocation, and counts values and depth
// before cJSON spends 64 bytes of heap on each; then cJSON builds the tree, and only equal keys are
// left to look for in it. Any thread; nothing is shared.
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "config/utf8.h"

enum {
    MAX_DEPTH = 900,        /* cJSON refuses at 1,000 */
    MAX_NUMBER = 63,        /* cJSON copies so many characters of a number */
    FEW_KEYS = 16,          /* up to here, comparing all pairs beats sorting */
    SHOWN_KEY = 60,         /* bytes of a key quoted in a message */
    NO_CHARACTER = 0x110000 /* above every code point */
};

struct scan {
    const char *s;
    size_t n, at; /* bytes in all, bytes looked at */
    size_t values;
    int depth;
    char open[MAX_DEPTH]; /* [depth] '{' or '[' of each container around `at` */
    const struct cfg_json_limits *limits;
    struct error *err;
};

enum expect { EXPECT_VALUE, EXPECT_KEY, EXPECT_END, EXPECT_NOTHING };

/* Always CFG_EINVAL, with the place as an editor counts it: columns are bytes. */
static int fail_at(const struct scan *sc, size_t at, const char *what)
{
    size_t line = 1, start = 0;
    for (size_t i = 0; i < at && i < sc->n; i++) {
        if (sc->s[i] != '\n') continue;
        line++;
        start = i + 1;
    }
    return cfg_fail(sc->err, CFG_EINVAL, "invalid JSON: %s at line %zu, column %zu", what, line,
                    at - start + 1);
}

/* The byte looked at, or -1 at the end. */
static int peek(const struct scan *sc)
{
    return sc->at < sc->n ? (unsigned char)sc->s[sc->at] : -1;
}

static void skip_space(struct scan *sc)
{
    int c;
    while ((c = peek(sc)) == ' ' || c == '\t' || c == '\n' || c == '\r') sc->at++;
}

static bool is_digit(int c)
{
    return c >= '0' && c <= '9';
}

/* Four hex digits at `at`; NO_CHARACTER when they are not there. */
static unsigned hex4(const struct scan *sc, size_t at)
{
    if (sc->n - at < 4) return NO_CHARACTER;
    unsigned value = 0;
    for (size_t i = at; i < at + 4; i++) {
        int c = (unsigned char)sc->s[i];
        if (is_digit(c))
            value = value * 16 + (unsigned)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            value = value * 16 + (unsigned)((c | 0x20) - 'a' + 10);
        else
            return NO_CHARACTER;
    }
    return value;
}

/* At a backslash; leaves `at` behind the escape (behind both halves of a surrogate pair). */
static int scan_escape(struct scan *sc)
{
    size_t start = sc->at++;
    int c = peek(sc);
    if (c > 0 && strchr("\"\\/bfnrt", c)) {
        sc->at++;
        return CFG_OK;
    }
    if (c != 'u') return fail_at(sc, start, "unknown escape in a string");
    unsigned code = hex4(sc, sc->at + 1);
    sc->at += 5;
    if (code == NO_CHARACTER) return fail_at(sc, start, "\\u without four hex digits");
    if (code == 0) return fail_at(sc, start, "\\u0000 is not allowed");
    if (code < 0xD800 || code > 0xDFFF) return CFG_OK;

    bool pair = code < 0xDC00 && sc->n - sc->at >= 6 && memcmp(sc->s + sc->at, "\\u", 2) == 0;
    unsigned second = pair ? hex4(sc, sc->at + 2) : NO_CHARACTER;
    if (second < 0xDC00 || second > 0xDFFF) return fail_at(sc, start, "half a surrogate pair");
    sc->at += 6;
    return CFG_OK;
}

static int scan_string(struct scan *sc)
{
    size_t start = sc->at++;
    for (;;) {
        int c = peek(sc);
        if (c < 0) return fail_at(sc, start, "a string without its end");
        if (c == '"') {
            sc->at++;
            return CFG_OK;
        }
        if (c < 0x20) return fail_at(sc, sc->at, "a raw control character in a string");
        if (c == '\\') {
            int rc = scan_escape(sc);
            if (rc != CFG_OK) return rc;
            continue;
        }
        size_t len = 1;
        if (c >= 0x80 && cfg_utf8_next(sc->s + sc->at, sc->n - sc->at, &len) != UTF8_VALID)
            return fail_at(sc, sc->at, "invalid UTF-8");
        sc->at += len;
    }
}

/* Skips digits; false when there are none. */
static bool skip_digits(struct scan *sc)
{
    size_t start = sc->at;
    while (is_digit(peek(sc))) sc->at++;
    return sc->at > start;
}

static int scan_number(struct scan *sc)
{
    size_t start = sc->at;
    if (peek(sc) == '-') sc->at++;
    bool zero = peek(sc) == '0';
    size_t first = sc->at;
    if (!skip_digits(sc)) return fail_at(sc, start, "a number without digits");
    if (zero && sc->at > first + 1) return fail_at(sc, start, "a number with a leading zero");
    if (peek(sc) == '.') {
        sc->at++;
        if (!skip_digits(sc)) return fail_at(sc, start, "a number that ends with its point");
    }
    bool exponent = peek(sc) == 'e' || peek(sc) == 'E';
    if (exponent) {
        sc->at++;
        if (peek(sc) == '+' || peek(sc) == '-') sc->at++;
        if (!skip_digits(sc)) return fail_at(sc, start, "a number with an empty exponent");
    }

    size_t len = sc->at - start;
    if (len > MAX_NUMBER) return fail_at(sc, start, "a number of more than 63 characters");
    if (!exponent) return CFG_OK; /* so few digits can't overflow a double */
    char text[MAX_NUMBER + 1];
    memcpy(text, sc->s + start, len);
    text[len] = '\0';
    if (isinf(strtod(text, NULL))) return fail_at(sc, start, "a number beyond a double's range");
    return CFG_OK;
}

static int scan_literal(struct scan *sc)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        size_t len = strlen(words[i]);
        if (sc->n - sc->at >= len && memcmp(sc->s + sc->at, words[i], len) == 0) {
            sc->at += len;
            return CFG_OK;
        }
    }
    return fail_at(sc, sc->at, sc->at < sc->n ? "a value is expected" : "the text ends too early");
}

/* At '{' or '['. An empty container is closed right here. */
static int scan_open(struct scan *sc, enum expect *next)
{
    int deepest = sc->limits->max_depth < MAX_DEPTH ? sc->limits->max_depth : MAX_DEPTH;
    if (sc->depth >= deepest) return fail_at(sc, sc->at, "nested too deeply");
    char c = sc->s[sc->at++];
    skip_space(sc);
    if (peek(sc) == (c == '{' ? '}' : ']')) {
        sc->at++;
        *next = EXPECT_END;
        return CFG_OK;
    }
    sc->open[sc->depth++] = c;
    *next = c == '{' ? EXPECT_KEY : EXPECT_VALUE;
    return CFG_OK;
}

static int scan_value(struct scan *sc, enum expect *next)
{
    if (++sc->values > sc->limits->max_values) return fail_at(sc, sc->at, "too many values");
    int c = peek(sc);
    *next = EXPECT_END;
    if (c == '{' || c == '[') return scan_open(sc, next);
    if (c == '"') return scan_string(sc);
    if (c == '-' || is_digit(c)) return scan_number(sc);
    return scan_literal(sc);
}

static int scan_key(struct scan *sc, enum expect *next)
{
    if (peek(sc) != '"') return fail_at(sc, sc->at, "a key in quotes is expected");
    int rc = scan_string(sc);
    if (rc != CFG_OK) return rc;
    skip_space(sc);
    if (peek(sc) != ':') return fail_at(sc, sc->at, "a colon is expected");
    sc->at++;
    *next = EXPECT_VALUE;
    return CFG_OK;
}

/* After a value inside a container: a comma or the container's end. */
static int scan_end(struct scan *sc, enum expect *next)
{
    char c = sc->open[sc->depth - 1];
    if (peek(sc) == ',') {
        *next = c == '{' ? EXPECT_KEY : EXPECT_VALUE;
    } else if (peek(sc) == (c == '{' ? '}' : ']')) {
        sc->depth--;
        *next = EXPECT_END;
    } else {
        return fail_at(sc, sc->at,
                       c == '{' ? "a comma or } is expected" : "a comma or ] is expected");
    }
    sc->at++;
    return CFG_OK;
}

/* The whole grammar. *end is where the value ends, before any space that follows it. */
static int scan_text(struct scan *sc, size_t *end)
{
    enum expect next = EXPECT_VALUE;
    while (next != EXPECT_NOTHING) {
        skip_space(sc);
        int rc = next == EXPECT_VALUE ? scan_value(sc, &next)
                 : next == EXPECT_KEY ? scan_key(sc, &next)
                                      : scan_end(sc, &next);
        if (rc != CFG_OK) return rc;
        if (next == EXPECT_END && sc->depth == 0) next = EXPECT_NOTHING;
    }
    *end = sc->at;
    skip_space(sc);
    if (sc->at < sc->n) return fail_at(sc, sc->at, "something follows the value");
    return CFG_OK;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int duplicate(const char *key, struct error *err)
{
    size_t n = strlen(key);
    int shown = (int)(n > SHOWN_KEY ? cfg_utf8_complete(key, SHOWN_KEY) : n);
    return cfg_fail(err, CFG_EINVAL, "invalid JSON: key \"%.*s\"%s stands twice in one object",
                    shown, key, n > SHOWN_KEY ? "..." : "");
}

/* Few keys: every pair. Many: sorted, so that a hostile object costs n log n comparisons. */
static int check_object(const cJSON *object, struct error *err)
{
    size_t n = 0;
    for (const cJSON *c = object->child; c; c = c->next) n++;
    if (n <= FEW_KEYS) {
        for (const cJSON *c = object->child; c; c = c->next) {
            for (const cJSON *d = c->next; d; d = d->next) {
                if (strcmp(c->string, d->string) == 0) return duplicate(c->string, err);
            }
        }
        return CFG_OK;
    }

    const char **keys = malloc(n * sizeof *keys);
    if (!keys) return cfg_fail(err, CFG_ENOMEM, "out of memory while reading JSON");
    size_t i = 0;
    for (const cJSON *c = object->child; c; c = c->next) keys[i++] = c->string;
    qsort(keys, n, sizeof *keys, compare_keys);
    int rc = CFG_OK;
    for (i = 1; i < n && rc == CFG_OK; i++) {
        if (strcmp(keys[i - 1], keys[i]) == 0) rc = duplicate(keys[i], err);
    }
    free(keys);
    return rc;
}

/* Recursion is bounded by the depth that the scan has allowed. */
static int check_keys(const cJSON *value, struct error *err)
{
    int rc = cJSON_IsObject(value) ? check_object(value, err) : CFG_OK;
    for (const cJSON *c = value->child; c && rc == CFG_OK; c = c->next) {
        if (c->child) rc = check_keys(c, err);
    }
    return rc;
}

int cfg_json_parse(struct cJSON **out, const char *text, size_t n,
                   const struct cfg_json_limits *limits, struct error *err)
{
    *out = NULL;
    if (n > limits->max_bytes)
        return cfg_fail(err, CFG_EINVAL, "invalid JSON: longer than %zu bytes", limits->max_bytes);
    struct scan sc = {.s = text, .n = n, .limits = limits, .err = err};
    size_t end;
    int rc = scan_text(&sc, &end);
    if (rc != CFG_OK) return rc;

    const char *parsed_end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, n, &parsed_end, 0);
    if (!tree) return cfg_fail(err, CFG_ENOMEM, "out of memory while reading JSON");
    if (parsed_end != text + end)
        rc = cfg_fail(err, CFG_EINTERNAL, "two readers of one JSON text disagree");
    else
        rc = check_keys(tree, err);
    if (rc != CFG_OK) {
        cJSON_Delete(tree);
        return rc;
    }
    *out = tree;
    return CFG_OK;
}
