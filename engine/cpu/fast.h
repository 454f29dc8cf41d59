// SPDX-License-Identifier: Apache-2.0
//
// fast.h (private to engine/cpu/): the state of the fast backend, shared by fast.c (memory, rows,
// attention) and fast_gemm.c (matrix products and experts). Owned by the engine thread; inside a
// region of threads_for several threads read it and write disjoint parts of the buffers.
#ifndef OPENMOED_CPU_FAST_H
#define OPENMOED_CPU_FAST_H

#include "engine/cpu/kernels.h"
#include "engine/cpu/pack.h"
#include "engine/cpu/threads.h"
#include "engine/ops.h"

#define FAST_MAX_EXPERTS 512

/* Work below so many multiply-adds is not worth waking a thread for. */
#define INLINE_WORK 500000

struct fast {
    struct ops ops;
    const struct kernels *k;
    struct threads *threads;
    struct region *memory;
    struct op_batch batch;
    int max_rows;

    /* KV: per layer, [n_blocks][kv_heads][block/16][head_dim][16] keys and
     * [n_blocks][kv_heads][block][head_dim] values, F32 or BF16 */
    void **keys, **values; /* [layers] */
    int block_size, kv_heads, kv_layers;
    size_t block_bytes;     /* keys (or values) of one block in one layer */
    float *cosines, *sines; /* [context, head_dim / 2] */
    int context, rope_dim;
    float rope_theta;
    float *scores; /* [threads, context + 16] attention scratch */

    /* experts: picks grouped by expert */
    int *counts, *starts; /* [experts], [experts + 1] */
    int32_t *pick_at;     /* [max_rows * topk] where a pick's row stands, -1 = dropped */
    float *grouped;       /* [max_rows * topk, hidden] inputs, then outputs */
    float *gate, *up;     /* [max_rows * topk, 2 * inner], [.., inner] */
    char *packed;         /* inputs of one list of products in the kernels' order */
};

void fast_matmul(void *be, const struct op_matmul *list, int n, int n_rows);
void fast_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y);
void fast_experts(void *be, const struct op_experts *e, const struct op_routing *rt, const float *h,
                  float *y);

#endif
