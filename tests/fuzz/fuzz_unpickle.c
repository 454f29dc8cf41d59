// SPDX-License-Identifier: Apache-2.0
//
// fuzz_unpickle.c: any bytes as a torch.save file, and the same bytes as a pickle alone, which
// spares the fuzzer the search for a valid ZIP around it. What is accepted must lie inside the
// file.
#include <stdlib.h>

#include "engine/checkpoint.h"
#include "engine/unpickle.h"

struct bytes {
    const uint8_t *data;
    size_t n;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_inside(const struct bytes *b, const void *p, size_t n)
{
    const uint8_t *at = p;
    if (at < b->data || at > b->data + b->n || n > (size_t)(b->data + b->n - at)) abort();
}

static int found(void *user, const struct unpickle_tensor *t, struct error *err)
{
    (void)err;
    check_inside(user, t->name, t->name_n);
    check_inside(user, t->key, t->key_n);
    if (t->offset < 0 || t->numel < 0 || t->n_dims < 0 || t->n_dims > TENSOR_MAX_DIMS) abort();
    return CFG_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct bytes b = {.data = data, .n = n};
    struct tensor_list list = {0};
    struct error err = {0};
    int rc = torchbin_parse("fuzz.bin", data, n, &list, &err);
    for (size_t i = 0; i < list.n; i++) check_inside(&b, list.items[i].data, list.items[i].bytes);
    if (rc != CFG_OK && !err.message[0]) abort();
    tensor_list_free(&list);

    err = (struct error){0};
    rc = unpickle_tensors("fuzz.bin", data, n, found, &b, &err);
    if (rc != CFG_OK && !err.message[0]) abort();
    return 0;
}
