// SPDX-License-Identifier: Apache-2.0
//
// api_grammars.c: the grammars that were compiled for earlier requests, so that the next one with
// the same schema starts at once. Each tenant has its own, so that nobody can tell from the time an
// answer takes what another asked for. Bounded in number and in bytes: what was used longest ago
// goes first, of the tenant itself where it holds more than half. A slot is taken before its
// grammar is compiled, outside the lock: others who ask for the same text wait for it, all others
// go on. A failure is not kept, and nothing is given up for it. What requests hold has a bound of
// its own, since it stays where it is when it is no longer kept. Any thread.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_format.h"

enum {
    KEPT = 64,        /* grammars, at most */
    SLOTS = KEPT + 64 /* and those that are being compiled */
};

static const double bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5};

struct slot {
    char *text; /* NULL: the slot is free */
    size_t n, bytes;
    uint32_t tenant;
    enum engine_grammar_kind kind;
    struct engine_grammar *grammar; /* NULL: being compiled */
    uint64_t used;                  /* when last, by the clock of uses */
};

/* A grammar that requests hold. */
struct held {
    struct engine_grammar *grammar;
    size_t bytes, users;
};

struct api_grammars {
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    struct slot slots[SLOTS];
    size_t n, bytes, max_bytes; /* of those that are kept */
    struct held *held;          /* [n_held] in no order */
    size_t n_held, cap_held, held_bytes;
    uint64_t clock, compiled, found;
    struct metrics_histogram seconds; /* of all compilations */
};

struct api_grammars *api_grammars_new(size_t max_bytes)
{
    struct api_grammars *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->max_bytes = max_bytes;
    c->seconds.bounds = bounds;
    c->seconds.n_bounds = sizeof bounds / sizeof *bounds;
    return c;
}

/* Frees the slot; nobody compiles it. */
static void drop(struct api_grammars *c, struct slot *s)
{
    c->n -= s->grammar != NULL;
    c->bytes -= s->bytes;
    engine_grammar_unref(s->grammar);
    free(s->text);
    *s = (struct slot){0};
}

void api_grammars_free(struct api_grammars *c)
{
    if (!c) return;
    for (int i = 0; i < SLOTS; i++) drop(c, &c->slots[i]);
    free(c->held);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static struct slot *find(struct api_grammars *c, const struct api_grammars_key *key)
{
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &c->slots[i];
        if (s->text && s->tenant == key->tenant && s->kind == key->kind && s->n == key->n &&
            !memcmp(s->text, key->text, key->n))
            return s;
    }
    return NULL;
}

/* The finished one, other than `keep`, that was used longest ago; NULL when there is none. */
static struct slot *oldest(struct api_grammars *c, const struct slot *keep, bool own)
{
    struct slot *best = NULL;
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &c->slots[i];
        if (!s->grammar || s == keep || (own && s->tenant != keep->tenant)) continue;
        if (!best || s->used < best->used) best = s;
    }
    return best;
}

/* What makes room for `keep`. */
static struct slot *victim(struct api_grammars *c, const struct slot *keep)
{
    size_t n = 0, bytes = 0;
    for (int i = 0; i < SLOTS; i++) {
        const struct slot *s = &c->slots[i];
        if (!s->grammar || s->tenant != keep->tenant) continue;
        n++;
        bytes += s->bytes;
    }
    struct slot *own = NULL;
    if (n > KEPT / 2 || bytes > c->max_bytes / 2) own = oldest(c, keep, true);
    return own ? own : oldest(c, keep, false);
}

/* A slot for a text that is about to be compiled; NULL when there is no room or memory. */
static struct slot *take(struct api_grammars *c, const struct api_grammars_key *key)
{
    struct slot *s = NULL;
    for (int i = 0; i < SLOTS && !s; i++)
        if (!c->slots[i].text) s = &c->slots[i];
    char *copy = s ? malloc(key->n + 1) : NULL;
    if (!copy) return NULL;
    memcpy(copy, key->text, key->n);
    *s = (struct slot){.text = copy, .n = key->n, .kind = key->kind, .tenant = key->tenant};
    return s;
}

/* What was compiled goes into its slot, if it fits at all; others make room. */
static void put(struct api_grammars *c, struct slot *s, struct engine_grammar *g)
{
    const size_t bytes = g ? s->n + engine_grammar_bytes(g) : 0;
    if (!g || bytes > c->max_bytes) {
        drop(c, s);
        return;
    }
    s->grammar = engine_grammar_ref(g);
    s->bytes = bytes;
    s->used = ++c->clock;
    c->bytes += bytes;
    c->n++;
    while (c->n > KEPT || c->bytes > c->max_bytes) drop(c, victim(c, s));
}

/* ---- what requests hold ---------------------------------------------------------------------- */

static struct held *held_of(const struct api_grammars *c, const struct engine_grammar *g)
{
    for (size_t i = 0; i < c->n_held; i++)
        if (c->held[i].grammar == g) return &c->held[i];
    return NULL;
}

/* One more user of g, which is what the caller holds. */
static int hold(struct api_grammars *c, struct engine_grammar *g, struct error *err)
{
    struct held *h = held_of(c, g);
    if (h) {
        h->users++;
        return CFG_OK;
    }
    const size_t bytes = engine_grammar_bytes(g);
    if (c->held_bytes + bytes > API_GRAMMARS_HELD * c->max_bytes)
        return cfg_fail(err, CFG_EFULL, "too many large grammars are in use");
    if (c->n_held == c->cap_held) {
        const size_t cap = c->cap_held ? 2 * c->cap_held : 16;
        h = realloc(c->held, cap * sizeof *h);
        if (!h) return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
        c->held = h;
        c->cap_held = cap;
    }
    c->held[c->n_held++] = (struct held){g, bytes, 1};
    c->held_bytes += bytes;
    return CFG_OK;
}

void api_grammars_release(struct api_grammars *c, struct engine_grammar *g)
{
    if (c && g) {
        pthread_mutex_lock(&c->lock);
        struct held *h = held_of(c, g);
        if (h && --h->users == 0) {
            c->held_bytes -= h->bytes;
            *h = c->held[--c->n_held];
        }
        pthread_mutex_unlock(&c->lock);
    }
    engine_grammar_unref(g);
}

/* ---- getting one ----------------------------------------------------------------------------- */

/* The end of api_grammars_get, with the lock, which it gives back. */
static int give(struct api_grammars *c, struct engine_grammar **out, int rc, struct error *err)
{
    if (!rc) rc = hold(c, *out, err);
    pthread_mutex_unlock(&c->lock);
    if (!rc) return CFG_OK;
    engine_grammar_unref(*out);
    *out = NULL;
    return rc;
}

static int compile(struct engine_grammar **out, const struct engine_tokenizer *t, int usable_vocab,
                   const struct api_grammars_key *key, struct error *err)
{
    return engine_grammar_new(out, t, usable_vocab, key->kind, key->text, key->n, err);
}

int api_grammars_get(struct api_grammars *c, struct engine_grammar **out,
                     const struct engine_tokenizer *t, int usable_vocab,
                     const struct api_grammars_key *key, struct error *err)
{
    if (!c) return compile(out, t, usable_vocab, key, err);
    struct slot *s;
    pthread_mutex_lock(&c->lock);
    while ((s = find(c, key)) && !s->grammar) pthread_cond_wait(&c->changed, &c->lock);
    if (s) {
        s->used = ++c->clock;
        c->found++;
        *out = engine_grammar_ref(s->grammar);
        return give(c, out, CFG_OK, err);
    }
    s = take(c, key);
    c->compiled++;
    pthread_mutex_unlock(&c->lock);

    const double begun = cfg_now();
    const int rc = compile(out, t, usable_vocab, key, err);
    pthread_mutex_lock(&c->lock);
    metrics_observe(&c->seconds, cfg_now() - begun, 1);
    if (s) put(c, s, *out);
    pthread_cond_broadcast(&c->changed);
    return give(c, out, rc, err);
}

void api_grammars_stats(struct api_grammars *c, struct api_grammars_stats *out)
{
    *out = (struct api_grammars_stats){0};
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    *out = (struct api_grammars_stats){c->n,        c->bytes, c->held_bytes,
                                       c->compiled, c->found, c->seconds};
    pthread_mutex_unlock(&c->lock);
}
