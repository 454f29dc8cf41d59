// SPDX-License-Identifier: Apache-2.0
//
// route.h (private to engine/cpu/): the router's decisions from its logits: softmax, top-k,
// capacity. Shared by the reference and the fast backend, which differ only in how logits are
// computed.
#ifndef OPENMOED_CPU_ROUTE_H
#define OPENMOED_CPU_ROUTE_H

#include <stdint.h>

#include "engine/ops.h"

/* logits [experts] -> the topk largest of softmax(logits), ties to the lower index. */
void route_pick(const float *logits, int experts, int topk, int32_t *ids, float *weights);
/* The published rule: all first choices in order of row, then all second choices, each while its
 * expert has room. capacity 0 keeps everything. counts is scratch, [experts]. */
void route_capacity(const int32_t *ids, int n_rows, int experts, int topk, int capacity,
                    int *counts, uint8_t *kept);

/* Isolated mode: each sequence spends its own budget, row by row, first choice before second.
 * budgets [n_seqs]; this layer's counters stand at budget_at. Rows of a sequence are in order of
 * position. */
void route_budget(const int32_t *ids, const int32_t *seq_of_row, int n_rows, int topk, int capacity,
                  uint16_t *const *budgets, int budget_at, uint8_t *kept);
/* The one of the two that the batch asks for. */
void route_keep(const struct op_route *rt, const struct op_batch *b, const struct op_routing *out,
                int *counts);

#endif
