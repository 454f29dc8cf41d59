// SPDX-License-Identifier: Apache-2.0
//
// runner.h (private to scheduler/): what the engine thread does with the sequences it owns: admit,
// step, preempt, finish. It knows no threads and no locks; sched.c calls it and carries jobs in and
// events out. The runner owns its sequences, the KV pool and the prefix tree; the engine is
// borrowed. runner.c is the step, admit.c who has blocks for it.
#ifndef OPENMOED_RUNNER_H
#define OPENMOED_RUNNER_H

#include "scheduler/plan.h"
#include "scheduler/routing.h"
#include "scheduler/seq.h"

struct runner {
    struct engine *engine;
    const struct engine_info *info;
    struct kv_pool *pool;
    struct kv_prefix *prefix; /* NULL: nothing is reused */
    struct plan_limits limits;

    struct plan_queue queue; /* who waits; owns the tenants */
    struct seq **running;    /* [max_seqs], the first n_running, in order of admission */
    struct seq_list
        finished;          /* their blocks are given back; their DONE event is still to be made */
    struct seq_list ended; /* theirs is in `out` */
    int n_running;
    uint64_t next_order;
    bool opened;          /* init came to its end */
    double next_deadline; /* none passes before */
    struct plan_turn turn;

    const struct plan_job **jobs;  /* [max_seqs] */
    struct plan_seq *plan;         /* [max_seqs] */
    struct engine_rows *rows;      /* [max_seqs] */
    struct seq **stepping;         /* [max_seqs] whose rows these are */
    struct engine_result *sampled; /* [max_seqs] */
    struct engine_result *scored;  /* [max_step_tokens] */
    struct routing routing;        /* what the router does, and what it will */
    struct runner_note {
        struct seq *seq;
        struct routing_rows rows;
    } * notes; /* [max_seqs], the first n_notes: what of the last step is still to be counted */
    int n_notes, noted_rows; /* rows of that step */

    struct sched_events out;  /* events since the last publication */
    struct sched_stats stats; /* all but state and what waits */
};

/* The engine need not be loaded yet. On failure nothing is left to deinit. */
int runner_init(struct runner *r, struct engine *e, const struct sched_options *opt,
                struct error *err) CFG_WARN_UNUSED;
/* Frees what is left of its sequences too. */
void runner_deinit(struct runner *r);

/* Takes all of *list into the queue. */
void runner_enter(struct runner *r, struct seq_list *list);
/* Ends every sequence whose cancel flag is set (all = every sequence) or whose time is over. The
 * flags' lock is held. */
void runner_sweep(struct runner *r, bool all, double now);
/* Starts waiting sequences in the queue's order as long as seats and blocks are free. */
void runner_admit(struct runner *r, double now);
/* Brings the figures of stats up to date that are not counted as things happen. */
void runner_stats(struct runner *r);
/* Events that the next runner_step and runner_done may add, at most. */
size_t runner_max_events(const struct runner *r);
/* One step over what runs; CFG_OK, or the engine's error: then every sequence that had rows is
 * finished with `message`, filled in by the caller through runner_done. Room for the events must
 * have been made. */
int runner_step(struct runner *r, struct error *err) CFG_WARN_UNUSED;
/* Adds the DONE events of finished sequences. `message` is given to those that end in an error. */
void runner_done(struct runner *r, const char *message);
/* Counts what the router did in the last step and learns from it. Before the next step's end and
 * before `ended` is freed; on a device, while the next step runs. */
void runner_settle(struct runner *r);

/* ---- between runner.c and admit.c ----------------------------------------------------------- */

/* Gives every running sequence the block its next row needs; some may have to yield theirs and wait
 * again. */
void runner_grow(struct runner *r);
/* Its n_done went up from `before`: what is full now may be reused (its payloads are written). */
void runner_keep(struct runner *r, struct seq *q, int before);
/* Gives the blocks back at once; the caller takes q off running or the queue. */
void runner_finish(struct runner *r, struct seq *q, enum sched_finish why);

/* Room for `extra` more events, growing by doubling; false when memory is out. */
bool events_reserve(struct sched_events *ev, size_t extra);

#endif
