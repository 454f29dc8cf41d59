// SPDX-License-Identifier: Apache-2.0
//
// trie.h (private to engine/): the pieces of a vocabulary as a trie over their bytes. Built once
// per tokenizer, then immutable and shared by reference; grammars may outlive the tokenizer.
#ifndef OPENMOED_GRAMMAR_TRIE_H
#define OPENMOED_GRAMMAR_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

/* Pieces with more bytes are left out: no grammar allows them. It bounds recursion over the trie.
 */
#define TRIE_LONGEST 128

/* Nodes are in breadth-first order: a node's children follow each other, in order of their bytes,
 * and so do the ids that end at it, [ids, next node's ids). */
struct trie_node {
    uint32_t child, ids; /* the first of each */
    uint16_t n_children;
    uint8_t byte; /* that leads here */
};

struct token_trie {
    int refs; /* atomic */
    int n_tokens;
    size_t longest; /* bytes of the longest piece that is in it */
    struct trie_node
        *nodes; /* [n_nodes + 1]: the root, ..., one that only ends the last one's ids */
    uint32_t n_nodes;
    int32_t *ids;      /* in order of the nodes where they end */
    uint8_t *bytes;    /* id's are bytes[offsets[id]] up to bytes[offsets[id + 1]] */
    uint32_t *offsets; /* [n_tokens + 1] */
};

/* An id without bytes is in no text. bytes and offsets are malloc'd and become the trie's, also on
 * failure. */
int trie_new(struct token_trie **out, uint8_t *bytes, uint32_t *offsets, int n_tokens,
             struct error *err) CFG_WARN_UNUSED;
struct token_trie *trie_ref(struct token_trie *t);
void trie_unref(struct token_trie *t); /* t may be NULL */

static inline const uint8_t *trie_bytes(const struct token_trie *t, int32_t id, size_t *n)
{
    *n = t->offsets[id + 1] - t->offsets[id];
    return t->bytes + t->offsets[id];
}

#endif
