// SPDX-License-Identifier: Apache-2.0
//
// pack.h (private to engine/cpu/): weights in the panel layout of kernels.h, and the memory they
// live in.
#ifndef OPENMOED_CPU_PACK_H
#define OPENMOED_CPU_PACK_H

#include "engine/cpu/kernels.h"
#include "engine/cpu/threads.h"
#include "engine/ops.h"

struct weight {
    int n_out, k; /* outputs, inputs */
    int panels;
    bool bf16;
    void *data; /* [panels] runs of panel_elems numbers; NULL for a table */
    size_t panel_elems;
    struct weight_source table; /* table_new: rows are read where they lie */
};

/* Memory that lives as long as the backend: big pieces come as huge pages where the kernel has
 * them. */
struct region {
    struct region *next;
    void *data;
    size_t bytes;
    bool mapped;
};
void *region_alloc(struct region **list,
                   size_t bytes); /* zeroed, 64-byte aligned; NULL: no memory */
void region_free_all(struct region *list);

/* What both CPU backends share: rows of logits at a time (1 MB each with the real vocabulary), and
 * ops.read where all memory is the host's. */
#define CPU_HEAD_ROWS 32
void cpu_read(void *be, const float *from, size_t bytes, void *to);

/* Fills w->data (already allocated, weight_layout) from the source, on all threads. */
void weight_layout(struct weight *w, const struct weight_source *src, const struct kernels *k,
                   bool bf16);
size_t weight_bytes(const struct weight *w);
void weight_pack(struct weight *w, const struct weight_source *src, const struct kernels *k,
                 struct threads *t);

#endif
