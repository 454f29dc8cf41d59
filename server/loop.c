// SPDX-License-Identifier: Apache-2.0
//
// loop.c: the loop thread. libuv watches libmicrohttpd's epoll descriptor and calls MHD_run when it
// becomes readable: all connection state lives on this one thread and needs no lock. The engine
// thread only ever touches `wake`. Two rules keep it right: MHD_run is never re-entered (its
// callbacks change state and return), and after requests were resumed from outside one
// server_pump follows, because nothing else would wake libmicrohttpd.
#include "server/http.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_MS = 250,
    LOADING_TICK_MS = 20,
    CROWD = 64,
    CONNECTION_MEMORY = 16 * 1024, /* beside the header: its lines as a list, the answer's header */
    SPARE_DESCRIPTORS = 128,       /* for everything that is no connection */
    MAX_RUNS = 64,                 /* of libmicrohttpd before other events get their turn */
};

/* ---- pump */

static void on_mhd_timer(uv_timer_t *t)
{
    server_pump(t->data);
}

static void on_mhd_again(uv_idle_t *i)
{
    server_pump(i->data);
}

static void on_mhd_readable(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    server_pump(p->data);
}

/* Not a timer of 0 ms for what is due at once: libuv would run that again and again before it looks
 * at anything else. */
static void wait_for_more(struct server *s, bool timed, uint64_t ms)
{
    if (timed && ms > 0)
        uv_timer_start(&s->mhd_timer, on_mhd_timer, ms, 0);
    else
        uv_timer_stop(&s->mhd_timer);
    if (timed && ms == 0)
        uv_idle_start(&s->mhd_again, on_mhd_again);
    else
        uv_idle_stop(&s->mhd_again);
}

void server_pump(struct server *s)
{
    MHD_UNSIGNED_LONG_LONG ms = 0;
    bool timed = false;
    if (s->pumping || s->mhd == NULL) return;
    s->pumping = true;
    for (int runs = 0, idle = 0; runs < MAX_RUNS; runs++) {
        s->closed_one = false;
        MHD_run(s->mhd);
        handshake_check(s);
        timed = MHD_get_timeout(s->mhd, &ms) == MHD_YES;
        if (s->closed_one) continue; /* accept is re-armed by the next run only */
        if (!timed || ms != 0 || ++idle == 4) break;
    }
    s->pumping = false;
    wait_for_more(s, timed, ms);
}

/* ---- life */

static void finish(struct server *s, int result)
{
    s->result = result;
    uv_stop(&s->loop);
}

/* After a crowd the allocator keeps what it got, in small pieces everywhere: given back once
 * everybody has left, so that a burst does not cost memory for ever. */
static void give_memory_back(struct server *s)
{
    if (s->conns.n >= CROWD) s->crowded = true;
    if (!s->crowded || s->conns.n > 0 || s->requests != NULL) return;
    (void)malloc_trim(0);
    s->crowded = false;
}

static void on_tick(uv_timer_t *t)
{
    struct server *s = t->data;
    const double now = cfg_now();
    struct sched_stats st;
    switch (s->state) {
    case SERVER_LOADING:
        sched_stats(s->sched, &st);
        if (st.state == SCHED_FAILED) {
            sched_failure(s->sched, s->failure);
            finish(s, s->failure->code < 0 ? s->failure->code : CFG_EINTERNAL);
        } else if (st.state == SCHED_READY) {
            s->state = SERVER_READY;
            uv_timer_set_repeat(&s->tick, TICK_MS);
            cfg_log(CFG_LOG_INFO, "ready: model=%s url=%s", s->env.model_name, s->listener.url);
        }
        break;
    case SERVER_DRAINING:
        if (!request_any_active(s)) {
            finish(s, CFG_OK);
        } else if (now >= s->drain_deadline) {
            cfg_log(CFG_LOG_WARN, "drain: time is up, ending what still runs");
            finish(s, CFG_OK);
        }
        break;
    case SERVER_READY:
        break;
    }
    connection_sweep(s, now);
    give_memory_back(s);
}

static void on_signal(uv_signal_t *sig, int signum)
{
    struct server *s = sig->data;
    const char *name = signum == SIGTERM ? "SIGTERM" : "SIGINT";
    if (s->state == SERVER_DRAINING || s->state == SERVER_LOADING) {
        cfg_log(CFG_LOG_INFO, "%s: ending at once", name);
        finish(s, CFG_OK);
        return;
    }
    cfg_log(CFG_LOG_INFO, "%s: draining for at most %d s", name, s->opt->drain_timeout);
    s->state = SERVER_DRAINING;
    s->drain_deadline = cfg_now() + s->opt->drain_timeout;
    sched_drain(s->sched);
    uv_timer_start(&s->tick, on_tick, 0, LOADING_TICK_MS);
}

/* Each file by itself: a mistake in one leaves the other's news in force. */
static void on_reload(uv_signal_t *sig, int signum)
{
    struct server *s = sig->data;
    struct error err = {0};
    (void)signum;
    if (s->opt->api_key_file == NULL && s->tls == NULL)
        cfg_log(CFG_LOG_INFO,
                "SIGHUP: there is no --api-key-file to read again, and no --tls-cert");
    if (s->opt->api_key_file != NULL && keys_reload(s->keys, cfg_now(), &err) != CFG_OK)
        cfg_log(CFG_LOG_ERROR, "SIGHUP: %s; the keys known so far stay in force", err.message);
    if (s->tls != NULL && tls_reload(s->tls, &err) != CFG_OK)
        cfg_log(CFG_LOG_ERROR, "SIGHUP: %s; the certificate known so far stays in force",
                err.message);
}

static void on_wake(uv_async_t *a)
{
    struct server *s = a->data;
    if (s->sched == NULL) return;
    generate_deliver(s);
    server_pump(s);
}

void server_notify(void *server)
{
    struct server *s = server;
    (void)uv_async_send(&s->wake);
}

/* ---- open, run, close */

static int init_handles(struct server *s)
{
    int rc = uv_async_init(&s->loop, &s->wake, on_wake);
    if (rc != 0) return rc;
    (void)uv_timer_init(&s->loop, &s->mhd_timer);
    (void)uv_idle_init(&s->loop, &s->mhd_again);
    (void)uv_timer_init(&s->loop, &s->tick);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    (void)uv_signal_init(&s->loop, &s->sighup);
    s->wake.data = s->mhd_timer.data = s->mhd_again.data = s->tick.data = s;
    s->sigterm.data = s->sigint.data = s->sighup.data = s;
    return 0;
}

static void init_env(struct server *s, const struct cfg_options *opt, struct engine *engine)
{
    static const struct api_store_limits kept = {
        .tenant_n = 1024, .tenant_bytes = 64 << 20, .n = 4096, .bytes = 256 << 20};
    const int cap = opt->max_queued_requests;
    s->env = (struct api_env){
        .info = engine_info(engine),
        .tokenizer = engine_tokenizer(engine),
        .model_name = opt->served_model_name,
        .created = (int64_t)time(NULL),
        .seed = opt->seed,
        .json_depth = opt->max_json_depth,
        .json_values = opt->max_json_values,
        .max_choices = cap > 0 && cap < HTTP_MAX_CHOICES ? cap : HTTP_MAX_CHOICES,
        .grammars = api_grammars_new(HTTP_MAX_GRAMMARS), /* none: then none are kept */
        .store = api_store_new(&kept),
    };
}

static int init_random(struct server *s, struct error *err)
{
    struct {
        uint64_t id_base, salts[2], addresses[2];
    } r;
    if (getrandom(&r, sizeof r, 0) != (ssize_t)sizeof r)
        return cfg_fail(err, CFG_EIO, "the system gave no random numbers");
    s->id_base = r.id_base;
    memcpy(s->env.secret, r.salts, sizeof r.salts);
    memcpy(s->conns.limits.secret, r.addresses, sizeof r.addresses);
    return CFG_OK;
}

static int init_loop(struct server *s, struct error *err)
{
    int rc = uv_loop_init(&s->loop);
    if (rc != 0) return cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
    rc = init_handles(s);
    if (rc == 0) return CFG_OK;
    uv_loop_close(&s->loop);
    return cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
}

int server_open(struct server **out, const struct cfg_options *opt, struct engine *engine,
                struct error *err)
{
    struct timespec now;
    struct server *s = calloc(1, sizeof *s);
    if (s == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    s->opt = opt;
    s->engine = engine;
    s->next_job = 1;
    clock_gettime(CLOCK_REALTIME, &now);
    metrics_init(&s->metrics, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    init_env(s, opt, engine);
    int rc = init_random(s, err);
    if (rc != CFG_OK) goto free_server;
    s->no_model = s->env;
    s->no_model.model_name = NULL;
    rc = cors_open(&s->cors, opt->allowed_origins, err);
    if (rc != CFG_OK) goto free_server;
    rc = keys_open(&s->keys, opt->api_key_file, opt->api_key, err);
    if (rc != CFG_OK) goto close_cors;
    rc = tls_open(&s->tls, opt->tls_cert, opt->tls_key, err);
    if (rc != CFG_OK) goto close_keys;
    rc = listen_open(&s->listener, opt, err);
    if (rc != CFG_OK) goto close_tls;
    rc = init_loop(s, err);
    if (rc != CFG_OK) goto close_socket;
    if (!s->listener.loopback && s->keys == NULL)
        cfg_log(CFG_LOG_WARN, "%s answers other machines without a key", s->listener.url);
    *out = s;
    return CFG_OK;

close_socket:
    listen_close(&s->listener);
close_tls:
    tls_close(s->tls);
close_keys:
    keys_close(s->keys);
close_cors:
    cors_close(&s->cors);
free_server:
    api_grammars_free(s->env.grammars);
    api_store_free(s->env.store);
    free(s);
    return rc;
}

CFG_PRINTF(2, 0) static void mhd_log(void *cls, const char *fmt, va_list args)
{
    char line[256];
    (void)cls;
    if (!cfg_log_enabled(CFG_LOG_DEBUG)) return;
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\n")] = '\0';
    cfg_log(CFG_LOG_DEBUG, "http: %s", line);
}

/* Every connection needs a descriptor: the soft limit is raised as far as it goes, and what it does
 * not allow is not accepted, so that accept never fails for want of one. */
static int connection_limit(const struct cfg_options *opt)
{
    const rlim_t others = SPARE_DESCRIPTORS + CONNECTION_REFUSALS;
    const rlim_t wanted = (rlim_t)opt->max_connections + others;
    struct rlimit lim = {.rlim_cur = 1024};
    if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < wanted) {
        lim.rlim_cur = lim.rlim_max < wanted ? lim.rlim_max : wanted;
        (void)setrlimit(RLIMIT_NOFILE, &lim);
        (void)getrlimit(RLIMIT_NOFILE, &lim);
    }
    if (lim.rlim_cur >= wanted) return opt->max_connections;
    const int possible = lim.rlim_cur > others ? (int)(lim.rlim_cur - others) : 1;
    cfg_log(CFG_LOG_WARN, "--max-connections %d: the limit of open files allows only %d",
            opt->max_connections, possible);
    return possible;
}

/* 0 and not 1: what 1 refuses in this release (a missing Host, blanks in the target) is refused by
 * us, in the form of every other error. Later releases have other checks behind 1. */
enum { STRICTNESS = MHD_VERSION < 0x00097701 ? 0 : 1 };

static int start_daemon(struct server *s, struct error *err)
{
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES},
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)connection_certificate},
        {MHD_OPTION_END, 0, NULL},
    };
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    if (s->tls != NULL) flags |= MHD_USE_TLS;
    if (s->tls != NULL && MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
        return cfg_fail(err, CFG_EUNSUPPORTED, "--tls-cert: libmicrohttpd was built without TLS");
    s->conns.max = connection_limit(s->opt);
    s->mhd = MHD_start_daemon(
        flags, 0, connection_accept, s, request_access, s, MHD_OPTION_EXTERNAL_LOGGER, mhd_log,
        NULL, MHD_OPTION_LISTEN_SOCKET, s->listener.fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(s->conns.max + CONNECTION_REFUSALS + 1), MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)s->opt->keep_alive_timeout, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        s->opt->max_header_size + CONNECTION_MEMORY, MHD_OPTION_URI_LOG_CALLBACK, connection_target,
        NULL, MHD_OPTION_NOTIFY_COMPLETED, request_completed, s, MHD_OPTION_NOTIFY_CONNECTION,
        connection_notify, s, MHD_OPTION_STRICT_FOR_CLIENT, (int)STRICTNESS, MHD_OPTION_ARRAY,
        s->tls != NULL ? tls : &tls[2], MHD_OPTION_END);
    if (s->mhd == NULL) return cfg_fail(err, CFG_EIO, "the HTTP library did not start");
    return CFG_OK;
}

static int start_http(struct server *s, struct error *err)
{
    int rc = start_daemon(s, err);
    if (rc != CFG_OK) return rc;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    rc = info == NULL ? UV_EINVAL : uv_poll_init(&s->loop, &s->mhd_poll, info->epoll_fd);
    if (rc != 0) {
        MHD_stop_daemon(s->mhd);
        s->mhd = NULL;
        return cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
    }
    s->mhd_poll.data = s;
    rc = uv_poll_start(&s->mhd_poll, UV_READABLE, on_mhd_readable);
    if (rc == 0) rc = uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    if (rc == 0) rc = uv_signal_start(&s->sigint, on_signal, SIGINT);
    if (rc == 0) rc = uv_signal_start(&s->sighup, on_reload, SIGHUP);
    if (rc == 0) rc = uv_timer_start(&s->tick, on_tick, 0, LOADING_TICK_MS);
    if (rc != 0) return cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
    return CFG_OK;
}

/* No suspended connection may be left when the daemon stops: it would abort the process. */
static void stop_http(struct server *s)
{
    if (s->mhd == NULL) return;
    (void)MHD_quiesce_daemon(s->mhd);
    generate_expire(s);
    server_pump(s);
    for (struct request *r = s->requests; r != NULL; r = r->next) request_abort(r);
    handshake_abort(s);
    for (int i = 0; i < 8; i++) server_pump(s);
    uv_close((uv_handle_t *)&s->mhd_poll, NULL);
    MHD_stop_daemon(s->mhd);
    s->mhd = NULL;
}

/* The loop thread works in bursts of microseconds beside compute threads that never rest. A short
 * time slice (Linux 6.12 and later) lets it run as soon as it wakes; elsewhere this changes
 * nothing. */
static void ask_for_short_slices(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof attr, .runtime = 100000 /* nanoseconds */};
    errno = 0;
    attr.nice = getpriority(PRIO_PROCESS, 0);
    if (errno == 0) (void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

int server_run(struct server *s, struct sched *sched, struct error *err)
{
    s->sched = sched;
    s->failure = err;
    ask_for_short_slices();
    int rc = start_http(s, err);
    if (rc == CFG_OK) {
        cfg_log(CFG_LOG_INFO, "listening on %s", s->listener.url);
        server_pump(s);
        (void)uv_run(&s->loop, UV_RUN_DEFAULT);
        rc = s->result;
    }
    stop_http(s);
    s->sched = NULL;
    return rc;
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h)) uv_close(h, NULL);
}

void server_close(struct server *s)
{
    if (s == NULL) return;
    uv_walk(&s->loop, close_handle, NULL);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT); /* closes, and waits for workers */
    (void)uv_loop_close(&s->loop);
    listen_close(&s->listener);
    tls_close(s->tls);
    keys_close(s->keys);
    cors_close(&s->cors);
    api_grammars_free(s->env.grammars);
    api_store_free(s->env.store);
    sched_events_free(&s->events);
    jobs_free(&s->jobs);
    free(s);
}
