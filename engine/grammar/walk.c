// SPDX-License-Identifier: Apache-2.0
//
// walk.c: the trie of all pieces, followed through the automaton. Two memories make it fast enough
// to be done for every state:
//
// - Places (stacks.h) know where each class of bytes leads once they were there: a lazily built
//   automaton. Classes that lead to the same place make a group; the division of the classes into
//   groups is the place's partition, which many places share.
// - Trie nodes that are reached by bytes of the same groups are followed together, as a set. What a
//   partition makes of a set is remembered, so that the thousand states of a string of up to 1000
//   characters split the trie once.
//
// All that is made grows only; the work, and by it the memory, is bounded.
#include "engine/grammar/walk.h"

#include <stdlib.h>
#include <string.h>

#include "engine/grammar/stacks.h"

#define MAX_WORK   ((size_t)150000000) /* looked-at children and transitions: less than a second */
#define MAX_PLACES ((uint32_t)1 << 18)
#define MAX_POOL   ((size_t)1 << 24) /* words of sets, after which they are forgotten */
#define MAX_TOPS   8192              /* states at a place */
#define NO_GROUP   0

/* A growing list of words; offsets into it stay. */
struct pool {
    uint32_t *words;
    size_t n, cap;
};

struct place {
    uint32_t partition; /* number + 1; 0: not computed yet */
    uint32_t targets;   /* in w->targets: the place of each group */
};

struct partition {
    uint32_t groups; /* in w->groups: [n_classes] group of a class, NO_GROUP: leads nowhere */
    uint32_t n_groups, next;
};

/* Nodes that have children, and the ids that end at these nodes and others. */
struct trie_set {
    uint32_t nodes, n_nodes, ids, n_ids;
    uint32_t splits; /* list of what partitions make of it; 0 at the end */
};

struct split {
    uint32_t partition, next;
    uint32_t sets; /* in w->sets_of: [n_groups] set of each group, from 1; 0: none */
};

struct walk {
    const struct automaton *a;
    const struct token_trie *trie;
    struct stacks stacks;
    const struct stack_exits *exits;
    struct place *places; /* [cap_places] by the stacks' node */
    uint32_t cap_places;
    struct partition *partitions;
    size_t n_partitions, cap_partitions;
    uint32_t partition_hash[1024]; /* number + 1 */
    struct pool targets, groups;
    struct trie_set *sets; /* [n_sets]; set 0 is none, set 1 the root */
    struct split *splits;  /* [n_splits]; 0 is none */
    size_t n_sets, cap_sets, n_splits, cap_splits;
    struct pool nodes, ids, sets_of;
    struct walk_ids found;
    size_t work;
    int failed;
    struct error *err;
};

static void fail(struct walk *w, int code)
{
    if (w->failed) return;
    w->failed = code;
    (void)cfg_fail(w->err, code, "%s",
                   code == CFG_ENOMEM ? "no memory for a grammar"
                                      : "the grammar is too complex for the model's vocabulary");
}

static bool grow(struct walk *w, void *list, size_t item, size_t n, size_t more, size_t *cap)
{
    void **p = list;
    if (n + more <= *cap) return true;
    size_t wider = *cap ? *cap : 256;
    while (wider < n + more) wider *= 2;
    void *q = realloc(*p, wider * item);
    if (!q) {
        fail(w, CFG_ENOMEM);
        return false;
    }
    *p = q;
    *cap = wider;
    return true;
}

static bool reserve(struct walk *w, struct pool *p, size_t n)
{
    return grow(w, &p->words, sizeof *p->words, p->n, n, &p->cap);
}

/* ---- places ---------------------------------------------------------------------------------- */

/* The number + 1 of a division of the classes; groups was reserved at the end of w->groups. */
static uint32_t partition_of(struct walk *w, uint32_t n_groups)
{
    const uint32_t k = w->a->n_classes;
    const uint32_t *groups = w->groups.words + w->groups.n;
    uint32_t h = 2166136261u;
    for (uint32_t i = 0; i < k; i++) h = (h ^ groups[i]) * 16777619u;
    h = (h ^ h >> 15) % 1024;
    for (uint32_t i = w->partition_hash[h]; i; i = w->partitions[i - 1].next)
        if (!memcmp(w->groups.words + w->partitions[i - 1].groups, groups, k * sizeof *groups))
            return i;
    if (!grow(w, &w->partitions, sizeof *w->partitions, w->n_partitions, 1, &w->cap_partitions))
        return 0;
    w->partitions[w->n_partitions++] =
        (struct partition){(uint32_t)w->groups.n, n_groups, w->partition_hash[h]};
    w->groups.n += k;
    w->partition_hash[h] = (uint32_t)w->n_partitions;
    return w->partition_hash[h];
}

/* Where each class of bytes leads. */
static void compute_place(struct walk *w, uint32_t node)
{
    const uint32_t k = w->a->n_classes;
    struct place p = {.targets = (uint32_t)w->targets.n};
    uint32_t n_groups = 0;
    if (!reserve(w, &w->groups, k) || !reserve(w, &w->targets, k)) return;
    stacks_expand(&w->stacks, node);
    for (uint32_t c = 0; c < k; c++) {
        const uint32_t to = stacks_move(&w->stacks, c);
        uint32_t g = NO_GROUP;
        if (to) {
            for (g = 1; g <= n_groups && w->targets.words[p.targets + g - 1] != to;) g++;
            if (g > n_groups) w->targets.words[p.targets + n_groups++] = to;
        }
        w->groups.words[w->groups.n + c] = g;
        w->work += 8 + w->stacks.n_now;
    }
    if (w->stacks.failed || w->stacks.n_nodes > MAX_PLACES || w->work > MAX_WORK)
        fail(w, CFG_EINVAL);
    w->targets.n += n_groups;
    p.partition = partition_of(w, n_groups);
    if (w->stacks.n_nodes > w->cap_places) {
        const uint32_t cap = 2 * w->stacks.n_nodes;
        struct place *places = realloc(w->places, cap * sizeof *places);
        if (!places) {
            fail(w, CFG_ENOMEM);
            return;
        }
        memset(places + w->cap_places, 0, (cap - w->cap_places) * sizeof *places);
        w->places = places;
        w->cap_places = cap;
    }
    w->places[node] = p;
}

static const struct place *place_of(struct walk *w, uint32_t node)
{
    static const struct place nowhere;
    if (node >= w->cap_places || !w->places[node].partition) compute_place(w, node);
    return w->failed ? &nowhere : &w->places[node];
}

/* One of its ways passed no unknown end. */
static bool is_sure(const struct walk *w, uint32_t node)
{
    uint32_t n;
    const struct stack_top *tops = stacks_tops(&w->stacks, node, &n);
    for (uint32_t i = 0; i < n; i++)
        if (!(tops[i].key & 1)) return true;
    return false;
}

/* ---- sets of trie nodes ---------------------------------------------------------------------- */

/* A set for each group that has members: count[g] nodes with children and ids[g] ids, as yet to be
 * filled in. */
static bool make_sets(struct walk *w, uint32_t n_groups, const uint32_t *n_nodes,
                      const uint32_t *n_ids)
{
    if (!reserve(w, &w->sets_of, n_groups)) return false;
    for (uint32_t g = 1; g <= n_groups; g++) {
        uint32_t *set = &w->sets_of.words[w->sets_of.n + g - 1];
        *set = 0;
        if (!n_nodes[g] && !n_ids[g]) continue;
        if (!grow(w, &w->sets, sizeof *w->sets, w->n_sets, 1, &w->cap_sets) ||
            !reserve(w, &w->nodes, n_nodes[g]) || !reserve(w, &w->ids, n_ids[g]))
            return false;
        w->sets[w->n_sets] =
            (struct trie_set){.nodes = (uint32_t)w->nodes.n, .ids = (uint32_t)w->ids.n};
        w->nodes.n += n_nodes[g];
        w->ids.n += n_ids[g];
        *set = (uint32_t)w->n_sets++;
    }
    w->sets_of.n += n_groups;
    return true;
}

static uint32_t n_ids_at(const struct token_trie *t, uint32_t node)
{
    return t->nodes[node + 1].ids - t->nodes[node].ids;
}

/* Where the sets of a partition's groups stand in w->sets_of; made when not known yet. */
static uint32_t split_of(struct walk *w, uint32_t set, uint32_t partition)
{
    const struct token_trie *t = w->trie;
    const struct partition *p = &w->partitions[partition - 1];
    uint32_t n_nodes[257] = {0}, n_ids[257] = {0};
    for (uint32_t i = w->sets[set].splits; i; i = w->splits[i].next)
        if (w->splits[i].partition == partition) return w->splits[i].sets;
    const struct trie_set s = w->sets[set];
    for (uint32_t i = 0; i < s.n_nodes; i++) {
        const struct trie_node *node = &t->nodes[w->nodes.words[s.nodes + i]];
        for (uint32_t c = node->child; c < node->child + node->n_children; c++) {
            const uint32_t g = w->groups.words[p->groups + w->a->class_of[t->nodes[c].byte]];
            n_nodes[g] += t->nodes[c].n_children > 0;
            n_ids[g] += n_ids_at(t, c);
        }
        w->work += node->n_children;
    }
    w->work += p->n_groups;
    const uint32_t sets = (uint32_t)w->sets_of.n;
    if (!make_sets(w, p->n_groups, n_nodes, n_ids) ||
        !grow(w, &w->splits, sizeof *w->splits, w->n_splits, 1, &w->cap_splits))
        return 0;
    w->splits[w->n_splits] = (struct split){partition, s.splits, sets};
    w->sets[set].splits = (uint32_t)w->n_splits++;
    for (uint32_t i = 0; i < s.n_nodes; i++) {
        const struct trie_node *node = &t->nodes[w->nodes.words[s.nodes + i]];
        for (uint32_t c = node->child; c < node->child + node->n_children; c++) {
            const uint32_t g = w->groups.words[p->groups + w->a->class_of[t->nodes[c].byte]];
            if (g == NO_GROUP || (t->nodes[c].n_children == 0 && n_ids_at(t, c) == 0)) continue;
            struct trie_set *to = &w->sets[w->sets_of.words[sets + g - 1]];
            if (t->nodes[c].n_children > 0) w->nodes.words[to->nodes + to->n_nodes++] = c;
            for (uint32_t k = t->nodes[c].ids; k < t->nodes[c + 1].ids; k++)
                w->ids.words[to->ids + to->n_ids++] = (uint32_t)t->ids[k];
        }
    }
    return sets;
}

static void forget_sets(struct walk *w)
{
    w->nodes.n = w->ids.n = w->sets_of.n = 0;
    w->n_splits = 1;
    w->n_sets = 2;
    w->nodes.words[w->nodes.n++] = 0;
    w->sets[1] = (struct trie_set){.n_nodes = 1};
}

/* ---- walking --------------------------------------------------------------------------------- */

static void find_ids(struct walk *w, bool sure, const void *ids, uint32_t n)
{
    int32_t *list = sure ? w->found.sure : w->found.unsure;
    uint32_t *count = sure ? &w->found.n_sure : &w->found.n_unsure;
    if (n) memcpy(list + *count, ids, n * sizeof *list);
    *count += n;
}

/* What follows one trie node at a place. */
static void walk_node(struct walk *w, uint32_t place, uint32_t at, int skipped)
{
    const struct token_trie *t = w->trie;
    const struct trie_node *node = &t->nodes[at];
    const struct place p = *place_of(w, place);
    for (uint32_t c = node->child; c < node->child + node->n_children && !w->failed; c++) {
        const uint32_t g =
            w->groups
                .words[w->partitions[p.partition - 1].groups + w->a->class_of[t->nodes[c].byte]];
        if (g == NO_GROUP || t->nodes[c].byte == skipped) continue;
        const uint32_t to = w->targets.words[p.targets + g - 1];
        find_ids(w, is_sure(w, to), t->ids + t->nodes[c].ids, n_ids_at(t, c));
        if (t->nodes[c].n_children > 0) walk_node(w, to, c, -1);
    }
    w->work += node->n_children;
}

static void walk_set(struct walk *w, uint32_t place, uint32_t set)
{
    const struct place p = *place_of(w, place);
    if (w->failed) return;
    const uint32_t n_groups = w->partitions[p.partition - 1].n_groups;
    const uint32_t sets = split_of(w, set, p.partition);
    for (uint32_t g = 1; g <= n_groups && !w->failed; g++) {
        const uint32_t child = w->sets_of.words[sets + g - 1];
        if (!child) continue;
        const uint32_t to = w->targets.words[p.targets + g - 1];
        const struct trie_set s = w->sets[child];
        if (s.n_ids) find_ids(w, is_sure(w, to), w->ids.words + s.ids, s.n_ids);
        if (s.n_nodes == 1)
            walk_node(w, to, w->nodes.words[s.nodes], -1);
        else if (s.n_nodes > 1)
            walk_set(w, to, child);
        w->work += 4 + s.n_ids / 4;
    }
    if (w->work > MAX_WORK) fail(w, CFG_EINVAL);
}

static int finish(struct walk *w, struct walk_ids *out)
{
    if (w->work > MAX_WORK) fail(w, CFG_EINVAL);
    *out = w->found;
    return w->failed;
}

int walk_state(struct walk *w, uint32_t state, struct walk_ids *out, struct error *err)
{
    w->err = err;
    w->found.n_sure = w->found.n_unsure = 0;
    if (w->nodes.n + w->ids.n + w->sets_of.n > MAX_POOL) forget_sets(w);
    const uint32_t place =
        stacks_push(&w->stacks, state << 1, w->exits->bottom[w->a->rule_of[state]]);
    walk_set(w, place, 1);
    return finish(w, out);
}

int walk_pair(struct walk *w, uint32_t state, uint32_t back, const uint32_t *ids, uint32_t n,
              struct walk_ids *out, struct error *err)
{
    const struct automaton *a = w->a;
    uint32_t places[TRIE_LONGEST + 1];
    const uint8_t *last = NULL;
    size_t done = 0; /* bytes of the id before that were followed */
    w->err = err;
    w->found.n_sure = w->found.n_unsure = 0;
    const uint32_t below = back == STATE_DONE ? 0 : w->exits->bottom[a->rule_of[back]];
    places[0] = stacks_push(&w->stacks, state << 1, stacks_push(&w->stacks, back << 1, below));
    for (uint32_t i = 0; i < n && !w->failed; i++) {
        size_t len, at = 0;
        const uint8_t *bytes = trie_bytes(w->trie, (int32_t)ids[i], &len);
        while (at < done && at < len && bytes[at] == last[at]) at++;
        for (; at < len && places[at]; at++) {
            const struct place p = *place_of(w, places[at]);
            if (w->failed) break;
            const uint32_t g =
                w->groups.words[w->partitions[p.partition - 1].groups + a->class_of[bytes[at]]];
            places[at + 1] = g == NO_GROUP ? 0 : w->targets.words[p.targets + g - 1];
            w->work++;
        }
        if (at == len && places[at]) find_ids(w, is_sure(w, places[at]), &ids[i], 1);
        last = bytes;
        done = at;
    }
    return finish(w, out);
}

size_t walk_work(const struct walk *w)
{
    return w->work;
}

int walk_stripped(struct walk *w, struct walk_ids *out, struct error *err)
{
    const struct token_trie *t = w->trie;
    const uint32_t start = stacks_start(&w->stacks);
    w->err = err;
    w->found.n_sure = w->found.n_unsure = 0;
    walk_node(w, start, 0, ' ');
    for (uint32_t c = t->nodes[0].child; c < t->nodes[0].child + t->nodes[0].n_children; c++) {
        if (t->nodes[c].byte != ' ') continue;
        find_ids(w, true, t->ids + t->nodes[c].ids, n_ids_at(t, c));
        walk_node(w, start, c, -1);
    }
    return finish(w, out);
}

/* ---- making ---------------------------------------------------------------------------------- */

int walk_new(struct walk **out, const struct automaton *a, struct stack_exits *exits,
             const struct token_trie *trie, struct error *err)
{
    *out = NULL;
    struct walk *w = calloc(1, sizeof *w);
    if (!w) return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
    w->a = a;
    w->trie = trie;
    w->err = err;
    const int rc = stacks_init(&w->stacks, a, MAX_TOPS, err);
    if (rc) {
        free(w);
        return rc;
    }
    const size_t n_ids = (size_t)trie->n_tokens + 1;
    w->found.sure = malloc(n_ids * sizeof *w->found.sure);
    w->found.unsure = malloc(n_ids * sizeof *w->found.unsure);
    if (!w->found.sure || !w->found.unsure ||
        !grow(w, &w->sets, sizeof *w->sets, 0, 2, &w->cap_sets) || !reserve(w, &w->nodes, 1)) {
        walk_free(w);
        return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
    }
    for (uint32_t r = 0; r < a->n_rules; r++)
        exits->bottom[r] = stacks_push(&w->stacks, (a->n_states + r) << 1, 0);
    w->exits = w->stacks.exits = exits;
    forget_sets(w);
    *out = w;
    return CFG_OK;
}

void walk_free(struct walk *w)
{
    if (!w) return;
    stacks_deinit(&w->stacks);
    free(w->places);
    free(w->partitions);
    free(w->targets.words);
    free(w->groups.words);
    free(w->sets);
    free(w->splits);
    free(w->nodes.words);
    free(w->ids.words);
    free(w->sets_of.words);
    free(w->found.sure);
    free(w->found.unsure);
    free(w);
}
