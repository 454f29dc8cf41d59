// SPDX-License-Identifier: Apache-2.0
//
// tokenizer.h (private to engine/): opening the tokenizer of a model folder, and the C face of the
// SentencePiece library (sentencepiece_shim.cc). Public functions on a tokenizer are in engine.h.
#ifndef OPENMOED_TOKENIZER_H
#define OPENMOED_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "engine/engine.h"

/* Reads spiece.model (or tokenizer.model), tokenizer_config.json and special_tokens_map.json where
 * present. *out is NULL with CFG_OK when the folder has no tokenizer model at all. vocab is the
 * number of embedding rows: a larger tokenizer is an error. */
int tokenizer_open(struct engine_tokenizer **out, const char *folder, int vocab,
                   struct error *err) CFG_WARN_UNUSED;
void tokenizer_close(struct engine_tokenizer *t); /* t may be NULL */
int tokenizer_size(
    const struct engine_tokenizer *t); /* pieces plus extra ids: ids below may be sampled */
int tokenizer_start_id(const struct engine_tokenizer *t); /* <pad>, 0 */
int tokenizer_eos_id(const struct engine_tokenizer *t);   /* </s>, 1 */
int tokenizer_bos_id(
    const struct engine_tokenizer *t); /* <s>, or -1 when the model file has none */
bool tokenizer_adds_space(
    const struct engine_tokenizer *t); /* encoding puts a space in front of the text */
/* The pieces as grammars need them, built by the first call; *out is a new reference. Any thread.
 */
struct token_trie;
int tokenizer_trie(const struct engine_tokenizer *t, struct token_trie **out,
                   struct error *err) CFG_WARN_UNUSED;

/* ---- sentencepiece_shim.cc: no C++ exception or type crosses it ------------------------------ */

struct sp; /* a loaded SentencePieceProcessor */
enum sp_type { SP_NORMAL, SP_UNKNOWN, SP_CONTROL, SP_BYTE, SP_UNUSED };
struct sp *sp_open(const char *model, size_t n, char *message,
                   size_t message_cap); /* NULL on error */
void sp_close(struct sp *s);
int sp_size(const struct sp *s);
const char *sp_piece(const struct sp *s, int id); /* borrowed */
enum sp_type sp_piece_type(const struct sp *s, int id);
int sp_id(const struct sp *s, const char *piece); /* -1 if it is no piece of its own */
bool sp_adds_dummy_prefix(const struct sp *s);
/* malloc'd ids; returns their number or a negative code. */
long sp_encode(const struct sp *s, const char *text, size_t n, int32_t **ids);

#endif
