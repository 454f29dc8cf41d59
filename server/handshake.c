// SPDX-License-Identifier: Apache-2.0
//
// handshake.c: TLS handshakes that wait for their client. libmicrohttpd tries again and again,
// without a pause, to read from a connection whose handshake has begun and is not complete: one
// client that stops in the middle would take a whole core. So a connection is suspended from the
// moment it is accepted, a poll handle of our own sees its bytes come, and it is suspended again as
// long as they do not complete the handshake. Owned by its connection; freed when the handle is
// closed. Loop thread only.
#include "server/http.h"

#include <stdlib.h>
#include <sys/socket.h>

struct handshake {
    uv_poll_t poll;
    struct conn *conn;
    struct MHD_Connection *mhd;
    struct handshake *next; /* among those that libmicrohttpd works on in its next run */
    bool suspended;
    bool complete;
};

static void due(struct handshake *h)
{
    struct conns *all = &h->conn->server->conns;
    h->next = all->handshakes;
    all->handshakes = h;
}

/* The client's is the last message of a handshake, or the last but our own. Whether it is right is
 * found out next; if not, the connection is closed. */
static int on_finished(gnutls_session_t session, unsigned type, unsigned when, unsigned incoming,
                       const gnutls_datum_t *message)
{
    struct conn *c = connection_of(gnutls_session_get_ptr(session));
    (void)type;
    (void)when;
    (void)message;
    if (incoming != 0 && c != NULL && c->handshake != NULL) c->handshake->complete = true;
    return 0;
}

void handshake_begin(struct conn *c, struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    struct handshake *h = info != NULL ? calloc(1, sizeof *h) : NULL;
    if (h == NULL || uv_poll_init(&c->server->loop, &h->poll, c->fd) != 0) {
        free(h);
        shutdown(c->fd, SHUT_RDWR); /* nobody would watch over it */
        return;
    }
    h->poll.data = h;
    h->conn = c;
    h->mhd = mhd;
    c->handshake = h;
    gnutls_handshake_set_hook_function(info->tls_session, GNUTLS_HANDSHAKE_FINISHED,
                                       GNUTLS_HOOK_POST, on_finished);
    due(h);
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void handshake_end(struct conn *c)
{
    struct handshake *h = c->handshake;
    if (h == NULL) return;
    struct handshake **at = &c->server->conns.handshakes;
    while (*at != NULL && *at != h) at = &(*at)->next;
    if (*at == h) *at = h->next;
    c->handshake = NULL;
    uv_close((uv_handle_t *)&h->poll, on_closed);
}

static void resume(struct handshake *h)
{
    if (!h->suspended) return;
    h->suspended = false;
    uv_poll_stop(&h->poll);
    MHD_resume_connection(h->mhd);
    due(h);
}

static void on_readable(uv_poll_t *p, int status, int events)
{
    struct handshake *h = p->data;
    struct server *s = h->conn->server;
    (void)status; /* of whatever kind: libmicrohttpd finds out */
    (void)events;
    resume(h);
    server_pump(s);
}

void handshake_check(struct server *s)
{
    struct handshake *h;
    while ((h = s->conns.handshakes) != NULL) {
        s->conns.handshakes = h->next;
        if (h->complete) {
            handshake_end(h->conn);
            continue;
        }
        h->suspended = true;
        MHD_suspend_connection(h->mhd);
        if (uv_poll_start(&h->poll, UV_READABLE | UV_DISCONNECT, on_readable) == 0) continue;
        shutdown(h->conn->fd, SHUT_RDWR);
        resume(h);
        return; /* seen again after the next run */
    }
}

void handshake_abort(struct server *s)
{
    for (struct conn *c = s->conns.first; c != NULL; c = c->next) {
        if (c->handshake == NULL) continue;
        shutdown(c->fd, SHUT_RDWR);
        resume(c->handshake);
    }
}
