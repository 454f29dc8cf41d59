// SPDX-License-Identifier: Apache-2.0
//
// check_rows.c: embedding, norms with and without the add ahead of them, adding, gathering and
// rope, against the reference and, where nothing is summed, to the bit; each row alone against all
// of them together. Widths from 1 number to more than a thread of a block holds at once, odd ones
// too.
#include "tests/gpu/check.h"

enum { MAX_ROWS = 24 };

static const int widths[] = {1, 33, 96, 250, 2048, 3072, 5001, 16384};
#define N_WIDTHS (int)(sizeof widths / sizeof *widths)

static struct backend_options options_of(bool bf16, int hidden)
{
    struct backend_options opt = small_options(bf16);
    opt.hidden = hidden;
    opt.inner = 16; /* not needed here */
    return opt;
}

/* Rows that are one sequence from position 0 on, the last one asked for. */
struct rows {
    int32_t tokens[MAX_ROWS], positions[MAX_ROWS], seq_of_row[MAX_ROWS], head_rows[MAX_ROWS];
    int32_t table[16];
    const int32_t *tables[1];
    struct op_batch batch;
};

static void make_rows(struct rows *r, int n)
{
    *r = (struct rows){0};
    for (int i = 0; i < n; i++) r->positions[i] = i;
    r->tables[0] = r->table;
    r->head_rows[0] = n - 1;
    r->batch = (struct op_batch){.n_rows = n,
                                 .n_seqs = 1,
                                 .n_heads = 1,
                                 .tokens = r->tokens,
                                 .positions = r->positions,
                                 .seq_of_row = r->seq_of_row,
                                 .head_rows = r->head_rows,
                                 .block_tables = r->tables};
}

/* ---- embedding ------------------------------------------------------------------------------- */

static void check_embedding(bool bf16, int hidden, int type)
{
    enum { VOCAB = 37, N = 11 };
    const struct backend_options opt = options_of(bf16, hidden);
    struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
    const size_t n = (size_t)N * (size_t)hidden, all = (size_t)VOCAB * (size_t)hidden;
    float *table = random_numbers(all, 1, false), *got = malloc(n * sizeof *got),
          *want = malloc(n * sizeof *want);
    uint16_t *half = malloc(all * sizeof *half);
    for (size_t i = 0; i < all; i++) half[i] = f32_to_bf16(table[i]);
    const struct weight_source src = {.data = type == TENSOR_F32 ? (void *)table : half,
                                      .type = type,
                                      .rows = VOCAB,
                                      .cols = hidden};
    struct weight *on_gpu, *on_ref;
    struct error err;
    struct rows r;
    assert_int_equal(gpu.ops->table_new(gpu.be, &src, &on_gpu, &err), CFG_OK);
    assert_int_equal(ref.ops->table_new(ref.be, &src, &on_ref, &err), CFG_OK);
    make_rows(&r, N);
    for (int i = 0; i < N; i++) r.tokens[i] = below(VOCAB);
    r.tokens[3] = VOCAB - 1;
    float *x = blank(&gpu, n);
    begin_side(&gpu, &r.batch);
    begin_side(&ref, &r.batch);
    gpu.ops->embed(gpu.be, on_gpu, x);
    ref.ops->embed(ref.be, on_ref, want);
    get(&gpu, x, n, got);
    assert_same_bits(got, want, n, "embed");
    close_side(&gpu), close_side(&ref);
    free(table), free(half), free(got), free(want);
}

static void embedding_looks_up(void **state)
{
    (void)state;
    for (int w = 0; w < 5; w++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check_embedding(bf16, widths[w], TENSOR_F32);
            check_embedding(bf16, widths[w], TENSOR_BF16);
        }
}

/* ---- norm and add ---------------------------------------------------------------------------- */

struct norm_case {
    const float *x, *y, *w; /* y: NULL or what is added */
    int n, hidden;
};

/* Through one backend: the norm, and x afterwards. */
static void run_norm(struct side *s, const struct norm_case *c, float *norm, float *x_after)
{
    const size_t n = (size_t)c->n * (size_t)c->hidden;
    float *x = put(s, c->x, n), *h = blank(s, n), *w = put(s, c->w, (size_t)c->hidden);
    struct rows r;
    make_rows(&r, c->n);
    begin_side(s, &r.batch);
    if (c->y) s->ops->add(s->be, x, put(s, c->y, n), c->hidden);
    s->ops->rmsnorm(s->be, x, w, 1e-6f, c->n, c->hidden, h);
    get_feed(s, h, n, norm);
    get(s, x, n, x_after);
}

/* In BF16 mode a number next to the middle of two may go to either, which the second rounding may
 * make two BF16 steps; seldom. */
static void assert_norm(const float *got, const float *want, size_t n, bool bf16)
{
    size_t differ = 0;
    if (!bf16) assert_close(got, want, n, 1e-6f, "rmsnorm");
    for (size_t i = 0; bf16 && i < n; i++) {
        if (!(fabsf(got[i] - want[i]) <= 1.6e-2f * fabsf(want[i])))
            fail_msg("rmsnorm: element %zu is %.9g, expected %.9g", i, (double)got[i],
                     (double)want[i]);
        differ += got[i] != want[i];
    }
    assert_true(differ <= n / 500 + 1);
}

static void check_norm(bool bf16, int hidden, int n, bool add)
{
    const struct backend_options opt = options_of(bf16, hidden);
    struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
    const size_t all = (size_t)n * (size_t)hidden;
    float *x = random_numbers(all, 3, false), *y = random_numbers(all, 2, false);
    float *w = random_numbers((size_t)hidden, 1, false), *buffer = malloc(4 * all * sizeof *buffer);
    float *got = buffer, *want = buffer + all, *got_x = buffer + 2 * all, *want_x = got_x + all;
    const struct norm_case c = {x, add ? y : NULL, w, n, hidden};
    run_norm(&gpu, &c, got, got_x);
    run_norm(&ref, &c, want, want_x);
    assert_norm(got, want, all, bf16);
    assert_same_bits(got_x, want_x, all, "x after the add");
    for (int r = 0; r < n; r += 3) {
        const size_t at = (size_t)r * (size_t)hidden;
        const struct norm_case one = {x + at, add ? y + at : NULL, w, 1, hidden};
        run_norm(&gpu, &one, want, want_x);
        assert_same_bits(want, got + at, (size_t)hidden, "rmsnorm of one row");
        assert_same_bits(want_x, got_x + at, (size_t)hidden, "add of one row");
    }
    close_side(&gpu), close_side(&ref);
    free(x), free(y), free(w), free(buffer);
}

static void norms_agree(void **state)
{
    (void)state;
    for (int w = 0; w < N_WIDTHS; w++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check_norm(bf16, widths[w], 1 + w % 3 * 4, false);
            check_norm(bf16, widths[w], 7, true);
        }
}

/* Adds that no norm takes along: read, another add, a norm of something else. */
static void adds_are_never_lost(void **state)
{
    (void)state;
    for (int hidden = 33; hidden <= 96; hidden += 63) {
        const struct backend_options opt = options_of(true, hidden);
        struct side s = open_gpu(&opt);
        const size_t n = 5 * (size_t)hidden;
        float *x = random_numbers(n, 1, false), *y = random_numbers(n, 1, false),
              *z = random_numbers(n, 1, false), *got = malloc(n * sizeof *got);
        float *at = put(&s, x, n), *first = put(&s, y, n), *second = put(&s, z, n);
        struct rows r;
        make_rows(&r, 5);
        begin_side(&s, &r.batch);
        s.ops->add(s.be, at, first, hidden);
        get(&s, at, n, got);
        for (size_t i = 0; i < n; i++) x[i] += y[i];
        assert_same_bits(got, x, n, "add");

        begin_side(&s, &r.batch);
        s.ops->add(s.be, at, first, hidden);
        s.ops->add(s.be, at, second, hidden);
        s.ops->rmsnorm(s.be, second, first, 1e-6f, 5, hidden, blank(&s, n));
        get(&s, at, n, got);
        for (size_t i = 0; i < n; i++) x[i] = (x[i] + y[i]) + z[i];
        assert_same_bits(got, x, n, "two adds");
        close_side(&s);
        free(x), free(y), free(z), free(got);
    }
}

/* ---- gather ---------------------------------------------------------------------------------- */

/* In pieces, as the model does with many rows: an add that waits must reach all of them. */
static void check_gather(int hidden, bool add)
{
    enum { N = 9, HEADS = 5 };
    static const int32_t wanted[HEADS] = {8, 0, 3, 3, 5};
    const struct backend_options opt = options_of(true, hidden);
    struct side s = open_gpu(&opt);
    const size_t n = (size_t)N * (size_t)hidden, width = (size_t)hidden;
    float *x = random_numbers(n, 1, false), *y = random_numbers(n, 1, false),
          *got = malloc(HEADS * width * sizeof *got);
    float *at = put(&s, x, n), *out = blank(&s, HEADS * width);
    struct rows r;
    make_rows(&r, N);
    memcpy(r.head_rows, wanted, sizeof wanted);
    r.batch.n_heads = HEADS;
    begin_side(&s, &r.batch);
    if (add) s.ops->add(s.be, at, put(&s, y, n), hidden);
    s.ops->gather(s.be, at, r.head_rows, 2, hidden, out);
    s.ops->gather(s.be, at, r.head_rows + 2, 3, hidden, out + 2 * width);
    get(&s, out, HEADS * width, got);
    for (size_t i = 0; add && i < n; i++) x[i] += y[i];
    for (int h = 0; h < HEADS; h++)
        assert_same_bits(got + (size_t)h * width, x + (size_t)wanted[h] * width, width, "gather");
    close_side(&s);
    free(x), free(y), free(got);
}

static void rows_are_gathered(void **state)
{
    (void)state;
    for (int w = 0; w < 5; w++) {
        check_gather(widths[w], false);
        check_gather(widths[w], true);
    }
}

/* A step after one that left an add waiting starts from its own embedding. */
static void an_embedding_ends_what_was(void **state)
{
    (void)state;
    const struct backend_options opt = options_of(true, 96);
    struct side s = open_gpu(&opt);
    float *table = random_numbers(4 * 96, 1, true), *y = random_numbers(3 * 96, 1, false), got[288];
    const struct weight_source src = {.data = table, .type = TENSOR_F32, .rows = 4, .cols = 96};
    float *x = blank(&s, 3 * 96), *more = put(&s, y, 3 * 96);
    struct weight *w;
    struct error err;
    struct rows r;
    assert_int_equal(s.ops->table_new(s.be, &src, &w, &err), CFG_OK);
    make_rows(&r, 3);
    for (int i = 0; i < 3; i++) r.tokens[i] = i + 1;
    begin_side(&s, &r.batch);
    s.ops->embed(s.be, w, x);
    s.ops->add(s.be, x, more, 96);
    s.ops->embed(s.be, w, x);
    get(&s, x, 288, got);
    assert_same_bits(got, table + 96, 288, "embed");
    close_side(&s);
    free(table), free(y);
}

/* ---- rope ------------------------------------------------------------------------------------ */

/* In F32 mode q can be looked at; what becomes of k and v, and BF16, shows in check_attention.c. */
static void queries_are_rotated(void **state)
{
    (void)state;
    for (int hd = 8; hd <= 128; hd += 24) {
        struct backend_options opt = small_options(false);
        opt.head_dim = hd;
        const int heads = 3, n = 20;
        const struct op_attention a = {0, heads, heads, hd, 10000.0f};
        struct side gpu = open_gpu(&opt), ref = open_reference(&opt);
        const size_t all = (size_t)(n * heads * hd);
        float *q = random_numbers(all, 2, false), *got = malloc(all * sizeof *got);
        struct side *const sides[] = {&gpu, &ref};
        struct rows r;
        struct error err;
        float *at[2];
        make_rows(&r, n);
        for (int i = 0; i < n; i++) r.positions[i] = 230 + i;
        for (int b = 0; b < 16; b++) r.table[b] = 15 - b;
        for (int k = 0; k < 2; k++) {
            const struct side *s = sides[k];
            assert_int_equal(s->ops->kv_new(s->be, 1, heads, hd, 16, 16, &err), CFG_OK);
            at[k] = put(s, q, all);
            begin_side(s, &r.batch);
            s->ops->rope_kv(s->be, &a, at[k], put(s, q, all), put(s, q, all));
        }
        get(&gpu, at[0], all, got);
        assert_close(got, at[1], all, 1e-6f, "rope");
        assert_true(fabsf(got[1] - q[1]) > 1e-3f);
        close_side(&gpu), close_side(&ref);
        free(q), free(got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding_looks_up),         cmocka_unit_test(norms_agree),
        cmocka_unit_test(adds_are_never_lost),        cmocka_unit_test(rows_are_gathered),
        cmocka_unit_test(an_embedding_ends_what_was), cmocka_unit_test(queries_are_rotated),
    };
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
