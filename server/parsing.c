// SPDX-License-Identifier: Apache-2.0
//
// parsing.c: bodies that are parsed on libuv's workers, so that the loop thread goes on. What is
// slow (a grammar may have to be compiled, or the text is very long) never has all the workers: so
// many run at once, and the others wait in line here. Of those, the one whose tenant has the fewest
// running is next, then who came first: nobody's heavy bodies hold up another tenant for longer
// than one of them takes. Loop thread, but for the call of the route's parser.
#include "server/http.h"

/* ---- the line -------------------------------------------------------------------------------- */

static void enqueue(struct parsing *p, struct request *r)
{
    r->line_next = NULL;
    r->line_prev = p->last;
    if (p->last != NULL)
        p->last->line_next = r;
    else
        p->first = r;
    p->last = r;
    r->in_line = true;
}

static void leave(struct parsing *p, struct request *r)
{
    if (r->line_prev != NULL)
        r->line_prev->line_next = r->line_next;
    else
        p->first = r->line_next;
    if (r->line_next != NULL)
        r->line_next->line_prev = r->line_prev;
    else
        p->last = r->line_prev;
    r->in_line = false;
}

static int running_of(const struct parsing *p, const struct keys_tenant *t)
{
    int n = 0;
    for (int i = 0; i < HTTP_SLOW_WORKERS; i++)
        n += p->running[i] != NULL && p->running[i]->tenant == t;
    return n;
}

static struct request *next_in_line(const struct parsing *p)
{
    struct request *best = NULL;
    int least = HTTP_SLOW_WORKERS + 1;
    for (struct request *r = p->first; r != NULL && least > 0; r = r->line_next) {
        const int n = running_of(p, r->tenant);
        if (n >= least) continue;
        least = n;
        best = r;
    }
    return best;
}

/* ---- the workers ----------------------------------------------------------------------------- */

static void parse(uv_work_t *w)
{
    struct request *r = w->data;
    r->route->parse(r);
}

static void start_waiting(struct server *s);

static void parsed(uv_work_t *w, int status)
{
    struct request *r = w->data;
    struct server *s = r->server;
    for (int i = 0; i < HTTP_SLOW_WORKERS; i++)
        if (s->parsing.running[i] == r) s->parsing.running[i] = NULL;
    start_waiting(s);
    if (!r->gone) {
        if (status != 0) api_fail(&r->error, 500, NULL, NULL, "The body could not be read.");
        r->phase = REQUEST_UPLOAD;
        r->route->handle(r, NULL);
        if (r->phase == REQUEST_READY) request_resume(r);
    }
    request_unref(r);
    server_pump(s);
}

/* libuv refuses no work that has a function. */
static void start(struct request *r)
{
    r->work.data = r;
    (void)uv_queue_work(&r->server->loop, &r->work, parse, parsed);
}

/* Gives a place among the workers to who is next. */
static void start_waiting(struct server *s)
{
    struct parsing *p = &s->parsing;
    for (int i = 0; i < HTTP_SLOW_WORKERS && p->first != NULL; i++) {
        if (p->running[i] != NULL) continue;
        struct request *r = next_in_line(p);
        leave(p, r);
        p->running[i] = r;
        start(r);
    }
}

bool parsing_begin(struct request *r)
{
    if (r->route->parse == NULL) return false;
    const bool slow = r->body.len > HTTP_SLOW_BODY || api_is_slow(r->body.data, r->body.len);
    if (!slow && r->body.len <= HTTP_INLINE_BODY) return false;
    if (stream_watch(r) != 0) return false;
    request_ref(r);
    r->phase = REQUEST_PARSING;
    if (slow) {
        enqueue(&r->server->parsing, r);
        start_waiting(r->server);
    } else {
        start(r);
    }
    return true;
}

void parsing_forget(struct request *r)
{
    if (!r->in_line) return;
    leave(&r->server->parsing, r);
    request_unref(r);
}
