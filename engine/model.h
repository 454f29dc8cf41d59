// SPDX-License-Identifier: Apache-2.0
//
// model.h (private to engine/): the architecture over a backend's operations (model.c) and where
// its weights come from (weights.c). Owned by the engine; one thread.
#ifndef OPENMOED_MODEL_H
#define OPENMOED_MODEL_H

#include "engine/checkpoint.h"
#include "engine/hfconfig.h"
#include "engine/ops.h"

struct ffn {
    struct weight *gate, *up, *down; /* hidden -> 2*inner, hidden -> inner, inner -> hidden */
};

struct layer {
    float *input_norm, *post_norm; /* [hidden] */
    struct weight *q, *k, *v, *o;  /* hidden -> heads*head_dim (kv_heads for k, v), and back */
    bool moe;
    struct ffn mlp;    /* dense layers: the FFN; MoE layers: the always-on extra FFN */
    float *extra_norm; /* MoE: [hidden] */
    float *router;     /* MoE: [experts, hidden] */
    struct weight **gate, **up, **down; /* MoE: [experts] each */
};

struct model {
    struct hfconfig cfg;
    const struct ops *ops;
    void *be;
    int moe_layers;
    int *moe_layer_ids; /* [moe_layers] */

    struct weight *embed, *head; /* [vocab, hidden] */
    float *norm;                 /* [hidden] */
    struct layer *layers;        /* [cfg.layers] */

    /* activations, the backend's memory */
    float *x;                   /* [max_rows, hidden] residual stream */
    float *h;                   /* [max_rows, hidden] normed input of a block */
    float *y;                   /* [max_rows, hidden] output of a block */
    float *q, *att;             /* [max_rows, heads * head_dim] */
    float *k, *v;               /* [max_rows, kv_heads * head_dim] */
    float *head_in, *head_h;    /* [ops->head_rows, hidden] */
    float *logits;              /* [ops->head_rows, vocab] */
    struct op_routing *routing; /* [moe_layers], each [max_rows, topk]; host-readable after sync */
};

/* Everything that does not touch a backend: layers allocated, MoE layers known. */
int model_init(struct model *m, const struct hfconfig *cfg, struct error *err) CFG_WARN_UNUSED;
/* Activations for max_rows rows and ops->head_rows rows of logits. */
int model_alloc(struct model *m, int max_rows, struct error *err) CFG_WARN_UNUSED;
void model_deinit(struct model *m);
/* Enqueues the forward pass of a batch; afterwards m->x holds the residual stream of every row. */
void model_forward(struct model *m, const struct op_batch *b);
/* Enqueues final norm and head for n <= ops->head_rows rows: m->logits. */
void model_head(struct model *m, const int32_t *row_ids, int n);
/* The published capacity of one expert in a forward call of n_rows rows. */
int model_capacity(const struct hfconfig *cfg, int n_rows);

/* ---- weights.c ------------------------------------------------------------------------------- */

enum slot_kind { SLOT_MATRIX, SLOT_VECTOR, SLOT_TABLE };
/* One weight to load: where it lies and which pointer of the model it goes to. */
struct weight_slot {
    enum slot_kind kind;
    struct weight_source src;
    void *dest;                  /* struct weight ** or float ** */
    const struct tensor *tensor; /* NULL for dummies */
    bool last_use;               /* no later slot reads the tensor: its pages may go */
};
struct weight_slots {
    struct weight_slot *items;
    size_t n, capacity;
};
/* Finds every tensor the model needs and checks its shape; c NULL: dummies from seed. */
int weights_bind(struct weight_slots *slots, struct model *m, const struct checkpoint *c,
                 uint64_t seed, struct error *err) CFG_WARN_UNUSED;
/* Hands every slot to the backend, logging progress. *stop is polled. */
int weights_load(const struct weight_slots *slots, struct model *m, const volatile bool *stop,
                 struct error *err) CFG_WARN_UNUSED;
void weights_unbind(struct weight_slots *slots);

#endif
