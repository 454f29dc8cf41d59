// SPDX-License-Identifier: Apache-2.0
//
// grammar.h: constrained decoding as the rest of the daemon sees it. A grammar is compiled once
// from a text, is immutable and may be shared by any number of samplers on any threads; each
// sampler that is given one (engine_sampling.grammar) follows it with a state of its own and only
// samples tokens after which the answer can still become a text of the grammar.
#ifndef OPENMOED_GRAMMAR_H
#define OPENMOED_GRAMMAR_H

#include "engine/engine.h"

enum engine_grammar_kind {
    ENGINE_GRAMMAR_JSON,   /* any JSON object; the text is not read */
    ENGINE_GRAMMAR_SCHEMA, /* a JSON Schema: the values it describes */
    ENGINE_GRAMMAR_REGEX,  /* a regular expression (ECMA-262): texts that match as a whole */
    ENGINE_GRAMMAR_CHOICE, /* a JSON array of strings: one of them */
    ENGINE_GRAMMAR_GBNF,   /* rules in the notation of llama.cpp: what `root` derives */
    ENGINE_GRAMMAR_TOOLS,  /* calls of functions, also after free text (engine/grammar/tools.c) */
};

/* Compiles n bytes of text for the tokenizer's vocabulary; *out has one reference, the caller's.
 * Takes up to about a second, any thread; time, memory and states are bounded. CFG_EINVAL names
 * what is wrong with the text, not supported or too large. usable_vocab is engine_info's. The first
 * call with a tokenizer also builds its index of pieces, which all its grammars share. */
int engine_grammar_new(struct engine_grammar **out, const struct engine_tokenizer *t,
                       int usable_vocab, enum engine_grammar_kind kind, const char *text, size_t n,
                       struct error *err) CFG_WARN_UNUSED;
struct engine_grammar *engine_grammar_ref(struct engine_grammar *g); /* g; any thread */
void engine_grammar_unref(struct engine_grammar *g);                 /* g may be NULL; any thread */
size_t
engine_grammar_bytes(const struct engine_grammar *g); /* its own memory, for a cache's bound */

#endif
