// SPDX-License-Identifier: Apache-2.0
//
// plan.h (private to scheduler/): which rows the next step runs, as functions of plain state. No
// clock, no engine, no memory of their own: the same state always gives the same plan, so that
// policies can be tested and simulated without a model.
#ifndef OPENMOED_PLAN_H
#define OPENMOED_PLAN_H

#include <stdbool.h>
#include <stdint.h>

/* Prompt rows dealt to one sequence at a time. Small enough that a short prompt is through in its
 * first turn, large enough that each chunk is worth its trip through the attention. */
#define PLAN_QUANTUM 64

struct plan_limits {
    int max_seqs;        /* sequences running at once */
    int max_step_tokens; /* rows of one step; at least max_seqs */
};

/* One running sequence. */
struct plan_seq {
    uint64_t order;  /* of admission: grows along the array */
    int prompt_left; /* prompt tokens still to prefill; 0 = it decodes */
    int rows;        /* out: rows of it in this step */
};

/* Whose turn at the prompt rows it is. Start zeroed. */
struct plan_turn {
    uint64_t order; /* the first unfinished prompt from this order on */
    int used;       /* rows it has had of a turn that a full step cut short */
};

/* True when the sequence at the head of the queue may start now. */
bool plan_admits(const struct plan_limits *lim, int n_running, int blocks_free, int blocks_needed);

/* Fills seqs[i].rows and returns their sum. Every decoding sequence gets its one row; what is left
 * goes to prompts in turns of PLAN_QUANTUM rows. *turn carries on from one step to the next. */
int plan_step(const struct plan_limits *lim, struct plan_seq *seqs, int n, struct plan_turn *turn);

#endif
