// SPDX-License-Identifier: Apache-2.0
//
// stream.c: the event stream of a generation. libmicrohttpd asks the reader for bytes; when there
// are none the connection is suspended and generate.c resumes it with the next event. A suspended
// connection is not looked at by libmicrohttpd, so a poll handle of our own sees the client leave.
#include "server/http.h"

#include <string.h>

static void note_delivered(struct request *r)
{
    if (r->unsent_tokens == 0) return;
    metrics_observe(&r->server->metrics.delivery, cfg_now() - r->unsent_since, r->unsent_tokens);
    r->unsent_tokens = 0;
}

/* Called again only when the bytes given before are with the socket: an empty buffer therefore
 * means that every token is on its way. */
static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct request *r = cls;
    (void)pos;
    if (r->gone) return MHD_CONTENT_READER_END_OF_STREAM;
    size_t n = r->out.len - r->out_sent;
    if (n > 0) {
        if (n > max) n = max;
        memcpy(buf, r->out.data + r->out_sent, n);
        r->out_sent += n;
        if (r->out_sent == r->out.len) r->out.len = r->out_sent = 0;
        return (ssize_t)n;
    }
    note_delivered(r);
    if (r->stream_ended) return MHD_CONTENT_READER_END_OF_STREAM;
    request_suspend(r);
    return 0;
}

struct MHD_Response *stream_response(struct request *r)
{
    struct MHD_Response *resp =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 1024, read_stream, r, NULL);
    if (resp == NULL) return NULL;
    MHD_add_response_header(resp, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(resp, "Cache-Control", "no-cache");
    MHD_add_response_header(resp, "X-Accel-Buffering", "no");
    return resp;
}

/* FIN, reset and half-close alike: nobody reads the answer any more. */
static void on_disconnect(uv_poll_t *p, int status, int events)
{
    struct request *r = p->data;
    struct server *s = r->server;
    (void)status;
    (void)events;
    request_abort(r);
    server_pump(s);
}

static void on_watch_closed(uv_handle_t *h)
{
    request_unref(h->data);
}

int stream_watch(struct request *r)
{
    if (r->watching) return 0;
    int rc = uv_poll_init(&r->server->loop, &r->watch, r->conn->fd);
    if (rc != 0) return rc;
    r->watch.data = r;
    r->watching = true;
    request_ref(r);
    return uv_poll_start(&r->watch, UV_DISCONNECT, on_disconnect);
}

void stream_unwatch(struct request *r)
{
    if (!r->watching) return;
    r->watching = false;
    uv_close((uv_handle_t *)&r->watch, on_watch_closed);
}
