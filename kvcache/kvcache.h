// SPDX-License-Identifier: Apache-2.0
//
// kvcache.h: which blocks hold whose keys and values. Host integers only: the memory itself belongs
// to the engine's backend, which indexes it by the block numbers handed out here, so that the same
// code serves CPU and GPU memory. One thread (the engine thread) owns a pool and its tables.
#ifndef OPENMOED_KVCACHE_H
#define OPENMOED_KVCACHE_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

/* A fixed set of equally sized blocks; block numbers are 0 .. n_blocks-1. */
struct kv_pool;
int kv_pool_open(struct kv_pool **out, int n_blocks, int block_size,
                 struct error *err) CFG_WARN_UNUSED;
void kv_pool_close(struct kv_pool *p); /* p may be NULL; every table must have been released */
int kv_pool_total(const struct kv_pool *p);
int kv_pool_free_blocks(const struct kv_pool *p);
int kv_pool_block_size(const struct kv_pool *p); /* tokens */
int kv_blocks_for(const struct kv_pool *p, size_t n_tokens);

/* The blocks of one sequence in order of position. Start zeroed; kv_table_init reserves room for
 * the longest it may get, so that growing never allocates memory. */
struct kv_table {
    int32_t *blocks; /* [capacity], the first n are taken */
    int n, capacity;
};
int kv_table_init(struct kv_table *t, int capacity, struct error *err) CFG_WARN_UNUSED;
/* Grows the table until it covers n_tokens positions; CFG_EFULL (and nothing taken) if the pool
 * lacks the blocks. */
int kv_table_reserve(struct kv_pool *p, struct kv_table *t, size_t n_tokens,
                     struct error *err) CFG_WARN_UNUSED;
/* Gives every block back and frees the table's memory; harmless on a zeroed table. */
void kv_table_release(struct kv_pool *p, struct kv_table *t);

#endif
