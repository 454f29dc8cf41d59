// SPDX-License-Identifier: Apache-2.0
//
// sched.c: the scheduler's two sides and what lies between (scheduler.h). The loop thread submits,
// cancels and takes events; the engine thread runs the runner. They share `struct shared` under one
// mutex, held only to move lists and to copy a step's events: never during a step, nor during
// notify. The runner belongs to the engine thread alone, except its info and pool size, which never
// change. A sequence is in the id map from submission until its DONE event can be taken.
#include "scheduler/runner.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_MESSAGES 16

/* Everything both threads touch; `lock` guards it all. */
struct shared {
    enum sched_state state;
    bool closing;
    struct seq_list inbox;      /* submitted, not seen by the engine thread yet */
    bool cancels;               /* some sequence has its cancel flag set */
    int waiting;                /* in the inbox or in the runner's queue ... */
    size_t waiting_tokens;      /* ... and their prompt tokens */
    struct seq_map live;        /* every sequence whose DONE was not published */
    struct sched_events events; /* published, not taken yet */
    struct sched_stats stats;
    struct error failure; /* of the load */
};

struct sched {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* the engine thread waits here: new jobs, cancels, closing */
    struct shared sh;
    struct runner runner;
    struct sched_options opt;
    pthread_t thread;
    bool stop_load; /* atomic: polled by engine_load */

    /* Distinct errors of steps: written by the engine thread before their event is published, then
     * never changed, so events may point to them. */
    char messages[MAX_MESSAGES][sizeof(((struct error *)0)->message)];
    int n_messages;
};

/* ---- engine thread -------------------------------------------------------------------------- */

/* The same text always gives the same pointer, so a failing device can't fill memory. */
static const char *keep_message(struct sched *s, const char *text)
{
    for (int i = 0; i < s->n_messages; i++)
        if (strcmp(s->messages[i], text) == 0) return s->messages[i];
    if (s->n_messages == MAX_MESSAGES) return "the engine failed in many ways: see the log";
    char *slot = s->messages[s->n_messages++];
    memcpy(slot, text, strlen(text) + 1);
    return slot;
}

/* Room for `extra` more events. An accepted job must get its DONE, so when memory is out this waits
 * for some. The lock is held, and let go while waiting. False: closing, nobody wants them. */
static bool make_room(struct sched *s, struct sched_events *ev, size_t extra)
{
    while (!s->sh.closing && !events_reserve(ev, extra)) {
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_nsec += 50000000;
        at.tv_sec += at.tv_nsec / 1000000000;
        at.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&s->wake, &s->lock, &at);
    }
    return !s->sh.closing;
}

static void copy_stats(struct sched *s)
{
    struct runner *r = &s->runner;
    s->sh.waiting = s->sh.inbox.n + r->queue.n;
    s->sh.waiting_tokens = (size_t)r->queue.n_prompt;
    for (const struct seq *q = s->sh.inbox.head; q; q = q->next)
        s->sh.waiting_tokens += (size_t)q->n_prompt;
    runner_stats(r);
    s->sh.stats = r->stats;
}

/* Sleeps until there is something to do, then takes jobs and cancels in and fills free seats.
 * False: closing. */
static bool take_in(struct sched *s)
{
    struct runner *r = &s->runner;
    struct shared *sh = &s->sh;
    pthread_mutex_lock(&s->lock);
    while (!sh->closing && !sh->inbox.head && !sh->cancels && r->queue.n == 0 && r->n_running == 0)
        pthread_cond_wait(&s->wake, &s->lock);
    double now = cfg_now();
    runner_enter(r, &sh->inbox);
    if (sh->cancels || now >= r->next_deadline) runner_sweep(r, false, now);
    sh->cancels = false;
    runner_admit(r, now);
    copy_stats(s);
    bool go_on = make_room(s, &r->out, runner_max_events(r));
    pthread_mutex_unlock(&s->lock);
    return go_on;
}

/* Hands over the last step's events and forgets the sequences that ended. */
static void publish(struct sched *s)
{
    struct runner *r = &s->runner;
    struct sched_events *to = &s->sh.events;
    size_t n = r->out.n;
    if (n == 0) return;
    pthread_mutex_lock(&s->lock);
    /* A step may be running: what was reserved in r->out for its events must still be there. */
    if (to->n == 0 && to->capacity >= r->out.capacity) {
        struct sched_events empty = *to;
        *to = r->out;
        r->out = empty;
    } else if (make_room(s, to, n)) {
        memcpy(to->items + to->n, r->out.items, n * sizeof(to->items[0]));
        to->n += n;
    }
    r->out.n = 0;
    for (struct seq *q = r->ended.head; q; q = q->next) seq_map_remove(&s->sh.live, q);
    copy_stats(s);
    pthread_mutex_unlock(&s->lock);
    seq_list_free(&r->ended);
    s->opt.notify(s->opt.notify_arg);
}

/* Returns whether there is an engine to run. */
static bool load(struct sched *s)
{
    struct error err = {0};
    int rc = engine_load(s->runner.engine, &s->stop_load, &err);
    pthread_mutex_lock(&s->lock);
    if (rc) {
        s->sh.state = SCHED_FAILED;
        s->sh.failure = err;
    } else if (s->sh.state == SCHED_LOADING) {
        s->sh.state = SCHED_READY;
    }
    pthread_mutex_unlock(&s->lock);
    s->opt.notify(s->opt.notify_arg);
    return rc == CFG_OK;
}

/* All that is left of the last step. */
static void after_step(void *arg)
{
    struct sched *s = arg;
    runner_settle(&s->runner);
    publish(s);
}

static void *engine_main(void *arg)
{
    struct sched *s = arg;
    struct error err;
    if (!load(s)) return NULL;
    while (take_in(s)) {
        const char *message = NULL;
        if (runner_step(&s->runner, &err)) {
            cfg_log(CFG_LOG_ERROR, "engine step failed: %s", err.message);
            message = keep_message(s, err.message);
        }
        runner_done(&s->runner, message);
        /* A device's next step hides this; without one there is nothing to wait for. */
        if (!s->runner.info->async || s->runner.n_running == 0) after_step(s);
    }
    return NULL;
}

/* ---- open and close ------------------------------------------------------------------------- */

/* Signals are the loop thread's business: the engine thread starts with all of them blocked. */
static int start_thread(struct sched *s, struct error *err)
{
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* a lost page of the model is this thread's own */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&s->thread, NULL, engine_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) return cfg_fail(err, CFG_ENOMEM, "can't start the engine thread: %s", strerror(rc));
    pthread_setname_np(s->thread, "engine");
    return CFG_OK;
}

int sched_open(struct sched **out, struct engine *e, const struct sched_options *opt,
               struct error *err)
{
    *out = NULL;
    struct sched *s = calloc(1, sizeof(*s));
    if (!s) return cfg_fail(err, CFG_ENOMEM, "no memory for the scheduler");
    s->opt = *opt;
    int rc = runner_init(&s->runner, e, opt, err);
    if (rc) goto free_sched;
    rc = seq_map_init(&s->sh.live, (size_t)opt->max_seqs + (size_t)opt->max_queued, err);
    if (rc) goto deinit_runner;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    s->sh.stats = s->runner.stats;
    engine_on_launch(e, after_step, s);
    rc = start_thread(s, err);
    if (rc) goto destroy_lock;
    *out = s;
    return CFG_OK;

destroy_lock:
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    seq_map_deinit(&s->sh.live);
deinit_runner:
    runner_deinit(&s->runner);
free_sched:
    free(s);
    return rc;
}

void sched_close(struct sched *s)
{
    if (!s) return;
    __atomic_store_n(&s->stop_load, true, __ATOMIC_RELAXED);
    pthread_mutex_lock(&s->lock);
    s->sh.closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    seq_list_free(&s->sh.inbox);
    sched_events_free(&s->sh.events);
    runner_deinit(&s->runner);
    seq_map_deinit(&s->sh.live);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- loop thread ---------------------------------------------------------------------------- */

/* Whether n more jobs with so many prompt tokens may come in now. Only the loop thread adds to the
 * queue, so a yes holds until it does. */
static int check_open(struct sched *s, size_t n, size_t n_tokens, struct error *err)
{
    pthread_mutex_lock(&s->lock);
    enum sched_state state = s->sh.state;
    size_t waiting = (size_t)s->sh.waiting, waiting_tokens = s->sh.waiting_tokens;
    pthread_mutex_unlock(&s->lock);
    size_t max = (size_t)s->opt.max_queued, max_tokens = s->opt.max_queued_tokens;
    if (state == SCHED_LOADING)
        return cfg_fail(err, CFG_ECLOSED, "the model is still being loaded");
    if (state == SCHED_DRAINING) return cfg_fail(err, CFG_ECLOSED, "the server is shutting down");
    if (state == SCHED_FAILED) return cfg_fail(err, CFG_ECLOSED, "the model could not be loaded");
    if (n > max)
        return cfg_fail(err, CFG_EINVAL, "%zu sequences at once, the queue holds %zu", n, max);
    if (waiting > max - n)
        return cfg_fail(err, CFG_EFULL, "%zu sequences are waiting, the queue holds %zu", waiting,
                        max);
    if (max_tokens > 0 && waiting > 0 && waiting_tokens + n_tokens > max_tokens)
        return cfg_fail(err, CFG_EFULL, "%zu prompt tokens are waiting, the queue holds %zu",
                        waiting_tokens, max_tokens);
    return CFG_OK;
}

/* Adds all of *list or nothing: an id that is in use, even twice in the list, refuses it whole. */
static int enqueue(struct sched *s, struct seq_list *list, struct error *err)
{
    struct shared *sh = &s->sh;
    pthread_mutex_lock(&s->lock);
    struct seq *q = list->head;
    for (; q && !seq_map_find(&sh->live, q->id); q = q->next) seq_map_add(&sh->live, q);
    if (q) {
        uint64_t id = q->id;
        for (struct seq *undo = list->head; undo != q; undo = undo->next)
            seq_map_remove(&sh->live, undo);
        pthread_mutex_unlock(&s->lock);
        return cfg_fail(err, CFG_EINVAL, "job %llu is already known", (unsigned long long)id);
    }
    sh->waiting += list->n;
    for (const struct seq *new = list->head; new; new = new->next)
        sh->waiting_tokens += (size_t) new->n_prompt;
    seq_list_append(&sh->inbox, list);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    return CFG_OK;
}

int sched_submit_all(struct sched *s, const struct sched_job *jobs, size_t n, struct error *err)
{
    struct seq_list list = {0};
    size_t n_tokens = 0;
    for (size_t i = 0; i < n; i++) n_tokens += jobs[i].n_prompt;
    int rc = check_open(s, n, n_tokens, err);
    for (size_t i = 0; i < n && !rc; i++) {
        struct seq *q;
        rc = seq_new(&q, &jobs[i], s->runner.info, s->runner.pool, &s->opt, err);
        if (!rc) seq_list_push(&list, q);
    }
    seq_group(&list, kv_pool_block_size(s->runner.pool));
    if (!rc) rc = enqueue(s, &list, err);
    seq_list_free(&list);
    return rc;
}

int sched_submit(struct sched *s, const struct sched_job *job, struct error *err)
{
    return sched_submit_all(s, job, 1, err);
}

void sched_cancel(struct sched *s, uint64_t id)
{
    pthread_mutex_lock(&s->lock);
    struct seq *q = seq_map_find(&s->sh.live, id);
    if (q) {
        q->cancel = s->sh.cancels = true;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
}

void sched_take(struct sched *s, struct sched_events *out)
{
    pthread_mutex_lock(&s->lock);
    struct sched_events taken = s->sh.events;
    s->sh.events = *out;
    s->sh.events.n = 0;
    pthread_mutex_unlock(&s->lock);
    *out = taken;
}

void sched_events_free(struct sched_events *ev)
{
    free(ev->items);
    *ev = (struct sched_events){0};
}

void sched_stats(struct sched *s, struct sched_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->sh.stats;
    out->state = s->sh.state;
    out->waiting = s->sh.waiting;
    out->waiting_tokens = s->sh.waiting_tokens;
    pthread_mutex_unlock(&s->lock);
}

struct sched_routing *sched_routing_total(struct sched *s)
{
    return sched_routing_ref(s->runner.routing.total);
}

void sched_layers(struct sched *s, struct sched_layer *out)
{
    const struct routing *g = &s->runner.routing;
    for (int l = 0; l < g->info->moe_layers; l++) {
        const uint64_t *from = &g->layers[l].steps;
        uint64_t *to = &out[l].steps;
        for (size_t i = 0; i < sizeof(out[l]) / sizeof(*to); i++)
            to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}

void sched_drain(struct sched *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->sh.state != SCHED_FAILED) s->sh.state = SCHED_DRAINING;
    pthread_mutex_unlock(&s->lock);
}

void sched_failure(struct sched *s, struct error *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->sh.failure;
    pthread_mutex_unlock(&s->lock);
}
