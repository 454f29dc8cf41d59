// SPDX-License-Identifier: Apache-2.0
//
// golden.h: what several tests need of tests/golden/tiny: the published implementation's numbers
// (golden.json) and an engine over one of the checkpoint's forms. Tests run from the repository's
// root.
#ifndef OPENMOED_TEST_GOLDEN_H
#define OPENMOED_TEST_GOLDEN_H

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "tests/unit/device.h"

#define TINY_VOCAB  512
#define TINY_BLOCKS 128 /* of 16 tokens */

static inline cJSON *golden_open(void)
{
    struct error err;
    char *text;
    size_t n;
    if (cfg_read_file("tests/golden/tiny/golden.json", 8 << 20, &text, &n, &err) != CFG_OK)
        fail_msg("%s", err.message);
    cJSON *root = cJSON_ParseWithLength(text, n);
    free(text);
    assert_non_null(root);
    return root;
}

static inline size_t golden_ints(const cJSON *list, int32_t *out)
{
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list) out[n++] = item->valueint;
    return n;
}

static inline const cJSON *golden_get(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!item) fail_msg("golden.json has no \"%s\"", name);
    return item;
}

static inline struct engine_options tiny_options(const char *folder)
{
    return (struct engine_options){.model = folder,
                                   .device = test_device(),
                                   .dtype = CFG_DTYPE_F32,
                                   .cpu_isa = "auto",
                                   .threads = 2,
                                   .block_size = 16,
                                   .kv_bytes =
                                       (size_t)TINY_BLOCKS * 16 * 4 * 2 * 96 * sizeof(float),
                                   .max_step_tokens = 256,
                                   .max_step_seqs = 64};
}

static inline struct engine *engine_of(const struct engine_options *opt)
{
    struct error err;
    struct engine *e = NULL;
    if (engine_open(&e, opt, &err) != CFG_OK || engine_load(e, NULL, &err) != CFG_OK)
        fail_msg("%s", err.message);
    return e;
}

#endif
