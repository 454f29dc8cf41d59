// SPDX-License-Identifier: Apache-2.0
//
// seq.h (private to scheduler/): one sequence from submission to its DONE event, lists of them, and
// the map from ids to the live ones. A sequence is built on the loop thread (so that a bad job is
// refused at once and the engine thread never allocates for it), then belongs to the engine thread,
// which frees it after its DONE was published. Fields marked "lock" are shared under the
// scheduler's mutex. When blocks run out a sequence may lose its cache and wait again: its tokens,
// its sampler and n_seen stay, the rest starts over.
#ifndef OPENMOED_SEQ_H
#define OPENMOED_SEQ_H

#include "kvcache/kvcache.h"
#include "scheduler/plan.h"
#include "scheduler/scheduler.h"

struct seq {
    struct plan_job job;   /* first: seq_of() goes back */
    struct seq *next;      /* in the inbox or among the finished */
    struct seq *hash_next; /* lock: in the id map */
    uint64_t id;
    bool cancel; /* lock: asked to end */

    /* The prompt, then what was generated. tokens[n_prompt] is -1 until the first token is sampled,
     * so that tokens + i + 1 are the targets of the rows from i on: the prompt's last row has none.
     */
    int32_t *tokens; /* [n_prompt + max(max_new, 1)] */
    int n_prompt, n_tokens;
    int max_new;    /* capped: prompt and answer fit the context and the KV pool */
    int n_done;     /* positions whose keys and values are in the cache */
    int n_deferred; /* steps in a row that had no room for its prompt */
    int n_seen;     /* the most n_done ever was: results below it are published */
    struct kv_table table;
    int blocks_needed; /* for all positions it can ever reach */

    uint16_t *spent; /* [budget_len] expert budget spent (isolated mode), else NULL */

    struct sched_routing *routing; /* NULL, or counters of its own */
    int32_t *turns;                /* [n_turns] where its chat's turns begin */
    int n_turns;

    /* Reuse of equal beginnings (only where `reuse`). In isolated mode every full block carries a
     * payload: the budget spent up to its end. */
    bool reuse;
    struct kv_salt salt;
    uint16_t *payloads; /* [blocks_needed][budget_len] of its full blocks; NULL: none kept */
    int n_cached;       /* prompt tokens that came from the cache when it first started */
    uint64_t group;     /* id of the first of several with one prompt; 0 = none */
    bool leads;         /* the others of the group wait for its prefill */

    struct engine_sampler *sampler;
    int32_t *ends; /* [n_ends] ids that end it; none with ignore_ends */
    size_t n_ends;
    bool score_prompt;
    int n_target_top;

    uint64_t order;             /* of admission */
    double submitted, admitted; /* cfg_now(); admitted is 0 until then */
    double deadline;            /* INFINITY: none */
    double queue_deadline;      /* likewise; only until admitted */
    enum sched_finish finish;   /* once it is on the finished list */
    const char *message;        /* with SCHED_TIMEOUT */

    uint32_t tenant_id;
    float weight;
    struct plan_tenant *new_tenant; /* for the engine thread, if it does not know the id yet */
};

static inline struct seq *seq_of(struct plan_job *job)
{
    return (struct seq *)job;
}

/* Checks the job against the model and the pool and copies what it needs. */
int seq_new(struct seq **out, const struct sched_job *job, const struct engine_info *info,
            const struct kv_pool *pool, const struct sched_options *opt,
            struct error *err) CFG_WARN_UNUSED;
/* Its blocks must have been given back (or never taken). q may be NULL. */
void seq_free(struct seq *q);

/* First in, first out. Start zeroed. */
struct seq_list {
    struct seq *head, *tail;
    int n;
};
void seq_list_push(struct seq_list *l, struct seq *q);
struct seq *seq_list_pop(struct seq_list *l); /* NULL when empty */
/* Moves all of src to the end of dst. */
void seq_list_append(struct seq_list *dst, struct seq_list *src);
/* Frees every sequence on it. */
void seq_list_free(struct seq_list *l);
/* Marks neighbours with one prompt that the cache can share: the first leads, the rest is held. */
void seq_group(struct seq_list *l, int block_size);

/* Ids of live sequences; chained through hash_next, so that it never allocates. */
struct seq_map {
    struct seq **buckets; /* [mask + 1] */
    size_t mask;
};
int seq_map_init(struct seq_map *m, size_t expected, struct error *err) CFG_WARN_UNUSED;
void seq_map_deinit(struct seq_map *m);
struct seq *seq_map_find(const struct seq_map *m, uint64_t id); /* NULL if absent */
void seq_map_add(struct seq_map *m, struct seq *q);
void seq_map_remove(struct seq_map *m, struct seq *q);

#endif
