// SPDX-License-Identifier: Apache-2.0
//
// test_prefix.c: the tree of cached prefixes (kvcache/kvcache.h), case by case: what is found, what
// must never be found, what is evicted and when, and that kv_check sees each kind of damage. The
// same code against a model, over random operations, is in test_kv_model.c. Blocks are of 4 tokens
// here; a chat is written as a string, one token a letter.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdlib.h>
#include <string.h>

#include "kvcache/internal.h"
#include "kvcache/kvcache.h"

#define BLOCK 4
#define ROOM  8 /* blocks of a table, at most */

static const struct kv_salt none = {{0, 0}}, tenant = {{7, 1}};

struct setup {
    struct kv_pool *pool;
    struct kv_prefix *tree;
    struct kv_table tables[6]; /* those in use; the others zeroed */
};

static void open_with(struct setup *s, int n_blocks, const struct kv_prefix_options *opt)
{
    struct error err;
    memset(s, 0, sizeof(*s));
    assert_int_equal(kv_pool_open(&s->pool, n_blocks, BLOCK, &err), CFG_OK);
    assert_int_equal(kv_prefix_open(&s->tree, s->pool, opt, &err), CFG_OK);
}

static int check(const struct setup *s, struct error *err)
{
    const struct kv_table *tables[6];
    for (int i = 0; i < 6; i++) tables[i] = &s->tables[i];
    return kv_check(s->pool, s->tree, tables, 6, err);
}

static void must_agree(const struct setup *s)
{
    struct error err;
    if (check(s, &err)) fail_msg("%s", err.message);
}

static void close_all(struct setup *s)
{
    must_agree(s);
    for (int i = 0; i < 6; i++) kv_table_release(s->pool, &s->tables[i]);
    must_agree(s);
    kv_prefix_close(s->tree);
    assert_int_equal(kv_pool_free_blocks(s->pool), kv_pool_total(s->pool));
    kv_pool_close(s->pool);
}

static size_t ids_of(const char *text, int32_t *ids)
{
    size_t n = strlen(text);
    assert_true(n <= ROOM * BLOCK);
    for (size_t i = 0; i < n; i++) ids[i] = text[i];
    return n;
}

static size_t match(struct setup *s, int table, struct kv_salt salt, const char *text)
{
    int32_t ids[ROOM * BLOCK];
    struct error err;
    size_t n = ids_of(text, ids);
    assert_int_equal(kv_table_init(&s->tables[table], ROOM, &err), CFG_OK);
    size_t covered = kv_prefix_match(s->tree, salt, ids, n, &s->tables[table], NULL);
    assert_int_equal(covered, s->tables[table].n * BLOCK);
    must_agree(s);
    return covered;
}

static void insert(struct setup *s, int table, struct kv_salt salt, const char *text)
{
    int32_t ids[ROOM * BLOCK];
    struct error err;
    size_t n = ids_of(text, ids);
    assert_int_equal(kv_prefix_insert(s->tree, salt, ids, n, &s->tables[table], NULL, &err),
                     CFG_OK);
    must_agree(s);
}

/* One chat from its prompt to its end in the cache: what was reused is returned. */
static size_t chat(struct setup *s, int table, struct kv_salt salt, const char *text)
{
    struct error err;
    size_t covered = match(s, table, salt, text);
    assert_int_equal(kv_table_reserve(s->pool, &s->tables[table], strlen(text), &err), CFG_OK);
    insert(s, table, salt, text);
    return covered;
}

static void release(struct setup *s, int table)
{
    kv_table_release(s->pool, &s->tables[table]);
    must_agree(s);
}

static size_t cached(struct setup *s, struct kv_salt salt, const char *text)
{
    int32_t ids[ROOM * BLOCK];
    size_t n = ids_of(text, ids);
    return kv_prefix_peek(s->tree, salt, ids, n, NULL);
}

/* ---- what is found --------------------------------------------------------------------------- */

static void the_next_turn_finds_the_turns_before(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 16, NULL);
    assert_int_equal(chat(&s, 0, none, "systemhello"), 0);
    int32_t first[2] = {s.tables[0].blocks[0], s.tables[0].blocks[1]};
    release(&s, 0);
    assert_int_equal(kv_pool_used(s.pool), 2); /* the unfinished third block is gone */
    assert_int_equal(chat(&s, 1, none, "systemhello, world"), 8);
    assert_memory_equal(s.tables[1].blocks, first, sizeof(first));
    release(&s, 1);
    assert_int_equal(cached(&s, none, "systemhello, world!"), 16);
    close_all(&s);
}

static void a_shared_beginning_is_stored_once(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 16, NULL);
    assert_int_equal(chat(&s, 0, none, "preambleaaaa"), 0);
    assert_int_equal(chat(&s, 1, none, "preamblebbbb"), 8);
    assert_int_equal(chat(&s, 2, none, "preamblebbbbcccc"), 12);
    assert_int_equal(kv_pool_used(s.pool), 5);
    assert_memory_equal(s.tables[0].blocks, s.tables[1].blocks, 2 * sizeof(int32_t));
    assert_int_equal(kv_block_refs(s.pool, s.tables[0].blocks[0]), 4);
    close_all(&s);
}

static void only_full_blocks_from_the_start_match(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 16, NULL);
    chat(&s, 0, none, "aaaabbbbccc");
    assert_int_equal(cached(&s, none, "aaaabbbbcccc"), 8);
    assert_int_equal(cached(&s, none, "aaaabbb"), 4);
    assert_int_equal(cached(&s, none, "aaab"), 0);
    assert_int_equal(cached(&s, none, "aaa"), 0);
    assert_int_equal(cached(&s, none, ""), 0);
    assert_int_equal(cached(&s, none, "bbbb"), 0);         /* known, but not at the start */
    assert_int_equal(cached(&s, none, "aaaaaaaabbbb"), 4); /* nor after another beginning */
    assert_int_equal(cached(&s, none, "xaaabbbb"), 0);
    close_all(&s);
}

static void a_match_fits_its_table(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    int32_t ids[ROOM * BLOCK];
    open_with(&s, 16, NULL);
    chat(&s, 0, none, "aaaabbbbcccc");
    assert_int_equal(kv_table_init(&s.tables[1], 2, &err), CFG_OK);
    size_t n = ids_of("aaaabbbbcccc", ids);
    assert_int_equal(kv_prefix_match(s.tree, none, ids, n, &s.tables[1], NULL), 8);
    assert_int_equal(s.tables[1].n, 2);
    close_all(&s);
}

static uint32_t always_the_same(struct kv_salt salt, int32_t parent, const int32_t *tokens, int n)
{
    (void)salt, (void)parent, (void)tokens, (void)n;
    return 0xffffffff; /* the last slot: probing wraps around at once */
}

static uint32_t last_two_bits(struct kv_salt salt, int32_t parent, const int32_t *tokens, int n)
{
    (void)salt, (void)parent;
    return (uint32_t)tokens[n - 1] & 3;
}

static void share_nothing(const struct kv_prefix_options *opt)
{
    struct setup s;
    const struct kv_salt other[] = {{{7, 0}}, {{0, 1}}, {{1, 7}}, {{7, 1ull << 63}}, {{0, 0}}};
    open_with(&s, 16, opt);
    chat(&s, 0, tenant, "aaaabbbb");
    for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++)
        assert_int_equal(cached(&s, other[i], "aaaabbbb"), 0);
    assert_int_equal(cached(&s, tenant, "aaaabbbb"), 8);
    assert_int_equal(chat(&s, 1, other[0], "aaaabbbb"), 0);
    assert_int_not_equal(s.tables[0].blocks[0], s.tables[1].blocks[0]);
    close_all(&s);
}

static void salts_never_share(void **state)
{
    (void)state;
    share_nothing(NULL);
    share_nothing(&(struct kv_prefix_options){.hash = always_the_same});
}

static void equal_hashes_are_told_apart(void **state)
{
    (void)state;
    uint32_t (*hashes[])(struct kv_salt, int32_t, const int32_t *, int) = {always_the_same,
                                                                           last_two_bits};
    for (int h = 0; h < 2; h++) {
        struct setup s;
        open_with(&s, 16, &(struct kv_prefix_options){.hash = hashes[h]});
        assert_int_equal(chat(&s, 0, none, "aaaabbbb"), 0);
        assert_int_equal(cached(&s, none, "aaabbbbb"), 0);
        assert_int_equal(cached(&s, none, "bbbbaaaa"), 0);
        assert_int_equal(cached(&s, none, "aaaacccc"), 4);
        assert_int_equal(cached(&s, tenant, "aaaabbbb"), 0);
        assert_int_equal(chat(&s, 1, tenant, "aaaabbbb"), 0);
        assert_int_equal(chat(&s, 2, none, "bbbbaaaa"), 0);
        assert_int_equal(chat(&s, 3, none, "aaaaaaaa"), 4);
        assert_int_equal(kv_pool_used(s.pool), 7);
        assert_memory_equal(s.tables[0].blocks, s.tables[3].blocks, sizeof(int32_t));
        /* Removing some must not hide the others that probed past them. */
        release(&s, 1);
        assert_int_equal(kv_prefix_evict(s.tree, 11), 2);
        must_agree(&s);
        assert_int_equal(cached(&s, tenant, "aaaabbbb"), 0);
        assert_int_equal(cached(&s, none, "aaaabbbb"), 8);
        assert_int_equal(cached(&s, none, "bbbbaaaa"), 8);
        assert_int_equal(cached(&s, none, "aaaaaaaa"), 8);
        close_all(&s);
    }
}

static void the_secret_changes_where_keys_fall(void **state)
{
    (void)state;
    struct setup a, b, d;
    const int32_t ids[BLOCK] = {1, 2, 3, 4}, swapped[BLOCK] = {2, 1, 3, 4};
    open_with(&a, 4, &(struct kv_prefix_options){.secret = {1, 2}});
    open_with(&b, 4, &(struct kv_prefix_options){.secret = {1, 3}});
    open_with(&d, 4, &(struct kv_prefix_options){.secret = {2, 2}});
    uint32_t hash = kv_prefix_hash(a.tree, tenant, KV_NONE, ids);
    assert_int_equal(kv_prefix_hash(a.tree, tenant, KV_NONE, ids), hash);
    assert_int_not_equal(kv_prefix_hash(b.tree, tenant, KV_NONE, ids), hash);
    assert_int_not_equal(kv_prefix_hash(d.tree, tenant, KV_NONE, ids), hash);
    assert_int_not_equal(kv_prefix_hash(a.tree, (struct kv_salt){{7, 0}}, KV_NONE, ids), hash);
    assert_int_not_equal(kv_prefix_hash(a.tree, (struct kv_salt){{0, 1}}, KV_NONE, ids), hash);
    assert_int_not_equal(kv_prefix_hash(a.tree, tenant, 0, ids), hash);
    assert_int_not_equal(kv_prefix_hash(a.tree, tenant, KV_NONE, swapped), hash);
    close_all(&a);
    close_all(&b);
    close_all(&d);
}

/* ---- inserting ------------------------------------------------------------------------------- */

static void a_block_computed_twice_is_kept_once(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    open_with(&s, 16, NULL);
    for (int i = 0; i < 2; i++) { /* both start before either is cached */
        assert_int_equal(match(&s, i, none, "aaaabbbbcccc"), 0);
        assert_int_equal(kv_table_reserve(s.pool, &s.tables[i], 12, &err), CFG_OK);
    }
    insert(&s, 0, none, "aaaabbbb");
    int32_t own[3];
    memcpy(own, s.tables[1].blocks, sizeof(own));
    insert(&s, 1, none, "aaaabbbbcccc");
    assert_memory_equal(s.tables[1].blocks, own, sizeof(own)); /* left alone */
    assert_int_equal(kv_block_refs(s.pool, own[0]), 1);
    assert_int_equal(kv_block_refs(s.pool, own[2]), 2); /* below the first table's blocks */
    assert_int_equal(cached(&s, none, "aaaabbbbcccc"), 12);
    /* The first one's blocks can't be evicted from above the second one's, which is in use. */
    release(&s, 0);
    assert_int_equal(kv_prefix_available(s.tree), kv_pool_free_blocks(s.pool));
    assert_int_equal(kv_prefix_evict(s.tree, 16), 0);
    release(&s, 1);
    assert_int_equal(kv_pool_used(s.pool), 3);
    assert_int_equal(kv_prefix_available(s.tree), 16);
    close_all(&s);
}

static void a_refused_insert_changes_nothing(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    int32_t ids[ROOM * BLOCK];
    open_with(&s, 16, &(struct kv_prefix_options){.payload_bytes = 3});
    assert_int_equal(match(&s, 0, none, "aaaabbbb"), 0);
    assert_int_equal(kv_table_reserve(s.pool, &s.tables[0], 8, &err), CFG_OK);
    size_t n = ids_of("aaaabbbbcccc", ids);
    /* Not covered; no payload; then cached as something else: another salt's block is its own. */
    assert_int_equal(kv_prefix_insert(s.tree, none, ids, n, &s.tables[0], "123456789", &err),
                     CFG_EINVAL);
    assert_int_equal(kv_prefix_insert(s.tree, none, ids, 8, &s.tables[0], NULL, &err), CFG_EINVAL);
    assert_int_equal(kv_prefix_insert(s.tree, none, ids, 8, &s.tables[0], "123456", &err), CFG_OK);
    assert_int_equal(kv_prefix_insert(s.tree, tenant, ids, 8, &s.tables[0], "123456", &err),
                     CFG_EINVAL);
    assert_int_equal(cached(&s, tenant, "aaaa"), 0);
    struct kv_prefix_stats stats;
    kv_prefix_stats(s.tree, &stats);
    assert_int_equal(stats.nodes, 2);
    close_all(&s);
}

static void a_payload_belongs_to_the_last_block_matched(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    int32_t ids[ROOM * BLOCK];
    const void *payload = &s;
    open_with(&s, 16, &(struct kv_prefix_options){.payload_bytes = 3});
    for (int i = 0; i < 4; i++) assert_int_equal(kv_table_init(&s.tables[i], ROOM, &err), CFG_OK);
    assert_int_equal(kv_table_reserve(s.pool, &s.tables[0], 12, &err), CFG_OK);
    size_t n = ids_of("aaaabbbbcccc", ids);
    assert_int_equal(kv_prefix_match(s.tree, none, ids, n, &s.tables[1], &payload), 0);
    assert_null(payload);
    assert_int_equal(kv_prefix_insert(s.tree, none, ids, 8, &s.tables[0],
                                      "one"
                                      "two",
                                      &err),
                     CFG_OK);
    /* The first two stay as they are, the third is new. */
    assert_int_equal(kv_prefix_insert(s.tree, none, ids, n, &s.tables[0],
                                      "......"
                                      "tri",
                                      &err),
                     CFG_OK);
    assert_int_equal(kv_prefix_match(s.tree, none, ids, 7, &s.tables[1], &payload), 4);
    assert_memory_equal(payload, "one", 3);
    assert_int_equal(kv_prefix_match(s.tree, none, ids, 11, &s.tables[2], &payload), 8);
    assert_memory_equal(payload, "two", 3);
    assert_int_equal(kv_prefix_match(s.tree, none, ids, 12, &s.tables[3], &payload), 12);
    assert_memory_equal(payload, "tri", 3);
    close_all(&s);
}

static void a_cached_block_is_copied_before_it_is_written(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    struct kv_copy copy;
    open_with(&s, 3, NULL);
    chat(&s, 0, none, "aaaabbbb");
    int32_t was = s.tables[0].blocks[1];
    assert_int_equal(kv_table_make_writable(s.pool, &s.tables[0], 7, &copy, &err), CFG_OK);
    assert_int_equal(copy.src, was);
    assert_int_equal(copy.dst, s.tables[0].blocks[1]);
    must_agree(&s);
    assert_int_equal(kv_prefix_available(s.tree), 1); /* the original is only cached now */
    assert_int_equal(cached(&s, none, "aaaabbbb"), 8);
    /* The pool is full: the next copy waits for an eviction. */
    assert_int_equal(kv_table_make_writable(s.pool, &s.tables[0], 0, &copy, &err), CFG_EFULL);
    assert_int_equal(kv_prefix_evict(s.tree, 1), 1);
    assert_int_equal(kv_table_make_writable(s.pool, &s.tables[0], 0, &copy, &err), CFG_OK);
    assert_int_equal(copy.dst, was);
    close_all(&s);
}

/* ---- evicting -------------------------------------------------------------------------------- */

static void the_least_recently_used_leaf_goes_first(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 16, NULL);
    chat(&s, 0, none, "aaaa1111");
    chat(&s, 1, none, "bbbb2222");
    chat(&s, 2, none, "aaaa3333");
    release(&s, 1);
    release(&s, 0);
    release(&s, 2);
    assert_int_equal(match(&s, 3, none, "aaaa1111"), 8); /* used again */
    release(&s, 3);
    assert_int_equal(kv_pool_free_blocks(s.pool), 11);
    const char *order[] = {"bbbb2222", "bbbb", "aaaa3333", "aaaa1111", "aaaa"};
    for (int i = 0; i < 5; i++) {
        for (int k = i; k < 5; k++) assert_int_equal(cached(&s, none, order[k]), strlen(order[k]));
        assert_int_equal(kv_prefix_evict(s.tree, 12 + i), 1);
        assert_int_not_equal(cached(&s, none, order[i]), strlen(order[i]));
        must_agree(&s);
    }
    assert_int_equal(kv_prefix_evict(s.tree, 17), 0);
    close_all(&s);
}

static void what_an_insert_meets_again_was_used(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    open_with(&s, 16, NULL);
    /* Table 4 computes the first chat's beginning on its own, before that is cached. */
    assert_int_equal(match(&s, 4, none, "aaaabbbb"), 0);
    assert_int_equal(kv_table_reserve(s.pool, &s.tables[4], 8, &err), CFG_OK);
    chat(&s, 0, none, "aaaabbbbcccc");
    chat(&s, 1, none, "dddd");
    release(&s, 0);
    release(&s, 1);
    insert(&s, 4, none, "aaaabbbb");
    assert_int_equal(kv_prefix_evict(s.tree, 11), 1);
    assert_int_equal(cached(&s, none, "aaaabbbbcccc"), 8); /* its end was the oldest ... */
    assert_int_equal(kv_prefix_evict(s.tree, 12), 1);
    assert_int_equal(cached(&s, none, "dddd"), 0); /* ... then this, then what was met */
    assert_int_equal(cached(&s, none, "aaaabbbb"), 8);
    close_all(&s);
}

static void what_is_in_use_is_never_evicted(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 6, NULL);
    chat(&s, 0, none, "aaaabbbbcccc");
    assert_int_equal(kv_prefix_available(s.tree), 3);
    assert_int_equal(kv_prefix_evict(s.tree, 6), 0);
    assert_int_equal(match(&s, 1, none, "aaaabbbb"), 8);
    release(&s, 0);
    assert_int_equal(kv_prefix_available(s.tree), 4); /* only the end is idle */
    assert_int_equal(kv_prefix_evict(s.tree, 6), 1);
    assert_int_equal(cached(&s, none, "aaaabbbbcccc"), 8);
    int idle = -1;
    int32_t ids[ROOM * BLOCK];
    size_t n = ids_of("aaaabbbb", ids);
    assert_int_equal(kv_prefix_peek(s.tree, none, ids, n, &idle), 8);
    assert_int_equal(idle, 0);
    release(&s, 1);
    assert_int_equal(kv_prefix_peek(s.tree, none, ids, n, &idle), 8);
    assert_int_equal(idle, 2);
    assert_int_equal(kv_prefix_available(s.tree), 6);
    close_all(&s);
}

static void eviction_stops_when_enough_is_free(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 8, NULL);
    chat(&s, 0, none, "aaaabbbbccccddddeeee");
    release(&s, 0);
    assert_int_equal(kv_prefix_evict(s.tree, 3), 0);
    assert_int_equal(kv_prefix_evict(s.tree, 5), 2);
    assert_int_equal(kv_pool_free_blocks(s.pool), 5);
    assert_int_equal(cached(&s, none, "aaaabbbbccccddddeeee"), 12);
    close_all(&s);
}

static void clearing_leaves_tables_their_blocks(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 8, NULL);
    chat(&s, 0, none, "aaaabbbb");
    chat(&s, 1, none, "cccc");
    release(&s, 1);
    kv_prefix_clear(s.tree);
    must_agree(&s);
    assert_int_equal(kv_pool_used(s.pool), 2);
    assert_int_equal(cached(&s, none, "aaaabbbb"), 0);
    insert(&s, 0, none, "aaaabbbb"); /* and may come back */
    assert_int_equal(cached(&s, none, "aaaabbbb"), 8);
    kv_prefix_clear(s.tree);
    release(&s, 0);
    assert_int_equal(kv_pool_used(s.pool), 0);
    close_all(&s);
}

static void counts_what_was_found_and_what_was_not(void **state)
{
    (void)state;
    struct setup s;
    struct kv_prefix_stats stats;
    open_with(&s, 8, NULL);
    chat(&s, 0, none, "aaaabbbbcc");    /* 2 blocks and 10 tokens missed */
    chat(&s, 1, none, "aaaabbbbccccd"); /* 2 blocks found, 1 missed, 5 tokens missed */
    cached(&s, none, "aaaabbbb");       /* not counted */
    release(&s, 0);
    release(&s, 1);
    assert_int_equal(kv_prefix_evict(s.tree, 7), 2);
    kv_prefix_stats(s.tree, &stats);
    assert_int_equal(stats.hit_blocks, 2);
    assert_int_equal(stats.miss_blocks, 3);
    assert_int_equal(stats.hit_tokens, 8);
    assert_int_equal(stats.miss_tokens, 15);
    assert_int_equal(stats.inserted, 3);
    assert_int_equal(stats.evictions, 2);
    assert_int_equal(stats.nodes, 1);
    assert_int_equal(stats.idle, 1);
    close_all(&s);
}

static void one_pool_has_one_tree(void **state)
{
    (void)state;
    struct setup s;
    struct error err;
    struct kv_prefix *second;
    open_with(&s, 4, NULL);
    assert_int_equal(kv_prefix_open(&second, s.pool, NULL, &err), CFG_EINVAL);
    assert_null(second);
    assert_int_equal(kv_check(s.pool, NULL, NULL, 0, &err), CFG_EINTERNAL);
    kv_prefix_close(s.tree);
    const struct kv_prefix_options huge = {.payload_bytes = SIZE_MAX / 2};
    assert_int_equal(kv_prefix_open(&second, s.pool, &huge, &err), CFG_EINVAL);
    assert_int_equal(kv_prefix_open(&s.tree, s.pool, NULL, &err), CFG_OK);
    kv_prefix_close(NULL);
    close_all(&s);
}

/* ---- the check itself ------------------------------------------------------------------------ */

static void expect_fault(const struct setup *s, const char *message)
{
    struct error err = {0};
    assert_int_equal(check(s, &err), CFG_EINTERNAL);
    if (!strstr(err.message, message)) fail_msg("\"%s\" says nothing of %s", err.message, message);
}

#define DAMAGE(field, value, message)                                                              \
    do {                                                                                           \
        __typeof__(field) kept = (field);                                                          \
        (field) = (value);                                                                         \
        expect_fault(&s, message);                                                                 \
        (field) = kept;                                                                            \
        must_agree(&s);                                                                            \
    } while (0)

static void the_check_finds_a_damaged_tree(void **state)
{
    (void)state;
    struct setup s;
    open_with(&s, 8, NULL);
    chat(&s, 0, none, "aaaabbbbcccc");
    int32_t b[3];
    memcpy(b, s.tables[0].blocks, sizeof(b));
    release(&s, 0);
    assert_int_equal(match(&s, 1, none, "aaaa"), 4); /* b[0] in use; b[2], b[1] idle */
    struct kv_prefix *c = s.tree;
    struct kv_node *d = c->nodes;
    DAMAGE(s.pool->refs[b[0]], 1, "references");
    DAMAGE(s.pool->free_stack[0], b[0], "references");
    DAMAGE(s.pool->free_stack[0], s.pool->free_stack[1], "free twice");
    DAMAGE(s.pool->n_free, 9, "blocks free");
    DAMAGE(s.pool->peak, 2, "ever used");
    DAMAGE(d[b[1]].parent, 7, "not cached");
    DAMAGE(d[b[1]].salt.word[1], 1, "salt");
    DAMAGE(d[b[0]].n_children, 0, "children");
    DAMAGE(d[b[0]].n_busy, 0, "busy");
    DAMAGE(c->counts.nodes, 2, "nodes");
    DAMAGE(c->counts.idle, 1, "idle list");
    DAMAGE(c->tokens[b[2] * BLOCK], 'x', "key");
    DAMAGE(d[b[1]].hash, d[b[1]].hash + 1, "slot");
    DAMAGE(c->oldest, b[1], "idle list");
    DAMAGE(c->newest, b[2], "idle list");
    DAMAGE(d[b[2]].next, KV_NONE, "idle list");
    /* A circle whose counts all agree: the second and third block below each other. */
    d[b[1]].parent = b[2], d[b[2]].n_children = 1, d[b[0]].n_children = 0;
    expect_fault(&s, "circle");
    d[b[1]].parent = b[0], d[b[2]].n_children = 0, d[b[0]].n_children = 1;
    /* The list the other way round: a parent would be evicted before its child. */
    c->oldest = b[1], c->newest = b[2];
    d[b[1]].prev = KV_NONE, d[b[1]].next = b[2], d[b[2]].prev = b[1], d[b[2]].next = KV_NONE;
    expect_fault(&s, "before its child");
    c->oldest = b[2], c->newest = b[1];
    d[b[2]].prev = KV_NONE, d[b[2]].next = b[1], d[b[1]].prev = b[2], d[b[1]].next = KV_NONE;
    close_all(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_turn_finds_the_turns_before),
        cmocka_unit_test(a_shared_beginning_is_stored_once),
        cmocka_unit_test(only_full_blocks_from_the_start_match),
        cmocka_unit_test(a_match_fits_its_table),
        cmocka_unit_test(salts_never_share),
        cmocka_unit_test(equal_hashes_are_told_apart),
        cmocka_unit_test(the_secret_changes_where_keys_fall),
        cmocka_unit_test(a_block_computed_twice_is_kept_once),
        cmocka_unit_test(a_refused_insert_changes_nothing),
        cmocka_unit_test(a_payload_belongs_to_the_last_block_matched),
        cmocka_unit_test(a_cached_block_is_copied_before_it_is_written),
        cmocka_unit_test(the_least_recently_used_leaf_goes_first),
        cmocka_unit_test(what_an_insert_meets_again_was_used),
        cmocka_unit_test(what_is_in_use_is_never_evicted),
        cmocka_unit_test(eviction_stops_when_enough_is_free),
        cmocka_unit_test(clearing_leaves_tables_their_blocks),
        cmocka_unit_test(counts_what_was_found_and_what_was_not),
        cmocka_unit_test(one_pool_has_one_tree),
        cmocka_unit_test(the_check_finds_a_damaged_tree),
    };
    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
