// SPDX-License-Identifier: Apache-2.0
//
// internal.h: the pool and the prefix tree from inside, for pool.c, prefix.c and check.c. They know
// each other in one point: the pool tells the tree when the references of a cached block go from
// one (the tree's own) to two and back, which is how the tree knows what may be evicted without
// ever looking for it.
#ifndef OPENMOED_KVCACHE_INTERNAL_H
#define OPENMOED_KVCACHE_INTERNAL_H

#include "kvcache/kvcache.h"

#define KV_NONE     (-1) /* end of the idle list, empty slot, parent of a sequence's first block */
#define KV_NOT_NODE (-2) /* in `parent`: this block is not cached */

struct kv_pool {
    int n_blocks, block_size, n_free, peak;
    struct kv_prefix *tree; /* NULL, or set by kv_prefix_open until kv_prefix_close */
    int32_t *free_stack;    /* [n_blocks], the first n_free are free; the last of them goes next */
    int32_t *refs;          /* [n_blocks] */
};

/* A node has the number of its block, so that there is room for every node there can be. */
struct kv_node {
    struct kv_salt salt;
    int32_t parent;
    int32_t n_children;
    int32_t n_busy;     /* children in use, plus one while a table holds the block; 0 = idle */
    int32_t prev, next; /* in the idle list, oldest first, while n_busy is 0 */
    uint32_t hash;
};

struct kv_slot {
    uint32_t hash;
    int32_t node;
};

struct kv_prefix {
    struct kv_pool *pool;
    struct kv_prefix_options opt;
    struct kv_node *nodes;  /* [n_blocks] */
    int32_t *tokens;        /* [n_blocks, block_size] */
    unsigned char *payload; /* [n_blocks, payload_bytes], NULL when none are kept */
    struct kv_slot *slots;  /* [slot_mask + 1], open addressing, at most half full */
    uint32_t slot_mask;
    int32_t oldest, newest;        /* the ends of the idle list */
    struct kv_prefix_stats counts; /* nodes and idle are kept up to date */
};

/* What the pool tells the tree of a cached block: a table holds it now; none does any more. */
void kv_prefix_held(struct kv_prefix *c, int32_t block);
void kv_prefix_let_go(struct kv_prefix *c, int32_t block);

/* The hash of a node's key, and the node with this key (KV_NONE: there is none). */
uint32_t kv_prefix_hash(const struct kv_prefix *c, struct kv_salt salt, int32_t parent,
                        const int32_t *tokens);
int32_t kv_prefix_find(const struct kv_prefix *c, struct kv_salt salt, int32_t parent,
                       const int32_t *tokens, uint32_t hash);

#endif
