// SPDX-License-Identifier: Apache-2.0
//
// safetensors.c: one safetensors file: 8 bytes of header length (little-endian), a JSON header that
// maps names to dtype, shape and byte range, then the numbers. Everything the header says is
// checked against the file before it is believed; as the format demands, the ranges cover the data
// without holes, overlaps or a rest. Pure functions of the bytes given; nothing is copied but
// names.
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"

#define LENGTH_BYTES     8
#define MAX_HEADER_BYTES ((size_t)100 << 20) /* the bound of the format's own reader */
#define MAX_EXACT        9007199254740992.0  /* 2^53: integers a JSON number holds exactly */

/* Where a tensor lies in the data part, for the check of coverage. */
struct range {
    size_t begin, end;
    const char *name;
};

/* One tensor's line of the header while it is read. */
struct entry {
    const char *file;
    const cJSON *json; /* its string is the tensor's name */
};

static int fail_entry(const struct entry *e, struct error *err, const char *what)
{
    return cfg_fail(err, CFG_EINVAL, "%s: tensor %.256s: %s", e->file, e->json->string, what);
}

/* A JSON number that is a whole number in [0, 2^53]. */
static bool whole_number(const cJSON *j, int64_t *out)
{
    if (!cJSON_IsNumber(j)) return false;
    double d = j->valuedouble;
    if (!(d >= 0 && d <= MAX_EXACT)) return false;
    *out = (int64_t)d;
    return (double)*out == d;
}

static int read_dtype(const struct entry *e, struct tensor *t, struct error *err)
{
    static const enum tensor_type types[] = {TENSOR_F32, TENSOR_BF16, TENSOR_F16};
    const cJSON *j = cJSON_GetObjectItemCaseSensitive(e->json, "dtype");
    if (!cJSON_IsString(j)) return fail_entry(e, err, "dtype is missing or no string");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(j->valuestring, tensor_type_name(types[i])) == 0) {
            t->type = types[i];
            return CFG_OK;
        }
    }
    return cfg_fail(err, CFG_EUNSUPPORTED,
                    "%s: tensor %.256s: dtype %.32s cannot be used, only F32, BF16 and F16",
                    e->file, e->json->string, j->valuestring);
}

/* Reads the shape; t->bytes becomes the bytes it takes. */
static int read_shape(const struct entry *e, struct tensor *t, struct error *err)
{
    const cJSON *j = cJSON_GetObjectItemCaseSensitive(e->json, "shape");
    if (!cJSON_IsArray(j)) return fail_entry(e, err, "shape is missing or no list");
    t->bytes = tensor_type_size(t->type);
    for (const cJSON *d = j->child; d; d = d->next) {
        int64_t dim = 0;
        if (t->n_dims == TENSOR_MAX_DIMS)
            return fail_entry(e, err, "more than 4 dimensions: no tensor of an OpenMoE model");
        if (!whole_number(d, &dim)) return fail_entry(e, err, "shape holds no whole number");
        if (__builtin_mul_overflow(t->bytes, (size_t)dim, &t->bytes))
            return fail_entry(e, err, "shape is too large to be true");
        t->dims[t->n_dims++] = dim;
    }
    return CFG_OK;
}

/* Reads data_offsets, relative to the data part of data_n bytes. */
static int read_range(const struct entry *e, const struct tensor *t, size_t data_n,
                      struct range *out, struct error *err)
{
    const cJSON *j = cJSON_GetObjectItemCaseSensitive(e->json, "data_offsets");
    int64_t begin = 0, end = 0;
    if (!cJSON_IsArray(j) || cJSON_GetArraySize(j) != 2 || !whole_number(j->child, &begin) ||
        !whole_number(j->child->next, &end))
        return fail_entry(e, err, "data_offsets are not two whole numbers");
    if (begin > end) return fail_entry(e, err, "data_offsets end before they begin");
    if ((size_t)end > data_n)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: tensor %.256s ends at byte %lld of %zu bytes of data: the file is cut "
                        "short or its header is wrong",
                        e->file, e->json->string, (long long)end, data_n);
    if ((size_t)(end - begin) != t->bytes)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: tensor %.256s: its shape takes %zu bytes, its data_offsets hold %lld",
                        e->file, e->json->string, t->bytes, (long long)(end - begin));
    *out = (struct range){.begin = (size_t)begin, .end = (size_t)end, .name = e->json->string};
    return CFG_OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return 0;
}

/* The ranges, sorted, must follow each other from 0 to data_n. */
static int check_coverage(const char *file, struct range *ranges, size_t n, size_t data_n,
                          struct error *err)
{
    size_t at = 0;
    if (n > 0) qsort(ranges, n, sizeof *ranges, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (ranges[i].begin < at)
            return cfg_fail(err, CFG_EINVAL, "%s: tensor %.200s overlaps tensor %.200s", file,
                            ranges[i].name, ranges[i - 1].name);
        if (ranges[i].begin > at)
            return cfg_fail(err, CFG_EINVAL, "%s: %zu bytes before tensor %.256s belong to none",
                            file, ranges[i].begin - at, ranges[i].name);
        at = ranges[i].end;
    }
    if (at != data_n)
        return cfg_fail(err, CFG_EINVAL, "%s: %zu bytes at its end belong to no tensor", file,
                        data_n - at);
    return CFG_OK;
}

/* `data` is the data part. ranges has room for every child of root; *n of them are filled. */
static int read_entries(const char *file, const cJSON *root, const uint8_t *data, size_t data_n,
                        struct range *ranges, size_t *n, struct tensor_list *out, struct error *err)
{
    for (const cJSON *j = root->child; j; j = j->next) {
        const struct entry e = {.file = file, .json = j};
        struct tensor t = {.file = file};
        if (strcmp(j->string, "__metadata__") == 0) continue; /* free text about the file */
        if (!cJSON_IsObject(j)) return fail_entry(&e, err, "its header entry is no object");
        int rc = read_dtype(&e, &t, err);
        if (rc == CFG_OK) rc = read_shape(&e, &t, err);
        if (rc == CFG_OK) rc = read_range(&e, &t, data_n, &ranges[*n], err);
        if (rc != CFG_OK) return rc;
        t.data = data + ranges[*n].begin;
        rc = tensor_list_add(out, &t, j->string, strlen(j->string), err);
        if (rc != CFG_OK) return rc;
        (*n)++;
    }
    return CFG_OK;
}

/* The header's text, or an error when its length cannot be true. */
static int find_header(const char *file, const uint8_t *data, size_t n, size_t *header_n,
                       struct error *err)
{
    uint64_t len = 0;
    if (n < LENGTH_BYTES)
        return cfg_fail(err, CFG_EINVAL, "%s: %zu bytes are too few for a safetensors file", file,
                        n);
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) len = len << 8 | data[i];
    if (len > n - LENGTH_BYTES)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: its header would have %llu bytes, the file has %zu: cut short, or no "
                        "safetensors file",
                        file, (unsigned long long)len, n);
    if (len > MAX_HEADER_BYTES)
        return cfg_fail(err, CFG_EINVAL, "%s: its header of %llu bytes is over the limit of %zu",
                        file, (unsigned long long)len, MAX_HEADER_BYTES);
    if (len < 2 || data[LENGTH_BYTES] != '{')
        return cfg_fail(err, CFG_EINVAL, "%s: no safetensors file: its header is no JSON object",
                        file);
    *header_n = (size_t)len;
    return CFG_OK;
}

int safetensors_parse(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                      struct error *err)
{
    /* a tensor's entry has about 20 structural characters */
    const struct cfg_json_limits limits = {
        .max_bytes = MAX_HEADER_BYTES, .max_values = 4000000, .max_depth = 4};
    size_t header_n = 0, n_ranges = 0, count = 0;
    cJSON *root = NULL;
    struct error inner;
    int rc = find_header(file, data, n, &header_n, err);
    if (rc != CFG_OK) return rc;
    rc = cfg_json_parse(&root, (const char *)data + LENGTH_BYTES, header_n, &limits, &inner);
    if (rc != CFG_OK) return cfg_fail(err, rc, "%s: header: %.400s", file, inner.message);
    for (const cJSON *j = root->child; j; j = j->next) count++;
    struct range *ranges = calloc(count + 1, sizeof *ranges);
    if (!ranges) {
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for %zu tensors of %s", count, file);
        goto delete_json;
    }
    const uint8_t *body = data + LENGTH_BYTES + header_n;
    size_t body_n = n - LENGTH_BYTES - header_n;
    rc = read_entries(file, root, body, body_n, ranges, &n_ranges, out, err);
    if (rc == CFG_OK) rc = check_coverage(file, ranges, n_ranges, body_n, err);
    free(ranges);
delete_json:
    cJSON_Delete(root);
    return rc;
}
