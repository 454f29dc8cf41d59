// SPDX-License-Identifier: Apache-2.0
//
// request.c: one HTTP request from its header to its reply. libmicrohttpd calls request_access once
// when the header is complete, once for each piece of the body, once at the end, and again after
// every resume until a response is queued.
#include "server/header.h"
#include "server/http.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* ---- life */

void request_drop_body(struct request *r)
{
    r->server->buffered -= r->body.len;
    cfg_buf_free(&r->body);
}

void request_ref(struct request *r)
{
    r->refs++;
}

void request_unref(struct request *r)
{
    if (--r->refs > 0) return;
    api_request_free(r->api);
    keys_release(r->tenant);
    request_drop_body(r);
    cfg_buf_free(&r->reply);
    cfg_buf_free(&r->out);
    free(r->last_token);
    free(r);
}

static struct request *request_new(struct server *s, struct MHD_Connection *mhd)
{
    struct request *r = calloc(1, sizeof *r);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (r == NULL || info == NULL || info->socket_context == NULL) {
        free(r);
        return NULL;
    }
    r->server = s;
    r->env = &s->env;
    r->retry_after = 1;
    r->mhd = mhd;
    r->conn = info->socket_context;
    r->conn->request = r;
    r->conn->hung_up = false;
    r->refs = 1;
    r->began = cfg_now();
    /* A mixed counter: unique here, and not to be guessed from the one before. */
    uint64_t x = s->id_base + ++s->next_id * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    snprintf(r->id, sizeof r->id, "req-%016llx", (unsigned long long)(x ^ (x >> 31)));
    r->next = s->requests;
    if (r->next != NULL) r->next->prev = r;
    s->requests = r;
    return r;
}

void request_completed(void *cls, struct MHD_Connection *mhd, void **ctx,
                       enum MHD_RequestTerminationCode why)
{
    struct server *s = cls;
    struct request *r = *ctx;
    (void)mhd;
    (void)why;
    if (r == NULL) return;
    *ctx = NULL;
    generate_end(r);
    stream_unwatch(r); /* before libmicrohttpd closes the descriptor */
    r->conn->request = NULL;
    r->conn->hung_up = false;
    r->conn->deadline = cfg_now() + HTTP_IDLE_SECONDS + HTTP_HEADER_SECONDS;
    r->mhd = NULL;
    r->conn = NULL;
    r->gone = true;
    if (r->prev != NULL)
        r->prev->next = r->next;
    else
        s->requests = r->next;
    if (r->next != NULL) r->next->prev = r->prev;
    request_unref(r);
}

void request_connection(void *cls, struct MHD_Connection *mhd, void **ctx,
                        enum MHD_ConnectionNotificationCode what)
{
    struct server *s = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        struct conn *c = calloc(1, sizeof *c);
        *ctx = c;
        if (c == NULL) return; /* its first request finds no context and is refused */
        c->fd = info->connect_fd;
        c->deadline = cfg_now() + HTTP_HEADER_SECONDS;
        c->next = s->conns;
        if (c->next != NULL) c->next->prev = c;
        s->conns = c;
        return;
    }
    struct conn *c = *ctx;
    s->closed_one = true;
    if (c == NULL) return;
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    free(c);
    *ctx = NULL;
}

void request_suspend(struct request *r)
{
    if (r->suspended) return;
    r->suspended = true;
    MHD_suspend_connection(r->mhd);
}

void request_resume(struct request *r)
{
    if (!r->suspended || r->mhd == NULL) return;
    r->suspended = false;
    MHD_resume_connection(r->mhd);
}

void request_abort(struct request *r)
{
    if (r->gone) return;
    r->gone = true;
    generate_end(r);
    stream_unwatch(r);
    shutdown(r->conn->fd, SHUT_RDWR);
    request_resume(r);
}

static bool is_sending(const struct conn *c)
{
    return c->request == NULL || c->request->phase == REQUEST_UPLOAD;
}

/* libmicrohttpd misses a FIN that arrives together with data and would keep the connection until
 * it times out. Twice in a row, since what was sent before the FIN may be waiting to be read. */
static void sweep_gone(struct server *s)
{
    enum { BATCH = 256 };
    struct pollfd p[BATCH];
    struct conn *of[BATCH];
    for (struct conn *c = s->conns; c != NULL;) {
        nfds_t n = 0;
        for (; c != NULL && n < BATCH; c = c->next) {
            if (!is_sending(c)) continue;
            p[n] = (struct pollfd){.fd = c->fd, .events = POLLRDHUP};
            of[n++] = c;
        }
        if (poll(p, n, 0) < 0) return;
        for (nfds_t i = 0; i < n; i++) {
            if (p[i].revents != 0 && of[i]->hung_up) shutdown(of[i]->fd, SHUT_RDWR);
            of[i]->hung_up = p[i].revents != 0;
        }
    }
}

/* A shutdown wakes libmicrohttpd through epoll. */
void request_sweep(struct server *s, double now)
{
    for (struct conn *c = s->conns; c != NULL; c = c->next) {
        const struct request *r = c->request;
        double deadline = c->deadline;
        if (!is_sending(c)) continue;
        if (r != NULL)
            deadline = r->began + HTTP_BODY_SECONDS + (double)r->received / HTTP_BODY_RATE;
        if (now > deadline) shutdown(c->fd, SHUT_RDWR);
    }
    sweep_gone(s);
}

bool request_any_active(const struct server *s)
{
    for (const struct request *r = s->requests; r != NULL; r = r->next)
        if (r->phase != REQUEST_UPLOAD) return true;
    return false;
}

/* ---- replies */

void request_reply(struct request *r, int status, const char *type, struct cfg_buf *body)
{
    r->status = status;
    r->content_type = type;
    cfg_buf_free(&r->reply);
    r->reply = *body;
    *body = (struct cfg_buf){0};
    r->phase = REQUEST_READY;
}

void request_fail(struct request *r, const struct api_error *err)
{
    struct cfg_buf b = {0};
    api_error_body(err, &b);
    request_reply(r, err->status, "application/json", &b);
}

static void add_limit_headers(const struct request *r, struct MHD_Response *resp)
{
    struct keys_header h[KEYS_HEADERS];
    const size_t n = keys_headers(r->tenant, cfg_now(), h);
    for (size_t i = 0; i < n; i++) MHD_add_response_header(resp, h[i].name, h[i].value);
    if (r->status != 429 || r->retry_after == 0) return;
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%d", r->retry_after);
    MHD_add_response_header(resp, "Retry-After", seconds);
}

static void add_headers(const struct request *r, struct MHD_Response *resp)
{
    add_limit_headers(r, resp);
    MHD_add_response_header(resp, "x-request-id", r->id);
    if (r->status == 405 && r->allow != NULL) MHD_add_response_header(resp, "Allow", r->allow);
    if (r->status == 401) MHD_add_response_header(resp, "WWW-Authenticate", "Bearer");
    if (r->status == 503) MHD_add_response_header(resp, "Retry-After", "5");
    if (r->server->state == SERVER_DRAINING) MHD_add_response_header(resp, "Connection", "close");
}

static enum MHD_Result queue_reply(struct request *r)
{
    struct MHD_Response *resp;
    if (r->phase == REQUEST_STREAM) {
        r->status = 200;
        resp = stream_response(r);
    } else {
        if (r->reply.failed) return MHD_NO;
        resp = MHD_create_response_from_buffer(r->reply.len, r->reply.data, MHD_RESPMEM_MUST_FREE);
        if (resp != NULL) {
            r->reply = (struct cfg_buf){0};
            MHD_add_response_header(resp, "Content-Type", r->content_type);
        }
        r->phase = REQUEST_REPLIED;
    }
    if (resp == NULL) return MHD_NO;
    add_headers(r, resp);
    enum MHD_Result rc = MHD_queue_response(r->mhd, (unsigned)r->status, resp);
    MHD_destroy_response(resp);
    metrics_response(&r->server->metrics, r->status);
    if (rc == MHD_YES)
        cfg_log(CFG_LOG_DEBUG, "reply: request=%s status=%d seconds=%.6f", r->id, r->status,
                cfg_now() - r->began);
    return rc;
}

/* ---- the header and the body */

static enum MHD_Result add_line(void *cls, enum MHD_ValueKind kind, const char *name,
                                const char *value)
{
    (void)kind;
    header_add(cls, name, value != NULL ? value : "");
    return MHD_YES;
}

/* Who asks, and whether the model exists for them. */
static int check_key(struct request *r, const struct header *h)
{
    struct server *s = r->server;
    if (s->keys == NULL) return 0;
    r->tenant = keys_find(s->keys, h->authorization);
    if (r->tenant == NULL)
        return api_fail(&r->error, 401, "invalid_api_key", NULL,
                        h->authorization == NULL
                            ? "An API key is needed, as the header Authorization: Bearer KEY."
                            : "The API key is not right.");
    if (!keys_allows(r->tenant, s->env.model_name)) r->env = &s->no_model;
    return 0;
}

static int check_request(struct request *r, const char *url, const char *method,
                         const struct header *h)
{
    struct server *s = r->server;
    struct api_error *err = &r->error;
    r->route = route_find(method, url, &r->allow);
    if (r->route == NULL && r->allow == NULL)
        return api_fail(err, 404, NULL, NULL, "There is no %s %.200s here.", method, url);
    if (r->route == NULL)
        return api_fail(err, 405, NULL, NULL, "%.200s does not take %s, only %s.", url, method,
                        r->allow);
    if (r->route->needs_key && check_key(r, h) != 0) return -1;
    if (r->route->parse == NULL) return 0;
    if (h->other_type)
        return api_fail(err, 415, NULL, NULL, "Content-Type must be application/json.");
    if (s->state == SERVER_DRAINING)
        return api_fail(err, 503, NULL, NULL, "The server is shutting down.");
    if (s->state == SERVER_LOADING && r->route->handle == generate_start)
        return api_fail(err, 503, NULL, NULL, "The model is still loading.");
    return 0;
}

/* First call. An error is sent at once where reading on makes no sense; otherwise the body is
 * swallowed first, which keeps the connection usable and the reply from being lost to a reset. */
static enum MHD_Result begin(struct request *r, const char *url, const char *method,
                             const char *version)
{
    const size_t limit = r->server->opt->max_body_size;
    struct header h = {0};
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, add_line, &h);
    bool at_once = header_check(&h, version, &r->error) != 0;
    if (!at_once) {
        at_once = check_request(r, url, method, &h) != 0 && h.expects;
        if (h.length > limit) {
            if (r->error.status == 0)
                api_fail(&r->error, 413, NULL, NULL, "The body is larger than %zu bytes.", limit);
            at_once = true;
        }
    }
    if (!at_once) return MHD_YES;
    request_fail(r, &r->error);
    return queue_reply(r);
}

static enum MHD_Result take_body(struct request *r, const char *data, size_t n)
{
    const size_t limit = r->server->opt->max_body_size;
    r->received += n;
    if (r->received > limit && r->received - limit > HTTP_SWALLOW) return MHD_NO;
    if (r->error.status != 0 || r->route->parse == NULL) return MHD_YES;
    if (r->received > limit) {
        api_fail(&r->error, 413, NULL, NULL, "The body is larger than %zu bytes.", limit);
    } else if (r->server->buffered + n > HTTP_MAX_BUFFERED) {
        api_fail(&r->error, 503, NULL, NULL, "Too many large requests at once.");
    } else {
        const size_t before = r->body.len;
        cfg_buf_append(&r->body, data, n);
        r->server->buffered += r->body.len - before;
        return MHD_YES;
    }
    request_drop_body(r);
    return MHD_YES;
}

static void parse_on_worker(uv_work_t *w)
{
    struct request *r = w->data;
    r->route->parse(r);
}

static void parsed_on_worker(uv_work_t *w, int status)
{
    struct request *r = w->data;
    struct server *s = r->server;
    if (!r->gone) {
        if (status != 0) api_fail(&r->error, 500, NULL, NULL, "The body could not be read.");
        r->phase = REQUEST_UPLOAD;
        r->route->handle(r, NULL);
        if (r->phase == REQUEST_READY) request_resume(r);
    }
    request_unref(r);
    server_pump(s);
}

/* The request is complete. Afterwards it has a reply or is suspended. */
static void dispatch(struct request *r, const char *url)
{
    if (r->error.status == 0 && r->body.failed)
        api_fail(&r->error, 500, NULL, NULL, "There is no memory for the body.");
    if (r->error.status != 0) {
        request_fail(r, &r->error);
        return;
    }
    if (r->route->parse != NULL && r->body.len > HTTP_INLINE_BODY && stream_watch(r) == 0) {
        r->work.data = r;
        if (uv_queue_work(&r->server->loop, &r->work, parse_on_worker, parsed_on_worker) == 0) {
            request_ref(r);
            r->phase = REQUEST_PARSING;
            return;
        }
    }
    if (r->route->parse != NULL) r->route->parse(r);
    r->route->handle(r, url);
}

enum MHD_Result request_access(void *cls, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **ctx)
{
    struct request *r = *ctx;
    if (r == NULL) {
        r = request_new(cls, mhd);
        if (r == NULL) return MHD_NO;
        *ctx = r;
        return begin(r, url, method, version);
    }
    if (r->gone) return MHD_NO;
    if (*size > 0) {
        const size_t n = *size;
        *size = 0;
        return take_body(r, data, n);
    }
    if (r->phase == REQUEST_UPLOAD) dispatch(r, url);
    if (r->phase == REQUEST_READY || r->phase == REQUEST_STREAM) return queue_reply(r);
    request_suspend(r);
    return MHD_YES;
}
