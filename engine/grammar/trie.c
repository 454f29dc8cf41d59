// SPDX-License-Identifier: Apache-2.0
//
// trie.c: builds the trie of a vocabulary. Ids are sorted by their bytes, so that every node is a
// run of the sorted list; the list of nodes itself is the queue of a breadth-first walk.
#include "engine/grammar/trie.h"

#include <stdlib.h>
#include <string.h>

/* The ids [from, to) of the sorted list begin with a node's bytes, `depth` of them. */
struct run {
    uint32_t from, to, depth;
};

static int by_bytes(const void *a, const void *b, void *arg)
{
    const struct token_trie *t = arg;
    size_t n, m;
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    const uint8_t *x = trie_bytes(t, i, &n), *y = trie_bytes(t, j, &m);
    const int order = memcmp(x, y, n < m ? n : m);
    if (order) return order;
    if (n != m) return n < m ? -1 : 1;
    return i - j;
}

/* The sorted list, and at most how many nodes it takes. */
static int sort_ids(struct token_trie *t, int32_t **sorted, uint32_t *n, size_t *max_nodes,
                    struct error *err)
{
    *sorted = malloc(((size_t)t->n_tokens + 1) * sizeof **sorted);
    if (!*sorted) return cfg_fail(err, CFG_ENOMEM, "no memory for an index of the vocabulary");
    *n = 0;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const size_t len = t->offsets[id + 1] - t->offsets[id];
        if (len == 0 || len > TRIE_LONGEST) continue;
        (*sorted)[(*n)++] = id;
        if (len > t->longest) t->longest = len;
    }
    qsort_r(*sorted, *n, sizeof **sorted, by_bytes, t);
    *max_nodes = 2;
    for (uint32_t i = 0; i < *n; i++) {
        size_t len, before = 0, same = 0;
        const uint8_t *b = trie_bytes(t, (*sorted)[i], &len);
        const uint8_t *a = i ? trie_bytes(t, (*sorted)[i - 1], &before) : NULL;
        while (same < len && same < before && a[same] == b[same]) same++;
        *max_nodes += len - same;
    }
    return CFG_OK;
}

/* The ids that end at the node, then its children. */
static void add_node(struct token_trie *t, const int32_t *sorted, struct run *runs, uint32_t at,
                     uint32_t *n_ids)
{
    struct trie_node *node = &t->nodes[at];
    const struct run r = runs[at];
    uint32_t i = r.from;
    node->ids = *n_ids;
    node->child = t->n_nodes;
    for (; i < r.to && t->offsets[sorted[i] + 1] - t->offsets[sorted[i]] == r.depth; i++)
        t->ids[(*n_ids)++] = sorted[i];
    while (i < r.to) {
        const uint8_t byte = t->bytes[t->offsets[sorted[i]] + r.depth];
        const uint32_t child = t->n_nodes++;
        runs[child] = (struct run){i, i, r.depth + 1};
        t->nodes[child].byte = byte;
        while (i < r.to && t->bytes[t->offsets[sorted[i]] + r.depth] == byte) i++;
        runs[child].to = i;
        node->n_children++;
    }
}

static int build(struct token_trie *t, struct error *err)
{
    int32_t *sorted = NULL;
    uint32_t n = 0, n_ids = 0;
    size_t max_nodes = 0;
    int rc = sort_ids(t, &sorted, &n, &max_nodes, err);
    if (rc) return rc;
    // NOLINTBEGIN(clang-analyzer-optin.portability.UnixAPI) ; there is a root
    struct run *runs = calloc(max_nodes, sizeof *runs);
    t->nodes = calloc(max_nodes, sizeof *t->nodes);
    // NOLINTEND(clang-analyzer-optin.portability.UnixAPI)
    t->ids = malloc(((size_t)n + 1) * sizeof *t->ids);
    if (runs && t->nodes && t->ids) {
        runs[0] = (struct run){0, n, 0};
        t->n_nodes = 1;
        for (uint32_t at = 0; at < t->n_nodes; at++) add_node(t, sorted, runs, at, &n_ids);
        t->nodes[t->n_nodes].ids = n_ids;
    } else {
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for an index of the vocabulary");
    }
    free(runs);
    free(sorted);
    return rc;
}

int trie_new(struct token_trie **out, uint8_t *bytes, uint32_t *offsets, int n_tokens,
             struct error *err)
{
    int rc = CFG_OK;
    struct token_trie *t = calloc(1, sizeof *t);
    if (!t) {
        free(bytes);
        free(offsets);
        *out = NULL;
        return cfg_fail(err, CFG_ENOMEM, "no memory for an index of the vocabulary");
    }
    *t = (struct token_trie){.refs = 1, .n_tokens = n_tokens, .bytes = bytes, .offsets = offsets};
    rc = build(t, err);
    if (rc) {
        trie_unref(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

struct token_trie *trie_ref(struct token_trie *t)
{
    __atomic_add_fetch(&t->refs, 1, __ATOMIC_RELAXED);
    return t;
}

void trie_unref(struct token_trie *t)
{
    if (!t || __atomic_sub_fetch(&t->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    free(t->nodes);
    free(t->ids);
    free(t->bytes);
    free(t->offsets);
    free(t);
}
