// SPDX-License-Identifier: Apache-2.0
//
// tensor_image.h: how the tests of both file formats parse an image of a file: from an exactly
// sized copy, so that a sanitizer sees any step past its end, checking that every tensor listed
// lies inside it.
#ifndef OPENMOED_TEST_TENSOR_IMAGE_H
#define OPENMOED_TEST_TENSOR_IMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/checkpoint.h"

typedef int tensor_parser(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                          struct error *err);

/* *n_tensors (may be NULL): how many were listed. */
static inline int parse_image(tensor_parser *parser, const char *file, const void *data, size_t n,
                              size_t *n_tensors, struct error *err)
{
    uint8_t *copy = malloc(n ? n : 1);
    struct tensor_list list = {0};
    assert_non_null(copy);
    if (n) memcpy(copy, data, n);
    int rc = parser(file, copy, n, &list, err);
    for (size_t i = 0; i < list.n; i++) {
        const uint8_t *at = list.items[i].data;
        assert_true(at >= copy && at <= copy + n);
        assert_true(list.items[i].bytes <= (size_t)(copy + n - at));
    }
    if (n_tensors) *n_tensors = list.n;
    tensor_list_free(&list);
    free(copy);
    return rc;
}

#endif
