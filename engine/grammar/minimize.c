// SPDX-License-Identifier: Apache-2.0
//
// minimize.c: which states behave alike (Moore's algorithm). After r rounds, states of one kind
// can't be told apart by fewer than r bytes, so the kinds after as many rounds as a token has bytes
// are all that masks depend on: a string of up to 1000 characters has 1000 states but few kinds.
// When the rounds come to rest, states of a kind are merged.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/automaton.h"

#define MAX_WORK   ((size_t)400000000) /* looked-at transitions, as far as kinds need */
#define MERGE_WORK ((size_t)40000000)  /* and as far as merging is worth */

struct minimize {
    struct automaton *a;
    uint32_t *kind, *next_kind; /* [n_states] */
    uint32_t *hash;             /* [n_hash] a state of each new kind; 0: free */
    uint32_t *first;            /* [n_states] the first state of a kind */
    size_t n_hash;
    uint32_t n_kinds;
    uint32_t *kept, n_kept; /* the kinds after `reach` rounds; NULL until then */
};

static uint64_t mix(uint64_t h, uint32_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint64_t hash_of(const struct minimize *m, uint32_t s)
{
    const struct automaton *a = m->a;
    const uint16_t *next = a->next + (size_t)s * a->n_classes;
    uint64_t h = mix(0, m->kind[s]);
    for (uint32_t k = 0; k < a->n_classes; k++) h = mix(h, m->kind[next[k]]);
    for (uint32_t i = a->call_at[s]; i < a->call_at[s + 1]; i++)
        h = mix(h, m->kind[a->calls[i].back] ^ (uint32_t)a->calls[i].rule << 16);
    return h;
}

static bool alike(const struct minimize *m, uint32_t s, uint32_t t)
{
    const struct automaton *a = m->a;
    const uint16_t *x = a->next + (size_t)s * a->n_classes, *y = a->next + (size_t)t * a->n_classes;
    const uint32_t c = a->call_at[s], d = a->call_at[t], n = a->call_at[s + 1] - c;
    if (m->kind[s] != m->kind[t] || n != a->call_at[t + 1] - d) return false;
    for (uint32_t k = 0; k < a->n_classes; k++)
        if (m->kind[x[k]] != m->kind[y[k]]) return false;
    for (uint32_t i = 0; i < n; i++)
        if (a->calls[c + i].rule != a->calls[d + i].rule ||
            m->kind[a->calls[c + i].back] != m->kind[a->calls[d + i].back])
            return false;
    return true;
}

/* Rules and their ends. */
static void first_kinds(struct minimize *m)
{
    const struct automaton *a = m->a;
    m->kind[STATE_NONE] = 0;
    m->kind[STATE_DONE] = 1;
    for (uint32_t s = STATE_FIRST; s < a->n_states; s++)
        m->kind[s] = 2 + 2 * (uint32_t)a->rule_of[s] + (state_is(a, s, STATE_FINAL) ? 1 : 0);
}

/* Tells states apart that lead to states of different kinds. */
static void refine(struct minimize *m)
{
    const struct automaton *a = m->a;
    uint32_t n = STATE_FIRST;
    memset(m->hash, 0, m->n_hash * sizeof *m->hash);
    m->next_kind[STATE_NONE] = 0;
    m->next_kind[STATE_DONE] = 1;
    for (uint32_t s = STATE_FIRST; s < a->n_states; s++) {
        size_t h = (size_t)hash_of(m, s) & (m->n_hash - 1);
        while (m->hash[h] && !alike(m, m->hash[h], s)) h = (h + 1) & (m->n_hash - 1);
        if (!m->hash[h]) {
            m->hash[h] = s;
            m->first[n] = s;
            m->next_kind[s] = n++;
        } else {
            m->next_kind[s] = m->next_kind[m->hash[h]];
        }
    }
    uint32_t *old = m->kind;
    m->kind = m->next_kind;
    m->next_kind = old;
    m->n_kinds = n;
}

/* One state is left of each kind. */
static void merge(struct minimize *m)
{
    struct automaton *a = m->a;
    const uint32_t k = a->n_classes;
    uint32_t n_calls = 0;
    for (uint32_t r = 0; r < a->n_rules; r++) a->start[r] = (uint16_t)m->kind[a->start[r]];
    /* Kinds are numbered in order of their first states, so nothing is written before it is read.
     */
    for (uint32_t s = STATE_FIRST; s < m->n_kinds; s++) {
        const uint32_t old = m->first[s], calls = a->call_at[old], end = a->call_at[old + 1];
        for (uint32_t i = 0; i < k; i++)
            a->next[(size_t)s * k + i] = (uint16_t)m->kind[a->next[(size_t)old * k + i]];
        a->flags[s] = a->flags[old];
        a->rule_of[s] = a->rule_of[old];
        a->call_at[s] = n_calls;
        for (uint32_t i = calls; i < end; i++)
            a->calls[n_calls++] =
                (struct rule_call){a->calls[i].rule, (uint16_t)m->kind[a->calls[i].back]};
        if (m->kept) m->kept[s] = m->kept[old];
    }
    a->n_states = m->n_kinds;
    a->call_at[a->n_states] = n_calls;
}

/* False: there is no memory for the kinds to be kept. */
static bool run(struct minimize *m, size_t reach)
{
    const size_t round = (size_t)m->a->n_states * (m->a->n_classes + 2);
    size_t work = 0;
    uint32_t before;
    first_kinds(m);
    m->n_kinds = 0;
    for (size_t r = 0;; r++) {
        if (r == reach) {
            m->kept = malloc(m->a->n_states * sizeof *m->kept);
            if (!m->kept) return false;
            memcpy(m->kept, m->kind, m->a->n_states * sizeof *m->kept);
            m->n_kept = m->n_kinds;
        }
        work += round;
        if (work > (m->kept ? MERGE_WORK : MAX_WORK)) return true;
        before = m->n_kinds;
        refine(m);
        if (m->n_kinds == before) break;
    }
    merge(m);
    return true;
}

int automaton_minimize(struct automaton *a, size_t reach, uint32_t **kind, uint32_t *n_kinds,
                       struct error *err)
{
    struct minimize m = {.a = a, .n_hash = 1024};
    while (m.n_hash < 2 * (size_t)a->n_states) m.n_hash *= 2;
    m.kind = calloc(a->n_states, sizeof *m.kind);
    m.next_kind = calloc(a->n_states, sizeof *m.next_kind);
    m.first = calloc(a->n_states, sizeof *m.first);
    m.hash = calloc(m.n_hash, sizeof *m.hash);
    const bool done = m.kind && m.next_kind && m.first && m.hash && run(&m, reach);
    free(m.next_kind);
    free(m.first);
    free(m.hash);
    if (!done) {
        free(m.kind);
        free(m.kept);
        return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
    }
    if (m.kept) {
        *kind = m.kept;
        *n_kinds = m.n_kept;
        free(m.kind);
    } else { /* each state is of its own kind: they were merged, or there are too many to compare */
        for (uint32_t s = 0; s < a->n_states; s++) m.kind[s] = s;
        *kind = m.kind;
        *n_kinds = a->n_states;
    }
    return CFG_OK;
}
