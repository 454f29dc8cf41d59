// SPDX-License-Identifier: Apache-2.0
//
// grammar_support.h: what the tests of grammars share: a small vocabulary, compiling for it, and a
// random walk that compares every mask, id by id, with what a plain recogniser says. Everything is
// drawn from one seed, which is printed when a test fails.
#ifndef OPENMOED_TESTS_GRAMMAR_SUPPORT_H
#define OPENMOED_TESTS_GRAMMAR_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/compiled.h"
#include "engine/grammar/matcher.h"

static uint64_t test_random;

static uint32_t draw(uint32_t n)
{
    test_random = test_random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((test_random >> 33) % n);
}

/* ---- vocabularies ---------------------------------------------------------------------------- */

struct pieces {
    uint8_t *bytes;
    uint32_t *offsets; /* [n + 1] */
    size_t n_bytes;
    int n;
};

static inline void add_piece(struct pieces *p, const void *s, size_t len)
{
    p->bytes = realloc(p->bytes, p->n_bytes + len + 1);
    p->offsets = realloc(p->offsets, ((size_t)p->n + 2) * sizeof *p->offsets);
    assert_true(p->bytes && p->offsets);
    if (len) memcpy(p->bytes + p->n_bytes, s, len);
    p->offsets[0] = 0;
    p->n_bytes += len;
    p->offsets[++p->n] = (uint32_t)p->n_bytes;
}

static inline void add_text_piece(struct pieces *p, const char *s)
{
    add_piece(p, s, strlen(s));
}

static inline struct token_trie *trie_of(struct pieces *p)
{
    struct token_trie *t;
    struct error err;
    if (trie_new(&t, p->bytes, p->offsets, p->n, &err)) fail_msg("%s", err.message);
    return t;
}

/* Ids 0 and 1 have no bytes, 1 is the end; then the 256 bytes, then `n` draws of up to `longest`
 * parts from a list that ends with NULL. */
static inline struct token_trie *make_vocab(const char *const *parts, int n, uint32_t longest)
{
    struct pieces p = {0};
    uint32_t n_parts = 0;
    while (parts[n_parts]) n_parts++;
    add_piece(&p, "", 0);
    add_piece(&p, "", 0);
    for (int i = 0; i < 256; i++) {
        const uint8_t byte = (uint8_t)i;
        add_piece(&p, &byte, 1);
    }
    for (int i = 0; i < n; i++) {
        char s[128] = "";
        for (uint32_t k = 1 + draw(longest); k > 0; k--) {
            const char *part = parts[draw(n_parts)];
            if (strlen(s) + strlen(part) < sizeof s) strcat(s, part);
        }
        add_text_piece(&p, s);
    }
    return trie_of(&p);
}

/* ---- compiling ------------------------------------------------------------------------------- */

static inline struct engine_grammar *compile_ok(struct token_trie *t, enum engine_grammar_kind kind,
                                                const char *text)
{
    struct engine_grammar *g;
    struct error err = {0};
    if (grammar_compile(&g, t, t->n_tokens, kind, text, strlen(text), &err))
        fail_msg("%s\nin: %s", err.message, text);
    assert_non_null(g);
    return g;
}

/* The refusal's message must have the word in it. */
static inline void refuse(struct token_trie *t, enum engine_grammar_kind kind, const char *text,
                          const char *word)
{
    struct engine_grammar *g = (struct engine_grammar *)&g;
    struct error err = {0};
    const int rc = grammar_compile(&g, t, t->n_tokens, kind, text, strlen(text), &err);
    if (rc == CFG_OK) engine_grammar_unref(g);
    if (rc != CFG_EINVAL || err.code != rc || g || !strstr(err.message, word))
        fail_msg("%.200s: %d \"%s\" lacks \"%s\"", text, rc, err.message, word);
}

/* Whether the text, byte by byte, is one of the grammar. */
static inline bool accepts(struct engine_grammar *g, const char *text)
{
    struct matcher *m;
    struct error err;
    assert_int_equal(matcher_new(&m, g, false, &err), CFG_OK);
    bool good = true;
    for (const char *s = text; *s && good; s++) good = matcher_accept(m, 2 + (uint8_t)*s);
    good = good && matcher_complete(m);
    matcher_free(m);
    return good;
}

/* ---- walking --------------------------------------------------------------------------------- */

/* What a recogniser says of a text. */
struct verdict {
    bool prefix, whole; /* of some text; is one itself */
};
typedef struct verdict recogniser(void *arg, const char *text, size_t n);

enum { MAX_WALK = 62 }; /* bytes of a text: places in it fit 64 bits */

/* The text with an id's bytes; false when it gets too long. */
static inline bool with_id(const struct token_trie *t, int32_t id, bool at_start, bool strip,
                           const char *text, size_t n, char *out, size_t *n_out)
{
    size_t len;
    const uint8_t *b = trie_bytes(t, id, &len);
    if (at_start && strip && len > 0 && b[0] == ' ') b++, len--;
    if (n + len > MAX_WALK) return false;
    memcpy(out, text, n);
    if (len) memcpy(out + n, b, len);
    *n_out = n + len;
    return true;
}

/* Walks at random as far as texts may grow, comparing all the way. Returns false when a text came
 * to its end on the way, true when it was cut. name is shown on failure. */
static inline bool compare_walk(struct engine_grammar *g, bool strip, recogniser *say, void *arg,
                                const char *name)
{
    struct token_trie *t = g->trie;
    const uint64_t seed = test_random;
    const size_t words = ((size_t)t->n_tokens + 31) / 32;
    uint32_t *bits = calloc(words, sizeof *bits);
    struct matcher *m;
    struct error err;
    char text[MAX_WALK + 1] = "", next[MAX_WALK + 1];
    size_t n = 0, n_next;
    bool at_start = true, cut = false;
    assert_non_null(bits);
    assert_int_equal(matcher_new(&m, g, strip, &err), CFG_OK);
    assert_int_equal(matcher_words(m), words);
    for (;;) {
        int32_t chosen = -1;
        uint32_t n_allowed = 0;
        matcher_mask(m, bits);
        if (matcher_complete(m) != say(arg, text, n).whole)
            fail_msg("seed %llu: %s: after \"%.*s\" complete is %d", (unsigned long long)seed, name,
                     (int)n, text, matcher_complete(m));
        for (int32_t id = 0; id < t->n_tokens; id++) {
            const bool allowed = bits[id / 32] >> id % 32 & 1;
            size_t len;
            (void)trie_bytes(t, id, &len);
            if (!with_id(t, id, at_start, strip, text, n, next, &n_next)) {
                cut = true;
                continue;
            }
            const bool want = len > 0 && say(arg, next, n_next).prefix;
            if (allowed != want)
                fail_msg("seed %llu: %s: after \"%.*s\" the id %d \"%.*s\" is %s",
                         (unsigned long long)seed, name, (int)n, text, id, (int)len,
                         (const char *)trie_bytes(t, id, &len),
                         allowed ? "allowed" : "not allowed");
            if (allowed && draw(++n_allowed) == 0) chosen = id;
        }
        if (chosen < 0) break;
        assert_true(with_id(t, chosen, at_start, strip, text, n, next, &n_next));
        memcpy(text, next, n_next);
        n = n_next;
        at_start = false;
        if (!matcher_accept(m, chosen)) fail_msg("%s: an allowed id is not accepted", name);
    }
    matcher_free(m);
    free(bits);
    return cut;
}

#endif
