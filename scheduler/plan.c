// SPDX-License-Identifier: Apache-2.0
//
// plan.c: queue, fairness, admission, preemption and the make-up of one step (plan.h). Decodes come
// first, so a long prompt can never stall a running chat; prompts share the rest in turns, so one
// long prompt cannot stall the others. Since max_step_tokens >= max_seqs, every step has rows left
// when a prompt is unfinished.
#include "scheduler/plan.h"

#include <stddef.h>

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- the queue ------------------------------------------------------------------------------ */

struct plan_tenant *plan_tenant(const struct plan_queue *q, uint32_t id)
{
    struct plan_tenant *t = q->tenants;
    while (t && t->id != id) t = t->next;
    return t;
}

void plan_add_tenant(struct plan_queue *q, struct plan_tenant *t)
{
    t->next = q->tenants;
    q->tenants = t;
}

/* Behind all with a lower or equal key. New ones mostly belong to the end, returning ones to the
 * front: the search starts where it is short. */
static void insert(struct plan_queue *q, struct plan_job *job, bool from_front)
{
    struct plan_tenant *t = job->tenant;
    struct plan_job *after = t->tail;
    if (from_front) {
        struct plan_job *next = t->head;
        while (next && next->key <= job->key) next = next->next;
        after = next ? next->prev : t->tail;
    } else {
        while (after && after->key > job->key) after = after->prev;
    }
    job->prev = after;
    job->next = after ? after->next : t->head;
    *(job->prev ? &job->prev->next : &t->head) = job;
    *(job->next ? &job->next->prev : &t->tail) = job;
    job->waiting = true;
    q->n++;
    q->n_prompt += job->n_prompt;
}

/* The virtual time of whoever has had least of those that want something. */
static void advance_clock(struct plan_queue *q)
{
    const struct plan_tenant *least = NULL;
    for (const struct plan_tenant *t = q->tenants; t; t = t->next)
        if (t->n_live > 0 && (!least || t->served < least->served)) least = t;
    if (least && least->served > q->clock) q->clock = least->served;
}

void plan_enter(struct plan_queue *q, struct plan_job *job)
{
    struct plan_tenant *t = job->tenant;
    int level = job->priority;
    if (level > PLAN_MAX_PRIORITY) level = PLAN_MAX_PRIORITY;
    if (level < -PLAN_MAX_PRIORITY) level = -PLAN_MAX_PRIORITY;
    if (t->n_live == 0) {
        advance_clock(q);
        if (t->served < q->clock) t->served = q->clock;
    }
    t->n_live++;
    job->arrival = q->arrivals++;
    job->key = (int64_t)t->arrivals++ + (int64_t)level * PLAN_AGING;
    insert(q, job, false);
}

void plan_take(struct plan_queue *q, struct plan_job *job)
{
    struct plan_tenant *t = job->tenant;
    *(job->prev ? &job->prev->next : &t->head) = job->next;
    *(job->next ? &job->next->prev : &t->tail) = job->prev;
    job->prev = job->next = NULL;
    job->waiting = false;
    q->n--;
    q->n_prompt -= job->n_prompt;
}

void plan_return(struct plan_queue *q, struct plan_job *job)
{
    insert(q, job, true);
}

void plan_leave(struct plan_queue *q, struct plan_job *job)
{
    advance_clock(q); /* the last one to go leaves its time for who comes next */
    job->tenant->n_live--;
}

void plan_charge(struct plan_job *job, int tokens)
{
    struct plan_tenant *t = job->tenant;
    t->served += (double)tokens / (double)t->weight;
}

static struct plan_job *first_free(const struct plan_tenant *t)
{
    struct plan_job *job = t->head;
    while (job && job->held) job = job->next;
    return job;
}

struct plan_job *plan_next(const struct plan_queue *q)
{
    struct plan_job *best = NULL;
    for (const struct plan_tenant *t = q->tenants; t; t = t->next) {
        if (!t->head || (best && t->served > best->tenant->served)) continue;
        struct plan_job *job = first_free(t);
        if (!job) continue;
        if (!best || t->served < best->tenant->served || job->arrival < best->arrival) best = job;
    }
    return best;
}

int plan_victim(const struct plan_job *const *running, int n)
{
    int youngest = 0, last = -1;
    for (int i = 1; i < n; i++)
        if (running[i]->arrival > running[youngest]->arrival) youngest = i;
    for (int i = 0; i < n; i++)
        if (running[i]->tenant == running[youngest]->tenant &&
            (last < 0 || running[i]->key > running[last]->key ||
             (running[i]->key == running[last]->key &&
              running[i]->arrival > running[last]->arrival)))
            last = i;
    return last;
}

/* ---- a step --------------------------------------------------------------------------------- */

bool plan_admits(const struct plan_limits *lim, int n_running, int n_growing, int blocks_available,
                 int blocks_needed)
{
    if (n_running >= lim->max_seqs || blocks_needed > blocks_available) return false;
    return n_running == 0 || blocks_available - blocks_needed >= n_growing;
}

/* Where the turns go on: the first unfinished prompt from `turn` on, else the first of all. */
static int first_in_turn(const struct plan_seq *seqs, int n, uint64_t turn)
{
    int first = 0;
    for (int i = n - 1; i >= 0; i--)
        if (seqs[i].prompt_left > 0) first = i;
    for (int i = first; i < n; i++)
        if (seqs[i].prompt_left > 0 && seqs[i].order >= turn) return i;
    return first;
}

/* Rows of q's next tokens, at most n, that its experts have room for. */
static int fit(const struct plan_limits *lim, const struct plan_seq *q, int n, bool any)
{
    return lim->load ? plan_load_add(lim->load, q->tokens + q->rows, n, any) : n;
}

/* The prompt that has waited longest for its experts, if it has waited long enough: it goes first,
 * over the limit if need be. */
static int give_overdue(const struct plan_limits *lim, struct plan_seq *seqs, int n, int left)
{
    struct plan_seq *most = NULL;
    for (int i = 0; i < n; i++)
        if (seqs[i].deferred >= PLAN_PATIENCE && (!most || seqs[i].deferred > most->deferred))
            most = &seqs[i];
    if (!most) return 0;
    most->rows = fit(lim, most, min_int(min_int(most->prompt_left, PLAN_LEAST), left), true);
    return most->rows;
}

/* Deals what is left of the step to prompts, in turns. */
static int give_turns(const struct plan_limits *lim, struct plan_seq *seqs, int n, int left,
                      struct plan_turn *turn)
{
    int wanted = 0; /* prompt rows that may still be given */
    for (int i = 0; i < n; i++)
        wanted += seqs[i].prompt_left > 0 ? seqs[i].prompt_left - seqs[i].rows : 0;
    for (int i = first_in_turn(seqs, n, turn->order); left > 0 && wanted > 0; i = (i + 1) % n) {
        struct plan_seq *q = &seqs[i];
        if (q->prompt_left == 0 || q->rows == q->prompt_left || q->full) continue;
        int share = PLAN_QUANTUM - (q->order == turn->order ? turn->used : 0);
        int asked = min_int(min_int(q->prompt_left - q->rows, share), left);
        int given = fit(lim, q, asked, false);
        q->full = given < asked;
        q->rows += given;
        left -= given;
        wanted -= q->full ? q->prompt_left - q->rows + given : given;
        bool cut_short = given < share && q->rows < q->prompt_left;
        turn->order = cut_short ? q->order : q->order + 1;
        turn->used = cut_short ? PLAN_QUANTUM - share + given : 0;
    }
    return left;
}

int plan_step(const struct plan_limits *lim, struct plan_seq *seqs, int n, struct plan_turn *turn)
{
    int left = lim->max_step_tokens;
    if (lim->load) plan_load_begin(lim->load);
    for (int i = 0; i < n; i++) {
        struct plan_seq *q = &seqs[i];
        q->rows = 0;
        if (q->prompt_left == 0) q->rows = fit(lim, q, 1, true);
        q->full = false;
        left -= q->rows;
    }
    left -= give_overdue(lim, seqs, n, left);
    left = give_turns(lim, seqs, n, left, turn);
    for (int i = 0; i < n; i++) {
        struct plan_seq *q = &seqs[i];
        q->deferred = q->full && q->rows == 0 ? q->deferred + 1 : 0;
    }
    return lim->max_step_tokens - left;
}
