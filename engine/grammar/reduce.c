// SPDX-License-Identifier: Apache-2.0
//
// reduce.c: fewer calls. What a token may be inside a rule is known when the grammar is compiled;
// what it may be past a rule's end depends on who called. So a rule that has one caller, or is
// small, becomes part of its callers; and a rule whose last part is the rule itself becomes a loop.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/automaton.h"

enum { SMALL_RULE = 24 /* edges */ };

struct reduce {
    struct nfa *n;
    bool *live;          /* [n_rules] */
    uint32_t *into;      /* [n_rules] the rule that this one became part of; itself: none */
    uint32_t *owner;     /* [states] the rule a state was made for */
    uint32_t *sites;     /* [n_rules] list of the edges that call it, by site_next */
    uint32_t *site_next; /* [edges] */
    uint32_t *calls;     /* [n_rules] sites that are left */
    uint32_t *stack;     /* [states] of walks */
    uint32_t *map;       /* [states] of copies: the state's copy; NFA_NONE */
};

static bool is_call(const struct nfa_edge *e, uint32_t rule)
{
    return e->symbol == (NFA_CALL | rule);
}

static void add_site(struct reduce *r, uint32_t edge)
{
    const uint32_t rule = r->n->edges[edge].symbol & ~NFA_CALL;
    r->site_next[edge] = r->sites[rule];
    r->sites[rule] = edge;
    r->calls[rule]++;
}

/* The rule that a state is part of by now. */
static uint32_t owner_of(const struct reduce *r, uint32_t state)
{
    uint32_t rule = r->owner[state];
    while (r->into[rule] != rule) rule = r->into[rule];
    return rule;
}

/* All states of a rule, in r->stack; returns how many. r->map must be NFA_NONE all over and is set
 * to 0 for them: unmark when done. */
static size_t states_of(struct reduce *r, uint32_t rule)
{
    const struct nfa *n = r->n;
    size_t found = 1;
    r->stack[0] = n->rules[rule].start;
    r->map[r->stack[0]] = 0;
    for (size_t i = 0; i < found; i++) {
        for (uint32_t e = n->first[r->stack[i]]; e != NFA_NONE; e = n->edges[e].next) {
            const uint32_t to = n->edges[e].to;
            if (r->map[to] != NFA_NONE) continue;
            r->map[to] = 0;
            r->stack[found++] = to;
        }
    }
    return found;
}

static void unmark(struct reduce *r, size_t found)
{
    for (size_t i = 0; i < found; i++) r->map[r->stack[i]] = NFA_NONE;
}

/* Walks from the root to all rules that are called, one after the other. */
static void find_sites(struct reduce *r)
{
    const struct nfa *n = r->n;
    // NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI) ; there is a root
    uint32_t *queue = calloc(n->n_rules, sizeof *queue);
    size_t n_queue = 1;
    if (!queue) {
        nfa_fail(r->n, CFG_ENOMEM, "no memory for a grammar");
        return;
    }
    r->live[0] = true;
    for (size_t q = 0; q < n_queue; q++) {
        const size_t found = states_of(r, queue[q]);
        for (size_t i = 0; i < found; i++) {
            r->owner[r->stack[i]] = queue[q];
            for (uint32_t e = n->first[r->stack[i]]; e != NFA_NONE; e = n->edges[e].next) {
                if (!(n->edges[e].symbol & NFA_CALL)) continue;
                const uint32_t callee = n->edges[e].symbol & ~NFA_CALL;
                add_site(r, e);
                if (!r->live[callee]) queue[n_queue++] = callee;
                r->live[callee] = true;
            }
        }
        unmark(r, found);
    }
    free(queue);
}

/* Only the rule's end can follow the state, without a byte. */
static bool only_end(struct reduce *r, uint32_t state, uint32_t end)
{
    const struct nfa *n = r->n;
    size_t found = 1;
    bool reached = false, other = false;
    r->stack[0] = state;
    r->map[state] = 0;
    for (size_t i = 0; i < found && !other; i++) {
        reached |= r->stack[i] == end;
        for (uint32_t e = n->first[r->stack[i]]; e != NFA_NONE; e = n->edges[e].next) {
            other |= n->edges[e].symbol != NFA_EPSILON;
            if (r->map[n->edges[e].to] != NFA_NONE) continue;
            r->map[n->edges[e].to] = 0;
            r->stack[found++] = n->edges[e].to;
        }
    }
    unmark(r, found);
    return reached && !other;
}

/* A rule that ends with a call of itself goes back to its start instead. */
static void make_loops(struct reduce *r, uint32_t rule)
{
    struct nfa *n = r->n;
    for (uint32_t s = r->sites[rule]; s != NFA_NONE; s = r->site_next[s]) {
        struct nfa_edge *e = &n->edges[s];
        if (!is_call(e, rule) || owner_of(r, e->from) != rule) continue;
        if (!only_end(r, e->to, n->rules[rule].end)) continue;
        e->symbol = NFA_EPSILON;
        e->to = n->rules[rule].start;
        r->calls[rule]--;
    }
}

static bool calls_itself(const struct reduce *r, uint32_t rule)
{
    for (uint32_t s = r->sites[rule]; s != NFA_NONE; s = r->site_next[s])
        if (is_call(&r->n->edges[s], rule) && owner_of(r, r->n->edges[s].from) == rule) return true;
    return false;
}

/* The one call becomes the rule's own states. */
static void link_rule(struct reduce *r, uint32_t rule)
{
    struct nfa *n = r->n;
    for (uint32_t s = r->sites[rule]; s != NFA_NONE; s = r->site_next[s]) {
        if (!is_call(&n->edges[s], rule)) continue;
        const uint32_t back = n->edges[s].to;
        r->into[rule] = owner_of(r, n->edges[s].from);
        n->edges[s].symbol = NFA_EPSILON;
        n->edges[s].to = n->rules[rule].start;
        nfa_epsilon(n, n->rules[rule].end, back);
        r->live[rule] = false;
        return;
    }
}

/* Each call becomes a copy of the rule's states (`found` of them, in r->stack). */
static void copy_to_site(struct reduce *r, uint32_t rule, uint32_t site, size_t found)
{
    struct nfa *n = r->n;
    const uint32_t owner = owner_of(r, n->edges[site].from), back = n->edges[site].to;
    for (size_t i = 0; i < found && !n->failed; i++) {
        r->map[r->stack[i]] = nfa_state(n);
        r->owner[r->map[r->stack[i]]] = owner;
        r->map[r->map[r->stack[i]]] = NFA_NONE;
    }
    for (size_t i = 0; i < found && !n->failed; i++) {
        for (uint32_t e = n->first[r->stack[i]]; e != NFA_NONE && !n->failed;
             e = n->edges[e].next) {
            const struct nfa_edge old = n->edges[e];
            nfa_edge(n, r->map[old.from], r->map[old.to], old.symbol);
        }
    }
    n->edges[site].symbol = NFA_EPSILON;
    n->edges[site].to = r->map[n->rules[rule].start];
    if (r->map[n->rules[rule].end] != NFA_NONE && !n->failed)
        nfa_epsilon(n, r->map[n->rules[rule].end], back);
}

static void copy_rule(struct reduce *r, uint32_t rule, size_t found)
{
    struct nfa *n = r->n;
    for (uint32_t s = r->sites[rule]; s != NFA_NONE && !n->failed; s = r->site_next[s])
        if (is_call(&n->edges[s], rule)) copy_to_site(r, rule, s, found);
    /* What is left is not called any more, and calls nobody. */
    for (size_t i = 0; i < found; i++) {
        for (uint32_t e = n->first[r->stack[i]]; e != NFA_NONE; e = n->edges[e].next) {
            if (!(n->edges[e].symbol & NFA_CALL)) continue;
            r->calls[n->edges[e].symbol & ~NFA_CALL]--;
            n->edges[e].symbol = NFA_EPSILON;
        }
    }
    r->live[rule] = false;
}

/* How many edges the rule's states have; more than any rule's when one of them is a call. */
static size_t size_of(const struct reduce *r, size_t found)
{
    size_t edges = 0;
    for (size_t i = 0; i < found; i++) {
        for (uint32_t e = r->n->first[r->stack[i]]; e != NFA_NONE; e = r->n->edges[e].next) {
            if (r->n->edges[e].symbol & NFA_CALL) return SIZE_MAX;
            edges++;
        }
    }
    return edges;
}

/* True when the rule is gone. */
static bool absorb(struct reduce *r, uint32_t rule)
{
    make_loops(r, rule);
    if (rule == 0 || calls_itself(r, rule)) return false;
    if (r->calls[rule] == 1) {
        link_rule(r, rule);
        return true;
    }
    const size_t found = states_of(r, rule);
    const bool copied = r->calls[rule] == 0 || size_of(r, found) <= SMALL_RULE;
    if (copied) copy_rule(r, rule, found);
    unmark(r, found);
    return copied;
}

static int reduce_all(struct reduce *r)
{
    struct nfa *n = r->n;
    find_sites(r);
    for (bool changed = true; changed && !n->failed;) {
        changed = false;
        for (uint32_t rule = 0; rule < n->n_rules && !n->failed; rule++)
            if (r->live[rule]) changed |= absorb(r, rule);
    }
    return n->failed;
}

int reduce_rules(struct nfa *n, bool *live)
{
    struct reduce r = {.n = n, .live = live};
    uint32_t *lists = malloc((3 * n->n_rules + 4 * NFA_MAX) * sizeof *lists);
    if (!lists) return cfg_fail(n->err, CFG_ENOMEM, "no memory for a grammar");
    r.owner = lists;
    r.site_next = r.owner + NFA_MAX;
    r.stack = r.site_next + NFA_MAX;
    r.map = r.stack + NFA_MAX;
    r.into = r.map + NFA_MAX;
    r.sites = r.into + n->n_rules;
    r.calls = r.sites + n->n_rules;
    for (size_t i = 0; i < n->n_states; i++) r.map[i] = NFA_NONE;
    for (uint32_t i = 0; i < n->n_rules; i++) {
        r.into[i] = i;
        r.sites[i] = NFA_NONE;
        r.calls[i] = 0;
        live[i] = false;
    }
    const int rc = reduce_all(&r);
    free(lists);
    return rc;
}
