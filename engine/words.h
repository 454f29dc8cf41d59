// SPDX-License-Identifier: Apache-2.0
//
// words.h (private to engine/): which ids a caller lets an answer have: a set that all of them come
// from, and words (rows of ids) that it never has. Owned by a sampler, used by one thread at a
// time; memory is taken in words_new.
#ifndef OPENMOED_WORDS_H
#define OPENMOED_WORDS_H

#include "engine/engine.h"

struct words;

/* Copies what it needs of s. *out stays NULL when s asks for neither. */
int words_new(struct words **out, const struct engine_sampling *s, int usable,
              struct error *err) CFG_WARN_UNUSED;
void words_free(struct words *w); /* w may be NULL */
/* Clears the bits of what may not come next, of usable ids. */
void words_mask(const struct words *w, uint32_t *mask);
void words_note(struct words *w, int32_t token);

#endif
