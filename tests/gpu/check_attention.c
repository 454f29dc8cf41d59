// SPDX-License-Identifier: Apache-2.0
//
// check_attention.c: rope, the paged cache and attention together, against the reference, for head
// widths and groups of all kinds, chunks and blocks of several sizes, with NaN in every part of the
// cache that is not the sequence's own; each row's bits the same whether it came in one long chunk,
// in pieces, as a decode, alone or in company; copies of blocks; and FP8 against a plain
// calculation over numbers rounded the same way.
#include "tests/gpu/check.h"

enum { MAX_SEQS = 40, MAX_ROWS = 320, THETA = 10000 };

/* Sequences and the numbers that come out of the products before attention. */
struct scene {
    struct backend_options opt;
    int n_seqs, length[MAX_SEQS];
    size_t q_width, kv_width;
    int blocks_each, n_blocks;
    int32_t *tables;                  /* [n_seqs, blocks_each] */
    float *q[MAX_SEQS], *k[MAX_SEQS]; /* [length, heads or kv_heads, head_dim] */
    float *v[MAX_SEQS];
};

static struct scene make_scene(bool bf16, int heads, int kv_heads, int head_dim, int block,
                               int n_seqs, const int *lengths)
{
    struct scene s = {.opt = small_options(bf16), .n_seqs = n_seqs};
    int longest = 0;
    s.opt.heads = heads;
    s.opt.kv_heads = kv_heads;
    s.opt.head_dim = head_dim;
    s.opt.block_size = block;
    s.opt.max_rows = MAX_ROWS;
    s.opt.max_seqs = MAX_SEQS;
    s.q_width = (size_t)(heads * head_dim);
    s.kv_width = (size_t)(kv_heads * head_dim);
    for (int i = 0; i < n_seqs; i++) {
        s.length[i] = lengths[i];
        if (lengths[i] > longest) longest = lengths[i];
        /* scores of about 1: q is rounded, and that error grows with them */
        s.q[i] = random_numbers((size_t)lengths[i] * s.q_width, 4 / sqrtf((float)head_dim), false);
        s.k[i] = random_numbers((size_t)lengths[i] * s.kv_width, 1, false);
        s.v[i] = random_numbers((size_t)lengths[i] * s.kv_width, 1, false);
    }
    s.opt.context = longest + 7;
    s.blocks_each = (longest + block - 1) / block;
    s.n_blocks = n_seqs * s.blocks_each + 2;
    s.tables = malloc((size_t)(n_seqs * s.blocks_each) * sizeof *s.tables);
    assert_non_null(s.tables);
    /* any order; block 0, where a table that is too short points, is nobody's */
    const int n = n_seqs * s.blocks_each;
    for (int i = 0; i < n; i++) s.tables[i] = i + 1;
    for (int i = n - 1; i > 0; i--) {
        const int j = below(i + 1), t = s.tables[i];
        s.tables[i] = s.tables[j];
        s.tables[j] = t;
    }
    return s;
}

static void free_scene(struct scene *s)
{
    for (int i = 0; i < s->n_seqs; i++) free(s->q[i]), free(s->k[i]), free(s->v[i]);
    free(s->tables);
}

/* What a step takes of each sequence. */
struct step {
    int from[MAX_SEQS], n[MAX_SEQS];
};

struct answers {
    float *y[MAX_SEQS]; /* [length, heads * head_dim] */
};

static struct answers blank_answers(const struct scene *s)
{
    struct answers a = {0};
    for (int i = 0; i < s->n_seqs; i++) {
        a.y[i] = random_numbers((size_t)s->length[i] * s->q_width, 1, false);
        for (size_t k = 0; k < (size_t)s->length[i] * s->q_width; k++) a.y[i][k] = NAN;
    }
    return a;
}

static void free_answers(struct answers *a)
{
    for (int i = 0; i < MAX_SEQS; i++) free(a->y[i]);
}

static struct op_attention op_of(const struct scene *s)
{
    return (struct op_attention){.layer = 1,
                                 .heads = s->opt.heads,
                                 .kv_heads = s->opt.kv_heads,
                                 .head_dim = s->opt.head_dim,
                                 .rope_theta = THETA};
}

/* NaN goes into every place of the cache of both layers. */
static void poison_cache(const struct side *b, const struct scene *s)
{
    const int block = s->opt.block_size;
    const size_t n = (size_t)block * (s->q_width > s->kv_width ? s->q_width : s->kv_width);
    const float *nan = blank(b, n), *from[2] = {nan, nan};
    float *q = blank(b, n), *k = blank(b, n);
    int32_t *rows = calloc((size_t)(2 * block), sizeof *rows), *positions = rows + block;
    for (int i = 0; i < block; i++) positions[i] = i;
    for (int32_t at = 0; at < s->n_blocks; at++) {
        const int32_t *table = &at;
        const struct op_batch batch = {.n_rows = block,
                                       .n_seqs = 1,
                                       .positions = positions,
                                       .seq_of_row = rows,
                                       .block_tables = &table};
        struct op_attention a = op_of(s);
        begin_side(b, &batch);
        for (a.layer = 0; a.layer < 2; a.layer++) b->ops->rope_kv(b->be, &a, q, k, from[1]);
        sync_side(b);
    }
    free(rows);
}

static struct side open_scene(const struct scene *s, bool gpu)
{
    struct side b = gpu ? open_gpu(&s->opt) : open_reference(&s->opt);
    struct error err;
    assert_int_equal(b.ops->kv_new(b.be, 2, s->opt.kv_heads, s->opt.head_dim, s->n_blocks,
                                   s->opt.block_size, &err),
                     CFG_OK);
    if (gpu) poison_cache(&b, s);
    return b;
}

/* The rows of a step, one sequence after the other; those that take none are left out. */
struct packed {
    int32_t positions[MAX_ROWS], seq_of_row[MAX_ROWS];
    const int32_t *tables[MAX_SEQS];
    int seq[MAX_SEQS];
    struct op_batch batch;
};

static void pack(const struct scene *s, const struct step *t, struct packed *p)
{
    int rows = 0, seqs = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        if (t->n[i] == 0) continue;
        p->seq[seqs] = i;
        p->tables[seqs] = s->tables + i * s->blocks_each;
        for (int r = 0; r < t->n[i]; r++, rows++) {
            assert_true(rows < MAX_ROWS);
            p->positions[rows] = t->from[i] + r;
            p->seq_of_row[rows] = seqs;
        }
        seqs++;
    }
    p->batch = (struct op_batch){.n_rows = rows,
                                 .n_seqs = seqs,
                                 .positions = p->positions,
                                 .seq_of_row = p->seq_of_row,
                                 .block_tables = p->tables};
}

static float *put_rows(const struct side *b, const struct packed *p, float *const *from,
                       size_t width)
{
    float *x = malloc((size_t)p->batch.n_rows * width * sizeof *x);
    assert_non_null(x);
    for (int r = 0; r < p->batch.n_rows; r++)
        memcpy(x + (size_t)r * width,
               from[p->seq[p->seq_of_row[r]]] + (size_t)p->positions[r] * width, width * sizeof *x);
    float *at = put(b, x, (size_t)p->batch.n_rows * width);
    free(x);
    return at;
}

static void run_step(const struct side *b, const struct scene *s, const struct step *t,
                     struct answers *out)
{
    static struct packed p;
    const struct op_attention a = op_of(s);
    pack(s, t, &p);
    const size_t n = (size_t)p.batch.n_rows * s->q_width;
    float *q = put_rows(b, &p, s->q, s->q_width), *k = put_rows(b, &p, s->k, s->kv_width);
    float *v = put_rows(b, &p, s->v, s->kv_width), *y = blank(b, n);
    float *host = malloc(n * sizeof *host);
    assert_non_null(host);
    begin_side(b, &p.batch);
    b->ops->rope_kv(b->be, &a, q, k, v);
    b->ops->attention(b->be, &a, q, y);
    get_feed(b, y, n, host);
    for (int r = 0; r < p.batch.n_rows; r++)
        memcpy(out->y[p.seq[p.seq_of_row[r]]] + (size_t)p.positions[r] * s->q_width,
               host + (size_t)r * s->q_width, s->q_width * sizeof *host);
    free(host);
}

/* Every sequence in one chunk, a step for each of them. */
static void run_whole(const struct side *b, const struct scene *s, struct answers *out)
{
    for (int i = 0; i < s->n_seqs; i++) {
        struct step t = {0};
        t.n[i] = s->length[i];
        run_step(b, s, &t, out);
    }
}

/* All together: chunks of any size first, the last `decodes` positions of each one by one. */
static void run_mixed(const struct side *b, const struct scene *s, int decodes, struct answers *out)
{
    int at[MAX_SEQS] = {0};
    for (bool more = true; more;) {
        struct step t = {0};
        int room = MAX_ROWS;
        more = false;
        for (int i = 0; i < s->n_seqs; i++) {
            const int left = s->length[i] - at[i];
            if (left == 0) continue;
            int n = left <= decodes ? 1 : 1 + below(left - decodes < 90 ? left - decodes : 90);
            if (n > room) continue;
            t.from[i] = at[i];
            t.n[i] = n;
            at[i] += n;
            room -= n;
            more = true;
        }
        if (more) run_step(b, s, &t, out);
    }
}

static void assert_answers(const struct scene *s, const struct answers *got,
                           const struct answers *want, float tolerance, const char *what)
{
    for (int i = 0; i < s->n_seqs; i++) {
        const size_t n = (size_t)s->length[i] * s->q_width;
        if (tolerance == 0)
            assert_same_bits(got->y[i], want->y[i], n, what);
        else
            assert_close(got->y[i], want->y[i], n, tolerance, what);
    }
}

static void check_scene(struct scene *s, int decodes)
{
    struct answers want = blank_answers(s), whole = blank_answers(s), mixed = blank_answers(s);
    struct side ref = open_scene(s, false), one = open_scene(s, true), two = open_scene(s, true);
    run_whole(&ref, s, &want);
    run_whole(&one, s, &whole);
    run_mixed(&two, s, decodes, &mixed);
    assert_answers(s, &whole, &want, s->opt.bf16 ? 1e-2f : 1e-5f, "attention");
    assert_answers(s, &mixed, &whole, 0, "attention in pieces");
    free_answers(&want), free_answers(&whole), free_answers(&mixed);
    close_side(&ref), close_side(&one), close_side(&two);
    free_scene(s);
}

/* heads, kv heads, head_dim, block */
static const int shapes[][4] = {
    {2, 2, 128, 16}, {3, 3, 64, 32}, {6, 2, 16, 16},   {20, 1, 24, 16},
    {4, 4, 32, 48},  {2, 1, 80, 64}, {10, 2, 120, 16}, {1, 1, 8, 16},
};
#define N_SHAPES (int)(sizeof shapes / sizeof *shapes)

static void every_shape_agrees(void **state)
{
    (void)state;
    /* around the edges of tiles, groups and pieces of queries */
    static const int lengths[][3] = {{1, 67, 150}, {64, 65, 17}, {2, 130, 63}, {16, 193, 33}};
    for (int i = 0; i < N_SHAPES; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct scene s = make_scene(bf16, shapes[i][0], shapes[i][1], shapes[i][2],
                                        shapes[i][3], 3, lengths[i % 4]);
            check_scene(&s, i == 0 ? 70 : 9);
        }
}

/* More sequences than a warp looks at once, prefilled and decoded in one step. */
static void many_sequences_agree(void **state)
{
    (void)state;
    int lengths[MAX_SEQS];
    for (int i = 0; i < MAX_SEQS; i++) lengths[i] = i % 7 == 0 ? 70 + i : 1 + i % 6;
    struct scene s = make_scene(true, 2, 2, 16, 16, MAX_SEQS, lengths);
    check_scene(&s, 2);
}

/* Large scores: one position has all the weight, others fall below what can be said. */
static void peaks_agree(void **state)
{
    (void)state;
    static const int lengths[] = {140};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct scene s = make_scene(bf16, 2, 2, 64, 16, 1, lengths);
        for (size_t i = 0; i < 140 * s.q_width; i++) s.q[0][i] *= 32;
        struct answers want = blank_answers(&s), got = blank_answers(&s);
        struct side ref = open_scene(&s, false), gpu = open_scene(&s, true);
        run_whole(&ref, &s, &want);
        run_whole(&gpu, &s, &got);
        /* rope makes q a number that is rounded once more: scores of some 100 are off by up to 0.2
         */
        assert_answers(&s, &got, &want, bf16 ? 0.15f : 1e-4f, "peaks");
        free_answers(&want), free_answers(&got);
        close_side(&ref), close_side(&gpu);
        free_scene(&s);
    }
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Half of a sequence's blocks move to others in the middle of it; where they were, NaN comes. */
static void copied_blocks_serve_as_well(void **state)
{
    (void)state;
    static const int lengths[] = {100};
    for (int kind = 0; kind < 3; kind++) {
        struct scene s = make_scene(kind > 0, 3, 3, 32, 16, 1, lengths);
        s.opt.kv_fp8 = kind == 2;
        s.n_blocks += 4;
        struct answers want = blank_answers(&s), got = blank_answers(&s);
        struct side one = open_scene(&s, true), two = open_scene(&s, true);
        struct step start = {.n = {90}}, rest = {.from = {90}, .n = {10}};
        run_step(&one, &s, &start, &want);
        run_step(&one, &s, &rest, &want);
        run_step(&two, &s, &start, &got);
        for (int b = 0; b < 4; b++) {
            const int32_t to = s.n_blocks - 1 - b, from = s.tables[b];
            two.ops->kv_copy(two.be, from, to);
            s.tables[b] = to;
            two.ops->kv_copy(two.be, 0, from);
        }
        run_step(&two, &s, &rest, &got);
        assert_answers(&s, &got, &want, 0, "copied blocks");
        free_answers(&want), free_answers(&got);
        close_side(&one), close_side(&two);
        free_scene(&s);
    }
}

/* ---- FP8 ------------------------------------------------------------------------------------- */

/* To e4m3 and back: 3 bits after the first, down to steps of 2^-9, up to 448. */
static float round_e4m3(float x)
{
    int exponent;
    (void)frexpf(x, &exponent);
    const float step = ldexpf(1, (exponent > -5 ? exponent : -5) - 4);
    const float r = rintf(x / step) * step;
    return r > 448 ? 448 : r < -448 ? -448 : r;
}

static void rotate(float *x, int head_dim, int position)
{
    const int half = head_dim / 2;
    for (int d = 0; d < half; d++) {
        const float angle = (float)position * (float)pow(THETA, -2.0 * d / head_dim);
        const float c = cosf(angle), s = sinf(angle), a = x[d], b = x[d + half];
        x[d] = a * c - b * s;
        x[d + half] = b * c + a * s;
    }
}

/* One head of one row over rotated and rounded keys. */
static void plain_attention(const struct scene *s, const float *q, const float *k, const float *v,
                            int position, float *y)
{
    const int hd = s->opt.head_dim;
    double sum = 0, out[128] = {0}, top = -INFINITY, scores[512];
    for (int p = 0; p <= position; p++) {
        scores[p] = 0;
        for (int d = 0; d < hd; d++)
            scores[p] += (double)q[d] * (double)k[(size_t)p * s->kv_width + (size_t)d];
        top = fmax(top, scores[p]);
    }
    for (int p = 0; p <= position; p++) {
        const double w = exp(scores[p] - top);
        sum += w;
        for (int d = 0; d < hd; d++)
            out[d] += w * (double)round_e4m3(v[(size_t)p * s->kv_width + (size_t)d]);
    }
    for (int d = 0; d < hd; d++) y[d] = (float)(out[d] / sum);
}

static void plain_answers(const struct scene *s, int i, struct answers *want)
{
    const int hd = s->opt.head_dim, group = s->opt.heads / s->opt.kv_heads, n = s->length[i];
    float *k = malloc((size_t)n * s->kv_width * sizeof *k), q[128];
    assert_non_null(k);
    memcpy(k, s->k[i], (size_t)n * s->kv_width * sizeof *k);
    for (int p = 0; p < n; p++)
        for (int h = 0; h < s->opt.kv_heads; h++) {
            float *x = k + (size_t)p * s->kv_width + (size_t)(h * hd);
            rotate(x, hd, p);
            for (int d = 0; d < hd; d++) x[d] = round_e4m3(x[d]);
        }
    for (int p = 0; p < n; p++)
        for (int h = 0; h < s->opt.heads; h++) {
            const size_t at = (size_t)p * s->q_width + (size_t)(h * hd),
                         kv = (size_t)(h / group * hd);
            memcpy(q, s->q[i] + at, (size_t)hd * sizeof *q);
            rotate(q, hd, p);
            for (int d = 0; d < hd; d++) q[d] = round_bf16(q[d]);
            plain_attention(s, q, k + kv, s->v[i] + kv, p, want->y[i] + at);
        }
    free(k);
}

static void fp8_agrees(void **state)
{
    (void)state;
    static const int fp8_shapes[][4] = {{2, 2, 128, 16}, {3, 3, 64, 32}, {4, 2, 48, 16}};
    static const int lengths[] = {1, 67, 135};
    for (int i = 0; i < 3; i++) {
        struct scene s = make_scene(true, fp8_shapes[i][0], fp8_shapes[i][1], fp8_shapes[i][2],
                                    fp8_shapes[i][3], 3, lengths);
        s.opt.kv_fp8 = true;
        struct answers want = blank_answers(&s), whole = blank_answers(&s),
                       mixed = blank_answers(&s);
        struct side one = open_scene(&s, true), two = open_scene(&s, true);
        for (size_t e = 0; e < 67 * s.kv_width; e += 5) {
            s.v[1][e] *= 0x1p-7f; /* steps of 2^-9 */
            s.v[1][e + 1] *= 600; /* beyond the range */
        }
        for (int q = 0; q < 3; q++) plain_answers(&s, q, &want);
        run_whole(&one, &s, &whole);
        run_mixed(&two, &s, 9, &mixed);
        assert_answers(&s, &whole, &want, 1e-2f, "attention in FP8");
        assert_answers(&s, &mixed, &whole, 0, "attention in FP8 in pieces");
        free_answers(&want), free_answers(&whole), free_answers(&mixed);
        close_side(&one), close_side(&two);
        free_scene(&s);
    }
}

static void widths_it_cannot_do_are_refused(void **state)
{
    (void)state;
    const struct {
        int head_dim, hidden;
        bool fp8;
        const char *word;
    } cases[] = {{20, 96, false, "head_dim"},
                 {136, 96, false, "head_dim"},
                 {24, 96, true, "fp8"},
                 {16, 16385, false, "hidden"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct backend_options opt = small_options(true);
        const struct ops *ops;
        void *be;
        struct error err;
        opt.head_dim = cases[i].head_dim;
        opt.hidden = cases[i].hidden;
        opt.kv_fp8 = cases[i].fp8;
        assert_int_equal(cuda_load(&ops, &be, &opt, &err), CFG_EUNSUPPORTED);
        if (!strstr(err.message, cases[i].word))
            fail_msg("\"%s\" does not name \"%s\"", err.message, cases[i].word);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_agrees), cmocka_unit_test(many_sequences_agree),
        cmocka_unit_test(peaks_agree),        cmocka_unit_test(copied_blocks_serve_as_well),
        cmocka_unit_test(fp8_agrees),         cmocka_unit_test(widths_it_cannot_do_are_refused),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
