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
#include "server/connection.h"
#include "server/cors.h"
#include "server/header.h"
#include "server/jobs.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/server.h"

enum {
    HTTP_BODY_RATE = 8192,                 /* bytes of a body that earn it another second */
    HTTP_INLINE_BODY = 4 * 1024,           /* larger bodies are parsed on a worker */
    HTTP_SLOW_BODY = 256 * 1024,           /* larger ones take as long as a grammar */
    HTTP_SLOW_WORKERS = 2,                 /* of libuv's four that slow bodies may have */
    HTTP_SWALLOW = 8 * 1024 * 1024,        /* of a chunked body past the limit, before we hang up */
    HTTP_MAX_BUFFERED = 256 * 1024 * 1024, /* bytes of bodies, all requests together */
    HTTP_MAX_CHOICES = 128,
    HTTP_MAX_GRAMMARS = 128 * 1024 * 1024, /* bytes of compiled grammars that are kept */
};

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

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
    bool gone;                  /* aborted: nothing more is sent */
    bool answered;              /* a response is queued: status is the client's */
    bool preflight;             /* a browser asks whether a page may ask */
    char id[HEADER_MAX_ID + 1]; /* x-request-id */
    char method[16], path[256]; /* for the log; cut */
    double began;               /* cfg_now() at the end of the header */
    const char *allow;          /* 405, preflight: the methods that would do */
    const char *origin;         /* the header; NULL: none */
    const char *wanted_headers; /* preflight: the names of headers that the page wants to send */

    struct keys_tenant *tenant; /* held; NULL: no key is needed */
    const struct api_env *env;  /* the server's env, or no_model */
    int retry_after;            /* 429: seconds; 0 = trying again is of no use */

    struct cfg_buf body;
    size_t received; /* bytes of body, kept or not */

    struct api_error error; /* status 0 = none */
    int status;             /* the reply's, when ready */
    struct cfg_buf reply;
    const char *content_type;
    const struct embedded *file; /* the reply carries this file of the page; NULL: it does not */
    bool file_gzip;              /* compressed */

    /* a generation */
    struct api_request *api;
    uint64_t first_job;
    size_t n_jobs, jobs_left;
    size_t reserved;            /* tokens it may need in all: charged to the tenant */
    struct metrics_pace *paces; /* [n_jobs] */
    size_t n_same;      /* of the jobs, those with the first one's prompt; they come first */
    size_t cached;      /* tokens of the prompts that came from the cache */
    double first_token; /* seconds from `began`; 0 = none came */
    const char *finish; /* once counted: how it ended, for the log */
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
    struct request *line_prev, *line_next; /* in_line: who else waits for a worker */
    bool in_line;
};

/* Slow bodies: those on a worker, and those that wait for one. */
struct parsing {
    struct request *running[HTTP_SLOW_WORKERS];
    struct request *first, *last;
};

struct server {
    const struct cfg_options *opt;
    struct engine *engine;
    struct sched *sched;
    struct api_env env;
    struct api_env no_model; /* the same for who may not use the model: model_name is NULL */
    struct keys *keys;       /* NULL: no key is needed */
    struct tls *tls;         /* NULL: plain HTTP */
    struct cors cors;
    struct metrics metrics;

    uv_loop_t loop;
    uv_async_t wake;      /* scheduler events are there */
    uv_poll_t mhd_poll;   /* libmicrohttpd's epoll descriptor */
    uv_timer_t mhd_timer; /* its next timeout */
    uv_idle_t mhd_again;  /* it has more to do, after everybody else's turn */
    uv_timer_t tick;      /* slow senders, load state, end of the drain */
    uv_signal_t sigterm, sigint, sighup;

    struct MHD_Daemon *mhd;
    struct listener listener;
    bool pumping, closed_one;

    struct conns conns;
    bool crowded; /* so many connections were open that their memory is worth giving back */
    struct request *requests;
    struct jobs jobs; /* id -> request of every live job */
    struct sched_events events;
    struct parsing parsing;
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
/* Does who looks after the server ask this, and often? t may be NULL. */
bool route_is_probe(const struct route *t);

/* ---- access_log.c: one line about a request that is over */

void access_log(const struct request *r);

/* ---- request.c */

enum MHD_Result request_access(void *cls, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **ctx);
void request_completed(void *cls, struct MHD_Connection *mhd, void **ctx,
                       enum MHD_RequestTerminationCode why);
/* Takes the contents of *body; the reply goes out when the handler is next called. */
void request_reply(struct request *r, int status, const char *type, struct cfg_buf *body);
/* The same with the error in OpenAI's envelope. */
void request_fail(struct request *r, const struct api_error *err);
/* Whose it is; 0: who needs no key. */
uint32_t request_tenant(const struct request *r);
void request_drop_body(struct request *r);
void request_suspend(struct request *r);
void request_resume(struct request *r);
/* Gives up: jobs are cancelled, the connection is shut down; the caller pumps afterwards. */
void request_abort(struct request *r);
void request_ref(struct request *r);
void request_unref(struct request *r);
/* Requests that a drain waits for. */
bool request_any_active(const struct server *s);

/* ---- parsing.c */

/* Leaves the body to a worker, if it may take long: the request is then in REQUEST_PARSING. */
bool parsing_begin(struct request *r);
/* The client has gone: a request that waits for a worker waits no more. */
void parsing_forget(struct request *r);

/* ---- generate.c */

/* A route's parse and handle: read the body; submit its jobs and wait, or reply with the error. */
void generate_parse_chat(struct request *r);
void generate_parse_completion(struct request *r);
void generate_parse_response(struct request *r);
void generate_start(struct request *r, const char *url);
/* Takes the scheduler's events and wakes the requests they belong to. */
void generate_deliver(struct server *s);
/* Ends every answer that still runs with an error. The caller pumps. */
void generate_expire(struct server *s);
/* Cancels what still runs for r and settles its outcome. */
void generate_end(struct request *r);

/* ---- responses.c: a response by its id */

void responses_get(struct request *r, const char *url);
void responses_delete(struct request *r, const char *url);

/* ---- stream.c */

/* Begins to look for the client's disconnect, which libmicrohttpd can't see while suspended. */
int stream_watch(struct request *r);
void stream_unwatch(struct request *r);
struct MHD_Response *stream_response(struct request *r);

#endif
