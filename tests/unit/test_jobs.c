// SPDX-License-Identifier: Apache-2.0
//
// test_jobs.c: the table from job id to request, against a plain array as the model: dense and
// scattered ids, growth, and removal in the middle of a chain of collisions.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/jobs.h"

enum { MODEL = 4096 };

static char owners[MODEL];

/* Only the address matters: the table never looks inside. */
static struct request *owner(size_t i)
{
    return (struct request *)(void *)&owners[i];
}

static void empty_table(void **state)
{
    struct jobs t = {0};
    (void)state;
    assert_null(jobs_find(&t, 1));
    jobs_remove(&t, 1);
    assert_int_equal(jobs_reserve(&t, 1), 0);
    assert_null(jobs_find(&t, 1));
    assert_null(jobs_find(&t, 0));
    jobs_free(&t);
    assert_int_equal(t.capacity, 0);
}

static void room_is_kept(void **state)
{
    struct jobs t = {0};
    (void)state;
    assert_int_equal(jobs_reserve(&t, 1000), 0);
    assert_true(t.capacity >= 2000);
    assert_int_equal(t.capacity & (t.capacity - 1), 0);
    const struct job_slot *before = t.slots;
    for (uint64_t id = 1; id <= 1000; id++) jobs_add(&t, id, owner(id % MODEL));
    assert_int_equal(jobs_reserve(&t, 0), 0);
    assert_ptr_equal(t.slots, before);
    assert_int_equal(jobs_reserve(&t, t.capacity), 0);
    for (uint64_t id = 1; id <= 1000; id++) assert_ptr_equal(jobs_find(&t, id), owner(id % MODEL));
    jobs_free(&t);
}

/* Random additions and removals; every id is looked up again and again. */
static void agrees_with_an_array(uint64_t stride)
{
    struct jobs t = {0};
    bool in[MODEL] = {0};
    size_t n = 0;
    uint32_t x = 12345;
    for (int round = 0; round < 60000; round++) {
        x = x * 1664525u + 1013904223u;
        /* Phases of growing and of shrinking. */
        const size_t k = (x >> 8) % (round / 20000 % 2 == 0 ? MODEL : 300);
        const uint64_t id = 1 + k * stride;
        if (in[k]) {
            assert_ptr_equal(jobs_find(&t, id), owner(k));
            jobs_remove(&t, id);
            n--;
        } else {
            assert_null(jobs_find(&t, id));
            assert_int_equal(jobs_reserve(&t, 1), 0);
            jobs_add(&t, id, owner(k));
            n++;
        }
        in[k] = !in[k];
        assert_int_equal(t.used, n);
        if (round % 997 != 0) continue;
        for (size_t i = 0; i < MODEL; i++)
            assert_ptr_equal(jobs_find(&t, 1 + i * stride), in[i] ? owner(i) : NULL);
    }
    jobs_free(&t);
}

static void dense_ids(void **state)
{
    (void)state;
    agrees_with_an_array(1);
}

static void scattered_ids(void **state)
{
    (void)state;
    agrees_with_an_array(UINT64_C(0x1000193000F1));
}

/* Ids that all begin at the same place: found by trial, removed from the front, middle and end. */
static void one_chain(void **state)
{
    struct jobs t = {0};
    uint64_t ids[8];
    size_t n = 0;
    (void)state;
    assert_int_equal(jobs_reserve(&t, 16), 0);
    for (uint64_t id = 1; n < 8; id++) {
        jobs_add(&t, id, owner(0));
        /* The last slot of the array: the chain wraps around to the first. */
        if (t.slots[t.capacity - 1].id == id) ids[n++] = id;
        jobs_remove(&t, id);
    }
    for (size_t i = 0; i < n; i++) jobs_add(&t, ids[i], owner(i));
    static const size_t order[8] = {3, 0, 7, 1, 6, 2, 5, 4};
    for (size_t k = 0; k < n; k++) {
        jobs_remove(&t, ids[order[k]]);
        assert_null(jobs_find(&t, ids[order[k]]));
        for (size_t later = k + 1; later < n; later++)
            assert_ptr_equal(jobs_find(&t, ids[order[later]]), owner(order[later]));
    }
    assert_int_equal(t.used, 0);
    jobs_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_table), cmocka_unit_test(room_is_kept),
        cmocka_unit_test(dense_ids),   cmocka_unit_test(scattered_ids),
        cmocka_unit_test(one_chain),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
