// SPDX-License-Identifier: Apache-2.0
//
// matcher.h (private to engine/): one answer's place in a grammar. Owned by a sampler, used by one
// thread at a time. Memory is taken when it is made; only answers nested in one another many
// hundred deep make it take more.
#ifndef OPENMOED_GRAMMAR_MATCHER_H
#define OPENMOED_GRAMMAR_MATCHER_H

#include "engine/grammar.h"

struct matcher;

/* Takes a reference to the grammar. strip_space: the answer's leading space is not part of its
 * text. */
int matcher_new(struct matcher **out, struct engine_grammar *g, bool strip_space,
                struct error *err) CFG_WARN_UNUSED;
void matcher_free(struct matcher *m); /* m may be NULL */

/* Sets the bits of the ids that may come next, of [words] in all, and clears the others. Ids of no
 * text are never among them. */
void matcher_mask(struct matcher *m, uint32_t *bits);
size_t matcher_words(const struct matcher *m);
/* The answer may end here. */
bool matcher_complete(const struct matcher *m);
/* Follows an id. False when the text has left the grammar, as it can with an id that matcher_mask
 * did not allow: nothing is allowed then. Ids of no text change nothing. */
bool matcher_accept(struct matcher *m, int32_t id);

#endif
