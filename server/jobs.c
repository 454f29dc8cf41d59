// SPDX-License-Identifier: Apache-2.0
//
// jobs.c: linear probing with a multiplicative hash, since ids are handed out in order. Removal
// closes the gap instead of leaving a tombstone, so that the table never fills up with the dead.
#include "server/jobs.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 64 };

static size_t home_of(uint64_t id, size_t capacity)
{
    return (size_t)((id * 0x9E3779B97F4A7C15u) >> 32) & (capacity - 1);
}

/* The slot that holds id, or the free one where it would go. There always is a free one. */
static size_t probe(const struct job_slot *slots, size_t capacity, uint64_t id)
{
    size_t i = home_of(id, capacity);
    while (slots[i].id != 0 && slots[i].id != id) i = (i + 1) & (capacity - 1);
    return i;
}

int jobs_reserve(struct jobs *t, size_t more)
{
    size_t capacity = t->capacity > 0 ? t->capacity : FIRST_CAPACITY;
    while (capacity / 2 < t->used + more) capacity *= 2;
    if (capacity == t->capacity) return 0;
    struct job_slot *slots = calloc(capacity, sizeof *slots);
    if (slots == NULL) return -1;
    for (size_t i = 0; i < t->capacity; i++)
        if (t->slots[i].id != 0) slots[probe(slots, capacity, t->slots[i].id)] = t->slots[i];
    free(t->slots);
    t->slots = slots;
    t->capacity = capacity;
    return 0;
}

void jobs_add(struct jobs *t, uint64_t id, struct request *r)
{
    t->slots[probe(t->slots, t->capacity, id)] = (struct job_slot){id, r};
    t->used++;
}

struct request *jobs_find(const struct jobs *t, uint64_t id)
{
    if (t->used == 0 || id == 0) return NULL;
    return t->slots[probe(t->slots, t->capacity, id)].request;
}

void jobs_remove(struct jobs *t, uint64_t id)
{
    if (jobs_find(t, id) == NULL) return;
    const size_t mask = t->capacity - 1;
    size_t gap = probe(t->slots, t->capacity, id);
    /* A later entry moves into the gap unless its home lies between the gap and where it is. */
    for (size_t i = (gap + 1) & mask; t->slots[i].id != 0; i = (i + 1) & mask) {
        const size_t from_home = (i - home_of(t->slots[i].id, t->capacity)) & mask;
        if (from_home < ((i - gap) & mask)) continue;
        t->slots[gap] = t->slots[i];
        gap = i;
    }
    t->slots[gap] = (struct job_slot){0};
    t->used--;
}

void jobs_free(struct jobs *t)
{
    free(t->slots);
    *t = (struct jobs){0};
}
