// SPDX-License-Identifier: Apache-2.0
//
// check_matmul.c: products on the device against the reference: matrices, networks and experts in
// both modes and in 8 bits, at numbers of rows on both sides of every change of kernel or tile; and
// that a row has the same bits alone as in any company. Also what weights are made from: each type,
// both orientations, dummies, tensors longer than a stage.
#include "tests/gpu/check.h"

/* Sums of the same products in another order; in 8 bits of exactly the numbers that were packed. */
#define SUMS 3e-5f
/* One BF16 rounding of what feeds the last product may go the other way: 2^-8 of one term. */
#define ROUNDED 1e-2f

static struct backend_options options_of(bool bf16)
{
    struct backend_options opt = small_options(bf16);
    opt.hidden = 104; /* not whole chunks of 32 */
    opt.inner = 168;  /* halves of a gate that are not whole strips of 16 */
    opt.max_rows = 300;
    return opt;
}

/* Row r of what put_feed made of rows of k numbers. */
static const float *feed_row(const struct side *s, const float *x, int r, int k)
{
    const size_t at = (size_t)r * (size_t)k;
    return s->packed ? (const float *)((const uint16_t *)x + at) : x + at;
}

/* A row's bits when it has little company: the first 9 rows alone, others by 5. How many rows from
 * row r on: */
static int few_rows(int r, int rows)
{
    return r < 9 ? 1 : r + 5 < rows ? 5 : rows - r;
}

static float *numbers(size_t n)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    return x;
}

/* ---- matrices -------------------------------------------------------------------------------- */

/* A matrix on both sides, and what the reference and the device, a row at a time, make of x. */
struct product {
    const struct weight *w;
    int n_out, k;
    float *want, *alone; /* [rows, n_out] */
};

static void multiply(const struct side *s, const struct weight *w, const float *x, int rows,
                     int n_out, float *out)
{
    const struct op_matmul m = {w, x, blank(s, (size_t)rows * (size_t)n_out)};
    s->ops->matmul(s->be, &m, 1, rows);
    get(s, m.y, (size_t)rows * (size_t)n_out, out);
}

static struct product open_product(const struct side *gpu, const struct side *ref, int n_out, int k,
                                   bool transposed, const float *x, int rows)
{
    struct product p = {.n_out = n_out, .k = k};
    const size_t n = (size_t)rows * (size_t)n_out;
    float *w = random_numbers((size_t)n_out * (size_t)k, 1 / sqrtf((float)k), false);
    p.w = put_weight(gpu, w, transposed ? k : n_out, transposed ? n_out : k, transposed);
    p.want = numbers(n);
    p.alone = numbers(n);
    multiply(ref, put_weight(ref, w, transposed ? k : n_out, transposed ? n_out : k, transposed), x,
             rows, n_out, p.want);
    const float *feed = put_feed(gpu, x, (size_t)rows * (size_t)k);
    for (int r = 0, some; r < rows; r += some) {
        some = few_rows(r, rows);
        multiply(gpu, p.w, feed_row(gpu, feed, r, k), some, n_out, p.alone + r * n_out);
    }
    assert_close(p.alone, p.want, n, SUMS, "a row alone");
    free(w);
    return p;
}

static void close_product(struct product *p)
{
    free(p->want), free(p->alone);
}

/* A list of matrices of one input, in one call, for each number of rows. */
static void check_list(bool bf16, const int *n_out, int n, int k, const int *rows, int n_rows)
{
    const struct backend_options opt = options_of(bf16);
    struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
    const int most = rows[n_rows - 1];
    float *x = random_numbers((size_t)most * (size_t)k, 1, bf16);
    struct product p[4];
    for (int i = 0; i < n; i++) p[i] = open_product(&gpu, &ref, n_out[i], k, i % 2 == 1, x, most);
    const float *feed = put_feed(&gpu, x, (size_t)most * (size_t)k);
    for (int j = 0; j < n_rows; j++) {
        struct op_matmul list[4];
        for (int i = 0; i < n; i++)
            list[i] = (struct op_matmul){p[i].w, feed, blank(&gpu, (size_t)(rows[j] * n_out[i]))};
        gpu.ops->matmul(gpu.be, list, n, rows[j]);
        for (int i = 0; i < n; i++) {
            const size_t size = (size_t)(rows[j] * n_out[i]);
            float *got = numbers(size);
            get(&gpu, list[i].y, size + 1, got);
            assert_same_bits(got, p[i].alone, size, "a row in company");
            assert_true(isnan(got[size])); /* nothing is written behind the rows */
            free(got);
        }
    }
    for (int i = 0; i < n; i++) close_product(&p[i]);
    free(x);
    close_side(&gpu), close_side(&ref);
}

static void matrices_agree(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 7, 8, 9, 16, 33, 64, 65, 130};
    static const int lists[][4] = {{40, 72, 8, 336}, {16, 17, 15, 1}};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        check_list(bf16, lists[0], 4, 104, rows, 10);
        check_list(bf16, lists[1], 3, 64, rows, 10);
    }
}

/* Tiles of 256 x 128 are chosen on the emulated device and on a small GPU; real_shapes_agree sees
 * to a large one. */
static void large_tiles_agree(void **state)
{
    (void)state;
    static const int rows[] = {128, 130}, n_out[] = {1000};
    check_list(true, n_out, 1, 96, rows, 2);
}

/* Deep and narrow: slices share a block's warps, are blocks whose sums a second kernel adds, or,
 * where there is no room for those, follow one another in a block. */
static void slices_agree(void **state)
{
    (void)state;
    static const int rows[] = {1, 5, 8, 9, 64, 160}, n_out[] = {100, 20};
    check_list(false, n_out, 2, 3112, rows, 4);
    check_list(true, n_out, 1, 3112, rows, 6);
    check_list(true, n_out, 2, 3072, rows, 4);
}

/* A row of NaN, and what lies in memory behind a row whose inputs are no whole chunks, are nobody
 * else's business. */
static void check_neighbours(int k)
{
    static const int rows[] = {2, 9, 70};
    const int n_out = 40;
    const struct backend_options opt = options_of(true);
    struct side gpu = open_gpu(&opt);
    float *w = random_numbers((size_t)(n_out * k), 1, false);
    float *x = random_numbers((size_t)(70 * k), 1, true);
    float *want = numbers((size_t)(70 * n_out)), *got = numbers((size_t)(70 * n_out));
    const struct weight *on_gpu = put_weight(&gpu, w, n_out, k, false);
    multiply(&gpu, on_gpu, put_feed(&gpu, x, (size_t)(70 * k)), 70, n_out, want);
    for (int i = 0; i < k; i++) x[k + i] = NAN;
    for (int i = 0; i < 3; i++) {
        const size_t n = (size_t)(rows[i] * k), others = (size_t)(2 * n_out);
        float *behind = numbers(n + 64);
        memcpy(behind, x, n * sizeof *behind);
        for (size_t j = n; j < n + 64; j++) behind[j] = NAN;
        multiply(&gpu, on_gpu, put_feed(&gpu, behind, n + 64), rows[i], n_out, got);
        assert_same_bits(got, want, (size_t)n_out, "the row ahead of NaN");
        for (int o = 0; o < n_out; o++) assert_true(isnan(got[n_out + o]));
        assert_same_bits(got + others, want + others, (size_t)(rows[i] * n_out) - others,
                         "rows behind NaN");
        free(behind);
    }
    free(w), free(x), free(want), free(got);
    close_side(&gpu);
}

static void rows_keep_to_themselves(void **state)
{
    (void)state;
    check_neighbours(104);
    check_neighbours(424);
}

/* ---- networks -------------------------------------------------------------------------------- */

struct network {
    struct weight *gate, *up, *down;
};

static struct network put_network(const struct side *s, const float *w, int hidden, int inner,
                                  bool transposed)
{
    const size_t size = (size_t)(hidden * inner);
    const int r = transposed;
    return (struct network){put_weight(s, w, r ? hidden : 2 * inner, r ? 2 * inner : hidden, r),
                            put_weight(s, w + 2 * size, r ? hidden : inner, r ? inner : hidden, r),
                            put_weight(s, w + 3 * size, r ? inner : hidden, r ? hidden : inner, r)};
}

/* Weights of a network: gate, up, down. */
static float *network_numbers(int hidden, int inner)
{
    return random_numbers((size_t)(4 * hidden * inner), 3 / sqrtf((float)hidden), false);
}

static void run_network(const struct side *s, const struct network *n, int hidden, int inner,
                        const float *h, int rows, float *out)
{
    const struct op_ffn f = {n->gate, n->up, n->down, hidden, inner};
    float *y = blank(s, (size_t)(rows * hidden));
    s->ops->ffn(s->be, &f, h, rows, y);
    get(s, y, (size_t)(rows * hidden), out);
}

static void check_network(bool bf16, int hidden, int inner, const int *rows, int n_rows)
{
    struct backend_options opt = options_of(bf16);
    opt.hidden = hidden;
    opt.inner = inner;
    struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
    const int most = rows[n_rows - 1];
    const size_t size = (size_t)(most * hidden);
    float *w = network_numbers(hidden, inner), *h = random_numbers(size, 1, bf16);
    float *want = numbers(size), *alone = numbers(size), *got = numbers(size);
    for (int transposed = 0; transposed < 2; transposed++) {
        const struct network g = put_network(&gpu, w, hidden, inner, transposed);
        const struct network n = put_network(&ref, w, hidden, inner, transposed);
        const float *feed = put_feed(&gpu, h, size);
        run_network(&ref, &n, hidden, inner, put_feed(&ref, h, size), most, want);
        for (int r = 0, some; r < most; r += some) {
            some = few_rows(r, most);
            run_network(&gpu, &g, hidden, inner, feed_row(&gpu, feed, r, hidden), some,
                        alone + r * hidden);
        }
        assert_close(alone, want, size, bf16 ? ROUNDED : SUMS, "a network");
        for (int i = 0; i < n_rows; i++) {
            run_network(&gpu, &g, hidden, inner, feed, rows[i], got);
            assert_same_bits(got, alone, (size_t)(rows[i] * hidden), "a network in company");
        }
    }
    free(w), free(h), free(want), free(alone), free(got);
    close_side(&gpu), close_side(&ref);
}

static void networks_agree(void **state)
{
    (void)state;
    static const int rows[] = {1, 3, 8, 9, 64, 65, 128};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        check_network(bf16, 104, 168, rows, 7);
        check_network(bf16, 64, 72, rows, 5);
        check_network(bf16, 264, 40, rows, 4); /* more chunks than are fetched ahead */
    }
}

/* ---- experts --------------------------------------------------------------------------------- */

#define MAX_EXPERTS 40

/* One layer on one side. */
struct layer {
    struct side side;
    struct op_route route;
    struct op_routing out;
    struct weight *gate[MAX_EXPERTS], *up[MAX_EXPERTS], *down[MAX_EXPERTS];
    struct op_experts experts;
};

static void open_layer(struct layer *l, struct side side, const struct backend_options *opt,
                       const float *router, const float *w)
{
    const size_t picks = (size_t)(opt->max_rows * opt->topk);
    struct {
        void **at;
        size_t bytes;
    } host[] = {{(void **)&l->out.experts, picks * sizeof *l->out.experts},
                {(void **)&l->out.weights, picks * sizeof *l->out.weights},
                {(void **)&l->out.kept, picks}};
    struct error err;
    l->side = side;
    for (int i = 0; i < 3; i++)
        assert_int_equal(side.ops->alloc_host(side.be, host[i].bytes, host[i].at, &err), CFG_OK);
    l->route = (struct op_route){.router = put(&side, router, (size_t)(opt->experts * opt->hidden)),
                                 .experts = opt->experts,
                                 .topk = opt->topk,
                                 .hidden = opt->hidden};
    for (int e = 0; e < opt->experts; e++) {
        const struct network n =
            put_network(&side, w + e * 4 * opt->hidden * opt->inner, opt->hidden, opt->inner, true);
        l->gate[e] = n.gate;
        l->up[e] = n.up;
        l->down[e] = n.down;
    }
    l->experts = (struct op_experts){l->gate,   l->up,       l->down,   opt->experts,
                                     opt->topk, opt->hidden, opt->inner};
}

static void run_layer(const struct layer *l, const float *h, int rows, int capacity, float *out)
{
    const size_t n = (size_t)(rows * l->route.hidden);
    const struct op_batch b = {.n_rows = rows, .n_seqs = 1, .capacity = capacity};
    float *y = blank(&l->side, n);
    begin_side(&l->side, &b);
    l->side.ops->route(l->side.be, &l->route, h, &l->out);
    l->side.ops->experts(l->side.be, &l->experts, &l->out, h, y);
    get(&l->side, y, n, out);
}

static int dropped(const struct layer *l, int rows)
{
    int n = 0;
    for (int i = 0; i < rows * l->route.topk; i++) n += !l->out.kept[i];
    return n;
}

/* The picks must be the same: else there is nothing to compare. */
static void assert_layers(struct layer *gpu, struct layer *ref, const float *h, int rows,
                          int capacity, float *got, float tolerance)
{
    const size_t n = (size_t)(rows * ref->route.hidden);
    float *want = numbers(n);
    run_layer(gpu, put_feed(&gpu->side, h, n), rows, capacity, got);
    run_layer(ref, put_feed(&ref->side, h, n), rows, capacity, want);
    assert_memory_equal(gpu->out.experts, ref->out.experts,
                        (size_t)(rows * ref->route.topk) * sizeof *ref->out.experts);
    assert_memory_equal(gpu->out.kept, ref->out.kept, (size_t)(rows * ref->route.topk));
    assert_close(got, want, n, tolerance, "experts");
    free(want);
}

/* With `skew`, expert 0 is everyone's choice. */
static void check_experts(struct backend_options opt, int experts, int topk, float skew,
                          const int *rows, int n_rows)
{
    const float tolerance = opt.bf16 ? ROUNDED : SUMS;
    opt.experts = experts;
    opt.topk = topk;
    const int most = rows[n_rows - 1], hidden = opt.hidden;
    float *router = random_numbers((size_t)(experts * hidden), 0.3f, false);
    float *w = network_numbers(hidden, experts * opt.inner);
    float *h = random_numbers((size_t)(most * hidden), 1, opt.bf16);
    float *got = numbers((size_t)(most * hidden)), *alone = numbers((size_t)(most * hidden));
    for (int i = 0; skew > 0 && i < hidden; i++) {
        router[i] = skew;
        for (int r = 0; r < most; r++) h[r * hidden + i] = fabsf(h[r * hidden + i]);
    }
    struct layer gpu, ref;
    open_layer(&gpu, open_gpu(&opt), &opt, router, w);
    open_layer(&ref, open_reference(&opt), &opt, router, w);
    const float *feed = put_feed(&gpu.side, h, (size_t)(most * hidden));
    for (int r = 0, some; r < most; r += some) {
        some = few_rows(r, most);
        run_layer(&gpu, feed_row(&gpu.side, feed, r, hidden), some, 0, alone + r * hidden);
    }
    for (int i = 0; i < n_rows; i++) {
        assert_layers(&gpu, &ref, h, rows[i], 0, got, tolerance);
        assert_int_equal(dropped(&ref, rows[i]), 0);
        assert_same_bits(got, alone, (size_t)(rows[i] * hidden), "experts in company");
        if (rows[i] < 8) continue;
        assert_layers(&gpu, &ref, h, rows[i], 2, got, tolerance);
        if (2 * experts < rows[i] * topk) assert_true(dropped(&ref, rows[i]) > 0);
    }
    free(router), free(w), free(h), free(got), free(alone);
    close_side(&gpu.side), close_side(&ref.side);
}

static void experts_agree(void **state)
{
    (void)state;
    static const int rows[] = {1, 3, 8, 9, 40, 70}, all_on_one[] = {8, 64, 140}, many[] = {128};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        check_experts(options_of(bf16), 8, 2, 0, rows, 6);
        check_experts(options_of(bf16), 3, 3, 0, rows, 4);
        check_experts(options_of(bf16), 8, 2, 0.3f, all_on_one, bf16 ? 3 : 2);
    }
    /* on the emulated device: more tiles than blocks, then large tiles */
    check_experts(options_of(true), MAX_EXPERTS, 2, 0, rows, 6);
    struct backend_options wide = options_of(true);
    wide.hidden = 512;
    wide.inner = 64;
    check_experts(wide, 3, 3, 0, many, 1);
}

/* Two layers with different experts must not be taken for one another. */
static void layers_are_told_apart(void **state)
{
    (void)state;
    const struct backend_options opt = options_of(true);
    struct side side = open_gpu(&opt);
    struct layer a, b;
    float *router = random_numbers((size_t)(8 * opt.hidden), 0.3f, false);
    float *w = network_numbers(opt.hidden, 2 * 8 * opt.inner);
    float *h = random_numbers((size_t)opt.hidden, 1, true);
    float *first = numbers(104), *second = numbers(104), *again = numbers(104);
    open_layer(&a, side, &opt, router, w);
    open_layer(&b, side, &opt, router, w + 8 * 4 * opt.hidden * opt.inner);
    const float *feed = put_feed(&side, h, (size_t)opt.hidden);
    run_layer(&a, feed, 1, 0, first);
    run_layer(&b, feed, 1, 0, second);
    run_layer(&a, feed, 1, 0, again);
    assert_memory_not_equal(first, second, 104 * sizeof *first);
    assert_same_bits(again, first, 104, "the first layer again");
    free(router), free(w), free(h), free(first), free(second), free(again);
    close_side(&side);
}

/* ---- 8 bits ---------------------------------------------------------------------------------- */

/* The e4m3 number nearest to v, ties to the even code, by looking at all of them. */
static float nearest_fp8(float v)
{
    float best = 0;
    int best_code = 0;
    for (int code = 0; code < 127; code++) {
        const int exponent = code >> 3, mantissa = code & 7;
        const float x =
            exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
        const float off = fabsf(fabsf(v) - x), least = fabsf(fabsf(v) - best);
        if (off < least || (off == least && code % 2 == 0 && best_code % 2)) {
            best = x;
            best_code = code;
        }
    }
    return copysignf(best, v);
}

/* What 8 bits leave of a matrix [rows, cols], one scale an output. */
static float *quantized(const float *w, int rows, int cols, bool transposed,
                        enum backend_quantization q)
{
    float *out = numbers((size_t)(rows * cols));
    const int outputs = transposed ? cols : rows, inputs = transposed ? rows : cols;
    for (int o = 0; o < outputs; o++) {
        float largest = 0;
        for (int i = 0; i < inputs; i++)
            largest = fmaxf(largest, fabsf(w[transposed ? i * cols + o : o * cols + i]));
        const float scale = largest / (q == BACKEND_FP8 ? 448.0f : 127.0f);
        for (int i = 0; i < inputs; i++) {
            const int at = transposed ? i * cols + o : o * cols + i;
            const float v = scale > 0 ? w[at] / scale : 0;
            out[at] = (q == BACKEND_FP8 ? nearest_fp8(v) : rintf(v)) * scale;
        }
    }
    return out;
}

/* Outputs of different sizes have different scales. */
static void grade(float *w, int rows, int cols, bool transposed)
{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            w[r * cols + c] = ldexpf(w[r * cols + c], -((transposed ? c : r) % 5));
}

/* Against a reference in FP32 that has the very numbers the 8 bits stand for. */
static void check_8_bits(enum backend_quantization q, int n_out, int k, bool transposed)
{
    static const int rows[] = {1, 8, 9, 65, 130};
    struct backend_options opt = options_of(true);
    const struct backend_options plain = options_of(false);
    opt.quantization = q;
    struct side gpu = open_gpu(&opt), ref = open_reference(&plain);
    const int w_rows = transposed ? k : n_out, w_cols = transposed ? n_out : k, most = rows[4];
    float *w = random_numbers((size_t)(n_out * k), 0.1f, false);
    float *x = random_numbers((size_t)(most * k), 1, true);
    for (int i = 0; i < k; i++) w[transposed ? i * n_out : i] = 0; /* an output without a scale */
    grade(w, w_rows, w_cols, transposed);
    float *left = quantized(w, w_rows, w_cols, transposed, q);
    float *want = numbers((size_t)(most * n_out)), *got = numbers((size_t)(most * n_out));
    float *first = numbers((size_t)(most * n_out));
    const struct weight *on_gpu = put_weight(&gpu, w, w_rows, w_cols, transposed);
    multiply(&ref, put_weight(&ref, left, w_rows, w_cols, transposed), x, most, n_out, want);
    const float *feed = put_feed(&gpu, x, (size_t)(most * k));
    for (int i = 4; i >= 0; i--) {
        multiply(&gpu, on_gpu, feed, rows[i], n_out, got);
        assert_close(got, want, (size_t)(rows[i] * n_out), SUMS, "8 bits");
        if (i == 4) memcpy(first, got, (size_t)(most * n_out) * sizeof *first);
        assert_same_bits(got, first, (size_t)(rows[i] * n_out), "8 bits in company");
    }
    free(w), free(x), free(left), free(want), free(got), free(first);
    close_side(&gpu), close_side(&ref);
}

/* A network's middle is rounded to BF16, which the FP32 reference does not do. */
static void check_8_bit_network(enum backend_quantization q)
{
    static const int rows[] = {1, 8, 9, 70};
    struct backend_options opt = options_of(true);
    struct backend_options plain = options_of(false);
    plain.hidden = 264;
    opt.quantization = q;
    opt.hidden = 264;
    const int hidden = opt.hidden, inner = opt.inner, size = hidden * inner;
    struct side gpu = open_gpu(&opt), ref = open_reference(&plain);
    float *w = network_numbers(hidden, inner), *h = random_numbers((size_t)(70 * hidden), 1, true);
    grade(w, 3 * inner, hidden, false);
    float *gate = quantized(w, 2 * inner, hidden, false, q);
    float *up = quantized(w + 2 * size, inner, hidden, false, q);
    float *down = quantized(w + 3 * size, hidden, inner, false, q),
          *left = numbers((size_t)(4 * size));
    memcpy(left, gate, (size_t)(2 * size) * sizeof *left);
    memcpy(left + 2 * size, up, (size_t)size * sizeof *left);
    memcpy(left + 3 * size, down, (size_t)size * sizeof *left);
    const struct network g = put_network(&gpu, w, hidden, inner, false);
    const struct network n = put_network(&ref, left, hidden, inner, false);
    float *want = numbers((size_t)(70 * hidden)), *got = numbers((size_t)(70 * hidden));
    float *first = numbers((size_t)(70 * hidden));
    const float *feed = put_feed(&gpu, h, (size_t)(70 * hidden));
    run_network(&ref, &n, hidden, inner, put_feed(&ref, h, (size_t)(70 * hidden)), 70, want);
    for (int i = 3; i >= 0; i--) {
        run_network(&gpu, &g, hidden, inner, feed, rows[i], got);
        assert_close(got, want, (size_t)(rows[i] * hidden), ROUNDED, "an 8-bit network");
        if (i == 3) memcpy(first, got, (size_t)(70 * hidden) * sizeof *first);
        assert_same_bits(got, first, (size_t)(rows[i] * hidden), "an 8-bit network in company");
    }
    free(w), free(h), free(gate), free(up), free(down), free(left), free(want), free(got);
    free(first);
    close_side(&gpu), close_side(&ref);
}

static void eight_bits_agree(void **state)
{
    (void)state;
    for (int q = BACKEND_FP8; q <= BACKEND_INT8; q++) {
        for (int transposed = 0; transposed < 2; transposed++) {
            check_8_bits((enum backend_quantization)q, 75, 104, transposed);
            check_8_bits((enum backend_quantization)q, transposed ? 24 : 130, 3080, transposed);
        }
        check_8_bits((enum backend_quantization)q, 1000, 72, false); /* large tiles */
        check_8_bit_network((enum backend_quantization)q);
    }
}

/* ---- what weights are made from -------------------------------------------------------------- */

static const void *source_of(const struct side *s, struct weight_source src, int kind, float *out)
{
    struct weight *w;
    struct error err;
    float *v;
    const size_t n = (size_t)(src.rows * src.cols);
    if (kind == 0) { /* a vector: its numbers */
        assert_int_equal(s->ops->vector_new(s->be, &src, &v, &err), CFG_OK);
        get(s, v, n, out);
        return NULL;
    }
    assert_int_equal(s->ops->weight_new(s->be, &src, &w, &err), CFG_OK);
    return w;
}

/* 16-bit numbers of all kinds but infinities and NaN: also subnormal ones and zeros. */
static uint16_t *any_16_bits(size_t n, int type)
{
    uint16_t *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        const int sign = below(2) << 15;
        /* sizes up to 2: a product's sums stay in one range */
        x[i] = (uint16_t)(sign | (type == TENSOR_F16 ? below(0x4000) : 0x3d00 + below(0x300)));
        if (below(10) == 0) x[i] = (uint16_t)(sign | below(type == TENSOR_F16 ? 0x400 : 0x80));
    }
    return x;
}

static void check_source(const struct side *gpu, const struct side *ref,
                         const struct weight_source *src, const float *x)
{
    const int k = (int)(src->transposed ? src->rows : src->cols);
    const int n_out = (int)(src->transposed ? src->cols : src->rows);
    const size_t n = (size_t)(n_out * k);
    float *got = numbers(n), *want = numbers(n);
    source_of(gpu, *src, 0, got);
    source_of(ref, *src, 0, want);
    assert_same_bits(got, want, n, "a vector");
    multiply(gpu, source_of(gpu, *src, 1, NULL), put_feed(gpu, x, (size_t)(3 * k)), 3, n_out, got);
    multiply(ref, source_of(ref, *src, 1, NULL), x, 3, n_out, want);
    assert_close(got, want, (size_t)(3 * n_out), SUMS, "a product");
    free(got), free(want);
}

static void every_type_of_source_agrees(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct backend_options opt = options_of(bf16);
        struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
        float *x = random_numbers(3 * 200, 1, bf16);
        for (int type = TENSOR_BF16; type <= TENSOR_F16; type++)
            for (int transposed = 0; transposed < 2; transposed++) {
                uint16_t *data = any_16_bits(1 + 40 * 200, type);
                const struct weight_source src = {.data = data + 1, /* at an odd address of 4 */
                                                  .type = type,
                                                  .rows = transposed ? 200 : 40,
                                                  .cols = transposed ? 40 : 200,
                                                  .transposed = transposed};
                const struct weight_source dummy = {.rows = src.rows,
                                                    .cols = src.cols,
                                                    .transposed = src.transposed,
                                                    .seed = 77 + (uint64_t)type};
                check_source(&gpu, &ref, &src, x);
                check_source(&gpu, &ref, &dummy, x);
                free(data);
            }
        free(x);
        close_side(&gpu), close_side(&ref);
    }
}

/* Longer than a stage (32 MB): runs of rows begin inside the matrix, in both orientations. */
static void long_matrices_agree(void **state)
{
    (void)state;
    for (int transposed = 0; transposed < 2; transposed++) {
        struct backend_options opt = options_of(true);
        struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
        const int rows = transposed ? 1160 : 8000, cols = transposed ? 8000 : 1160;
        float *w = random_numbers((size_t)(rows * cols), 0.02f, false);
        float *x = random_numbers(1160, 1, true);
        float *got = numbers(8000), *want = numbers(8000);
        multiply(&gpu, put_weight(&gpu, w, rows, cols, transposed), put_feed(&gpu, x, 1160), 1,
                 8000, got);
        multiply(&ref, put_weight(&ref, w, rows, cols, transposed), x, 1, 8000, want);
        assert_close(got, want, 8000, SUMS, "a long matrix");
        free(w), free(x), free(got), free(want);
        close_side(&gpu), close_side(&ref);
    }
}

static void odd_inputs_are_refused(void **state)
{
    (void)state;
    const struct backend_options opt = options_of(true);
    struct side gpu = open_gpu(&opt);
    const struct weight_source src = {.rows = 8, .cols = 100};
    struct weight *w;
    struct error err;
    assert_int_equal(gpu.ops->weight_new(gpu.be, &src, &w, &err), CFG_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "multiple of 8"));
    close_side(&gpu);
}

/* ---- the shapes that matter ------------------------------------------------------------------ */

/* Matrices of OpenMoE-8B: what the choice of tiles depends on is the device's size too. */
static void real_shapes_agree(void **state)
{
    (void)state;
    static const int shapes[][2] = {{3072, 2048}, {2048, 3072}, {2048, 8192}};
    static const int rows[] = {8, 16, 64, 65, 128, 256, 700, 2048};
    const char *device = getenv("TEST_DEVICE");
    if (device && strcmp(device, "emulated") == 0) {
        printf("NOT CHECKED: products of real shapes, which need a GPU\n");
        return;
    }
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int n_out = shapes[s][0], k = shapes[s][1];
        struct backend_options opt = options_of(true);
        opt.hidden = 2048;
        opt.inner = 8192;
        opt.max_rows = 2048;
        struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
        const struct weight_source src = {.rows = n_out, .cols = k, .seed = 5 + s};
        const struct weight *w = source_of(&gpu, src, 1, NULL);
        float *x = random_numbers((size_t)2048 * (size_t)k, 1, true);
        const size_t n = (size_t)2048 * (size_t)n_out;
        float *alone = numbers(n), *got = numbers(n), *want = numbers(n);
        const float *feed = put_feed(&gpu, x, (size_t)2048 * (size_t)k);
        for (int r = 0; r < 2048; r++)
            multiply(&gpu, w, feed_row(&gpu, feed, r, k), 1, n_out,
                     alone + (size_t)r * (size_t)n_out);
        multiply(&ref, source_of(&ref, src, 1, NULL), x, 8, n_out, want);
        assert_close(alone, want, (size_t)(8 * n_out), SUMS, "a real matrix");
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            multiply(&gpu, w, feed, rows[i], n_out, got);
            assert_same_bits(got, alone, (size_t)rows[i] * (size_t)n_out, "rows of a real matrix");
        }
        free(x), free(alone), free(got), free(want);
        close_side(&gpu), close_side(&ref);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_agree),
        cmocka_unit_test(large_tiles_agree),
        cmocka_unit_test(slices_agree),
        cmocka_unit_test(rows_keep_to_themselves),
        cmocka_unit_test(networks_agree),
        cmocka_unit_test(experts_agree),
        cmocka_unit_test(layers_are_told_apart),
        cmocka_unit_test(eight_bits_agree),
        cmocka_unit_test(every_type_of_source_agrees),
        cmocka_unit_test(long_matrices_agree),
        cmocka_unit_test(odd_inputs_are_refused),
        cmocka_unit_test(real_shapes_agree),
    };
    return cmocka_run_group_tests_name("matmul", tests, NULL, NULL);
}
