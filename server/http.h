// SPDX-License-Identifier: Apache-2.0
//
// http.h (private to server/): what the files of the transport share: the server, its connections
// and requests. Everything here belongs to the loop thread, except while a worker parses a body: it
// then reads `body` and writes `api` and `error` of that one request, and nobody else does.
//
// A request lives from libmicrohttpd's first call of the access handler to its completion callback,
// or longer while a libuv handle or a worker still refers to it (refs). It owns its buffers and its
// api_request. Scheduler jobs are known by id alone: first_job + choice.
#ifndef OPENMOED_HTTP_H
#define OPENMOED_HTTP_H

#include <microhttpd.h>
#include <uv.h>

#include "server/api.h"
#include "server/jobs.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/server.h"

enum {
    HTTP_IDLE_SECONDS = 30,         /* without a byte: libmicrohttpd closes the connection */
    HTTP_HEADER_SECONDS = 10,       /* from accept to the end of the first request's header */
    HTTP_BODY_SECONDS = 30,         /* for a body, plus a second for every ... */
    HTTP_BODY_RATE = 8192,          /* ... so many bytes of it */
    HTTP_INLINE_BODY = 64 * 1024,   /* larger bodies are parsed on a worker */
    HTTP_SWALLOW = 8 * 1024 * 1024, /* of a chunked body past the limit, before we hang up */
    HTTP_MAX_OUTPUT = 1024 * 1024,  /* of a stream, unread since its last events: we hang up */
    HTTP_MAX_BUFFERED = 256 * 1024 * 1024, /* bytes of bodies, all requests together */
    HTTP_MAX_CHOICES = 128,
};

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

/* One accepted connection; its request, while there is one. */
struct conn {
    struct conn *prev, *next;
    struct request *request;
    int fd;
    double deadline; /* the header of the next request must be complete by then */
    bool hung_up;    /* the last sweep found the other side gone */
};

enum request_phase {
    REQUEST_UPLOAD,  /* header checked; the body arrives */
    REQUEST_PARSING, /* suspended; a worker parses the body */
    REQUEST_WAITING, /* suspended; jobs submitted, no answer yet */
    REQUEST_READY,   /* a reply is there and is queued by the next call of the access handler */
    REQUEST_STREAM,  /* the event stream is queued; suspended whenever there is nothing to send */
    REQUEST_REPLIED, /* a whole reply is queued */
};

struct request {
    struct server *server;
    struct MHD_Connection *mhd; /* NULL once completed */
    struct conn *conn;          /* likewise */
    struct request *prev, *next;
    const struct route *route;
    int refs;
    enum request_phase phase;
    bool suspended;
    bool gone;         /* aborted: nothing more is sent */
    char id[24];       /* x-request-id */
    double began;      /* cfg_now() at the end of the header */
    const char *allow; /* 405: the methods that would do */

    struct keys_tenant *tenant; /* held; NULL: no key is needed */
    const struct api_env *env;  /* the server's env, or no_model */
    int retry_after;            /* 429: seconds; 0 = trying again is of no use */

    struct cfg_buf body;
    size_t received; /* bytes of body, kept or not */

    struct api_error error; /* status 0 = none */
    int status;             /* the reply's, when ready */
    struct cfg_buf reply;
    const char *content_type;

    /* a generation */
    struct api_request *api;
    uint64_t first_job;
    size_t n_jobs, jobs_left;
    size_t reserved;    /* tokens it may need in all: charged to the tenant */
    double *last_token; /* [n_jobs] time of each choice's latest token, 0 = none */
    enum metrics_outcome outcome;
    bool accepted, counted;

    /* the event stream */
    bool stream_ended;
    struct cfg_buf out; /* rendered, from out_sent on not yet given to libmicrohttpd */
    size_t out_sent;
    double unsent_since; /* engine time of the oldest token in out */
    size_t unsent_tokens;
    bool behind; /* too much was unread when the latest events came */
    bool dirty;  /* on the server's list of requests to wake */
    struct request *next_dirty;

    uv_poll_t watch; /* for the client's disconnect */
    bool watching;
    uv_work_t work;
};

struct server {
    const struct cfg_options *opt;
    struct engine *engine;
    struct sched *sched;
    struct api_env env;
    struct api_env no_model; /* the same for who may not use the model: model_name is NULL */
    struct keys *keys;       /* NULL: no key is needed */
    struct metrics metrics;

    uv_loop_t loop;
    uv_async_t wake;      /* scheduler events are there */
    uv_poll_t mhd_poll;   /* libmicrohttpd's epoll descriptor */
    uv_timer_t mhd_timer; /* its next timeout */
    uv_timer_t tick;      /* slow senders, load state, end of the drain */
    uv_signal_t sigterm, sigint, sighup;

    struct MHD_Daemon *mhd;
    int listen_fd;
    char *url; /* http://HOST:PORT */
    bool pumping, closed_one;

    struct conn *conns;
    struct request *requests;
    struct jobs jobs; /* id -> request of every live job */
    struct sched_events events;
    uint64_t next_job;
    size_t buffered;           /* bytes of bodies held */
    uint64_t id_base, next_id; /* of x-request-id */

    enum server_state state;
    double drain_deadline;
    struct error *failure; /* where a failed load is reported; set by server_run */
    int result;
};

/* ---- loop.c */

/* Lets libmicrohttpd run until it has nothing to do at once. Never from one of its callbacks. */
void server_pump(struct server *s);

/* ---- listen.c: a bound, listening socket; *url is malloc'd; *loopback: reachable from here only
 */

int listen_open(const char *host, int port, int *fd, char **url, bool *loopback,
                struct error *err) CFG_WARN_UNUSED;

/* ---- routes.c */

struct route {
    const char *method; /* GET answers HEAD too */
    const char *path;   /* ending in '/': a prefix with something after it */
    bool needs_key;
    void (*parse)(struct request *r); /* NULL, or: body -> request; any thread, large bodies */
    void (*handle)(struct request *r, const char *url); /* loop thread; url only without a body */
};
/* NULL when none fits; *allow is then NULL (404) or the methods this path knows (405). */
const struct route *route_find(const char *method, const char *url, const char **allow);

/* ---- request.c */

enum MHD_Result request_access(void *cls, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **ctx);
void request_completed(void *cls, struct MHD_Connection *mhd, void **ctx,
                       enum MHD_RequestTerminationCode why);
void request_connection(void *cls, struct MHD_Connection *mhd, void **ctx,
                        enum MHD_ConnectionNotificationCode what);
/* Takes the contents of *body; the reply goes out when the handler is next called. */
void request_reply(struct request *r, int status, const char *type, struct cfg_buf *body);
/* The same with the error in OpenAI's envelope. */
void request_fail(struct request *r, const struct api_error *err);
void request_drop_body(struct request *r);
void request_suspend(struct request *r);
void request_resume(struct request *r);
/* Gives up: jobs are cancelled, the connection is shut down; the caller pumps afterwards. */
void request_abort(struct request *r);
void request_ref(struct request *r);
void request_unref(struct request *r);
/* Hangs up on senders that take too long or have left. */
void request_sweep(struct server *s, double now);
/* Requests that a drain waits for. */
bool request_any_active(const struct server *s);

/* ---- generate.c */

/* A route's parse and handle: read the body; submit its jobs and wait, or reply with the error. */
void generate_parse_chat(struct request *r);
void generate_parse_completion(struct request *r);
void generate_start(struct request *r, const char *url);
/* Takes the scheduler's events and wakes the requests they belong to. */
void generate_deliver(struct server *s);
/* Ends every answer that still runs with an error. The caller pumps. */
void generate_expire(struct server *s);
/* Cancels what still runs for r and settles its outcome. */
void generate_end(struct request *r);

/* ---- stream.c */

/* Begins to look for the client's disconnect, which libmicrohttpd can't see while suspended. */
int stream_watch(struct request *r);
void stream_unwatch(struct request *r);
struct MHD_Response *stream_response(struct request *r);

#endif
