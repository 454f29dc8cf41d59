// SPDX-License-Identifier: Apache-2.0
//
// fuzz_grammar.c: any text as a grammar of any kind: the first byte says which, the second how an
// answer goes on. What compiles is followed for some tokens: an allowed id must be accepted, a mask
// that allows nothing means that the answer is complete, and the same ids must lead to the same
// masks again.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/compiled.h"
#include "engine/grammar/matcher.h"
#include "tests/fuzz/must.h"

enum { KINDS = ENGINE_GRAMMAR_TOOLS + 1, WALK = 48, IDS = 320, WORDS = IDS / 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Ids 0 and 1 have no bytes, then every byte, then short pieces of two and three. */
static struct token_trie *make_vocab(void)
{
    static const char often[] = "\"{}[]:, ab01\\n.-<";
    uint8_t *bytes = malloc(4 * IDS);
    uint32_t *offsets = calloc(IDS + 1, sizeof *offsets), at = 0;
    struct token_trie *t;
    struct error err;
    MUST(bytes && offsets);
    for (unsigned id = 0; id < IDS; id++) {
        if (id >= 2 && id < 258) bytes[at++] = (uint8_t)(id - 2);
        for (unsigned k = 0; id >= 258 && k < 2 + id % 2; k++)
            bytes[at++] = (uint8_t)often[(id * 7 + k * (id / 16)) % (sizeof often - 1)];
        offsets[id + 1] = at;
    }
    MUST(trie_new(&t, bytes, offsets, IDS, &err) == CFG_OK);
    return t;
}

/* The n-th allowed id, counted round; -1 when none is. */
static int32_t pick(const uint32_t *mask, unsigned n)
{
    int32_t ids[IDS];
    unsigned count = 0;
    for (int32_t id = 0; id < IDS; id++)
        if (mask[id / 32] >> id % 32 & 1) ids[count++] = id;
    return count ? ids[n % count] : -1;
}

static struct matcher *new_matcher(struct engine_grammar *g, bool strip)
{
    struct matcher *m;
    struct error err;
    MUST(matcher_new(&m, g, strip, &err) == CFG_OK);
    MUST(matcher_words(m) == WORDS);
    return m;
}

/* The ids of one answer; its masks must be the same a second time. */
static void follow(struct engine_grammar *g, unsigned how)
{
    struct matcher *m = new_matcher(g, how & 1), *other = new_matcher(g, how & 1);
    uint32_t mask[WORDS], again[WORDS];
    for (int n = 0; n < WALK; n++) {
        how = how * 1103515245u + 12345u;
        matcher_mask(m, mask);
        const int32_t id = pick(mask, how >> 8);
        matcher_mask(other, again);
        MUST(!memcmp(mask, again, sizeof mask) && matcher_complete(m) == matcher_complete(other));
        if (id < 0) {
            MUST(matcher_complete(m));
            break;
        }
        MUST(id >= 2 && matcher_accept(m, id) && matcher_accept(other, id));
    }
    matcher_free(m);
    matcher_free(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct token_trie *vocab;
    struct engine_grammar *g;
    struct error err;
    if (!vocab) vocab = make_vocab();
    if (n < 2) return 0;
    const int rc = grammar_compile(&g, vocab, IDS, (enum engine_grammar_kind)(data[0] % KINDS),
                                   (const char *)data + 2, n - 2, &err);
    MUST(rc == CFG_OK ? g != NULL : g == NULL && (rc == CFG_EINVAL || rc == CFG_ENOMEM));
    if (rc != CFG_OK) {
        MUST(err.code == rc && err.message[0]);
        return 0;
    }
    follow(g, data[1]);
    engine_grammar_unref(g);
    return 0;
}
