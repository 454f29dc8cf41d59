// SPDX-License-Identifier: Apache-2.0
//
// check.c: what must hold of the rules before they are made deterministic. From every state that is
// kept the rule's end can be reached, so that no answer runs into a dead end; no rule begins with a
// call of itself; and a call never matches the empty text, since it has a way around it.
//
// Both walks, back from the ends and forward from the starts, go on through a call once its rule is
// known to have an end, or to match the empty text; so each edge is looked at twice at most.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/automaton.h"

struct check {
    struct nfa *n;
    const bool *live;
    struct checked *out;
    bool *begun;                 /* [n_states] reached from its rule's start without a byte */
    bool *ends;                  /* [n_rules] its end can be reached from its start */
    uint32_t *rule_at;           /* [n_states] + 1: the rule that starts here; 0: none */
    uint32_t *back, *back_next;  /* [n_states], [n_edges] lists of the edges into a state */
    uint32_t *sites, *site_next; /* [n_rules], [n_edges] lists of the edges that call a rule */
    uint32_t *stack;             /* [n_states] */
    size_t n_stack;
};

static void visit(struct check *c, bool *marks, uint32_t state)
{
    if (marks[state]) return;
    marks[state] = true;
    c->stack[c->n_stack++] = state;
}

static void list_edges(struct check *c)
{
    const struct nfa *n = c->n;
    for (size_t s = 0; s < n->n_states; s++) c->back[s] = NFA_NONE;
    for (size_t r = 0; r < n->n_rules; r++) c->sites[r] = NFA_NONE;
    for (uint32_t e = 0; e < n->n_edges; e++) {
        const struct nfa_edge *edge = &n->edges[e];
        c->back_next[e] = c->back[edge->to];
        c->back[edge->to] = e;
        if (!(edge->symbol & NFA_CALL)) continue;
        c->site_next[e] = c->sites[edge->symbol & ~NFA_CALL];
        c->sites[edge->symbol & ~NFA_CALL] = e;
    }
    for (uint32_t r = 0; r < n->n_rules; r++)
        if (c->live[r]) c->rule_at[n->rules[r].start] = r + 1;
}

/* Back from the ends of all rules. */
static void find_alive(struct check *c)
{
    const struct nfa *n = c->n;
    bool *alive = c->out->alive;
    for (size_t r = 0; r < n->n_rules; r++)
        if (c->live[r]) visit(c, alive, n->rules[r].end);
    while (c->n_stack > 0) {
        const uint32_t state = c->stack[--c->n_stack];
        for (uint32_t e = c->back[state]; e != NFA_NONE; e = c->back_next[e]) {
            const uint32_t symbol = n->edges[e].symbol;
            if (!(symbol & NFA_CALL) || c->ends[symbol & ~NFA_CALL])
                visit(c, alive, n->edges[e].from);
        }
        if (!c->rule_at[state]) continue;
        const uint32_t rule = c->rule_at[state] - 1;
        c->ends[rule] = true;
        for (uint32_t e = c->sites[rule]; e != NFA_NONE; e = c->site_next[e])
            if (alive[n->edges[e].to]) visit(c, alive, n->edges[e].from);
    }
}

/* Forward from the starts of all rules, without a byte. Rules' states are disjoint, so a rule
 * matches the empty text when its end is reached. */
static void find_empty(struct check *c)
{
    const struct nfa *n = c->n;
    bool *empty = c->out->empty;
    for (size_t r = 0; r < n->n_rules; r++)
        if (c->live[r]) visit(c, c->begun, n->rules[r].start);
    for (bool changed = true; changed;) {
        while (c->n_stack > 0) {
            const uint32_t state = c->stack[--c->n_stack];
            for (uint32_t e = n->first[state]; e != NFA_NONE; e = n->edges[e].next) {
                const uint32_t symbol = n->edges[e].symbol;
                if (symbol == NFA_EPSILON || ((symbol & NFA_CALL) && empty[symbol & ~NFA_CALL]))
                    visit(c, c->begun, n->edges[e].to);
            }
        }
        changed = false;
        for (size_t r = 0; r < n->n_rules; r++) {
            if (!c->live[r] || empty[r] || !c->begun[n->rules[r].end]) continue;
            empty[r] = changed = true;
            for (uint32_t e = c->sites[r]; e != NFA_NONE; e = c->site_next[e])
                if (c->begun[n->edges[e].from]) visit(c, c->begun, n->edges[e].to);
        }
    }
}

/* ---- left recursion ------------------------------------------------------------------------- */

/* The rules that each rule begins with a call of. */
struct firsts {
    uint32_t *at;    /* [n_rules + 1] into list */
    uint32_t *list;  /* [at[n_rules]] */
    uint32_t *count; /* [n_rules] how often it is in the list */
    uint32_t *order; /* [n_order] of rules, callers first */
    size_t n_order;
    bool *seen; /* [n_rules] */
};

/* A rule's states are its own, so no call is found twice and `begun` tells where a rule begins. */
static void find_firsts(struct check *c, struct firsts *f)
{
    const struct nfa *n = c->n;
    bool *seen = c->begun; /* taken down on the way: each state is visited once */
    uint32_t n_list = 0;
    for (uint32_t r = 0; r < n->n_rules; r++) {
        f->at[r] = n_list;
        if (!c->live[r]) continue;
        c->n_stack = 0;
        c->stack[c->n_stack++] = n->rules[r].start;
        seen[n->rules[r].start] = false;
        while (c->n_stack > 0) {
            const uint32_t state = c->stack[--c->n_stack];
            for (uint32_t e = n->first[state]; e != NFA_NONE; e = n->edges[e].next) {
                const uint32_t to = n->edges[e].to, callee = n->edges[e].symbol & ~NFA_CALL;
                const bool call = n->edges[e].symbol & NFA_CALL;
                if (call && c->ends[callee] && c->out->alive[to]) f->list[n_list++] = callee;
                if (n->edges[e].symbol & NFA_BYTES || (call && !c->out->empty[callee])) continue;
                if (seen[to]) c->stack[c->n_stack++] = to;
                seen[to] = false;
            }
        }
    }
    f->at[n->n_rules] = n_list;
}

/* Begins with a call of itself, perhaps by others. */
static bool is_left_recursive(struct check *c, struct firsts *f, uint32_t rule)
{
    memset(f->seen, 0, c->n->n_rules * sizeof *f->seen);
    c->n_stack = 0;
    c->stack[c->n_stack++] = rule;
    while (c->n_stack > 0) {
        const uint32_t r = c->stack[--c->n_stack];
        for (uint32_t i = f->at[r]; i < f->at[r + 1]; i++)
            if (!f->seen[f->list[i]]) visit(c, f->seen, f->list[i]);
        if (f->seen[rule]) return true;
    }
    return false;
}

/* Orders the rules so that who begins with a call comes before whom it calls. */
static void order_rules(struct check *c, struct firsts *f)
{
    struct nfa *n = c->n;
    size_t n_live = 0;
    find_firsts(c, f);
    for (uint32_t i = 0; i < f->at[n->n_rules]; i++) f->count[f->list[i]]++;
    for (uint32_t r = 0; r < n->n_rules; r++) {
        n_live += c->live[r];
        if (c->live[r] && f->count[r] == 0) f->order[f->n_order++] = r;
    }
    for (size_t i = 0; i < f->n_order; i++) {
        const uint32_t r = f->order[i];
        c->out->rank[r] = (uint16_t)i;
        for (uint32_t j = f->at[r]; j < f->at[r + 1]; j++)
            if (--f->count[f->list[j]] == 0) f->order[f->n_order++] = f->list[j];
    }
    for (uint32_t r = 0; r < n->n_rules && f->n_order < n_live && !n->failed; r++)
        if (c->live[r] && f->count[r] > 0 && is_left_recursive(c, f, r))
            nfa_fail(n, CFG_EINVAL, "%.60s begins with itself (left recursion)", n->rules[r].name);
}

static void find_rank(struct check *c)
{
    const size_t rules = c->n->n_rules;
    uint32_t *lists = calloc(3 * rules + 1 + c->n->n_edges, sizeof *lists);
    struct firsts f = {.at = lists, .seen = calloc(rules, sizeof *f.seen)};
    if (lists && f.seen) {
        f.count = f.at + rules + 1;
        f.order = f.count + rules;
        f.list = f.order + rules;
        order_rules(c, &f);
    } else {
        nfa_fail(c->n, CFG_ENOMEM, "no memory for a grammar");
    }
    free(lists);
    free(f.seen);
}

static void add_ways_around(struct check *c)
{
    struct nfa *n = c->n;
    const size_t n_edges = n->n_edges;
    for (size_t e = 0; e < n_edges && !n->failed; e++) {
        const struct nfa_edge edge = n->edges[e];
        if ((edge.symbol & NFA_CALL) && c->out->empty[edge.symbol & ~NFA_CALL])
            nfa_epsilon(n, edge.from, edge.to);
    }
}

static void check(struct check *c)
{
    struct nfa *n = c->n;
    list_edges(c);
    find_alive(c);
    if (!c->ends[0]) {
        nfa_fail(n, CFG_EINVAL, "no finite text matches %.60s", n->rules[0].name);
        return;
    }
    find_empty(c);
    find_rank(c);
    add_ways_around(c);
}

int check_rules(struct nfa *n, const bool *live, struct checked *out)
{
    const size_t states = n->n_states, rules = n->n_rules, edges = n->n_edges;
    struct check c = {.n = n, .live = live, .out = out};
    bool *flags = calloc(states + rules, sizeof *flags);
    uint32_t *lists = calloc(3 * states + 2 * edges + rules, sizeof *lists);
    *out = (struct checked){.alive = calloc(states, sizeof *out->alive),
                            .empty = calloc(rules, sizeof *out->empty),
                            .rank = calloc(rules, sizeof *out->rank)};
    if (flags && lists && out->alive && out->empty && out->rank) {
        c.begun = flags;
        c.ends = flags + states;
        c.rule_at = lists;
        c.back = c.rule_at + states;
        c.stack = c.back + states;
        c.back_next = c.stack + states;
        c.site_next = c.back_next + edges;
        c.sites = c.site_next + edges;
        check(&c);
    } else {
        nfa_fail(n, CFG_ENOMEM, "no memory for a grammar");
    }
    free(flags);
    free(lists);
    if (n->failed) checked_deinit(out);
    return n->failed;
}

void checked_deinit(struct checked *c)
{
    free(c->alive);
    free(c->empty);
    free(c->rank);
    *c = (struct checked){0};
}
