// SPDX-License-Identifier: Apache-2.0
//
// stacks.h (private to engine/grammar/): where a text stands in a grammar: all ways to read it so
// far at once. A way is a state and a stack of states to come back to when its rule ends, so the
// ways are a set of stacks. Sets share what they have in common: a node is a set of stacks, given
// as a list of (top state, node of what lies below it). Equal nodes have equal numbers; node 0 is
// empty: no way. Owned by one compilation or one matcher; one thread.
#ifndef OPENMOED_GRAMMAR_STACKS_H
#define OPENMOED_GRAMMAR_STACKS_H

#include "engine/grammar/automaton.h"

/* One top state of a node. The key is the state shifted left by one; its low bit, which only tops
 * of a text's place have, says that the way passed an end of a rule whose caller is not known. */
struct stack_top {
    uint32_t key, below;
};

enum { JOIN_CACHE = 128 };

struct stack_node {
    uint32_t tops, n; /* [tops, tops + n) in the list of tops, by key */
    uint32_t next;    /* of the nodes with the same hash */
};

/* Compiling only: places are followed past the end of the rule where they began, to all places from
 * where it is called. A key above the states' stands for such an end; that a way just came to one
 * is kept as a top that leads nowhere. */
struct stack_exits {
    uint32_t *at; /* [n_rules + 1] into list */
    struct exit_site {
        uint16_t state, rule; /* to go on in; in which rule */
    } * list;
    uint32_t *bottom; /* [n_rules] node: the stack below a rule that nothing is known of */
};

/* exits.c. kind as automaton_minimize numbers the states: sites of one kind count as one. The
 * bottoms are the walk's to make. */
int exits_new(struct stack_exits *x, const struct automaton *a, const uint32_t *kind,
              uint32_t n_kinds, struct error *err) CFG_WARN_UNUSED;
void exits_deinit(struct stack_exits *x);
/* The kinds of state that can be on top of the stack while in a rule, in ascending order: where it
 * is called from, or where a rule is that ends with a call of it. tops [n_kinds] gets them; returns
 * how many. stack [n_rules], seen [n_rules + n_kinds] are scratch; seen is all false. */
uint32_t exits_tops(const struct stack_exits *x, const struct automaton *a, const uint32_t *kind,
                    uint32_t n_kinds, uint32_t rule, bool *seen, uint32_t *stack, uint32_t *tops);

struct stacks {
    const struct automaton *a;
    const struct stack_exits *exits; /* NULL when following an answer */
    struct stack_top *tops;
    struct stack_node *nodes; /* [n_nodes] */
    uint32_t *buckets;        /* [n_buckets] */
    uint32_t n_tops, cap_tops, n_nodes, cap_nodes, n_buckets;
    bool failed; /* no memory, or too many ways; what was returned since is not right */
    /* Scratch of a step: the place stepped from, with its calls, and the one stepped to. */
    uint32_t max_tops;            /* a power of 2 */
    struct stack_top *now, *made; /* [n_now], [n_made] of max_tops */
    uint32_t n_now, n_made;
    bool *changed;          /* [n_made] its ends are yet to be followed */
    uint32_t *stamp, epoch; /* [2 * max_tops] */
    uint16_t *slot;         /* [2 * max_tops] index of made by key, if stamped with this epoch */
    struct joined {
        uint32_t a, b, both;
    } joined[JOIN_CACHE];
};

/* max_tops (a power of 2, at most 32768): states at a place, at most; what needs more fails. */
int stacks_init(struct stacks *s, const struct automaton *a, uint32_t max_tops,
                struct error *err) CFG_WARN_UNUSED;
void stacks_deinit(struct stacks *s);

/* The node of one stack: key on top of below. */
uint32_t stacks_push(struct stacks *s, uint32_t key, uint32_t below);
/* Where an answer begins. */
uint32_t stacks_start(struct stacks *s);
/* The place after one byte of this class; 0 when there is no way. In two parts, for those who try
 * many classes: what may come at this place is found first. */
void stacks_expand(struct stacks *s, uint32_t place);
uint32_t stacks_move(struct stacks *s, uint32_t class);
/* The text so far is complete. */
bool stacks_done(const struct stacks *s, uint32_t place);

/* Forgets the nodes that were made since there were n. */
void stacks_forget(struct stacks *s, uint32_t n_nodes);
/* Drops every node that *place does not need; its number may change. */
void stacks_compact(struct stacks *s, uint32_t *place);

static inline const struct stack_top *stacks_tops(const struct stacks *s, uint32_t node,
                                                  uint32_t *n)
{
    *n = s->nodes[node].n;
    return s->tops + s->nodes[node].tops;
}

#endif
