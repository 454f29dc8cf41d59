// SPDX-License-Identifier: Apache-2.0
//
// fuzz_safetensors.c: any bytes as a safetensors file. What is accepted must lie inside the file
// and cover its data exactly once.
#include <stdlib.h>

#include "engine/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tensor_list list = {0};
    struct error err = {0};
    size_t sum = 0;
    int rc = safetensors_parse("fuzz.safetensors", data, n, &list, &err);
    for (size_t i = 0; i < list.n; i++) {
        const struct tensor *t = &list.items[i];
        const uint8_t *at = t->data;
        if (at < data || at > data + n || t->bytes > (size_t)(data + n - at)) abort();
        sum += t->bytes;
    }
    if (sum > n && rc == CFG_OK) abort();
    if (rc != CFG_OK && !err.message[0]) abort();
    tensor_list_free(&list);
    return 0;
}
