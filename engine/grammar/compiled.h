// SPDX-License-Identifier: Apache-2.0
//
// compiled.h (private to engine/grammar/): a grammar as it is used.
#ifndef OPENMOED_GRAMMAR_COMPILED_H
#define OPENMOED_GRAMMAR_COMPILED_H

#include "engine/grammar.h"
#include "engine/grammar/automaton.h"
#include "engine/grammar/masks.h"

struct engine_grammar {
    int refs; /* atomic */
    struct token_trie *trie;
    struct automaton automaton;
    struct masks masks;
};

/* As engine_grammar_new, for a vocabulary that is given as a trie; takes a reference to it. */
int grammar_compile(struct engine_grammar **out, struct token_trie *trie, int usable_vocab,
                    enum engine_grammar_kind kind, const char *text, size_t n,
                    struct error *err) CFG_WARN_UNUSED;

#endif
