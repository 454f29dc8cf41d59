// SPDX-License-Identifier: Apache-2.0
//
// pack.c: from a matrix as files hold it to panels (kernels.h). Packing costs one pass over the
// weights at load and buys long sequential reads in every step, one order of summation for every
// batch size, and one kernel for both orientations that checkpoints use (y = x W^T and y = x W).
#include "engine/cpu/pack.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/cpu/source.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_PANEL 64
#define K_TILE    64 /* inputs packed at a time: keeps source rows and destination in the L1 cache */

void *region_alloc(struct region **list, size_t bytes)
{
    struct region *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->mapped = bytes >= HUGE_PAGE;
    r->bytes = r->mapped ? bytes : (bytes + 63) / 64 * 64 + 64;
    if (r->mapped) {
        r->data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (r->data == MAP_FAILED) r->data = NULL;
        /* A hint: without huge pages everything works, with more TLB misses. */
        if (r->data) (void)madvise(r->data, bytes, MADV_HUGEPAGE);
    } else {
        r->data = aligned_alloc(64, r->bytes);
        if (r->data) memset(r->data, 0, r->bytes);
    }
    if (!r->data) {
        free(r);
        return NULL;
    }
    r->next = *list;
    *list = r;
    return r->data;
}

void region_free_all(struct region *list)
{
    while (list) {
        struct region *next = list->next;
        if (list->mapped)
            munmap(list->data, list->bytes);
        else
            free(list->data);
        free(list);
        list = next;
    }
}

void cpu_read(void *be, const float *from, size_t bytes, void *to)
{
    (void)be;
    memcpy(to, from, bytes);
}

void weight_layout(struct weight *w, const struct weight_source *src, const struct kernels *k,
                   bool bf16)
{
    w->n_out = (int)(src->transposed ? src->cols : src->rows);
    w->k = (int)(src->transposed ? src->rows : src->cols);
    w->bf16 = bf16;
    w->panels = (w->n_out + k->panel - 1) / k->panel;
    const int align = bf16 ? k->k_align : 1;
    w->panel_elems = (size_t)((w->k + align - 1) / align * align) * (size_t)k->panel;
}

size_t weight_bytes(const struct weight *w)
{
    return (size_t)w->panels * w->panel_elems * (w->bf16 ? 2 : 4);
}

struct pack_job {
    struct weight *w;
    const struct weight_source *src;
    int panel; /* outputs of a panel */
};

static uint32_t pair_of(uint16_t even, uint16_t odd)
{
    return (uint32_t)even | (uint32_t)odd << 16;
}

/* Source rows are outputs: a strip of inputs of each output goes down one column of the panel. */
static void pack_outputs_bf16(const struct pack_job *p, int64_t first, int cols, uint32_t *dst)
{
    for (int i0 = 0; i0 < p->w->k; i0 += K_TILE, dst += K_TILE / 2 * p->panel) {
        const int n = p->w->k - i0 < K_TILE ? p->w->k - i0 : K_TILE;
        for (int j = 0; j < cols; j++) {
            uint16_t strip[K_TILE];
            source_read_bf16(p->src, first + j, i0, n, strip);
            if (n % 2) strip[n] = 0; /* K_TILE is even */
            for (int i = 0; i < n; i += 2)
                dst[i / 2 * p->panel + j] = pair_of(strip[i], strip[i + 1]);
        }
    }
}

static void pack_outputs_f32(const struct pack_job *p, int64_t first, int cols, float *dst)
{
    for (int i0 = 0; i0 < p->w->k; i0 += K_TILE, dst += K_TILE * p->panel) {
        const int n = p->w->k - i0 < K_TILE ? p->w->k - i0 : K_TILE;
        for (int j = 0; j < cols; j++) {
            float strip[K_TILE];
            source_read(p->src, first + j, i0, n, strip);
            for (int i = 0; i < n; i++) dst[i * p->panel + j] = strip[i];
        }
    }
}

/* Source rows are inputs: the panel's part of two neighbouring rows is interleaved. */
static void pack_inputs_bf16(const struct pack_job *p, int64_t first, int cols, uint32_t *dst)
{
    uint16_t even[MAX_PANEL], odd[MAX_PANEL] = {0};
    for (int i = 0; i < p->w->k; i += 2, dst += p->panel) {
        source_read_bf16(p->src, i, first, cols, even);
        if (i + 1 < p->w->k)
            source_read_bf16(p->src, i + 1, first, cols, odd);
        else
            memset(odd, 0, sizeof odd);
        for (int j = 0; j < cols; j++) dst[j] = pair_of(even[j], odd[j]);
    }
}

static void pack_inputs_f32(const struct pack_job *p, int64_t first, int cols, float *dst)
{
    for (int i = 0; i < p->w->k; i++, dst += p->panel) source_read(p->src, i, first, cols, dst);
}

static void pack_panels(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct pack_job *p = arg;
    for (size_t panel = begin; panel < end; panel++) {
        void *dst = (char *)p->w->data + panel * p->w->panel_elems * (p->w->bf16 ? 2 : 4);
        const int first = (int)panel * p->panel, left = p->w->n_out - first;
        const int cols = left < p->panel ? left : p->panel;
        if (p->w->bf16 && p->src->transposed)
            pack_inputs_bf16(p, first, cols, dst);
        else if (p->w->bf16)
            pack_outputs_bf16(p, first, cols, dst);
        else if (p->src->transposed)
            pack_inputs_f32(p, first, cols, dst);
        else
            pack_outputs_f32(p, first, cols, dst);
    }
}

void weight_pack(struct weight *w, const struct weight_source *src, const struct kernels *k,
                 struct threads *t)
{
    struct pack_job job = {.w = w, .src = src, .panel = k->panel};
    threads_for(t, (size_t)w->panels, 4, pack_panels, &job);
}
