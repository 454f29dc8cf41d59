// SPDX-License-Identifier: Apache-2.0
//
// prefix.c: the tree of cached prefixes (kvcache.h). It owns one reference to the block of every
// node, and each node's tokens and payload. Engine thread only; all memory is taken at open.
//
// A node is idle while neither its block nor any below it is in a table; the idle ones form a list
// in order of last use. What must hold: the children of an idle node are idle and before it in the
// list. So the oldest is always a leaf, eviction takes it without looking for it, and the length
// of the list is what eviction could free. It holds because a node is appended only when its last
// busy child or table lets go, and matches and inserts touch a node together with all above it.
#include "kvcache/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- keys ------------------------------------------------------------------------------------ */

/* Over salt, parent and tokens, two tokens a word: keyed, because callers choose the tokens and
 * could otherwise line up a long run of slots. */
uint32_t kv_prefix_hash(const struct kv_prefix *c, struct kv_salt salt, int32_t parent,
                        const int32_t *tokens)
{
    const int n = c->pool->block_size;
    if (c->opt.hash) return c->opt.hash(salt, parent, tokens, n);
    struct cfg_sip s = cfg_sip_start(c->opt.secret);
    cfg_sip_word(&s, salt.word[0]);
    cfg_sip_word(&s, salt.word[1]);
    cfg_sip_word(&s, (uint32_t)parent);
    for (int i = 0; i < n; i += 2) {
        uint64_t high = i + 1 < n ? (uint32_t)tokens[i + 1] : 0;
        cfg_sip_word(&s, high << 32 | (uint32_t)tokens[i]);
    }
    const uint64_t h = cfg_sip_end(&s);
    return (uint32_t)(h ^ h >> 32);
}

static int32_t *tokens_of(const struct kv_prefix *c, int32_t node)
{
    return c->tokens + (size_t)node * (size_t)c->pool->block_size;
}

static bool has_key(const struct kv_prefix *c, int32_t node, struct kv_salt salt, int32_t parent,
                    const int32_t *tokens)
{
    const struct kv_node *d = &c->nodes[node];
    return d->parent == parent && d->salt.word[0] == salt.word[0] &&
           d->salt.word[1] == salt.word[1] &&
           memcmp(tokens_of(c, node), tokens, (size_t)c->pool->block_size * sizeof(*tokens)) == 0;
}

int32_t kv_prefix_find(const struct kv_prefix *c, struct kv_salt salt, int32_t parent,
                       const int32_t *tokens, uint32_t hash)
{
    for (uint32_t i = hash & c->slot_mask; c->slots[i].node != KV_NONE; i = (i + 1) & c->slot_mask)
        if (c->slots[i].hash == hash && has_key(c, c->slots[i].node, salt, parent, tokens))
            return c->slots[i].node;
    return KV_NONE;
}

static void add_slot(struct kv_prefix *c, int32_t node, uint32_t hash)
{
    uint32_t i = hash & c->slot_mask;
    while (c->slots[i].node != KV_NONE) i = (i + 1) & c->slot_mask;
    c->slots[i] = (struct kv_slot){hash, node};
}

/* Fills the gap with whatever probed past it, so that no markers of deletion pile up. */
static void remove_slot(struct kv_prefix *c, int32_t node)
{
    const uint32_t mask = c->slot_mask;
    uint32_t gap = c->nodes[node].hash & mask;
    while (c->slots[gap].node != node) gap = (gap + 1) & mask;
    for (uint32_t i = (gap + 1) & mask; c->slots[i].node != KV_NONE; i = (i + 1) & mask) {
        uint32_t home = c->slots[i].hash & mask;
        if (((i - home) & mask) < ((i - gap) & mask)) continue; /* its home is after the gap */
        c->slots[gap] = c->slots[i];
        gap = i;
    }
    c->slots[gap].node = KV_NONE;
}

/* ---- the idle list --------------------------------------------------------------------------- */

static void list_remove(struct kv_prefix *c, int32_t node)
{
    const struct kv_node *d = &c->nodes[node];
    *(d->prev == KV_NONE ? &c->oldest : &c->nodes[d->prev].next) = d->next;
    *(d->next == KV_NONE ? &c->newest : &c->nodes[d->next].prev) = d->prev;
    c->counts.idle--;
}

static void list_append(struct kv_prefix *c, int32_t node)
{
    c->nodes[node].prev = c->newest;
    c->nodes[node].next = KV_NONE;
    *(c->newest == KV_NONE ? &c->oldest : &c->nodes[c->newest].next) = node;
    c->newest = node;
    c->counts.idle++;
}

/* Both go up as far as the change does, which is seldom further than the node itself: tables take
 * a path from its root and let go from its end. Further up only where a table holds a duplicate of
 * a cached block and put its next one below the original. */
void kv_prefix_held(struct kv_prefix *c, int32_t block)
{
    for (; block != KV_NONE && c->nodes[block].n_busy++ == 0; block = c->nodes[block].parent)
        list_remove(c, block);
}

void kv_prefix_let_go(struct kv_prefix *c, int32_t block)
{
    for (; block != KV_NONE && --c->nodes[block].n_busy == 0; block = c->nodes[block].parent)
        list_append(c, block);
}

/* ---- open, close ----------------------------------------------------------------------------- */

static void forget_all(struct kv_prefix *c)
{
    for (size_t i = 0; i <= c->slot_mask; i++) c->slots[i].node = KV_NONE;
    for (int32_t b = 0; b < c->pool->n_blocks; b++) c->nodes[b].parent = KV_NOT_NODE;
    c->oldest = c->newest = KV_NONE;
    c->counts.nodes = c->counts.idle = 0;
}

static void free_tree(struct kv_prefix *c)
{
    free(c->nodes);
    free(c->tokens);
    free(c->payload);
    free(c->slots);
    free(c);
}

int kv_prefix_open(struct kv_prefix **out, struct kv_pool *p, const struct kv_prefix_options *opt,
                   struct error *err)
{
    const size_t n = (size_t)p->n_blocks, bytes = opt ? opt->payload_bytes : 0;
    *out = NULL;
    if (p->tree) return cfg_fail(err, CFG_EINVAL, "the KV pool has a prefix tree already");
    if (n > (size_t)1 << 30 || bytes > SIZE_MAX / n)
        return cfg_fail(err, CFG_EINVAL, "a prefix tree of %zu blocks is not possible", n);
    struct kv_prefix *c = calloc(1, sizeof(*c));
    if (!c) goto no_memory;
    size_t slots = 2;
    while (slots < 2 * n) slots *= 2;
    c->nodes = calloc(n, sizeof(c->nodes[0]));
    c->tokens = calloc(n, (size_t)p->block_size * sizeof(c->tokens[0]));
    c->slots = calloc(slots, sizeof(c->slots[0]));
    if (bytes) c->payload = calloc(n, bytes);
    if (!c->nodes || !c->tokens || !c->slots || (bytes && !c->payload)) goto free_tree;
    c->slot_mask = (uint32_t)(slots - 1);
    c->pool = p;
    if (opt) c->opt = *opt;
    forget_all(c);
    p->tree = c;
    *out = c;
    return CFG_OK;

free_tree:
    free_tree(c);
no_memory:
    return cfg_fail(err, CFG_ENOMEM, "no memory for a prefix tree of %zu blocks", n);
}

void kv_prefix_clear(struct kv_prefix *c)
{
    for (int32_t b = 0; b < c->pool->n_blocks; b++)
        if (c->nodes[b].parent != KV_NOT_NODE) kv_block_unref(c->pool, b);
    forget_all(c);
}

void kv_prefix_close(struct kv_prefix *c)
{
    if (!c) return;
    kv_prefix_clear(c);
    c->pool->tree = NULL;
    free_tree(c);
}

/* ---- match, insert, evict -------------------------------------------------------------------- */

/* The child of `parent` for these tokens, and in *hash where it is or would be. */
static int32_t step(const struct kv_prefix *c, struct kv_salt salt, int32_t parent,
                    const int32_t *tokens, uint32_t *hash)
{
    *hash = kv_prefix_hash(c, salt, parent, tokens);
    return kv_prefix_find(c, salt, parent, tokens, *hash);
}

size_t kv_prefix_match(struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                       size_t n_tokens, struct kv_table *t, const void **payload)
{
    const size_t size = (size_t)c->pool->block_size, n_full = n_tokens / size;
    int32_t last = KV_NONE;
    uint32_t hash;
    assert(t->n == 0);
    while ((size_t)t->n < n_full && t->n < t->capacity) {
        int32_t node = step(c, salt, last, tokens + (size_t)t->n * size, &hash);
        if (node == KV_NONE) break;
        kv_block_ref(c->pool, node);
        t->blocks[t->n++] = last = node;
    }
    const size_t hits = (size_t)t->n;
    c->counts.hit_blocks += hits;
    c->counts.miss_blocks += n_full - hits;
    c->counts.hit_tokens += hits * size;
    c->counts.miss_tokens += n_tokens - hits * size;
    if (payload)
        *payload = hits && c->payload ? c->payload + (size_t)last * c->opt.payload_bytes : NULL;
    return hits * size;
}

size_t kv_prefix_peek(const struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                      size_t n_tokens, int *n_idle)
{
    const size_t size = (size_t)c->pool->block_size;
    size_t covered = 0;
    int idle = 0;
    uint32_t hash;
    for (int32_t node = KV_NONE; n_tokens - covered >= size; covered += size) {
        node = step(c, salt, node, tokens + covered, &hash);
        if (node == KV_NONE) break;
        idle += c->nodes[node].n_busy == 0;
    }
    if (n_idle) *n_idle = idle;
    return covered;
}

static void add_node(struct kv_prefix *c, struct kv_salt salt, int32_t parent, int32_t block,
                     const int32_t *tokens, const unsigned char *payload, uint32_t hash)
{
    kv_block_ref(c->pool, block); /* not a node yet: the pool reports nothing */
    c->nodes[block] = (struct kv_node){.salt = salt, .parent = parent, .hash = hash};
    memcpy(tokens_of(c, block), tokens, (size_t)c->pool->block_size * sizeof(*tokens));
    if (payload)
        memcpy(c->payload + (size_t)block * c->opt.payload_bytes, payload, c->opt.payload_bytes);
    if (parent != KV_NONE) c->nodes[parent].n_children++;
    add_slot(c, block, hash);
    list_append(c, block);
    kv_prefix_held(c, block); /* by the table it comes from */
    c->counts.nodes++;
    c->counts.inserted++;
}

int kv_prefix_insert(struct kv_prefix *c, struct kv_salt salt, const int32_t *tokens,
                     size_t n_tokens, const struct kv_table *t, const void *payloads,
                     struct error *err)
{
    const size_t size = (size_t)c->pool->block_size, n_full = n_tokens / size;
    const size_t bytes = c->opt.payload_bytes;
    if (n_full > (size_t)t->n)
        return cfg_fail(err, CFG_EINVAL, "%zu full KV blocks to be cached, the table holds %d",
                        n_full, t->n);
    if (bytes && !payloads && n_full)
        return cfg_fail(err, CFG_EINVAL, "KV blocks to be cached without their payload");
    int32_t last = KV_NONE, node;
    uint32_t hash = 0;
    size_t i = 0;
    for (; i < n_full; i++, last = node) {
        node = step(c, salt, last, tokens + i * size, &hash);
        if (node == KV_NONE) break;
    }
    for (size_t k = i; k < n_full; k++)
        if (c->nodes[t->blocks[k]].parent != KV_NOT_NODE)
            return cfg_fail(err, CFG_EINVAL, "KV block %d is cached already, as other tokens",
                            t->blocks[k]);
    for (node = last; node != KV_NONE; node = c->nodes[node].parent)
        if (c->nodes[node].n_busy == 0) {
            list_remove(c, node);
            list_append(c, node);
        }
    for (; i < n_full; i++, last = node) {
        node = t->blocks[i];
        hash = kv_prefix_hash(c, salt, last, tokens + i * size);
        add_node(c, salt, last, node, tokens + i * size,
                 bytes ? (const unsigned char *)payloads + i * bytes : NULL, hash);
    }
    return CFG_OK;
}

int kv_prefix_evict(struct kv_prefix *c, int n_blocks)
{
    int n = 0;
    for (; c->pool->n_free < n_blocks && c->oldest != KV_NONE; n++) {
        const int32_t node = c->oldest;
        struct kv_node *d = &c->nodes[node];
        assert(d->n_children == 0);
        list_remove(c, node);
        remove_slot(c, node);
        if (d->parent != KV_NONE) c->nodes[d->parent].n_children--;
        d->parent = KV_NOT_NODE;
        c->counts.nodes--;
        kv_block_unref(c->pool, node);
    }
    c->counts.evictions += (uint64_t)n;
    return n;
}

int kv_prefix_available(const struct kv_prefix *c)
{
    return c->pool->n_free + c->counts.idle;
}

void kv_prefix_stats(const struct kv_prefix *c, struct kv_prefix_stats *out)
{
    *out = c->counts;
}
