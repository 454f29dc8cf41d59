// SPDX-License-Identifier: Apache-2.0
//
// generate.c: joins a parsed request to the scheduler. Its jobs get consecutive ids, so that the
// choice an event belongs to is a difference; a table leads from the id to the request. An id
// leaves the table when its job is done, ended by a stop string, or given up: events that still
// come for it find nobody and are dropped. No reply is queued before the first event, so that a
// job that fails at once is still a real HTTP error.
#include "server/http.h"

#include <stdlib.h>
#include <string.h>

/* ---- begin and end */

void generate_parse_chat(struct request *r)
{
    (void)!api_parse(&r->api, API_CHAT, r->body.data, r->body.len, r->env, request_tenant(r),
                     &r->error);
}

void generate_parse_completion(struct request *r)
{
    (void)!api_parse(&r->api, API_COMPLETION, r->body.data, r->body.len, r->env, request_tenant(r),
                     &r->error);
}

void generate_parse_response(struct request *r)
{
    (void)!api_parse_response(&r->api, r->body.data, r->body.len, r->env, request_tenant(r),
                              &r->error);
}

static int refused(struct api_error *out, const struct error *err)
{
    switch (err->code) {
    case CFG_EFULL:
        return api_fail(out, 429, "queue_full", NULL, "%s", err->message);
    case CFG_ECLOSED:
        return api_fail(out, 503, NULL, NULL, "%s", err->message);
    case CFG_EINVAL:
        return api_fail(out, 400, NULL, NULL, "%s", err->message);
    default:
        return api_fail(out, 500, NULL, NULL, "%s", err->message);
    }
}

/* Fills the jobs and adds up what they may need. */
static void make_jobs(struct request *r, struct sched_job *jobs, size_t n)
{
    r->reserved = api_prompt_tokens(r->api);
    for (size_t i = 0; i < n; i++) {
        api_job(r->api, i, r->server->next_job + i, &jobs[i]);
        r->reserved += (size_t)jobs[i].max_new;
        if (r->n_same == i && jobs[i].prompt == jobs[0].prompt) r->n_same++;
        if (r->tenant == NULL) continue;
        jobs[i].tenant = r->tenant->number;
        jobs[i].weight = r->tenant->rules.weight;
    }
}

static int submit(struct request *r)
{
    struct server *s = r->server;
    struct error err = {0};
    const size_t n = api_n_jobs(r->api);
    struct sched_job *jobs = calloc(n, sizeof *jobs);
    r->paces = calloc(n, sizeof *r->paces);
    if (jobs == NULL || r->paces == NULL || jobs_reserve(&s->jobs, n) != 0) {
        free(jobs);
        return api_fail(&r->error, 500, NULL, NULL, "There is no memory for the request.");
    }
    make_jobs(r, jobs, n);
    if (keys_admit(r->tenant, r->reserved, cfg_now(), &r->retry_after, &r->error) != 0) {
        free(jobs);
        return -1;
    }
    int rc = sched_submit_all(s->sched, jobs, n, &err);
    free(jobs);
    if (rc != CFG_OK) {
        keys_undo(r->tenant, r->reserved, cfg_now());
        return refused(&r->error, &err);
    }
    r->first_job = s->next_job;
    r->n_jobs = r->jobs_left = n;
    s->next_job += n;
    for (size_t i = 0; i < n; i++) jobs_add(&s->jobs, r->first_job + i, r);
    return 0;
}

void generate_start(struct request *r, const char *url)
{
    (void)url;
    request_drop_body(r);
    if (r->error.status == 0 && stream_watch(r) != 0)
        api_fail(&r->error, 500, NULL, NULL, "The connection cannot be watched.");
    if (r->error.status == 0 && submit(r) == 0) {
        r->accepted = true;
        r->phase = REQUEST_WAITING;
        cfg_log(CFG_LOG_DEBUG, "accepted: request=%s id=%s prompt_tokens=%zu choices=%zu", r->id,
                api_request_id(r->api), api_prompt_tokens(r->api), r->n_jobs);
        return;
    }
    r->server->metrics.requests[METRICS_REJECTED]++;
    stream_unwatch(r);
    request_fail(r, &r->error);
}

static void drop_jobs(struct request *r)
{
    for (size_t i = 0; i < r->n_jobs && r->jobs_left > 0; i++) {
        if (jobs_find(&r->server->jobs, r->first_job + i) == NULL) continue;
        sched_cancel(r->server->sched, r->first_job + i);
        jobs_remove(&r->server->jobs, r->first_job + i);
        r->jobs_left--;
    }
}

/* Every accepted request is counted once, when nothing of it runs any more. */
static void settle(struct request *r, enum metrics_outcome outcome)
{
    static const char *const names[] = {"stop", "length", "cancelled", "error", "rejected"};
    if (!r->accepted || r->counted) return;
    const double seconds = cfg_now() - r->began;
    r->counted = true;
    r->server->metrics.requests[outcome]++;
    keys_settle(r->tenant, r->reserved, api_prompt_tokens(r->api), api_completion_tokens(r->api),
                cfg_now());
    metrics_observe(&r->server->metrics.duration, seconds, 1);
    metrics_end(&r->server->metrics, api_prompt_tokens(r->api), api_completion_tokens(r->api),
                r->paces, r->n_jobs);
    r->finish = names[outcome];
}

void generate_end(struct request *r)
{
    drop_jobs(r);
    settle(r, METRICS_CANCELLED);
}

/* ---- events */

static void fail_generation(struct request *r, const struct api_error *err)
{
    drop_jobs(r);
    settle(r, METRICS_ERROR);
    if (r->phase == REQUEST_WAITING) {
        request_fail(r, err);
        return;
    }
    api_stream_error(r->api, err, &r->out);
    r->stream_ended = true;
}

static void finish_generation(struct request *r)
{
    drop_jobs(r);
    settle(r, r->outcome);
    if (r->phase != REQUEST_WAITING) {
        r->stream_ended = true;
        return;
    }
    struct cfg_buf body = {0};
    api_body(r->api, &body);
    request_reply(r, 200, "application/json", &body);
}

/* The worst of the choices' ends is the request's. */
static void note_outcome(struct request *r, const struct sched_event *ev)
{
    if (ev->finish == SCHED_LENGTH && r->outcome < METRICS_LENGTH) r->outcome = METRICS_LENGTH;
    if (ev->finish == SCHED_CANCELLED) r->outcome = METRICS_CANCELLED;
    if (ev->finish == SCHED_ERROR || ev->finish == SCHED_TIMEOUT) r->outcome = METRICS_ERROR;
}

/* A prompt's cached tokens count once, whatever the number of its choices. */
static void note_first(struct request *r, size_t choice, const struct sched_event *ev)
{
    const double seconds = cfg_now() - r->began;
    metrics_observe(&r->server->metrics.first_token, seconds, 1);
    if (r->first_token <= 0) r->first_token = seconds;
    if (choice % r->n_same == 0 && ev->cached_tokens > 0) r->cached += (size_t)ev->cached_tokens;
}

static void note_times(struct request *r, size_t choice, const struct sched_event *ev)
{
    struct metrics *m = &r->server->metrics;
    struct metrics_pace *pace = &r->paces[choice];
    if (ev->kind == SCHED_PROMPT_SCORE) return;
    /* the first TOKEN, or DONE where none came */
    if (pace->tokens == 0) metrics_observe(&m->queue, ev->queued_s, 1);
    if (ev->kind == SCHED_TOKEN && metrics_token(m, pace, ev->time)) note_first(r, choice, ev);
}

static void note_unsent(struct request *r, const struct sched_event *ev, size_t before)
{
    if (ev->kind != SCHED_TOKEN || r->out.len == before) return;
    if (r->unsent_tokens++ == 0) r->unsent_since = ev->time;
}

static void take_event(struct request *r, const struct sched_event *ev)
{
    struct api_error err = {0};
    const size_t choice = (size_t)(ev->id - r->first_job);
    bool cancel = false;

    note_times(r, choice, ev);
    if (ev->kind == SCHED_DONE) {
        jobs_remove(&r->server->jobs, ev->id);
        r->jobs_left--;
        note_outcome(r, ev);
    }
    /* What was sent is dropped here, not in the reader, so that the buffer is moved seldom. */
    if (r->out_sent > 0) {
        memmove(r->out.data, r->out.data + r->out_sent, r->out.len - r->out_sent);
        r->out.len -= r->out_sent;
        r->out_sent = 0;
    }
    const size_t before = r->out.len;
    const bool begins = r->phase == REQUEST_WAITING && api_is_stream(r->api) && before == 0;
    if (begins) api_begin(r->api, &r->out);
    if (api_event(r->api, choice, ev, &r->out, &cancel, &err) != 0) {
        fail_generation(r, &err);
        return;
    }
    if (cancel && jobs_find(&r->server->jobs, ev->id) != NULL) {
        sched_cancel(r->server->sched, ev->id);
        jobs_remove(&r->server->jobs, ev->id);
        r->jobs_left--;
    }
    note_unsent(r, ev, before);
    if (begins) r->phase = REQUEST_STREAM;
    if (api_finished(r->api)) finish_generation(r);
}

void generate_expire(struct server *s)
{
    struct api_error err = {0};
    (void)!api_fail(&err, 503, NULL, NULL, "The server shut down before the answer was finished.");
    for (struct request *r = s->requests; r != NULL; r = r->next) {
        if (!r->accepted || r->counted || r->gone) continue;
        fail_generation(r, &err);
        request_resume(r);
    }
}

/* Only what was unread before these events counts against the client: one step may end many
 * choices at once, whose log-probabilities alone are more than the bound. */
static void wake_list_add(struct request **dirty, struct request *r)
{
    if (r->dirty) return;
    r->behind = r->out.len - r->out_sent > r->server->opt->max_stream_buffer;
    r->dirty = true;
    r->next_dirty = *dirty;
    *dirty = r;
}

void generate_deliver(struct server *s)
{
    struct request *dirty = NULL;
    sched_take(s->sched, &s->events);
    for (size_t i = 0; i < s->events.n; i++) {
        const struct sched_event *ev = &s->events.items[i];
        struct request *r = jobs_find(&s->jobs, ev->id);
        if (r == NULL) continue;
        wake_list_add(&dirty, r);
        take_event(r, ev);
    }
    /* Nothing is freed before the caller's pump: the list stays valid. */
    for (struct request *r = dirty; r != NULL; r = r->next_dirty) {
        r->dirty = false;
        if (r->out.failed || (r->behind && !r->stream_ended)) {
            cfg_log(CFG_LOG_WARN, "request=%s: %s, giving it up", r->id,
                    r->out.failed ? "no memory for its answer" : "the client does not read");
            request_abort(r);
        } else if (r->phase == REQUEST_READY || r->stream_ended || r->out.len > r->out_sent) {
            if (r->phase != REQUEST_WAITING) request_resume(r);
        }
    }
}
