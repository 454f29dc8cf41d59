// SPDX-License-Identifier: Apache-2.0
//
// admit.c: who has blocks (runner.h). A sequence takes those of the tokens it knows when it starts
// and grows by one as it generates. When the pool has none left, cached blocks nobody uses are
// forgotten; when that is not enough, the sequence that the plan names yields all of its own and
// waits in its old place. Its full blocks stay in the prefix tree as long as they can, so that
// coming back is often cheap. Engine thread only.
//
// Reuse. Full blocks go to the tree while a prompt is computed and when a sequence ends or yields.
// Matches are of full blocks and leave at least one token to compute. Several answers to one prompt
// also share the block the prompt ends in: each gets a copy of it when it starts. So nobody ever
// writes into a block that another may read.
#include "scheduler/runner.h"

#include <math.h>
#include <string.h>

/* ---- blocks --------------------------------------------------------------------------------- */

static int blocks_available(const struct runner *r)
{
    return r->prefix ? kv_prefix_available(r->prefix) : kv_pool_free_blocks(r->pool);
}

/* Blocks for its first n_tokens positions; false, and nothing taken, if there are not enough. */
static bool take_blocks(struct runner *r, struct seq *q, int n_tokens)
{
    struct error err;
    int need = kv_blocks_for(r->pool, (size_t)n_tokens) - q->table.n;
    if (need <= 0) return true;
    if (need > blocks_available(r)) return false;
    if (r->prefix) (void)kv_prefix_evict(r->prefix, need);
    return kv_table_reserve(r->pool, &q->table, (size_t)n_tokens, &err) == CFG_OK;
}

/* Its cache is gone; the table's own memory stays. */
static void drop_blocks(struct runner *r, struct seq *q)
{
    struct kv_table *t = &q->table;
    while (t->n > 0) kv_block_unref(r->pool, t->blocks[--t->n]);
    q->n_done = 0;
}

/* ---- reuse ---------------------------------------------------------------------------------- */

/* The full blocks of what is computed go to the tree. */
static void remember(struct runner *r, const struct seq *q)
{
    struct error err;
    if (!r->prefix || !q->reuse) return;
    if (kv_prefix_insert(r->prefix, q->salt, q->tokens, (size_t)q->n_done, &q->table, q->payloads,
                         &err))
        cfg_log(CFG_LOG_ERROR, "prefix cache: %s", err.message);
}

/* Fills the empty table with what the tree has; in isolated mode the budget comes with it. */
static void match_prefix(struct runner *r, struct seq *q)
{
    const size_t bytes = (size_t)r->info->budget_len * sizeof(q->spent[0]);
    const void *found = NULL;
    size_t n = 0;
    if (r->prefix && q->reuse)
        n = kv_prefix_match(r->prefix, q->salt, q->tokens, (size_t)q->n_tokens - 1, &q->table,
                            &found);
    if (q->spent && n > 0)
        memcpy(q->spent, found, bytes);
    else if (q->spent)
        memset(q->spent, 0, bytes);
    q->n_done = (int)n;
}

/* The one of q's group that runs and has computed the prompt they share; NULL: none. Isolated
 * budgets are known at the ends of blocks only, so there the tree has all that can be shared. */
static const struct seq *prompt_owner(const struct runner *r, const struct seq *q)
{
    if (q->group == 0 || q->spent || q->n_tokens > q->n_prompt) return NULL;
    for (int i = 0; i < r->n_running; i++)
        if (r->running[i]->group == q->group && r->running[i]->n_done >= q->n_prompt)
            return r->running[i];
    return NULL;
}

/* Takes all of the prompt but its last token from a sibling; the last block as a copy. False, and
 * nothing taken, when that can't be. */
static bool share_prompt(struct runner *r, struct seq *q, const struct seq *from)
{
    struct error err;
    struct kv_copy copy = {-1, -1};
    const size_t last = (size_t)q->n_prompt - 1;
    if (blocks_available(r) == 0) return false;
    if (r->prefix) (void)kv_prefix_evict(r->prefix, 1);
    if (kv_table_fork(r->pool, &from->table, last + 1, &q->table, &err)) return false;
    int rc = kv_table_make_writable(r->pool, &q->table, last, &copy, &err);
    if (!rc && copy.src >= 0)
        rc =
            engine_copy_blocks(r->engine, &(struct engine_block_copy){copy.src, copy.dst}, 1, &err);
    if (rc) drop_blocks(r, q);
    q->n_done = rc ? 0 : (int)last;
    return rc == CFG_OK;
}

/* Those that waited for q's prompt may start; if it ended early, one of them takes its place. */
static void let_siblings_go(struct seq *q)
{
    bool computed = q->n_seen >= q->n_prompt;
    if (!q->leads) return;
    q->leads = false;
    for (struct plan_job *job = q->job.tenant->head; job; job = job->next) {
        struct seq *other = seq_of(job);
        if (other->group != q->group || !job->held) continue;
        job->held = false;
        if (computed) continue;
        other->leads = true;
        break;
    }
}

void runner_keep(struct runner *r, struct seq *q, int before)
{
    const int size = kv_pool_block_size(r->pool), full = q->n_done / size;
    if (before < q->n_prompt && before / size < full) remember(r, q);
    if (q->n_done >= q->n_prompt) let_siblings_go(q);
}

/* ---- coming and going ----------------------------------------------------------------------- */

static double deadline_of(const struct seq *q)
{
    return q->admitted > 0 ? q->deadline : fmin(q->deadline, q->queue_deadline);
}

void runner_enter(struct runner *r, struct seq_list *list)
{
    for (struct seq *q; (q = seq_list_pop(list));) {
        struct plan_tenant *t = plan_tenant(&r->queue, q->tenant_id);
        if (!t) {
            t = q->new_tenant;
            q->new_tenant = NULL;
            t->id = q->tenant_id;
            plan_add_tenant(&r->queue, t);
        }
        t->weight = q->weight;
        q->job.tenant = t;
        plan_enter(&r->queue, &q->job);
        r->next_deadline = fmin(r->next_deadline, deadline_of(q));
    }
}

void runner_finish(struct runner *r, struct seq *q, enum sched_finish why)
{
    q->finish = why;
    r->stats.timeouts += why == SCHED_TIMEOUT;
    if (why != SCHED_ERROR) remember(r, q);
    kv_table_release(r->pool, &q->table);
    let_siblings_go(q);
    plan_leave(&r->queue, &q->job);
    seq_list_push(&r->finished, q);
}

/* True when q must end now, for the reason in *why. */
static bool is_over(struct seq *q, bool all, double now, enum sched_finish *why)
{
    *why = SCHED_CANCELLED;
    if (all || q->cancel) return true;
    *why = SCHED_TIMEOUT;
    q->message = "the request's own timeout has passed";
    if (now >= q->deadline) return true;
    q->message = "the request could not be started within the queue's timeout";
    return now >= deadline_of(q);
}

void runner_sweep(struct runner *r, bool all, double now)
{
    enum sched_finish why;
    r->next_deadline = INFINITY;
    for (struct plan_tenant *t = r->queue.tenants; t; t = t->next)
        for (struct plan_job *job = t->head, *next; job; job = next) {
            struct seq *q = seq_of(job);
            next = job->next;
            if (is_over(q, all, now, &why)) {
                plan_take(&r->queue, job);
                runner_finish(r, q, why);
            } else {
                r->next_deadline = fmin(r->next_deadline, deadline_of(q));
            }
        }
    int kept = 0;
    for (int i = 0; i < r->n_running; i++) {
        struct seq *q = r->running[i];
        if (is_over(q, all, now, &why)) {
            runner_finish(r, q, why);
        } else {
            r->next_deadline = fmin(r->next_deadline, deadline_of(q));
            r->running[kept++] = q;
        }
    }
    r->n_running = kept;
}

/* Sequences that may still ask for a block, q among them when it starts. */
static int count_growing(const struct runner *r, const struct seq *q)
{
    int n = kv_blocks_for(r->pool, (size_t)q->n_tokens) < q->blocks_needed;
    for (int i = 0; i < r->n_running; i++)
        n += r->running[i]->table.n < r->running[i]->blocks_needed;
    return n;
}

/* Gives q what is cached and the blocks of all tokens it has; false: it must wait. */
static bool take_place(struct runner *r, struct seq *q)
{
    const struct seq *owner = prompt_owner(r, q);
    if (owner &&
        plan_admits(&r->limits, r->n_running, count_growing(r, q), blocks_available(r), 1) &&
        share_prompt(r, q, owner))
        return true;
    match_prefix(r, q);
    int need = kv_blocks_for(r->pool, (size_t)q->n_tokens) - q->table.n;
    bool fits =
        plan_admits(&r->limits, r->n_running, count_growing(r, q), blocks_available(r), need) &&
        take_blocks(r, q, q->n_tokens);
    if (!fits) drop_blocks(r, q);
    return fits;
}

void runner_admit(struct runner *r, double now)
{
    struct plan_job *job;
    while (r->n_running < r->limits.max_seqs && (job = plan_next(&r->queue))) {
        struct seq *q = seq_of(job);
        if (!take_place(r, q)) break;
        plan_take(&r->queue, job);
        q->order = r->next_order++;
        r->running[r->n_running++] = q;
        if (q->admitted > 0) continue; /* it comes back: counted and charged before */
        q->admitted = now;
        q->n_cached = q->n_done;
        plan_charge(job, q->n_prompt - q->n_cached);
        if (r->prefix && q->reuse) {
            r->stats.prefix_queried_tokens += (uint64_t)q->n_prompt;
            r->stats.prefix_hit_tokens += (uint64_t)q->n_cached;
        }
    }
}

/* running[at] yields its blocks and waits in its old place. */
static void preempt(struct runner *r, int at)
{
    struct seq *q = r->running[at];
    remember(r, q);
    drop_blocks(r, q);
    plan_return(&r->queue, &q->job);
    r->n_running--;
    memmove(&r->running[at], &r->running[at + 1],
            (size_t)(r->n_running - at) * sizeof(struct seq *));
    r->stats.preemptions++;
}

void runner_grow(struct runner *r)
{
    for (int i = 0; i < r->n_running;) {
        if (take_blocks(r, r->running[i], r->running[i]->n_tokens)) {
            i++;
            continue;
        }
        for (int k = 0; k < r->n_running; k++) r->jobs[k] = &r->running[k]->job;
        int victim = plan_victim(r->jobs, r->n_running);
        preempt(r, victim);
        if (victim < i) i--;
    }
}

void runner_stats(struct runner *r)
{
    struct kv_prefix_stats ps = {0};
    if (r->prefix) kv_prefix_stats(r->prefix, &ps);
    r->stats.running = r->n_running;
    r->stats.kv_blocks_free = blocks_available(r);
    r->stats.kv_blocks_cached = ps.idle;
    r->stats.prefix_evictions = ps.evictions;
}
