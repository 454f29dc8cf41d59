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

/* Where number (output j of the panel, input i) stands: see kernels.h. */
static size_t place(const struct pack_job *p, int i, int j)
{
    if (!p->w->bf16) return (size_t)i * (size_t)p->panel + (size_t)j;
    return (size_t)(i / 2) * 2 * (size_t)p->panel + 2 * (size_t)j + (size_t)(i % 2);
}

/* Source rows are outputs: read a strip of inputs of each output. */
static void pack_outputs(const struct pack_job *p, int panel, int cols, void *dst)
{
    union {
        float f[K_TILE];
        uint16_t h[K_TILE];
    } strip;
    for (int i0 = 0; i0 < p->w->k; i0 += K_TILE) {
        const int n = p->w->k - i0 < K_TILE ? p->w->k - i0 : K_TILE;
        for (int j = 0; j < cols; j++) {
            const int64_t r = (int64_t)panel * p->panel + j;
            if (p->w->bf16) {
                source_read_bf16(p->src, r, i0, n, strip.h);
                for (int i = 0; i < n; i++) ((uint16_t *)dst)[place(p, i0 + i, j)] = strip.h[i];
            } else {
                source_read(p->src, r, i0, n, strip.f);
                for (int i = 0; i < n; i++) ((float *)dst)[place(p, i0 + i, j)] = strip.f[i];
            }
        }
    }
}

/* Source rows are inputs: read the panel's outputs of each input. */
static void pack_inputs(const struct pack_job *p, int panel, int cols, void *dst)
{
    union {
        float f[256];
        uint16_t h[256];
    } strip; /* a panel has at most 64 outputs */
    for (int i = 0; i < p->w->k; i++) {
        const int64_t c = (int64_t)panel * p->panel;
        if (p->w->bf16) {
            source_read_bf16(p->src, i, c, cols, strip.h);
            for (int j = 0; j < cols; j++) ((uint16_t *)dst)[place(p, i, j)] = strip.h[j];
        } else {
            source_read(p->src, i, c, cols, strip.f);
            memcpy((float *)dst + place(p, i, 0), strip.f, (size_t)cols * sizeof *strip.f);
        }
    }
}

static void pack_panels(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct pack_job *p = arg;
    for (size_t panel = begin; panel < end; panel++) {
        char *dst = (char *)p->w->data + panel * p->w->panel_elems * (p->w->bf16 ? 2 : 4);
        const int left = p->w->n_out - (int)panel * p->panel;
        const int cols = left < p->panel ? left : p->panel;
        if (p->src->transposed)
            pack_inputs(p, (int)panel, cols, dst);
        else
            pack_outputs(p, (int)panel, cols, dst);
    }
}

void weight_pack(struct weight *w, const struct weight_source *src, const struct kernels *k,
                 struct threads *t)
{
    struct pack_job job = {.w = w, .src = src, .panel = k->panel};
    threads_for(t, (size_t)w->panels, 4, pack_panels, &job);
}
