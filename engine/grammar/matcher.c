// SPDX-License-Identifier: Apache-2.0
//
// matcher.c: follows an answer through a grammar, id by id. A mask is the union of the sets of the
// states where the text stands, and of those unsure ids that, tried out on the actual stack, do go
// on.
#include "engine/grammar/matcher.h"

#include <stdlib.h>
#include <string.h>

#include "engine/grammar/compiled.h"
#include "engine/grammar/stacks.h"

struct matcher {
    struct engine_grammar *g;
    uint32_t place; /* 0: the text has left the grammar */
    bool at_space;  /* nothing has come yet, and a leading space would not count */
    size_t tried;   /* for the mask that is being made */
    struct stacks stacks;
};

enum {
    MAX_TOPS = 1024,   /* states at a place: more is as much as none */
    MANY_NODES = 200,  /* when so many were made, those that are not needed are dropped */
    MAX_TRIED = 200000 /* states looked at while ids are tried out, for one mask */
};

int matcher_new(struct matcher **out, struct engine_grammar *g, bool strip_space, struct error *err)
{
    *out = NULL;
    struct matcher *m = malloc(sizeof *m);
    if (!m) return cfg_fail(err, CFG_ENOMEM, "no memory to follow a grammar");
    const int rc = stacks_init(&m->stacks, &g->automaton, MAX_TOPS, err);
    if (rc) {
        free(m);
        return rc;
    }
    m->g = engine_grammar_ref(g);
    m->place = stacks_start(&m->stacks);
    m->at_space = strip_space;
    *out = m;
    return CFG_OK;
}

void matcher_free(struct matcher *m)
{
    if (!m) return;
    stacks_deinit(&m->stacks);
    engine_grammar_unref(m->g);
    free(m);
}

size_t matcher_words(const struct matcher *m)
{
    return m->g->masks.n_words;
}

bool matcher_complete(const struct matcher *m)
{
    return stacks_done(&m->stacks, m->place);
}

/* The place after one byte; 0 when there is none. Too many ways at once count as none. */
static uint32_t step(struct matcher *m, uint32_t place, uint8_t byte)
{
    stacks_expand(&m->stacks, place);
    const uint32_t to = stacks_move(&m->stacks, m->g->automaton.class_of[byte]);
    if (!m->stacks.failed) return to;
    m->stacks.failed = false;
    return 0;
}

/* Tries out the ids of a list, which is in order of their bytes: what an id shares with the one
 * before it is not done again. */
static void add_unsure(struct matcher *m, const struct mask_pair *pair, uint32_t *bits)
{
    const struct mask *list = &m->g->masks.list[pair->unsure];
    const uint32_t *ids = m->g->masks.words + list->at, n_nodes = m->stacks.n_nodes;
    uint32_t places[TRIE_LONGEST + 1];
    const uint8_t *last = NULL;
    size_t done = 0; /* bytes of the last id that were followed */
    places[0] = m->place;
    for (uint32_t i = 0; i < list->n && m->tried < MAX_TRIED; i++) {
        size_t n, at = 0;
        const uint8_t *bytes = trie_bytes(m->g->trie, (int32_t)ids[i], &n);
        while (at < done && at < n && bytes[at] == last[at]) at++;
        while (at < n && places[at]) {
            places[at + 1] = step(m, places[at], bytes[at]);
            m->tried += m->stacks.n_now;
            at++;
        }
        if (places[at] && at == n) bits[ids[i] / 32] |= 1u << ids[i] % 32;
        last = bytes;
        done = at;
    }
    stacks_forget(&m->stacks, n_nodes);
}

/* What may come at one of the states where the text stands. */
static void add_top(struct matcher *m, struct stack_top top, uint32_t *bits)
{
    const struct automaton *a = &m->g->automaton;
    const struct masks *masks = &m->g->masks;
    const uint32_t state = top.key >> 1;
    const struct mask_pair *of = &masks->of[state];
    uint32_t n;
    masks_add(masks, of->sure, bits);
    if (masks->list[of->unsure].n == 0) return;
    if (masks->pairs_at[state] == NO_PAIRS) {
        add_unsure(m, of, bits);
        return;
    }
    (void)stacks_tops(&m->stacks, top.below, &n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t back = stacks_tops(&m->stacks, top.below, &n)[i].key >> 1;
        const struct mask_pair *pair = masks_pair(masks, a, state, back);
        if (pair) masks_add(masks, pair->sure, bits);
        if (pair) add_unsure(m, pair, bits);
    }
}

void matcher_mask(struct matcher *m, uint32_t *bits)
{
    const struct masks *masks = &m->g->masks;
    uint32_t n;
    memset(bits, 0, masks->n_words * sizeof *bits);
    if (m->at_space) {
        masks_add(masks, masks->first, bits);
        return;
    }
    m->tried = 0;
    (void)stacks_tops(&m->stacks, m->place, &n);
    for (uint32_t i = 0; i < n; i++) /* by index: trying out may move the list of tops */
        add_top(m, stacks_tops(&m->stacks, m->place, &n)[i], bits);
}

bool matcher_accept(struct matcher *m, int32_t id)
{
    size_t n;
    if (id < 0 || id >= m->g->trie->n_tokens) return m->place != 0;
    const uint8_t *bytes = trie_bytes(m->g->trie, id, &n);
    if (n == 0) return m->place != 0;
    size_t at = m->at_space && bytes[0] == ' ';
    m->at_space = false;
    for (; at < n && m->place; at++) m->place = step(m, m->place, bytes[at]);
    if (m->stacks.n_nodes > MANY_NODES) stacks_compact(&m->stacks, &m->place);
    return m->place != 0;
}
