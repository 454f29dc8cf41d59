// SPDX-License-Identifier: Apache-2.0
//
// threads.h (private to engine/cpu/): the compute threads. One caller (the engine thread) hands out
// a range of items; it and the workers take chunks of it until none is left. Which thread computes
// an item never changes the item's result, so dynamic sharing is safe for exactness.
#ifndef OPENMOED_CPU_THREADS_H
#define OPENMOED_CPU_THREADS_H

#include <stddef.h>

#include "config/config.h"

struct threads;

/* n = 0 takes the CPUs this process may run on; the caller counts as one of them. */
int threads_open(struct threads **out, int n, struct error *err) CFG_WARN_UNUSED;
void threads_close(struct threads *t); /* t may be NULL */
int threads_count(const struct threads *t);

/* Calls fn(arg, begin, end, thread) over chunks of [0, n) until all is done; thread is in
 * [0, threads_count). With n <= chunk everything runs on the caller. */
typedef void threads_fn(void *arg, size_t begin, size_t end, int thread);
void threads_for(struct threads *t, size_t n, size_t chunk, threads_fn *fn, void *arg);

#endif
