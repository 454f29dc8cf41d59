// SPDX-License-Identifier: Apache-2.0
//
// plan_load.c: how much work a step is expected to bring to each expert (plan.h). A row's load is
// what the table foretells; it fits when no expert it may go to is driven over the limit. Layers in
// which the token was never seen count as spread evenly, on top of what each expert has. Pure
// arithmetic on memory taken at open.
#include "scheduler/plan.h"

#include <stdlib.h>
#include <string.h>

int plan_load_open(struct plan_load *p, const struct routing_table *table, int layers, int experts,
                   int topk, int max_tokens, struct error *err)
{
    const size_t cells = (size_t)layers * (size_t)experts;
    const size_t entries = (size_t)layers * (size_t)(topk > ROUTING_SLOTS ? topk : ROUTING_SLOTS);
    *p = (struct plan_load){.table = table, .layers = layers, .experts = experts, .topk = topk};
    p->load = calloc(cells + 1, sizeof(p->load[0]));
    p->spread = calloc((size_t)layers + 1, sizeof(p->spread[0]));
    p->peak = calloc((size_t)layers + 1, sizeof(p->peak[0]));
    p->row = calloc(entries + 1, sizeof(p->row[0]));
    if (!p->load || !p->spread || !p->peak || !p->row)
        return cfg_fail(err, CFG_ENOMEM, "no memory to plan the load of %d experts", experts);
    p->limit = (uint32_t)max_tokens * ROUTING_ONE;
    return CFG_OK;
}

void plan_load_close(struct plan_load *p)
{
    free(p->load);
    free(p->spread);
    free(p->peak);
    free(p->row);
    *p = (struct plan_load){0};
}

void plan_load_begin(struct plan_load *p)
{
    memset(p->load, 0, (size_t)p->layers * (size_t)p->experts * sizeof(p->load[0]));
    memset(p->spread, 0, (size_t)p->layers * sizeof(p->spread[0]));
    memset(p->peak, 0, (size_t)p->layers * sizeof(p->peak[0]));
}

/* What one row of an unknown token adds to each expert of a layer. */
static uint32_t even_share(const struct plan_load *p)
{
    return (uint32_t)(p->topk * ROUTING_ONE / p->experts);
}

/* p->row holds n entries in order of layer; a layer without any does not know the token. */
static bool row_fits(const struct plan_load *p, int n)
{
    int at = 0;
    for (int l = 0; l < p->layers; l++) {
        const uint32_t most = p->limit > p->spread[l] ? p->limit - p->spread[l] : 0;
        const int end = (l + 1) * p->experts, first = at;
        for (; at < n && p->row[at].index < end; at++)
            if (p->load[p->row[at].index] + p->row[at].load > most) return false;
        if (at == first && p->peak[l] + even_share(p) > most) return false;
    }
    return true;
}

static void row_add(struct plan_load *p, int n)
{
    int at = 0;
    for (int l = 0; l < p->layers; l++) {
        const int end = (l + 1) * p->experts, first = at;
        for (; at < n && p->row[at].index < end; at++) {
            uint32_t *load = &p->load[p->row[at].index];
            *load += p->row[at].load;
            if (*load > p->peak[l]) p->peak[l] = *load;
        }
        if (at == first) p->spread[l] += even_share(p);
    }
}

int plan_load_add(struct plan_load *p, const int32_t *tokens, int n, bool any)
{
    for (int i = 0; i < n; i++) {
        const int entries = routing_table_expect(p->table, tokens[i], p->row);
        if (!any && !row_fits(p, entries)) return i;
        row_add(p, entries);
    }
    return n;
}
