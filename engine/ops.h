// SPDX-License-Identifier: Apache-2.0
//
// ops.h (private to engine/): what model.c asks of a backend. One table of operations, implemented
// by cpu/ (reference and fast) and cuda/. Buffers are the backend's (`alloc`): model.c only passes
// them on, and what lies in one between two operations is the backend's own affair. Operations
// enqueue work in order and latch the first error; `sync` waits and returns it.
//
// Numerics. The residual stream is FP32. When ops->bf16 is set, what feeds a matrix product (the
// output of rmsnorm, of attention, and the activated half of a feed-forward network) is rounded to
// BF16, and products accumulate in FP32; keys and values are stored in BF16. Every reduction over a
// row has an order fixed by that row alone, so a row's result never depends on its company.
#ifndef OPENMOED_OPS_H
#define OPENMOED_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "engine/engine.h"

/* One weight matrix as the files hold it: `rows` x `cols` of type F32, BF16 or F16, at data +
 * r*stride. `transposed` false: y = x W^T (rows = outputs); true: y = x W (rows = inputs). When
 * data is NULL the weights are dummies: normal-like values of standard deviation 1/sqrt(inputs)
 * from `seed`. */
struct weight_source {
    const void *data;
    int type; /* enum tensor_type */
    int64_t rows, cols;
    bool transposed;
    uint64_t seed;
};

struct weight; /* a matrix in the backend's own layout; owned by the backend */

/* y[r][n] = sum_k x[r][k] * w[n][k], for n_rows rows. */
struct op_matmul {
    const struct weight *w;
    const float *x; /* [n_rows, inputs] */
    float *y;       /* [n_rows, outputs] */
};

struct op_sample;

/* Where the rows of a step come from and what becomes of them; arrays are host memory, valid until
 * the step's last sync. */
struct op_batch {
    int n_rows; /* rows in all */
    int n_seqs;
    const int32_t *tokens;              /* [n_rows] */
    const int32_t *positions;           /* [n_rows] */
    const int32_t *seq_of_row;          /* [n_rows] index into block_tables */
    const int32_t *const *block_tables; /* [n_seqs] */
    uint16_t *const *spent; /* [n_seqs] budgets, [moe_layers, experts] each; NULL: none. Updated by
                               the time sync returns */
    /* Picks an expert may take, 0 = no limit. Without budgets: in this call, all first choices
     * before any second. With budgets: of one sequence, in order of position, first choice before
     * second. */
    int capacity;
    int n_heads;                     /* rows that need logits ... */
    const int32_t *head_rows;        /* [n_heads] ... which they are ... */
    const struct op_sample *samples; /* [n_heads] ... and what for */
    bool wants_logits;               /* some of them are read by the host */
};

struct op_attention {
    int layer, heads, kv_heads, head_dim;
    float rope_theta;
};

/* Gate, top-k and capacity of one MoE layer. */
struct op_route {
    const float *router; /* backend copy, [experts, hidden] FP32 */
    int experts, topk, hidden;
    int budget_at; /* where the layer's counters stand in a budget (op_batch.spent) */
};

/* The outcome of routing, in memory of alloc_host, which the host may read after sync. */
struct op_routing {
    int32_t *experts; /* [n_rows, topk] best first, ties to the lower index */
    float *weights;   /* [n_rows, topk] softmax over all experts, not renormalised */
    uint8_t *kept;    /* [n_rows, topk] */
};

/* down( g1 * silu(g2) * up(h) ), where gate(h) = [g1, g2]: three factors. */
struct op_ffn {
    const struct weight *gate, *up, *down; /* hidden -> 2*inner, hidden -> inner, inner -> hidden */
    int hidden, inner;
};

/* The same for each expert, and the sum of a row's kept picks, first choice first. */
struct op_experts {
    struct weight *const *gate; /* [experts] hidden -> 2*inner */
    struct weight *const *up;   /* [experts] hidden -> inner */
    struct weight *const *down; /* [experts] inner -> hidden */
    int experts, topk, hidden, inner;
};

/* One id whose logit is changed before the choice: x = logit + bias; x is divided by the repetition
 * penalty if positive, else multiplied by it, if the id was in the prompt or was generated; then
 * generated ids lose presence + generated * frequency; and a banned one cannot be chosen. */
struct op_adjust {
    int32_t id;
    uint32_t generated; /* times sampled so far */
    float bias;
    float raw; /* scratch of the host's sampler */
    bool in_prompt, is_end;
};

/* What becomes of one row of logits: scored for a target, or sampled. */
struct op_sample {
    struct engine_sampler *sampler; /* NULL: score `target` */
    int32_t target;
    int n_top;
    int usable; /* ids below it exist for the tokenizer */
    struct engine_result *out;
    /* The sampler's state, for backends that sample themselves. */
    const struct engine_sampling *cfg; /* NULL when scored; its arrays are not kept */
    const struct op_adjust *adjust;    /* [n_adjust] */
    size_t n_adjust;
    int generated;  /* tokens sampled so far: the step of the draw, and what min_tokens looks at */
    int32_t eos_id; /* the choice when nothing is possible */
    const uint32_t *mask; /* [(usable + 31) / 32] bits: only these ids are possible; NULL: all */
};

enum { OPS_AGAIN = 1 };

struct ops {
    const char *name;
    bool bf16;
    bool async;    /* work is done elsewhere: until sync the calling thread is free */
    int head_rows; /* rows of logits that are computed at once, at most */
    bool samples;  /* `sample` fills `out` but leaves the samplers to the caller, who tells them of
                      their tokens after sync; else it uses and updates them itself */
    size_t memory; /* bytes of the backend's own memory that the model may take; 0: it uses the
                      machine's */

    /* load time */
    int (*weight_new)(void *be, const struct weight_source *src, struct weight **out,
                      struct error *err);
    int (*vector_new)(void *be, const struct weight_source *src, float **out,
                      struct error *err); /* any small FP32 tensor */
    int (*table_new)(void *be, const struct weight_source *src, struct weight **out,
                     struct error *err); /* embedding: rows are looked up */
    int (*alloc)(void *be, size_t bytes, void **out, struct error *err);
    int (*alloc_host)(void *be, size_t bytes, void **out, struct error *err); /* zeroed */
    int (*kv_new)(void *be, int layers, int kv_heads, int head_dim, int n_blocks, int block_size,
                  struct error *err);

    /* between steps: block `to` becomes a copy of block `from`, in every layer */
    void (*kv_copy)(void *be, int32_t from, int32_t to);

    /* One step, in order. begin returns true when the step's operations must follow, up to
     * `sample`; false when the backend has recorded a step of this shape before and runs that: then
     * only sync does. */
    bool (*begin)(void *be, const struct op_batch *b);
    void (*embed)(void *be, const struct weight *table, float *x); /* x [n_rows, hidden] */
    void (*rmsnorm)(void *be, const float *x, const float *w, float eps, int n_rows, int hidden,
                    float *y);
    void (*matmul)(void *be, const struct op_matmul *list, int n, int n_rows);
    void (*rope_kv)(void *be, const struct op_attention *a, float *q, float *k,
                    const float *v); /* rotates q, k; stores k, v */
    void (*attention)(void *be, const struct op_attention *a, const float *q, float *y);
    void (*ffn)(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y);
    void (*add)(void *be, float *x, const float *y, int hidden); /* x += y */
    void (*route)(void *be, const struct op_route *r, const float *h, const struct op_routing *out);
    void (*experts)(void *be, const struct op_experts *e, const struct op_routing *r,
                    const float *h, float *y);
    /* y[i] = x[row_ids[i]]; row_ids is part of the batch's head_rows */
    void (*gather)(void *be, const float *x, const int32_t *row_ids, int n, int hidden, float *y);
    /* Samples or scores each row of logits [n, vocab] (sampler.h); list is part of the batch's
     * samples. */
    void (*sample)(void *be, float *logits, int vocab, const struct op_sample *list, int n);
    void (*read)(void *be, const float *from, size_t bytes, void *to); /* to host memory, at sync */
    /* Waits for the step. OPS_AGAIN, with the reason in err: recording it failed and nothing of it
     * has run; it must be begun anew. */
    int (*sync)(void *be, struct error *err);
    void (*close)(void *be);
};

/* What `sample` does with one row once its logits are in host memory. */
void op_sample_row(float *logits, const struct op_sample *s);

enum backend_quantization { BACKEND_PLAIN, BACKEND_FP8, BACKEND_INT8 };

struct backend_options {
    const char *isa;     /* CPU: kernel family */
    int threads;         /* CPU */
    int gpu;             /* CUDA: which device */
    double memory_share; /* CUDA: of the device's memory, what the daemon may use */
    enum backend_quantization quantization; /* CUDA: of matrices, weights only */
    bool kv_fp8;                            /* CUDA, BF16 mode: keys and values in 8 bits */
    bool bf16;
    int max_rows, max_seqs; /* of a step */
    int block_size, vocab, moe_layers;
    int hidden, inner, experts, topk, heads, kv_heads, head_dim, context;
};
/* Plain and readable; every other backend is tested against it. */
int cpu_reference_open(const struct ops **ops, void **be, const struct backend_options *opt,
                       struct error *err) CFG_WARN_UNUSED;
/* What the daemon and a backend in a shared object must agree on; the first number is raised when
 * this header changes, the sizes catch what is forgotten. */
#define OPS_ABI                                                                                    \
    ((int)(3u << 24 ^ sizeof(struct ops) << 12 ^ sizeof(struct backend_options) << 6 ^             \
           sizeof(struct op_batch) << 3 ^ sizeof(struct op_sample) ^                               \
           sizeof(struct engine_result) << 16))
/* Opens the CUDA backend's shared object, which stands beside the program; CFG_EUNSUPPORTED, with
 * the reason in one line, when there is none, no driver, no fitting device or too little memory. */
int cuda_load(const struct ops **ops, void **be, const struct backend_options *opt,
              struct error *err) CFG_WARN_UNUSED;
/* The fast one; opt->isa "auto" takes the best this machine runs. */
int cpu_open(const struct ops **ops, void **be, const struct backend_options *opt,
             struct error *err) CFG_WARN_UNUSED;

#endif
