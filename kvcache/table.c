// SPDX-License-Identifier: Apache-2.0
//
// table.c: the block tables of sequences (kvcache.h): growing, sharing, copy on write. A table owns
// one reference to every block on it until it is released. One thread (the engine thread) uses
// pool and tables; nothing allocates memory after kv_table_init.
#include "kvcache/kvcache.h"

#include <stdlib.h>
#include <string.h>

int kv_table_init(struct kv_table *t, int capacity, struct error *err)
{
    *t = (struct kv_table){0};
    if (capacity < 1)
        return cfg_fail(err, CFG_EINVAL, "a block table of %d blocks is not possible", capacity);
    t->blocks = malloc((size_t)capacity * sizeof(t->blocks[0]));
    if (!t->blocks)
        return cfg_fail(err, CFG_ENOMEM, "no memory for a table of %d blocks", capacity);
    t->capacity = capacity;
    return CFG_OK;
}

int kv_table_reserve(struct kv_pool *p, struct kv_table *t, size_t n_tokens, struct error *err)
{
    int want = kv_blocks_for(p, n_tokens);
    if (want > t->capacity)
        return cfg_fail(err, CFG_EINVAL, "%zu tokens need %d KV blocks, the table holds %d",
                        n_tokens, want, t->capacity);
    if (want - t->n > kv_pool_free_blocks(p))
        return cfg_fail(err, CFG_EFULL, "%zu tokens need %d more KV blocks, %d are free", n_tokens,
                        want - t->n, kv_pool_free_blocks(p));
    while (t->n < want) t->blocks[t->n++] = kv_block_take(p);
    return CFG_OK;
}

int kv_table_fork(struct kv_pool *p, const struct kv_table *parent, size_t n_tokens,
                  struct kv_table *child, struct error *err)
{
    const int want = kv_blocks_for(p, n_tokens);
    if (child->n != 0 || want > child->capacity || want > parent->n)
        return cfg_fail(err, CFG_EINVAL,
                        "a table of %d blocks with %d taken can't share %d of another's %d",
                        child->capacity, child->n, want, parent->n);
    for (; child->n < want; child->n++) {
        child->blocks[child->n] = parent->blocks[child->n];
        kv_block_ref(p, child->blocks[child->n]);
    }
    return CFG_OK;
}

int kv_table_make_writable(struct kv_pool *p, struct kv_table *t, size_t position,
                           struct kv_copy *copy, struct error *err)
{
    size_t at = position / (size_t)kv_pool_block_size(p);
    *copy = (struct kv_copy){-1, -1};
    if (at >= (size_t)t->n)
        return cfg_fail(err, CFG_EINVAL, "position %zu is beyond the table's %d KV blocks",
                        position, t->n);
    int32_t shared = t->blocks[at];
    if (kv_block_refs(p, shared) == 1) return CFG_OK;
    int32_t own = kv_block_take(p);
    if (own < 0)
        return cfg_fail(err, CFG_EFULL, "a copy of KV block %d is needed, none is free", shared);
    t->blocks[at] = own;
    kv_block_unref(p, shared);
    *copy = (struct kv_copy){shared, own};
    return CFG_OK;
}

void kv_table_release(struct kv_pool *p, struct kv_table *t)
{
    while (t->n > 0) kv_block_unref(p, t->blocks[--t->n]);
    free(t->blocks);
    *t = (struct kv_table){0};
}
