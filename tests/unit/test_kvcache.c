// SPDX-License-Identifier: Apache-2.0
//
// test_kvcache.c: the block pool and block tables (kvcache/kvcache.h). What must hold throughout: a
// block is free or in exactly one table, and a failed reservation takes nothing.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kvcache/kvcache.h"

static struct kv_pool *pool_of(int n_blocks, int block_size)
{
    struct kv_pool *p;
    struct error err;
    assert_int_equal(kv_pool_open(&p, n_blocks, block_size, &err), CFG_OK);
    return p;
}

static void refuses_impossible_sizes(void **state)
{
    (void)state;
    struct kv_pool *p;
    struct kv_table t;
    struct error err;
    assert_int_equal(kv_pool_open(&p, 0, 16, &err), CFG_EINVAL);
    assert_null(p);
    assert_int_equal(kv_pool_open(&p, 4, 0, &err), CFG_EINVAL);
    assert_null(p);
    assert_int_equal(kv_table_init(&t, 0, &err), CFG_EINVAL);
    assert_null(t.blocks);
    kv_pool_close(NULL);
}

static void counts_blocks_for_tokens(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(7, 16);
    assert_int_equal(kv_pool_total(p), 7);
    assert_int_equal(kv_pool_block_size(p), 16);
    assert_int_equal(kv_blocks_for(p, 0), 0);
    assert_int_equal(kv_blocks_for(p, 1), 1);
    assert_int_equal(kv_blocks_for(p, 16), 1);
    assert_int_equal(kv_blocks_for(p, 17), 2);
    assert_int_equal(kv_blocks_for(p, SIZE_MAX), INT_MAX);
    kv_pool_close(p);
}

static void grows_in_order_and_keeps_what_it_has(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(8, 16);
    struct kv_table t;
    struct error err;
    assert_int_equal(kv_table_init(&t, 4, &err), CFG_OK);
    assert_int_equal(kv_table_reserve(p, &t, 17, &err), CFG_OK);
    assert_int_equal(t.n, 2);
    assert_int_equal(kv_pool_free_blocks(p), 6);
    int32_t first[2] = {t.blocks[0], t.blocks[1]};
    assert_int_equal(kv_table_reserve(p, &t, 32, &err), CFG_OK); /* covered already */
    assert_int_equal(kv_table_reserve(p, &t, 3, &err), CFG_OK);  /* never shrinks */
    assert_int_equal(t.n, 2);
    assert_int_equal(kv_table_reserve(p, &t, 64, &err), CFG_OK);
    assert_int_equal(t.n, 4);
    assert_memory_equal(t.blocks, first, sizeof(first));
    assert_int_equal(kv_table_reserve(p, &t, 65, &err), CFG_EINVAL); /* beyond its capacity */
    assert_int_equal(t.n, 4);
    kv_table_release(p, &t);
    assert_int_equal(kv_pool_free_blocks(p), 8);
    assert_null(t.blocks);
    kv_table_release(p, &t); /* harmless on a zeroed table */
    assert_int_equal(kv_pool_free_blocks(p), 8);
    kv_pool_close(p);
}

static void a_full_pool_takes_nothing(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(3, 16);
    struct kv_table a, b;
    struct error err = {0};
    assert_int_equal(kv_table_init(&a, 2, &err), CFG_OK);
    assert_int_equal(kv_table_init(&b, 2, &err), CFG_OK);
    assert_int_equal(kv_table_reserve(p, &a, 32, &err), CFG_OK);
    assert_int_equal(kv_table_reserve(p, &b, 32, &err), CFG_EFULL);
    assert_non_null(strstr(err.message, "1 are free"));
    assert_int_equal(b.n, 0);
    assert_int_equal(kv_pool_free_blocks(p), 1);
    kv_table_release(p, &a);
    assert_int_equal(kv_table_reserve(p, &b, 32, &err), CFG_OK);
    kv_table_release(p, &b);
    kv_pool_close(p);
}

/* Every block free or in one table: count them all. */
static void check_ownership(const struct kv_pool *p, const struct kv_table *tables, int n_tables)
{
    int owners[37] = {0};
    int taken = 0;
    for (int i = 0; i < n_tables; i++)
        for (int k = 0; k < tables[i].n; k++, taken++) {
            assert_in_range(tables[i].blocks[k], 0, 36);
            assert_int_equal(++owners[tables[i].blocks[k]], 1);
        }
    assert_int_equal(taken + kv_pool_free_blocks(p), 37);
}

static void blocks_have_one_owner(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(37, 4);
    struct kv_table tables[9] = {{0}};
    struct error err;
    unsigned seed = 11;
    int full = 0;
    for (int round = 0; round < 4000; round++) {
        struct kv_table *t = &tables[rand_r(&seed) % 9];
        if (!t->blocks) assert_int_equal(kv_table_init(t, 12, &err), CFG_OK);
        if (rand_r(&seed) % 4 == 0) {
            kv_table_release(p, t);
        } else {
            int before = t->n, left = kv_pool_free_blocks(p);
            size_t tokens = (size_t)(rand_r(&seed) % 49);
            int rc = kv_table_reserve(p, t, tokens, &err);
            if (rc) {
                assert_int_equal(rc, CFG_EFULL);
                assert_true(kv_blocks_for(p, tokens) - before > left);
                assert_int_equal(t->n, before);
                full++;
            }
        }
        check_ownership(p, tables, 9);
    }
    assert_true(full > 0);
    for (int i = 0; i < 9; i++) kv_table_release(p, &tables[i]);
    assert_int_equal(kv_pool_free_blocks(p), 37);
    kv_pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_impossible_sizes),
        cmocka_unit_test(counts_blocks_for_tokens),
        cmocka_unit_test(grows_in_order_and_keeps_what_it_has),
        cmocka_unit_test(a_full_pool_takes_nothing),
        cmocka_unit_test(blocks_have_one_owner),
    };
    return cmocka_run_group_tests_name("kvcache", tests, NULL, NULL);
}
