// SPDX-License-Identifier: Apache-2.0
//
// pool.c: the block pool (kvcache.h). It owns a stack of free block numbers and the reference count
// of every block, both allocated once. One thread (the engine thread) uses it. What must hold: a
// block is on the stack exactly when its count is zero.
#include "kvcache/internal.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>

int kv_pool_open(struct kv_pool **out, int n_blocks, int block_size, struct error *err)
{
    *out = NULL;
    if (n_blocks < 1 || block_size < 1)
        return cfg_fail(err, CFG_EINVAL, "a KV cache of %d blocks of %d tokens is not possible",
                        n_blocks, block_size);
    struct kv_pool *p = calloc(1, sizeof(*p));
    if (!p) goto no_memory;
    p->free_stack = malloc((size_t)n_blocks * sizeof(p->free_stack[0]));
    p->refs = calloc((size_t)n_blocks, sizeof(p->refs[0]));
    if (!p->free_stack || !p->refs) goto free_pool;
    p->n_blocks = p->n_free = n_blocks;
    p->block_size = block_size;
    /* Low numbers go first, so that a lightly used pool touches few pages of KV memory. */
    for (int i = 0; i < n_blocks; i++) p->free_stack[i] = n_blocks - 1 - i;
    *out = p;
    return CFG_OK;

free_pool:
    free(p->free_stack);
    free(p->refs);
    free(p);
no_memory:
    return cfg_fail(err, CFG_ENOMEM, "no memory for %d KV block numbers", n_blocks);
}

void kv_pool_close(struct kv_pool *p)
{
    if (!p) return;
    assert(p->n_free == p->n_blocks && !p->tree);
    free(p->free_stack);
    free(p->refs);
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

int kv_pool_used(const struct kv_pool *p)
{
    return p->n_blocks - p->n_free;
}

int kv_pool_peak(const struct kv_pool *p)
{
    return p->peak;
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

int32_t kv_block_take(struct kv_pool *p)
{
    if (p->n_free == 0) return -1;
    int32_t block = p->free_stack[--p->n_free];
    p->refs[block] = 1;
    if (kv_pool_used(p) > p->peak) p->peak = kv_pool_used(p);
    return block;
}

static bool is_cached(const struct kv_pool *p, int32_t block)
{
    return p->tree && p->tree->nodes[block].parent != KV_NOT_NODE;
}

void kv_block_ref(struct kv_pool *p, int32_t block)
{
    assert(p->refs[block] > 0);
    if (++p->refs[block] == 2 && is_cached(p, block)) kv_prefix_held(p->tree, block);
}

void kv_block_unref(struct kv_pool *p, int32_t block)
{
    assert(p->refs[block] > 0);
    int32_t left = --p->refs[block];
    if (left == 0)
        p->free_stack[p->n_free++] = block;
    else if (left == 1 && is_cached(p, block))
        kv_prefix_let_go(p->tree, block);
}

int kv_block_refs(const struct kv_pool *p, int32_t block)
{
    return p->refs[block];
}
