// SPDX-License-Identifier: Apache-2.0
//
// masks.c: the ids that may come at each state, stored in the smallest of three forms, equal sets
// once. States of one kind share their sets. How many ids may be left to be tried out when an
// answer is sampled is bounded: a grammar with more is refused.
#include "engine/grammar/masks.h"

#include <stdlib.h>
#include <string.h>

#include "engine/grammar/walk.h"

/* A list is at most half as large as bits would be. */
#define LIST_SHARE 64
#define MAX_WORDS  ((size_t)24 << 20) /* 96 MiB of sets */
#define HASH       4096
/* So few unsure ids are tried out as they are. */
#define FEW_UNSURE  16
#define MOST_UNSURE 5000
/* As far as settling them is worth; and how many lists and pairs there may be. */
#define PAIR_WORK ((size_t)60000000)
#define MAX_PAIRS ((size_t)1 << 19)

struct build {
    struct masks *m;
    const struct automaton *a;
    const struct token_trie *trie;
    struct stack_exits exits;
    struct walk *walk;
    uint32_t *first; /* [n_kinds] the first state of a kind */
    uint32_t n_kinds;
    bool *seen;             /* [n_rules + n_kinds] scratch of exits_tops ... */
    uint32_t *stack, *tops; /* [n_rules], [n_kinds] */
    uint32_t *bits;         /* [n_words] */
    uint32_t *ids;          /* [usable] */
    uint32_t hash[HASH];    /* of masks: number + 1 */
    uint32_t *next;         /* [cap_list] list of those with the same hash */
    struct error *err;
};

/* ---- sets ------------------------------------------------------------------------------------ */

static int no_memory(struct build *b)
{
    return cfg_fail(b->err, CFG_ENOMEM, "no memory for a grammar's masks");
}

/* The number of a set; n words. */
static int store(struct build *b, enum mask_form form, const uint32_t *words, uint32_t n,
                 uint32_t *number)
{
    struct masks *m = b->m;
    uint64_t h = (uint64_t)form << 32 | n;
    for (uint32_t i = 0; i < n; i++) h = (h ^ words[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 32;
    uint32_t *head = &b->hash[h % HASH];
    for (uint32_t i = *head; i; i = b->next[i - 1]) {
        const struct mask *old = &m->list[i - 1];
        *number = i - 1;
        if (old->form == form && old->n == n &&
            (n == 0 || !memcmp(m->words + old->at, words, n * sizeof *words)))
            return CFG_OK;
    }
    if (m->n_used + n > MAX_WORDS)
        return cfg_fail(
            b->err, CFG_EINVAL,
            "the grammar is too large: the sets of tokens for its states take more than "
            "%zu MiB",
            MAX_WORDS >> 18);
    if (m->n_used + n > m->cap_words) {
        const size_t cap = 2 * (m->n_used + n);
        uint32_t *p = realloc(m->words, cap * sizeof *p);
        if (!p) return no_memory(b);
        m->words = p;
        m->cap_words = cap;
    }
    if (m->n_list == m->cap_list) {
        const uint32_t cap = m->cap_list ? 2 * m->cap_list : 64;
        struct mask *list = realloc(m->list, cap * sizeof *list);
        if (list) m->list = list;
        uint32_t *next = realloc(b->next, cap * sizeof *next);
        if (next) b->next = next;
        if (!list || !next) return no_memory(b);
        m->cap_list = cap;
    }
    if (n) memcpy(m->words + m->n_used, words, n * sizeof *words);
    *number = m->n_list++;
    m->list[*number] = (struct mask){form, (uint32_t)m->n_used, n};
    b->next[*number] = *head;
    *head = m->n_list;
    m->n_used += n;
    return CFG_OK;
}

/* The ids that are set in bits, or not set, in ascending order. */
static uint32_t list_bits(struct build *b, bool set)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < b->m->n_words; w++) {
        uint32_t word = set ? b->bits[w] : ~b->bits[w];
        for (; word; word &= word - 1) {
            const uint32_t id = 32 * w + (uint32_t)__builtin_ctz(word);
            if (id < b->m->usable) b->ids[n++] = id;
        }
    }
    return n;
}

static int by_value(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int store_ids(struct build *b, const int32_t *ids, uint32_t n_ids, uint32_t *number)
{
    struct masks *m = b->m;
    uint32_t n = 0;
    if (n_ids * LIST_SHARE < m->usable) {
        for (uint32_t i = 0; i < n_ids; i++)
            if ((uint32_t)ids[i] < m->usable) b->ids[n++] = (uint32_t)ids[i];
        qsort(b->ids, n, sizeof *b->ids, by_value);
        return store(b, MASK_LIST, b->ids, n, number);
    }
    memset(b->bits, 0, m->n_words * sizeof *b->bits);
    for (uint32_t i = 0; i < n_ids; i++) {
        const uint32_t id = (uint32_t)ids[i];
        if (id >= m->usable) continue;
        b->bits[id / 32] |= 1u << id % 32;
        n++;
    }
    if ((m->usable - n) * LIST_SHARE >= m->usable)
        return store(b, MASK_BITS, b->bits, m->n_words, number);
    n = list_bits(b, false);
    return store(b, MASK_ALL_BUT, b->ids, n, number);
}

static int by_bytes(const void *a, const void *b, void *arg)
{
    const struct token_trie *t = arg;
    size_t n, m;
    const uint8_t *x = trie_bytes(t, *(const int32_t *)a, &n);
    const uint8_t *y = trie_bytes(t, *(const int32_t *)b, &m);
    const int order = memcmp(x, y, n < m ? n : m);
    return order ? order : n < m ? -1 : n > m;
}

static int store_unsure(struct build *b, int32_t *ids, uint32_t n_ids, uint32_t *number)
{
    uint32_t n = 0;
    qsort_r(ids, n_ids, sizeof *ids, by_bytes, (void *)(uintptr_t)b->trie);
    for (uint32_t i = 0; i < n_ids; i++)
        if ((uint32_t)ids[i] < b->m->usable) b->ids[n++] = (uint32_t)ids[i];
    return store(b, MASK_LIST, b->ids, n, number);
}

static int store_found(struct build *b, const struct walk_ids *found, struct mask_pair *out)
{
    const int rc = store_ids(b, found->sure, found->n_sure, &out->sure);
    return rc ? rc : store_unsure(b, found->unsure, found->n_unsure, &out->unsure);
}

/* ---- pairs ----------------------------------------------------------------------------------- */

static uint32_t n_unsure(const struct masks *m, const struct mask_pair *p)
{
    return m->list[p->unsure].n;
}

/* Room for n more words in a list of pairs or tops. */
static bool grow(void *list, size_t item, size_t n, size_t more, size_t *cap)
{
    void **p = list;
    if (n + more <= *cap) return true;
    const size_t wider = 2 * (n + more);
    void *q = realloc(*p, wider * item);
    if (!q) return false;
    *p = q;
    *cap = wider;
    return true;
}

static int find_tops(struct build *b, uint32_t rule)
{
    struct masks *m = b->m;
    if (m->tops_at[2 * rule + 1] > 0) return CFG_OK;
    const uint32_t n =
        exits_tops(&b->exits, b->a, m->kind, b->n_kinds, rule, b->seen, b->stack, b->tops);
    if (!grow(&m->tops, sizeof *m->tops, m->n_tops, n, &m->cap_tops)) return no_memory(b);
    memcpy(m->tops + m->n_tops, b->tops, n * sizeof *b->tops);
    m->tops_at[2 * rule] = (uint32_t)m->n_tops;
    m->n_tops += n;
    m->tops_at[2 * rule + 1] = (uint32_t)m->n_tops;
    return CFG_OK;
}

/* Settles a state's unsure ids for each top of the stack. */
static int build_pairs(struct build *b, uint32_t state)
{
    struct masks *m = b->m;
    const uint32_t rule = b->a->rule_of[state];
    int rc = find_tops(b, rule);
    if (rc) return rc;
    const uint32_t from = m->tops_at[2 * rule], to = m->tops_at[2 * rule + 1];
    if (!grow(&m->pairs, sizeof *m->pairs, m->n_pairs, to - from, &m->cap_pairs))
        return no_memory(b);
    m->pairs_at[state] = (uint32_t)m->n_pairs;
    for (uint32_t i = from; i < to && !rc; i++) {
        struct walk_ids found;
        struct mask_pair *p = &m->pairs[m->n_pairs++];
        const struct mask unsure = m->list[m->of[state].unsure];
        rc = walk_pair(b->walk, state, b->first[m->tops[i]], m->words + unsure.at, unsure.n, &found,
                       b->err);
        if (!rc) rc = store_found(b, &found, p);
    }
    return rc;
}

/* The longest list that is left when all that is known is used. */
static int check_unsure(struct build *b, uint32_t state)
{
    struct masks *m = b->m;
    const uint32_t at = m->pairs_at[state], rule = b->a->rule_of[state];
    uint32_t most = at == NO_PAIRS ? n_unsure(m, &m->of[state]) : 0;
    for (uint32_t i = 0; at != NO_PAIRS && i < m->tops_at[2 * rule + 1] - m->tops_at[2 * rule]; i++)
        if (n_unsure(m, &m->pairs[at + i]) > most) most = n_unsure(m, &m->pairs[at + i]);
    if (most > m->most_unsure) m->most_unsure = most;
    if (most <= MOST_UNSURE) return CFG_OK;
    return cfg_fail(
        b->err, CFG_EINVAL,
        "the grammar is too ambiguous: for %u tokens it depends on more than one caller "
        "of a rule whether they may come",
        most);
}

/* ---- all states ------------------------------------------------------------------------------ */

static int build_state(struct build *b, uint32_t state)
{
    struct masks *m = b->m;
    struct walk_ids found;
    const uint32_t same = b->first[m->kind[state]];
    if (same) {
        m->of[state] = m->of[same];
        return CFG_OK;
    }
    b->first[m->kind[state]] = state;
    const int rc = walk_state(b->walk, state, &found, b->err);
    return rc ? rc : store_found(b, &found, &m->of[state]);
}

static int build_all(struct build *b)
{
    struct masks *m = b->m;
    struct walk_ids found;
    uint32_t none = 0;
    int rc = store(b, MASK_LIST, NULL, 0, &none);
    m->of[STATE_NONE] = m->of[STATE_DONE] = (struct mask_pair){none, none};
    b->first[m->kind[STATE_DONE]] = STATE_DONE;
    for (uint32_t s = STATE_FIRST; s < b->a->n_states && !rc; s++) rc = build_state(b, s);
    if (!rc) rc = walk_stripped(b->walk, &found, b->err);
    if (!rc) rc = store_ids(b, found.sure, found.n_sure, &m->first);

    const size_t work = walk_work(b->walk) + PAIR_WORK;
    for (uint32_t s = STATE_FIRST; s < b->a->n_states && !rc; s++) {
        const uint32_t same = b->first[m->kind[s]];
        m->pairs_at[s] = same < s ? m->pairs_at[same] : NO_PAIRS;
        if (same < s) continue;
        if (n_unsure(m, &m->of[s]) > FEW_UNSURE && m->n_pairs < MAX_PAIRS &&
            walk_work(b->walk) < work)
            rc = build_pairs(b, s);
        if (!rc) rc = check_unsure(b, s);
    }
    return rc;
}

static int build(struct build *b)
{
    const struct automaton *a = b->a;
    struct masks *m = b->m;
    m->of = calloc(a->n_states, sizeof *m->of);
    m->pairs_at = calloc(a->n_states, sizeof *m->pairs_at);
    m->tops_at = calloc(2 * (size_t)a->n_rules, sizeof *m->tops_at);
    b->bits = calloc((size_t)m->n_words + 1, sizeof *b->bits);
    b->ids = calloc((size_t)b->trie->n_tokens + m->usable + 1, sizeof *b->ids);
    b->first = calloc(b->n_kinds, sizeof *b->first);
    b->seen = calloc(a->n_rules + b->n_kinds, sizeof *b->seen);
    b->stack = calloc(a->n_rules, sizeof *b->stack);
    b->tops = calloc(b->n_kinds, sizeof *b->tops);
    if (!m->of || !m->pairs_at || !m->tops_at || !b->bits || !b->ids || !b->first || !b->seen ||
        !b->stack || !b->tops)
        return no_memory(b);
    int rc = exits_new(&b->exits, a, m->kind, b->n_kinds, b->err);
    if (!rc) rc = walk_new(&b->walk, a, &b->exits, b->trie, b->err);
    if (!rc) rc = build_all(b);
    if (!rc && m->n_used > 0) { /* give back what was taken in advance */
        uint32_t *words = realloc(m->words, m->n_used * sizeof *words);
        if (words) m->words = words;
        m->cap_words = m->n_used;
    }
    return rc;
}

int masks_new(struct masks *out, const struct automaton *a, uint32_t *kind, uint32_t n_kinds,
              const struct token_trie *trie, uint32_t usable, struct error *err)
{
    struct build *b = calloc(1, sizeof *b);
    *out = (struct masks){.usable = usable, .n_words = (usable + 31) / 32, .kind = kind};
    int rc;
    if (b) {
        *b = (struct build){.m = out, .a = a, .trie = trie, .n_kinds = n_kinds, .err = err};
        rc = build(b);
        walk_free(b->walk);
        exits_deinit(&b->exits);
        free(b->bits);
        free(b->ids);
        free(b->next);
        free(b->first);
        free(b->seen);
        free(b->stack);
        free(b->tops);
        free(b);
    } else {
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for a grammar's masks");
    }
    if (rc) masks_deinit(out);
    return rc;
}

void masks_deinit(struct masks *m)
{
    free(m->list);
    free(m->words);
    free(m->of);
    free(m->pairs);
    free(m->pairs_at);
    free(m->tops);
    free(m->tops_at);
    free(m->kind);
    *m = (struct masks){0};
}

size_t masks_bytes(const struct masks *m, const struct automaton *a)
{
    return m->cap_words * sizeof *m->words + m->cap_list * sizeof *m->list +
           m->cap_pairs * sizeof *m->pairs + m->cap_tops * sizeof *m->tops +
           a->n_states * (sizeof *m->of + sizeof *m->pairs_at + sizeof *m->kind) +
           2 * a->n_rules * sizeof *m->tops_at;
}

/* ---- use ------------------------------------------------------------------------------------- */

static void add_all_but(const struct masks *m, const uint32_t *ids, uint32_t n, uint32_t *bits)
{
    uint32_t i = 0;
    for (uint32_t w = 0; w < m->n_words; w++) {
        uint32_t but = 0;
        for (; i < n && ids[i] / 32 == w; i++) but |= 1u << ids[i] % 32;
        bits[w] |= ~but;
    }
    if (m->usable % 32) bits[m->n_words - 1] &= (1u << m->usable % 32) - 1;
}

void masks_add(const struct masks *m, uint32_t mask, uint32_t *bits)
{
    const struct mask set = m->list[mask];
    const uint32_t *words = m->words + set.at;
    if (set.form == MASK_ALL_BUT) {
        add_all_but(m, words, set.n, bits);
    } else if (set.form == MASK_BITS) {
        for (uint32_t w = 0; w < set.n; w++) bits[w] |= words[w];
    } else {
        for (uint32_t i = 0; i < set.n; i++) bits[words[i] / 32] |= 1u << words[i] % 32;
    }
}

const struct mask_pair *masks_pair(const struct masks *m, const struct automaton *a, uint32_t state,
                                   uint32_t back)
{
    const uint32_t rule = a->rule_of[state], kind = m->kind[back];
    if (m->pairs_at[state] == NO_PAIRS) return NULL;
    uint32_t lo = m->tops_at[2 * rule], hi = m->tops_at[2 * rule + 1];
    const uint32_t from = lo;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (m->tops[mid] == kind) return &m->pairs[m->pairs_at[state] + mid - from];
        if (m->tops[mid] < kind)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}
