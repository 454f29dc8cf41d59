// SPDX-License-Identifier: Apache-2.0
//
// stacks.c: sets of stacks and their step by one byte. Since no rule matches the empty text, a step
// is: calls (onto the stack), the byte, then ends (off the stack), each once. Since no rule begins
// with itself, calls are done in the order of the rules' ranks, so that all callers of a rule are
// known when its own calls are made: its callers become one node.
//
// A call in last position leaves nothing to come back to, so the caller's own stack takes its
// place: repetition written as recursion does not grow the stack.
#include "engine/grammar/stacks.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 1 << 22 };

/* ---- nodes ----------------------------------------------------------------------------------- */

static uint32_t bucket_of(const struct stacks *s, const struct stack_top *tops, uint32_t n)
{
    uint64_t h = n;
    for (uint32_t i = 0; i < n; i++) {
        h = (h ^ ((uint64_t)tops[i].key << 32 | tops[i].below)) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return (uint32_t)h & (s->n_buckets - 1);
}

static void rehash(struct stacks *s)
{
    memset(s->buckets, 0, s->n_buckets * sizeof *s->buckets);
    for (uint32_t i = 1; i < s->n_nodes; i++) {
        struct stack_node *node = &s->nodes[i];
        const uint32_t b = bucket_of(s, s->tops + node->tops, node->n);
        node->next = s->buckets[b];
        s->buckets[b] = i;
    }
}

static bool make_room(struct stacks *s, uint32_t n)
{
    if (s->n_tops + n > s->cap_tops) {
        uint32_t cap = s->cap_tops;
        while (s->n_tops + n > cap) cap *= 2;
        struct stack_top *tops = realloc(s->tops, cap * sizeof *tops);
        if (!tops) return false;
        s->tops = tops;
        s->cap_tops = cap;
    }
    if (s->n_nodes < s->cap_nodes) return true;
    const uint32_t cap = 2 * s->cap_nodes;
    if (cap > MAX_NODES) return false;
    struct stack_node *nodes = realloc(s->nodes, cap * sizeof *nodes);
    if (nodes) s->nodes = nodes;
    uint32_t *buckets = nodes ? realloc(s->buckets, cap * sizeof *buckets) : NULL;
    if (!buckets) return false;
    s->cap_nodes = s->n_buckets = cap;
    s->buckets = buckets;
    rehash(s);
    return true;
}

/* The node with these tops, which are in order of their keys, each key once. */
static uint32_t node_of(struct stacks *s, const struct stack_top *tops, uint32_t n)
{
    if (n == 0) return 0;
    uint32_t b = bucket_of(s, tops, n);
    for (uint32_t i = s->buckets[b]; i; i = s->nodes[i].next)
        if (s->nodes[i].n == n && !memcmp(s->tops + s->nodes[i].tops, tops, n * sizeof *tops))
            return i;
    if (!make_room(s, n)) {
        s->failed = true;
        return 0;
    }
    b = bucket_of(s, tops, n); /* there may be more of them now */
    memcpy(s->tops + s->n_tops, tops, n * sizeof *tops);
    s->nodes[s->n_nodes] = (struct stack_node){s->n_tops, n, s->buckets[b]};
    s->n_tops += n;
    s->buckets[b] = s->n_nodes;
    return s->n_nodes++;
}

uint32_t stacks_push(struct stacks *s, uint32_t key, uint32_t below)
{
    const struct stack_top top = {key, below};
    return node_of(s, &top, 1);
}

/* The stacks of both; found in the cache when they were joined lately. */
static uint32_t join(struct stacks *s, uint32_t x, uint32_t y)
{
    if (x == y || !y) return x;
    if (!x) return y;
    if (x > y) {
        const uint32_t t = x;
        x = y;
        y = t;
    }
    const uint32_t at = (x * 31 + y) % JOIN_CACHE;
    if (s->joined[at].a == x && s->joined[at].b == y) return s->joined[at].both;
    const uint32_t nx = s->nodes[x].n, ny = s->nodes[y].n;
    struct stack_top few[16] = {{0, 0}};
    struct stack_top *out = nx + ny <= 16 ? few : calloc(nx + ny, sizeof *out);
    if (!out) {
        s->failed = true;
        return x;
    }
    uint32_t i = 0, j = 0, n = 0;
    while (i < nx || j < ny) {
        /* By index: joining may move the list of tops. */
        const struct stack_top a =
            i < nx ? s->tops[s->nodes[x].tops + i] : (struct stack_top){UINT32_MAX, 0};
        const struct stack_top b =
            j < ny ? s->tops[s->nodes[y].tops + j] : (struct stack_top){UINT32_MAX, 0};
        i += a.key <= b.key;
        j += b.key <= a.key;
        out[n++] = a.key < b.key   ? a
                   : b.key < a.key ? b
                                   : (struct stack_top){a.key, join(s, a.below, b.below)};
    }
    const uint32_t both = node_of(s, out, n);
    if (out != few) free(out);
    s->joined[at] = (struct joined){x, y, both};
    return both;
}

/* ---- a step ---------------------------------------------------------------------------------- */

/* Only the end can follow this state. */
static bool is_last(const struct automaton *a, uint32_t state)
{
    return !state_is(a, state, STATE_LIVE);
}

/* A call of a rule: more callers for its start, which is or becomes one of `now`. The starts stand
 * at `first` and after, each with the rule's number in its key until it is its turn. */
static void add_start(struct stacks *s, uint32_t first, uint32_t key, uint32_t callers)
{
    for (uint32_t i = first; i < s->n_now; i++) {
        if (s->now[i].key != key) continue;
        s->now[i].below = join(s, s->now[i].below, callers);
        return;
    }
    if (s->n_now == s->max_tops)
        s->failed = true;
    else
        s->now[s->n_now++] = (struct stack_top){key, callers};
}

static void add_calls(struct stacks *s, uint32_t first, struct stack_top top)
{
    const struct automaton *a = s->a;
    const uint32_t state = top.key >> 1;
    for (uint32_t i = a->call_at[state]; i < a->call_at[state + 1]; i++) {
        const struct rule_call c = a->calls[i];
        const uint32_t callers =
            is_last(a, c.back) ? top.below : stacks_push(s, (uint32_t)c.back << 1, top.below);
        add_start(s, first, (uint32_t)c.rule << 1 | (top.key & 1), callers);
    }
}

void stacks_expand(struct stacks *s, uint32_t place)
{
    const struct automaton *a = s->a;
    const struct stack_node node = s->nodes[place];
    s->n_now = 0; /* there is room: places are made of `made` */
    for (uint32_t i = 0; i < node.n; i++)
        if (s->tops[node.tops + i].key >> 1 < a->n_states)
            s->now[s->n_now++] = s->tops[node.tops + i];
    uint32_t at = s->n_now;
    for (uint32_t i = 0; i < at; i++) add_calls(s, at, s->now[i]);
    for (; at < s->n_now && !s->failed; at++) {
        uint32_t best = at; /* the start of the lowest rank, which nobody else will call */
        for (uint32_t i = at + 1; i < s->n_now; i++)
            if (a->rank[s->now[i].key >> 1] < a->rank[s->now[best].key >> 1]) best = i;
        struct stack_top start = s->now[best];
        s->now[best] = s->now[at];
        start.key = (uint32_t)a->start[start.key >> 1] << 1 | (start.key & 1);
        s->now[at] = start;
        add_calls(s, at + 1, start);
    }
}

/* One more way to stand after the byte. */
static void add_top(struct stacks *s, uint32_t key, uint32_t below)
{
    const uint32_t slots = 2 * s->max_tops;
    uint32_t h = (key * 2654435761u >> 16) % slots;
    for (; s->stamp[h] == s->epoch; h = (h + 1) % slots) {
        struct stack_top *top = &s->made[s->slot[h]];
        if (top->key != key) continue;
        const uint32_t both = join(s, top->below, below);
        s->changed[s->slot[h]] |= both != top->below;
        top->below = both;
        return;
    }
    if (s->n_made == s->max_tops) {
        s->failed = true;
        return;
    }
    s->stamp[h] = s->epoch;
    s->slot[h] = (uint16_t)s->n_made;
    s->changed[s->n_made] = true;
    s->made[s->n_made++] = (struct stack_top){key, below};
}

/* Back to whoever called. Where that is not known (compiling), to all places that call the rule: if
 * there is but one, it is known after all. */
static void follow_end(struct stacks *s, struct stack_top top)
{
    const struct automaton *a = s->a;
    const uint32_t state = top.key >> 1;
    if (state < a->n_states) {
        if (!state_is(a, state, STATE_FINAL)) return;
        for (uint32_t i = 0; i < s->nodes[top.below].n; i++) {
            const struct stack_top back = s->tops[s->nodes[top.below].tops + i];
            add_top(s, back.key | (top.key & 1), back.below);
        }
        return;
    }
    const struct stack_exits *x = s->exits;
    const uint32_t rule = state - a->n_states, n = x->at[rule + 1] - x->at[rule];
    for (uint32_t i = x->at[rule]; i < x->at[rule + 1]; i++) {
        const struct exit_site site = x->list[i];
        const uint32_t flag = n > 1 ? 1 : top.key & 1;
        add_top(s, (uint32_t)site.state << 1 | flag,
                site.state == STATE_DONE ? 0 : x->bottom[site.rule]);
    }
}

static int by_key(const void *a, const void *b)
{
    const struct stack_top *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

uint32_t stacks_move(struct stacks *s, uint32_t class)
{
    const struct automaton *a = s->a;
    s->epoch++;
    s->n_made = 0;
    for (uint32_t i = 0; i < s->n_now; i++) {
        const struct stack_top top = s->now[i];
        const uint32_t to = a->next[(size_t)(top.key >> 1) * a->n_classes + class];
        if (to != STATE_NONE) add_top(s, to << 1 | (top.key & 1), top.below);
    }
    for (bool again = true; again && !s->failed;) {
        again = false;
        for (uint32_t i = 0; i < s->n_made; i++) {
            if (!s->changed[i]) continue;
            s->changed[i] = false;
            again = true;
            follow_end(s, s->made[i]);
        }
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_made; i++) {
        const uint32_t key = s->made[i].key, state = key >> 1;
        /* Whoever called, a text that ends with the rule is good: that it did is kept. */
        if (state < a->n_states ? state_is(a, state, STATE_LIVE) : !(key & 1))
            s->made[n++] = s->made[i];
    }
    if (n > 1) qsort(s->made, n, sizeof *s->made, by_key);
    return s->failed ? 0 : node_of(s, s->made, n);
}

uint32_t stacks_start(struct stacks *s)
{
    const struct automaton *a = s->a;
    const uint32_t done = stacks_push(s, STATE_DONE << 1, 0);
    struct stack_top tops[2] = {{STATE_DONE << 1, 0}, {(uint32_t)a->start[0] << 1, done}};
    return a->empty ? node_of(s, tops, 2) : node_of(s, tops + 1, 1);
}

bool stacks_done(const struct stacks *s, uint32_t place)
{
    const struct stack_node *node = &s->nodes[place];
    return node->n > 0 && s->tops[node->tops].key == STATE_DONE << 1;
}

/* ---- memory ---------------------------------------------------------------------------------- */

int stacks_init(struct stacks *s, const struct automaton *a, uint32_t max_tops, struct error *err)
{
    memset(s, 0, sizeof *s);
    s->a = a;
    s->max_tops = max_tops;
    s->cap_nodes = s->n_buckets = 256;
    s->cap_tops = 512;
    s->nodes = calloc(s->cap_nodes, sizeof *s->nodes);
    s->buckets = calloc(s->n_buckets, sizeof *s->buckets);
    s->tops = calloc(s->cap_tops, sizeof *s->tops);
    s->now = calloc(max_tops, sizeof *s->now);
    s->made = calloc(max_tops, sizeof *s->made);
    s->changed = calloc(max_tops, sizeof *s->changed);
    s->stamp = calloc(2 * (size_t)max_tops, sizeof *s->stamp);
    s->slot = calloc(2 * (size_t)max_tops, sizeof *s->slot);
    s->n_nodes = 1;
    if (s->nodes && s->buckets && s->tops && s->now && s->made && s->changed && s->stamp && s->slot)
        return CFG_OK;
    stacks_deinit(s);
    return cfg_fail(err, CFG_ENOMEM, "no memory to follow a grammar");
}

void stacks_deinit(struct stacks *s)
{
    free(s->nodes);
    free(s->buckets);
    free(s->tops);
    free(s->now);
    free(s->made);
    free(s->changed);
    free(s->stamp);
    free(s->slot);
    memset(s, 0, sizeof *s);
}

void stacks_forget(struct stacks *s, uint32_t n_nodes)
{
    if (s->n_nodes == n_nodes) return;
    /* The newest node of a hash is the first of its list. */
    while (s->n_nodes > n_nodes) {
        const struct stack_node *node = &s->nodes[--s->n_nodes];
        s->buckets[bucket_of(s, s->tops + node->tops, node->n)] = node->next;
        s->n_tops = node->tops;
    }
    memset(s->joined, 0, sizeof s->joined);
}

/* A node's parts have lower numbers than it has, so one pass down marks and one pass up moves. The
 * list of nodes of a hash is rebuilt at the end, so `next` is free to hold marks, then new numbers.
 */
void stacks_compact(struct stacks *s, uint32_t *place)
{
    uint32_t n_nodes = 1, n_tops = 0;
    for (uint32_t i = 0; i < s->n_nodes; i++) s->nodes[i].next = 0;
    s->nodes[*place].next = 1;
    for (uint32_t i = *place; i > 0; i--) {
        if (!s->nodes[i].next) continue;
        for (uint32_t j = 0; j < s->nodes[i].n; j++)
            s->nodes[s->tops[s->nodes[i].tops + j].below].next = 1;
    }
    s->nodes[0].next = 0;
    for (uint32_t i = 1; i <= *place; i++) {
        const struct stack_node node = s->nodes[i];
        if (!node.next) continue;
        s->nodes[i].next = n_nodes;
        for (uint32_t j = 0; j < node.n; j++) {
            const struct stack_top top = s->tops[node.tops + j];
            s->tops[n_tops + j] = (struct stack_top){top.key, s->nodes[top.below].next};
        }
        /* The new place of the node may be that of one that is yet to move: keep that one's. */
        s->nodes[n_nodes].tops = n_tops;
        s->nodes[n_nodes].n = node.n;
        n_tops += node.n;
        n_nodes++;
    }
    *place = s->nodes[*place].next;
    s->n_nodes = n_nodes;
    s->n_tops = n_tops;
    memset(s->joined, 0, sizeof s->joined);
    rehash(s);
}
