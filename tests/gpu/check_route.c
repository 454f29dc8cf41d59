// SPDX-License-Identifier: Apache-2.0
//
// check_route.c: the router on the device against the reference: picks and weights at many shapes,
// the two rules of capacity over several tiles of rows, ties and rows that are no numbers, padding
// rows of recorded steps; and that a row's bits do not depend on the rows beside it, across the
// change of kernels at 128 rows.
#include "tests/gpu/check.h"

#include "engine/cpu/route.h"

#define MAX_ROWS 1200

struct shape {
    int hidden, experts, topk;
};

/* One layer's router on one side; `index` of the layer whose budgets it spends. */
struct layer {
    struct side side;
    struct op_route route;
    struct op_routing out; /* [MAX_ROWS, topk] */
};

static struct backend_options options_of(struct shape s, bool bf16)
{
    struct backend_options opt = small_options(bf16);
    opt.max_rows = MAX_ROWS;
    opt.max_seqs = 40;
    opt.hidden = s.hidden;
    opt.experts = s.experts;
    opt.topk = s.topk;
    opt.context = MAX_ROWS;
    return opt;
}

static void *host_memory(const struct side *s, size_t bytes)
{
    void *p;
    struct error err;
    if (s->ops->alloc_host(s->be, bytes, &p, &err) != CFG_OK) fail_msg("%s", err.message);
    return p;
}

static struct layer open_layer(struct side side, struct shape s, const float *router)
{
    const size_t picks = (size_t)(MAX_ROWS * s.topk);
    struct layer l = {.side = side};
    l.route = (struct op_route){.router = put(&side, router, (size_t)(s.experts * s.hidden)),
                                .experts = s.experts,
                                .topk = s.topk,
                                .hidden = s.hidden,
                                .budget_at = s.experts}; /* of two layers the second */
    l.out.experts = host_memory(&side, picks * sizeof *l.out.experts);
    l.out.weights = host_memory(&side, picks * sizeof *l.out.weights);
    l.out.kept = host_memory(&side, picks);
    return l;
}

/* Both sides with the same router. */
static void open_both(struct shape s, bool bf16, struct layer *gpu, struct layer *ref)
{
    const struct backend_options opt = options_of(s, bf16);
    float *router = random_numbers((size_t)(s.experts * s.hidden), 0.3f, false);
    *gpu = open_layer(open_gpu(&opt), s, router);
    *ref = open_layer(open_reference(&opt), s, router);
    free(router);
}

static void close_both(struct layer *gpu, struct layer *ref)
{
    close_side(&gpu->side);
    close_side(&ref->side);
}

/* Routes the batch. The outcome is in l->out, which is poisoned before; what lies behind the
 * batch's rows must stay so. */
static void run(const struct layer *l, const struct op_batch *b, const float *h)
{
    const size_t all = (size_t)(MAX_ROWS * l->route.topk),
                 used = (size_t)(b->n_rows * l->route.topk);
    for (size_t i = 0; i < all; i++) {
        l->out.experts[i] = -77;
        l->out.weights[i] = -77.0f;
        l->out.kept[i] = 77;
    }
    if (l->side.ops->begin(l->side.be, b)) l->side.ops->route(l->side.be, &l->route, h, &l->out);
    sync_side(&l->side);
    for (size_t i = used; i < all; i++)
        assert_true(l->out.experts[i] == -77 && l->out.weights[i] == -77.0f &&
                    l->out.kept[i] == 77);
}

static void run_rows(const struct layer *l, const float *h, int rows, int capacity)
{
    const struct op_batch b = {.n_rows = rows, .n_seqs = 1, .capacity = capacity};
    run(l, &b, put_feed(&l->side, h, (size_t)rows * (size_t)l->route.hidden));
}

static double exact_logit(const float *router, const float *h, int hidden)
{
    double sum = 0;
    for (int i = 0; i < hidden; i++) sum += (double)router[i] * (double)h[i];
    return sum;
}

/* ---- picks ----------------------------------------------------------------------------------- */

/* Equal picks, unless the two experts' exact logits are as near as rounding errors get. Logits are
 * sums of numbers of both signs: their error is relative to the number of terms, and weights err by
 * what the logits do. */
static void assert_picks(const struct layer *gpu, const struct layer *ref, const float *router,
                         const float *h, int rows)
{
    const int hidden = ref->route.hidden, topk = ref->route.topk;
    const double near = 2e-6 * sqrt((double)hidden);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < topk; k++) {
            const int i = r * topk + k, got = gpu->out.experts[i], want = ref->out.experts[i];
            assert_in_range(got, 0, gpu->route.experts - 1);
            const float *row = h + (size_t)r * (size_t)hidden;
            if (got != want &&
                fabs(exact_logit(router + (size_t)got * (size_t)hidden, row, hidden) -
                     exact_logit(router + (size_t)want * (size_t)hidden, row, hidden)) > near)
                fail_msg("row %d, choice %d: expert %d, expected %d", r, k, got, want);
            const float w = gpu->out.weights[i], exact = ref->out.weights[i];
            if (!(fabsf(w - exact) <= 2e-5f * exact))
                fail_msg("row %d, choice %d: weight %.9g, expected %.9g", r, k, (double)w,
                         (double)exact);
            assert_int_equal(gpu->out.kept[i], 1);
        }
}

static void picks_agree(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{96, 8, 2},   {2048, 32, 2}, {100, 7, 3}, {33, 5, 1},
                                          {64, 256, 8}, {2304, 16, 2}, {16, 33, 2}};
    static const int rows[] = {1, 7, 40, 128, 129, 300};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const struct shape at = shapes[s];
            const struct backend_options opt = options_of(at, bf16);
            float *router = random_numbers((size_t)(at.experts * at.hidden), 0.3f, false);
            float *h = random_numbers((size_t)(300 * at.hidden), 1, bf16);
            struct layer gpu = open_layer(open_gpu(&opt), at, router);
            struct layer ref = open_layer(open_reference(&opt), at, router);
            for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
                if (rows[i] > 40 && at.experts * at.hidden > 20000 && rows[i] != 129) continue;
                run_rows(&gpu, h, rows[i], 0);
                run_rows(&ref, h, rows[i], 0);
                assert_picks(&gpu, &ref, router, h, rows[i]);
            }
            close_both(&gpu, &ref);
            free(router), free(h);
        }
}

/* A row of `all` that stands alone, or in other company, has the same picks and weights. */
static void assert_same_rows(const struct layer *l, const struct op_routing *all, const float *h,
                             int first, int n)
{
    const size_t at = (size_t)(first * l->route.topk), picks = (size_t)(n * l->route.topk);
    run_rows(l, h + (size_t)first * (size_t)l->route.hidden, n, 0);
    assert_memory_equal(l->out.experts, all->experts + at, picks * sizeof *all->experts);
    assert_same_bits(l->out.weights, all->weights + at, picks, "weights");
}

static void company_changes_nothing(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{520, 32, 2}, {75, 9, 3}};
    enum { ROWS = 300 };
    for (size_t s = 0; s < 2; s++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const struct backend_options opt = options_of(shapes[s], bf16);
            float *router =
                random_numbers((size_t)(shapes[s].experts * shapes[s].hidden), 0.3f, false);
            const struct layer gpu = open_layer(open_gpu(&opt), shapes[s], router);
            float *h = random_numbers((size_t)(ROWS * shapes[s].hidden), 1, bf16);
            int32_t experts[ROWS * 3];
            float weights[ROWS * 3];
            const struct op_routing all = {.experts = experts, .weights = weights};
            run_rows(&gpu, h, ROWS, 0); /* in blocks of many rows */
            memcpy(experts, gpu.out.experts, (size_t)(ROWS * shapes[s].topk) * sizeof *experts);
            memcpy(weights, gpu.out.weights, (size_t)(ROWS * shapes[s].topk) * sizeof *weights);
            assert_same_rows(&gpu, &all, h, 0, 128); /* a logit per warp */
            assert_same_rows(&gpu, &all, h, 3, 129);
            assert_same_rows(&gpu, &all, h, 250, 50);
            for (int r = 0; r < ROWS; r += 23) assert_same_rows(&gpu, &all, h, r, 1);
            gpu.side.ops->close(gpu.side.be);
            free(h), free(router);
        }
}

/* Equal logits: the lower index. A row of NaN or infinities gets experts that exist, each once, and
 * leaves its neighbours alone. */
static void odd_rows_are_routed(void **state)
{
    (void)state;
    enum { HIDDEN = 40, EXPERTS = 12, TOPK = 3 };
    for (int rows = 6; rows <= 200; rows += 194) {
        const struct backend_options opt = options_of((struct shape){HIDDEN, EXPERTS, TOPK}, false);
        float *router = random_numbers(EXPERTS * HIDDEN, 1, false);
        float *h = random_numbers((size_t)(rows * HIDDEN), 1, false);
        for (int e = 1; e < EXPERTS; e++)
            memcpy(router + e * HIDDEN, router, HIDDEN * sizeof *router);
        memcpy(router + 5 * HIDDEN, h + HIDDEN, HIDDEN * sizeof *router); /* row 1 loves expert 5 */
        for (int i = 0; i < HIDDEN; i++) h[2 * HIDDEN + i] = NAN;
        h[3 * HIDDEN] = INFINITY;
        for (int i = 0; i < HIDDEN; i++) h[4 * HIDDEN + i] = 0;
        struct layer gpu =
            open_layer(open_gpu(&opt), (struct shape){HIDDEN, EXPERTS, TOPK}, router);
        run_rows(&gpu, h, rows, 0);
        const int32_t loves[] = {5, 0, 1}, ties[] = {0, 1, 2};
        assert_memory_equal(gpu.out.experts + TOPK, loves, sizeof loves);
        assert_memory_equal(gpu.out.experts + 4 * TOPK, ties, sizeof ties);
        for (int k = 0; k < TOPK; k++)
            assert_true(fabsf(gpu.out.weights[4 * TOPK + k] - 1.0f / EXPERTS) < 1e-6f);
        for (int r = 2; r < 4; r++) {
            const int32_t *e = gpu.out.experts + r * TOPK;
            for (int k = 0; k < TOPK; k++) assert_in_range(e[k], 0, EXPERTS - 1);
            assert_true(e[0] != e[1] && e[1] != e[2] && e[0] != e[2]);
            assert_true(isnan(gpu.out.weights[r * TOPK]));
        }
        for (int k = 0; k < TOPK; k++) assert_true(gpu.out.weights[5 * TOPK + k] > 0);
        close_side(&gpu.side);
        free(router), free(h);
    }
}

/* ---- capacity -------------------------------------------------------------------------------- */

/* Some experts are loved more than others, so that capacities bind. */
static float *crowded_rows(int rows, int hidden, bool bf16)
{
    float *h = random_numbers((size_t)(rows * hidden), 1, bf16);
    for (int r = 1; r < rows; r++)
        if (below(3)) {
            const float *like = h + (size_t)below(3) * (size_t)hidden;
            for (int i = 0; i < hidden; i++) {
                float *x = &h[(size_t)r * (size_t)hidden + (size_t)i];
                *x = bf16 ? round_bf16(0.3f * *x + like[i]) : 0.3f * *x + like[i];
            }
        }
    return h;
}

static int kept_of(const struct layer *l, int rows)
{
    int kept = 0;
    for (int i = 0; i < rows * l->route.topk; i++) kept += l->out.kept[i];
    return kept;
}

static void assert_same_outcome(const struct layer *gpu, const struct layer *ref, int rows)
{
    const size_t picks = (size_t)(rows * gpu->route.topk);
    assert_memory_equal(gpu->out.experts, ref->out.experts, picks * sizeof *ref->out.experts);
    assert_memory_equal(gpu->out.kept, ref->out.kept, picks);
}

static void first_choices_go_first(void **state)
{
    (void)state;
    static const int rows[] = {1, 30, 128, 129, 600, 1150};
    static const struct shape shapes[] = {{48, 8, 2}, {40, 19, 4}};
    for (size_t s = 0; s < 2; s++) {
        struct layer gpu, ref;
        open_both(shapes[s], true, &gpu, &ref);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            for (int capacity = 1; capacity < 400; capacity = capacity * 5 + 1) {
                float *h = crowded_rows(rows[i], shapes[s].hidden, true);
                run_rows(&gpu, h, rows[i], capacity);
                run_rows(&ref, h, rows[i], capacity);
                assert_same_outcome(&gpu, &ref, rows[i]);
                if (rows[i] > 100 && capacity < 10)
                    assert_true(kept_of(&gpu, rows[i]) < rows[i] * shapes[s].topk);
                free(h);
            }
        close_both(&gpu, &ref);
    }
}

/* What the router groups is what the experts compute: each kept pick with its own row and expert.
 */
static void picks_reach_their_experts(void **state)
{
    (void)state;
    static const int rows[] = {1, 9, 128, 150, 1100};
    const struct shape s = {32, 70, 2};
    enum { INNER = 32 };
    struct backend_options opt = options_of(s, false);
    opt.inner = INNER;
    float *router = random_numbers((size_t)(s.experts * s.hidden), 0.3f, false);
    struct layer sides[2] = {open_layer(open_gpu(&opt), s, router),
                             open_layer(open_reference(&opt), s, router)};
    struct weight *w[2][3][70];
    for (int e = 0; e < s.experts; e++)
        for (int m = 0; m < 3; m++) { /* gate, up, down: [inputs, outputs] */
            const int in = m < 2 ? s.hidden : INNER, out = m == 0   ? 2 * INNER
                                                           : m == 1 ? INNER
                                                                    : s.hidden;
            float *x = random_numbers((size_t)(in * out), 0.4f, false);
            for (int i = 0; i < 2; i++) w[i][m][e] = put_weight(&sides[i].side, x, in, out, true);
            free(x);
        }
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        const struct op_batch b = {
            .n_rows = rows[i / 2], .n_seqs = 1, .capacity = i % 2 ? rows[i / 2] / 5 : 0};
        const size_t n = (size_t)(b.n_rows * s.hidden);
        float *h = crowded_rows(b.n_rows, s.hidden, false), *y[2];
        for (int k = 0; k < 2; k++) {
            const struct layer *l = &sides[k];
            const struct op_experts e = {w[k][0], w[k][1], w[k][2], s.experts, 2, s.hidden, INNER};
            const float *on_device = put(&l->side, h, n);
            float *out = blank(&l->side, n);
            y[k] = malloc(n * sizeof *y[k]);
            assert_non_null(y[k]);
            begin_side(&l->side, &b);
            l->side.ops->route(l->side.be, &l->route, on_device, &l->out);
            l->side.ops->experts(l->side.be, &e, &l->out, on_device, out);
            get(&l->side, out, n, y[k]);
        }
        assert_close(y[0], y[1], n, 2e-5f, "experts");
        free(h), free(y[0]), free(y[1]);
    }
    close_both(&sides[0], &sides[1]);
    free(router);
}

/* n_seqs sequences of the given lengths; budgets of two layers, random around the capacity. */
struct budgets {
    int32_t positions[MAX_ROWS], seq_of_row[MAX_ROWS];
    uint16_t *spent[40];
    struct op_batch batch;
};

static void make_budgets(struct budgets *b, const int *lengths, int n_seqs, int experts,
                         int capacity)
{
    int row = 0;
    for (int s = 0; s < n_seqs; s++) {
        for (int i = 0; i < lengths[s]; i++, row++) {
            b->positions[row] = 5 + i;
            b->seq_of_row[row] = s;
        }
        b->spent[s] = malloc((size_t)(2 * experts) * sizeof *b->spent[s]);
        assert_non_null(b->spent[s]);
        for (int e = 0; e < 2 * experts; e++)
            b->spent[s][e] = (uint16_t)(below(3) ? below(capacity) : capacity);
    }
    b->batch = (struct op_batch){.n_rows = row,
                                 .n_seqs = n_seqs,
                                 .positions = b->positions,
                                 .seq_of_row = b->seq_of_row,
                                 .spent = b->spent,
                                 .capacity = capacity};
}

static void copy_budgets(struct budgets *to, const struct budgets *from, int experts)
{
    *to = *from;
    to->batch.positions = to->positions;
    to->batch.seq_of_row = to->seq_of_row;
    to->batch.spent = to->spent;
    for (int s = 0; s < from->batch.n_seqs; s++) {
        to->spent[s] = malloc((size_t)(2 * experts) * sizeof *to->spent[s]);
        assert_non_null(to->spent[s]);
        memcpy(to->spent[s], from->spent[s], (size_t)(2 * experts) * sizeof *to->spent[s]);
    }
}

static void assert_same_budgets(const struct budgets *a, const struct budgets *b, int experts)
{
    for (int s = 0; s < a->batch.n_seqs; s++)
        assert_memory_equal(a->spent[s], b->spent[s], (size_t)(2 * experts) * sizeof *a->spent[s]);
}

static void free_budgets(struct budgets *b)
{
    for (int s = 0; s < b->batch.n_seqs; s++) free(b->spent[s]);
}

static void check_budgets(struct shape s, const int *lengths, int n_seqs, int capacity)
{
    static struct budgets mine, theirs;
    struct layer gpu, ref;
    open_both(s, true, &gpu, &ref);
    make_budgets(&mine, lengths, n_seqs, s.experts, capacity);
    copy_budgets(&theirs, &mine, s.experts);
    for (int step = 0; step < 3; step++) {
        float *h = crowded_rows(mine.batch.n_rows, s.hidden, true);
        const size_t n = (size_t)(mine.batch.n_rows * s.hidden);
        run(&gpu, &mine.batch, put_feed(&gpu.side, h, n));
        run(&ref, &theirs.batch, put_feed(&ref.side, h, n));
        assert_same_outcome(&gpu, &ref, mine.batch.n_rows);
        assert_same_budgets(&mine, &theirs, s.experts);
        free(h);
    }
    free_budgets(&mine);
    free_budgets(&theirs);
    close_both(&gpu, &ref);
}

static void budgets_are_kept_apart(void **state)
{
    (void)state;
    static const int decodes[] = {1, 1, 1, 1, 1, 1, 1}, alone[] = {90}, mixed[] = {1, 40, 1, 3, 60},
                     long_ones[] = {700, 1, 5, 400, 1, 40}; /* over tiles of 512 rows */
    check_budgets((struct shape){48, 8, 2}, decodes, 7, 3);
    check_budgets((struct shape){48, 8, 2}, alone, 1, 12);
    check_budgets((struct shape){40, 13, 3}, mixed, 5, 9);
    check_budgets((struct shape){48, 8, 2}, long_ones, 6, 60);
    check_budgets((struct shape){48, 8, 2}, long_ones, 6, 300);
}

/* Three decodes are recorded as four rows: the fourth changes nothing, and replays spend on. */
static void padding_rows_pick_nothing(void **state)
{
    (void)state;
    static struct budgets mine, theirs;
    static const int lengths[] = {1, 1, 1};
    static const struct engine_sampling greedy = {.top_p = 1, .n_logprobs = -1};
    const struct shape s = {48, 8, 2};
    const int32_t head_rows[] = {0, 1, 2};
    struct op_sample samples[3];
    struct layer gpu, ref;
    open_both(s, true, &gpu, &ref);
    make_budgets(&mine, lengths, 3, s.experts, 5);
    for (int i = 0; i < 3; i++) {
        samples[i] = (struct op_sample){.target = -1, .usable = 1, .cfg = &greedy};
        memset(mine.spent[i], 0, 2 * 8 * sizeof *mine.spent[i]);
    }
    mine.batch.n_heads = 3;
    mine.batch.head_rows = head_rows;
    mine.batch.samples = samples;
    copy_budgets(&theirs, &mine, s.experts);
    float *h = random_numbers((size_t)(4 * s.hidden), 1, true);
    float *on_gpu = put_feed(&gpu.side, h, (size_t)(4 * s.hidden));
    float *on_cpu = put_feed(&ref.side, h, (size_t)(4 * s.hidden));
    for (int step = 0; step < 8; step++) {
        run(&gpu, &mine.batch, on_gpu);
        run(&ref, &theirs.batch, on_cpu);
        assert_same_outcome(&gpu, &ref, 3);
        assert_same_budgets(&mine, &theirs, s.experts);
        assert_int_equal(kept_of(&gpu, 3), step < 5 ? 6 : 0);
    }
    free_budgets(&mine);
    free_budgets(&theirs);
    close_both(&gpu, &ref);
    free(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(picks_agree),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(odd_rows_are_routed),
        cmocka_unit_test(first_choices_go_first),
        cmocka_unit_test(picks_reach_their_experts),
        cmocka_unit_test(budgets_are_kept_apart),
        cmocka_unit_test(padding_rows_pick_nothing),
    };
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
