// SPDX-License-Identifier: Apache-2.0
//
// threads.c: a fork-join pool. A region is published by bumping `epoch`; workers spin on it for a
// short while (regions of a step follow each other within microseconds), then sleep on a futex, so
// that an idle daemon uses no CPU. The caller works too and waits until every worker has left the
// region: no worker can touch a region's argument after threads_for has returned.
#include "engine/cpu/threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS 4000 /* about 20 to 50 microseconds of pause instructions */

struct worker {
    struct threads *pool;
    pthread_t thread;
    int index;
};

struct threads {
    int n;
    struct worker *workers; /* [n - 1] */
    int started;

    /* the current region; written by the caller before epoch is bumped */
    threads_fn *fn;
    void *arg;
    size_t items, chunk;

    _Alignas(64) atomic_uint epoch;
    atomic_uint sleepers;
    _Alignas(64) atomic_size_t next; /* first item nobody has taken */
    _Alignas(64) atomic_int busy;    /* workers that have not left the region */
    atomic_bool stop;
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
}

static void work(struct threads *t, int index)
{
    for (;;) {
        size_t begin = atomic_fetch_add_explicit(&t->next, t->chunk, memory_order_relaxed);
        if (begin >= t->items) return;
        size_t end = begin + t->chunk < t->items ? begin + t->chunk : t->items;
        t->fn(t->arg, begin, end, index);
    }
}

static unsigned wait_for_region(struct threads *t, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load_explicit(&t->epoch, memory_order_acquire);
        if (now != seen) return now;
        pause_briefly();
    }
    /* Sequentially consistent: either the caller sees the sleeper, or the sleeper sees the epoch.
     */
    atomic_fetch_add(&t->sleepers, 1);
    unsigned now;
    while ((now = atomic_load(&t->epoch)) == seen) futex_wait(&t->epoch, seen);
    atomic_fetch_sub(&t->sleepers, 1);
    return now;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_region(w->pool, seen);
        if (atomic_load_explicit(&w->pool->stop, memory_order_acquire)) return NULL;
        work(w->pool, w->index);
        atomic_fetch_sub_explicit(&w->pool->busy, 1, memory_order_release);
    }
}

static void publish(struct threads *t)
{
    atomic_fetch_add(&t->epoch, 1);
    if (atomic_load(&t->sleepers) > 0) futex_wake_all(&t->epoch);
}

void threads_for(struct threads *t, size_t n, size_t chunk, threads_fn *fn, void *arg)
{
    if (n == 0) return;
    if (chunk == 0) chunk = 1;
    if (t->n == 1 || n <= chunk) {
        fn(arg, 0, n, 0);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    t->items = n;
    t->chunk = chunk;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->busy, t->n - 1, memory_order_relaxed);
    publish(t);
    work(t, 0);
    for (int spins = 0; atomic_load_explicit(&t->busy, memory_order_acquire) > 0; spins++) {
        if (spins < SPINS)
            pause_briefly();
        else
            sched_yield(); /* more threads than CPUs: let the last one run */
    }
}

int threads_open(struct threads **out, int n, struct error *err)
{
    if (n == 0) {
        cpu_set_t set;
        n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }
    struct threads *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t) return cfg_fail(err, CFG_ENOMEM, "no memory for the thread pool");
    *t = (struct threads){.n = n};
    t->workers = calloc((size_t)n, sizeof *t->workers);
    if (!t->workers) {
        free(t);
        return cfg_fail(err, CFG_ENOMEM, "no memory for %d compute threads", n);
    }
    for (int i = 0; i < n - 1; i++) {
        t->workers[i] = (struct worker){.pool = t, .index = i + 1};
        if (pthread_create(&t->workers[i].thread, NULL, worker_main, &t->workers[i])) {
            threads_close(t);
            return cfg_fail(err, CFG_ENOMEM, "can't start compute thread %d of %d", i + 2, n);
        }
        pthread_setname_np(t->workers[i].thread, "compute");
        t->started++;
    }
    *out = t;
    return CFG_OK;
}

void threads_close(struct threads *t)
{
    if (!t) return;
    atomic_store(&t->stop, true);
    publish(t);
    for (int i = 0; i < t->started; i++) pthread_join(t->workers[i].thread, NULL);
    free(t->workers);
    free(t);
}

int threads_count(const struct threads *t)
{
    return t->n;
}
