// SPDX-License-Identifier: Apache-2.0
//
// test_torchbin.c: torch.save files made in memory: what is read from good ones, and tables of
// malformed archives and of tensors that do not fit their storage, which must be refused by name.
#include <stdio.h>
#include <stdlib.h>

#include "engine/checkpoint.h"
#include "tests/unit/tensor_image.h"
#include "tests/unit/torchfile.h"

/* The archive with a pickle of these tensors and storages "0" (24 bytes: 0, 1, ...), "1" (8 bytes)
 * and "odd" (7 bytes). */
static void archive_of(struct zip *z, const struct spec *specs, size_t n, const char *byteorder)
{
    struct cfg_buf p = {0};
    uint8_t bytes[24];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)i;
    OP(&p, "\x80\x02}(");
    for (size_t i = 0; i < n; i++) tensor(&p, &specs[i]);
    OP(&p, "u.");
    zip_add(z, "m/data.pkl", p.data, p.len);
    if (byteorder) zip_add(z, "m/byteorder", byteorder, strlen(byteorder));
    zip_add(z, "m/data/0", bytes, sizeof bytes);
    zip_add(z, "m/data/1", bytes, 8);
    zip_add(z, "m/data/odd", bytes, 7);
    zip_add(z, "m/version", "3\n", 2);
    zip_end(z);
    cfg_buf_free(&p);
}

/* ---- reading --------------------------------------------------------------------------------- */

static int parse(const void *data, size_t n, struct error *err)
{
    return parse_image(torchbin_parse, "f.bin", data, n, NULL, err);
}

static void refuse(const void *data, size_t n, const char *what, const char *named)
{
    struct error err = {0};
    if (parse(data, n, &err) == CFG_OK) fail_msg("accepted: %s", what);
    if (!strstr(err.message, named) || !strstr(err.message, "f.bin"))
        fail_msg("%s\nsays \"%s\", not \"%s\"", what, err.message, named);
}

static void check_good(const struct zip *z)
{
    struct tensor_list l = {0};
    struct error err = {0};
    if (torchbin_parse("f.bin", (const uint8_t *)z->b.data, z->b.len, &l, &err) != CFG_OK)
        fail_msg("%s", err.message);
    assert_int_equal(l.n, 5);
    assert_string_equal(l.items[0].name, "w");
    assert_string_equal(l.items[0].file, "f.bin");
    assert_int_equal(l.items[0].type, TENSOR_F32);
    assert_int_equal(l.items[0].n_dims, 2);
    assert_int_equal(l.items[0].dims[0], 2);
    assert_int_equal(l.items[0].dims[1], 3);
    assert_int_equal(l.items[0].bytes, 24);
    assert_int_equal(((const uint8_t *)l.items[0].data)[23], 23);
    assert_int_equal(l.items[1].type, TENSOR_F16);
    assert_int_equal(l.items[1].bytes, 6);
    assert_int_equal(*(const uint8_t *)l.items[1].data, 2);
    assert_int_equal(l.items[2].type, TENSOR_BF16);
    assert_int_equal(l.items[2].bytes, 8);
    assert_int_equal(l.items[3].n_dims, 0);
    assert_int_equal(l.items[3].bytes, 4);
    assert_int_equal(*(const uint8_t *)l.items[3].data, 20);
    assert_int_equal(l.items[4].bytes, 0);
    tensor_list_free(&l);
}

static void test_good(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        struct zip z = {.wide = wide};
        archive_of(&z, good, 5, wide ? "little" : NULL);
        check_good(&z);
        cfg_buf_free(&z.b);
    }
}

static void test_comment_at_the_end(void **state)
{
    struct zip z = {0};
    (void)state;
    archive_of(&z, good, 5, NULL);
    z.b.data[z.eocd + 20] = 30;
    cfg_buf_puts(&z.b, "PK\5\6 a comment of thirty bytes");
    check_good(&z);
    z.b.data[z.eocd + 20] = 29;
    refuse(z.b.data, z.b.len, "wrong comment length", "end of its ZIP archive");
    cfg_buf_free(&z.b);
}

/* ---- tensors that do not fit their storage --------------------------------------------------- */

struct bad_tensor {
    struct spec spec;
    const char *named;
};

static const struct bad_tensor bad_tensors[] = {
    {{"t", "LongStorage", "0", 3, 0, 1, {3}, {1}}, "tensor t is a torch.LongStorage"},
    {{"t", "IntStorage", "0", 6, 0, 1, {6}, {1}}, "tensor t is a torch.IntStorage"},
    {{"t", "BoolStorage", "0", 24, 0, 1, {6}, {1}}, "tensor t is a torch.BoolStorage"},
    {{"t", "DoubleStorage", "0", 3, 0, 1, {3}, {1}}, "tensor t is a torch.DoubleStorage"},
    {{"t", "OddStorage", "0", 3, 0, 1, {3}, {1}}, "torch.OddStorage"},
    {{"t", "FloatStorage", "2", 6, 0, 1, {6}, {1}}, "tensor t: its entry data/2 is missing"},
    {{"t", "FloatStorage", "", 6, 0, 1, {6}, {1}}, "tensor t: its entry data/ is missing"},
    {{"t", "FloatStorage", "00", 6, 0, 1, {6}, {1}}, "tensor t: its entry data/00"},
    {{"t", "FloatStorage", "../version", 6, 0, 1, {6}, {1}}, "data/../version is missing"},
    {{"t", "FloatStorage", "0", 7, 0, 1, {6}, {1}}, "tensor t: entry data/0 has 24 bytes"},
    {{"t", "FloatStorage", "0", 5, 0, 1, {5}, {1}}, "tensor t: entry data/0 has 24 bytes"},
    {{"t", "HalfStorage", "0", 6, 0, 1, {6}, {1}}, "tensor t: entry data/0 has 24 bytes"},
    {{"t", "FloatStorage", "odd", 1, 0, 1, {1}, {1}}, "tensor t: entry data/odd has 7 bytes"},
    {{"t", "FloatStorage", "0", INT64_MAX, 0, 1, {6}, {1}}, "tensor t: entry data/0"},
    {{"t", "FloatStorage", "0", -6, 0, 1, {6}, {1}}, "no storage"},
    {{"t", "FloatStorage", "0", 6, 0, 1, {7}, {1}}, "tensor t: 7 numbers from 0 on"},
    {{"t", "FloatStorage", "0", 6, 4, 1, {3}, {1}}, "tensor t: 3 numbers from 4 on"},
    {{"t", "FloatStorage", "0", 6, 7, 1, {0}, {1}}, "tensor t: 0 numbers from 7 on"},
    {{"t", "FloatStorage", "0", 6, INT64_MAX, 1, {3}, {1}}, "tensor t: 3 numbers from"},
    {{"t", "FloatStorage", "0", 6, -1, 1, {3}, {1}}, "tensor t: a negative"},
    {{"t", "FloatStorage", "0", 6, 0, 1, {-1}, {1}}, "tensor t: a negative"},
    {{"t", "FloatStorage", "0", 6, 0, 2, {2, 3}, {1, 2}}, "tensor t is not contiguous"},
    {{"t", "FloatStorage", "0", 6, 0, 1, {3}, {2}}, "tensor t is not contiguous"},
    {{"t", "FloatStorage", "0", 6, 0, 1, {6}, {0}}, "tensor t is not contiguous"},
    {{"t", "FloatStorage", "0", 6, 5, 1, {6}, {-1}}, "tensor t is not contiguous"},
    {{"t", "FloatStorage", "0", 6, 0, 2, {1LL << 40, 1LL << 40}, {1LL << 40, 1}}, "tensor t"},
    {{"t", "FloatStorage", "0", 6, 0, 1, {1LL << 62}, {1}}, "tensor t"},
    {{"t", "FloatStorage", "0", 6, 0, 5, {1, 1, 1, 1, 6}, {6, 6, 6, 6, 1}}, "5 dimensions"},
    {{"", "FloatStorage", "0", 6, 0, 1, {6}, {1}}, "name has 0 bytes"},
    {{"a\nb", "FloatStorage", "0", 6, 0, 1, {6}, {1}}, "control characters"},
    {{"a\xff", "FloatStorage", "0", 6, 0, 1, {6}, {1}}, "UTF-8"},
};

static void test_bad_tensors(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_tensors / sizeof bad_tensors[0]; i++) {
        struct zip z = {0};
        archive_of(&z, &bad_tensors[i].spec, 1, NULL);
        refuse(z.b.data, z.b.len, bad_tensors[i].named, bad_tensors[i].named);
        cfg_buf_free(&z.b);
    }
}

/* ---- damaged archives ------------------------------------------------------------------------ */

enum anchor { FILE_START, LOCAL, CENTRAL, EOCD, LOCATOR, EOCD64 };

/* `bytes` little-endian bytes at `offset` from the anchor (entry 2 is m/data/0) become `value`. */
struct damage {
    enum anchor anchor;
    size_t offset;
    int bytes;
    uint64_t value;
    bool wide;
    const char *named;
};

static const struct damage damages[] = {
    {EOCD, 0, 4, 0, false, "end of its ZIP archive is missing"},
    {EOCD, 4, 2, 1, false, "several parts"},
    {EOCD, 8, 2, 5, false, "several parts"},
    {EOCD, 8, 4, 0, false, "as many entries"},
    {EOCD, 8, 4, 0x70007000, false, "as many entries"},
    {EOCD, 8, 4, 0x00050005, false, "more than its entries"},
    {EOCD, 8, 4, 0x00070007, false, "directory of its ZIP archive is damaged"},
    {EOCD, 8, 4, 0xffffffff, false, "ZIP64"},
    {EOCD, 12, 4, 1, false, "not where"},
    {EOCD, 12, 4, 0xfffffffe, false, "not where"},
    {EOCD, 16, 4, 0, false, "not where"},
    {EOCD, 16, 4, 0xfffffffe, false, "not where"},
    {EOCD, 16, 4, 0xffffffff, false, "ZIP64"},
    {CENTRAL, 0, 4, 0, false, "damaged"},
    {CENTRAL, 8, 2, 0x0809, false, "entry m/data/0: it is encrypted"},
    {CENTRAL, 8, 2, 0x0848, false, "entry m/data/0: it is encrypted"},
    {CENTRAL, 8, 2, 0x2808, false, "entry m/data/0: it is encrypted"},
    {CENTRAL, 8, 2, 0x0800, false, "entry m/data/0: its local header disagrees"},
    {CENTRAL, 10, 2, 8, false, "entry m/data/0 is compressed (method 8)"},
    {CENTRAL, 10, 2, 93, false, "entry m/data/0 is compressed (method 93)"},
    {CENTRAL, 20, 4, 23, false, "entry m/data/0: it has two sizes"},
    {CENTRAL, 20, 8, 0x0fffffff0fffffff, false, "entry m/data/0: it would lie outside"},
    {CENTRAL, 20, 8, 0xfffffffefffffffe, false, "entry m/data/0: it would lie outside"},
    {CENTRAL, 20, 8, 0xffffffffffffffff, false, "entry m/data/0: its ZIP64 field"},
    {CENTRAL, 20, 8, 0x0000002c0000002c, false, "overlaps"},
    {CENTRAL, 28, 2, 0, false, ""},
    {CENTRAL, 28, 2, 0xffff, false, "damaged"},
    {CENTRAL, 30, 2, 0xffff, false, "damaged"},
    {CENTRAL, 32, 2, 0xffff, false, "damaged"},
    {CENTRAL, 42, 4, 0, false, "entry m/data/0: its local header has another name"},
    {CENTRAL, 42, 4, 1, false, "entry m/data/0: there is no local header"},
    {CENTRAL, 42, 4, 0x7fffffff, false, "entry m/data/0: it would lie outside"},
    {CENTRAL, 42, 4, 0xffffffff, false, "entry m/data/0: its ZIP64 field"},
    {CENTRAL, 46, 1, 0, false, "control characters in its name"},
    {CENTRAL, 46, 1, 'n', false, "another name"},
    {CENTRAL, 53, 1, '1', false, "another name"},
    {LOCAL, 0, 4, 0, false, "entry m/data/0: there is no local header"},
    {LOCAL, 6, 2, 0x0809, false, "entry m/data/0: its local header disagrees"},
    {LOCAL, 8, 2, 8, false, "entry m/data/0: its local header disagrees"},
    {LOCAL, 18, 4, 5, false, "entry m/data/0: its local header disagrees"},
    {LOCAL, 22, 4, 5, false, "entry m/data/0: its local header disagrees"},
    {LOCAL, 26, 2, 3, false, "another name"},
    {LOCAL, 26, 2, 0xffff, false, "entry m/data/0: it would lie outside"},
    {LOCAL, 28, 2, 0xffff, false, "entry m/data/0: it would lie outside"},
    {LOCAL, 30, 1, 'x', false, "another name"},
    {LOCATOR, 0, 4, 0, true, "ZIP64"},
    {LOCATOR, 4, 4, 1, true, "ZIP64"},
    {LOCATOR, 8, 8, 0, true, "ZIP64"},
    {LOCATOR, 8, 8, UINT64_MAX, true, "ZIP64"},
    {LOCATOR, 8, 8, 1ULL << 62, true, "ZIP64"},
    {EOCD64, 0, 4, 0, true, "ZIP64"},
    {EOCD64, 4, 8, 0, true, "ZIP64"},
    {EOCD64, 4, 8, UINT64_MAX, true, "ZIP64"},
    {EOCD64, 16, 4, 1, true, "ZIP64"},
    {EOCD64, 24, 8, 1, true, "ZIP64"},
    {EOCD64, 32, 8, UINT64_MAX, true, "ZIP64"},
    {EOCD64, 40, 8, UINT64_MAX, true, "not where"},
    {EOCD64, 48, 8, UINT64_MAX, true, "not where"},
    {EOCD64, 48, 8, 0, true, "not where"},
    {CENTRAL, 60, 2, 2, true, "entry m/data/0: its ZIP64 field"},      /* no such field */
    {CENTRAL, 62, 2, 23, true, "entry m/data/0: its ZIP64 field"},     /* too short for three */
    {CENTRAL, 62, 2, 0xffff, true, "entry m/data/0: its ZIP64 field"}, /* past the extra */
    {CENTRAL, 64, 8, UINT64_MAX, true, "entry m/data/0: it has two sizes"},
    {CENTRAL, 80, 8, UINT64_MAX, true, "entry m/data/0: it would lie outside"},
};

static void test_damaged_archives(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        const struct damage *d = &damages[i];
        struct zip z = {.wide = d->wide};
        char what[32];
        archive_of(&z, good, 5, "little");
        assert_string_equal(z.names[2], "m/data/0");
        const size_t at[] = {[FILE_START] = 0, [LOCAL] = z.local[2],    [CENTRAL] = z.central[2],
                             [EOCD] = z.eocd,  [LOCATOR] = z.eocd - 20, [EOCD64] = z.eocd - 76};
        for (int k = 0; k < d->bytes; k++)
            z.b.data[at[d->anchor] + d->offset + (size_t)k] = (char)(d->value >> (8 * k));
        snprintf(what, sizeof what, "damage %zu", i);
        refuse(z.b.data, z.b.len, what, d->named);
        cfg_buf_free(&z.b);
    }
}

static void test_every_truncation_fails(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        struct zip z = {.wide = wide};
        archive_of(&z, good, 5, "little");
        for (size_t n = 0; n < z.b.len; n++) refuse(z.b.data, n, "truncated", "");
        cfg_buf_free(&z.b);
    }
}

/* Any byte may be damaged; parse() checks that what is accepted still lies inside the file. */
static void test_every_byte_damaged(void **state)
{
    static const uint8_t values[] = {0, 1, '(', '.', 'R', 0x7f, 0x80, 0x85, 0xff};
    size_t refused = 0;
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        struct zip z = {.wide = wide};
        archive_of(&z, good, 5, "little");
        for (size_t k = 0; k < z.b.len; k++) {
            char kept = z.b.data[k];
            for (size_t v = 0; v < sizeof values; v++) {
                struct error err = {0};
                z.b.data[k] = (char)values[v];
                if (parse(z.b.data, z.b.len, &err) != CFG_OK) refused++;
            }
            z.b.data[k] = kept;
        }
        assert_true(refused > z.b.len); /* most damage is seen */
        check_good(&z);
        cfg_buf_free(&z.b);
    }
}

static void test_odd_archives(void **state)
{
    static const char old[] = "\x80\x02\x8a\x0al\xfc\x9c" /* the magic number, as a pickle */
                              "F\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    struct zip z = {0};
    (void)state;
    refuse("", 0, "empty", "no torch.save file");
    refuse("PK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 22, "no entries", "entries");
    refuse(old, sizeof old - 1, "old", "old form of torch.save");

    zip_add(&z, "m/data/0", "abcd", 4);
    zip_end(&z);
    refuse(z.b.data, z.b.len, "no pickle", "data.pkl");
    cfg_buf_free(&z.b);

    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", "\x80\x02}.", 4);
    zip_add(&z, "n/data.pkl", "\x80\x02}.", 4);
    zip_end(&z);
    refuse(z.b.data, z.b.len, "two pickles", "data.pkl");
    cfg_buf_free(&z.b);

    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", "\x80\x02}.", 4);
    zip_add(&z, "m/data.pkl", "\x80\x02}.", 4);
    zip_end(&z);
    refuse(z.b.data, z.b.len, "the same entry twice", "entry m/data.pkl: it occurs twice");
    cfg_buf_free(&z.b);

    struct error err = {0};
    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", "\x80\x02}.", 4);
    zip_add(&z, "m/n/data.pkl", "no pickle", 9); /* deeper: not the one */
    zip_end(&z);
    assert_int_equal(parse(z.b.data, z.b.len, &err), CFG_OK);
    cfg_buf_free(&z.b);

    static const char *const orders[] = {"big", "bigend", "", "little\n"};
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        z = (struct zip){0};
        archive_of(&z, good, 5, orders[i]);
        refuse(z.b.data, z.b.len, orders[i], "byteorder");
        cfg_buf_free(&z.b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_comment_at_the_end),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_damaged_archives),
        cmocka_unit_test(test_every_truncation_fails),
        cmocka_unit_test(test_every_byte_damaged),
        cmocka_unit_test(test_odd_archives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
