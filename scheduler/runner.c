// SPDX-License-Identifier: Apache-2.0
//
// runner.c: from running sequences to one engine step and from its results to events (runner.h).
// Engine thread only (init and deinit: while no thread runs). A sequence's blocks for everything it
// can reach are taken at admission, so a running one is never short of them; they go back the
// moment it finishes. Buffers are sized at init: a step allocates nothing.
#include "scheduler/runner.h"

#include <stdlib.h>
#include <string.h>

#define MAX_MOE_LAYERS (int)(sizeof(((struct sched_stats *)0)->dropped_picks) / sizeof(uint64_t))

static int check_options(const struct sched_options *opt, const struct engine_info *info,
                         struct error *err)
{
    if (opt->max_seqs < 1 || opt->max_queued < 1)
        return cfg_fail(err, CFG_EINVAL, "running and waiting sequences must be at least 1");
    if (opt->max_step_tokens < opt->max_seqs)
        return cfg_fail(err, CFG_EINVAL,
                        "a step of %d tokens can't give each of %d sequences its token: raise "
                        "--max-num-batched-tokens or lower --max-num-seqs",
                        opt->max_step_tokens, opt->max_seqs);
    if (info->moe_layers > MAX_MOE_LAYERS)
        return cfg_fail(err, CFG_EUNSUPPORTED, "%d MoE layers are more than the %d supported",
                        info->moe_layers, MAX_MOE_LAYERS);
    return CFG_OK;
}

int runner_init(struct runner *r, struct engine *e, const struct sched_options *opt,
                struct error *err)
{
    const struct engine_info *info = engine_info(e);
    *r = (struct runner){.engine = e, .info = info};
    int rc = check_options(opt, info, err);
    if (rc) return rc;
    size_t seqs = (size_t)opt->max_seqs;
    r->limits = (struct plan_limits){opt->max_seqs, opt->max_step_tokens};
    r->running = calloc(seqs, sizeof(r->running[0]));
    r->plan = calloc(seqs, sizeof(r->plan[0]));
    r->rows = calloc(seqs, sizeof(r->rows[0]));
    r->stepping = calloc(seqs, sizeof(r->stepping[0]));
    r->sampled = calloc(seqs, sizeof(r->sampled[0]));
    r->scored = calloc((size_t)opt->max_step_tokens, sizeof(r->scored[0]));
    if (!r->running || !r->plan || !r->rows || !r->stepping || !r->sampled || !r->scored)
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for %d sequences", opt->max_seqs);
    if (!rc) rc = kv_pool_open(&r->pool, info->n_blocks, info->block_size, err);
    if (rc) {
        runner_deinit(r);
        return rc;
    }
    r->stats.kv_blocks_total = r->stats.kv_blocks_free = kv_pool_total(r->pool);
    return CFG_OK;
}

void runner_deinit(struct runner *r)
{
    runner_cancel(r, true);
    seq_list_free(&r->finished);
    sched_events_free(&r->out);
    kv_pool_close(r->pool);
    free(r->scored);
    free(r->sampled);
    free(r->stepping);
    free(r->rows);
    free(r->plan);
    free(r->running);
}

/* ---- coming and going ------------------------------------------------------------------------ */

/* Gives the blocks back at once; the caller takes q off the list it was on. */
static void finish(struct runner *r, struct seq *q, enum sched_finish why)
{
    q->finish = why;
    kv_table_release(r->pool, &q->table);
    seq_list_push(&r->finished, q);
}

void runner_cancel(struct runner *r, bool all)
{
    struct seq_list old = r->waiting;
    r->waiting = (struct seq_list){0};
    for (struct seq *q; (q = seq_list_pop(&old));) {
        if (all || q->cancel)
            finish(r, q, SCHED_CANCELLED);
        else
            seq_list_push(&r->waiting, q);
    }
    int kept = 0;
    for (int i = 0; i < r->n_running; i++) {
        struct seq *q = r->running[i];
        if (all || q->cancel)
            finish(r, q, SCHED_CANCELLED);
        else
            r->running[kept++] = q;
    }
    r->n_running = kept;
}

void runner_admit(struct runner *r, double now)
{
    struct seq *q;
    struct error err;
    while ((q = r->waiting.head) &&
           plan_admits(&r->limits, r->n_running, kv_pool_free_blocks(r->pool), q->blocks_needed)) {
        size_t tokens = (size_t)q->blocks_needed * (size_t)kv_pool_block_size(r->pool);
        if (kv_table_reserve(r->pool, &q->table, tokens, &err)) break;
        (void)seq_list_pop(&r->waiting);
        q->order = r->next_order++;
        q->admitted = now;
        r->running[r->n_running++] = q;
    }
}

/* ---- one step -------------------------------------------------------------------------------- */

/* Rows [n_done, n_done + n) of q. */
static void fill_rows(struct engine_rows *rows, struct seq *q, int n, struct engine_result *sampled,
                      struct engine_result *scored)
{
    const int32_t *tokens = q->tokens + q->n_done;
    bool score = q->score_prompt && q->n_done < q->n_prompt;
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
        int left = q->n_done < q->n_prompt ? q->n_prompt - q->n_done : 0;
        r->plan[i] = (struct plan_seq){.order = q->order, .prompt_left = left};
    }
    *n_tokens = plan_step(&r->limits, r->plan, r->n_running, &r->turn);
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

/* What the step brought for one sequence; returns true when it has ended, with q->finish set. */
static bool take_results(struct runner *r, struct seq *q, const struct engine_rows *rows,
                         double now)
{
    for (int i = 0; rows->targets && i < rows->n_tokens; i++) {
        if (rows->targets[i] < 0) continue;
        struct sched_event *ev = add_event(r, q, SCHED_PROMPT_SCORE, now);
        ev->position = (size_t)rows->position + (size_t)i + 1;
        ev->result = rows->scored[i];
    }
    if (q->n_done < q->n_prompt) r->stats.prompt_tokens += (uint64_t)rows->n_tokens;
    q->n_done += rows->n_tokens;
    q->finish = SCHED_LENGTH;
    if (!rows->sampler) return q->n_done == q->n_prompt;
    struct sched_event *ev = add_event(r, q, SCHED_TOKEN, now);
    ev->result = *rows->sampled;
    ev->end = is_end(q, ev->result.token);
    q->tokens[q->n_tokens++] = ev->result.token;
    r->stats.generated_tokens++;
    if (ev->end) q->finish = SCHED_STOP;
    return ev->end || q->n_tokens == q->n_prompt + q->max_new;
}

int runner_step(struct runner *r, struct error *err)
{
    int n_tokens;
    int n = build_step(r, &n_tokens);
    if (n == 0) return CFG_OK;
    double begun = cfg_now();
    int rc = engine_step(r->engine, r->rows, n, r->stats.dropped_picks, NULL, err);
    double now = cfg_now();
    r->stats.steps++;
    r->stats.step_tokens += (uint64_t)n_tokens;
    r->stats.step_seconds += now - begun;
    int kept = 0;
    for (int i = 0, k = 0; i < r->n_running; i++) {
        struct seq *q = r->running[i];
        bool stepped = k < n && r->stepping[k] == q;
        if (!stepped)
            r->running[kept++] = q;
        else if (rc)
            finish(r, q, SCHED_ERROR);
        else if (take_results(r, q, &r->rows[k], now))
            finish(r, q, q->finish);
        else
            r->running[kept++] = q;
        k += stepped;
    }
    r->n_running = kept;
    return rc;
}

/* ---- events ---------------------------------------------------------------------------------- */

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
        scoring = scoring || (q->score_prompt && q->n_done < q->n_prompt);
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
    }
}
