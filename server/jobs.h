// SPDX-License-Identifier: Apache-2.0
//
// jobs.h (private to server/): which request a scheduler job belongs to. An open hash table from
// job id to request, owned by the loop thread; it does not own the requests. Start with zeroes.
#ifndef OPENMOED_JOBS_H
#define OPENMOED_JOBS_H

#include "config/config.h"

struct request;

struct jobs {
    struct job_slot {
        uint64_t id; /* 0 = free */
        struct request *request;
    } * slots;
    size_t capacity, used; /* capacity: a power of two, at least twice used */
};

/* Makes room for `more` ids, so that adding them cannot fail. -1: no memory, nothing changed. */
int jobs_reserve(struct jobs *t, size_t more) CFG_WARN_UNUSED;
/* id is not 0 and not in the table; room was reserved. */
void jobs_add(struct jobs *t, uint64_t id, struct request *r);
struct request *jobs_find(const struct jobs *t, uint64_t id); /* NULL: not there */
void jobs_remove(struct jobs *t, uint64_t id);                /* harmless when not there */
void jobs_free(struct jobs *t);

#endif
