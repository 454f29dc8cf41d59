// SPDX-License-Identifier: Apache-2.0
//
// masks.h (private to engine/grammar/): which ids may come in which state. Immutable once made.
//
// Of a state it is known which ids may come whatever lies below it on the stack: the sure ones.
// Others reach past the end of the state's rule, so it depends on the caller: the unsure ones.
// Where these are more than a few, a pair of the state and the one on top of the stack settles most
// of them.
#ifndef OPENMOED_GRAMMAR_MASKS_H
#define OPENMOED_GRAMMAR_MASKS_H

#include "engine/grammar/automaton.h"
#include "engine/grammar/trie.h"

enum mask_form { MASK_LIST, MASK_ALL_BUT, MASK_BITS };

/* A set of ids: those in a list, all but those in a list, or bits. */
struct mask {
    enum mask_form form;
    uint32_t at, n; /* in words: n ids in ascending order, or n_bits / 32 words of bits */
};

/* Two masks, by their numbers. The unsure ids are a list in order of the ids' bytes. */
struct mask_pair {
    uint32_t sure, unsure;
};

#define NO_PAIRS UINT32_MAX

struct masks {
    uint32_t usable, n_words; /* ids; words of bits: (usable + 31) / 32 */
    struct mask *list;        /* [n_list] the masks */
    uint32_t *words;          /* [n_used] what they are made of */
    struct mask_pair *of;     /* [n_states] */
    struct mask_pair *pairs;  /* [n_pairs] what is known of a state's unsure ids */
    uint32_t *pairs_at;       /* [n_states] into pairs, one for each of the rule's tops; NO_PAIRS */
    uint32_t *tops;           /* [n_tops] kinds of the states on top of the stack in a rule ... */
    uint32_t *tops_at;        /* [2 * n_rules] ... from, up to; ascending */
    uint32_t *kind;           /* [n_states] */
    uint32_t first;       /* mask for the beginning of an answer whose leading space is dropped */
    uint32_t most_unsure; /* ids in the longest list that may have to be tried out */
    uint32_t n_list, cap_list;
    size_t n_used, cap_words, n_pairs, cap_pairs, n_tops, cap_tops;
};

/* kind: automaton_minimize's; becomes the masks', also on failure. */
int masks_new(struct masks *out, const struct automaton *a, uint32_t *kind, uint32_t n_kinds,
              const struct token_trie *trie, uint32_t usable, struct error *err) CFG_WARN_UNUSED;
void masks_deinit(struct masks *m);
size_t masks_bytes(const struct masks *m, const struct automaton *a);

/* Adds a set to bits [n_words]. */
void masks_add(const struct masks *m, uint32_t mask, uint32_t *bits);
/* What is known of a state's unsure ids when it will come back to `back`; NULL: nothing. */
const struct mask_pair *masks_pair(const struct masks *m, const struct automaton *a, uint32_t state,
                                   uint32_t back);

#endif
