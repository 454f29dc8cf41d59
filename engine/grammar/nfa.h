// SPDX-License-Identifier: Apache-2.0
//
// nfa.h (private to engine/grammar/): what the readers of grammar texts build. Every rule is a
// nondeterministic automaton over bytes, whose edges may also call rules; all rules share one list
// of states. Rule 0 is the root. The first failure is latched: after it nothing is added and every
// function still returns a valid state, so that readers need not look after each call.
#ifndef OPENMOED_GRAMMAR_NFA_H
#define OPENMOED_GRAMMAR_NFA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

#define NFA_NONE UINT32_MAX
/* A grammar has at most so many states, and so many edges. */
#define NFA_MAX ((size_t)1 << 19)

/* The symbol of an edge: nothing, a range of bytes (lo << 8 | hi), or a rule. */
#define NFA_EPSILON 0u
#define NFA_BYTES   0x10000u
#define NFA_CALL    0x80000000u

struct nfa_edge {
    uint32_t from, to, symbol;
    uint32_t next; /* of the edges that leave `from`; NFA_NONE at the end */
};

struct nfa_rule {
    char name[56]; /* for messages, cut where it is longer */
    uint32_t start, end;
};

struct nfa {
    struct nfa_edge *edges;
    uint32_t *first; /* [n_states] head of the list of edges that leave a state */
    struct nfa_rule *rules;
    size_t n_edges, cap_edges, n_states, cap_states, n_rules, cap_rules;
    int failed; /* the code of the first failure, whose message is in *err */
    struct error *err;
};

/* A piece between two states that nothing else enters or leaves, and what it was built of: the
 * states and edges from these numbers on, which makes it possible to copy it. */
struct nfa_part {
    uint32_t start, end;
    size_t first_state, first_edge;
};

void nfa_init(struct nfa *n, struct error *err);
void nfa_deinit(struct nfa *n);
void nfa_fail(struct nfa *n, int code, const char *fmt, ...) CFG_PRINTF(3, 4);

uint32_t nfa_rule(struct nfa *n, const char *name, size_t len); /* its number */
uint32_t nfa_state(struct nfa *n);
void nfa_edge(struct nfa *n, uint32_t from, uint32_t to, uint32_t symbol);
void nfa_epsilon(struct nfa *n, uint32_t from, uint32_t to);
void nfa_call(struct nfa *n, uint32_t from, uint32_t to, uint32_t rule);
void nfa_bytes(struct nfa *n, uint32_t from, uint32_t to, unsigned lo, unsigned hi);
void nfa_literal(struct nfa *n, uint32_t from, uint32_t to, const void *bytes, size_t len);
/* The same, to a state of its own, which is returned. */
uint32_t nfa_text(struct nfa *n, uint32_t from, const char *text);

struct nfa_part nfa_begin(struct nfa *n); /* a part with a start and, for now, no end */
/* The part, now between two new states, `min` up to `max` times (max < 0: any number). It must be
 * the last thing built. */
struct nfa_part nfa_repeat(struct nfa *n, struct nfa_part part, int min, int max);

/* ---- sets of code points --------------------------------------------------------------------- */

#define RUNE_MAX   0x10ffffu
#define MAX_RANGES 512

struct runes {
    struct {
        uint32_t lo, hi;
    } range[MAX_RANGES];
    int n;
    bool full; /* more ranges were added than there is room for */
};

void runes_add(struct runes *r, uint32_t lo, uint32_t hi);
void runes_add_all(struct runes *r, const struct runes *other);
/* Sorted, without overlap and without surrogates; all but its members when `negate`. */
void runes_normalize(struct runes *r, bool negate);

enum nfa_coding {
    NFA_PLAIN, /* UTF-8 */
    NFA_JSON, /* as in a JSON string: UTF-8, and the shortest escape where one is needed. No NUL. */
};
/* One code point of the set, which is normalized by this. */
void nfa_runes(struct nfa *n, uint32_t from, uint32_t to, struct runes *set,
               enum nfa_coding coding);

/* ---- readers --------------------------------------------------------------------------------- */

/* How long a text may be, and how deep its groups and values may lie in one another. */
#define MAX_TEXT  ((size_t)1 << 20)
#define MAX_DEPTH 100
/* No repetition may be written with a larger number. */
#define MAX_REPEAT 10000

struct regex_options {
    const char *what; /* begins messages */
    enum nfa_coding coding;
    bool search; /* may match anywhere in the text, unless anchored */
};
void regex_read(struct nfa *n, const struct regex_options *opt, const char *text, size_t len,
                uint32_t from, uint32_t to);
void gbnf_read(struct nfa *n, const char *text, size_t len);
void choice_read(struct nfa *n, const char *text, size_t len);
void schema_read(struct nfa *n, const char *text, size_t len); /* NULL: any object */
void tools_read(struct nfa *n, const char *text, size_t len);

#endif
