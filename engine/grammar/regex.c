// SPDX-License-Identifier: Apache-2.0
//
// regex.c: reads a regular expression into the automaton of a rule. Syntax and meaning are those of
// ECMA-262 (JSON Schema's choice) over Unicode code points: \d and \w are ASCII, \s knows Unicode's
// spaces, `.` is any character but a line's end. What no finite automaton can do (backreferences,
// look-around) and what would need large tables (\p) is refused by name, as are anchors other than
// at the ends of the pattern's alternatives.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/nfa.h"

struct regex {
    struct nfa *n;
    const struct regex_options *opt;
    const char *s;
    size_t len, at;
    int depth;
};

static void fail_at(struct regex *r, size_t at, const char *what)
{
    nfa_fail(r->n, CFG_EINVAL, "%.200s: %s, at byte %zu", r->opt->what, what, at + 1);
    r->at = r->len; /* nothing more is read */
}

static bool at_end(const struct regex *r)
{
    return r->at >= r->len;
}

static bool next_is(const struct regex *r, const char *text)
{
    const size_t n = strlen(text);
    return r->len - r->at >= n && !memcmp(r->s + r->at, text, n);
}

static bool take(struct regex *r, const char *text)
{
    if (!next_is(r, text)) return false;
    r->at += strlen(text);
    return true;
}

/* The code point at `at`; the text is valid UTF-8. */
static uint32_t take_rune(struct regex *r)
{
    const unsigned char *u = (const unsigned char *)r->s + r->at;
    const size_t n = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    uint32_t rune = n == 1 ? u[0] : u[0] & (0x3fu >> (n - 1));
    for (size_t i = 1; i < n; i++) rune = rune << 6 | (u[i] & 0x3f);
    r->at += n;
    return rune;
}

/* ---- escapes --------------------------------------------------------------------------------- */

static bool hex(struct regex *r, int digits, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < digits; i++, r->at++) {
        const char c = at_end(r) ? '\0' : r->s[r->at];
        if (c >= '0' && c <= '9')
            *value = *value << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            *value = *value << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else
            return false;
    }
    return true;
}

/* What follows \u: four digits, a pair of surrogates, or digits in braces. */
static bool unicode(struct regex *r, uint32_t *value)
{
    uint32_t low;
    if (take(r, "{")) {
        int n = 0;
        while (n < 6 && r->at + (size_t)n < r->len && r->s[r->at + (size_t)n] != '}') n++;
        return n > 0 && hex(r, n, value) && take(r, "}") && *value <= RUNE_MAX;
    }
    if (!hex(r, 4, value)) return false;
    if (*value < 0xd800 || *value > 0xdfff) return true;
    if (*value > 0xdbff || !take(r, "\\u") || !hex(r, 4, &low) || low < 0xdc00 || low > 0xdfff)
        return false;
    *value = 0x10000 + ((*value - 0xd800) << 10) + (low - 0xdc00);
    return true;
}

/* \d \w \s and their complements; false when c is none of them. */
static bool class_escape(char c, struct runes *set)
{
    static const uint32_t digits[] = {'0', '9'};
    static const uint32_t words[] = {'0', '9', 'A', 'Z', '_', '_', 'a', 'z'};
    static const uint32_t spaces[] = {9,      13,     ' ',    ' ',    0xa0,   0xa0,   0x1680,
                                      0x1680, 0x2000, 0x200a, 0x2028, 0x2029, 0x202f, 0x202f,
                                      0x205f, 0x205f, 0x3000, 0x3000, 0xfeff, 0xfeff};
    const char kind = (char)(c | 32);
    struct runes members = {0};
    const uint32_t *from = kind == 'd' ? digits : kind == 'w' ? words : spaces;
    const size_t n = kind == 'd'   ? sizeof digits / sizeof *digits
                     : kind == 'w' ? sizeof words / sizeof *words
                                   : sizeof spaces / sizeof *spaces;
    if (!strchr("dDwWsS", c)) return false;
    for (size_t i = 0; i < n; i += 2) runes_add(&members, from[i], from[i + 1]);
    runes_normalize(&members, c != kind);
    runes_add_all(set, &members);
    return true;
}

/* What follows a backslash and stands for one code point. */
static uint32_t rune_escape(struct regex *r, bool in_class)
{
    static const char from[] = "tnrfv", to[] = "\t\n\r\f\v";
    const size_t start = r->at - 1;
    uint32_t value = 0;
    if (at_end(r)) {
        fail_at(r, start, "a backslash at the end");
        return 0;
    }
    const uint32_t c = take_rune(r);
    const char *letter = c && c < 0x80 ? strchr(from, (int)c) : NULL;
    if (letter) return (uint32_t)to[letter - from];
    if (c == 'x' && hex(r, 2, &value)) return value;
    if (c == 'u' && unicode(r, &value)) return value;
    if (c == '0' && (at_end(r) || r->s[r->at] < '0' || r->s[r->at] > '9')) return 0;
    if (c == 'b' && in_class) return '\b';
    if (c >= 0x80 || (c >= ' ' && !((c | 32) >= 'a' && (c | 32) <= 'z') && !(c >= '0' && c <= '9')))
        return c;
    fail_at(r, start,
            c == 'x' || c == 'u'                 ? "a malformed \\x or \\u escape"
            : (c >= '1' && c <= '9') || c == 'k' ? "backreferences are not supported"
            : c == 'b' || c == 'B'               ? "word boundaries (\\b, \\B) are not supported"
            : c == 'p' || c == 'P'               ? "Unicode properties (\\p) are not supported"
            : c == 'A' || c == 'Z' || c == 'z'   ? "the anchors \\A, \\Z and \\z are not supported"
                                                 : "an unknown escape");
    return 0;
}

/* ---- classes --------------------------------------------------------------------------------- */

/* One member; true when it is a single code point, which may begin a range. */
static bool class_member(struct regex *r, struct runes *set, uint32_t *rune)
{
    if (!take(r, "\\")) {
        *rune = take_rune(r);
        return true;
    }
    if (!at_end(r) && class_escape(r->s[r->at], set)) {
        r->at++;
        return false;
    }
    *rune = rune_escape(r, true);
    return true;
}

/* After '['. */
static void class_members(struct regex *r, struct runes *set)
{
    const size_t start = r->at - 1;
    const bool negate = take(r, "^");
    if (next_is(r, "]")) fail_at(r, start, "an empty class");
    while (!at_end(r) && !next_is(r, "]")) {
        uint32_t lo, hi;
        const size_t member = r->at;
        if (!class_member(r, set, &lo)) continue;
        hi = lo;
        if (next_is(r, "-") && r->at + 1 < r->len && r->s[r->at + 1] != ']') {
            r->at++;
            if (!class_member(r, set, &hi)) hi = 0;
        }
        if (hi < lo) fail_at(r, member, "a range that ends before it begins");
        runes_add(set, lo, hi);
    }
    if (!take(r, "]")) fail_at(r, start, "a class without its end");
    runes_normalize(set, negate);
    if (set->n == 0) fail_at(r, start, "a class that holds nothing");
}

/* ---- the expression -------------------------------------------------------------------------- */

static void alternatives(struct regex *r, uint32_t from, uint32_t to, bool top);

/* After '('. */
static void group(struct regex *r, uint32_t from, uint32_t to)
{
    const size_t start = r->at - 1;
    if (take(r, "?")) {
        if (next_is(r, "=") || next_is(r, "!") || next_is(r, "<=") || next_is(r, "<!")) {
            fail_at(r, start, "look-ahead and look-behind are not supported");
        } else if (take(r, "P<") || take(r, "<")) {
            while (!at_end(r) && r->s[r->at] != '>') r->at++;
            if (!take(r, ">")) fail_at(r, start, "a group's name without its end");
        } else if (next_is(r, "P=")) {
            fail_at(r, start, "backreferences are not supported");
        } else if (!take(r, ":")) {
            fail_at(r, start, "flags and other (?...) groups are not supported");
        }
    }
    if (++r->depth > MAX_DEPTH) fail_at(r, start, "groups too deep in one another");
    alternatives(r, from, to, false);
    r->depth--;
    if (!take(r, ")")) fail_at(r, start, "a group without its end");
}

static void atom(struct regex *r, uint32_t from, uint32_t to)
{
    const size_t start = r->at;
    struct runes set = {0};
    if (take(r, "(")) {
        group(r, from, to);
        return;
    }
    if (take(r, "[")) {
        class_members(r, &set);
    } else if (take(r, ".")) {
        runes_add(&set, '\n', '\n');
        runes_add(&set, '\r', '\r');
        runes_add(&set, 0x2028, 0x2029);
        runes_normalize(&set, true);
    } else if (take(r, "\\")) {
        if (!at_end(r) && class_escape(r->s[r->at], &set)) {
            r->at++;
        } else {
            const uint32_t c = rune_escape(r, false);
            runes_add(&set, c, c);
        }
    } else if (next_is(r, "^") || next_is(r, "$")) {
        fail_at(r, start, "an anchor inside the pattern is not supported");
    } else if (next_is(r, "*") || next_is(r, "+") || next_is(r, "?")) {
        fail_at(r, start, "nothing to repeat");
    } else {
        const uint32_t c = take_rune(r);
        runes_add(&set, c, c);
    }
    nfa_runes(r->n, from, to, &set, r->opt->coding);
}

static bool number(struct regex *r, int *value)
{
    const size_t start = r->at;
    for (*value = 0; !at_end(r) && r->s[r->at] >= '0' && r->s[r->at] <= '9'; r->at++)
        if (*value <= MAX_REPEAT) *value = *value * 10 + (r->s[r->at] - '0');
    return r->at > start;
}

/* {m}, {m,}, {,n}, {m,n}; anything else after a brace is plain text. */
static bool braces(struct regex *r, int *min, int *max)
{
    const size_t start = r->at;
    if (!take(r, "{")) return false;
    const bool has_min = number(r, min);
    bool has_max = has_min;
    *max = *min;
    if (take(r, ",")) {
        has_max = number(r, max);
        if (!has_max) *max = -1;
    }
    if ((!has_min && !has_max) || !take(r, "}")) {
        r->at = start;
        return false;
    }
    if (*min > MAX_REPEAT || *max > MAX_REPEAT)
        fail_at(r, start, "a repetition of more than 10000");
    else if (*max >= 0 && *max < *min)
        fail_at(r, start, "a repetition whose bounds are in the wrong order");
    return true;
}

static bool quantifier(struct regex *r, int *min, int *max)
{
    if (take(r, "*")) {
        *min = 0, *max = -1;
    } else if (take(r, "+")) {
        *min = 1, *max = -1;
    } else if (take(r, "?")) {
        *min = 0, *max = 1;
    } else if (!braces(r, min, max)) {
        return false;
    }
    if (next_is(r, "+")) fail_at(r, r->at, "possessive quantifiers are not supported");
    (void)take(r, "?"); /* lazy or greedy: the same texts match */
    if (next_is(r, "*") || next_is(r, "?")) fail_at(r, r->at, "nothing to repeat");
    return true;
}

/* One alternative, up to '|', ')' or the end; returns where it leads. */
static uint32_t sequence(struct regex *r, uint32_t from, bool top)
{
    while (!at_end(r) && !next_is(r, "|") && !next_is(r, ")")) {
        int min, max;
        if (top && next_is(r, "$")) break;
        struct nfa_part part = nfa_begin(r->n);
        part.end = nfa_state(r->n);
        atom(r, part.start, part.end);
        if (quantifier(r, &min, &max)) part = nfa_repeat(r->n, part, min, max);
        nfa_epsilon(r->n, from, part.start);
        from = part.end;
    }
    return from;
}

/* Any text, for the ends of a pattern that may match anywhere. */
static uint32_t anything(struct regex *r, uint32_t from)
{
    struct runes all = {0};
    const uint32_t loop = nfa_state(r->n);
    runes_add(&all, 0, RUNE_MAX);
    nfa_epsilon(r->n, from, loop);
    nfa_runes(r->n, loop, loop, &all, r->opt->coding);
    return loop;
}

static void alternatives(struct regex *r, uint32_t from, uint32_t to, bool top)
{
    do {
        const bool search = top && r->opt->search;
        uint32_t at = nfa_state(r->n);
        nfa_epsilon(r->n, from, at);
        if (!(top && take(r, "^")) && search) {
            const uint32_t start = nfa_state(r->n);
            nfa_epsilon(r->n, anything(r, at), start);
            at = start;
        }
        at = sequence(r, at, top);
        if (!(top && take(r, "$")) && search) at = anything(r, at);
        nfa_epsilon(r->n, at, to);
    } while (take(r, "|"));
}

void regex_read(struct nfa *n, const struct regex_options *opt, const char *text, size_t len,
                uint32_t from, uint32_t to)
{
    struct regex r = {.n = n, .opt = opt, .s = text, .len = len};
    if (len > MAX_TEXT || !cfg_utf8_valid(text, len)) {
        nfa_fail(n, CFG_EINVAL, "%.200s: %s", opt->what,
                 len > MAX_TEXT ? "longer than a megabyte" : "not valid UTF-8");
        return;
    }
    alternatives(&r, from, to, true);
    if (!at_end(&r))
        fail_at(&r, r.at,
                next_is(&r, ")") ? "a ')' without its group"
                                 : "an anchor inside the pattern is not supported");
}
