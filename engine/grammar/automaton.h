// SPDX-License-Identifier: Apache-2.0
//
// automaton.h (private to engine/grammar/): from what was read to what is followed. Rules become
// deterministic automata over classes of bytes, whose states may also call a rule: what remains to
// be done then is on a stack (stacks.h). No rule matches the empty text; a call of one that could
// was given a way around it.
#ifndef OPENMOED_GRAMMAR_AUTOMATON_H
#define OPENMOED_GRAMMAR_AUTOMATON_H

#include "engine/grammar/nfa.h"

/* ---- an automaton of rules ------------------------------------------------------------------- */

/* Two states are not of any rule: where nothing is, and where the answer is complete. */
enum { STATE_NONE, STATE_DONE, STATE_FIRST };

enum state_flags {
    STATE_FINAL = 1, /* the rule may end here */
    STATE_LIVE = 2,  /* something may follow here, by a byte or a call */
};

struct rule_call {
    uint16_t rule, back; /* the state to go on in */
};

struct automaton {
    uint8_t class_of[256];
    uint32_t n_classes, n_states, n_rules; /* at most 65535 states and rules */
    uint16_t *next;                        /* [n_states, n_classes] STATE_NONE: nowhere */
    uint8_t *flags;                        /* [n_states] */
    uint16_t *rule_of;                     /* [n_states] */
    uint32_t *call_at;                     /* [n_states + 1] into calls */
    struct rule_call *calls;
    uint16_t *start; /* [n_rules]; rule 0 is the root */
    uint16_t *rank;  /* [n_rules] a rule that begins with a call has a lower one than the called */
    bool empty;      /* the empty text is complete */
};

static inline bool state_is(const struct automaton *a, uint32_t state, enum state_flags flag)
{
    return a->flags[state] & flag;
}

/* ---- reduce.c: fewer calls ------------------------------------------------------------------- */

/* Puts rules that are called once, or are small, where they are called, and makes loops of rules
 * that end with themselves. live [n_rules]: rules that are left. */
int reduce_rules(struct nfa *n, bool *live) CFG_WARN_UNUSED;

/* ---- check.c: what the rules must be --------------------------------------------------------- */

struct checked {
    bool *alive; /* [n_states] the rule's end can be reached from here */
    bool *empty; /* [n_rules] the rule matches the empty text */
    uint16_t *rank;
};

/* Refuses a root that nothing matches and rules that call themselves before any byte. Adds ways
 * around calls of rules that match the empty text. */
int check_rules(struct nfa *n, const bool *live, struct checked *out) CFG_WARN_UNUSED;
void checked_deinit(struct checked *c);

/* ---- determine.c, minimize.c ----------------------------------------------------------------- */

int automaton_new(struct automaton *out, const struct nfa *n, const bool *live,
                  const struct checked *c, struct error *err) CFG_WARN_UNUSED;
/* Merges states that no text tells apart; kind[n_states] (malloc'd) numbers the states that are
 * left so that those of a number behave alike for the next `reach` bytes at least. */
int automaton_minimize(struct automaton *a, size_t reach, uint32_t **kind, uint32_t *n_kinds,
                       struct error *err) CFG_WARN_UNUSED;
void automaton_deinit(struct automaton *a);
size_t automaton_bytes(const struct automaton *a);

#endif
