// SPDX-License-Identifier: Apache-2.0
//
// runner.c: from running sequences to one engine step and from its results to events (runner.h).
// Engine thread only (init and deinit: while no thread runs). Blocks are admit.c's: when a step is
// built, every row in it has its place. A sequence that lost its blocks computes its tokens again
// as if they were all prompt; results below n_seen were published before and are not repeated.
// Buffers are sized at init: a step allocates nothing.
#include "scheduler/runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

const double sched_step_bounds[SCHED_STEP_BOUNDS] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
                                                     0.01,   0.025,   0.05,   0.1,   0.25,   0.5,
                                                     1,      2.5,     5,      10,    30};

static int check_options(const struct sched_options *opt, struct error *err)
{
    if (opt->max_seqs < 1 || opt->max_queued < 1)
        return cfg_fail(err, CFG_EINVAL, "running and waiting sequences must be at least 1");
    if (!(opt->queue_timeout_s >= 0))
        return cfg_fail(err, CFG_EINVAL, "the queue's timeout can't be negative");
    if (opt->max_step_tokens < opt->max_seqs)
        return cfg_fail(err, CFG_EINVAL,
                        "a step of %d tokens can't give each of %d sequences its token: raise "
                        "--max-num-batched-tokens or lower --max-num-seqs",
                        opt->max_step_tokens, opt->max_seqs);
    if (opt->max_expert_tokens < 0)
        return cfg_fail(err, CFG_EINVAL, "an expert's tokens in a step can't be negative");
    return CFG_OK;
}

static int open_cache(struct runner *r, const struct sched_options *opt, struct error *err)
{
    int rc = kv_pool_open(&r->pool, r->info->n_blocks, r->info->block_size, err);
    if (rc || !opt->prefix_caching) return rc;
    struct kv_prefix_options po = {0};
    po.payload_bytes = (size_t)r->info->budget_len * sizeof(uint16_t);
    if (getrandom(po.secret, sizeof(po.secret), 0) != (ssize_t)sizeof(po.secret))
        return cfg_fail(err, CFG_EIO, "no random numbers from the system");
    return kv_prefix_open(&r->prefix, r->pool, &po, err);
}

int runner_init(struct runner *r, struct engine *e, const struct sched_options *opt,
                struct error *err)
{
    const struct engine_info *info = engine_info(e);
    *r = (struct runner){.engine = e, .info = info, .next_deadline = INFINITY};
    int rc = check_options(opt, err);
    if (rc) return rc;
    size_t seqs = (size_t)opt->max_seqs;
    r->limits = (struct plan_limits){opt->max_seqs, opt->max_step_tokens, NULL};
    r->running = calloc(seqs, sizeof(struct seq *));
    r->jobs = calloc(seqs, sizeof(struct plan_job *));
    r->plan = calloc(seqs, sizeof(r->plan[0]));
    r->rows = calloc(seqs, sizeof(r->rows[0]));
    r->stepping = calloc(seqs, sizeof(struct seq *));
    r->sampled = calloc(seqs, sizeof(r->sampled[0]));
    r->notes = calloc(seqs, sizeof(r->notes[0]));
    r->scored = calloc((size_t)opt->max_step_tokens, sizeof(r->scored[0]));
    if (!r->running || !r->jobs || !r->plan || !r->rows || !r->stepping || !r->sampled ||
        !r->scored || !r->notes)
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for %d sequences", opt->max_seqs);
    if (!rc) rc = open_cache(r, opt, err);
    if (!rc) rc = routing_open(&r->routing, info, opt, err);
    if (rc) {
        runner_deinit(r);
        return rc;
    }
    if (r->routing.load.limit > 0) r->limits.load = &r->routing.load;
    r->opened = true;
    r->stats.kv_blocks_total = r->stats.kv_blocks_free = kv_pool_total(r->pool);
    return CFG_OK;
}

void runner_deinit(struct runner *r)
{
    runner_sweep(r, true, 0);
    runner_settle(r);
    seq_list_free(&r->finished);
    seq_list_free(&r->ended);
    sched_events_free(&r->out);
    for (struct plan_tenant *t; (t = r->queue.tenants);) {
        r->queue.tenants = t->next;
        free(t);
    }
    routing_close(&r->routing, r->opened);
    kv_prefix_close(r->prefix);
    kv_pool_close(r->pool);
    free(r->notes);
    free(r->scored);
    free(r->sampled);
    free(r->stepping);
    free(r->rows);
    free(r->plan);
    free(r->jobs);
    free(r->running);
}

/* ---- one step ------------------------------------------------------------------------------- */

/* Rows [n_done, n_done + n) of q. */
static void fill_rows(struct engine_rows *rows, struct seq *q, int n, struct engine_result *sampled,
                      struct engine_result *scored)
{
    const int32_t *tokens = q->tokens + q->n_done;
    bool score = q->score_prompt && q->n_seen < q->n_prompt; /* only the prompt is known yet */
    *rows = (struct engine_rows){.tokens = tokens,
                                 .n_tokens = n,
                                 .position = q->n_done,
                                 .blocks = q->table.blocks,
                                 .spent = q->spent,
                                 .sampled = sampled,
                                 .n_target_top = q->n_target_top};
    if (q->n_done + n == q->n_tokens) rows->sampler = q->sampler;
    if (score) {
        rows->targets = tokens + 1;
        rows->scored = scored;
    }
}

/* Plans and lays out the step; returns the number of sequences in it. */
static int build_step(struct runner *r, int *n_tokens)
{
    for (int i = 0; i < r->n_running; i++) {
        const struct seq *q = r->running[i];
        int left = q->n_tokens - q->n_done;
        bool decodes = left == 1 && q->n_done >= q->n_prompt;
        r->plan[i] = (struct plan_seq){.order = q->order,
                                       .prompt_left = decodes ? 0 : left,
                                       .tokens = q->tokens + q->n_done,
                                       .deferred = q->n_deferred};
    }
    *n_tokens = plan_step(&r->limits, r->plan, r->n_running, &r->turn);
    for (int i = 0; i < r->n_running; i++) {
        r->running[i]->n_deferred = r->plan[i].deferred;
        r->stats.deferrals += r->plan[i].deferred > 0;
    }
    struct engine_result *scored = r->scored;
    int n = 0;
    for (int i = 0; i < r->n_running; i++) {
        if (r->plan[i].rows == 0) continue;
        fill_rows(&r->rows[n], r->running[i], r->plan[i].rows, &r->sampled[n], scored);
        if (r->rows[n].scored) scored += r->plan[i].rows;
        r->stepping[n++] = r->running[i];
    }
    return n;
}

static struct sched_event *add_event(struct runner *r, const struct seq *q,
                                     enum sched_event_kind kind, double now)
{
    struct sched_event *ev = &r->out.items[r->out.n++];
    *ev = (struct sched_event){.id = q->id, .kind = kind, .time = now};
    if (kind == SCHED_DONE || (kind == SCHED_TOKEN && q->n_tokens == q->n_prompt))
        ev->cached_tokens = q->n_cached;
    if (kind != SCHED_PROMPT_SCORE && q->n_tokens == q->n_prompt)
        ev->queued_s = (q->admitted > 0 ? q->admitted : now) - q->submitted;
    return ev;
}

static bool is_end(const struct seq *q, int32_t token)
{
    for (size_t i = 0; i < q->n_ends; i++)
        if (q->ends[i] == token) return true;
    return false;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* Rows [from, to): which were new, and which of those were prompt. */
static void count_rows(struct runner *r, const struct seq *q, int from, int to)
{
    int first_new = max_int(from, q->n_seen);
    r->stats.recomputed_tokens += (uint64_t)max_int(0, (first_new < to ? first_new : to) - from);
    r->stats.prompt_tokens +=
        (uint64_t)max_int(0, (q->n_prompt < to ? q->n_prompt : to) - first_new);
}

/* What the step brought for one sequence; returns true when it has ended, with q->finish set. */
static bool take_results(struct runner *r, struct seq *q, const struct engine_rows *rows,
                         int first_row, int n_tokens, double now)
{
    int before = q->n_done, seen = q->n_seen;
    const struct routing_rows routed = {first_row, rows->n_tokens, before, seen};
    r->notes[r->n_notes++] = (struct runner_note){q, routed};
    if (q->payloads)
        routing_snapshot(&r->routing, q, &routed, n_tokens, kv_pool_block_size(r->pool));
    for (int i = 0; rows->targets && i < rows->n_tokens; i++) {
        if (rows->targets[i] < 0 || before + i < seen) continue;
        struct sched_event *ev = add_event(r, q, SCHED_PROMPT_SCORE, now);
        ev->position = (size_t)before + (size_t)i + 1;
        ev->result = rows->scored[i];
    }
    count_rows(r, q, before, before + rows->n_tokens);
    q->n_done += rows->n_tokens;
    q->n_seen = max_int(seen, q->n_done);
    runner_keep(r, q, before);
    q->finish = SCHED_LENGTH;
    if (!rows->sampler) return q->n_done == q->n_tokens;
    struct sched_event *ev = add_event(r, q, SCHED_TOKEN, now);
    ev->result = *rows->sampled;
    ev->end = is_end(q, ev->result.token);
    q->tokens[q->n_tokens++] = ev->result.token;
    r->stats.generated_tokens++;
    plan_charge(&q->job, 1);
    if (ev->end) q->finish = SCHED_STOP;
    return ev->end || q->n_tokens == q->n_prompt + q->max_new;
}

static void count_time(struct sched_stats *st, double seconds)
{
    int i = 0;
    while (i < SCHED_STEP_BOUNDS && seconds > sched_step_bounds[i]) i++;
    st->step_counts[i]++;
    st->step_seconds += seconds;
}

int runner_step(struct runner *r, struct error *err)
{
    int n_tokens;
    runner_grow(r);
    int n = build_step(r, &n_tokens);
    if (n == 0) return CFG_OK;
    double begun = cfg_now();
    int rc = engine_step(r->engine, r->rows, n, NULL, &r->routing.trace, err);
    double now = cfg_now();
    r->stats.steps++;
    r->stats.step_tokens += (uint64_t)n_tokens;
    count_time(&r->stats, now - begun);
    int kept = 0, row = 0;
    for (int i = 0, k = 0; i < r->n_running; i++) {
        struct seq *q = r->running[i];
        bool stepped = k < n && r->stepping[k] == q;
        if (!stepped)
            r->running[kept++] = q;
        else if (rc)
            runner_finish(r, q, SCHED_ERROR);
        else if (take_results(r, q, &r->rows[k], row, n_tokens, now))
            runner_finish(r, q, q->finish);
        else
            r->running[kept++] = q;
        if (stepped) row += r->rows[k++].n_tokens;
    }
    r->n_running = kept;
    r->noted_rows = n_tokens;
    return rc;
}

void runner_settle(struct runner *r)
{
    if (r->n_notes == 0) return;
    for (int i = 0; i < r->n_notes; i++)
        routing_note(&r->routing, r->notes[i].seq, &r->notes[i].rows, r->noted_rows);
    routing_end_step(&r->routing);
    r->n_notes = 0;
}

/* ---- events --------------------------------------------------------------------------------- */

bool events_reserve(struct sched_events *ev, size_t extra)
{
    if (extra <= ev->capacity - ev->n) return true;
    size_t capacity = ev->capacity < 64 ? 64 : ev->capacity * 2;
    while (capacity - ev->n < extra) capacity *= 2;
    struct sched_event *items = realloc(ev->items, capacity * sizeof(items[0]));
    if (!items) return false;
    ev->items = items;
    ev->capacity = capacity;
    return true;
}

size_t runner_max_events(const struct runner *r)
{
    size_t n = (size_t)r->finished.n + 2 * (size_t)r->n_running;
    bool scoring = false;
    for (int i = 0; i < r->n_running; i++) {
        const struct seq *q = r->running[i];
        scoring = scoring || (q->score_prompt && q->n_seen < q->n_prompt);
    }
    return n + (scoring ? (size_t)r->limits.max_step_tokens : 0);
}

void runner_done(struct runner *r, const char *message)
{
    double now = cfg_now();
    for (struct seq *q = r->finished.head; q; q = q->next) {
        struct sched_event *ev = add_event(r, q, SCHED_DONE, now);
        ev->finish = q->finish;
        if (q->finish == SCHED_ERROR) ev->message = message;
        if (q->finish == SCHED_TIMEOUT) ev->message = q->message;
    }
    seq_list_append(&r->ended, &r->finished);
}
