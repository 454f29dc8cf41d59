// SPDX-License-Identifier: Apache-2.0
//
// model.c: OpenMoE, readable from top to bottom. The forward pass is in forward order; everything
// numeric happens in the backend's operations (ops.h). Source: arXiv 2402.01739 and its published
// PyTorch code.
//
//   x = embed[token]
//   each layer:  x += o( attention( rope(q(a)), rope(k(a)), v(a) ) )        a = rmsnorm(x)
//     dense:     x += ffn(h)                                              h = rmsnorm(x)
//     MoE:       x += moe(h)           then   x += extra_ffn( rmsnorm(x) )  one after the other
//   logits = head( rmsnorm(x) )
#include "engine/model.h"

#include <math.h>
#include <stdlib.h>

/* Attention scores are q.k, not divided by sqrt(head_dim). */
static void attention_block(struct model *m, const struct op_batch *b, int l)
{
    const struct hfconfig *c = &m->cfg;
    const struct ops *ops = m->ops;
    const struct layer *w = &m->layers[l];
    const struct op_attention a = {l, c->heads, c->kv_heads, c->head_dim, c->rope_theta};
    const struct op_matmul qkv[] = {{w->q, m->h, m->q}, {w->k, m->h, m->k}, {w->v, m->h, m->v}};
    const struct op_matmul o[] = {{w->o, m->att, m->y}};

    ops->rmsnorm(m->be, m->x, w->input_norm, c->rms_eps, b->n_rows, c->hidden, m->h);
    ops->matmul(m->be, qkv, 3, b->n_rows);
    ops->rope_kv(m->be, &a, m->q, m->k, m->v);
    ops->attention(m->be, &a, m->q, m->att);
    ops->matmul(m->be, o, 1, b->n_rows);
    ops->add(m->be, m->x, m->y, c->hidden);
}

static void ffn(struct model *m, const struct op_batch *b, const struct ffn *w)
{
    const struct hfconfig *c = &m->cfg;
    const struct op_ffn f = {w->gate, w->up, w->down, c->hidden, c->inner};

    m->ops->ffn(m->be, &f, m->h, b->n_rows, m->y);
    m->ops->add(m->be, m->x, m->y, c->hidden);
}

static void moe(struct model *m, const struct layer *w, const struct op_routing *routing,
                int budget_at)
{
    const struct hfconfig *c = &m->cfg;
    const struct op_route r = {w->router, c->experts, c->topk, c->hidden, budget_at};
    const struct op_experts e = {w->gate, w->up, w->down, c->experts, c->topk, c->hidden, c->inner};

    m->ops->route(m->be, &r, m->h, routing);
    m->ops->experts(m->be, &e, routing, m->h, m->y);
    m->ops->add(m->be, m->x, m->y, c->hidden);
}

void model_forward(struct model *m, const struct op_batch *b)
{
    const struct hfconfig *c = &m->cfg;
    const struct ops *ops = m->ops;
    int moe_index = 0;

    ops->embed(m->be, m->embed, m->x);
    for (int l = 0; l < c->layers; l++) {
        const struct layer *w = &m->layers[l];
        attention_block(m, b, l);
        ops->rmsnorm(m->be, m->x, w->post_norm, c->rms_eps, b->n_rows, c->hidden, m->h);
        if (w->moe) {
            moe(m, w, &m->routing[moe_index], moe_index * c->experts);
            moe_index++;
            ops->rmsnorm(m->be, m->x, w->extra_norm, c->rms_eps, b->n_rows, c->hidden, m->h);
        }
        ffn(m, b, &w->mlp);
    }
}

void model_head(struct model *m, const int32_t *row_ids, int n)
{
    const struct op_matmul head[] = {{m->head, m->head_h, m->logits}};

    m->ops->gather(m->be, m->x, row_ids, n, m->cfg.hidden, m->head_in);
    m->ops->rmsnorm(m->be, m->head_in, m->norm, m->cfg.rms_eps, n, m->cfg.hidden, m->head_h);
    m->ops->matmul(m->be, head, 1, n);
}

/* openmoe-model: floor(topk * factor * N / experts), made even, at least min_capacity. */
int model_capacity(const struct hfconfig *cfg, int n_rows)
{
    int capacity =
        (int)floor((double)cfg->topk * (double)cfg->capacity_factor_eval * n_rows / cfg->experts);
    capacity += capacity % 2;
    return capacity > cfg->min_capacity ? capacity : cfg->min_capacity;
}

/* ---- memory ---------------------------------------------------------------------------------- */

int model_init(struct model *m, const struct hfconfig *cfg, struct error *err)
{
    *m = (struct model){.cfg = *cfg};
    m->layers = calloc((size_t)cfg->layers, sizeof *m->layers);
    m->moe_layer_ids = calloc((size_t)cfg->layers, sizeof *m->moe_layer_ids);
    if (!m->layers || !m->moe_layer_ids) goto no_memory;
    for (int l = 0; l < cfg->layers; l++) {
        struct layer *w = &m->layers[l];
        w->moe = (l + 1) % cfg->moe_interval == 0;
        if (!w->moe) continue;
        m->moe_layer_ids[m->moe_layers++] = l;
        w->gate = calloc((size_t)cfg->experts, sizeof(struct weight *));
        w->up = calloc((size_t)cfg->experts, sizeof(struct weight *));
        w->down = calloc((size_t)cfg->experts, sizeof(struct weight *));
        if (!w->gate || !w->up || !w->down) goto no_memory;
    }
    m->routing = calloc((size_t)m->moe_layers + 1, sizeof *m->routing);
    if (m->routing) return CFG_OK;
no_memory:
    model_deinit(m);
    return cfg_fail(err, CFG_ENOMEM, "no memory for %d layers", cfg->layers);
}

int model_alloc(struct model *m, int max_rows, struct error *err)
{
    const struct hfconfig *c = &m->cfg;
    const size_t rows = (size_t)max_rows, hidden = (size_t)c->hidden;
    const size_t heads = (size_t)(c->heads * c->head_dim), kv = (size_t)(c->kv_heads * c->head_dim);
    const size_t picks = rows * (size_t)c->topk, heads_at_once = (size_t)m->ops->head_rows;
    struct {
        float **at;
        size_t n;
    } wanted[] = {
        {&m->x, rows * hidden},
        {&m->h, rows * hidden},
        {&m->y, rows * hidden},
        {&m->q, rows * heads},
        {&m->att, rows * heads},
        {&m->k, rows * kv},
        {&m->v, rows * kv},
        {&m->head_in, heads_at_once * hidden},
        {&m->head_h, heads_at_once * hidden},
        {&m->logits, heads_at_once * (size_t)c->vocab},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        int rc = m->ops->alloc(m->be, wanted[i].n * sizeof(float), (void **)wanted[i].at, err);
        if (rc != CFG_OK) return rc;
    }
    for (int i = 0; i < m->moe_layers; i++) {
        struct op_routing *r = &m->routing[i];
        struct {
            void **at;
            size_t bytes;
        } host[] = {{(void **)&r->experts, picks * sizeof *r->experts},
                    {(void **)&r->weights, picks * sizeof *r->weights},
                    {(void **)&r->kept, picks * sizeof *r->kept}};
        for (size_t k = 0; k < sizeof host / sizeof *host; k++) {
            int rc = m->ops->alloc_host(m->be, host[k].bytes, host[k].at, err);
            if (rc != CFG_OK) return rc;
        }
    }
    return CFG_OK;
}

void model_deinit(struct model *m)
{
    for (int l = 0; m->layers && l < m->cfg.layers; l++) {
        free(m->layers[l].gate);
        free(m->layers[l].up);
        free(m->layers[l].down);
    }
    free(m->routing);
    free(m->layers);
    free(m->moe_layer_ids);
    *m = (struct model){0};
}
