// SPDX-License-Identifier: Apache-2.0
//
// nfa.c: states, edges and rules of a grammar that is being read, and the two parts that all
// readers share: counted repetition, which copies, and code points, which become sequences of
// bytes. One thread; owned by the compilation. Limits are on edges and states, so that a short text
// with nested repetitions ends in an error.
#include "engine/grammar/nfa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RULES = 1 << 14 };

void nfa_init(struct nfa *n, struct error *err)
{
    *n = (struct nfa){.err = err};
}

void nfa_deinit(struct nfa *n)
{
    free(n->edges);
    free(n->first);
    free(n->rules);
    *n = (struct nfa){.err = n->err};
}

void nfa_fail(struct nfa *n, int code, const char *fmt, ...)
{
    if (n->failed) return;
    va_list args;
    va_start(args, fmt);
    n->failed = n->err->code = code;
    vsnprintf(n->err->message, sizeof n->err->message, fmt, args);
    va_end(args);
}

/* Room for one more item of a list; false after a failure. */
static bool room(struct nfa *n, void **list, size_t item, size_t used, size_t *cap, size_t max)
{
    if (n->failed) return false;
    if (used < *cap) return true;
    if (used >= max) {
        nfa_fail(n, CFG_EINVAL, "the grammar is too large (more than %zu parts)", max);
        return false;
    }
    const size_t more = *cap ? 2 * *cap : 256;
    void *p = realloc(*list, more * item);
    if (!p) {
        nfa_fail(n, CFG_ENOMEM, "no memory for a grammar");
        return false;
    }
    *list = p;
    *cap = more;
    return true;
}

uint32_t nfa_state(struct nfa *n)
{
    if (!room(n, (void **)&n->first, sizeof *n->first, n->n_states, &n->cap_states, NFA_MAX))
        return 0;
    n->first[n->n_states] = NFA_NONE;
    return (uint32_t)n->n_states++;
}

uint32_t nfa_rule(struct nfa *n, const char *name, size_t len)
{
    const uint32_t start = nfa_state(n), end = nfa_state(n);
    if (!room(n, (void **)&n->rules, sizeof *n->rules, n->n_rules, &n->cap_rules, MAX_RULES))
        return 0;
    struct nfa_rule *r = &n->rules[n->n_rules];
    *r = (struct nfa_rule){.start = start, .end = end};
    len = len < sizeof r->name ? len : cfg_utf8_complete(name, sizeof r->name - 1);
    memcpy(r->name, name, len);
    return (uint32_t)n->n_rules++;
}

void nfa_edge(struct nfa *n, uint32_t from, uint32_t to, uint32_t symbol)
{
    if (!room(n, (void **)&n->edges, sizeof *n->edges, n->n_edges, &n->cap_edges, NFA_MAX)) return;
    n->edges[n->n_edges] = (struct nfa_edge){from, to, symbol, n->first[from]};
    n->first[from] = (uint32_t)n->n_edges++;
}

void nfa_epsilon(struct nfa *n, uint32_t from, uint32_t to)
{
    nfa_edge(n, from, to, NFA_EPSILON);
}

void nfa_call(struct nfa *n, uint32_t from, uint32_t to, uint32_t rule)
{
    nfa_edge(n, from, to, NFA_CALL | rule);
}

void nfa_bytes(struct nfa *n, uint32_t from, uint32_t to, unsigned lo, unsigned hi)
{
    nfa_edge(n, from, to, NFA_BYTES | lo << 8 | hi);
}

void nfa_literal(struct nfa *n, uint32_t from, uint32_t to, const void *bytes, size_t len)
{
    const unsigned char *b = bytes;
    if (!len) nfa_epsilon(n, from, to);
    for (size_t i = 0; i < len && !n->failed; i++) {
        const uint32_t next = i + 1 < len ? nfa_state(n) : to;
        nfa_bytes(n, from, next, b[i], b[i]);
        from = next;
    }
}

uint32_t nfa_text(struct nfa *n, uint32_t from, const char *text)
{
    const uint32_t to = nfa_state(n);
    nfa_literal(n, from, to, text, strlen(text));
    return to;
}

/* ---- repetition ------------------------------------------------------------------------------ */

struct nfa_part nfa_begin(struct nfa *n)
{
    struct nfa_part p = {.first_state = n->n_states, .first_edge = n->n_edges};
    p.start = p.end = nfa_state(n);
    return p;
}

/* A copy of the part, which spans n_states states and n_edges edges. */
static struct nfa_part copy(struct nfa *n, struct nfa_part p, size_t n_states, size_t n_edges)
{
    const uint32_t by = (uint32_t)(n->n_states - p.first_state);
    for (size_t i = 0; i < n_states && !n->failed; i++) (void)nfa_state(n);
    for (size_t i = 0; i < n_edges && !n->failed; i++) {
        const struct nfa_edge e = n->edges[p.first_edge + i];
        nfa_edge(n, e.from + by, e.to + by, e.symbol);
    }
    p.start += by;
    p.end += by;
    return p;
}

struct nfa_part nfa_repeat(struct nfa *n, struct nfa_part part, int min, int max)
{
    const size_t n_states = n->n_states - part.first_state, n_edges = n->n_edges - part.first_edge;
    const int copies = max < 0 ? (min > 0 ? min : 1) : max;
    struct nfa_part all = part;
    struct nfa_part last = part;
    all.start = nfa_state(n);
    all.end = nfa_state(n);
    uint32_t at = all.start;
    if (min == 0) nfa_epsilon(n, all.start, all.end);
    for (int i = 1; i <= copies && !n->failed; i++) {
        if (i > 1) last = copy(n, part, n_states, n_edges);
        nfa_epsilon(n, at, last.start);
        at = last.end;
        if (i >= min) nfa_epsilon(n, at, all.end);
    }
    if (max < 0) nfa_epsilon(n, last.end, last.start);
    return all;
}

/* ---- code points ----------------------------------------------------------------------------- */

void runes_add(struct runes *r, uint32_t lo, uint32_t hi)
{
    if (r->n == MAX_RANGES) {
        r->full = true;
        return;
    }
    r->range[r->n].lo = lo;
    r->range[r->n++].hi = hi;
}

void runes_add_all(struct runes *r, const struct runes *other)
{
    for (int i = 0; i < other->n; i++) runes_add(r, other->range[i].lo, other->range[i].hi);
    r->full |= other->full;
}

static int by_lo(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Calls add with [lo, hi] less the surrogates. */
static void add_scalars(struct runes *r, uint32_t lo, uint32_t hi)
{
    if (hi > RUNE_MAX) hi = RUNE_MAX;
    if (lo <= hi && lo < 0xd800) runes_add(r, lo, hi < 0xd800 ? hi : 0xd7ff);
    if (lo <= hi && hi > 0xdfff) runes_add(r, lo > 0xdfff ? lo : 0xe000, hi);
}

void runes_normalize(struct runes *r, bool negate)
{
    struct runes out = {.full = r->full};
    uint32_t next = 0; /* the first code point not yet dealt with */
    qsort(r->range, (size_t)r->n, sizeof r->range[0], by_lo);
    for (int i = 0; i < r->n;) {
        const uint32_t lo = r->range[i].lo;
        uint32_t hi = r->range[i].hi;
        for (i++; i < r->n && r->range[i].lo <= hi + 1; i++)
            if (r->range[i].hi > hi) hi = r->range[i].hi;
        if (!negate)
            add_scalars(&out, lo, hi);
        else if (lo > next)
            add_scalars(&out, next, lo - 1);
        next = hi + 1;
    }
    if (negate && next <= RUNE_MAX) add_scalars(&out, next, RUNE_MAX);
    *r = out;
}

/* Edges for [lo, hi], whose characters are all n bytes long and share all bytes but the last ones,
 * which run through their whole range. */
static void utf8_product(struct nfa *n, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi,
                         unsigned len)
{
    static const unsigned lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (unsigned i = 0; i < len && !n->failed; i++) {
        const unsigned shift = 6 * (len - 1 - i);
        const unsigned mark = i == 0 ? lead[len] : 0x80, mask = i == 0 ? 0xff : 0x3f;
        const uint32_t next = i + 1 < len ? nfa_state(n) : to;
        nfa_bytes(n, from, next, mark | (lo >> shift & mask), mark | (hi >> shift & mask));
        from = next;
    }
}

/* Cuts [lo, hi], whose characters are all n bytes long, into such products. */
static void utf8_range(struct nfa *n, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi,
                       unsigned len)
{
    for (unsigned shift = 6; shift < 6 * len; shift += 6) {
        const uint32_t low = (1u << shift) - 1; /* bits of the bytes below */
        if ((lo & ~low) == (hi & ~low)) continue;
        if (lo & low) {
            utf8_range(n, from, to, lo, lo | low, len);
            utf8_range(n, from, to, (lo | low) + 1, hi, len);
            return;
        }
        if ((hi & low) != low) {
            utf8_range(n, from, to, lo, (hi & ~low) - 1, len);
            utf8_range(n, from, to, hi & ~low, hi, len);
            return;
        }
    }
    utf8_product(n, from, to, lo, hi, len);
}

static void utf8(struct nfa *n, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi)
{
    static const uint32_t last[] = {0x7f, 0x7ff, 0xffff, RUNE_MAX};
    for (unsigned len = 1; len <= 4 && lo <= hi; len++) {
        const uint32_t end = hi < last[len - 1] ? hi : last[len - 1];
        if (lo > end) continue;
        utf8_range(n, from, to, lo, end, len);
        lo = end + 1;
    }
}

/* A code point that a JSON string cannot hold as it is. */
static void json_escape(struct nfa *n, uint32_t from, uint32_t to, uint32_t rune)
{
    static const char letters[] = "btn\0fr"; /* from 8 on */
    char text[8];
    if (rune == '"' || rune == '\\')
        snprintf(text, sizeof text, "\\%c", (int)rune);
    else if (rune >= 8 && rune <= 13 && letters[rune - 8])
        snprintf(text, sizeof text, "\\%c", letters[rune - 8]);
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)rune);
    nfa_literal(n, from, to, text, strlen(text));
}

/* [lo, hi] without the characters that need an escape, then their escapes. */
static void json_range(struct nfa *n, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi)
{
    for (uint32_t c = lo ? lo : 1; c < 0x20 && c <= hi; c++) json_escape(n, from, to, c);
    if (lo < 0x20) lo = 0x20;
    for (unsigned i = 0; i < 2; i++) {
        const uint32_t c = i ? '\\' : '"';
        if (lo > c || hi < c) continue;
        json_escape(n, from, to, c);
        if (lo < c) utf8(n, from, to, lo, c - 1);
        lo = c + 1;
    }
    if (lo <= hi) utf8(n, from, to, lo, hi);
}

void nfa_runes(struct nfa *n, uint32_t from, uint32_t to, struct runes *set, enum nfa_coding coding)
{
    runes_normalize(set, false);
    if (set->full) nfa_fail(n, CFG_EINVAL, "a class has more than %d ranges", MAX_RANGES);
    for (int i = 0; i < set->n && !n->failed; i++) {
        if (coding == NFA_JSON)
            json_range(n, from, to, set->range[i].lo, set->range[i].hi);
        else
            utf8(n, from, to, set->range[i].lo, set->range[i].hi);
    }
}
