// SPDX-License-Identifier: Apache-2.0
//
// fast_gemm.c: matrix products and the expert layer of the fast backend. Work is cut into groups of
// panels; a group is computed whole by one thread over all rows, so a weight is read once per
// product and an output never depends on who computed it.
#include <string.h>

#include "engine/cpu/fast.h"

#define MAX_GEMMS   1024 /* experts x 2 of the widest model is far below */
#define GROUP_SMALL 1
#define GROUP       4 /* panels of a work item: what the one-row kernel has in flight */

struct gemm_region {
    struct fast *f;
    const struct gemm *list;
    const uint16_t *const *rows; /* [n] inputs as BF16 where the family wants them so */
    size_t ends[MAX_GEMMS];      /* running number of work items */
    int n, group;
};

static int padded_k(const struct fast *f, const struct weight *w)
{
    return (w->k + f->k->k_align - 1) / f->k->k_align * f->k->k_align;
}

static void gemm_items(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct gemm_region *g = arg;
    int i = 0;
    for (size_t item = begin; item < end; item++) {
        while (item >= g->ends[i]) i++;
        const struct gemm *m = &g->list[i];
        const struct weight *w = m->w;
        const int first = (int)(item - (i ? g->ends[i - 1] : 0)) * g->group;
        const int panels = w->panels - first < g->group ? w->panels - first : g->group;
        const int n_out = w->n_out - first * g->f->k->panel;
        const int cols = n_out < panels * g->f->k->panel ? n_out : panels * g->f->k->panel;
        float *y = m->y + first * g->f->k->panel;
        const size_t at = (size_t)first * w->panel_elems;
        if (!w->bf16)
            g->f->k->gemm_f32(m->x, (size_t)w->k, m->rows, (const float *)w->data + at, panels,
                              w->k, y, (size_t)w->n_out, cols);
        else if (g->f->k->bf16_rows)
            g->f->k->gemm_bf16(g->rows[i], (size_t)padded_k(g->f, w), m->rows,
                               (const uint16_t *)w->data + at, panels, w->k, y, (size_t)w->n_out,
                               cols);
        else
            g->f->k->gemm_bf16(m->x, (size_t)w->k, m->rows, (const uint16_t *)w->data + at, panels,
                               w->k, y, (size_t)w->n_out, cols);
    }
}

/* Inputs hold BF16 values already (ops.h), so the conversion is exact. Products of one list often
 * share their input: it is converted once. */
static void rows_to_bf16(struct fast *f, const struct gemm *list, int n, const uint16_t **rows)
{
    size_t used = 0;
    for (int i = 0; i < n; i++) {
        const int k = list[i].w->k, padded = padded_k(f, list[i].w);
        if (i && list[i].x == list[i - 1].x && list[i].w->k == list[i - 1].w->k &&
            list[i].rows == list[i - 1].rows) {
            rows[i] = rows[i - 1];
            continue;
        }
        uint16_t *dst = f->rows_bf16 + used;
        rows[i] = dst;
        used += (size_t)list[i].rows * (size_t)padded;
        for (int r = 0; r < list[i].rows; r++, dst += padded) {
            for (int j = 0; j < k; j++)
                dst[j] = f32_to_bf16(list[i].x[(size_t)r * (size_t)k + (size_t)j]);
            memset(dst + k, 0, (size_t)(padded - k) * sizeof *dst);
        }
    }
}

void fast_gemms(struct fast *f, const struct gemm *list, int n)
{
    const uint16_t *rows[MAX_GEMMS];
    struct gemm_region g = {.f = f, .list = list, .rows = rows, .n = n};
    double work = 0;
    size_t panels = 0;
    for (int i = 0; i < n; i++) {
        work += (double)list[i].rows * list[i].w->n_out * list[i].w->k;
        panels += (size_t)list[i].w->panels;
    }
    const size_t threads = (size_t)threads_count(f->threads);
    g.group = panels >= 4 * GROUP * threads ? GROUP : GROUP_SMALL;
    if (work < INLINE_WORK) g.group = GROUP;
    for (int i = 0; i < n; i++)
        g.ends[i] = (i ? g.ends[i - 1] : 0) + (size_t)((list[i].w->panels + g.group - 1) / g.group);
    if (f->k->bf16_rows && f->ops.bf16) rows_to_bf16(f, list, n, rows);
    const size_t items = n ? g.ends[n - 1] : 0;
    threads_for(f->threads, items, work < INLINE_WORK ? items : 1, gemm_items, &g);
}

void fast_matmul(void *be, const struct op_matmul *list, int n, int n_rows)
{
    struct gemm gemms[8];
    for (int i = 0; i < n; i++)
        gemms[i] = (struct gemm){.w = list[i].w, .x = list[i].x, .y = list[i].y, .rows = n_rows};
    fast_gemms(be, gemms, n);
}

struct swiglu_region {
    const struct fast *f;
    const float *gate, *up;
    float *y;
    int inner;
};

static void swiglu_rows(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct swiglu_region *s = arg;
    for (size_t r = begin; r < end; r++)
        s->f->k->swiglu(s->gate + r * 2 * (size_t)s->inner, s->up + r * (size_t)s->inner, s->inner,
                        s->f->ops.bf16, s->y + r * (size_t)s->inner);
}

/* A row costs about 30 multiply-adds an element; chunks are sized to INLINE_WORK. */
void fast_swiglu(void *be, const float *gate, const float *up, int n_rows, int inner, float *y)
{
    struct fast *f = be;
    struct swiglu_region s = {.f = f, .gate = gate, .up = up, .y = y, .inner = inner};
    threads_for(f->threads, (size_t)n_rows, (size_t)(INLINE_WORK / (30 * inner) + 1), swiglu_rows,
                &s);
}

/* Groups kept picks by expert, in order of row; fills starts, pick_at and the gathered inputs. */
static int group_picks(struct fast *f, const struct op_experts *e, const struct op_routing *rt,
                       const float *h)
{
    const int n = f->batch.n_rows * e->topk;
    memset(f->counts, 0, (size_t)e->experts * sizeof *f->counts);
    for (int i = 0; i < n; i++) f->counts[rt->experts[i]] += rt->kept[i];
    f->starts[0] = 0;
    for (int x = 0; x < e->experts; x++) f->starts[x + 1] = f->starts[x] + f->counts[x];
    memset(f->counts, 0, (size_t)e->experts * sizeof *f->counts);
    for (int i = 0; i < n; i++) {
        const int x = rt->experts[i];
        f->pick_at[i] = rt->kept[i] ? f->starts[x] + f->counts[x]++ : -1;
        if (rt->kept[i])
            memcpy(f->grouped + (size_t)f->pick_at[i] * (size_t)e->hidden,
                   h + (size_t)(i / e->topk) * (size_t)e->hidden, (size_t)e->hidden * sizeof *h);
    }
    return f->starts[e->experts];
}

/* y = sum of the kept picks, first choice first: the order is the row's own. */
static void combine(const struct fast *f, const struct op_experts *e, const struct op_routing *rt,
                    float *y)
{
    for (int r = 0; r < f->batch.n_rows; r++, y += e->hidden) {
        memset(y, 0, (size_t)e->hidden * sizeof *y);
        for (int k = 0; k < e->topk; k++) {
            const int i = r * e->topk + k;
            if (f->pick_at[i] < 0) continue;
            const float *out = f->grouped + (size_t)f->pick_at[i] * (size_t)e->hidden,
                        p = rt->weights[i];
            for (int d = 0; d < e->hidden; d++) y[d] += p * out[d];
        }
    }
}

void fast_experts(void *be, const struct op_experts *e, const struct op_routing *rt, const float *h,
                  float *y)
{
    struct fast *f = be;
    struct gemm list[MAX_GEMMS];
    const int picks = group_picks(f, e, rt, h);
    int n = 0;
    for (int x = 0; x < e->experts; x++) {
        const size_t at = (size_t)f->starts[x];
        const int rows = f->starts[x + 1] - f->starts[x];
        if (!rows) continue;
        const float *in = f->grouped + at * (size_t)e->hidden;
        list[n++] = (struct gemm){e->gate[x], in, f->gate + at * 2 * (size_t)e->inner, rows};
        list[n++] = (struct gemm){e->up[x], in, f->up + at * (size_t)e->inner, rows};
    }
    fast_gemms(f, list, n);
    fast_swiglu(f, f->gate, f->up, picks, e->inner, f->up);
    n = 0;
    for (int x = 0; x < e->experts; x++) {
        const size_t at = (size_t)f->starts[x];
        const int rows = f->starts[x + 1] - f->starts[x];
        if (!rows) continue;
        list[n++] = (struct gemm){e->down[x], f->up + at * (size_t)e->inner,
                                  f->grouped + at * (size_t)e->hidden, rows};
    }
    fast_gemms(f, list, n);
    combine(f, e, rt, y);
}
