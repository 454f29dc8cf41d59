// SPDX-License-Identifier: Apache-2.0
//
// pool.c: the block pool and the block tables of sequences (kvcache.h). The pool owns a stack of
// free block numbers, allocated once; a table owns the blocks on it until it is released. One
// thread (the engine thread) uses both; nothing here allocates after kv_pool_open and
// kv_table_init. What must hold: every block is either on the stack or in exactly one table.
#include "kvcache/kvcache.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>

struct kv_pool {
    int n_blocks, block_size;
    int n_free;
    int32_t free_stack[]; /* [n_blocks], the first n_free are free; the last of them goes next */
};

int kv_pool_open(struct kv_pool **out, int n_blocks, int block_size, struct error *err)
{
    *out = NULL;
    if (n_blocks < 1 || block_size < 1)
        return cfg_fail(err, CFG_EINVAL, "a KV cache of %d blocks of %d tokens is not possible",
                        n_blocks, block_size);
    struct kv_pool *p = malloc(sizeof(*p) + (size_t)n_blocks * sizeof(p->free_stack[0]));
    if (!p) return cfg_fail(err, CFG_ENOMEM, "no memory for %d KV block numbers", n_blocks);
    p->n_blocks = p->n_free = n_blocks;
    p->block_size = block_size;
    /* Low numbers go first, so that a lightly used pool touches few pages of KV memory. */
    for (int i = 0; i < n_blocks; i++) p->free_stack[i] = n_blocks - 1 - i;
    *out = p;
    return CFG_OK;
}

void kv_pool_close(struct kv_pool *p)
{
    if (!p) return;
    assert(p->n_free == p->n_blocks);
    free(p);
}

int kv_pool_total(const struct kv_pool *p)
{
    return p->n_blocks;
}

int kv_pool_free_blocks(const struct kv_pool *p)
{
    return p->n_free;
}

int kv_pool_block_size(const struct kv_pool *p)
{
    return p->block_size;
}

int kv_blocks_for(const struct kv_pool *p, size_t n_tokens)
{
    size_t size = (size_t)p->block_size;
    size_t n = n_tokens / size + (n_tokens % size != 0);
    return n > INT_MAX ? INT_MAX : (int)n;
}

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
    if (want - t->n > p->n_free)
        return cfg_fail(err, CFG_EFULL, "%zu tokens need %d more KV blocks, %d are free", n_tokens,
                        want - t->n, p->n_free);
    while (t->n < want) t->blocks[t->n++] = p->free_stack[--p->n_free];
    return CFG_OK;
}

void kv_table_release(struct kv_pool *p, struct kv_table *t)
{
    assert(p->n_free + t->n <= p->n_blocks);
    while (t->n > 0) p->free_stack[p->n_free++] = t->blocks[--t->n];
    free(t->blocks);
    *t = (struct kv_table){0};
}
