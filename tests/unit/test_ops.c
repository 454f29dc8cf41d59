// SPDX-License-Identifier: Apache-2.0
//
// test_ops.c: every operation of the fast backend, in every kernel family this machine runs and
// both data types, against the reference backend on fresh random inputs, at shapes that fill panels
// and shapes that do not; and the promise that company never changes a row: bit-equal results for
// any number of rows or threads.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "engine/checkpoint.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/route.h"
#include "engine/ops.h"

#define HEADS    6
#define HEAD_DIM 20 /* not a multiple of any vector */
#define HIDDEN   120
#define INNER    72
#define EXPERTS  8
#define TOPK     2
#define ROWS     40
#define CONTEXT  160
#define BLOCKS   64

static uint64_t state_of_random = 88172645463325252u;

static float uniform(void) /* [-1, 1) */
{
    state_of_random ^= state_of_random << 13;
    state_of_random ^= state_of_random >> 7;
    state_of_random ^= state_of_random << 17;
    return (float)(state_of_random >> 40) * 0x1p-23f - 1.0f;
}

static void fill(float *x, size_t n, bool bf16)
{
    for (size_t i = 0; i < n; i++) x[i] = bf16 ? round_bf16(uniform()) : uniform();
}

struct backend {
    const struct ops *ops;
    void *be;
};

static struct backend open_backend(const char *isa, bool bf16, int threads)
{
    const struct backend_options opt = {.isa = isa,
                                        .threads = threads,
                                        .bf16 = bf16,
                                        .max_rows = ROWS,
                                        .hidden = HIDDEN,
                                        .inner = INNER,
                                        .experts = EXPERTS,
                                        .topk = TOPK,
                                        .heads = HEADS,
                                        .head_dim = HEAD_DIM,
                                        .context = CONTEXT};
    struct backend b;
    struct error err;
    int rc = strcmp(isa, "reference") == 0 ? cpu_reference_open(&b.ops, &b.be, &opt, &err)
                                           : cpu_open(&b.ops, &b.be, &opt, &err);
    if (rc != CFG_OK) fail_msg("%s", err.message);
    return b;
}

static struct weight *weight_of(const struct backend *b, const float *data, int rows, int cols,
                                bool transposed)
{
    const struct weight_source src = {
        .data = data, .type = TENSOR_F32, .rows = rows, .cols = cols, .transposed = transposed};
    struct weight *w;
    struct error err;
    if (b->ops->weight_new(b->be, &src, &w, &err) != CFG_OK) fail_msg("%s", err.message);
    return w;
}

static void assert_close(const float *got, const float *want, size_t n, float tolerance,
                         const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= tolerance * (1 + fabsf(want[i]))))
            fail_msg("%s: element %zu is %g, expected %g", what, i, (double)got[i],
                     (double)want[i]);
}

static void poison(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = NAN;
}

/* FP32: only the order of summation differs. BF16: inputs are equal, outputs that are rounded may
 * fall to neighbouring values, 2^-8 apart. */
static float rounding(bool bf16)
{
    return bf16 ? 8e-3f : 2e-5f;
}

static const char *const isas[] = {"generic", "avx2", "avx512", "amx"};

/* Calls check for each family and type this machine runs. */
static void for_families(void (*check)(const char *isa, bool bf16))
{
    int ran = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (!kernels_find(isas[i])) {
            print_message("kernel family %s: this machine can't run it, NOT CHECKED\n", isas[i]);
            continue;
        }
        check(isas[i], false);
        check(isas[i], true);
        ran++;
    }
    assert_true(ran >= 1);
}

/* ---- products -------------------------------------------------------------------------------- */

static void check_product(const char *isa, bool bf16, int rows, int k, int n, bool transposed)
{
    const struct backend fast = open_backend(isa, bf16, 2),
                         ref = open_backend("reference", bf16, 1);
    const size_t nx = (size_t)rows * (size_t)k, ny = (size_t)rows * (size_t)n,
                 nw = (size_t)n * (size_t)k;
    float *w = malloc(nw * sizeof *w), *x = malloc(nx * sizeof *x);
    float *y = malloc((ny + 8) * sizeof *y), *want = malloc(ny * sizeof *want);
    fill(w, nw, false);
    fill(x, nx, bf16);
    poison(y, ny + 8);
    struct op_matmul a = {
        .w = weight_of(&fast, w, transposed ? k : n, transposed ? n : k, transposed),
        .x = x,
        .y = y};
    struct op_matmul b = {
        .w = weight_of(&ref, w, transposed ? k : n, transposed ? n : k, transposed),
        .x = x,
        .y = want};
    fast.ops->matmul(fast.be, &a, 1, rows);
    ref.ops->matmul(ref.be, &b, 1, rows);
    assert_close(y, want, ny, 2e-5f * sqrtf((float)k), "matmul");
    for (size_t i = ny; i < ny + 8; i++)
        assert_true(isnan(y[i])); /* nothing written past the end */

    /* each row alone, on one thread: the same bits */
    const struct backend alone = open_backend(isa, bf16, 1);
    struct op_matmul c = {
        .w = weight_of(&alone, w, transposed ? k : n, transposed ? n : k, transposed), .y = want};
    for (int r = 0; r < rows; r++) {
        c.x = x + (size_t)r * (size_t)k;
        alone.ops->matmul(alone.be, &c, 1, 1);
        assert_memory_equal(want, y + (size_t)r * (size_t)n, (size_t)n * sizeof *y);
    }
    fast.ops->close(fast.be);
    ref.ops->close(ref.be);
    alone.ops->close(alone.be);
    free(w), free(x), free(y), free(want);
}

static void check_products(const char *isa, bool bf16)
{
    check_product(isa, bf16, 1, 64, 512, false);
    check_product(isa, bf16, 1, 96, 600, true);
    check_product(isa, bf16, 3, 33, 7, false); /* odd inputs, less than a panel */
    check_product(isa, bf16, 7, 120, 65, true);
    check_product(isa, bf16, 17, 72, 200, false);
    check_product(isa, bf16, 40, 120, 120, true);
}

static void products_agree(void **state)
{
    (void)state;
    for_families(check_products);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Gates reach deep into both tails of silu. */
static void check_ffn(const struct backend *fast, const struct backend *ref, const float *h,
                      bool bf16)
{
    static float gate[2 * INNER * HIDDEN], up[INNER * HIDDEN], down[HIDDEN * INNER];
    static float y[ROWS * HIDDEN], want[ROWS * HIDDEN];
    fill(gate, 2 * INNER * HIDDEN, false);
    fill(up, INNER * HIDDEN, false);
    fill(down, HIDDEN * INNER, false);
    for (int i = 0; i < 2 * INNER; i++)
        for (int k = 0; k < HIDDEN; k++) gate[i * HIDDEN + k] *= i % 7 == 0 ? 20.0f : 0.5f;
    const struct op_ffn a = {weight_of(fast, gate, 2 * INNER, HIDDEN, false),
                             weight_of(fast, up, INNER, HIDDEN, false),
                             weight_of(fast, down, HIDDEN, INNER, false), HIDDEN, INNER};
    const struct op_ffn b = {weight_of(ref, gate, 2 * INNER, HIDDEN, false),
                             weight_of(ref, up, INNER, HIDDEN, false),
                             weight_of(ref, down, HIDDEN, INNER, false), HIDDEN, INNER};
    poison(y, ROWS * HIDDEN);
    fast->ops->ffn(fast->be, &a, h, ROWS, y);
    ref->ops->ffn(ref->be, &b, h, ROWS, want);
    float largest = 0;
    for (int i = 0; i < ROWS * HIDDEN; i++) largest = fmaxf(largest, fabsf(want[i]));
    for (int i = 0; i < ROWS * HIDDEN; i++)
        if (!(fabsf(y[i] - want[i]) <= rounding(bf16) * largest))
            fail_msg("ffn: element %d is %g, expected %g", i, (double)y[i], (double)want[i]);
}

static void check_rows(const char *isa, bool bf16)
{
    const struct backend fast = open_backend(isa, bf16, 2),
                         ref = open_backend("reference", bf16, 1);
    static float x[ROWS * HIDDEN], w[HIDDEN], y[ROWS * HIDDEN], want[ROWS * HIDDEN];
    fill(x, ROWS * HIDDEN, false);
    fill(w, HIDDEN, false);
    poison(y, ROWS * HIDDEN);
    fast.ops->rmsnorm(fast.be, x, w, 1e-6f, ROWS, HIDDEN, y);
    ref.ops->rmsnorm(ref.be, x, w, 1e-6f, ROWS, HIDDEN, want);
    assert_close(y, want, ROWS * HIDDEN, rounding(bf16), "rmsnorm");

    check_ffn(&fast, &ref, y, bf16);
    fast.ops->close(fast.be);
    ref.ops->close(ref.be);
}

static void row_operations_agree(void **state)
{
    (void)state;
    for_families(check_rows);
}

/* ---- attention ------------------------------------------------------------------------------- */

struct attention_run {
    float q[ROWS * HIDDEN], k[ROWS * HIDDEN], v[ROWS * HIDDEN], y[ROWS * HIDDEN];
};

/* Three sequences through rope, KV and attention in chunks; the last chunk's output is kept. */
static void run_attention(const struct backend *b, int kv_heads, const int chunks[3], uint64_t seed,
                          struct attention_run *run)
{
    const struct op_attention a = {.layer = 1,
                                   .heads = HEADS,
                                   .kv_heads = kv_heads,
                                   .head_dim = HEAD_DIM,
                                   .rope_theta = 10000.0f};
    int32_t tables[3][CONTEXT / 16], positions[ROWS], seq_of_row[ROWS];
    const int32_t *table_list[3];
    struct error err;
    assert_int_equal(b->ops->kv_new(b->be, 2, kv_heads, HEAD_DIM, BLOCKS, 16, &err), CFG_OK);
    for (int s = 0; s < 3; s++) {
        for (int i = 0; i < CONTEXT / 16; i++) tables[s][i] = (s + 3 * i) * 29 % BLOCKS;
        table_list[s] = tables[s];
    }
    state_of_random = seed;
    for (int pass = 0, at[3] = {0, 0, 0}; pass < 4; pass++) {
        int n = 0;
        for (int s = 0; s < 3; s++)
            for (int i = 0; i < chunks[s]; i++, n++) {
                positions[n] = at[s]++;
                seq_of_row[n] = s;
            }
        const struct op_batch batch = {.n_rows = n,
                                       .n_seqs = 3,
                                       .positions = positions,
                                       .seq_of_row = seq_of_row,
                                       .block_tables = table_list};
        fill(run->q, (size_t)n * HEADS * HEAD_DIM, false);
        fill(run->k, (size_t)(n * kv_heads * HEAD_DIM), false);
        fill(run->v, (size_t)(n * kv_heads * HEAD_DIM), false);
        poison(run->y, ROWS * HIDDEN);
        b->ops->begin(b->be, &batch);
        b->ops->rope_kv(b->be, &a, run->q, run->k, run->v);
        b->ops->attention(b->be, &a, run->q, run->y);
    }
}

static void check_attention(const char *isa, bool bf16)
{
    static const int chunks[][3] = {{1, 1, 1}, {17, 5, 1}, {13, 13, 14}};
    static struct attention_run got, want;
    for (int kv_heads = HEADS; kv_heads >= 1; kv_heads /= 3) /* 6, 2: grouped heads */
        for (size_t c = 0; c < 3; c++) {
            const struct backend fast = open_backend(isa, bf16, 2),
                                 ref = open_backend("reference", bf16, 1);
            const int rows = chunks[c][0] + chunks[c][1] + chunks[c][2];
            run_attention(&fast, kv_heads, chunks[c], 7 + c, &got);
            run_attention(&ref, kv_heads, chunks[c], 7 + c, &want);
            assert_close(got.y, want.y, (size_t)(rows * HEADS * HEAD_DIM), rounding(bf16),
                         "attention");
            fast.ops->close(fast.be);
            ref.ops->close(ref.be);
        }
}

static void attention_agrees(void **state)
{
    (void)state;
    for_families(check_attention);
}

/* ---- routing and experts --------------------------------------------------------------------- */

struct moe_run {
    struct weight *gate[EXPERTS], *up[EXPERTS], *down[EXPERTS];
    int32_t experts[ROWS * TOPK];
    float weights[ROWS * TOPK];
    uint8_t kept[ROWS * TOPK];
    float y[ROWS * HIDDEN];
};

static void run_moe(const struct backend *b, const float *router, const float *w, const float *h,
                    int rows, int capacity, struct moe_run *run)
{
    const size_t up_size = (size_t)HIDDEN * INNER;
    const struct op_route r = {
        .router = router, .experts = EXPERTS, .topk = TOPK, .hidden = HIDDEN};
    const struct op_routing routing = {run->experts, run->weights, run->kept};
    const struct op_experts e = {run->gate, run->up, run->down, EXPERTS, TOPK, HIDDEN, INNER};
    const struct op_batch batch = {.n_rows = rows, .capacity = capacity};
    for (int x = 0; x < EXPERTS; x++, w += 4 * up_size) {
        run->gate[x] = weight_of(b, w, HIDDEN, 2 * INNER, true);
        run->up[x] = weight_of(b, w + 2 * up_size, HIDDEN, INNER, true);
        run->down[x] = weight_of(b, w + 3 * up_size, INNER, HIDDEN, true);
    }
    poison(run->y, ROWS * HIDDEN);
    b->ops->begin(b->be, &batch);
    b->ops->route(b->be, &r, h, &routing);
    b->ops->experts(b->be, &e, &routing, h, run->y);
}

static void check_moe(const char *isa, bool bf16)
{
    static float router[EXPERTS * HIDDEN], w[EXPERTS * 4 * HIDDEN * INNER], h[ROWS * HIDDEN];
    static struct moe_run got, want, alone;
    fill(router, EXPERTS * HIDDEN, false);
    fill(w, EXPERTS * 4 * HIDDEN * INNER, false);
    for (size_t i = 0; i < EXPERTS * 4 * HIDDEN * INNER; i++) w[i] *= 0.2f;
    fill(h, ROWS * HIDDEN, bf16);
    for (int capacity = 0; capacity <= 4; capacity += 4) {
        const struct backend fast = open_backend(isa, bf16, 2),
                             ref = open_backend("reference", bf16, 1);
        run_moe(&fast, router, w, h, ROWS, capacity, &got);
        run_moe(&ref, router, w, h, ROWS, capacity, &want);
        assert_memory_equal(got.experts, want.experts, sizeof got.experts);
        assert_memory_equal(got.kept, want.kept, sizeof got.kept);
        assert_close(got.y, want.y, ROWS * HIDDEN, bf16 ? 2e-2f : 1e-4f, "experts");
        int kept = 0;
        for (int i = 0; i < ROWS * TOPK; i++) kept += got.kept[i];
        assert_int_equal(kept == ROWS * TOPK, capacity == 0); /* 8 experts x 4 < 80 picks */
        if (capacity == 0)
            for (int r = 0; r < ROWS; r += 13) {
                run_moe(&fast, router, w, h + r * HIDDEN, 1, 0, &alone);
                assert_memory_equal(alone.y, got.y + r * HIDDEN, HIDDEN * sizeof(float));
            }
        fast.ops->close(fast.be);
        ref.ops->close(ref.be);
    }
}

static void experts_agree(void **state)
{
    (void)state;
    for_families(check_moe);
}

static void picks_follow_the_published_rule(void **state)
{
    (void)state;
    const float logits[] = {1.0f, 3.0f, 3.0f, -2.0f};
    int32_t ids[2];
    float weights[2];
    route_pick(logits, 4, 2, ids, weights);
    assert_int_equal(ids[0], 1); /* a tie goes to the lower index */
    assert_int_equal(ids[1], 2);
    const double sum = exp(-2) + 1 + 1 + exp(-5);
    assert_true(fabs((double)weights[0] - 1 / sum) < 1e-6 &&
                fabs((double)weights[1] - 1 / sum) < 1e-6);

    /* all first choices are placed before any second choice, in order of row */
    const int32_t picks[] = {0, 1, 1, 0, 0, 1, 0, 1};
    const uint8_t expected[] = {1, 1, 1, 0, 1, 0, 0, 0};
    uint8_t kept[8];
    int counts[2];
    route_capacity(picks, 4, 2, 2, 2, counts, kept);
    assert_memory_equal(kept, expected, sizeof kept);
}

static void too_many_experts_are_refused(void **state)
{
    (void)state;
    const struct backend_options opt = {.isa = "generic",
                                        .threads = 1,
                                        .max_rows = 1,
                                        .hidden = 16,
                                        .inner = 16,
                                        .experts = 513,
                                        .topk = 2,
                                        .heads = 1,
                                        .head_dim = 16,
                                        .context = 16};
    const struct ops *ops;
    void *be;
    struct error err;
    assert_int_equal(cpu_open(&ops, &be, &opt, &err), CFG_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "513"));
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(f32_to_bf16(1.0f), 0x3f80);
    assert_int_equal(f32_to_bf16(1.00390625f), 0x3f80); /* halfway, to even */
    assert_int_equal(f32_to_bf16(1.01171875f), 0x3f82);
    assert_int_equal(f32_to_bf16(-1e-45f), 0x8000);
    assert_int_equal(f32_to_bf16(INFINITY), 0x7f80);
    assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree),
        cmocka_unit_test(row_operations_agree),
        cmocka_unit_test(attention_agrees),
        cmocka_unit_test(experts_agree),
        cmocka_unit_test(picks_follow_the_published_rule),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(too_many_experts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
