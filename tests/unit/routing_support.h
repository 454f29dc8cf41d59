// SPDX-License-Identifier: Apache-2.0
//
// routing_support.h: what the tests of the routing table share: opening and teaching one, asking
// about one expert, and a file in a folder of its own (make_folder, remove_folder: setup
// and teardown of a test).
#ifndef OPENMOED_TEST_ROUTING_SUPPORT_H
#define OPENMOED_TEST_ROUTING_SUPPORT_H

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/routing_table.h"

enum { MAX_ENTRIES = 64 }; /* of one token, in the shapes these tests use */

static char folder[64], path[96];

static inline struct routing_table *open_table(int layers, int experts, int topk, int vocab)
{
    const struct routing_shape shape = {layers, experts, topk, vocab};
    struct routing_table *t = NULL;
    struct error err = {0};
    if (routing_table_open(&t, &shape, &err)) fail_msg("%s", err.message);
    return t;
}

/* Learns n rows of one token in a table of one layer and two choices. */
static inline void learn(struct routing_table *t, int32_t token, int32_t first, int32_t second,
                         int n)
{
    const int32_t picks[2] = {first, second};
    for (int i = 0; i < n; i++) routing_table_learn(t, token, picks, 2);
}

static inline int load_of(const struct routing_table *t, int32_t token, int index)
{
    struct routing_load out[MAX_ENTRIES];
    int n = routing_table_expect(t, token, out), load = 0;
    for (int i = 0; i < n; i++)
        if (out[i].index == index) load += out[i].load;
    return load;
}

static inline int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test_routing_table.XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/table", folder);
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder); /* fails, and so the test, when a file was left beside the table */
}

static inline void save(const struct routing_table *t)
{
    struct error err = {0};
    if (routing_table_save(t, path, &err)) fail_msg("%s", err.message);
}

static inline void load(struct routing_table *t)
{
    struct error err = {0};
    if (routing_table_load(t, path, &err)) fail_msg("%s", err.message);
}

#endif
