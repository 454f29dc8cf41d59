// SPDX-License-Identifier: Apache-2.0
//
// routing_table.h (private to scheduler/): which experts the router will take for a token, learned
// from what it took before. OpenMoE routes largely by token id (arXiv 2402.01739, "context-
// independent specialization"), so a token's past picks foretell its next ones, before anything is
// computed. The planner asks it for the expert load of rows that are still waiting; how often it is
// right is counted and shown, not assumed.
//
// Compact: for each token id and MoE layer ROUTING_SLOTS experts with a weight each, the heaviest
// first, 2 bytes a slot. A first choice weighs more than a second. When an expert has no slot, the
// others lose weight (Misra and Gries' rule), and weights are halved before they overflow, so old
// traffic fades. Nothing but token ids and experts is kept: no order, no text.
//
// One thread (the engine thread) learns and asks; memory is taken by open alone and touched only
// for ids that were seen.
#ifndef OPENMOED_ROUTING_TABLE_H
#define OPENMOED_ROUTING_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

#define ROUTING_SLOTS       4
#define ROUTING_MAX_EXPERTS 256 /* a slot has a byte for the expert */
#define ROUTING_ONE         256 /* a whole pick: expected loads are fixed-point */

struct routing_shape {
    int layers; /* MoE layers */
    int experts, topk, vocab;
};

struct routing_table;
/* Empty. CFG_EUNSUPPORTED for more than ROUTING_MAX_EXPERTS experts or 65,536 of all layers
 * together, CFG_EINVAL for an impossible shape. */
int routing_table_open(struct routing_table **out, const struct routing_shape *shape,
                       struct error *err) CFG_WARN_UNUSED;
void routing_table_close(struct routing_table *t); /* t may be NULL */

/* Learns one row: picks[l * stride + k] is choice k (best first) of layer l for this token. What
 * the table would have said is judged first (routing_table_score), then the picks are added. */
void routing_table_learn(struct routing_table *t, int32_t token, const int32_t *picks,
                         size_t stride);

/* The n most likely experts of one layer for the token, most likely first; returns how many the
 * table knows (0: it never saw the token). */
int routing_table_predict(const struct routing_table *t, int layer, int32_t token, int n,
                          int32_t *experts);

/* The expected picks of one row of this token, in all layers: at most layers * max(ROUTING_SLOTS,
 * topk) entries. Where `index` is layer * experts + expert, `load` is in ROUTING_ONE-ths of a pick;
 * for one layer they add up to topk * ROUTING_ONE (less rounding), none above ROUTING_ONE. A token
 * the table never saw yields no entries for that layer: it is expected to spread evenly. Returns
 * the number of entries; none for ids outside the vocabulary. With topk above ROUTING_SLOTS the
 * rest of the sum goes to other experts in turn. */
struct routing_load {
    uint16_t index, load;
};
int routing_table_expect(const struct routing_table *t, int32_t token, struct routing_load *out);

/* How well the table foretold the picks of one layer, each row judged before it was learned. */
struct routing_score {
    uint64_t rows;       /* judged */
    uint64_t known;      /* rows whose token the table had seen */
    uint64_t first_hits; /* rows whose first choice was the most likely expert */
    uint64_t top_hits;   /* picks (topk a row) that were among the topk most likely experts */
};
/* scores: [layers] */
void routing_table_score(const struct routing_table *t, struct routing_score *scores);

/* The table as a file: written beside it and renamed, so that a reader never sees half of one; only
 * ids that were seen take room. Reading replaces what the table has; a file that is cut, changed or
 * of another shape is refused with CFG_EINVAL and the table stays as it was, one that does not
 * exist is CFG_ENOTFOUND. Scores are not part of it. */
int routing_table_save(const struct routing_table *t, const char *path,
                       struct error *err) CFG_WARN_UNUSED;
int routing_table_load(struct routing_table *t, const char *path,
                       struct error *err) CFG_WARN_UNUSED;

#endif
