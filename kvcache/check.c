// SPDX-License-Identifier: Apache-2.0
//
// check.c: kv_check (kvcache.h), the whole bookkeeping compared with itself. It reads the pool, the
// tree and the tables of the engine thread and changes nothing. Each check counts something anew,
// from the other side than the code that keeps it does: references from tables and nodes, children
// and busy ones from parents, idleness from what the list should hold. It trusts no index that it
// has not checked, since what it looks for is exactly a broken one.
#include "kvcache/internal.h"

#include <stdlib.h>

/* What is counted per block; all zero at first. */
struct tally {
    int32_t refs;     /* from tables and nodes */
    int32_t seen_by;  /* 1 + the last table that had it */
    int32_t children; /* nodes that name it as parent */
    int32_t busy;     /* of those, ones in use; plus one if a table has the block */
    int32_t depth;    /* from the root, 1 at the top; 0 = not known yet */
    int32_t place;    /* in the idle list, from 1 */
    bool is_free;
};

static bool is_block(const struct kv_pool *p, int32_t b)
{
    return b >= 0 && b < p->n_blocks;
}

static bool is_node(const struct kv_prefix *c, int32_t b)
{
    return c && c->nodes[b].parent != KV_NOT_NODE;
}

static int check_free_list(const struct kv_pool *p, struct tally *of, struct error *err)
{
    if (p->n_free < 0 || p->n_free > p->n_blocks || p->peak < p->n_blocks - p->n_free)
        return cfg_fail(err, CFG_EINTERNAL, "%d of %d blocks free, at most %d ever used", p->n_free,
                        p->n_blocks, p->peak);
    for (int i = 0; i < p->n_free; i++) {
        int32_t b = p->free_stack[i];
        if (!is_block(p, b) || of[b].is_free)
            return cfg_fail(err, CFG_EINTERNAL, "block %d: free twice, or no block at all", b);
        of[b].is_free = true;
    }
    return CFG_OK;
}

static int count_tables(const struct kv_pool *p, const struct kv_table *const *tables, int n,
                        struct tally *of, struct error *err)
{
    for (int i = 0; i < n; i++) {
        const struct kv_table *t = tables[i];
        if (t->n < 0 || t->n > t->capacity)
            return cfg_fail(err, CFG_EINTERNAL, "table %d: %d blocks, room for %d", i, t->n,
                            t->capacity);
        for (int k = 0; k < t->n; k++) {
            int32_t b = t->blocks[k];
            if (!is_block(p, b) || of[b].seen_by == i + 1)
                return cfg_fail(err, CFG_EINTERNAL, "table %d: block %d twice, or no block at all",
                                i, b);
            of[b].seen_by = i + 1;
            of[b].refs++;
        }
    }
    return CFG_OK;
}

static int check_refs(const struct kv_pool *p, const struct kv_prefix *c, const struct tally *of,
                      struct error *err)
{
    for (int32_t b = 0; b < p->n_blocks; b++) {
        int32_t refs = of[b].refs + is_node(c, b);
        if (p->refs[b] != refs)
            return cfg_fail(err, CFG_EINTERNAL, "block %d: %d references counted, %d kept%s", b,
                            refs, p->refs[b], is_node(c, b) ? ", cached" : "");
        if (of[b].is_free != (refs == 0))
            return cfg_fail(err, CFG_EINTERNAL, "block %d: %d references, but %s the free list", b,
                            refs, of[b].is_free ? "on" : "not on");
    }
    return CFG_OK;
}

/* Goes up from a node to one whose depth is known, then writes the depths down the same way. */
static int find_depth(const struct kv_prefix *c, int32_t node, struct tally *of, struct error *err)
{
    int32_t steps = 0, b = node;
    for (; b != KV_NONE && of[b].depth == 0; b = c->nodes[b].parent, steps++)
        if (steps == c->counts.nodes)
            return cfg_fail(err, CFG_EINTERNAL, "block %d: its parents go round in a circle", node);
    int32_t depth = steps + (b == KV_NONE ? 0 : of[b].depth);
    for (b = node; b != KV_NONE && of[b].depth == 0; b = c->nodes[b].parent) of[b].depth = depth--;
    return CFG_OK;
}

static int check_tree(const struct kv_prefix *c, struct tally *of, struct error *err)
{
    const struct kv_pool *p = c->pool;
    int nodes = 0;
    for (int32_t b = 0; b < p->n_blocks; b++) {
        const struct kv_node *d = &c->nodes[b];
        if (!is_node(c, b)) continue;
        nodes++;
        of[b].busy += of[b].refs > 0;
        if (d->parent == KV_NONE) continue;
        if (!is_block(p, d->parent) || !is_node(c, d->parent))
            return cfg_fail(err, CFG_EINTERNAL, "block %d: parent %d is not cached", b, d->parent);
        const struct kv_salt *above = &c->nodes[d->parent].salt;
        if (d->salt.word[0] != above->word[0] || d->salt.word[1] != above->word[1])
            return cfg_fail(err, CFG_EINTERNAL, "block %d: its salt is not parent %d's", b,
                            d->parent);
        of[d->parent].children++;
        of[d->parent].busy += d->n_busy > 0;
    }
    if (nodes != c->counts.nodes)
        return cfg_fail(err, CFG_EINTERNAL, "%d nodes counted, %d kept", nodes, c->counts.nodes);
    for (int32_t b = 0; b < p->n_blocks; b++) {
        const struct kv_node *d = &c->nodes[b];
        if (!is_node(c, b)) continue;
        if (d->n_children != of[b].children || d->n_busy != of[b].busy)
            return cfg_fail(err, CFG_EINTERNAL,
                            "block %d: %d children (%d kept), %d busy (%d kept)", b, of[b].children,
                            d->n_children, of[b].busy, d->n_busy);
        int rc = find_depth(c, b, of, err);
        if (rc) return rc;
    }
    return CFG_OK;
}

/* Nodes and slots one to one, and every node the one that its key finds. */
static int check_slots(const struct kv_prefix *c, struct error *err)
{
    const struct kv_pool *p = c->pool;
    int taken = 0;
    for (size_t i = 0; i <= c->slot_mask; i++) {
        int32_t b = c->slots[i].node;
        if (b == KV_NONE) continue;
        taken++;
        if (!is_block(p, b) || !is_node(c, b) || c->slots[i].hash != c->nodes[b].hash)
            return cfg_fail(err, CFG_EINTERNAL, "slot %zu: block %d is not cached there", i, b);
    }
    if (taken != c->counts.nodes)
        return cfg_fail(err, CFG_EINTERNAL, "%d slots for %d nodes", taken, c->counts.nodes);
    for (int32_t b = 0; b < p->n_blocks; b++) {
        if (!is_node(c, b)) continue;
        const struct kv_node *d = &c->nodes[b];
        const int32_t *tokens = c->tokens + (size_t)b * (size_t)p->block_size;
        int32_t found = kv_prefix_find(c, d->salt, d->parent, tokens, d->hash);
        if (d->hash != kv_prefix_hash(c, d->salt, d->parent, tokens) || found != b)
            return cfg_fail(err, CFG_EINTERNAL, "block %d: its key leads to %d", b, found);
    }
    return CFG_OK;
}

static int check_idle_list(const struct kv_prefix *c, struct tally *of, struct error *err)
{
    const struct kv_pool *p = c->pool;
    int32_t place = 0, before = KV_NONE;
    for (int32_t b = c->oldest; b != KV_NONE; before = b, b = c->nodes[b].next) {
        if (!is_block(p, b) || !is_node(c, b) || of[b].place || c->nodes[b].prev != before)
            return cfg_fail(err, CFG_EINTERNAL, "block %d does not belong into the idle list", b);
        of[b].place = ++place;
    }
    if (c->newest != before || place != c->counts.idle)
        return cfg_fail(err, CFG_EINTERNAL, "the idle list ends at %d after %d, kept are %d and %d",
                        before, place, c->newest, c->counts.idle);
    for (int32_t b = 0; b < p->n_blocks; b++) {
        if (!is_node(c, b)) continue;
        int32_t up = c->nodes[b].parent;
        if ((of[b].place > 0) != (of[b].busy == 0))
            return cfg_fail(err, CFG_EINTERNAL, "block %d: busy %d, but place %d in the idle list",
                            b, of[b].busy, of[b].place);
        if (up != KV_NONE && of[up].place && of[up].place <= of[b].place)
            return cfg_fail(err, CFG_EINTERNAL, "block %d: evicted before its child %d", up, b);
    }
    return CFG_OK;
}

int kv_check(const struct kv_pool *p, const struct kv_prefix *c,
             const struct kv_table *const *tables, int n, struct error *err)
{
    if (p->tree != c || (c && c->pool != p))
        return cfg_fail(err, CFG_EINTERNAL, "pool and prefix tree don't belong together");
    struct tally *of = calloc((size_t)p->n_blocks, sizeof(*of));
    if (!of) return cfg_fail(err, CFG_ENOMEM, "no memory to check %d blocks", p->n_blocks);
    int rc = check_free_list(p, of, err);
    if (!rc) rc = count_tables(p, tables, n, of, err);
    if (!rc) rc = check_refs(p, c, of, err);
    if (!rc && c) rc = check_tree(c, of, err);
    if (!rc && c) rc = check_slots(c, err);
    if (!rc && c) rc = check_idle_list(c, of, err);
    free(of);
    return rc;
}
