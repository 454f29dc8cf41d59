// SPDX-License-Identifier: Apache-2.0
//
// routing.c: counting what the router did (routing.h). Counters are written by the engine thread
// alone and read by others at any time, so every access to them is atomic, and none needs more than
// its own value.
#include "scheduler/routing.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKET 64 /* positions */

/* ---- counters -------------------------------------------------------------------------------- */

struct sched_routing *sched_routing_new(const struct engine_info *info)
{
    size_t cells = (size_t)info->moe_layers * (size_t)info->experts;
    struct sched_routing *r = calloc(1, sizeof(*r) + cells * sizeof(r->by_expert[0]));
    if (!r) return NULL;
    r->refs = 1;
    r->layers = info->moe_layers;
    r->experts = info->experts;
    return r;
}

struct sched_routing *sched_routing_ref(struct sched_routing *r)
{
    __atomic_add_fetch(&r->refs, 1, __ATOMIC_RELAXED);
    return r;
}

void sched_routing_unref(struct sched_routing *r)
{
    if (r && __atomic_sub_fetch(&r->refs, 1, __ATOMIC_ACQ_REL) == 0) free(r);
}

void sched_position_bucket(int i, int *first, int *last)
{
    *first = i == 0 ? 0 : FIRST_BUCKET << (i - 1);
    *last = i + 1 == SCHED_POSITIONS ? 0 : (FIRST_BUCKET << i) - 1;
}

static const int turn_starts[SCHED_TURNS + 1] = {1, 2, 3, 4, 8, 16, 1};

void sched_turn_bucket(int i, int *first, int *last)
{
    *first = turn_starts[i];
    *last = turn_starts[i + 1] - 1;
}

static int position_bucket(int position)
{
    int i = 0;
    while (i + 1 < SCHED_POSITIONS && position >= FIRST_BUCKET << i) i++;
    return i;
}

static int turn_bucket(int turn)
{
    int i = 0;
    while (i + 1 < SCHED_TURNS && turn >= turn_starts[i + 1]) i++;
    return i;
}

static void add(uint64_t *counter, uint64_t n)
{
    if (n > 0) __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static void count(struct sched_picks *p, unsigned made, unsigned dropped)
{
    add(&p->made, made);
    add(&p->dropped, dropped);
}

/* ---- open and close -------------------------------------------------------------------------- */

static int open_table(struct routing *g, const struct sched_options *opt, struct error *err)
{
    const struct engine_info *info = g->info;
    const struct routing_shape shape = {info->moe_layers, info->experts, info->topk, info->vocab};
    if (info->moe_layers == 0) return CFG_OK;
    int rc = routing_table_open(&g->table, &shape, err);
    if (rc == CFG_EUNSUPPORTED && !opt->routing_table && opt->max_expert_tokens == 0) return CFG_OK;
    if (rc || !opt->routing_table) return rc;
    g->path = opt->routing_table;
    rc = routing_table_load(g->table, g->path, err);
    if (rc == CFG_ENOTFOUND)
        cfg_log(CFG_LOG_INFO, "%s: no such file yet: the table of routing starts empty", g->path);
    return rc == CFG_ENOTFOUND ? CFG_OK : rc;
}

int routing_open(struct routing *g, const struct engine_info *info, const struct sched_options *opt,
                 struct error *err)
{
    const size_t layers = (size_t)info->moe_layers, cells = layers * (size_t)info->experts;
    const size_t picks = layers * (size_t)opt->max_step_tokens * (size_t)info->topk;
    *g = (struct routing){.info = info, .max_rows = opt->max_step_tokens};
    g->trace.experts = calloc(picks + 1, sizeof(g->trace.experts[0]));
    g->trace.weights = calloc(picks + 1, sizeof(g->trace.weights[0]));
    g->trace.kept = calloc(picks + 1, sizeof(g->trace.kept[0]));
    g->total = sched_routing_new(info);
    g->layers = calloc(layers + 1, sizeof(g->layers[0]));
    g->scores = calloc(layers + 1, sizeof(g->scores[0]));
    g->step = calloc(cells + 1, sizeof(g->step[0]));
    g->budget = calloc((size_t)info->budget_len + 1, sizeof(g->budget[0]));
    if (!g->trace.experts || !g->trace.weights || !g->trace.kept || !g->total || !g->layers ||
        !g->scores || !g->step || !g->budget)
        return cfg_fail(err, CFG_ENOMEM, "no memory to watch the routing");
    int rc = open_table(g, opt, err);
    if (!rc && opt->max_expert_tokens > 0 && g->table)
        rc = plan_load_open(&g->load, g->table, info->moe_layers, info->experts, info->topk,
                            opt->max_expert_tokens, err);
    return rc;
}

void routing_close(struct routing *g, bool save)
{
    struct error err;
    if (save && g->path && routing_table_save(g->table, g->path, &err))
        cfg_log(CFG_LOG_ERROR, "the table of routing is lost: %s", err.message);
    plan_load_close(&g->load);
    routing_table_close(g->table);
    sched_routing_unref(g->total);
    free(g->trace.experts);
    free(g->trace.weights);
    free(g->trace.kept);
    free(g->layers);
    free(g->scores);
    free(g->step);
    free(g->budget);
    *g = (struct routing){0};
}

/* ---- after a step ---------------------------------------------------------------------------- */

static int turn_of(const struct seq *q, int position)
{
    int turn = 0;
    while (turn < q->n_turns && q->turns[turn] <= position) turn++;
    return turn > 0 ? turn : 1;
}

/* Picks of one row, at `at` of each layer's part of the trace. */
static void note_row(struct routing *g, struct sched_routing *own, size_t at, size_t stride,
                     int position, int turn)
{
    const struct engine_info *info = g->info;
    const int topk = info->topk;
    unsigned dropped = 0;
    for (int l = 0; l < info->moe_layers; l++)
        for (int k = 0; k < topk; k++) {
            const size_t pick = (size_t)l * stride + at + (size_t)k;
            const size_t cell = (size_t)(l * info->experts + g->trace.experts[pick]);
            const unsigned lost = !g->trace.kept[pick];
            count(&g->total->by_expert[cell], 1, lost);
            if (own) count(&own->by_expert[cell], 1, lost);
            dropped += lost;
        }
    const unsigned made = (unsigned)(info->moe_layers * topk);
    const int p = position_bucket(position), t = turn_bucket(turn);
    for (struct sched_routing *r = g->total; r; r = r == own ? NULL : own) {
        add(&r->tokens, 1);
        count(&r->by_position[p], made, dropped);
        count(&r->by_turn[t], made, dropped);
    }
}

void routing_note(struct routing *g, struct seq *q, const struct routing_rows *rows, int n_rows)
{
    const struct engine_info *info = g->info;
    const size_t topk = (size_t)info->topk, stride = (size_t)n_rows * topk;
    if (info->moe_layers == 0) return;
    int turn = turn_of(q, rows->position);
    for (int i = 0; i < rows->n; i++) {
        const int position = rows->position + i;
        const size_t at = (size_t)(rows->first + i) * topk;
        for (int l = 0; l < info->moe_layers; l++)
            for (size_t k = 0; k < topk; k++)
                g->step[l * info->experts + g->trace.experts[(size_t)l * stride + at + k]]++;
        if (position < rows->n_seen) continue;
        while (turn < q->n_turns && q->turns[turn] <= position) turn++;
        note_row(g, q->routing, at, stride, position, turn);
        if (g->table)
            routing_table_learn(g->table, q->tokens[position], g->trace.experts + at, stride);
    }
}

void routing_end_step(struct routing *g)
{
    const size_t experts = (size_t)g->info->experts;
    if (g->table) routing_table_score(g->table, g->scores);
    for (int l = 0; l < g->info->moe_layers; l++) {
        struct sched_layer *to = &g->layers[l];
        const struct routing_score *s = &g->scores[l];
        uint32_t *step = g->step + (size_t)l * experts, largest = 0;
        for (size_t x = 0; x < experts; x++) largest = step[x] > largest ? step[x] : largest;
        memset(step, 0, experts * sizeof(step[0]));
        add(&to->steps, 1);
        add(&to->largest, largest);
        add(&to->judged, s->rows - to->judged);
        add(&to->known, s->known - to->known);
        add(&to->first_hits, s->first_hits - to->first_hits);
        add(&to->top_hits, s->top_hits - to->top_hits);
    }
}

/* Backwards from the budget behind the last row, giving back one row's kept picks at a time. */
void routing_snapshot(struct routing *g, struct seq *q, const struct routing_rows *rows, int n_rows,
                      int block_size)
{
    const struct engine_info *info = g->info;
    const size_t topk = (size_t)info->topk, stride = (size_t)n_rows * topk;
    const size_t len = (size_t)info->budget_len;
    memcpy(g->budget, q->spent, len * sizeof(g->budget[0]));
    for (int i = rows->n - 1; i >= 0; i--) {
        const int end = rows->position + i + 1;
        if (end % block_size == 0)
            memcpy(q->payloads + (size_t)(end / block_size - 1) * len, g->budget,
                   len * sizeof(g->budget[0]));
        for (int l = 0; l < info->moe_layers; l++)
            for (size_t k = 0; k < topk; k++) {
                const size_t pick = (size_t)l * stride + (size_t)(rows->first + i) * topk + k;
                uint16_t *spent = &g->budget[l * info->experts + g->trace.experts[pick]];
                *spent = (uint16_t)(*spent - g->trace.kept[pick]);
            }
    }
}
