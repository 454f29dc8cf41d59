// SPDX-License-Identifier: Apache-2.0
//
// arena.c: a list of zeroed chunks, filled from the front of the newest. The cap is on what is
// handed out (rounded up to 16 bytes), and holds before memory is asked for, so that a hostile
// request can't make the process allocate more than about a third over it. Nothing is given back
// before cfg_arena_free.
#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

enum { ALIGN = 16, CHUNK = 16 * 1024 };

struct chunk {
    struct chunk *next;
    size_t used, size; /* of data, in bytes */
    alignas(ALIGN) char data[];
};

struct cfg_arena {
    struct chunk *head; /* where small pieces are cut from; big ones hang behind it */
    size_t used, cap;
};

struct cfg_arena *cfg_arena_new(size_t cap_bytes)
{
    struct cfg_arena *a = calloc(1, sizeof *a);
    if (a) a->cap = cap_bytes;
    return a;
}

void cfg_arena_free(struct cfg_arena *a)
{
    if (!a) return;
    for (struct chunk *c = a->head; c;) {
        struct chunk *next = c->next;
        free(c);
        c = next;
    }
    free(a);
}

static struct chunk *chunk_new(size_t size)
{
    struct chunk *c = calloc(1, sizeof *c + size);
    if (c) c->size = size;
    return c;
}

void *cfg_arena_alloc(struct cfg_arena *a, size_t bytes)
{
    if (bytes > a->cap) return NULL; /* also keeps the rounding below from wrapping */
    size_t n = bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
    if (n < bytes || n > a->cap - a->used) return NULL;

    struct chunk *c = a->head;
    if (!c || n > c->size - c->used) {
        /* A big piece gets a chunk of its own, so that little is wasted at the end of a common
         * one; that chunk goes behind the head, which still has room. */
        bool big = n > CHUNK / 4;
        c = chunk_new(big ? n : CHUNK);
        if (!c) return NULL;
        if (big && a->head) {
            c->next = a->head->next;
            a->head->next = c;
        } else {
            c->next = a->head;
            a->head = c;
        }
    }
    void *p = c->data + c->used;
    c->used += n;
    a->used += n;
    return p;
}

char *cfg_arena_strndup(struct cfg_arena *a, const char *s, size_t n)
{
    if (n == SIZE_MAX) return NULL;
    char *copy = cfg_arena_alloc(a, n + 1);
    if (copy && n) memcpy(copy, s, n);
    return copy;
}

size_t cfg_arena_used(const struct cfg_arena *a)
{
    return a->used;
}
