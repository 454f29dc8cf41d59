// SPDX-License-Identifier: Apache-2.0
//
// plan.h (private to scheduler/): who waits, who may start, who must yield, and which rows the next
// step runs, as functions of plain state. No clock, no engine, no memory of their own: the same
// calls always give the same plan, so that policies can be tested and simulated without a model.
//
// Fairness. Tenants take turns by tokens served divided by weight (prompt tokens count when the
// sequence starts, generated ones as they come): whoever has had least goes first. A tenant that
// was away starts where the others are, so being away earns nothing. Within a tenant, sequences go
// in order of priority, then arrival; each level of priority lets at most PLAN_AGING later arrivals
// of the tenant overtake, so nobody waits for ever.
#ifndef OPENMOED_PLAN_H
#define OPENMOED_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler/routing_table.h"

/* Prompt rows dealt to one sequence at a time. Small enough that a short prompt is through in its
 * first turn, large enough that each chunk is worth its trip through the attention. */
#define PLAN_QUANTUM 64

/* A prompt whose experts are busy waits so many steps at most for room; then it is its turn to go
 * over the limit, by so many rows. */
#define PLAN_PATIENCE 8
#define PLAN_LEAST    16

#define PLAN_AGING        256  /* later arrivals that one level of priority lets overtake */
#define PLAN_MAX_PRIORITY 1000 /* levels beyond this count as this, either way */

/* ---- the queue ------------------------------------------------------------------------------ */

/* One sequence from arrival to end, part of the owner's own struct, which fills the first group. */
struct plan_job {
    struct plan_tenant *tenant;
    int priority; /* lower runs earlier */
    int n_prompt; /* tokens */
    bool held;    /* not to be started yet */

    struct plan_job *prev, *next; /* in the tenant's queue */
    bool waiting;
    uint64_t arrival; /* over all tenants */
    int64_t key;      /* place within the tenant: lower runs earlier */
};

/* Zeroed but for id; lives as long as the queue. */
struct plan_tenant {
    uint32_t id;
    float weight; /* above 0, given with each job */
    struct plan_tenant *next;
    struct plan_job *head, *tail; /* waiting, in order of key */
    double served;                /* tokens / weight: its virtual time */
    uint64_t arrivals;
    int n_live; /* sequences waiting or running */
};

/* Start zeroed. */
struct plan_queue {
    struct plan_tenant *tenants;
    uint64_t arrivals;
    int n;            /* waiting */
    int64_t n_prompt; /* their prompt tokens */
    double clock;     /* virtual time: no tenant starts below it */
};

/* The tenant of this id; NULL: not seen yet (then add one). */
struct plan_tenant *plan_tenant(const struct plan_queue *q, uint32_t id);
void plan_add_tenant(struct plan_queue *q, struct plan_tenant *t);

void plan_enter(struct plan_queue *q, struct plan_job *job); /* it arrives, and waits */
void plan_take(struct plan_queue *q, struct plan_job *job);  /* it waits no longer */
void plan_return(struct plan_queue *q,
                 struct plan_job *job); /* it yields: waits in its old place */
void plan_leave(struct plan_queue *q,
                struct plan_job *job); /* it has ended; it must not be waiting */
/* Tokens computed for it, to the account of its tenant. */
void plan_charge(struct plan_job *job, int tokens);
/* The one that should start next; NULL: nobody may. It stays in the queue. */
struct plan_job *plan_next(const struct plan_queue *q);
/* Which of running[0..n), n > 0, must give its blocks up: of the tenant of the youngest, the last
 * in order. So the oldest of all makes progress sooner or later, whatever the others do. */
int plan_victim(const struct plan_job *const *running, int n);

/* ---- expert load ----------------------------------------------------------------------------- */

/* What a step's rows are expected to bring to each expert, in ROUTING_ONE-ths of a pick. Tokens the
 * table does not know are taken to spread evenly. */
struct plan_load {
    const struct routing_table *table; /* borrowed */
    int layers, experts, topk;
    uint32_t limit;           /* for each expert of each layer; 0: not opened */
    uint32_t *load;           /* [layers, experts] */
    uint32_t *peak;           /* [layers] the largest of load */
    uint32_t *spread;         /* [layers] for each expert, of rows that nothing is known about */
    struct routing_load *row; /* scratch: one row's entries */
};
int plan_load_open(struct plan_load *p, const struct routing_table *table, int layers, int experts,
                   int topk, int max_tokens, struct error *err) CFG_WARN_UNUSED;
void plan_load_close(struct plan_load *p); /* harmless on a zeroed one */
void plan_load_begin(struct plan_load *p); /* an empty step */
/* Adds rows of these tokens as long as they fit (all of them where `any`); returns how many. */
int plan_load_add(struct plan_load *p, const int32_t *tokens, int n, bool any);

/* ---- a step --------------------------------------------------------------------------------- */

struct plan_limits {
    int max_seqs;           /* sequences running at once */
    int max_step_tokens;    /* rows of one step; at least max_seqs */
    struct plan_load *load; /* expert load that a step may bring; NULL: any */
};

/* One running sequence. */
struct plan_seq {
    uint64_t order;        /* of admission: grows along the array */
    int prompt_left;       /* prompt tokens still to prefill; 0 = it decodes */
    const int32_t *tokens; /* its next ones; only read under a limit of expert load */
    int deferred; /* in and out: steps in a row that had rows left for it, but not at its experts */
    int rows;     /* out: rows of it in this step */
    bool full;    /* scratch: its experts have no room */
};

/* Whose turn at the prompt rows it is. Start zeroed. */
struct plan_turn {
    uint64_t order; /* the first unfinished prompt from this order on */
    int used;       /* rows it has had of a turn that a full step cut short */
};

/* True when one more sequence may start now. It takes blocks_needed at once; one more for each of
 * the n_growing that may still ask for some must stay, so that nobody is admitted only to drive
 * another out a moment later. Who runs alone needs no reserve. */
bool plan_admits(const struct plan_limits *lim, int n_running, int n_growing, int blocks_available,
                 int blocks_needed);

/* Fills seqs[i].rows and returns their sum. Every decoding sequence gets its one row; what is left
 * goes to prompts in turns of PLAN_QUANTUM rows. *turn carries on from one step to the next. Under
 * a limit of expert load a prompt gets rows as long as they are expected to fit; whoever had none
 * for PLAN_PATIENCE steps gets up to PLAN_LEAST all the same, one prompt a step. */
int plan_step(const struct plan_limits *lim, struct plan_seq *seqs, int n, struct plan_turn *turn);

#endif
