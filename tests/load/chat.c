// SPDX-License-Identifier: Apache-2.0
//
// chat.c: one chat: its history as rendered JSON, the body of each request, and what the answer's
// bytes mean. A slot's memory is bounded: a stream keeps its unfinished line and the text so far,
// and each of these has a limit past which the request is an error.
#include <stdio.h>
#include <string.h>

#include "tests/load/run.h"

enum {
    ANSWER_MAX = 4 * 1024 * 1024, /* bytes of one answer */
    ERROR_BODY_MAX = 64 * 1024,   /* kept of a body that is not 200 */
    CANCEL_WITHIN_MS = 500,       /* for cancels that wait for no content */
    CONNECT_SECONDS = 10,
};

/* ---- what went wrong ------------------------------------------------------------------------- */

/* Words of a server are shown on a terminal: no control characters. */
static void plain(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7F) *s = '?';
}

/* The first cause counts. */
static void CFG_PRINTF(3, 4)
    broke(struct load_chat *c, const char *message, const char *kind_fmt, ...)
{
    struct load_result *r = &c->result;
    if (r->outcome == LOAD_ERROR) return;
    r->outcome = LOAD_ERROR;
    va_list args;
    va_start(args, kind_fmt);
    vsnprintf(r->kind, sizeof r->kind, kind_fmt, args);
    va_end(args);
    snprintf(r->message, sizeof r->message, "%s", message);
    size_t n = strlen(r->kind);
    if (n && r->kind[n - 1] == ' ') r->kind[n - 1] = '\0'; /* a cause without a code */
    plain(r->kind);
    plain(r->message);
}

static void curl_broke(struct load_chat *c, CURLcode rc)
{
    const char *said = c->curl_error[0] ? c->curl_error : curl_easy_strerror(rc);
    curl_off_t connected = 0;
    switch (rc) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
        /* sent before: the server dropped it with its connection, and is gone for the second try */
        broke(c, said, c->result.sends ? "connection lost" : "connect");
        break;
    case CURLE_OPERATION_TIMEDOUT:
        curl_easy_getinfo(c->easy, CURLINFO_PRETRANSFER_TIME_T, &connected);
        broke(c, said, connected > 0 ? "timeout" : "connect timeout");
        break;
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_PARTIAL_FILE:
        broke(c, said, c->result.status ? "broken stream" : "connection lost");
        break;
    default:
        broke(c, said, "curl %d %s", (int)rc, curl_easy_strerror(rc));
    }
}

/* ---- the answer ------------------------------------------------------------------------------ */

static void take_usage(struct load_result *r, const struct load_chunk *chunk)
{
    if (chunk->prompt_tokens >= 0) r->prompt_tokens = chunk->prompt_tokens;
    if (chunk->completion_tokens >= 0) r->completion_tokens = chunk->completion_tokens;
    if (chunk->cached_tokens >= 0) r->cached_tokens = chunk->cached_tokens;
    if (chunk->finish[0]) memcpy(r->finish, chunk->finish, sizeof r->finish);
}

/* One event of a stream. Nonzero hangs up. */
static int on_event(void *ctx, const char *data, size_t n)
{
    struct load_chat *c = ctx;
    struct load_result *r = &c->result;
    if (n == 6 && memcmp(data, "[DONE]", 6) == 0) {
        c->done = true;
        return 0;
    }
    struct load_chunk chunk;
    if (c->done || load_chunk_scan(data, n, &chunk, &c->answer)) {
        char head[100];
        snprintf(head, sizeof head, "%s: %.*s", c->done ? "after [DONE]" : "not JSON",
                 (int)(n < 64 ? n : 64), data);
        broke(c, head, "broken stream");
        return -1;
    }
    if (chunk.has_error) broke(c, chunk.error_message, "error event %s", chunk.error_code);
    take_usage(r, &chunk);
    if (!chunk.has_text && !chunk.finish[0]) return 0;

    double now = cfg_now();
    if (r->first <= 0) r->first = now;
    if (!chunk.has_text) return 0;
    if (r->chunks++ > 0) {
        double gap = now - r->last;
        load_report_gap(c->report, gap);
        if (gap > r->itl_max) r->itl_max = gap;
    }
    r->last = now;
    if (c->cancel_at && r->chunks >= c->cancel_at) {
        c->cancelled = true;
        return -1;
    }
    if (c->answer.len <= ANSWER_MAX && !c->answer.failed) return 0;
    broke(c, "the answer is too long", "broken stream");
    return -1;
}

/* Before the request goes out, each time: libcurl sends it again, unasked, when a kept connection
 * ends without an answer. */
static int on_send(void *user, char *ip, char *local_ip, int port, int local_port)
{
    (void)ip, (void)local_ip, (void)port, (void)local_port;
    struct load_chat *c = user;
    c->result.sends++;
    return CURL_PREREQFUNC_OK;
}

static size_t on_bytes(char *bytes, size_t size, size_t n, void *user)
{
    struct load_chat *c = user;
    n *= size;
    if (c->result.status == 0) {
        long status = 0;
        curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
        c->result.status = (int)status;
    }
    if (c->result.status == 200 && !c->opt->no_stream) {
        int rc = load_sse_feed(&c->sse, bytes, n, on_event, c);
        if (rc == CFG_EFULL) broke(c, "an event is too long", "broken stream");
        return rc ? 0 : n; /* anything but n makes libcurl hang up */
    }
    size_t most = c->result.status == 200 ? ANSWER_MAX : ERROR_BODY_MAX;
    size_t room = most - c->whole.len; /* len <= most */
    if (n > room && c->result.status == 200) {
        broke(c, "the answer is too long", "bad answer");
        return 0;
    }
    cfg_buf_append(&c->whole, bytes, n < room ? n : room);
    return n;
}

static void read_whole(struct load_chat *c)
{
    struct load_chunk chunk;
    bool json = c->whole.len && !load_chunk_scan(c->whole.data, c->whole.len, &chunk, &c->answer);
    if (c->result.status != 200) {
        broke(c, json ? chunk.error_message : "", "HTTP %d %s", c->result.status,
              json ? chunk.error_code : "");
    } else if (!json || chunk.has_error || !chunk.finish[0]) {
        broke(c,
              !json             ? "not JSON"
              : chunk.has_error ? chunk.error_message
                                : "no finish_reason",
              "bad answer");
    } else {
        take_usage(&c->result, &chunk);
    }
}

/* ---- requests -------------------------------------------------------------------------------- */

int load_chat_init(struct load_chat *c, const struct load_options *opt,
                   const struct load_scripts *scripts, struct load_report *report, const char *url,
                   struct curl_slist *headers, struct error *err)
{
    *c = (struct load_chat){.opt = opt, .scripts = scripts, .report = report};
    CURL *e = c->easy = curl_easy_init();
    double connect = opt->timeout < CONNECT_SECONDS ? opt->timeout : CONNECT_SECONDS;
    bool ok = e && !curl_easy_setopt(e, CURLOPT_URL, url) &&
              !curl_easy_setopt(e, CURLOPT_HTTPHEADER, headers) &&
              !curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) &&
              !curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") &&
              !curl_easy_setopt(e, CURLOPT_POST, 1L) &&
              !curl_easy_setopt(e, CURLOPT_NOPROXY, "*") &&
              !curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) &&
              !curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, 16384L) &&
              !curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->curl_error) &&
              !curl_easy_setopt(e, CURLOPT_PRIVATE, c) &&
              !curl_easy_setopt(e, CURLOPT_PREREQFUNCTION, on_send) &&
              !curl_easy_setopt(e, CURLOPT_PREREQDATA, c) &&
              !curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_bytes) &&
              !curl_easy_setopt(e, CURLOPT_WRITEDATA, c) &&
              !curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)(connect * 1000)) &&
              !curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(opt->timeout * 1000));
    if (ok && opt->cacert) ok = !curl_easy_setopt(e, CURLOPT_CAINFO, opt->cacert);
    if (ok && opt->insecure)
        ok = !curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, 0L) &&
             !curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, 0L);
    return ok ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "libcurl could not set up a transfer");
}

void load_chat_deinit(struct load_chat *c)
{
    curl_easy_cleanup(c->easy);
    cfg_buf_free(&c->messages);
    cfg_buf_free(&c->body);
    cfg_buf_free(&c->answer);
    cfg_buf_free(&c->whole);
    load_sse_free(&c->sse);
}

void load_chat_begin(struct load_chat *c, long number)
{
    load_rng_seed(&c->rng, c->opt->seed, (uint64_t)number);
    c->messages.len = 0;
    c->script = c->scripts->n ? &c->scripts->items[(size_t)number % c->scripts->n] : NULL;
    c->turns = c->opt->turns ? c->opt->turns : 1;
    if (c->script) {
        if (!c->opt->turns || c->turns > c->script->n_turns) c->turns = c->script->n_turns;
        if (c->script->system) cfg_buf_puts(&c->messages, c->script->system);
    }
    c->result = (struct load_result){.chat = number};
}

/* Where this request is to be closed, if it is. Draws the same numbers in any case, so that
 * --cancel-share does not change what is asked. */
static void draw_cancel(struct load_chat *c, int max_tokens)
{
    bool wanted = load_rng_unit(&c->rng) < c->opt->cancel_share;
    long point = (long)(load_rng_unit(&c->rng) * max_tokens);
    double wait = load_rng_unit(&c->rng) * CANCEL_WITHIN_MS / 1000;
    bool timed = point == 0 || c->opt->no_stream || point % 4 == 0;
    c->cancelled = false;
    c->cancel_at = wanted && !timed ? point : 0;
    c->cancel_in = wanted && timed ? wait : -1;
}

static void user_message(struct load_chat *c, int turn)
{
    struct cfg_buf *out = &c->messages;
    if (out->len) cfg_buf_puts(out, ",");
    int n_words = load_dist_draw(&c->opt->prompt_words, &c->rng, 1);
    if (c->script) {
        cfg_buf_puts(out, c->script->turns[turn - 1]);
        return;
    }
    cfg_buf_puts(out, "{\"role\":\"user\",\"content\":\""); /* words need no escapes */
    load_prompt_words(out, &c->rng, n_words);
    cfg_buf_puts(out, "\"}");
}

int load_chat_request(struct load_chat *c, struct error *err)
{
    const struct load_options *opt = c->opt;
    c->result = (struct load_result){.chat = c->result.chat,
                                     .turn = c->result.turn + 1,
                                     .prompt_tokens = -1,
                                     .completion_tokens = -1,
                                     .cached_tokens = -1};
    user_message(c, c->result.turn);
    int max_tokens = load_dist_draw(&opt->max_tokens, &c->rng, 1);
    draw_cancel(c, max_tokens);

    struct cfg_buf *b = &c->body;
    b->len = c->answer.len = c->whole.len = 0;
    load_sse_reset(&c->sse);
    c->done = false;
    c->curl_error[0] = '\0';
    cfg_buf_puts(b, "{\"model\":");
    cfg_buf_json_string(b, opt->model, strlen(opt->model));
    cfg_buf_printf(b, ",\"max_tokens\":%d,\"seed\":%u", max_tokens,
                   (unsigned)(load_rng_next(&c->rng) >> 33));
    if (opt->temperature >= 0) cfg_buf_printf(b, ",\"temperature\":%g", opt->temperature);
    if (opt->ignore_eos) cfg_buf_puts(b, ",\"ignore_eos\":true");
    if (!opt->no_stream)
        cfg_buf_puts(b, ",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    cfg_buf_puts(b, ",\"messages\":[");
    cfg_buf_append(b, c->messages.data, c->messages.len);
    cfg_buf_puts(b, "]}");
    if (b->failed || c->messages.failed)
        return cfg_fail(err, CFG_ENOMEM, "no memory for the body of a request");
    if (curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, b->data) ||
        curl_easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)b->len))
        return cfg_fail(err, CFG_ENOMEM, "libcurl could not take the body of a request");
    return CFG_OK;
}

void load_chat_finish(struct load_chat *c, CURLcode rc, double run_began)
{
    struct load_result *r = &c->result;
    r->end = cfg_now();
    if (r->status == 0) { /* no body came */
        long status = 0;
        curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
        r->status = (int)status;
    }
    if (c->cancelled && r->outcome != LOAD_ERROR) {
        r->outcome = LOAD_CANCELLED;
    } else if (rc) {
        curl_broke(c, rc); /* unless on_event knows better */
    } else if (c->opt->no_stream || r->status != 200) {
        read_whole(c);
    } else if (!c->done) {
        broke(c, "it ended without [DONE]", "broken stream");
    } else if (!r->finish[0]) {
        broke(c, "no finish_reason", "broken stream");
    }
    load_report_add(c->report, r, run_began);
    if (!load_chat_goes_on(c)) return;
    cfg_buf_puts(&c->messages, ",{\"role\":\"assistant\",\"content\":");
    cfg_buf_json_string(&c->messages, c->answer.len ? c->answer.data : "", c->answer.len);
    cfg_buf_puts(&c->messages, "}");
}

bool load_chat_goes_on(const struct load_chat *c)
{
    return c->result.outcome == LOAD_OK && c->result.turn < c->turns;
}

double load_chat_think(struct load_chat *c)
{
    return load_dist_draw(&c->opt->think_ms, &c->rng, 0) / 1000.0;
}
