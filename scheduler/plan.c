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

/* Cuts chunks back to the last multiple of align they reach, so that the sequence passes through it
 * between two steps. A chunk that reaches none stays. */
static int align_chunks(const struct plan_limits *lim, struct plan_seq *seqs, int n)
{
    int cut = 0;
    for (int i = 0; i < n; i++) {
        int over = (seqs[i].position + seqs[i].rows) % lim->align;
        if (seqs[i].prompt_left == 0 || over >= seqs[i].rows) continue;
        seqs[i].rows -= over;
        cut += over;
    }
    return cut;
}

/* Prompt rows that one step may give it. With align, no chunk is longer than what is before it: the
 * prompt stops at 64, 128, 256 ..., so that of any beginning it shares with another, half at least
 * ends where one of its steps did. */
static int most_rows(const struct plan_limits *lim, const struct plan_seq *q)
{
    int most = q->position > PLAN_QUANTUM ? q->position : PLAN_QUANTUM;
    return lim->align > 0 ? min_int(q->prompt_left, most) : q->prompt_left;
}

int plan_step(const struct plan_limits *lim, struct plan_seq *seqs, int n, struct plan_turn *turn)
{
    int left = lim->max_step_tokens;
    int wanted = 0; /* prompt rows nobody has been given yet */
    for (int i = 0; i < n; i++) {
        seqs[i].rows = seqs[i].prompt_left == 0;
        left -= seqs[i].rows;
        wanted += most_rows(lim, &seqs[i]);
    }
    for (int i = first_in_turn(seqs, n, turn->order); left > 0 && wanted > 0; i = (i + 1) % n) {
        struct plan_seq *q = &seqs[i];
        const int most = most_rows(lim, q);
        if (q->prompt_left == 0 || q->rows == most) continue;
        int share = PLAN_QUANTUM - (q->order == turn->order ? turn->used : 0);
        int given = min_int(min_int(most - q->rows, share), left);
        q->rows += given;
        left -= given;
        wanted -= given;
        bool cut_short = given < share && q->rows < q->prompt_left;
        turn->order = cut_short ? q->order : q->order + 1;
        turn->used = cut_short ? PLAN_QUANTUM - share + given : 0;
    }
    if (lim->align > 0) left += align_chunks(lim, seqs, n);
    return lim->max_step_tokens - left;
}
