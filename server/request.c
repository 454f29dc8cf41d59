// SPDX-License-Identifier: Apache-2.0
//
// request.c: one HTTP request from its header to its reply. libmicrohttpd calls request_access once
// when the header is complete, once for each piece of the body, once at the end, and again after
// every resume until a response is queued.
#include "server/http.h"
#include "server/web.h"

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

uint32_t request_tenant(const struct request *r)
{
    return r->tenant != NULL ? r->tenant->number : 0;
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
    free(r->paces);
    free(r);
}

/* The client's own id, if it is fit for that. A mixed counter else: unique here, and not to be
 * guessed from the one before. */
static void set_id(struct request *r, const char *own)
{
    struct server *s = r->server;
    if (own != NULL) {
        snprintf(r->id, sizeof r->id, "%s", own);
        return;
    }
    uint64_t x = s->id_base + ++s->next_id * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    snprintf(r->id, sizeof r->id, "req-%016llx", (unsigned long long)(x ^ (x >> 31)));
}

static struct request *request_new(struct server *s, struct MHD_Connection *mhd)
{
    struct request *r = calloc(1, sizeof *r);
    struct conn *c = connection_of(mhd);
    if (r == NULL || c == NULL) {
        free(r);
        return NULL;
    }
    handshake_end(c);
    r->server = s;
    r->env = &s->env;
    r->retry_after = 1;
    r->mhd = mhd;
    r->conn = c;
    r->conn->request = r;
    r->conn->hung_up = false;
    r->refs = 1;
    r->began = cfg_now();
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
    parsing_forget(r);
    stream_unwatch(r); /* before libmicrohttpd closes the descriptor */
    access_log(r);
    r->conn->request = NULL;
    r->conn->hung_up = false;
    r->conn->deadline = cfg_now() + s->opt->keep_alive_timeout + s->opt->header_timeout;
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

static void add_cors_headers(const struct request *r, struct MHD_Response *resp)
{
    const struct cors *cors = &r->server->cors;
    const char *allowed = cors_allow(cors, r->origin);
    if (cors->by_origin) MHD_add_response_header(resp, "Vary", "Origin");
    if (allowed == NULL) return;
    MHD_add_response_header(resp, "Access-Control-Allow-Origin", allowed);
    if (!r->preflight) {
        MHD_add_response_header(resp, "Access-Control-Expose-Headers", CORS_EXPOSED);
        return;
    }
    MHD_add_response_header(resp, "Access-Control-Allow-Methods", r->allow);
    if (cors_headers_fit(r->wanted_headers))
        MHD_add_response_header(resp, "Access-Control-Allow-Headers", r->wanted_headers);
    MHD_add_response_header(resp, "Access-Control-Max-Age", "600");
}

static void add_headers(const struct request *r, struct MHD_Response *resp)
{
    add_limit_headers(r, resp);
    add_cors_headers(r, resp);
    if (r->file != NULL) web_add_headers(r->file, r->file_gzip, resp);
    MHD_add_response_header(resp, "x-request-id", r->id);
    if (r->status == 405 && r->allow != NULL) MHD_add_response_header(resp, "Allow", r->allow);
    if (r->status == 401) MHD_add_response_header(resp, "WWW-Authenticate", "Bearer");
    if (r->status == 503) MHD_add_response_header(resp, "Retry-After", "5");
    if (r->server->state == SERVER_DRAINING || r->conn->refused != 0)
        MHD_add_response_header(resp, "Connection", "close");
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
            if (r->content_type != NULL)
                MHD_add_response_header(resp, "Content-Type", r->content_type);
        }
        r->phase = REQUEST_REPLIED;
    }
    if (resp == NULL) return MHD_NO;
    add_headers(r, resp);
    enum MHD_Result rc = MHD_queue_response(r->mhd, (unsigned)r->status, resp);
    MHD_destroy_response(resp);
    metrics_response(&r->server->metrics, r->status);
    r->answered = rc == MHD_YES;
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

/* A page asks before it asks: what the path takes, without a key. */
static bool is_preflight(const struct request *r, const char *method, const struct header *h)
{
    return r->allow != NULL && h->wanted_method != NULL && strcmp(method, "OPTIONS") == 0 &&
           cors_allow(&r->server->cors, h->origin) != NULL;
}

static void answer_preflight(struct request *r, const char *url)
{
    struct cfg_buf none = {0};
    (void)url;
    request_reply(r, 204, NULL, &none);
}

static int find_route(struct request *r, const char *url, const char *method,
                      const struct header *h)
{
    static const struct route preflight = {.handle = answer_preflight};
    struct api_error *err = &r->error;
    r->route = route_find(method, url, &r->allow);
    if (r->route != NULL) return 0;
    if (r->allow == NULL)
        return api_fail(err, 404, NULL, NULL, "There is no %s %.200s here.", method, url);
    r->preflight = is_preflight(r, method, h);
    if (!r->preflight)
        return api_fail(err, 405, NULL, NULL, "%.200s does not take %s, only %s.", url, method,
                        r->allow);
    r->route = &preflight;
    r->wanted_headers = h->wanted_headers;
    return 0;
}

/* A connection past the limits is for the probes of who looks after the server alone. */
static int check_connection(struct request *r)
{
    if (r->conn->refused == 0 || route_is_probe(r->route)) return 0;
    if (r->conn->refused == 503)
        return api_fail(&r->error, 503, NULL, NULL, "The server has too many connections.");
    return api_fail(&r->error, 429, NULL, NULL,
                    "There are too many connections from your address.");
}

static int check_request(struct request *r, const char *url, const char *method,
                         const struct header *h)
{
    struct server *s = r->server;
    struct api_error *err = &r->error;
    const int found = find_route(r, url, method, h);
    if (check_connection(r) != 0 || found != 0) return -1;
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

/* What makes the message itself unfit to be answered on its merits. */
static int check_message(struct request *r, const char *version, const struct header *h)
{
    const size_t limit = r->server->opt->max_header_size;
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    if (header_check(h, version, &r->error) != 0) return -1;
    if (r->conn->odd_target)
        return api_fail(&r->error, 400, NULL, NULL, "The path holds a blank or an encoded NUL.");
    if (size != NULL && size->header_size > limit)
        return api_fail(&r->error, 431, NULL, NULL, "The header is larger than %zu bytes.", limit);
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
    set_id(r, header_request_id(&h));
    snprintf(r->method, sizeof r->method, "%s", method);
    snprintf(r->path, sizeof r->path, "%s", url);
    r->origin = h.origin;
    bool at_once = check_message(r, version, &h) != 0;
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

/* The request is complete. Afterwards it has a reply or is suspended. */
static void dispatch(struct request *r, const char *url)
{
    if (r->error.status == 0 && r->body.failed)
        api_fail(&r->error, 500, NULL, NULL, "There is no memory for the body.");
    if (r->error.status != 0) {
        request_fail(r, &r->error);
        return;
    }
    if (parsing_begin(r)) return;
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
