// SPDX-License-Identifier: Apache-2.0
//
// test_kvcache.c: the block pool and block tables (kvcache/kvcache.h). What must hold throughout: a
// block is free or has as many references as tables hold it, nobody writes into a block that
// another table reads, and a call that fails changes nothing. The prefix tree has test_prefix.c.
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

static struct kv_table table_of(struct kv_pool *p, int capacity, size_t n_tokens)
{
    struct kv_table t;
    struct error err;
    assert_int_equal(kv_table_init(&t, capacity, &err), CFG_OK);
    assert_int_equal(kv_table_reserve(p, &t, n_tokens, &err), CFG_OK);
    return t;
}

static void check(const struct kv_pool *p, const struct kv_table *a, const struct kv_table *b)
{
    const struct kv_table *tables[] = {a, b};
    struct error err;
    if (kv_check(p, NULL, tables, 2, &err)) fail_msg("%s", err.message);
}

static void a_block_is_free_at_its_last_reference(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(2, 16);
    int32_t a = kv_block_take(p), b = kv_block_take(p);
    assert_int_equal(a + b, 1);
    assert_int_equal(kv_block_take(p), -1);
    kv_block_ref(p, a);
    assert_int_equal(kv_block_refs(p, a), 2);
    kv_block_unref(p, a);
    assert_int_equal(kv_pool_free_blocks(p), 0);
    kv_block_unref(p, a);
    assert_int_equal(kv_block_refs(p, a), 0);
    assert_int_equal(kv_pool_free_blocks(p), 1);
    assert_int_equal(kv_block_take(p), a);
    kv_block_unref(p, a);
    kv_block_unref(p, b);
    assert_int_equal(kv_pool_used(p), 0);
    assert_int_equal(kv_pool_peak(p), 2);
    kv_pool_close(p);
}

static void the_peak_counts_a_shared_block_once(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(8, 4);
    struct error err;
    struct kv_table a = table_of(p, 4, 12), b = table_of(p, 4, 0);
    assert_int_equal(kv_table_fork(p, &a, 12, &b, &err), CFG_OK);
    assert_int_equal(kv_pool_used(p), 3);
    assert_int_equal(kv_table_reserve(p, &b, 16, &err), CFG_OK);
    kv_table_release(p, &a);
    assert_int_equal(kv_pool_used(p), 4); /* what b holds */
    kv_table_release(p, &b);
    assert_int_equal(kv_pool_used(p), 0);
    assert_int_equal(kv_pool_peak(p), 4);
    kv_pool_close(p);
}

static void a_fork_shares_every_block(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(4, 4);
    struct error err;
    struct kv_table a = table_of(p, 4, 10), b = table_of(p, 3, 0);
    assert_int_equal(kv_table_fork(p, &a, 10, &b, &err), CFG_OK);
    assert_int_equal(b.n, 3);
    assert_memory_equal(a.blocks, b.blocks, 3 * sizeof(int32_t));
    for (int i = 0; i < 3; i++) assert_int_equal(kv_block_refs(p, a.blocks[i]), 2);
    assert_int_equal(kv_pool_free_blocks(p), 1);
    check(p, &a, &b);
    kv_table_release(p, &a);
    assert_int_equal(kv_pool_free_blocks(p), 1);
    kv_table_release(p, &b);
    assert_int_equal(kv_pool_free_blocks(p), 4);
    kv_pool_close(p);
}

static void a_fork_needs_an_empty_table_with_room(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(4, 4);
    struct error err;
    struct kv_table a = table_of(p, 3, 9), small = table_of(p, 2, 0), taken = table_of(p, 4, 1);
    assert_int_equal(kv_table_fork(p, &a, 9, &small, &err), CFG_EINVAL);
    assert_int_equal(small.n, 0);
    assert_int_equal(kv_table_fork(p, &a, 9, &taken, &err), CFG_EINVAL);
    assert_int_equal(taken.n, 1);
    assert_int_equal(kv_table_fork(p, &a, 13, &small, &err), CFG_EINVAL); /* a has no such place */
    assert_int_equal(kv_table_fork(p, &a, 8, &small, &err), CFG_OK); /* two blocks of the three */
    assert_int_equal(small.n, 2);
    assert_int_equal(kv_block_refs(p, a.blocks[1]), 2);
    assert_int_equal(kv_block_refs(p, a.blocks[2]), 1);
    kv_table_release(p, &small);
    check(p, &a, &taken);
    kv_table_release(p, &a);
    kv_table_release(p, &taken);
    kv_pool_close(p);
}

static void a_shared_block_is_copied_before_it_is_written(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(4, 4);
    struct error err;
    struct kv_copy copy = {9, 9};
    struct kv_table a = table_of(p, 3, 10), b = table_of(p, 3, 0);
    assert_int_equal(kv_table_make_writable(p, &a, 9, &copy, &err), CFG_OK); /* its own */
    assert_int_equal(copy.src, -1);
    assert_int_equal(copy.dst, -1);
    assert_int_equal(kv_table_fork(p, &a, 10, &b, &err), CFG_OK);
    int32_t shared = a.blocks[2];
    assert_int_equal(kv_table_make_writable(p, &b, 10, &copy, &err), CFG_OK);
    assert_int_equal(copy.src, shared);
    assert_int_equal(copy.dst, b.blocks[2]);
    assert_int_not_equal(b.blocks[2], shared);
    assert_int_equal(a.blocks[2], shared);
    assert_memory_equal(a.blocks, b.blocks, 2 * sizeof(int32_t)); /* the others stay shared */
    assert_int_equal(kv_block_refs(p, shared), 1);
    check(p, &a, &b);
    /* Now each has its own: neither needs another copy. */
    assert_int_equal(kv_table_make_writable(p, &a, 10, &copy, &err), CFG_OK);
    assert_int_equal(copy.src, -1);
    assert_int_equal(kv_table_make_writable(p, &b, 11, &copy, &err), CFG_OK);
    assert_int_equal(copy.src, -1);
    kv_table_release(p, &a);
    kv_table_release(p, &b);
    assert_int_equal(kv_pool_free_blocks(p), 4);
    kv_pool_close(p);
}

static void a_copy_that_can_not_be_had_changes_nothing(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(2, 4);
    struct error err = {0};
    struct kv_copy copy = {9, 9};
    struct kv_table a = table_of(p, 2, 8), b = table_of(p, 2, 0);
    assert_int_equal(kv_table_fork(p, &a, 8, &b, &err), CFG_OK);
    assert_int_equal(kv_table_make_writable(p, &b, 4, &copy, &err), CFG_EFULL);
    assert_int_equal(err.code, CFG_EFULL);
    assert_int_equal(copy.src, -1);
    assert_memory_equal(a.blocks, b.blocks, 2 * sizeof(int32_t));
    assert_int_equal(kv_table_make_writable(p, &b, 8, &copy, &err), CFG_EINVAL); /* not covered */
    assert_int_equal(kv_table_make_writable(p, &b, SIZE_MAX, &copy, &err), CFG_EINVAL);
    check(p, &a, &b);
    kv_table_release(p, &a); /* now b is the only holder and writes in place */
    assert_int_equal(kv_table_make_writable(p, &b, 4, &copy, &err), CFG_OK);
    assert_int_equal(copy.src, -1);
    kv_table_release(p, &b);
    kv_pool_close(p);
}

static void expect_fault(const struct kv_pool *p, const struct kv_table *t, int n,
                         const char *message)
{
    struct error err = {0};
    assert_int_equal(kv_check(p, NULL, &t, n, &err), CFG_EINTERNAL);
    if (!strstr(err.message, message)) fail_msg("\"%s\" says nothing of %s", err.message, message);
}

static void the_check_finds_wrong_counts(void **state)
{
    (void)state;
    struct kv_pool *p = pool_of(4, 4);
    struct kv_table t = table_of(p, 4, 8);
    const struct kv_table *one = &t;
    struct error err;
    assert_int_equal(kv_check(p, NULL, &one, 1, &err), CFG_OK);
    expect_fault(p, &t, 0, "0 references counted, 1 kept"); /* a table nobody told of: a leak */
    int32_t kept = t.blocks[1];
    kv_block_ref(p, kept);
    expect_fault(p, &t, 1, "1 references counted, 2 kept");
    kv_block_unref(p, kept);
    t.blocks[1] = t.blocks[0];
    expect_fault(p, &t, 1, "twice");
    t.blocks[1] = 4;
    expect_fault(p, &t, 1, "no block");
    t.blocks[1] = 3; /* a free one */
    expect_fault(p, &t, 1, "references");
    t.blocks[1] = kept;
    t.n = 5;
    expect_fault(p, &t, 1, "room for 4");
    t.n = 2;
    assert_int_equal(kv_check(p, NULL, &one, 1, &err), CFG_OK);
    kv_table_release(p, &t);
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
        cmocka_unit_test(a_block_is_free_at_its_last_reference),
        cmocka_unit_test(the_peak_counts_a_shared_block_once),
        cmocka_unit_test(a_fork_shares_every_block),
        cmocka_unit_test(a_fork_needs_an_empty_table_with_room),
        cmocka_unit_test(a_shared_block_is_copied_before_it_is_written),
        cmocka_unit_test(a_copy_that_can_not_be_had_changes_nothing),
        cmocka_unit_test(the_check_finds_wrong_counts),
    };
    return cmocka_run_group_tests_name("kvcache", tests, NULL, NULL);
}
