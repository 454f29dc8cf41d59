// SPDX-License-Identifier: Apache-2.0
//
// routing.h (private to scheduler/): what becomes of the router's decisions after a step: counters
// of picks and drops, for everybody and for the sequences that want their own; the table that
// foretells picks; the budgets at the ends of KV blocks (isolated mode). And before a step: how
// much expert load waiting rows would bring (struct plan_load).
//
// Engine thread, but for the counters, which others read while it adds to them.
#ifndef OPENMOED_ROUTING_H
#define OPENMOED_ROUTING_H

#include "scheduler/plan.h"
#include "scheduler/routing_table.h"
#include "scheduler/seq.h"

struct routing {
    const struct engine_info *info;
    int max_rows;
    struct engine_routing trace; /* of the step: [moe_layers, its rows, topk] */
    struct routing_table *table; /* NULL: too many experts for one */
    const char *path;            /* of the table's file; NULL: none */
    struct sched_routing *total;
    struct sched_layer *layers;   /* [moe_layers] */
    struct routing_score *scores; /* [moe_layers] */
    uint32_t *step;               /* [moe_layers, experts] picks of the step */
    uint16_t *budget;             /* [budget_len] scratch */
    struct plan_load load;        /* limit 0: no bound */
};

/* Rows of one sequence in a step that was run. */
struct routing_rows {
    int first;    /* row of the step */
    int n;        /* rows */
    int position; /* of the first */
    int n_seen;   /* positions below it were counted before */
};

int routing_open(struct routing *g, const struct engine_info *info, const struct sched_options *opt,
                 struct error *err) CFG_WARN_UNUSED;
/* Writes the table to its file first, if `save`; harmless on a zeroed one. */
void routing_close(struct routing *g, bool save);

/* After a step of n_rows rows: each sequence's part, then the step as a whole. */
void routing_note(struct routing *g, struct seq *q, const struct routing_rows *rows, int n_rows);
void routing_end_step(struct routing *g);
/* Writes the budgets at the ends of the blocks that were filled into q->payloads; q->spent is that
 * behind its last row. */
void routing_snapshot(struct routing *g, struct seq *q, const struct routing_rows *rows, int n_rows,
                      int block_size);

#endif
