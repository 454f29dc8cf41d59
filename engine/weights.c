// SPDX-License-Identifier: Apache-2.0
//
// weights.c: which tensor of a checkpoint is which weight of the model. Binding resolves all names
// and shapes first (cheap, and all that can be wrong is found before a port opens); loading then
// hands them to the backend one by one. Knows both spellings of the MoE tensors (openmoe-model).
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

struct binder {
    struct weight_slots *slots;
    const struct checkpoint *checkpoint; /* NULL: dummies */
    uint64_t seed;
    struct error *err;
    int rc;         /* latched first error */
    char name[160]; /* of the tensor in hand */
};

static const char *name_of(struct binder *b, const char *fmt, ...) CFG_PRINTF(2, 3);

static const char *name_of(struct binder *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b->name, sizeof b->name, fmt, ap);
    va_end(ap);
    return b->name;
}

static void fail_shape(struct binder *b, const struct tensor *t, const int64_t *want, int n_want)
{
    char got[96] = "", expected[96] = "";
    for (int i = 0; i < t->n_dims; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%" PRId64, i ? ", " : "",
                 t->dims[i]);
    for (int i = 0; i < n_want; i++)
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%s%" PRId64,
                 i ? ", " : "", want[i]);
    b->rc =
        cfg_fail(b->err, CFG_EINVAL, "%s: tensor \"%s\" has shape [%s], config.json asks for [%s]",
                 t->file, t->name, got, expected);
}

/* The tensor of that name and shape; NULL (with rc latched, unless it is a dummy) when there is
 * none. */
static const struct tensor *find(struct binder *b, const char *name, int n_dims,
                                 const int64_t *dims)
{
    if (b->rc != CFG_OK || !b->checkpoint) return NULL;
    const struct tensor *t = checkpoint_find(b->checkpoint, name);
    if (!t) {
        b->rc = cfg_fail(b->err, CFG_EINVAL, "the checkpoint has no tensor \"%s\"", name);
        return NULL;
    }
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = t->dims[i] == dims[i];
    if (!same) {
        fail_shape(b, t, dims, n_dims);
        return NULL;
    }
    return t;
}

static void add_slot(struct binder *b, const struct weight_slot *slot)
{
    struct weight_slots *s = b->slots;
    if (b->rc != CFG_OK) return;
    if (s->n == s->capacity) {
        const size_t capacity = s->capacity ? 2 * s->capacity : 64;
        struct weight_slot *items = realloc(s->items, capacity * sizeof *items);
        if (!items) {
            b->rc = cfg_fail(b->err, CFG_ENOMEM, "no memory for the list of weights");
            return;
        }
        s->items = items;
        s->capacity = capacity;
    }
    s->items[s->n++] = *slot;
}

/* A whole tensor [rows, cols] as one weight. */
static void bind(struct binder *b, enum slot_kind kind, void *dest, int64_t rows, int64_t cols,
                 const char *name)
{
    const int64_t dims[] = {rows, cols};
    const bool flat = cols == 1 && kind == SLOT_VECTOR;
    const struct tensor *t = find(b, name, flat ? 1 : 2, dims);
    struct weight_slot slot = {
        .kind = kind, .dest = dest, .tensor = t, .last_use = kind != SLOT_TABLE};
    slot.src = (struct weight_source){.rows = flat ? 1 : rows, .cols = flat ? rows : cols};
    slot.src.seed = b->seed + 0x1000193 * (b->slots->n + 1);
    if (t) {
        slot.src.data = t->data;
        slot.src.type = (int)t->type;
    }
    add_slot(b, &slot);
}

static void bind_ffn(struct binder *b, struct ffn *f, const struct hfconfig *c, int layer,
                     const char *block)
{
    const int64_t hidden = c->hidden, inner = c->inner;
    bind(b, SLOT_MATRIX, &f->gate, 2 * inner, hidden,
         name_of(b, "model.layers.%d.%s.gate_proj.weight", layer, block));
    bind(b, SLOT_MATRIX, &f->up, inner, hidden,
         name_of(b, "model.layers.%d.%s.up_proj.weight", layer, block));
    bind(b, SLOT_MATRIX, &f->down, hidden, inner,
         name_of(b, "model.layers.%d.%s.down_proj.weight", layer, block));
}

/* First spelling: one tensor [experts, inputs, outputs] for all experts, used as x @ W[e]. */
static void bind_stacked(struct binder *b, struct weight **dest, int experts, int64_t in,
                         int64_t out, const char *name)
{
    const int64_t dims[] = {experts, in, out};
    const struct tensor *t = find(b, name, 3, dims);
    for (int e = 0; e < experts; e++) {
        struct weight_slot slot = {
            .kind = SLOT_MATRIX, .dest = &dest[e], .tensor = t, .last_use = e + 1 == experts};
        slot.src = (struct weight_source){.rows = in, .cols = out, .transposed = true};
        slot.src.seed = b->seed + 0x1000193 * (b->slots->n + 1);
        if (t) {
            slot.src.type = (int)t->type;
            slot.src.data =
                (const char *)t->data + (size_t)e * (size_t)(in * out) * tensor_type_size(t->type);
        }
        add_slot(b, &slot);
    }
}

static void bind_experts(struct binder *b, struct layer *w, const struct hfconfig *c, int l)
{
    const int64_t hidden = c->hidden, inner = c->inner;
    if (!b->checkpoint ||
        checkpoint_find(b->checkpoint, name_of(b, "model.layers.%d.mlp.experts.wi_gate", l))) {
        bind_stacked(b, w->gate, c->experts, hidden, 2 * inner,
                     name_of(b, "model.layers.%d.mlp.experts.wi_gate", l));
        bind_stacked(b, w->up, c->experts, hidden, inner,
                     name_of(b, "model.layers.%d.mlp.experts.wi_up", l));
        bind_stacked(b, w->down, c->experts, inner, hidden,
                     name_of(b, "model.layers.%d.mlp.experts.wo", l));
        return;
    }
    /* second spelling: three matrices an expert, y = x W^T */
    for (int e = 0; e < c->experts; e++) {
        char block[48];
        struct ffn f;
        const size_t first = b->slots->n;
        snprintf(block, sizeof block, "mlp.experts.%d", e);
        bind_ffn(b, &f, c, l, block);
        if (b->rc != CFG_OK) return;
        b->slots->items[first].dest = &w->gate[e];
        b->slots->items[first + 1].dest = &w->up[e];
        b->slots->items[first + 2].dest = &w->down[e];
    }
}

static void bind_layer(struct binder *b, struct layer *w, const struct hfconfig *c, int l)
{
    const int64_t hidden = c->hidden, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    bind(b, SLOT_VECTOR, &w->input_norm, hidden, 1,
         name_of(b, "model.layers.%d.input_layernorm.weight", l));
    bind(b, SLOT_MATRIX, &w->q, q, hidden,
         name_of(b, "model.layers.%d.self_attn.q_proj.weight", l));
    bind(b, SLOT_MATRIX, &w->k, kv, hidden,
         name_of(b, "model.layers.%d.self_attn.k_proj.weight", l));
    bind(b, SLOT_MATRIX, &w->v, kv, hidden,
         name_of(b, "model.layers.%d.self_attn.v_proj.weight", l));
    bind(b, SLOT_MATRIX, &w->o, hidden, q,
         name_of(b, "model.layers.%d.self_attn.o_proj.weight", l));
    bind(b, SLOT_VECTOR, &w->post_norm, hidden, 1,
         name_of(b, "model.layers.%d.post_attention_layernorm.weight", l));
    if (!w->moe) {
        bind_ffn(b, &w->mlp, c, l, "mlp");
        return;
    }
    const char *router = name_of(b, "model.layers.%d.mlp.gate_weight", l);
    if (b->checkpoint && !checkpoint_find(b->checkpoint, router))
        router = name_of(b, "model.layers.%d.mlp.gate.weight", l);
    bind(b, SLOT_VECTOR, &w->router, c->experts, hidden, router);
    bind_experts(b, w, c, l);
    bind(b, SLOT_VECTOR, &w->extra_norm, hidden, 1,
         name_of(b, "model.layers.%d.pre_extra_mlp_layernorm.weight", l));
    bind_ffn(b, &w->mlp, c, l, "extra_mlp");
}

int weights_bind(struct weight_slots *slots, struct model *m, const struct checkpoint *c,
                 uint64_t seed, struct error *err)
{
    struct binder b = {.slots = slots, .checkpoint = c, .seed = seed, .err = err};
    const int64_t vocab = m->cfg.vocab, hidden = m->cfg.hidden;
    *slots = (struct weight_slots){0};
    bind(&b, SLOT_TABLE, &m->embed, vocab, hidden, "model.embed_tokens.weight");
    for (int l = 0; l < m->cfg.layers; l++) bind_layer(&b, &m->layers[l], &m->cfg, l);
    bind(&b, SLOT_VECTOR, &m->norm, hidden, 1, "model.norm.weight");
    bind(&b, SLOT_MATRIX, &m->head, vocab, hidden, "lm_head.weight");
    if (b.rc != CFG_OK) weights_unbind(slots);
    return b.rc;
}

/* ---- loading --------------------------------------------------------------------------------- */

static size_t slot_bytes(const struct weight_slot *s)
{
    const size_t size = s->tensor ? tensor_type_size(s->tensor->type) : 2;
    return (size_t)(s->src.rows * s->src.cols) * size;
}

/* As stored in the files. */
static size_t weights_bytes(const struct weight_slots *slots)
{
    size_t sum = 0;
    for (size_t i = 0; i < slots->n; i++) sum += slot_bytes(&slots->items[i]);
    return sum;
}

/* A dummy norm weight is 1: anything else would say nothing and might overflow. */
static int load_slot(struct model *m, const struct weight_slot *s, struct error *err)
{
    if (s->tensor) checkpoint_will_need(s->tensor);
    switch (s->kind) {
    case SLOT_MATRIX:
        return m->ops->weight_new(m->be, &s->src, s->dest, err);
    case SLOT_TABLE:
        return m->ops->table_new(m->be, &s->src, s->dest, err);
    default:
        break;
    }
    if (s->tensor || s->src.rows > 1) return m->ops->vector_new(m->be, &s->src, s->dest, err);
    struct weight_source ones = s->src;
    float *data = malloc((size_t)ones.cols * sizeof *data);
    if (!data) return cfg_fail(err, CFG_ENOMEM, "no memory for a dummy vector");
    for (int64_t i = 0; i < ones.cols; i++) data[i] = 1.0f;
    ones.data = data;
    ones.type = TENSOR_F32;
    int rc = m->ops->vector_new(m->be, &ones, s->dest, err);
    free(data);
    return rc;
}

int weights_load(const struct weight_slots *slots, struct model *m, const volatile bool *stop,
                 struct error *err)
{
    const double start = cfg_now(), total = (double)weights_bytes(slots);
    double done = 0, reported = start;
    for (size_t i = 0; i < slots->n; i++) {
        const struct weight_slot *s = &slots->items[i];
        if (stop && __atomic_load_n(stop, __ATOMIC_RELAXED))
            return cfg_fail(err, CFG_ECLOSED, "loading was stopped");
        int rc = load_slot(m, s, err);
        if (rc != CFG_OK) return rc;
        if (s->tensor && s->last_use) checkpoint_done_with(s->tensor);
        done += (double)slot_bytes(s);
        const double now = cfg_now();
        if (now - reported >= 1.0) {
            cfg_log(CFG_LOG_INFO, "loading weights: %.0f%% (%.2f of %.2f GB, %.2f GB/s)",
                    100 * done / total, done / 1e9, total / 1e9, done / 1e9 / (now - start));
            reported = now;
        }
    }
    const double seconds = cfg_now() - start;
    cfg_log(CFG_LOG_INFO, "weights loaded: 100%% (%.2f GB in %.2f s, %.2f GB/s)", total / 1e9,
            seconds, seconds > 0 ? total / 1e9 / seconds : 0.0);
    return CFG_OK;
}

void weights_unbind(struct weight_slots *slots)
{
    free(slots->items);
    *slots = (struct weight_slots){0};
}
