// SPDX-License-Identifier: Apache-2.0
//
// test_checkpoint.c: safetensors files and model folders: the golden checkpoint in its three forms,
// and a table of malformed files that must be refused by file and tensor. Folders are made under
// /tmp; run from the repository's root (it reads tests/golden).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/checkpoint.h"
#include "tests/unit/tensor_image.h"

#define GOLDEN "tests/golden/tiny"

/* ---- safetensors files in memory ------------------------------------------------------------- */

/* A file with this header and n bytes of data (0, 1, 2, ...); malloc'd. */
static uint8_t *make_file(const char *header, size_t data_n, size_t *n)
{
    size_t header_n = strlen(header);
    uint8_t *p = malloc(8 + header_n + data_n);
    assert_non_null(p);
    for (size_t i = 0; i < 8; i++) p[i] = (uint8_t)(header_n >> (8 * i));
    memcpy(p + 8, header, header_n);
    for (size_t i = 0; i < data_n; i++) p[8 + header_n + i] = (uint8_t)i;
    *n = 8 + header_n + data_n;
    return p;
}

static int parse(const uint8_t *data, size_t n, size_t *n_tensors, struct error *err)
{
    return parse_image(safetensors_parse, "f.safetensors", data, n, n_tensors, err);
}

static const char two_tensors[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[12,20]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}   ";

static void test_two_tensors(void **state)
{
    struct tensor_list list = {0};
    struct error err = {0};
    size_t n = 0;
    (void)state;
    uint8_t *p = make_file(two_tensors, 20, &n);
    assert_int_equal(safetensors_parse("f", p, n, &list, &err), CFG_OK);
    assert_int_equal(list.n, 2);
    const struct tensor *b = &list.items[0], *a = &list.items[1];
    assert_string_equal(b->name, "b");
    assert_string_equal(b->file, "f");
    assert_int_equal(b->type, TENSOR_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dims[1], 2);
    assert_int_equal(b->bytes, 8);
    assert_int_equal(*(const uint8_t *)b->data, 12);
    assert_string_equal(a->name, "a");
    assert_int_equal(a->type, TENSOR_F32);
    assert_int_equal(a->n_dims, 1);
    assert_int_equal(a->dims[0], 3);
    assert_int_equal(a->bytes, 12);
    assert_int_equal(*(const uint8_t *)a->data, 0);
    tensor_list_free(&list);
    free(p);
}

#define TENSOR(name, dtype, shape, range)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" range "]}"

struct accepted {
    const char *header;
    size_t data_n, n_tensors;
};

static const struct accepted accepted[] = {
    {"{}", 0, 0},
    {"{" TENSOR("s", "F32", "", "0,4") "}", 4, 1},        /* a scalar */
    {"{" TENSOR("h", "F16", "1,1,1,3", "0,6") "}", 6, 1}, /* four dimensions */
    {"{" TENSOR("e", "F32", "0", "0,0") "}", 0, 1},       /* nothing in it */
    {"{" TENSOR("e", "F32", "4,0", "4,4") "," TENSOR("x", "F16", "2", "0,4") "}", 4, 2},
};

static void test_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        struct error err = {0};
        size_t n = 0, found = 0;
        uint8_t *p = make_file(accepted[i].header, accepted[i].data_n, &n);
        if (parse(p, n, &found, &err) != CFG_OK)
            fail_msg("%s: %s", accepted[i].header, err.message);
        assert_int_equal(found, accepted[i].n_tensors);
        free(p);
    }
}

struct refusal {
    const char *header;
    size_t data_n;
    const char *named; /* must be in the message, besides the file's name */
};

#define LONG_NAME                                                                                  \
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567"     \
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567"     \
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567"

static const struct refusal refusals[] = {
    {"", 0, "header"},
    {"x", 0, "header"},
    {"[]", 0, "header"},
    {" {}", 0, "header"},
    {"{]", 0, "header"},
    {"{}}", 0, "header"},
    {"{}", 1, "1 bytes at its end belong to no tensor"},
    {"{\"t\":7}", 0, "tensor t"},
    {"{\"t\":[]}", 0, "tensor t"},
    {"{\"t\":{}}", 0, "tensor t: dtype"},
    {"{\"t\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor t: dtype"},
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor t: shape"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "tensor t: shape"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor t: data_offsets"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":4}}", 4, "tensor t: data_offsets"},
    {"{" TENSOR("t", "F64", "1", "0,8") "}", 8, "tensor t: dtype F64"},
    {"{" TENSOR("t", "I64", "1", "0,8") "}", 8, "tensor t: dtype I64"},
    {"{" TENSOR("t", "BOOL", "1", "0,1") "}", 1, "tensor t: dtype BOOL"},
    {"{" TENSOR("t", "F8_E4M3", "1", "0,1") "}", 1, "tensor t: dtype F8_E4M3"},
    {"{" TENSOR("t", "f32", "1", "0,4") "}", 4, "tensor t: dtype f32"},
    {"{" TENSOR("t", "F32", "1", "0,4") "," TENSOR("t", "F32", "1", "4,8") "}", 8, "\"t\""},
    {"{" TENSOR("t", "F32", "-1", "0,4") "}", 4, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "1.5", "0,6") "}", 6, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "\"1\"", "0,4") "}", 4, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "1e300", "0,4") "}", 4, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "1,1,1,1,1", "0,4") "}", 4, "tensor t: more than 4 dimensions"},
    {"{" TENSOR("t", "F32", "4294967296,4294967296", "0,0") "}", 0, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "4611686018427387904", "0,0") "}", 0, "tensor t: shape"},
    {"{" TENSOR("t", "F32", "2", "0,4") "}", 4, "tensor t: its shape takes 8 bytes"},
    {"{" TENSOR("t", "F32", "1", "0,8") "}", 8, "tensor t: its shape takes 4 bytes"},
    {"{" TENSOR("t", "F32", "1", "4,0") "}", 4, "tensor t: data_offsets end before they begin"},
    {"{" TENSOR("t", "F32", "1", "-4,0") "}", 4, "tensor t: data_offsets"},
    {"{" TENSOR("t", "F32", "1", "0,4,8") "}", 8, "tensor t: data_offsets"},
    {"{" TENSOR("t", "F32", "1", "0") "}", 8, "tensor t: data_offsets"},
    {"{" TENSOR("t", "F32", "1", "0,4.5") "}", 8, "tensor t: data_offsets"},
    {"{" TENSOR("t", "F32", "1", "0,1e400") "}", 8, "header"},
    {"{" TENSOR("t", "F32", "1", "4,8") "}", 4, "tensor t ends at byte 8 of 4"},
    {"{" TENSOR("t", "F32", "1", "9007199254740992,9007199254740996") "}", 4, "tensor t"},
    {"{" TENSOR("t", "F32", "1", "4,8") "}", 8, "4 bytes before tensor t belong to none"},
    {"{" TENSOR("t", "F32", "1", "0,4") "}", 9, "5 bytes at its end"},
    {"{" TENSOR("t", "F32", "2", "0,8") "," TENSOR("u", "F32", "1", "4,8") "}", 8,
     "tensor u overlaps tensor t"},
    {"{" TENSOR("t", "F32", "1", "0,4") "," TENSOR("u", "F32", "1", "0,4") "}", 4, "overlaps"},
    {"{" TENSOR("t", "F32", "1", "0,4") "," TENSOR("u", "F32", "1", "8,12") "}", 12,
     "4 bytes before tensor u belong to none"},
    {"{" TENSOR("", "F32", "1", "0,4") "}", 4, "name"},
    {"{" TENSOR("a\\u0000b", "F32", "1", "0,4") "}", 4, "u0000"},
    {"{" TENSOR("a\\nb", "F32", "1", "0,4") "}", 4, "control characters"},
    {"{" TENSOR("a\xff", "F32", "1", "0,4") "}", 4, "UTF-8"},
    {"{" TENSOR(LONG_NAME, "F32", "1", "0,4") "}", 4, "name has 264 bytes"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[[1]],\"data_offsets\":[0,4]}}", 4, "tensor t: shape"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[[[1]]],\"data_offsets\":[0,4]}}", 4, "deep"},
};

static void refuse(const uint8_t *p, size_t n, const char *what, const char *named)
{
    struct error err = {0};
    size_t found = 0;
    if (parse(p, n, &found, &err) == CFG_OK) fail_msg("accepted: %s", what);
    if (!strstr(err.message, named) || !strstr(err.message, "f.safetensors"))
        fail_msg("%s\nsays \"%s\", not \"%s\"", what, err.message, named);
}

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        size_t n = 0;
        uint8_t *p = make_file(refusals[i].header, refusals[i].data_n, &n);
        refuse(p, n, refusals[i].header, refusals[i].named);
        free(p);
    }
}

/* No header length may be believed, nor lead to an allocation of its size. */
static void test_header_lengths(void **state)
{
    static const uint64_t lengths[] = {0,          1,          23,         1000,          104857601,
                                       1ULL << 40, 1ULL << 63, UINT64_MAX, UINT64_MAX - 7};
    (void)state;
    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
        size_t n = 0;
        uint8_t *p = make_file("{}                    ", 0, &n);
        for (size_t i = 0; i < 8; i++) p[i] = (uint8_t)(lengths[k] >> (8 * i));
        refuse(p, n, "header length", "header");
        free(p);
    }
}

static void test_every_truncation_fails(void **state)
{
    struct error err = {0};
    size_t n = 0, found = 0;
    (void)state;
    uint8_t *p = make_file(two_tensors, 20, &n);
    assert_int_equal(parse(p, n, &found, &err), CFG_OK);
    for (size_t k = 0; k < n; k++) refuse(p, k, "truncated", "");
    free(p);
}

/* Any byte may be damaged; parse() checks that what is accepted still lies inside the file. */
static void test_every_byte_damaged(void **state)
{
    static const uint8_t values[] = {0, 1, '0', '9', '"', '{', '[', 0x7f, 0x80, 0xff};
    struct error err = {0};
    size_t n = 0, found = 0, refused = 0;
    (void)state;
    uint8_t *p = make_file(two_tensors, 20, &n);
    for (size_t k = 0; k < n - 20; k++) {
        uint8_t kept = p[k];
        for (size_t v = 0; v < sizeof values; v++) {
            p[k] = values[v];
            if (parse(p, n, &found, &err) != CFG_OK) refused++;
        }
        p[k] = kept;
    }
    assert_true(refused > n); /* most damage is seen */
    free(p);
}

/* ---- folders --------------------------------------------------------------------------------- */

static char folder[64];

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void put(const char *name, const void *data, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

/* One shard of F32 scalars, one for each letter of `names`. */
static void put_shard(const char *name, const char *names)
{
    char header[1024] = "{";
    size_t at = 1, n = 0;
    for (size_t i = 0; names[i]; i++)
        at +=
            (size_t)snprintf(header + at, sizeof header - at,
                             "%s\"%c\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[%zu,%zu]}",
                             i ? "," : "", names[i], 4 * i, 4 * i + 4);
    snprintf(header + at, sizeof header - at, "}");
    uint8_t *p = make_file(header, 4 * strlen(names), &n);
    put(name, p, n);
    free(p);
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test_checkpoint.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {
        "model.safetensors", "model.safetensors.index.json", "a.safetensors", "b.safetensors",
        "pytorch_model.bin", "pytorch_model.bin.index.json", "blob"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        unlink(path_of(names[i]));
        rmdir(path_of(names[i]));
    }
    return rmdir(folder);
}

static void open_refused(const char *what, int code, const char *named)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    int rc = checkpoint_open(&c, folder, &err);
    if (rc == CFG_OK) fail_msg("accepted: %s", what);
    assert_null(c);
    if (rc != code || !strstr(err.message, named))
        fail_msg("%s\nsays \"%s\" (%d), not \"%s\" (%d)", what, err.message, rc, named, code);
}

#define INDEX(map) "{\"metadata\":{\"total_size\":8},\"weight_map\":{" map "}}"

static void test_index(void **state)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    (void)state;
    put_shard("a.safetensors", "xz");
    put_shard("b.safetensors", "y");
    put_text("model.safetensors.index.json",
             INDEX("\"y\":\"b.safetensors\",\"x\":\"a.safetensors\",\"z\":\"a.safetensors\""));
    assert_int_equal(checkpoint_open(&c, folder, &err), CFG_OK);
    assert_int_equal(checkpoint_count(c), 3);
    assert_string_equal(checkpoint_at(c, 0)->name, "x");
    assert_string_equal(checkpoint_at(c, 1)->name, "y");
    assert_string_equal(checkpoint_at(c, 2)->name, "z");
    assert_null(checkpoint_at(c, 3));
    assert_string_equal(checkpoint_find(c, "y")->file, "b.safetensors");
    assert_string_equal(checkpoint_find(c, "z")->file, "a.safetensors");
    assert_int_equal(*(const uint8_t *)checkpoint_find(c, "z")->data, 4);
    assert_null(checkpoint_find(c, "w"));
    assert_null(checkpoint_find(c, ""));
    checkpoint_will_need(checkpoint_find(c, "z"));
    checkpoint_done_with(checkpoint_find(c, "z"));
    assert_int_equal(*(const uint8_t *)checkpoint_find(c, "z")->data, 4); /* advice only */
    checkpoint_close(c);
}

struct index_case {
    const char *index;
    int code;
    const char *named;
};

static const struct index_case index_cases[] = {
    {"", CFG_EINVAL, "model.safetensors.index.json"},
    {"{", CFG_EINVAL, "model.safetensors.index.json"},
    {"[]", CFG_EINVAL, "weight_map"},
    {"{}", CFG_EINVAL, "weight_map"},
    {"{\"weight_map\":{}}", CFG_EINVAL, "weight_map"},
    {"{\"weight_map\":[\"x\"]}", CFG_EINVAL, "weight_map"},
    {INDEX("\"x\":7"), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\".\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"..\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"/etc/passwd\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"../a.safetensors\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"s/a.safetensors\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"a.safetensors\\n\""), CFG_EINVAL, "tensor x"},
    {INDEX("\"x\":\"c.safetensors\""), CFG_ENOTFOUND, "c.safetensors"},
    {INDEX("\"x\":\"a.safetensors\",\"x\":\"b.safetensors\""), CFG_EINVAL, "\"x\""},
    /* named, but not there */
    {INDEX("\"x\":\"a.safetensors\",\"w\":\"a.safetensors\",\"z\":\"a.safetensors\""),
     CFG_ENOTFOUND, "a.safetensors: tensor w"},
    /* there, but not named */
    {INDEX("\"x\":\"a.safetensors\""), CFG_EINVAL, "a.safetensors: tensor z"},
    /* in another shard */
    {INDEX("\"x\":\"a.safetensors\",\"y\":\"a.safetensors\",\"z\":\"b.safetensors\""), CFG_EINVAL,
     "tensor y is in b.safetensors"},
};

static void test_index_refusals(void **state)
{
    (void)state;
    put_shard("a.safetensors", "xz");
    put_shard("b.safetensors", "y");
    for (size_t i = 0; i < sizeof index_cases / sizeof index_cases[0]; i++) {
        put_text("model.safetensors.index.json", index_cases[i].index);
        open_refused(index_cases[i].index, index_cases[i].code, index_cases[i].named);
    }
}

static void test_name_in_two_shards(void **state)
{
    (void)state;
    put_shard("a.safetensors", "xz");
    put_shard("b.safetensors", "yx");
    put_text("model.safetensors.index.json",
             INDEX("\"y\":\"b.safetensors\",\"x\":\"a.safetensors\",\"z\":\"a.safetensors\""));
    open_refused("x in both", CFG_EINVAL, "tensor x occurs twice");
}

/* A malformed shard is named even when it is the second one. */
static void test_bad_shard(void **state)
{
    (void)state;
    put_shard("a.safetensors", "x");
    put_text("b.safetensors", "not one");
    put_text("model.safetensors.index.json",
             INDEX("\"y\":\"b.safetensors\",\"x\":\"a.safetensors\""));
    open_refused("text", CFG_EINVAL, "b.safetensors");
    put_text("b.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    open_refused("LFS", CFG_EINVAL, "Git LFS pointer");
    put_text("b.safetensors", "");
    open_refused("empty", CFG_EINVAL, "b.safetensors is empty");
    unlink(path_of("b.safetensors"));
    assert_int_equal(mkdir(path_of("b.safetensors"), 0700), 0);
    open_refused("folder", CFG_EINVAL, "b.safetensors is not a regular file");
    rmdir(path_of("b.safetensors"));
    assert_int_equal(mkfifo(path_of("b.safetensors"), 0600), 0);
    open_refused("fifo", CFG_EINVAL, "b.safetensors is not a regular file");
}

static void test_order_of_layouts(void **state)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    (void)state;
    open_refused("nothing", CFG_ENOTFOUND, "holds no weights");
    put_text("pytorch_model.bin", "junk");
    open_refused("bin", CFG_EINVAL, "pytorch_model.bin:");
    put_text("pytorch_model.bin.index.json", "junk");
    open_refused("bin index", CFG_EINVAL, "pytorch_model.bin.index.json");
    put_shard("model.safetensors", "");
    open_refused("no tensors", CFG_EINVAL, "model.safetensors: no tensors");
    put_shard("model.safetensors", "x");
    assert_int_equal(checkpoint_open(&c, folder, &err), CFG_OK);
    assert_int_equal(checkpoint_count(c), 1);
    checkpoint_close(c);
    put_text("model.safetensors.index.json", "junk");
    open_refused("index", CFG_EINVAL, "model.safetensors.index.json");
}

/* The hub's cache holds links to blobs; one that leads nowhere must not look like an absent file.
 */
static void test_symlinks(void **state)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    (void)state;
    put_text("pytorch_model.bin", "junk");
    put_shard("blob", "x");
    assert_int_equal(symlink("blob", path_of("model.safetensors")), 0);
    assert_int_equal(checkpoint_open(&c, folder, &err), CFG_OK);
    assert_string_equal(checkpoint_at(c, 0)->file, "model.safetensors");
    checkpoint_close(c);
    unlink(path_of("blob"));
    open_refused("dangling", CFG_ENOTFOUND, "model.safetensors");
}

static void test_no_folder(void **state)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    (void)state;
    assert_int_equal(checkpoint_open(&c, "/tmp/there/is/none", &err), CFG_ENOTFOUND);
    assert_non_null(strstr(err.message, "/tmp/there/is/none"));
    assert_int_equal(checkpoint_open(&c, GOLDEN "/config.json", &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "not a folder"));
    checkpoint_close(NULL);
}

/* ---- golden ---------------------------------------------------------------------------------- */

static struct checkpoint *open_golden(const char *path)
{
    struct checkpoint *c = NULL;
    struct error err = {0};
    if (checkpoint_open(&c, path, &err) != CFG_OK) fail_msg("%s: %s", path, err.message);
    assert_int_equal(checkpoint_count(c), 49);
    return c;
}

static uint32_t f32_bits(const struct tensor *t, size_t i)
{
    uint32_t bits;
    memcpy(&bits, (const uint8_t *)t->data + 4 * i, 4);
    return bits;
}

/* The three forms hold the very same numbers: all are BF16 values, the low half of an F32 is 0. */
static void test_golden_forms_agree(void **state)
{
    struct checkpoint *f32 = open_golden(GOLDEN), *bf16 = open_golden(GOLDEN "/bf16");
    struct checkpoint *torch = open_golden(GOLDEN "/torch");
    size_t numbers = 0;
    (void)state;
    for (size_t k = 0; k < checkpoint_count(f32); k++) {
        const struct tensor *a = checkpoint_at(f32, k);
        const struct tensor *b = checkpoint_find(bf16, a->name);
        const struct tensor *t = checkpoint_find(torch, a->name);
        assert_non_null(b);
        assert_non_null(t);
        assert_int_equal(a->type, TENSOR_F32);
        assert_int_equal(b->type, TENSOR_BF16);
        assert_int_equal(t->type, TENSOR_F32);
        assert_int_equal(a->n_dims, b->n_dims);
        assert_int_equal(a->n_dims, t->n_dims);
        assert_memory_equal(a->dims, b->dims, sizeof a->dims);
        assert_memory_equal(a->dims, t->dims, sizeof a->dims);
        assert_int_equal(a->bytes, 2 * b->bytes);
        assert_int_equal(a->bytes, t->bytes);
        assert_memory_equal(a->data, t->data, a->bytes);
        for (size_t i = 0; i < a->bytes / 4; i++, numbers++) {
            uint16_t half;
            memcpy(&half, (const uint8_t *)b->data + 2 * i, 2);
            assert_int_equal(f32_bits(a, i), (uint32_t)half << 16);
        }
    }
    assert_int_equal(numbers, 657088);
    const struct tensor *e = checkpoint_find(f32, "model.layers.1.mlp.experts.wi_gate");
    assert_int_equal(e->n_dims, 3);
    assert_int_equal(e->dims[0], 8);
    assert_int_equal(e->dims[1], 64);
    assert_int_equal(e->dims[2], 192);
    assert_string_equal(checkpoint_find(bf16, "lm_head.weight")->file,
                        "model-00002-of-00002.safetensors");
    assert_string_equal(checkpoint_find(torch, "lm_head.weight")->file,
                        "pytorch_model-00002-of-00002.bin");
    checkpoint_close(f32);
    checkpoint_close(bf16);
    checkpoint_close(torch);
}

static void test_types(void **state)
{
    (void)state;
    assert_int_equal(tensor_type_size(TENSOR_F32), 4);
    assert_int_equal(tensor_type_size(TENSOR_BF16), 2);
    assert_int_equal(tensor_type_size(TENSOR_F16), 2);
    assert_string_equal(tensor_type_name(TENSOR_F32), "F32");
    assert_string_equal(tensor_type_name(TENSOR_BF16), "BF16");
    assert_string_equal(tensor_type_name(TENSOR_F16), "F16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_two_tensors),
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_header_lengths),
        cmocka_unit_test(test_every_truncation_fails),
        cmocka_unit_test(test_every_byte_damaged),
        cmocka_unit_test_setup_teardown(test_index, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_index_refusals, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_name_in_two_shards, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_bad_shard, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_order_of_layouts, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_symlinks, make_folder, remove_folder),
        cmocka_unit_test(test_no_folder),
        cmocka_unit_test(test_golden_forms_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
