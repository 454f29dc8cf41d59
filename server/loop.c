// SPDX-License-Identifier: Apache-2.0
//
// loop.c: the loop thread. libuv watches libmicrohttpd's epoll descriptor and calls MHD_run when it
// becomes readable: all connection state lives on this one thread and needs no lock. The engine
// thread only ever touches `wake`. Two rules keep it right: MHD_run is never re-entered (its
// callbacks change state and return), and after requests were resumed from outside one
// server_pump follows, because nothing else would wake libmicrohttpd.
#include "server/http.h"

#include <errno.h>
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
    CONNECTION_MEMORY = 16 * 1024,
    SPARE_CONNECTIONS = 1024, /* beyond those that may wait or run */
    MAX_RUNS = 64,            /* of libmicrohttpd before other events get their turn */
};

/* ---- pump */

static void on_mhd_timer(uv_timer_t *t)
{
    server_pump(t->data);
}

static void on_mhd_readable(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    server_pump(p->data);
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
        timed = MHD_get_timeout(s->mhd, &ms) == MHD_YES;
        if (s->closed_one) continue; /* accept is re-armed by the next run only */
        if (!timed || ms != 0 || ++idle == 4) break;
    }
    s->pumping = false;
    if (timed)
        uv_timer_start(&s->mhd_timer, on_mhd_timer, ms, 0);
    else
        uv_timer_stop(&s->mhd_timer);
}

/* ---- life */

static void finish(struct server *s, int result)
{
    s->result = result;
    uv_stop(&s->loop);
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
            cfg_log(CFG_LOG_INFO, "ready: model=%s url=%s", s->env.model_name, s->url);
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
    request_sweep(s, now);
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

static void on_reload(uv_signal_t *sig, int signum)
{
    struct server *s = sig->data;
    struct error err = {0};
    (void)signum;
    if (s->opt->api_key_file == NULL)
        cfg_log(CFG_LOG_INFO, "SIGHUP: there is no --api-key-file to read again");
    else if (keys_reload(s->keys, cfg_now(), &err) != CFG_OK)
        cfg_log(CFG_LOG_ERROR, "SIGHUP: %s; the keys known so far stay in force", err.message);
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
    (void)uv_timer_init(&s->loop, &s->tick);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    (void)uv_signal_init(&s->loop, &s->sighup);
    s->wake.data = s->mhd_timer.data = s->tick.data = s;
    s->sigterm.data = s->sigint.data = s->sighup.data = s;
    return 0;
}

static void init_env(struct server *s, const struct cfg_options *opt, struct engine *engine)
{
    const int cap = opt->max_queued_requests;
    s->env = (struct api_env){
        .info = engine_info(engine),
        .tokenizer = engine_tokenizer(engine),
        .model_name = opt->served_model_name,
        .created = (int64_t)time(NULL),
        .seed = opt->seed,
        .max_choices = cap > 0 && cap < HTTP_MAX_CHOICES ? cap : HTTP_MAX_CHOICES,
    };
}

int server_open(struct server **out, const struct cfg_options *opt, struct engine *engine,
                struct error *err)
{
    bool loopback = true;
    struct timespec now;
    struct server *s = calloc(1, sizeof *s);
    if (s == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    s->opt = opt;
    s->engine = engine;
    s->next_job = 1;
    s->listen_fd = -1;
    init_env(s, opt, engine);
    clock_gettime(CLOCK_REALTIME, &now);
    metrics_init(&s->metrics, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    if (getrandom(&s->id_base, sizeof s->id_base, 0) != (ssize_t)sizeof s->id_base)
        s->id_base = (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u;

    int rc = CFG_OK;
    if (getrandom(s->env.secret, sizeof s->env.secret, 0) != (ssize_t)sizeof s->env.secret) {
        rc = cfg_fail(err, CFG_EIO, "the system gave no random numbers");
        goto free_server;
    }
    s->no_model = s->env;
    s->no_model.model_name = NULL;
    rc = keys_open(&s->keys, opt->api_key_file, opt->api_key, err);
    if (rc != CFG_OK) goto free_server;
    rc = listen_open(opt->host, opt->port, &s->listen_fd, &s->url, &loopback, err);
    if (rc != CFG_OK) goto close_keys;
    rc = uv_loop_init(&s->loop);
    if (rc != 0) {
        rc = cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
        goto close_socket;
    }
    rc = init_handles(s);
    if (rc != 0) {
        rc = cfg_fail(err, CFG_EIO, "event loop: %s", uv_strerror(rc));
        goto close_loop;
    }
    if (!loopback && s->keys == NULL)
        cfg_log(CFG_LOG_WARN, "%s answers other machines without a key: set --api-key", s->url);
    *out = s;
    return CFG_OK;

close_loop:
    uv_loop_close(&s->loop);
close_socket:
    close(s->listen_fd);
    free(s->url);
close_keys:
    keys_close(s->keys);
free_server:
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

/* Every connection needs a descriptor: the soft limit is raised as far as it goes. */
static unsigned connection_limit(const struct cfg_options *opt)
{
    const int most = opt->max_num_seqs + opt->max_queued_requests + SPARE_CONNECTIONS;
    const rlim_t wanted = (rlim_t)most;
    struct rlimit lim;
    if (getrlimit(RLIMIT_NOFILE, &lim) != 0) return 512;
    if (lim.rlim_cur < wanted + 128) {
        lim.rlim_cur = lim.rlim_max < wanted + 128 ? lim.rlim_max : wanted + 128;
        (void)setrlimit(RLIMIT_NOFILE, &lim);
    }
    (void)getrlimit(RLIMIT_NOFILE, &lim);
    if (lim.rlim_cur >= wanted + 128) return (unsigned)wanted;
    return lim.rlim_cur > 256 ? (unsigned)lim.rlim_cur - 128 : 128;
}

static int start_http(struct server *s, struct error *err)
{
    s->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, request_access,
        s, MHD_OPTION_EXTERNAL_LOGGER, mhd_log, NULL, MHD_OPTION_LISTEN_SOCKET, s->listen_fd,
        MHD_OPTION_CONNECTION_LIMIT, connection_limit(s->opt), MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)HTTP_IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
        MHD_OPTION_NOTIFY_COMPLETED, request_completed, s, MHD_OPTION_NOTIFY_CONNECTION,
        request_connection, s, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (s->mhd == NULL) return cfg_fail(err, CFG_EIO, "the HTTP library did not start");
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    int rc = info == NULL ? UV_EINVAL : uv_poll_init(&s->loop, &s->mhd_poll, info->epoll_fd);
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
    for (int i = 0; i < 8 && s->requests != NULL; i++) server_pump(s);
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
        cfg_log(CFG_LOG_INFO, "listening on %s", s->url);
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
    close(s->listen_fd);
    keys_close(s->keys);
    free(s->url);
    sched_events_free(&s->events);
    jobs_free(&s->jobs);
    free(s);
}
