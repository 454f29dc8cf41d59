// SPDX-License-Identifier: Apache-2.0
//
// bench_kvcache.c: what the bookkeeping of cached prefixes costs. For each size of cache it fills
// the tree with chats of 64 blocks, half of which begin with a shared preamble of 16, then measures
// in steady state, in nanoseconds a block: match (with the reference taken), release of what was
// matched, insert of new blocks (walking what it matched first) and evict (oldest chats
// first). Figures are medians over calls, so that a busy machine disturbs them little. One thread,
// no engine. Chats are drawn at random, so that large caches miss the CPU's.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvcache/kvcache.h"

enum { SIZE = 16, CHAT = 64, PREAMBLE = 16, MAX_SAMPLES = 10000 };

struct bench {
    struct kv_pool *pool;
    struct kv_prefix *tree;
    struct kv_table table;
    int32_t ids[CHAT * SIZE];
    unsigned char payloads[CHAT * 128];
};

/* Nanoseconds a block, one sample a call. */
struct samples {
    double ns[MAX_SAMPLES];
    int n;
};

struct times {
    struct samples match, release, insert, evict;
    uint64_t hits, inserted; /* blocks */
};

/* The tokens of chat i: reproducible from i alone. */
static void write_chat(struct bench *b, unsigned i)
{
    unsigned rng = i * 2654435761u + 1;
    for (int k = 0; k < CHAT * SIZE; k++) {
        rng = rng * 1664525u + 1013904223u;
        b->ids[k] = (int32_t)(rng >> 16);
    }
    if (i % 2)
        for (int k = 0; k < PREAMBLE * SIZE; k++) b->ids[k] = k;
}

static void note(struct samples *s, double start, int blocks)
{
    double seconds = cfg_now() - start;
    if (blocks > 0 && s->n < MAX_SAMPLES) s->ns[s->n++] = seconds * 1e9 / blocks;
}

/* One chat through the cache: what a scheduler calls between its arrival and its end. */
static int serve(struct bench *b, unsigned i, struct times *t, struct error *err)
{
    const size_t n = CHAT * SIZE;
    const struct kv_salt salt = {{1, 2}};
    write_chat(b, i);
    double start = cfg_now();
    kv_prefix_match(b->tree, salt, b->ids, n, &b->table, NULL);
    const int found = b->table.n, fresh = CHAT - found;
    note(&t->match, start, found);
    start = cfg_now();
    const int evicted = kv_prefix_evict(b->tree, fresh);
    note(&t->evict, start, evicted);
    int rc = kv_table_reserve(b->pool, &b->table, n, err);
    start = cfg_now();
    if (!rc) rc = kv_prefix_insert(b->tree, salt, b->ids, n, &b->table, b->payloads, err);
    if (rc) return rc;
    note(&t->insert, start, fresh);
    start = cfg_now();
    kv_table_release(b->pool, &b->table);
    note(&t->release, start, CHAT);
    t->hits += (uint64_t)found;
    t->inserted += (uint64_t)fresh;
    return kv_table_init(&b->table, CHAT, err);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(struct samples *s)
{
    qsort(s->ns, (size_t)s->n, sizeof(s->ns[0]), ascending);
    return s->n ? s->ns[s->n / 2] : 0;
}

/* Fills the cache twice over, then measures. */
static int fill_and_measure(struct bench *b, int n_blocks, struct times *t, struct error *err)
{
    const unsigned n_chats = (unsigned)(n_blocks / CHAT);
    int rc = CFG_OK;
    for (unsigned i = 0; !rc && i < 2 * n_chats; i++) rc = serve(b, i, t, err);
    *t = (struct times){0};
    /* From a range of one and a half caches: some chats are found, some have gone. */
    unsigned rng = 1;
    while (!rc && t->release.n < MAX_SAMPLES)
        rc = serve(b, (unsigned)rand_r(&rng) % (n_chats * 3 / 2), t, err);
    if (rc) return rc;
    struct kv_prefix_stats stats;
    kv_prefix_stats(b->tree, &stats);
    printf("%9d %9d %9.1f %9.1f %9.1f %9.1f %9.2f\n", n_blocks, stats.nodes, median(&t->match),
           median(&t->release), median(&t->insert), median(&t->evict),
           (double)t->hits / (double)(t->hits + t->inserted));
    return CFG_OK;
}

static int measure(int n_blocks, struct error *err)
{
    static struct times t;
    static struct bench b;
    const struct kv_prefix_options opt = {.payload_bytes = 128, .secret = {11, 13}};
    int rc = kv_pool_open(&b.pool, n_blocks + CHAT, SIZE, err);
    if (rc) return rc;
    rc = kv_prefix_open(&b.tree, b.pool, &opt, err);
    if (rc) goto close_pool;
    rc = kv_table_init(&b.table, CHAT, err);
    if (rc) goto close_tree;
    rc = fill_and_measure(&b, n_blocks, &t, err);
    kv_table_release(b.pool, &b.table);
close_tree:
    kv_prefix_close(b.tree);
close_pool:
    kv_pool_close(b.pool);
    return rc;
}

int main(void)
{
    static const int sizes[] = {1000, 10000, 100000};
    struct error err;
    printf("blocks of %d tokens, chats of %d blocks, payload 128 bytes; ns a block\n", SIZE, CHAT);
    printf("%9s %9s %9s %9s %9s %9s %9s\n", "cache", "nodes", "match", "release", "insert", "evict",
           "hit rate");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (measure(sizes[i], &err)) {
            fprintf(stderr, "bench_kvcache: %s\n", err.message);
            return 1;
        }
    return 0;
}
