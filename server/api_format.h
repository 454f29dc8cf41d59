// SPDX-License-Identifier: Apache-2.0
//
// api_format.h (private to server/): answers that must have a form. A request names at most one:
// response_format, a member of structured_outputs, or one of the older guided_* fields. It is read
// early and compiled last, so that a cheap mistake is found before the expensive part. Compiled
// grammars are kept by the daemon (api_grammars, any thread) and shared by reference.
#ifndef OPENMOED_API_FORMAT_H
#define OPENMOED_API_FORMAT_H

#include "engine/grammar.h"
#include "server/api_fields.h"
#include "server/metrics.h"

struct api_request;

/* What the answer must be, as it was asked for. */
struct api_format {
    const char *text; /* NULL: anything; else n bytes for the grammar's compiler */
    size_t n;
    enum engine_grammar_kind kind;
    char param[API_PATH_MAX]; /* the field it came from, to blame */
};

/* Into r->format. The text is copied. */
int api_read_format(struct api_request *r, const cJSON *root,
                    struct api_error *err) CFG_WARN_UNUSED;
/* Takes a copy of the text, which `param` asks for. One request has one format. */
int api_set_format(struct api_request *r, enum engine_grammar_kind kind, const char *text, size_t n,
                   const char *param, struct api_error *err) CFG_WARN_UNUSED;
/* A name as OpenAI has them: 1 to 64 letters, digits, '_' and '-'. */
bool api_is_name(const char *s);

/* r->format becomes the grammar of its sampling, whose reference the request owns. Takes up to
 * about a second. */
int api_compile_format(struct api_request *r, struct api_error *err) CFG_WARN_UNUSED;

/* ---- grammars that were compiled (api_grammars.c) -------------------------------------------- */

#define API_GRAMMARS_HELD 4

struct api_grammars_key {
    uint32_t tenant;
    enum engine_grammar_kind kind;
    const char *text; /* [n] */
    size_t n;
};
/* As engine_grammar_new, from those kept if it is among them; *out is a new reference, to be given
 * back by api_grammars_release. Requests for the same text wait for one compilation. CFG_EFULL when
 * those in use have API_GRAMMARS_HELD times the bytes that may be kept. c may be NULL: nothing is
 * kept, and there is no bound. */
int api_grammars_get(struct api_grammars *c, struct engine_grammar **out,
                     const struct engine_tokenizer *t, int usable_vocab,
                     const struct api_grammars_key *key, struct error *err) CFG_WARN_UNUSED;
/* c and g may be NULL. */
void api_grammars_release(struct api_grammars *c, struct engine_grammar *g);
struct api_grammars_stats {
    size_t n, bytes; /* kept now */
    size_t held;     /* bytes of those in use, kept or not */
    uint64_t compiled, found;
    struct metrics_histogram seconds; /* of a compilation */
};
/* c may be NULL. */
void api_grammars_stats(struct api_grammars *c, struct api_grammars_stats *out);

#endif
