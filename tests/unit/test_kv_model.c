// SPDX-License-Identifier: Apache-2.0
//
// test_kv_model.c: pool, tables and prefix tree against a model, over random operations on tiny
// pools. The model knows nothing of trees, hashes, lists or counters: it keeps what is cached as
// whole token strings, finds by comparing all of them, and counts references by going through
// every table. It also plays the engine: each block has a memory, of one number a token that
// depends on the salt and on every token before it, as keys and values do. A table must always
// lead to the numbers of its own tokens, so that a block shared wrongly, not copied before a write
// or taken from another tenant shows at once. kv_check runs after every operation. A failure names
// the seed and the operation.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdlib.h>
#include <string.h>

#include "kvcache/kvcache.h"

enum { MAX_BLOCKS = 24, MAX_SIZE = 3, SEQS = 6, ROOM = 6, LONGEST = ROOM * MAX_SIZE, SALTS = 3 };

static const struct kv_salt salts[SALTS] = {{{0, 0}}, {{0, 5}}, {{5, 0}}};

struct seq {
    bool live;
    int salt, n; /* n tokens are written */
    int32_t tokens[LONGEST];
    struct kv_table table;
};

/* One cached block: all tokens up to its end, and the operation that used it last. */
struct entry {
    int salt, n;
    int32_t tokens[LONGEST];
    int32_t block;
    uint64_t used;
};

struct model {
    unsigned seed, rng;
    int op;
    const char *doing;
    int n_blocks, size;
    struct kv_pool *pool;
    struct kv_prefix *tree;
    struct seq seqs[SEQS];
    uint64_t memory[MAX_BLOCKS][MAX_SIZE];
    struct entry entries[MAX_BLOCKS];
    int n_entries;
    uint64_t clock;
    uint64_t hits, evictions, copies, full, duplicates; /* that each of it came up */
};

#define REQUIRE(m, what)                                                                           \
    do {                                                                                           \
        if (!(what))                                                                               \
            fail_msg("seed %u, operation %d (%s): not so: %s", (m)->seed, (m)->op, (m)->doing,     \
                     #what);                                                                       \
    } while (0)

static int pick(struct model *m, int n)
{
    return (int)(rand_r(&m->rng) >> 4) % n;
}

/* ---- the model ------------------------------------------------------------------------------- */

/* What the engine would have written for the last of these tokens; also a payload. */
static uint64_t value_of(int salt, const int32_t *tokens, int n)
{
    uint64_t v = 1469598103934665603u + (uint64_t)salt;
    for (int i = 0; i < n; i++) v = (v ^ (uint64_t)(tokens[i] + 1)) * 1099511628211u;
    return v;
}

static int holders(const struct model *m, int32_t block)
{
    int n = 0;
    for (int i = 0; i < SEQS; i++)
        for (int k = 0; k < m->seqs[i].table.n; k++) n += m->seqs[i].table.blocks[k] == block;
    return n;
}

static bool begins_with(const struct entry *e, int salt, const int32_t *tokens, int n)
{
    return e->salt == salt && e->n >= n &&
           memcmp(e->tokens, tokens, (size_t)n * sizeof(*tokens)) == 0;
}

static struct entry *entry_of(struct model *m, int salt, const int32_t *tokens, int n)
{
    for (int i = 0; i < m->n_entries; i++)
        if (m->entries[i].n == n && begins_with(&m->entries[i], salt, tokens, n))
            return &m->entries[i];
    return NULL;
}

/* In use: it or anything that continues it is in a table. */
static bool in_use(const struct model *m, const struct entry *e)
{
    for (int i = 0; i < m->n_entries; i++)
        if (begins_with(&m->entries[i], e->salt, e->tokens, e->n) &&
            holders(m, m->entries[i].block) > 0)
            return true;
    return false;
}

static int free_blocks(const struct model *m)
{
    int n = 0;
    for (int32_t b = 0; b < m->n_blocks; b++) {
        bool cached = false;
        for (int i = 0; i < m->n_entries; i++) cached |= m->entries[i].block == b;
        n += !cached && holders(m, b) == 0;
    }
    return n;
}

static int idle_entries(const struct model *m)
{
    int n = 0;
    for (int i = 0; i < m->n_entries; i++) n += !in_use(m, &m->entries[i]);
    return n;
}

/* Every entry in use is being used now. Before any block is let go, so that what falls out of use
 * keeps this moment. */
static void tick(struct model *m)
{
    m->clock++;
    for (int i = 0; i < m->n_entries; i++)
        if (in_use(m, &m->entries[i])) m->entries[i].used = m->clock;
}

/* Of the entries in no use, the one used longest ago; of equally old ones, the longest. */
static int next_to_evict(const struct model *m)
{
    int best = -1;
    for (int i = 0; i < m->n_entries; i++) {
        const struct entry *e = &m->entries[i], *b = &m->entries[best < 0 ? 0 : best];
        if (in_use(m, e)) continue;
        if (best < 0 || e->used < b->used || (e->used == b->used && e->n > b->n)) best = i;
    }
    return best;
}

/* ---- after every operation ------------------------------------------------------------------- */

static void compare(struct model *m)
{
    const struct kv_table *tables[SEQS];
    struct error err;
    for (int i = 0; i < SEQS; i++) tables[i] = &m->seqs[i].table;
    if (kv_check(m->pool, m->tree, tables, SEQS, &err))
        fail_msg("seed %u, operation %d (%s): %s", m->seed, m->op, m->doing, err.message);
    const int n_free = free_blocks(m);
    REQUIRE(m, kv_pool_free_blocks(m->pool) == n_free);
    REQUIRE(m, kv_pool_used(m->pool) == m->n_blocks - n_free);
    REQUIRE(m, kv_prefix_available(m->tree) == n_free + idle_entries(m));
    struct kv_prefix_stats stats;
    kv_prefix_stats(m->tree, &stats);
    REQUIRE(m, stats.nodes == m->n_entries);
    for (int i = 0; i < SEQS; i++) {
        const struct seq *q = &m->seqs[i];
        for (int k = 0; k < q->n; k++) {
            int32_t block = q->table.blocks[k / m->size];
            REQUIRE(m, m->memory[block][k % m->size] == value_of(q->salt, q->tokens, k + 1));
        }
    }
    for (int i = 0; i < m->n_entries; i++) {
        const struct entry *e = &m->entries[i];
        REQUIRE(m, m->memory[e->block][m->size - 1] == value_of(e->salt, e->tokens, e->n));
    }
}

/* ---- operations ------------------------------------------------------------------------------ */

static void evict(struct model *m, int want)
{
    m->doing = "evict";
    int expected = 0, best;
    for (; free_blocks(m) < want && (best = next_to_evict(m)) >= 0; expected++)
        m->entries[best] = m->entries[--m->n_entries];
    REQUIRE(m, kv_prefix_evict(m->tree, want) == expected);
    m->evictions += (uint64_t)expected;
    /* The same ones went: each left is still found under its tokens, with its own block. */
    for (int i = 0; i < m->n_entries; i++) {
        const struct entry *e = &m->entries[i];
        REQUIRE(m, kv_prefix_peek(m->tree, salts[e->salt], e->tokens, (size_t)e->n, NULL) ==
                       (size_t)e->n);
    }
}

/* Writes token number q->n - 1 as the engine would: copy first where the block is shared. False,
 * and nothing done, when there is no block for the copy. */
static bool write_last(struct model *m, struct seq *q)
{
    struct error err;
    struct kv_copy copy;
    const int at = q->n - 1;
    const int32_t was = q->table.blocks[at / m->size];
    bool cached = false;
    for (int i = 0; i < m->n_entries; i++) cached |= m->entries[i].block == was;
    const bool shared = cached || holders(m, was) > 1;
    const int n_free = free_blocks(m);
    tick(m);
    int rc = kv_table_make_writable(m->pool, &q->table, (size_t)at, &copy, &err);
    const int32_t now = q->table.blocks[at / m->size];
    if (shared && n_free == 0) {
        REQUIRE(m, rc == CFG_EFULL && now == was && copy.src == -1);
        m->full++;
        return false;
    }
    REQUIRE(m, rc == CFG_OK);
    REQUIRE(m, copy.src == (shared ? was : -1) && copy.dst == (shared ? now : -1));
    REQUIRE(m, (now != was) == shared);
    if (shared) memcpy(m->memory[copy.dst], m->memory[copy.src], sizeof(m->memory[0]));
    m->memory[now][at % m->size] = value_of(q->salt, q->tokens, q->n);
    m->copies += shared;
    return true;
}

/* A few more tokens, of two kinds, so that sequences meet again and again. */
static void grow(struct model *m, struct seq *q)
{
    struct error err;
    const int most = q->table.capacity * m->size - q->n;
    const int n = most < 1 ? 0 : pick(m, most < 2 * m->size ? most : 2 * m->size) + 1;
    m->doing = "grow";
    const int need = kv_blocks_for(m->pool, (size_t)(q->n + n)) - q->table.n;
    const int before = q->table.n, n_free = free_blocks(m);
    int rc = kv_table_reserve(m->pool, &q->table, (size_t)(q->n + n), &err);
    if (need > n_free) {
        REQUIRE(m, rc == CFG_EFULL && q->table.n == before);
        m->full++;
        return;
    }
    REQUIRE(m, rc == CFG_OK && q->table.n == before + (need > 0 ? need : 0));
    for (int i = 0; i < n; i++) {
        q->tokens[q->n++] = pick(m, 4) == 0;
        if (!write_last(m, q)) {
            q->n--;
            return;
        }
    }
}

static void rewrite(struct model *m, struct seq *q)
{
    m->doing = "rewrite";
    if (q->n == 0) return;
    q->tokens[q->n - 1] ^= 1;
    if (!write_last(m, q)) q->tokens[q->n - 1] ^= 1;
}

static void start(struct model *m, struct seq *q)
{
    struct error err;
    const int n = pick(m, 3) ? pick(m, LONGEST + 1) : 0; /* 0: all computed anew */
    int32_t prompt[LONGEST + 1];
    m->doing = "start";
    for (int i = 0; i < n; i++) prompt[i] = pick(m, 4) == 0;
    *q = (struct seq){.live = true, .salt = pick(m, SALTS)};
    REQUIRE(m, kv_table_init(&q->table, pick(m, 8) ? ROOM : 1 + pick(m, ROOM), &err) == CFG_OK);

    int expected = 0, idle = 0, found_idle = -1;
    uint64_t last = 0;
    for (struct entry *e; expected < q->table.capacity && (expected + 1) * m->size <= n;
         expected++) {
        if (!(e = entry_of(m, q->salt, prompt, (expected + 1) * m->size))) break;
        idle += !in_use(m, e);
        last = value_of(e->salt, e->tokens, e->n);
    }
    const size_t covered = (size_t)(expected * m->size), asked = (size_t)n;
    const void *payload = m;
    if (q->table.capacity == ROOM) {
        REQUIRE(m, kv_prefix_peek(m->tree, salts[q->salt], prompt, asked, &found_idle) == covered);
        REQUIRE(m, found_idle == idle);
    }
    REQUIRE(m, kv_prefix_match(m->tree, salts[q->salt], prompt, asked, &q->table, &payload) ==
                   covered);
    REQUIRE(m, q->table.n == expected && (payload != NULL) == (expected > 0));
    if (payload) REQUIRE(m, memcmp(payload, &last, sizeof(last)) == 0);
    for (int i = 0; i < expected; i++)
        REQUIRE(m, q->table.blocks[i] == entry_of(m, q->salt, prompt, (i + 1) * m->size)->block);
    memcpy(q->tokens, prompt, covered * sizeof(prompt[0]));
    q->n = (int)covered;
    m->hits += covered > 0;
}

static void insert(struct model *m, const struct seq *q)
{
    struct error err;
    uint64_t payloads[ROOM] = {0};
    const int n = pick(m, 2) ? q->n : pick(m, q->n + 1), n_full = n / m->size;
    m->doing = "insert";
    m->clock++;
    for (int i = 0; i < n_full; i++) {
        payloads[i] = value_of(q->salt, q->tokens, (i + 1) * m->size);
        struct entry *e = entry_of(m, q->salt, q->tokens, (i + 1) * m->size);
        if (e) {
            payloads[i] = 0; /* known: must not be read */
            m->duplicates += e->block != q->table.blocks[i];
        } else {
            e = &m->entries[m->n_entries++];
            *e = (struct entry){q->salt, (i + 1) * m->size, {0}, q->table.blocks[i], 0};
            memcpy(e->tokens, q->tokens, (size_t)e->n * sizeof(e->tokens[0]));
        }
        e->used = m->clock;
    }
    REQUIRE(m, kv_prefix_insert(m->tree, salts[q->salt], q->tokens, (size_t)n, &q->table, payloads,
                                &err) == CFG_OK);
}

static void fork_into(struct model *m, const struct seq *from, struct seq *q)
{
    struct error err;
    m->doing = "fork";
    *q = *from;
    REQUIRE(m, kv_table_init(&q->table, ROOM, &err) == CFG_OK);
    REQUIRE(m, kv_table_fork(m->pool, &from->table,
                             (size_t)(from->table.n * kv_pool_block_size(m->pool)), &q->table,
                             &err) == CFG_OK);
    REQUIRE(m, q->table.n == from->table.n);
}

/* The model lets go block by block, from the end, as the header says. */
static void release(struct model *m, struct seq *q)
{
    m->doing = "release";
    const int n = q->table.n;
    for (; q->table.n > 0; q->table.n--) tick(m);
    q->table.n = n;
    kv_table_release(m->pool, &q->table);
    *q = (struct seq){0};
}

static void operate(struct model *m)
{
    struct seq *q = &m->seqs[pick(m, SEQS)], *other = &m->seqs[pick(m, SEQS)];
    const int what = pick(m, 100);
    if (!q->live && what < 30 && other->live) {
        if (other->table.capacity == ROOM) fork_into(m, other, q);
    } else if (!q->live) {
        start(m, q);
    } else if (what < 40) {
        grow(m, q);
    } else if (what < 46) {
        rewrite(m, q);
    } else if (what < 70) {
        insert(m, q);
    } else if (what < 87) {
        release(m, q);
    } else if (what < 99) {
        evict(m, pick(m, 3) ? free_blocks(m) + 1 : pick(m, m->n_blocks + 2)); /* mostly one */
    } else {
        m->doing = "clear";
        kv_prefix_clear(m->tree);
        m->n_entries = 0;
    }
}

/* ---- runs ------------------------------------------------------------------------------------ */

static void run(struct model *m, unsigned seed, int n_ops,
                uint32_t (*hash)(struct kv_salt, int32_t, const int32_t *, int))
{
    struct error err;
    const struct kv_prefix_options opt = {sizeof(uint64_t), {seed, 17}, hash};
    *m = (struct model){.seed = seed,
                        .rng = seed,
                        .doing = "open",
                        .hits = m->hits,
                        .evictions = m->evictions,
                        .copies = m->copies,
                        .full = m->full,
                        .duplicates = m->duplicates};
    m->size = 1 + pick(m, MAX_SIZE);
    m->n_blocks = 1 + pick(m, MAX_BLOCKS);
    REQUIRE(m, kv_pool_open(&m->pool, m->n_blocks, m->size, &err) == CFG_OK);
    REQUIRE(m, kv_prefix_open(&m->tree, m->pool, &opt, &err) == CFG_OK);
    for (m->op = 0; m->op < n_ops; m->op++) {
        operate(m);
        compare(m);
    }
    for (int i = 0; i < SEQS; i++) release(m, &m->seqs[i]);
    compare(m);
    evict(m, m->n_blocks);
    REQUIRE(m, kv_pool_free_blocks(m->pool) == m->n_blocks);
    kv_prefix_close(m->tree);
    kv_pool_close(m->pool);
}

static uint32_t one_slot(struct kv_salt salt, int32_t parent, const int32_t *tokens, int n)
{
    (void)salt, (void)parent, (void)tokens, (void)n;
    return 0xfffffffe;
}

static uint32_t few_slots(struct kv_salt salt, int32_t parent, const int32_t *tokens, int n)
{
    (void)salt, (void)parent;
    return (uint32_t)(tokens[0] + tokens[n - 1]) * 0x7fffffffu;
}

static void agrees_under(uint32_t (*hash)(struct kv_salt, int32_t, const int32_t *, int))
{
    struct model *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    for (unsigned seed = 1; seed <= 120; seed++) run(m, seed, 250, hash);
    /* A run in which something never came up shows nothing about it. */
    assert_true(m->hits > 100);
    assert_true(m->evictions > 100);
    assert_true(m->copies > 100);
    assert_true(m->full > 100);
    assert_true(m->duplicates > 100);
    free(m);
}

static void agrees_with_the_model(void **state)
{
    (void)state;
    agrees_under(NULL);
}

static void agrees_when_all_hashes_are_equal(void **state)
{
    (void)state;
    agrees_under(one_slot);
}

static void agrees_when_many_hashes_are_equal(void **state)
{
    (void)state;
    agrees_under(few_slots);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_model),
        cmocka_unit_test(agrees_when_all_hashes_are_equal),
        cmocka_unit_test(agrees_when_many_hashes_are_equal),
    };
    return cmocka_run_group_tests_name("kv_model", tests, NULL, NULL);
}
