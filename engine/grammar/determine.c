// SPDX-License-Identifier: Apache-2.0
//
// determine.c: makes each rule deterministic, by the usual construction of sets of states. Calls
// are symbols like classes of bytes, so where two ways call the same rule there is one call, with
// the union of what follows. Number and total size of the sets are bounded: patterns whose sets
// explode are refused.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/automaton.h"

enum {
    MAX_STATES = 60000,
    MAX_CALLS = 1 << 20,
    MAX_MEMBERS = 1 << 23,
    MAX_WORK = 1 << 26, /* transitions of members: a fraction of a second */
    HASH = 1 << 17
};

/* A deterministic state's members: states of the nfa that have edges with bytes or calls, and the
 * rule's end; sorted. */
struct set {
    uint32_t at, n;
};

struct link {
    uint32_t to, next;
};

struct call_edge {
    uint32_t rule, to;
};

struct determine {
    const struct nfa *n;
    const struct checked *c;
    struct automaton *a;
    struct error *err;
    uint32_t *number;  /* [n_rules] of the nfa's rule among the automaton's */
    uint32_t *members; /* of all sets */
    size_t n_members, cap_members, cap_states, cap_calls;
    struct set *sets; /* [cap_states] by state */
    uint32_t *hash;   /* [HASH] states of this rule by their set; 0: free */
    uint32_t *used;   /* [n_used] the places of it that are not free */
    size_t n_used;
    uint32_t *seen; /* [nfa states] = epoch: in the set that is being made */
    uint32_t epoch;
    uint32_t *set, *targets; /* [nfa states], [nfa edges] scratch */
    uint32_t n_set, n_targets;
    uint32_t head[256]; /* by class: list of targets in links */
    struct link *links;
    size_t n_links, cap_links;
    struct call_edge *call_edges; /* [nfa edges] */
    size_t n_call_edges;
    size_t work;
    uint32_t end; /* of the rule */
};

static int no_memory(struct determine *d)
{
    return cfg_fail(d->err, CFG_ENOMEM, "no memory for a grammar");
}

static int too_complex(struct determine *d)
{
    return cfg_fail(d->err, CFG_EINVAL, "the grammar is too complex to be made deterministic");
}

/* Room for `more` items beyond n. */
static bool grow(void *list, size_t item, size_t n, size_t more, size_t *cap)
{
    void **p = list;
    if (n + more <= *cap) return true;
    size_t wider = *cap ? *cap : 256;
    while (wider < n + more) wider *= 2;
    void *q = realloc(*p, wider * item);
    if (!q) return false;
    *p = q;
    *cap = wider;
    return true;
}

/* ---- classes of bytes ------------------------------------------------------------------------ */

/* Bytes between whose neighbours no edge's range begins or ends behave alike. */
static void find_classes(struct determine *d)
{
    bool begins[257] = {[0] = true};
    for (size_t e = 0; e < d->n->n_edges; e++) {
        const uint32_t symbol = d->n->edges[e].symbol;
        if ((symbol & NFA_CALL) || !(symbol & NFA_BYTES)) continue;
        begins[symbol >> 8 & 0xff] = true;
        begins[(symbol & 0xff) + 1] = true;
    }
    unsigned class = 0;
    for (unsigned b = 0; b < 256; b++) {
        if (b && begins[b]) class ++;
        d->a->class_of[b] = (uint8_t) class;
    }
    d->a->n_classes = class + 1;
}

/* ---- sets ------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* d->set becomes what d->targets reach without a byte, as far as a set's members go. */
static void close_set(struct determine *d)
{
    const struct nfa *n = d->n;
    d->epoch++;
    d->n_set = 0;
    uint32_t n_stack = 0, *stack = d->targets;
    for (uint32_t i = 0; i < d->n_targets; i++) {
        const uint32_t state = d->targets[i];
        if (d->seen[state] == d->epoch || !d->c->alive[state]) continue;
        d->seen[state] = d->epoch;
        stack[n_stack++] = state;
    }
    while (n_stack > 0) {
        const uint32_t state = stack[--n_stack];
        bool member = state == d->end;
        for (uint32_t e = n->first[state]; e != NFA_NONE; e = n->edges[e].next) {
            const uint32_t to = n->edges[e].to;
            if (!d->c->alive[to]) continue;
            if (n->edges[e].symbol != NFA_EPSILON) {
                member = true;
            } else if (d->seen[to] != d->epoch) {
                d->seen[to] = d->epoch;
                stack[n_stack++] = to;
            }
        }
        if (member) d->set[d->n_set++] = state;
    }
    qsort(d->set, d->n_set, sizeof *d->set, by_value);
}

static int add_state(struct determine *d, uint32_t rule, bool final, uint32_t *state)
{
    struct automaton *a = d->a;
    if (a->n_states >= MAX_STATES || d->n_members + d->n_set > MAX_MEMBERS) return too_complex(d);
    if (a->n_states == d->cap_states) {
        const size_t cap = 2 * d->cap_states;
        uint16_t *next = realloc(a->next, cap * a->n_classes * sizeof *next);
        if (next) a->next = next;
        uint8_t *flags = realloc(a->flags, cap);
        if (flags) a->flags = flags;
        uint16_t *rule_of = realloc(a->rule_of, cap * sizeof *rule_of);
        if (rule_of) a->rule_of = rule_of;
        uint32_t *call_at = realloc(a->call_at, (cap + 1) * sizeof *call_at);
        if (call_at) a->call_at = call_at;
        struct set *sets = realloc(d->sets, cap * sizeof *sets);
        if (sets) d->sets = sets;
        if (!next || !flags || !rule_of || !call_at || !sets) return no_memory(d);
        d->cap_states = cap;
    }
    if (!grow(&d->members, sizeof *d->members, d->n_members, d->n_set, &d->cap_members))
        return no_memory(d);
    *state = a->n_states++;
    memset(a->next + (size_t)*state * a->n_classes, 0, a->n_classes * sizeof *a->next);
    a->flags[*state] = final ? STATE_FINAL : 0;
    a->rule_of[*state] = (uint16_t)rule;
    d->sets[*state] = (struct set){(uint32_t)d->n_members, d->n_set};
    if (d->n_set) memcpy(d->members + d->n_members, d->set, d->n_set * sizeof *d->set);
    d->n_members += d->n_set;
    return CFG_OK;
}

static bool set_has(const struct determine *d, uint32_t state)
{
    return bsearch(&state, d->set, d->n_set, sizeof *d->set, by_value) != NULL;
}

/* The state of the set that d->targets make; STATE_NONE when that is empty. */
static int state_of_targets(struct determine *d, uint32_t rule, uint32_t *state)
{
    close_set(d);
    *state = STATE_NONE;
    if (d->n_set == 0) return CFG_OK;
    uint32_t h = 2166136261u;
    for (uint32_t i = 0; i < d->n_set; i++) h = (h ^ d->set[i]) * 16777619u;
    h = (h ^ h >> 15) & (HASH - 1);
    for (; d->hash[h]; h = (h + 1) & (HASH - 1)) {
        const struct set *s = &d->sets[d->hash[h]];
        if (s->n != d->n_set || memcmp(d->members + s->at, d->set, s->n * sizeof *d->set) != 0)
            continue;
        *state = d->hash[h];
        return CFG_OK;
    }
    const int rc = add_state(d, rule, set_has(d, d->end), state);
    if (rc) return rc;
    d->hash[h] = *state;
    d->used[d->n_used++] = h;
    return CFG_OK;
}

/* ---- transitions ----------------------------------------------------------------------------- */

/* Sorts the edges of a state's members into the classes' lists and the calls. */
static int gather(struct determine *d, struct set s)
{
    const struct nfa *n = d->n;
    for (uint32_t i = 0; i < d->a->n_classes; i++) d->head[i] = NFA_NONE;
    d->n_links = d->n_call_edges = 0;
    if (d->work > MAX_WORK) return too_complex(d);
    for (uint32_t i = 0; i < s.n; i++) {
        for (uint32_t e = n->first[d->members[s.at + i]]; e != NFA_NONE; e = n->edges[e].next) {
            const struct nfa_edge *edge = &n->edges[e];
            if (edge->symbol == NFA_EPSILON || !d->c->alive[edge->to]) continue;
            if (edge->symbol & NFA_CALL) {
                const uint32_t callee = edge->symbol & ~NFA_CALL;
                /* A rule that never ends leaves what follows alive only by other ways. */
                if (d->c->alive[n->rules[callee].start])
                    d->call_edges[d->n_call_edges++] =
                        (struct call_edge){d->number[callee], edge->to};
                continue;
            }
            const unsigned lo = d->a->class_of[edge->symbol >> 8 & 0xff];
            const unsigned hi = d->a->class_of[edge->symbol & 0xff];
            if (!grow(&d->links, sizeof *d->links, d->n_links, hi - lo + 1, &d->cap_links))
                return no_memory(d);
            d->work += hi - lo + 1;
            for (unsigned k = lo; k <= hi; k++) {
                d->links[d->n_links] = (struct link){edge->to, d->head[k]};
                d->head[k] = (uint32_t)d->n_links++;
            }
        }
    }
    return CFG_OK;
}

static bool same_targets(const struct determine *d, uint32_t x, uint32_t y)
{
    for (; x != NFA_NONE && y != NFA_NONE; x = d->links[x].next, y = d->links[y].next)
        if (d->links[x].to != d->links[y].to) return false;
    return x == y;
}

static int add_bytes(struct determine *d, uint32_t rule, uint32_t state)
{
    struct automaton *a = d->a;
    for (uint32_t k = 0; k < a->n_classes; k++) {
        uint32_t to = STATE_NONE;
        if (k > 0 && same_targets(d, d->head[k], d->head[k - 1])) {
            to = a->next[(size_t)state * a->n_classes + k - 1];
        } else if (d->head[k] != NFA_NONE) {
            d->n_targets = 0;
            for (uint32_t i = d->head[k]; i != NFA_NONE; i = d->links[i].next)
                d->targets[d->n_targets++] = d->links[i].to;
            const int rc = state_of_targets(d, rule, &to);
            if (rc) return rc;
        }
        a->next[(size_t)state * a->n_classes + k] = (uint16_t)to;
    }
    return CFG_OK;
}

static int by_rule(const void *a, const void *b)
{
    const struct call_edge *x = a, *y = b;
    if (x->rule != y->rule) return x->rule < y->rule ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to);
}

static int add_calls(struct determine *d, uint32_t rule, uint32_t state)
{
    struct automaton *a = d->a;
    uint32_t n_calls = a->call_at[state];
    qsort(d->call_edges, d->n_call_edges, sizeof *d->call_edges, by_rule);
    for (size_t i = 0; i < d->n_call_edges;) {
        const uint32_t callee = d->call_edges[i].rule;
        uint32_t back;
        d->n_targets = 0;
        for (; i < d->n_call_edges && d->call_edges[i].rule == callee; i++)
            d->targets[d->n_targets++] = d->call_edges[i].to;
        const int rc = state_of_targets(d, rule, &back);
        if (rc) return rc;
        if (n_calls >= MAX_CALLS) return too_complex(d);
        if (!grow(&a->calls, sizeof *a->calls, n_calls, 1, &d->cap_calls)) return no_memory(d);
        a->calls[n_calls++] = (struct rule_call){(uint16_t)callee, (uint16_t)back};
    }
    a->call_at[state + 1] = n_calls;
    return CFG_OK;
}

static int add_rule(struct determine *d, uint32_t nfa_rule)
{
    struct automaton *a = d->a;
    const uint32_t rule = d->number[nfa_rule];
    uint32_t state = a->n_states;
    int rc = CFG_OK;
    d->end = d->n->rules[nfa_rule].end;
    while (d->n_used > 0) d->hash[d->used[--d->n_used]] = 0;
    d->targets[0] = d->n->rules[nfa_rule].start;
    d->n_targets = 1;
    a->start[rule] = (uint16_t)state;
    a->rank[rule] = d->c->rank[nfa_rule];
    /* A start where the rule may end is left behind by the first byte: its set's state is another.
     */
    if (d->c->empty[nfa_rule]) {
        close_set(d);
        rc = add_state(d, rule, false, &state);
    } else {
        uint32_t start;
        rc = state_of_targets(d, rule, &start);
    }
    for (; !rc && state < a->n_states; state++) {
        const struct set s = d->sets[state];
        rc = gather(d, s);
        if (!rc) rc = add_bytes(d, rule, state);
        if (!rc) rc = add_calls(d, rule, state);
    }
    return rc;
}

static void mark_live(struct automaton *a)
{
    for (uint32_t s = STATE_FIRST; s < a->n_states; s++) {
        bool live = a->call_at[s] < a->call_at[s + 1];
        for (uint32_t k = 0; k < a->n_classes && !live; k++)
            live = a->next[(size_t)s * a->n_classes + k] != STATE_NONE;
        if (live) a->flags[s] |= STATE_LIVE;
    }
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int allocate(struct determine *d)
{
    const size_t states = d->n->n_states, edges = d->n->n_edges;
    struct automaton *a = d->a;
    d->cap_states = 1024;
    a->next = calloc(d->cap_states * a->n_classes, sizeof *a->next);
    a->flags = calloc(d->cap_states, 1);
    a->rule_of = calloc(d->cap_states, sizeof *a->rule_of);
    a->call_at = calloc(d->cap_states + 1, sizeof *a->call_at);
    a->start = calloc(a->n_rules, sizeof *a->start);
    a->rank = calloc(a->n_rules, sizeof *a->rank);
    d->sets = calloc(d->cap_states, sizeof *d->sets);
    d->hash = calloc(HASH, sizeof *d->hash);
    d->used = calloc(MAX_STATES, sizeof *d->used);
    d->seen = calloc(states, sizeof *d->seen);
    d->set = calloc(states, sizeof *d->set);
    d->targets = calloc(states + edges + 1, sizeof *d->targets);
    d->call_edges = calloc(edges + 1, sizeof *d->call_edges);
    if (!a->next || !a->flags || !a->rule_of || !a->call_at || !a->start || !a->rank || !d->sets ||
        !d->hash || !d->used || !d->seen || !d->set || !d->targets || !d->call_edges)
        return no_memory(d);
    a->n_states = STATE_FIRST;
    a->flags[STATE_DONE] = STATE_LIVE;
    return CFG_OK;
}

int automaton_new(struct automaton *out, const struct nfa *n, const bool *live,
                  const struct checked *c, struct error *err)
{
    struct determine d = {.n = n, .c = c, .a = out, .err = err};
    *out = (struct automaton){.empty = c->empty[0]};
    find_classes(&d);
    d.number = calloc(n->n_rules, sizeof *d.number);
    if (!d.number) return no_memory(&d);
    for (uint32_t r = 0; r < n->n_rules; r++)
        if (live[r] && c->alive[n->rules[r].start]) d.number[r] = out->n_rules++;
    int rc = allocate(&d);
    for (uint32_t r = 0; r < n->n_rules && !rc; r++)
        if (live[r] && c->alive[n->rules[r].start]) rc = add_rule(&d, r);
    if (!rc) mark_live(out);
    free(d.number);
    free(d.members);
    free(d.sets);
    free(d.hash);
    free(d.used);
    free(d.seen);
    free(d.set);
    free(d.targets);
    free(d.links);
    free(d.call_edges);
    if (rc) automaton_deinit(out);
    return rc;
}

void automaton_deinit(struct automaton *a)
{
    free(a->next);
    free(a->flags);
    free(a->rule_of);
    free(a->call_at);
    free(a->calls);
    free(a->start);
    free(a->rank);
    *a = (struct automaton){0};
}

size_t automaton_bytes(const struct automaton *a)
{
    return a->n_states * (a->n_classes * sizeof *a->next + sizeof *a->flags + sizeof *a->rule_of +
                          sizeof *a->call_at) +
           a->call_at[a->n_states] * sizeof *a->calls +
           a->n_rules * (sizeof *a->start + sizeof *a->rank);
}
