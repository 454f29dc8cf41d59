// SPDX-License-Identifier: Apache-2.0
//
// scheduler.h: who runs in the next step. It owns the engine thread, the queue of waiting
// sequences, the running ones, their KV block tables and samplers. Jobs come in and events go out
// by value and id: no pointer to a connection or a request ever crosses.
//
// Threads: sched_open, sched_submit, sched_cancel, sched_take, sched_drain, sched_close belong to
// the loop thread; sched_stats to any. `notify` is called on the engine thread, at most once a
// step, and once when the load has ended (look at the state).
#ifndef OPENMOED_SCHEDULER_H
#define OPENMOED_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "engine/engine.h"

struct sched;

struct sched_options {
    int max_seqs;             /* sequences running at once */
    int max_step_tokens;      /* rows of one step: decodes first, the rest to prefill chunks */
    int max_queued;           /* waiting sequences; past it sched_submit answers CFG_EFULL */
    size_t max_queued_tokens; /* their prompt tokens, likewise (an empty queue takes any job); 0 =
                                 no bound */
    double queue_timeout_s;   /* who has not started by then ends with SCHED_TIMEOUT; 0 = none */
    bool prefix_caching;      /* reuse keys and values of equal beginnings; must be off in reference
                                 mode, where company changes them */
    int max_expert_tokens; /* picks an expert may get in one step, as far as they can be foretold;
                              prompts wait their turn for it, decodes never; 0 = no bound */
    const char *routing_table; /* file with what was learned of the router: read by sched_open if it
                                  is there, written by sched_close; NULL = none */
    void (*notify)(void *arg); /* events are there (sends coalesce: take them all) */
    void *notify_arg;
};

/* ---- what the router did --------------------------------------------------------------------- */

#define SCHED_POSITIONS                                                                            \
    10                /* 0-63, 64-127, 128-255, ... each twice the one before, the last open       \
                       */
#define SCHED_TURNS 6 /* turns of a chat: 1, 2, 3, 4-7, 8-15, 16 and later */

/* A pick is one choice of one token in one MoE layer. */
struct sched_picks {
    uint64_t made; /* dropped ones included */
    uint64_t dropped;
};

/* Counters of one or more sequences' tokens, each token once however often it was computed. Shared
 * by reference: the engine thread adds, any thread may read (every number by itself is whole). */
struct sched_routing {
    int refs;
    int layers, experts; /* MoE layers */
    uint64_t tokens;
    struct sched_picks by_position[SCHED_POSITIONS], by_turn[SCHED_TURNS];
    struct sched_picks by_expert[]; /* [layers, experts] */
};
struct sched_routing *sched_routing_new(const struct engine_info *info); /* NULL: no memory */
struct sched_routing *sched_routing_ref(struct sched_routing *r);        /* returns r */
void sched_routing_unref(struct sched_routing *r);                       /* r may be NULL */
/* What bucket i covers: *last is 0 for the open one. Turns count from 1. */
void sched_position_bucket(int i, int *first, int *last);
void sched_turn_bucket(int i, int *first, int *last);

/* One MoE layer over all steps so far. */
struct sched_layer {
    uint64_t steps;
    uint64_t largest; /* picks of each step's busiest expert, summed over the steps */
    /* How well the table of earlier picks foretold each token's experts before they were known:
     * tokens judged, those whose id it had seen, whose first choice it named, and picks (topk a
     * token) among the topk it named. */
    uint64_t judged, known, first_hits, top_hits;
};

enum sched_state { SCHED_LOADING, SCHED_READY, SCHED_DRAINING, SCHED_FAILED };

/* One sequence to generate. Arrays are copied by sched_submit. */
struct sched_job {
    uint64_t id;           /* the caller's, unique among live jobs, not 0 */
    const int32_t *prompt; /* [n_prompt], at least 1 */
    size_t n_prompt;
    int max_new;                     /* tokens to generate at most; 0 = only score the prompt */
    struct engine_sampling sampling; /* its `ends` are the ids that end the sequence ... */
    bool ignore_ends;                /* ... unless this is set */
    /* NULL, or counters for this sequence's tokens too; the scheduler holds a reference until DONE.
     * Its prompt is then never taken from the cache: every token is counted. */
    struct sched_routing *routing;
    const int32_t *turns; /* [n_turns] ascending positions where the chat's turns begin ... */
    size_t n_turns;       /* ... 0: it is all one turn */
    bool score_prompt;    /* report the log-probability of each prompt token after the first; its
                          prompt is then never taken from the cache */

    uint32_t tenant;  /* seats are shared between tenants by tokens served ... */
    float weight;     /* ... over this (0 = 1); the last one given holds for the tenant */
    int priority;     /* within the tenant: lower runs earlier */
    double timeout_s; /* from submission; then it ends with SCHED_TIMEOUT; 0 = none */
    /* Beginnings are only shared within one tenant and equal salts. A keyed hash of what the caller
     * sent, so that no caller can choose another's; zero = none. */
    uint64_t cache_salt[2];
};

enum sched_event_kind { SCHED_PROMPT_SCORE, SCHED_TOKEN, SCHED_DONE };
enum sched_finish {
    SCHED_STOP,   /* an id of `ends` was sampled: reported as the last TOKEN event with `end` set */
    SCHED_LENGTH, /* max_new or the context was reached */
    SCHED_CANCELLED,
    SCHED_ERROR,   /* message says why */
    SCHED_TIMEOUT, /* likewise: its own deadline or the queue's has passed */
};

/* In order for one id: PROMPT_SCORE (position 1 .. n_prompt-1, when asked), TOKEN ..., DONE (always
 * the last, exactly once for every accepted job). */
struct sched_event {
    uint64_t id;
    enum sched_event_kind kind;
    size_t position;             /* PROMPT_SCORE: index of the prompt token */
    bool end;                    /* TOKEN: one of `ends`; not part of the text */
    struct engine_result result; /* PROMPT_SCORE, TOKEN */
    enum sched_finish finish;    /* DONE */
    double time;                 /* cfg_now() when it happened on the engine thread */
    double queued_s;     /* first TOKEN or DONE: seconds from submit to first scheduled; else 0 */
    int cached_tokens;   /* first TOKEN and DONE: prompt tokens that came from the cache */
    const char *message; /* DONE with SCHED_ERROR, SCHED_TIMEOUT: a static or list-owned string */
};

/* A batch of events, swapped out whole. Zero it before the first sched_take. */
struct sched_events {
    struct sched_event *items;
    size_t n, capacity;
};

/* Steps by how long they took: step_counts[i] of sched_stats has those of at most
 * sched_step_bounds[i] seconds and more than the bound before, its last one the rest. */
#define SCHED_STEP_BOUNDS 17
extern const double sched_step_bounds[SCHED_STEP_BOUNDS];

/* Point-in-time figures; counters only grow. */
struct sched_stats {
    enum sched_state state;
    int running, waiting;
    size_t waiting_tokens; /* of the prompts that wait */
    int kv_blocks_total;
    int kv_blocks_free;   /* those of kv_blocks_cached included */
    int kv_blocks_cached; /* kept for reuse only: given up when blocks are needed */
    uint64_t steps, step_tokens;
    uint64_t prompt_tokens, generated_tokens; /* computed by the engine, each once */
    uint64_t preemptions;                     /* sequences that had to yield their blocks */
    uint64_t recomputed_tokens;               /* computed again after that */
    uint64_t timeouts;
    uint64_t deferrals; /* steps in which a prompt waited for room at its experts */
    uint64_t prefix_queried_tokens, prefix_hit_tokens; /* of prompts that started: all, cached */
    uint64_t prefix_evictions;                         /* blocks */
    double step_seconds;                               /* of all steps */
    uint64_t step_counts[SCHED_STEP_BOUNDS + 1];
};

/* Starts the engine thread, which first runs engine_load (state LOADING), then serves. The engine
 * stays the caller's: close it after sched_close. */
int sched_open(struct sched **out, struct engine *e, const struct sched_options *opt,
               struct error *err) CFG_WARN_UNUSED;
/* CFG_ECLOSED while loading or draining; CFG_EFULL when the queue is full; CFG_EINVAL when the job
 * can never fit (prompt beyond the context or the KV pool). Nothing is kept of a refused job. */
int sched_submit(struct sched *s, const struct sched_job *job, struct error *err) CFG_WARN_UNUSED;
/* The same for several jobs, all or none (n > 1, lists of prompts). More jobs than the queue can
 * ever hold are CFG_EINVAL. With prefix caching, neighbours with the same prompt compute its full
 * blocks once: the others wait for the first. */
int sched_submit_all(struct sched *s, const struct sched_job *jobs, size_t n,
                     struct error *err) CFG_WARN_UNUSED;
/* Takes effect before the next step; a DONE event still follows. Unknown ids are ignored. */
void sched_cancel(struct sched *s, uint64_t id);
/* Swaps the pending events into *out (whatever was in it is overwritten, its memory reused). */
void sched_take(struct sched *s, struct sched_events *out);
void sched_events_free(struct sched_events *ev);
void sched_stats(struct sched *s, struct sched_stats *out);
/* What the router did with all tokens so far, reading the counters where they are: a reference to
 * be given back; and the layers [moe_layers]. */
struct sched_routing *sched_routing_total(struct sched *s);
void sched_layers(struct sched *s, struct sched_layer *out);
/* From now on sched_submit answers CFG_ECLOSED; running and waiting jobs go on. */
void sched_drain(struct sched *s);
/* Why the load failed (state FAILED); "" otherwise. */
void sched_failure(struct sched *s, struct error *out);
/* Cancels what is left, ends the engine thread, frees everything. s may be NULL. */
void sched_close(struct sched *s);

#endif
