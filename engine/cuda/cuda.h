// SPDX-License-Identifier: Apache-2.0
//
// cuda.h (private to engine/cuda/): the state of the CUDA backend and what its files share. One
// stream; everything is enqueued on it in order, nothing waits but sync. Built as a shared object
// (engine/cuda_load.c opens it); on machines without a GPU the same files run on an emulation of
// the device (tests/gpu/emu). Engine thread only.
//
// Formats. In BF16 mode the buffers that model.c passes hold: x, y, q, k, v, logits FP32; h, att
// and head_h (what feeds a product) BF16, packed from the buffer's start; q becomes BF16 in place
// when rope_kv has rotated it. In F32 mode all of them are FP32.
//
// Invariance. Whatever the batch, a row's bits are the same, because each sum has one order:
//   products   in the order of k in steps of 16 (one mma each) inside a slice; slices, whose number
//              depends on the weight's shape alone, are added first to last;
//   attention  in tiles of 64 positions: each tile's maximum, sum and weighted values from scratch,
//              tiles merged first to last (attention.cuh has the formulas), for any number of
//              queries;
//   norms, softmaxes and the sampler's sums: one block a row, a fixed tree.
// Every kernel of one operation follows the same rule, so prefill, decode and recomputation agree.
//
// Launches. Every kernel is launched by launch_dependent and calls grid_wait() before it reads or
// writes anything but weights; so it may start early and fetch weights while its predecessor ends.
//
// Padding rows. A recorded step has a fixed number of rows; those beyond the batch have position
// -1: they are computed like others where that is harmless (token 0), store no keys, values,
// budgets or results, and route nowhere (their picks are -1 and not kept).
//
// Recorded steps (graph.cu) are replayed with other tokens, positions, blocks and samplers: what an
// operation launches, and with which arguments, may depend on shapes, on opt and on n_rows, n_seqs,
// n_heads, max_blocks, max_chunk, max_tiles and traits of the batch, and on nothing else of it.
#ifndef OPENMOED_CUDA_H
#define OPENMOED_CUDA_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <device.cuh>

extern "C" {
#include "engine/ops.h"
}

#define CUDA_TILE         64  /* positions of an attention tile */
#define CUDA_MAX_EXPERTS  256 /* threads of the kernel that groups picks */
#define CUDA_MAX_TOPK     8
#define CUDA_MAX_HEAD_DIM 128
#define CUDA_STAGE        ((size_t)16 << 20) /* bytes of a weight's file that are staged at once */

enum cuda_type { CUDA_F32, CUDA_BF16, CUDA_FP8, CUDA_INT8 }; /* FP8: e4m3 */

/* A matrix on the device. Outputs and inputs are padded with zeros to multiples of 16 and 32.
 *   CUDA_F32   [n_out][k] row-major, not padded
 *   CUDA_BF16  fragments: [n_pad/16][k_pad/32][2 steps][32 lanes][8 numbers]. Lane = 4g + t holds
 * of outputs g and g+8 of the 16 and of step s the inputs 8t+4s .. 8t+4s+3 of the 32, in the order
 * of mma's A registers: (g; +0,+1) (g+8; +0,+1) (g; +2,+3) (g+8; +2,+3). So a lane reads 16 bytes
 * at once, and the B operand of both steps is 16 contiguous bytes of a row of activations (inputs
 * 8t .. 8t+7 of the 32). 8 bits     the same order, both steps together: [n_pad/16][k_pad/32][32
 * lanes][16 numbers]; values are times scale[output]. */
struct weight {
    enum cuda_type type;
    int n_out, k, n_pad, k_pad;
    int half;   /* 0; or, of a gate whose halves are not multiples of 16, the place of the first
                   output   of the second one: both are padded */
    int slices; /* gemm_slices(n_out, k) */
    void *data;
    float *scale; /* [n_pad], 8 bits only */
    /* the embedding: rows [n_out][k] of BF16 or F32 */
};

/* The batch in hand, one block of device memory filled by one copy from pinned memory. */
struct cuda_batch {
    int n_rows; /* padding included: what kernels are launched for */
    int n_seqs, n_heads;
    unsigned traits;             /* enum cuda_trait of its samples, together */
    int max_blocks;              /* entries of a row of tables */
    int max_chunk;               /* rows of the longest sequence in this step */
    int max_tiles;               /* attention tiles of the longest context, rounded up to a power of
                                    two or to those of opt.context: part of what a recorded step is
                                    known by */
    int32_t *tokens;             /* [n_rows] device from here on */
    int32_t *positions;          /* [n_rows], -1 = padding */
    int32_t *seq_of_row;         /* [n_rows] */
    int32_t *tables;             /* [n_seqs, max_blocks] */
    int32_t *first_row;          /* [n_seqs + 1] where each sequence's rows begin */
    int32_t *head_rows;          /* [n_heads] */
    struct cuda_sample *samples; /* [n_heads] (sample.cu) */
};

/* What some rows of a step ask of the sampler: kernels for what none asks need not run. */
enum cuda_trait {
    CUDA_DRAWS = 1,    /* temperature above 0 */
    CUDA_FILTERS = 2,  /* top_k, top_p or min_p */
    CUDA_ADJUSTS = 4,  /* entries of adjust */
    CUDA_LOGPROBS = 8, /* log-probabilities, and scores */
    CUDA_MASKS = 16,   /* some ids are not allowed */
};

/* One row of logits and what becomes of it; as op_sample, for the device. */
struct cuda_sample {
    int32_t sampled; /* 1: sample; 0: score `target`; -1: nothing (padding) */
    int32_t target;
    int32_t n_top; /* alternatives with log-probabilities; sampled rows: -1 no log-probability */
    int32_t usable, eos_id, generated, min_tokens;
    float temperature, top_p, min_p, presence, frequency, repetition;
    int32_t top_k, n_adjust;
    uint64_t seed;
    struct op_adjust *adjust; /* [n_adjust] device */
    const uint32_t *mask;     /* [(usable + 31) / 32] device: bits of what is allowed; NULL: all */
    float eos_raw;            /* with a mask: the end id's logit, before the mask (sample.cu) */
};

/* Picks of the MoE layer in hand, grouped by expert; device memory. */
struct cuda_picks {
    int32_t *experts; /* [rows, topk], -1 on padding rows */
    float *weights;   /* [rows, topk] */
    uint8_t *kept;    /* [rows, topk] */
    int32_t *starts;  /* [experts + 1]: kept picks of expert e stand at starts[e] .. starts[e+1]-1,
                         in order of row, then choice */
    int32_t *row_of;  /* [rows * topk] row of a grouped pick */
    int32_t *at;      /* [rows, topk] where a pick stands, -1 = dropped */
    int32_t *touched; /* [experts] experts with kept picks, ascending; then -1 */
    int32_t *n_touched;
};

struct cuda_memory;  /* memory.cu */
struct cuda_staging; /* memory.cu */
struct cuda_upload;  /* batch.cu */
struct cuda_graphs;  /* graph.cu */

struct cuda {
    struct ops ops;
    struct backend_options opt;
    cudaStream_t stream, copy_stream;
    cudaError_t failed; /* the first error since the last sync */
    const char *failed_at;
    int sm_count;
    char name[280]; /* ops.name: "cuda" and the device's */

    struct cuda_memory *memory; /* everything allocated, freed at close */
    struct cuda_staging *staging;
    struct cuda_upload *upload;
    struct cuda_graphs *graphs;
    struct cuda_batch batch;
    const struct op_batch *host_batch; /* NULL between sync and begin */

    /* KV, per layer: keys and values [n_blocks][kv_heads][block_size][head_dim] each; BF16, or FP8
     * with opt.kv_fp8, or F32 in F32 mode. */
    void **keys, **values; /* [layers] host arrays of device pointers */
    int layers, n_blocks;
    size_t block_bytes;     /* of one block of one layer, keys or values */
    float *cosines, *sines; /* [context, head_dim / 2] device; made as the CPU does */
    int rope_dim;           /* what they are for */
    float rope_theta;

    /* add waits for the rmsnorm that mostly follows, to be one kernel with it */
    float *pending_x;
    const float *pending_y;
    int pending_hidden;

    struct cuda_picks picks;
    void *act; /* [max_rows * topk, inner] activated halves (BF16; F32 mode: F32) */
    float *
        expert_out; /* [max_rows * topk, hidden] outputs of experts, grouped; scratch of products */
    struct gemm_table *gemm_tables; /* matmul.cu: where each layer's experts lie */
    float *partials;                /* attention of decodes (attention.cu) */
    uint16_t *spent; /* [n_seqs, moe_layers, experts] budgets of this step, or NULL */

    void *sampling;                /* scratch of sample.cu: cuda_sample_bytes */
    struct engine_result *results; /* [max_rows + max_seqs] device: what sample writes, by index of
                                      the batch's samples; sync hands it on */
};

/* Latches the first error; `at` names the operation. */
void cuda_check(struct cuda *c, cudaError_t rc, const char *at);
/* CFG_OK, or the latched error as a message; forgets it. */
int cuda_failure(struct cuda *c, struct error *err);
/* Device memory, zeroed by work on c->stream, freed at close; NULL (and err filled) when there is
 * none. */
void *cuda_take(struct cuda *c, size_t bytes, struct error *err);
void *cuda_take_host(struct cuda *c, size_t bytes, struct error *err); /* pinned, zeroed */
void cuda_free_all(struct cuda *c);
/* Load time: brings n <= CUDA_STAGE bytes of a file to the device, at any alignment. Kernels that
 * are put on c->stream before the next call but one may read them where it says; NULL (and err
 * filled) when there is no memory. Copies on another stream, so that packing a piece and copying
 * the next one overlap. */
const void *cuda_stage(struct cuda *c, const void *data, size_t n, struct error *err);
void cuda_stage_end(struct cuda *c); /* gives the staging memory back */
/* Does the pending add, if there is one. Every operation but rmsnorm begins with it. */
void cuda_flush(struct cuda *c);

/* Slices of a product's sum: enough to give a matrix of few outputs work for the whole device, by
 * its shape alone. */
int gemm_slices(int n_out, int k);

/* batch.cu: the batch in hand. init takes memory for the largest; fill sends b to the device, with
 * `padded` rows (b->n_rows or more); collect fetches what the host waits for, hand_on gives it out
 * once the stream has been waited for. */
int cuda_batch_init(struct cuda *c, struct error *err);
void cuda_batch_deinit(struct cuda *c);
void cuda_batch_fill(struct cuda *c, const struct op_batch *b, int padded);
void cuda_batch_collect(struct cuda *c);
void cuda_batch_hand_on(struct cuda *c);
int cuda_batch_tiles(const struct cuda *c, const struct op_batch *b); /* its max_tiles */
unsigned cuda_batch_traits(const struct op_batch *b);

/* graph.cu: recorded steps. choose says what becomes of the step: it is replayed (`padded` rows),
 * recorded (likewise), or runs as it is. replay launches; begin and end stand around the operations
 * of one that is recorded. */
enum cuda_plan { CUDA_RUN, CUDA_RECORD, CUDA_REPLAY };
int cuda_graphs_init(struct cuda *c, struct error *err);
void cuda_graphs_deinit(struct cuda *c);
enum cuda_plan cuda_graphs_choose(struct cuda *c, const struct op_batch *b, int *padded);
void cuda_graphs_begin(struct cuda *c);
bool cuda_graphs_end(struct cuda *c); /* false: recording failed, nothing of the step has run */
void cuda_graphs_replay(struct cuda *c);

/* ---- operations, by file: as in struct ops -----------------------------------------------------
 * n_rows here is padded like batch.n_rows (backend.cu sees to it).
 */

/* weights.cu */
int cuda_weight_new(void *be, const struct weight_source *src, struct weight **out,
                    struct error *err);
int cuda_vector_new(void *be, const struct weight_source *src, float **out, struct error *err);
int cuda_table_new(void *be, const struct weight_source *src, struct weight **out,
                   struct error *err);
/* matmul.cu, gemm.cuh */
void cuda_matmul(void *be, const struct op_matmul *list, int n, int n_rows);
void cuda_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y);
void cuda_experts(void *be, const struct op_experts *e, const struct op_routing *r, const float *h,
                  float *y);
/* rows.cu */
int cuda_rows_check(const struct backend_options *opt, struct error *err); /* shapes it can't do */
void cuda_embed(void *be, const struct weight *table, float *x);
void cuda_rmsnorm(void *be, const float *x, const float *w, float eps, int n_rows, int hidden,
                  float *y);
void cuda_add(void *be, float *x, const float *y, int hidden);
void cuda_gather(void *be, const float *x, const int32_t *row_ids, int n, int hidden, float *y);
void cuda_rope_kv(void *be, const struct op_attention *a, float *q, float *k, const float *v);
void cuda_kv_copy(void *be, int32_t from, int32_t to);
/* attention.cu */
size_t cuda_partials_bytes(const struct backend_options *opt);
void cuda_attention(void *be, const struct op_attention *a, const float *q, float *y);
/* route.cu */
void cuda_route(void *be, const struct op_route *r, const float *h, const struct op_routing *out);
/* sample.cu */
size_t cuda_sample_bytes(int vocab, int rows); /* for so many rows at once */
void cuda_sample(void *be, float *logits, int vocab, const struct op_sample *list, int n);

#endif
