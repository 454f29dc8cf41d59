// SPDX-License-Identifier: Apache-2.0
//
// run.c: the event loop: libcurl's multi interface over epoll, the timers of the chats, arrivals
// and the end. Owns the slots, one for each chat that can be open at once. A closed loop keeps
// every slot busy; with --rate a chat takes a free slot when it arrives, and if there is none that
// is an error of its own kind, so that an overloaded server can't slow the arrivals down unseen.
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/load/run.h"

#define ERROR_PAUSE      0.5 /* seconds a slot rests after an error: no hammering */
#define PROGRESS_SECONDS 5

struct timer {
    double at;
    struct load_chat *chat;
    unsigned number; /* void unless still the chat's latest */
};

struct run {
    const struct load_options *opt;
    struct load_report *report;
    struct load_totals *totals;
    CURLM *multi;
    int epoll;
    double curl_at; /* libcurl's next timeout */
    struct curl_slist *headers;
    struct cfg_buf url;

    struct load_chat *chats; /* [opt->chats] */
    int *idle;               /* [opt->chats] free slots, the first n_idle; only with --rate */
    int n_idle;
    int n_busy, n_running;
    long next_chat;

    struct timer *timers; /* [timers_cap] a binary heap, earliest first */
    size_t n_timers, timers_cap;
    struct load_rng arrivals;
    double next_arrival, next_progress;
    bool stopping;
    struct error *failed; /* set by callbacks and steps that can't go on */
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

/* ---- timers ---------------------------------------------------------------------------------- */

static void set_timer(struct run *run, struct load_chat *chat, double at)
{
    if (run->n_timers == run->timers_cap) {
        size_t cap = run->timers_cap ? 2 * run->timers_cap : 256;
        struct timer *timers = realloc(run->timers, cap * sizeof *timers);
        if (!timers) {
            cfg_fail(run->failed, CFG_ENOMEM, "no memory for timers");
            return;
        }
        run->timers = timers;
        run->timers_cap = cap;
    }
    size_t i = run->n_timers++;
    for (; i > 0 && run->timers[(i - 1) / 2].at > at; i = (i - 1) / 2)
        run->timers[i] = run->timers[(i - 1) / 2];
    run->timers[i] = (struct timer){at, chat, ++chat->timer};
}

static struct timer pop_timer(struct run *run)
{
    struct timer top = run->timers[0];
    struct timer last = run->timers[--run->n_timers];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= run->n_timers) break;
        if (child + 1 < run->n_timers && run->timers[child + 1].at < run->timers[child].at) child++;
        if (run->timers[child].at >= last.at) break;
        run->timers[i] = run->timers[child];
        i = child;
    }
    if (run->n_timers) run->timers[i] = last;
    return top;
}

/* ---- chats ----------------------------------------------------------------------------------- */

static bool may_start(const struct run *run)
{
    return !run->stopping && (run->opt->total == 0 || run->next_chat < run->opt->total);
}

static void set_phase(struct run *run, struct load_chat *c, enum load_phase phase)
{
    run->n_busy += (phase != LOAD_IDLE) - (c->phase != LOAD_IDLE);
    run->n_running += (phase == LOAD_RUNNING) - (c->phase == LOAD_RUNNING);
    if (run->n_running > run->totals->peak) run->totals->peak = run->n_running;
    if (run->opt->rate > 0 && phase == LOAD_IDLE) run->idle[run->n_idle++] = (int)(c - run->chats);
    c->phase = phase;
    c->timer++; /* an older timer is void */
}

static void send_turn(struct run *run, struct load_chat *c)
{
    if (load_chat_request(c, run->failed)) return;
    set_phase(run, c, LOAD_RUNNING);
    c->result.start = cfg_now();
    CURLMcode rc = curl_multi_add_handle(run->multi, c->easy);
    if (rc) cfg_fail(run->failed, CFG_EINTERNAL, "libcurl: %s", curl_multi_strerror(rc));
    if (c->cancel_in >= 0) set_timer(run, c, c->result.start + c->cancel_in);
}

static void start_chat(struct run *run, struct load_chat *c)
{
    load_chat_begin(c, run->next_chat++);
    run->totals->chats_started++;
    send_turn(run, c);
}

/* The slot is done with its chat: the next one, if there is. */
static void next_chat(struct run *run, struct load_chat *c, bool failed)
{
    if (run->opt->rate > 0 || !may_start(run)) {
        set_phase(run, c, LOAD_IDLE);
    } else if (failed) {
        set_phase(run, c, LOAD_WAIT_START);
        set_timer(run, c, cfg_now() + ERROR_PAUSE);
    } else {
        start_chat(run, c);
    }
}

static void finish(struct run *run, struct load_chat *c, CURLcode rc)
{
    curl_multi_remove_handle(run->multi, c->easy);
    load_chat_finish(c, rc, run->totals->began);
    if (load_chat_goes_on(c) && !run->stopping) {
        double think = load_chat_think(c);
        if (think > 0) {
            set_phase(run, c, LOAD_WAIT_TURN);
            set_timer(run, c, cfg_now() + think);
        } else {
            send_turn(run, c);
        }
        return;
    }
    if (c->result.outcome == LOAD_OK && c->result.turn == c->turns) run->totals->chats_finished++;
    next_chat(run, c, c->result.outcome == LOAD_ERROR);
}

static void fire(struct run *run, const struct timer *t)
{
    struct load_chat *c = t->chat;
    if (t->number != c->timer) return;
    if (c->phase == LOAD_WAIT_TURN) {
        send_turn(run, c);
    } else if (c->phase == LOAD_WAIT_START) {
        next_chat(run, c, false);
    } else if (c->phase == LOAD_RUNNING) {
        c->cancelled = true;
        finish(run, c, CURLE_OK);
    }
}

/* No more turns; requests that run may finish. */
static void stop(struct run *run)
{
    run->stopping = true;
    run->totals->interrupted = interrupted;
    for (int i = 0; i < run->opt->chats; i++) {
        struct load_chat *c = &run->chats[i];
        if (c->phase == LOAD_WAIT_START || c->phase == LOAD_WAIT_TURN) set_phase(run, c, LOAD_IDLE);
    }
}

static void arrive(struct run *run, double now)
{
    while (may_start(run) && run->next_arrival <= now) {
        run->next_arrival += load_rng_exponential(&run->arrivals) / run->opt->rate;
        if (run->n_idle > 0) {
            start_chat(run, &run->chats[run->idle[--run->n_idle]]);
            continue;
        }
        struct load_result r = {.chat = run->next_chat++,
                                .turn = 1,
                                .outcome = LOAD_ERROR,
                                .kind = "not sent",
                                .message = "as many chats as --chats were open",
                                .start = now,
                                .end = now,
                                .prompt_tokens = -1,
                                .completion_tokens = -1,
                                .cached_tokens = -1};
        load_report_add(run->report, &r, run->totals->began);
    }
}

/* ---- libcurl --------------------------------------------------------------------------------- */

/* libcurl wants to hear of this socket. Whether epoll has it already is best known by epoll: a
 * number can come back as another socket. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *unused)
{
    (void)easy;
    (void)unused;
    struct run *run = user;
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(run->epoll, EPOLL_CTL_DEL, fd, NULL); /* it may be closed already */
        return 0;
    }
    struct epoll_event ev = {.data.fd = fd};
    if (what & CURL_POLL_IN) ev.events |= EPOLLIN;
    if (what & CURL_POLL_OUT) ev.events |= EPOLLOUT;
    int rc = epoll_ctl(run->epoll, EPOLL_CTL_MOD, fd, &ev);
    if (rc && errno == ENOENT) rc = epoll_ctl(run->epoll, EPOLL_CTL_ADD, fd, &ev);
    if (rc) cfg_fail(run->failed, CFG_EIO, "epoll_ctl: %s", strerror(errno));
    return 0;
}

static int on_timeout(CURLM *multi, long ms, void *user)
{
    (void)multi;
    struct run *run = user;
    run->curl_at = ms < 0 ? INFINITY : cfg_now() + (double)ms / 1000;
    return 0;
}

static void collect(struct run *run)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(run->multi, &left));) {
        if (m->msg != CURLMSG_DONE) continue;
        CURLcode rc = m->data.result;
        struct load_chat *c = NULL;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &c);
        finish(run, c, rc);
    }
}

static void drive(struct run *run, int fd, int bits)
{
    int running;
    if (fd == CURL_SOCKET_TIMEOUT) run->curl_at = INFINITY;
    CURLMcode rc = curl_multi_socket_action(run->multi, fd, bits, &running);
    if (rc) cfg_fail(run->failed, CFG_EINTERNAL, "libcurl: %s", curl_multi_strerror(rc));
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void progress(struct run *run, double now)
{
    if (run->opt->quiet || now < run->next_progress) return;
    run->next_progress = now + PROGRESS_SECONDS;
    fprintf(stderr, "%.0f s: %ld answered, %ld errors, %d open\n", now - run->totals->began,
            load_report_answered(run->report), load_report_errors(run->report), run->n_running);
}

/* Milliseconds until something is due, rounded up. */
static int wait_ms(const struct run *run, double now)
{
    double at = fmin(run->curl_at, run->next_progress);
    if (run->n_timers) at = fmin(at, run->timers[0].at);
    if (run->opt->rate > 0 && may_start(run)) at = fmin(at, run->next_arrival);
    if (run->opt->seconds > 0 && !run->stopping)
        at = fmin(at, run->totals->began + run->opt->seconds);
    return (int)fmin(fmax(ceil((at - now) * 1000), 0), 1000);
}

static void loop(struct run *run)
{
    struct epoll_event events[256];
    while (!run->failed->code && (run->n_busy || (run->opt->rate > 0 && may_start(run)))) {
        int n = epoll_wait(run->epoll, events, 256, wait_ms(run, cfg_now()));
        if (n < 0 && errno != EINTR) {
            cfg_fail(run->failed, CFG_EIO, "epoll_wait: %s", strerror(errno));
            return;
        }
        for (int i = 0; i < n; i++) {
            uint32_t e = events[i].events;
            drive(run, events[i].data.fd,
                  (e & EPOLLIN ? CURL_CSELECT_IN : 0) | (e & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                      (e & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0));
        }
        if (run->curl_at <= cfg_now()) drive(run, CURL_SOCKET_TIMEOUT, 0);
        collect(run);

        double now = cfg_now();
        bool over = run->opt->seconds > 0 && now >= run->totals->began + run->opt->seconds;
        if (!run->stopping && (over || interrupted)) stop(run);
        while (run->n_timers && run->timers[0].at <= now) {
            struct timer t = pop_timer(run);
            fire(run, &t);
        }
        if (run->opt->rate > 0) arrive(run, now);
        progress(run, now);
    }
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* A chat is a descriptor; some more are needed for epoll, files and names. */
static int raise_descriptors(int chats, struct error *err)
{
    struct rlimit lim;
    rlim_t need = (rlim_t)chats + 64;
    if (getrlimit(RLIMIT_NOFILE, &lim))
        return cfg_fail(err, CFG_EIO, "getrlimit: %s", strerror(errno));
    lim.rlim_cur = lim.rlim_max;
    if (lim.rlim_max < need)
        return cfg_fail(err, CFG_EFULL, "--chats %d needs %llu descriptors, but the limit is %llu",
                        chats, (unsigned long long)need, (unsigned long long)lim.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &lim))
        return cfg_fail(err, CFG_EIO, "setrlimit: %s", strerror(errno));
    return CFG_OK;
}

/* Appends one header line; the list stays whole when that fails. */
static bool add_header(struct run *run, const char *line)
{
    struct curl_slist *list = curl_slist_append(run->headers, line);
    if (list) run->headers = list;
    return list;
}

static int make_request_parts(struct run *run, struct error *err)
{
    const char *url = run->opt->url;
    size_t n = strlen(url);
    while (n && url[n - 1] == '/') n--;
    bool versioned = n >= 3 && memcmp(url + n - 3, "/v1", 3) == 0;
    cfg_buf_append(&run->url, url, n);
    cfg_buf_puts(&run->url, versioned ? "/chat/completions" : "/v1/chat/completions");

    struct cfg_buf key = {0};
    bool ok = add_header(run, "Content-Type: application/json") && add_header(run, "Expect:");
    if (run->opt->api_key) {
        cfg_buf_printf(&key, "Authorization: Bearer %s", run->opt->api_key);
        ok = ok && !key.failed && add_header(run, key.data);
        cfg_buf_free(&key);
    }
    return ok && !run->url.failed ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "no memory for the headers");
}

static int open_run(struct run *run, const struct load_scripts *scripts, struct error *err)
{
    int rc = raise_descriptors(run->opt->chats, err);
    if (rc || (rc = make_request_parts(run, err))) return rc;
    if ((run->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        return cfg_fail(err, CFG_EIO, "epoll_create1: %s", strerror(errno));
    run->multi = curl_multi_init();
    if (!run->multi || curl_multi_setopt(run->multi, CURLMOPT_SOCKETFUNCTION, on_socket) ||
        curl_multi_setopt(run->multi, CURLMOPT_SOCKETDATA, run) ||
        curl_multi_setopt(run->multi, CURLMOPT_TIMERFUNCTION, on_timeout) ||
        curl_multi_setopt(run->multi, CURLMOPT_TIMERDATA, run) ||
        curl_multi_setopt(run->multi, CURLMOPT_MAXCONNECTS, (long)run->opt->chats))
        return cfg_fail(err, CFG_ENOMEM, "libcurl could not set up its multi interface");
    run->chats = calloc((size_t)run->opt->chats, sizeof *run->chats);
    run->idle = calloc((size_t)run->opt->chats, sizeof *run->idle);
    if (!run->chats || !run->idle) return cfg_fail(err, CFG_ENOMEM, "no memory for the chats");
    for (int i = run->opt->chats; i-- > 0;) {
        rc = load_chat_init(&run->chats[i], run->opt, scripts, run->report, run->url.data,
                            run->headers, err);
        if (rc) return rc;
        run->idle[run->n_idle++] = i;
    }
    return CFG_OK;
}

/* Takes what open_run made, even when that failed half way. */
static void close_run(struct run *run)
{
    for (int i = 0; run->chats && i < run->opt->chats; i++) {
        if (run->chats[i].phase == LOAD_RUNNING)
            curl_multi_remove_handle(run->multi, run->chats[i].easy);
        load_chat_deinit(&run->chats[i]);
    }
    if (run->multi) curl_multi_cleanup(run->multi);
    if (run->epoll >= 0) close(run->epoll);
    curl_slist_free_all(run->headers);
    cfg_buf_free(&run->url);
    free(run->timers);
    free(run->idle);
    free(run->chats);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

int load_run(const struct load_options *opt, const struct load_scripts *scripts,
             struct load_report *report, struct load_totals *totals, struct error *err)
{
    err->code = CFG_OK; /* from here on it tells the callbacks' failures too */
    struct run run = {.opt = opt, .report = report, .totals = totals, .epoll = -1, .failed = err};
    run.curl_at = INFINITY;
    int rc = open_run(&run, scripts, err);
    if (rc) goto close;

    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL); /* the second one kills */
    sigaction(SIGTERM, &action, NULL);

    *totals = (struct load_totals){.began = cfg_now()};
    double cpu = cpu_seconds();
    run.next_progress = opt->quiet ? INFINITY : totals->began + PROGRESS_SECONDS;
    run.next_arrival = totals->began;
    load_rng_seed(&run.arrivals, opt->seed, UINT64_MAX);
    for (int i = 0; opt->rate <= 0 && i < opt->chats; i++) {
        set_phase(&run, &run.chats[i], LOAD_WAIT_START);
        set_timer(&run, &run.chats[i], totals->began + opt->ramp * i / opt->chats);
    }
    loop(&run);
    totals->ended = cfg_now();
    totals->cpu = cpu_seconds() - cpu;
    rc = err->code;
close:
    close_run(&run);
    return rc;
}
