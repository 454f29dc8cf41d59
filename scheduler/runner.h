// SPDX-License-Identifier: Apache-2.0
//
// runner.h (private to scheduler/): what the engine thread does with the sequences it owns: admit,
// step, finish. It knows no threads and no locks; sched.c calls it and carries jobs in and events
// out. The runner owns its sequences and the KV pool; the engine is borrowed.
#ifndef OPENMOED_RUNNER_H
#define OPENMOED_RUNNER_H

#include "scheduler/plan.h"
#include "scheduler/seq.h"

struct runner {
    struct engine *engine;
    const struct engine_info *info;
    struct kv_pool *pool;
    struct plan_limits limits;

    struct seq_list waiting;  /* in order of arrival */
    struct seq **running;     /* [max_seqs], the first n_running, in order of admission */
    struct seq_list finished; /* their blocks are given back; DONE is still to be published */
    int n_running;
    uint64_t next_order;
    struct plan_turn turn;

    struct plan_seq *plan;         /* [max_seqs] */
    struct engine_rows *rows;      /* [max_seqs] */
    struct seq **stepping;         /* [max_seqs] whose rows these are */
    struct engine_result *sampled; /* [max_seqs] */
    struct engine_result *scored;  /* [max_step_tokens] */

    struct sched_events out;  /* events since the last publication */
    struct sched_stats stats; /* all but state and waiting */
};

/* The engine need not be loaded yet. On failure nothing is left to deinit. */
int runner_init(struct runner *r, struct engine *e, const struct sched_options *opt,
                struct error *err) CFG_WARN_UNUSED;
/* Frees what is left of its sequences too. */
void runner_deinit(struct runner *r);

/* Ends every sequence whose cancel flag is set (all = every sequence). The flags' lock is held. */
void runner_cancel(struct runner *r, bool all);
/* Starts waiting sequences in order of arrival as long as seats and blocks are free. */
void runner_admit(struct runner *r, double now);
/* Events that the next runner_step and runner_done may add, at most. */
size_t runner_max_events(const struct runner *r);
/* One step over what runs; CFG_OK, or the engine's error: then every sequence that had rows is
 * finished with `message`, filled in by the caller through runner_done. Room for the events must
 * have been made. */
int runner_step(struct runner *r, struct error *err) CFG_WARN_UNUSED;
/* Adds the DONE events of finished sequences. `message` is given to those that end in an error. */
void runner_done(struct runner *r, const char *message);

/* Room for `extra` more events, growing by doubling; false when memory is out. */
bool events_reserve(struct sched_events *ev, size_t extra);

#endif
