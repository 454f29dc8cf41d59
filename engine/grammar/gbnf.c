// SPDX-License-Identifier: Apache-2.0
//
// gbnf.c: reads a grammar in the notation of llama.cpp: `name ::= alternatives`, where the rule
// `root` is what an answer must be. Literals "..." and classes [...] are over Unicode code points
// with the escapes \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH; `.` is any character; ( ) groups;
// * + ? {m} {m,} {m,n} repeat; # begins a comment. A rule ends with its line, except inside a group
// before or
// after `|`, or after `::=`.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/nfa.h"

/* A name in the text; its rule has the same number. */
struct name {
    const char *s;
    size_t len;
    bool defined;
};

struct gbnf {
    struct nfa *n;
    const char *s;
    size_t len, at;
    int depth;
    struct name *names; /* [n_names] */
    size_t n_names, cap_names;
};

static void fail_at(struct gbnf *g, size_t at, const char *what)
{
    size_t line = 1;
    for (size_t i = 0; i < at && i < g->len; i++) line += g->s[i] == '\n';
    nfa_fail(g->n, CFG_EINVAL, "grammar: %s, in line %zu", what, line);
    g->at = g->len;
}

static char peek(const struct gbnf *g)
{
    return g->at < g->len ? g->s[g->at] : '\0';
}

static bool take(struct gbnf *g, const char *text)
{
    const size_t n = strlen(text);
    if (g->len - g->at < n || memcmp(g->s + g->at, text, n) != 0) return false;
    g->at += n;
    return true;
}

static void skip(struct gbnf *g, bool lines)
{
    for (; g->at < g->len; g->at++) {
        const char c = g->s[g->at];
        if (c == '#') {
            while (g->at + 1 < g->len && g->s[g->at + 1] != '\n') g->at++;
        } else if (c != ' ' && c != '\t' && !(lines && (c == '\n' || c == '\r'))) {
            return;
        }
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

static bool is_name(char c)
{
    return ((c | 32) >= 'a' && (c | 32) <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static size_t find_name(struct gbnf *g, const char *s, size_t len)
{
    for (size_t i = 0; i < g->n_names; i++)
        if (g->names[i].len == len && !memcmp(g->names[i].s, s, len)) return i;
    if (g->n_names == g->cap_names) {
        const size_t cap = g->cap_names ? 2 * g->cap_names : 64;
        struct name *p = realloc(g->names, cap * sizeof *p);
        if (!p) {
            nfa_fail(g->n, CFG_ENOMEM, "no memory for a grammar");
            return 0;
        }
        g->names = p;
        g->cap_names = cap;
    }
    g->names[g->n_names] = (struct name){s, len, false};
    (void)nfa_rule(g->n, s, len);
    return g->n_names++;
}

/* The name at `at`, which must be there. */
static size_t take_name(struct gbnf *g)
{
    const size_t start = g->at;
    while (is_name(peek(g))) g->at++;
    return find_name(g, g->s + start, g->at - start);
}

/* ---- literals and classes -------------------------------------------------------------------- */

static bool hex(struct gbnf *g, int digits, uint32_t *value)
{
    for (*value = 0; digits > 0; digits--, g->at++) {
        const char c = peek(g);
        if (c >= '0' && c <= '9')
            *value = *value << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            *value = *value << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else
            return false;
    }
    return *value <= RUNE_MAX && (*value < 0xd800 || *value > 0xdfff);
}

/* One code point of a literal or class, escaped or not. */
static uint32_t take_rune(struct gbnf *g)
{
    static const char from[] = "nrt\\\"[]-^", to[] = "\n\r\t\\\"[]-^";
    const size_t start = g->at;
    const unsigned char *u = (const unsigned char *)g->s + g->at;
    uint32_t value;
    if (g->at >= g->len) {
        fail_at(g, start, "a literal or class without its end");
        return 0;
    }
    if (take(g, "\\")) {
        const char c = peek(g);
        const char *p = c ? strchr(from, c) : NULL;
        g->at += g->at < g->len;
        if (p) return (unsigned char)to[p - from];
        if ((c == 'x' && hex(g, 2, &value)) || (c == 'u' && hex(g, 4, &value)) ||
            (c == 'U' && hex(g, 8, &value)))
            return value;
        fail_at(g, start, "an unknown escape");
        return 0;
    }
    const size_t n = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    value = n == 1 ? u[0] : u[0] & (0x3fu >> (n - 1));
    for (size_t i = 1; i < n; i++) value = value << 6 | (u[i] & 0x3f);
    g->at += n;
    return value;
}

/* After the quote. */
static void literal(struct gbnf *g, uint32_t from, uint32_t to)
{
    while (!g->n->failed && peek(g) != '"') {
        struct runes one = {0};
        const uint32_t c = take_rune(g), next = nfa_state(g->n);
        runes_add(&one, c, c);
        nfa_runes(g->n, from, next, &one, NFA_PLAIN);
        from = next;
    }
    (void)take(g, "\"");
    nfa_epsilon(g->n, from, to);
}

/* After the bracket. */
static void class(struct gbnf *g, uint32_t from, uint32_t to)
{
    const size_t start = g->at;
    const bool negate = take(g, "^");
    struct runes set = {0};
    while (!g->n->failed && peek(g) != ']') {
        const size_t member = g->at;
        const uint32_t lo = take_rune(g);
        uint32_t hi = lo;
        if (peek(g) == '-' && g->at + 1 < g->len && g->s[g->at + 1] != ']') {
            g->at++;
            hi = take_rune(g);
        }
        if (hi < lo) fail_at(g, member, "a range that ends before it begins");
        runes_add(&set, lo, hi);
    }
    (void)take(g, "]");
    runes_normalize(&set, negate);
    if (set.n == 0) fail_at(g, start, "a class that holds nothing");
    nfa_runes(g->n, from, to, &set, NFA_PLAIN);
}

/* ---- rules ----------------------------------------------------------------------------------- */

static void alternatives(struct gbnf *g, uint32_t from, uint32_t to);

static void atom(struct gbnf *g, uint32_t from, uint32_t to)
{
    const size_t start = g->at;
    if (take(g, "\"")) {
        literal(g, from, to);
    } else if (take(g, "[")) {
        class(g, from, to);
    } else if (take(g, ".")) {
        struct runes all = {0};
        runes_add(&all, 0, RUNE_MAX);
        nfa_runes(g->n, from, to, &all, NFA_PLAIN);
    } else if (take(g, "(")) {
        if (++g->depth > MAX_DEPTH) fail_at(g, start, "groups too deep in one another");
        skip(g, true);
        alternatives(g, from, to);
        g->depth--;
        if (!take(g, ")")) fail_at(g, start, "a group without its end");
    } else if (is_name(peek(g))) {
        nfa_call(g->n, from, to, (uint32_t)take_name(g));
    } else if (peek(g) && strchr("*+?{", peek(g))) {
        fail_at(g, start, "nothing to repeat");
    } else if (peek(g) == '<') {
        fail_at(g, start, "tokens (<...>) are not supported");
    } else {
        fail_at(g, start, "something that is no part of a rule");
    }
}

static int number(struct gbnf *g)
{
    int value = -1;
    for (char c; (c = peek(g)) >= '0' && c <= '9'; g->at++) {
        if (value < 0) value = 0;
        if (value <= MAX_REPEAT) value = value * 10 + (c - '0');
    }
    return value;
}

/* After the brace. */
static void braces(struct gbnf *g, int *min, int *max)
{
    const size_t start = g->at;
    skip(g, true);
    *min = *max = number(g);
    skip(g, true);
    if (take(g, ",")) {
        skip(g, true);
        *max = number(g);
        if (*min < 0 && *max >= 0) *min = 0;
        skip(g, true);
    }
    if (!take(g, "}") || *min < 0)
        fail_at(g, start, "a malformed repetition");
    else if (*min > MAX_REPEAT || *max > MAX_REPEAT)
        fail_at(g, start, "a repetition of more than 10000");
    else if (*max >= 0 && *max < *min)
        fail_at(g, start, "a repetition whose bounds are in the wrong order");
}

static bool quantifier(struct gbnf *g, int *min, int *max)
{
    if (take(g, "*"))
        *min = 0, *max = -1;
    else if (take(g, "+"))
        *min = 1, *max = -1;
    else if (take(g, "?"))
        *min = 0, *max = 1;
    else if (take(g, "{"))
        braces(g, min, max);
    else
        return false;
    return true;
}

/* A rule may go on in the next line when that begins with a `|`. */
static bool take_bar(struct gbnf *g)
{
    const size_t start = g->at;
    skip(g, true);
    if (take(g, "|")) return true;
    g->at = start;
    return false;
}

static void alternatives(struct gbnf *g, uint32_t from, uint32_t to)
{
    do {
        uint32_t at = nfa_state(g->n);
        skip(g, true);
        nfa_epsilon(g->n, from, at);
        while (g->at < g->len && !strchr("|)\r\n", peek(g))) {
            int min, max;
            struct nfa_part part = nfa_begin(g->n);
            part.end = nfa_state(g->n);
            atom(g, part.start, part.end);
            skip(g, g->depth > 0);
            while (!g->n->failed && quantifier(g, &min, &max)) {
                part = nfa_repeat(g->n, part, min, max);
                skip(g, g->depth > 0);
            }
            nfa_epsilon(g->n, at, part.start);
            at = part.end;
        }
        nfa_epsilon(g->n, at, to);
    } while (take_bar(g));
}

static void rule(struct gbnf *g)
{
    const size_t start = g->at;
    if (!is_name(peek(g))) {
        fail_at(g, start, "a rule must begin with its name");
        return;
    }
    const size_t name = take_name(g);
    skip(g, false);
    if (!take(g, "::=")) {
        fail_at(g, start, "a rule's name without ::= after it");
        return;
    }
    if (g->n->failed) return;
    if (g->names[name].defined) {
        nfa_fail(g->n, CFG_EINVAL, "grammar: the rule %.60s is defined twice",
                 g->n->rules[name].name);
        return;
    }
    g->names[name].defined = true;
    alternatives(g, g->n->rules[name].start, g->n->rules[name].end);
    if (peek(g) == ')') fail_at(g, g->at, "a ')' without its group");
}

void gbnf_read(struct nfa *n, const char *text, size_t len)
{
    struct gbnf g = {.n = n, .s = text, .len = len};
    if (len > MAX_TEXT || !cfg_utf8_valid(text, len)) {
        nfa_fail(n, CFG_EINVAL, "grammar: %s",
                 len > MAX_TEXT ? "longer than a megabyte" : "not valid UTF-8");
        return;
    }
    (void)find_name(&g, "root", 4);
    for (skip(&g, true); g.at < g.len && !n->failed; skip(&g, true)) rule(&g);
    for (size_t i = 0; i < g.n_names && !n->failed; i++)
        if (!g.names[i].defined)
            nfa_fail(n, CFG_EINVAL, "grammar: there is no rule %.60s", n->rules[i].name);
    free(g.names);
}
