// SPDX-License-Identifier: Apache-2.0
//
// connection.c: connections before, between and around their requests (connection.h). Past a limit
// a client is not left waiting in the listening socket's queue: its connection is accepted and its
// one request is answered with 503 or 429, which clients and proxies know how to handle. Beyond
// CONNECTION_REFUSALS of those at a time, connections are closed as soon as they are accepted.
#include "server/http.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct conn *connection_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        mhd != NULL ? MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT) : NULL;
    return info != NULL ? info->socket_context : NULL;
}

/* ---- begin and end */

/* The status for one more connection from this address; 0: it is served. Who is refused counts for
 * nothing: nobody can use up the places of others by being refused. */
static int refusal(struct server *s, const struct sockaddr *addr)
{
    const int per_address = s->opt->max_connections_per_address;
    if (s->conns.n - s->conns.n_refused >= s->conns.max) return 503;
    if (per_address > 0 && limits_count(&s->conns.limits, addr) >= per_address) return 429;
    return 0;
}

enum MHD_Result connection_accept(void *cls, const struct sockaddr *addr, socklen_t n)
{
    struct server *s = cls;
    (void)n;
    if (s->conns.n_refused < CONNECTION_REFUSALS || refusal(s, addr) == 0) return MHD_YES;
    s->conns.refused++;
    return MHD_NO;
}

static struct conn *conn_new(struct server *s, struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *addr =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    struct conn *c = calloc(1, sizeof *c);
    if (c == NULL) return NULL; /* its first request finds no context and is refused */
    c->server = s;
    c->fd = fd->connect_fd;
    c->deadline = cfg_now() + s->opt->header_timeout;
    c->refused = refusal(s, addr->client_addr);
    if (c->refused == 0) c->peer = limits_add(&s->conns.limits, addr->client_addr);
    c->tls = tls_hold(s->tls);
    limits_text(addr->client_addr, c->from);
    c->next = s->conns.first;
    if (c->next != NULL) c->next->prev = c;
    s->conns.first = c;
    if (c->tls != NULL) handshake_begin(c, mhd);
    return c;
}

static void conn_free(struct server *s, struct conn *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->conns.first = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    handshake_end(c);
    limits_remove(&s->conns.limits, c->peer);
    tls_release(c->tls);
    free(c);
}

void connection_notify(void *cls, struct MHD_Connection *mhd, void **ctx,
                       enum MHD_ConnectionNotificationCode what)
{
    struct server *s = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        struct conn *c = conn_new(s, mhd);
        const bool refused = c != NULL && c->refused != 0;
        *ctx = c;
        s->conns.n++;
        s->conns.n_refused += refused;
        s->conns.refused += refused;
        return;
    }
    struct conn *c = *ctx;
    *ctx = NULL;
    s->closed_one = true;
    s->conns.n--;
    if (c == NULL) return;
    s->conns.n_refused -= c->refused != 0;
    conn_free(s, c);
}

int connection_certificate(gnutls_session_t session, const gnutls_datum_t *names, int n_names,
                           const gnutls_pk_algorithm_t *algorithms, int n_algorithms,
                           gnutls_pcert_st **chain, unsigned *length, gnutls_privkey_t *key)
{
    struct conn *c = connection_of(gnutls_session_get_ptr(session)); /* libmicrohttpd sets it */
    (void)names;
    (void)n_names;
    (void)algorithms;
    (void)n_algorithms;
    if (c == NULL || c->tls == NULL) return -1;
    *chain = c->tls->chain;
    *length = c->tls->length;
    *key = c->tls->key;
    return 0;
}

/* Once for each request, before the target is decoded: an encoded NUL would end it early, and a
 * blank in it would be read as the end of the target by others. */
void *connection_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    struct conn *c = connection_of(mhd);
    (void)cls;
    if (c != NULL) c->odd_target = strstr(target, "%00") != NULL || strchr(target, ' ') != NULL;
    return NULL;
}

/* ---- the sweep */

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
    for (struct conn *c = s->conns.first; c != NULL;) {
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
void connection_sweep(struct server *s, double now)
{
    for (struct conn *c = s->conns.first; c != NULL; c = c->next) {
        const struct request *r = c->request;
        double deadline = c->deadline;
        if (!is_sending(c)) continue;
        if (r != NULL)
            deadline = r->began + s->opt->body_timeout + (double)r->received / HTTP_BODY_RATE;
        if (now > deadline) shutdown(c->fd, SHUT_RDWR);
    }
    sweep_gone(s);
}

void connection_render(const struct server *s, struct cfg_buf *out)
{
    cfg_buf_printf(out,
                   "# HELP openmoed_connections Connections that are open.\n"
                   "# TYPE openmoed_connections gauge\n"
                   "openmoed_connections %d\n"
                   "# HELP openmoed_connections_refused_total Connections past a limit.\n"
                   "# TYPE openmoed_connections_refused_total counter\n"
                   "openmoed_connections_refused_total %llu\n",
                   s->conns.n, (unsigned long long)s->conns.refused);
}
