// SPDX-License-Identifier: Apache-2.0
//
// fast_gemm.c: matrix products and the expert layer of the fast backend. Work is cut into groups of
// panels; a group is computed whole by one thread over all rows, so a weight is read once per
// product and an output never depends on who computed it.
#include <string.h>

#include "engine/cpu/fast.h"

#define MAX_GEMMS (2 * FAST_MAX_EXPERTS)
#define GROUP     4 /* panels of a work item: what the one-row kernel has in flight */

/* One product: rows x inputs times a weight. */
struct gemm {
    const struct weight *w;
    const float *x; /* [rows, w->k] */
    float *y;       /* [rows, w->n_out] */
    int rows;
};
struct gemm_region {
    struct fast *f;
    const struct gemm *list;
    char *packed[MAX_GEMMS]; /* [n] inputs in the kernel's order */
    size_t ends[MAX_GEMMS];  /* running number of work items */
    int n, group;
};

static void gemm_items(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct gemm_region *g = arg;
    const struct kernels *k = g->f->k;
    int i = 0;
    for (size_t item = begin; item < end; item++) {
        while (item >= g->ends[i]) i++;
        const struct gemm *m = &g->list[i];
        const struct weight *w = m->w;
        const int first = (int)(item - (i ? g->ends[i - 1] : 0)) * g->group;
        const int panels = w->panels - first < g->group ? w->panels - first : g->group;
        const int left = w->n_out - first * k->panel;
        const int n_out = left < panels * k->panel ? left : panels * k->panel;
        float *y = m->y + first * k->panel;
        const size_t at = (size_t)first * w->panel_elems;
        if (w->bf16)
            k->gemm_bf16(g->packed[i], m->rows, (const uint16_t *)w->data + at, panels, w->k, y,
                         (size_t)w->n_out, n_out);
        else
            k->gemm_f32(g->packed[i], m->rows, (const float *)w->data + at, panels, w->k, y,
                        (size_t)w->n_out, n_out);
    }
}

struct pack_region {
    const struct kernels *k;
    const struct gemm *m;
    char *out;
};

static void pack_blocks(void *arg, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct pack_region *p = arg;
    const int k = p->m->w->k, first = (int)begin * p->k->block_rows;
    const int last = (int)end * p->k->block_rows,
              rows = (last < p->m->rows ? last : p->m->rows) - first;
    const float *x = p->m->x + (size_t)first * (size_t)k;
    if (p->m->w->bf16)
        p->k->pack_rows_bf16(x, rows, k, p->out + (size_t)first * p->k->packed_row_bf16(k));
    else
        p->k->pack_rows_f32(x, rows, k, p->out + (size_t)first * p->k->packed_row_f32(k));
}

/* Products of one list often share their input: it is packed once. */
static void pack_inputs(struct gemm_region *g)
{
    const struct kernels *k = g->f->k;
    char *out = g->f->packed;
    for (int i = 0; i < g->n; i++) {
        const struct gemm *m = &g->list[i], *before = m - 1;
        if (i && m->x == before->x && m->w->k == before->w->k && m->rows == before->rows) {
            g->packed[i] = g->packed[i - 1];
            continue;
        }
        struct pack_region p = {.k = k, .m = m, .out = out};
        const size_t blocks = (size_t)((m->rows + k->block_rows - 1) / k->block_rows);
        threads_for(g->f->threads, blocks, INLINE_WORK / (size_t)(m->w->k * k->block_rows) + 1,
                    pack_blocks, &p);
        g->packed[i] = out;
        const size_t row = m->w->bf16 ? k->packed_row_bf16(m->w->k) : k->packed_row_f32(m->w->k);
        out += ((size_t)m->rows * row + 63) / 64 * 64;
    }
}

/* All of the list in one parallel region. */
static void run_gemms(struct fast *f, const struct gemm *list, int n)
{
    struct gemm_region g = {.f = f, .list = list, .n = n};
    double work = 0;
    size_t panels = 0;
    for (int i = 0; i < n; i++) {
        work += (double)list[i].rows * list[i].w->n_out * list[i].w->k;
        panels += (size_t)list[i].w->panels;
    }
    const size_t threads = (size_t)threads_count(f->threads);
    g.group = work < INLINE_WORK || panels >= 4 * GROUP * threads ? GROUP : 1;
    for (int i = 0; i < n; i++)
        g.ends[i] = (i ? g.ends[i - 1] : 0) + (size_t)((list[i].w->panels + g.group - 1) / g.group);
    pack_inputs(&g);
    const size_t items = n ? g.ends[n - 1] : 0;
    threads_for(f->threads, items, work < INLINE_WORK ? items : 1, gemm_items, &g);
}

void fast_matmul(void *be, const struct op_matmul *list, int n, int n_rows)
{
    struct gemm gemms[8];
    for (int i = 0; i < n; i++)
        gemms[i] = (struct gemm){.w = list[i].w, .x = list[i].x, .y = list[i].y, .rows = n_rows};
    run_gemms(be, gemms, n);
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
static void swiglu(struct fast *f, int n_rows, int inner)
{
    struct swiglu_region s = {.f = f, .gate = f->gate, .up = f->up, .y = f->up, .inner = inner};
    threads_for(f->threads, (size_t)n_rows, (size_t)(INLINE_WORK / (30 * inner) + 1), swiglu_rows,
                &s);
}

void fast_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y)
{
    struct fast *f = be;
    const struct gemm in[] = {{w->gate, h, f->gate, n_rows}, {w->up, h, f->up, n_rows}};
    const struct gemm out[] = {{w->down, f->up, y, n_rows}};
    run_gemms(f, in, 2);
    swiglu(f, n_rows, w->inner);
    run_gemms(f, out, 1);
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
    run_gemms(f, list, n);
    swiglu(f, picks, e->inner);
    n = 0;
    for (int x = 0; x < e->experts; x++) {
        const size_t at = (size_t)f->starts[x];
        const int rows = f->starts[x + 1] - f->starts[x];
        if (!rows) continue;
        list[n++] = (struct gemm){e->down[x], f->up + at * (size_t)e->inner,
                                  f->grouped + at * (size_t)e->hidden, rows};
    }
    run_gemms(f, list, n);
    combine(f, e, rt, y);
}
