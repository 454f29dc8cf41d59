// SPDX-License-Identifier: Apache-2.0
//
// api_grammars.c: the grammars that were compiled for earlier requests, so that the next one with
// the same schema starts at once. Bounded in number and in bytes; what was used longest ago goes
// first. A slot is taken before its grammar is compiled, outside the lock: others who ask for the
// same text wait for it, all others go on. A failure is not kept. Any thread.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_format.h"

enum { SLOTS = 64 };

struct slot {
    char *text; /* NULL: the slot is free */
    size_t n, bytes;
    enum engine_grammar_kind kind;
    struct engine_grammar *grammar; /* NULL: being compiled */
    uint64_t used;                  /* when last, by the clock of uses */
};

struct api_grammars {
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    struct slot slots[SLOTS];
    size_t bytes, max_bytes;
    uint64_t clock, compiled, found;
};

struct api_grammars *api_grammars_new(size_t max_bytes)
{
    struct api_grammars *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->max_bytes = max_bytes;
    return c;
}

/* Frees the slot; nobody compiles it. */
static void drop(struct api_grammars *c, struct slot *s)
{
    c->bytes -= s->bytes;
    engine_grammar_unref(s->grammar);
    free(s->text);
    *s = (struct slot){0};
}

void api_grammars_free(struct api_grammars *c)
{
    if (!c) return;
    for (int i = 0; i < SLOTS; i++) drop(c, &c->slots[i]);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static struct slot *find(struct api_grammars *c, enum engine_grammar_kind kind, const char *text,
                         size_t n)
{
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &c->slots[i];
        if (s->text && s->kind == kind && s->n == n && !memcmp(s->text, text, n)) return s;
    }
    return NULL;
}

/* The finished one, other than `keep`, that was used longest ago; NULL when there is none. */
static struct slot *oldest(struct api_grammars *c, const struct slot *keep)
{
    struct slot *best = NULL;
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &c->slots[i];
        if (!s->grammar || (keep && s == keep)) continue;
        if (!best || s->used < best->used) best = s;
    }
    return best;
}

/* A slot for a text that is about to be compiled; NULL when there is no room or memory. */
static struct slot *take(struct api_grammars *c, enum engine_grammar_kind kind, const char *text,
                         size_t n)
{
    struct slot *s = NULL;
    for (int i = 0; i < SLOTS && !s; i++)
        if (!c->slots[i].text) s = &c->slots[i];
    if (!s) s = oldest(c, NULL);
    char *copy = s ? malloc(n + 1) : NULL;
    if (!copy) return NULL;
    if (s->text) drop(c, s);
    memcpy(copy, text, n);
    *s = (struct slot){.text = copy, .n = n, .kind = kind};
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
    while (c->bytes > c->max_bytes) drop(c, oldest(c, s));
}

int api_grammars_get(struct api_grammars *c, struct engine_grammar **out,
                     const struct engine_tokenizer *t, int usable_vocab,
                     enum engine_grammar_kind kind, const char *text, size_t n, struct error *err)
{
    if (!c) return engine_grammar_new(out, t, usable_vocab, kind, text, n, err);
    struct slot *s;
    pthread_mutex_lock(&c->lock);
    while ((s = find(c, kind, text, n)) && !s->grammar) pthread_cond_wait(&c->changed, &c->lock);
    if (s) {
        s->used = ++c->clock;
        c->found++;
        *out = engine_grammar_ref(s->grammar);
        pthread_mutex_unlock(&c->lock);
        return CFG_OK;
    }
    s = take(c, kind, text, n);
    c->compiled++;
    pthread_mutex_unlock(&c->lock);

    const int rc = engine_grammar_new(out, t, usable_vocab, kind, text, n, err);
    if (!s) return rc;
    pthread_mutex_lock(&c->lock);
    put(c, s, *out);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

void api_grammars_stats(struct api_grammars *c, struct api_grammars_stats *out)
{
    *out = (struct api_grammars_stats){0};
    pthread_mutex_lock(&c->lock);
    for (int i = 0; i < SLOTS; i++) out->n += c->slots[i].grammar != NULL;
    out->bytes = c->bytes;
    out->compiled = c->compiled;
    out->found = c->found;
    pthread_mutex_unlock(&c->lock);
}
