// SPDX-License-Identifier: Apache-2.0
//
// route.h (private to engine/cpu/): the router's decisions from its logits: softmax, top-k,
// capacity. Shared by the reference and the fast backend, which differ only in how logits are
// computed.
#ifndef OPENMOED_CPU_ROUTE_H
#define OPENMOED_CPU_ROUTE_H

#include <stdint.h>

/* logits [experts] -> the topk largest of softmax(logits), ties to the lower index. */
void route_pick(const float *logits, int experts, int topk, int32_t *ids, float *weights);
/* The published rule: all first choices in order of row, then all second choices, each while its
 * expert has room. capacity 0 keeps everything. counts is scratch, [experts]. */
void route_capacity(const int32_t *ids, int n_rows, int experts, int topk, int capacity,
                    int *counts, uint8_t *kept);

#endif
