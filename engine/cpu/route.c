// SPDX-License-Identifier: Apache-2.0
//
// route.c: see route.h; openmoe-model's "Forward pass" and "Capacity" are the source. The softmax
// runs over all experts and the picked weights are not renormalised.
#include "engine/cpu/route.h"

#include <math.h>
#include <string.h>

void route_pick(const float *logits, int experts, int topk, int32_t *ids, float *weights)
{
    float top = logits[0], sum = 0;
    for (int e = 1; e < experts; e++) top = logits[e] > top ? logits[e] : top;
    for (int e = 0; e < experts; e++) sum += expf(logits[e] - top);
    for (int k = 0; k < topk; k++) {
        int best = -1;
        for (int e = 0; e < experts; e++) {
            int taken = 0;
            for (int j = 0; j < k; j++) taken |= ids[j] == e;
            if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        ids[k] = best;
        weights[k] = expf(logits[best] - top) / sum;
    }
}

void route_capacity(const int32_t *ids, int n_rows, int experts, int topk, int capacity,
                    int *counts, uint8_t *kept)
{
    memset(counts, 0, (size_t)experts * sizeof *counts);
    for (int k = 0; k < topk; k++)
        for (int r = 0; r < n_rows; r++) {
            const int i = r * topk + k;
            kept[i] = capacity == 0 || counts[ids[i]] < capacity;
            counts[ids[i]] += kept[i];
        }
}

void route_budget(const int32_t *ids, const int32_t *seq_of_row, int n_rows, int topk, int capacity,
                  uint16_t *const *budgets, int budget_at, uint8_t *kept)
{
    for (int r = 0; r < n_rows; r++) {
        uint16_t *spent = budgets[seq_of_row[r]] + budget_at;
        for (int k = 0; k < topk; k++) {
            const int i = r * topk + k;
            kept[i] = spent[ids[i]] < capacity;
            spent[ids[i]] = (uint16_t)(spent[ids[i]] + kept[i]);
        }
    }
}

void route_keep(const struct op_route *rt, const struct op_batch *b, const struct op_routing *out,
                int *counts)
{
    if (b->spent)
        route_budget(out->experts, b->seq_of_row, b->n_rows, rt->topk, b->capacity, b->spent,
                     rt->budget_at, out->kept);
    else
        route_capacity(out->experts, b->n_rows, rt->experts, rt->topk, b->capacity, counts,
                       out->kept);
}
