// SPDX-License-Identifier: Apache-2.0
//
// walk.h (private to engine/grammar/): a vocabulary's trie followed through a grammar, to find the
// ids that may come at a state. Only while compiling.
#ifndef OPENMOED_GRAMMAR_WALK_H
#define OPENMOED_GRAMMAR_WALK_H

#include "engine/grammar/automaton.h"
#include "engine/grammar/stacks.h"
#include "engine/grammar/trie.h"

struct walk;

/* What the last walk found, in no order. Borrowed until the next one. */
struct walk_ids {
    int32_t *sure, *unsure;
    uint32_t n_sure, n_unsure;
};

/* The exits are borrowed, but for their bottoms, which are made. */
int walk_new(struct walk **out, const struct automaton *a, struct stack_exits *exits,
             const struct token_trie *trie, struct error *err) CFG_WARN_UNUSED;
void walk_free(struct walk *w); /* w may be NULL */

/* From a state whose rule was called by who knows whom. */
int walk_state(struct walk *w, uint32_t state, struct walk_ids *out,
               struct error *err) CFG_WARN_UNUSED;
/* The same for some ids only, in order of their bytes, when the state to come back to is known. */
int walk_pair(struct walk *w, uint32_t state, uint32_t back, const uint32_t *ids, uint32_t n,
              struct walk_ids *out, struct error *err) CFG_WARN_UNUSED;
size_t walk_work(const struct walk *w); /* what was done so far: its unit is some nanoseconds */
/* From the beginning of an answer whose first space is dropped: all are sure. */
int walk_stripped(struct walk *w, struct walk_ids *out, struct error *err) CFG_WARN_UNUSED;

#endif
