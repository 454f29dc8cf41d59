// SPDX-License-Identifier: Apache-2.0
//
// kvcache.h: which blocks hold whose keys and values. Host integers only: the memory itself belongs
// to the engine's backend, which indexes it by the block numbers handed out here, so that the same
// code serves CPU and GPU memory.
//
// One thread (the engine thread) owns a pool, its tables and its prefix tree; nothing here locks.
// Host memory is taken by the open and init functions alone (and by kv_check, for its own count).
// Lengths and positions are in tokens, sizes of pools and tables in blocks, payloads in bytes. A
// call that fails changes nothing.
#ifndef OPENMOED_KVCACHE_H
#define OPENMOED_KVCACHE_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

/* ---- the pool ---------------------------------------------------------------------------------*/

/* A fixed set of equally sized blocks; block numbers are 0 .. n_blocks-1. Each block counts its
 * references: one for each table it stands in, one more while the prefix tree keeps it. */
struct kv_pool;
int kv_pool_open(struct kv_pool **out, int n_blocks, int block_size,
                 struct error *err) CFG_WARN_UNUSED;
/* p may be NULL; every table must have been released and the prefix tree closed. */
void kv_pool_close(struct kv_pool *p);
int kv_pool_total(const struct kv_pool *p);
int kv_pool_free_blocks(const struct kv_pool *p);
int kv_pool_used(const struct kv_pool *p);       /* total - free: cached blocks are used ones */
int kv_pool_peak(const struct kv_pool *p);       /* the most that were ever used at once */
int kv_pool_block_size(const struct kv_pool *p); /* tokens */
int kv_blocks_for(const struct kv_pool *p, size_t n_tokens);

/* Single blocks, each O(1). A block taken has one reference, the caller's; it goes back to the
 * free list when the last one is given up. Tables and the tree use these; others seldom need to. */
int32_t kv_block_take(struct kv_pool *p); /* -1: none is free */
void kv_block_ref(struct kv_pool *p, int32_t block);
void kv_block_unref(struct kv_pool *p, int32_t block);
int kv_block_refs(const struct kv_pool *p, int32_t block); /* 0: free */

/* ---- tables ---------------------------------------------------------------------------------- */

/* The blocks of one sequence in order of position; the table owns one reference to each. Start
 * zeroed; kv_table_init reserves room for the longest it may get, so that growing never allocates
 * memory. */
struct kv_table {
    int32_t *blocks; /* [capacity], the first n are taken */
    int n, capacity;
};
int kv_table_init(struct kv_table *t, int capacity, struct error *err) CFG_WARN_UNUSED;
/* Grows the table until it covers n_tokens positions; CFG_EFULL (and nothing taken) if the pool
 * lacks the blocks, CFG_EINVAL if the table's capacity does. */
int kv_table_reserve(struct kv_pool *p, struct kv_table *t, size_t n_tokens,
                     struct error *err) CFG_WARN_UNUSED;
/* Makes child, which is initialised and empty, hold the same blocks as parent for the first
 * n_tokens positions: two answers to one prompt. Takes no block. CFG_EINVAL if parent does not
 * cover them, or child is not empty or too small. */
int kv_table_fork(struct kv_pool *p, const struct kv_table *parent, size_t n_tokens,
                  struct kv_table *child, struct error *err) CFG_WARN_UNUSED;

/* Contents the engine must copy from block src to block dst; src -1: nothing to do. */
struct kv_copy {
    int32_t src, dst;
};
/* To be called before a position is written (once for a block's worth of positions): afterwards
 * the block that holds it is in this table alone. When it was shared, with another table or with
 * the prefix tree, a fresh block takes its place and *copy says what to copy. The engine makes a
 * step's copies in the order of these calls and before anything is written: a src may be given up
 * by its other holders, and handed out again, before the step runs. CFG_EFULL if a block is needed
 * and none is free; CFG_EINVAL if the table does not cover the position. */
int kv_table_make_writable(struct kv_pool *p, struct kv_table *t, size_t position,
                           struct kv_copy *copy, struct error *err) CFG_WARN_UNUSED;
/* Gives every reference back, the last block's first, and frees the table's memory; harmless on a
 * zeroed table. What the prefix tree keeps stays there and may be evicted from now on. */
void kv_table_release(struct kv_pool *p, struct kv_table *t);

/* ---- the prefix tree ------------------------------------------------------------------------- */

/* Remembers full blocks by what they were computed from: the salt and every token up to the
 * block's end. A node is one block, below the node of the block before it. Tokens and salts are
 * always compared in full; hashes only say where to look, so that no collision can ever give one
 * caller another's block. A node owns a reference to its block and keeps a copy of its tokens.
 *
 * Last use: a block is in use while a table holds it or a block below it; the last use of one that
 * is not ("idle") is when that ended, or when kv_prefix_insert met it again later. Blocks of one
 * sequence count as used in reverse order, so that ends of chats go before their beginnings. */
struct kv_prefix;

/* Who may share with whom: equal salts only. 128 bits, to be filled by the server from keyed
 * hashes of the tenant and of what the caller sent, so that no two meet by chance. */
struct kv_salt {
    uint64_t word[2];
};

struct kv_prefix_options {
    size_t payload_bytes; /* state of a sequence at a block's end, kept with the block; 0 = none */
    uint64_t secret[2];   /* random numbers: prompts can't be made to fall on one hash */
    /* Replaces the built-in hash when set; tests make everything collide. */
    uint32_t (*hash)(struct kv_salt salt, int32_t parent, const int32_t *tokens, int n);
};

/* A pool has one tree at most (CFG_EINVAL for a second) and outlives it. Memory for as many nodes
 * as the pool has blocks is taken here. opt may be NULL. */
int kv_prefix_open(struct kv_prefix **out, struct kv_pool *p, const struct kv_prefix_options *opt,
                   struct error *err) CFG_WARN_UNUSED;
void kv_prefix_close(struct kv_prefix *c); /* c may be NULL; tables keep what they hold */

/* Finds the longest prefix of tokens[0..n_tokens) whose full blocks are cached and puts them, with
 * a reference each, into the table, which is initialised and empty (at most its capacity). Returns
 * the tokens covered, a multiple of the block size. Who needs at least one token to compute passes
 * n_tokens - 1. *payload (payload may be NULL) is that of the last block matched, borrowed until
 * the next call that takes the tree; NULL when nothing was matched or none are kept. */
size_t kv_prefix_match(struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                       size_t n_tokens, struct kv_table *t, const void **payload);
/* How many tokens kv_prefix_match would cover in a table of enough capacity, taking, counting and
 * marking nothing: for admission. *n_idle (may be NULL): how many of those blocks
 * kv_prefix_available counts now and would no longer count after the match. */
size_t kv_prefix_peek(const struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                      size_t n_tokens, int *n_idle);
/* Remembers the full blocks of tokens[0..n_tokens), whose keys and values the table's blocks hold
 * complete; the sequence may go on. A block that is known already stays as it is, and so does the
 * table's own. payloads: [n_tokens / block size][payload_bytes], copied for new blocks only (the
 * others are not read); NULL when none are kept. Takes no block. CFG_EINVAL if the table does not
 * cover the full blocks, payloads are missing, or a block is cached as something else. */
int kv_prefix_insert(struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                     size_t n_tokens, const struct kv_table *t, const void *payloads,
                     struct error *err) CFG_WARN_UNUSED;
/* Forgets idle leaves, least recently used first, until n_blocks are free in the pool or nothing
 * is idle. O(1) a block. Returns how many were forgotten. */
int kv_prefix_evict(struct kv_prefix *c, int n_blocks);
/* Blocks that kv_table_reserve could get after an eviction: free and idle ones. O(1). */
int kv_prefix_available(const struct kv_prefix *c);
/* Forgets everything; blocks in use stay with their tables. Not counted as evictions. */
void kv_prefix_clear(struct kv_prefix *c);

/* Counters only grow, by kv_prefix_match (hits, misses), insert and evict. */
struct kv_prefix_stats {
    uint64_t hit_blocks, miss_blocks; /* full blocks asked for that were there, were not */
    uint64_t hit_tokens, miss_tokens; /* tokens asked for that need no computing, that do */
    uint64_t inserted, evictions;     /* blocks */
    int nodes, idle;                  /* blocks cached now; of those, ready to be evicted */
};
void kv_prefix_stats(const struct kv_prefix *c, struct kv_prefix_stats *out);

/* ---- checking -------------------------------------------------------------------------------- */

/* Whether everything agrees: each block's references are those of the n tables given and the
 * tree's; what has none is on the free list once; the tree has no cycles, every node is found
 * under its key, and the idle list holds exactly the idle nodes, a parent after its children.
 * CFG_EINTERNAL with the first contradiction. For tests and simulations: it allocates memory and
 * takes time in proportion to the pool. c may be NULL when the pool has no tree. */
int kv_check(const struct kv_pool *p, const struct kv_prefix *c,
             const struct kv_table *const *tables, int n, struct error *err) CFG_WARN_UNUSED;

#endif
