// SPDX-License-Identifier: Apache-2.0
//
// connection.h (private to server/): the listening socket, and the connections accepted on it until
// their requests begin. A connection lives from libmicrohttpd's notification to the next one; it
// holds its place among those of its address and the certificate it began with. Loop thread only.
#ifndef OPENMOED_CONNECTION_H
#define OPENMOED_CONNECTION_H

#include <microhttpd.h>
#include <sys/types.h>

#include "server/limits.h"
#include "server/tls.h"

struct handshake;
struct request;
struct server;

enum { CONNECTION_REFUSALS = 128 }; /* past the limit, at a time, that get an answer */

/* ---- listen.c */

struct listener {
    int fd;
    char *url;     /* https://HOST:PORT or unix:PATH */
    bool loopback; /* reachable from this machine only */
    char *path;    /* of a unix socket, else NULL: removed at the end, if it is still ... */
    dev_t dev;     /* ... the one that was made here */
    ino_t ino;
};
int listen_open(struct listener *l, const struct cfg_options *opt,
                struct error *err) CFG_WARN_UNUSED;
void listen_close(struct listener *l);

/* ---- connection.c */

struct conn {
    struct server *server;
    struct conn *prev, *next;
    struct request *request; /* while there is one */
    int fd;
    double deadline; /* the header of the next request must be complete by then */
    bool hung_up;    /* the last sweep found the other side gone */
    bool odd_target; /* the next request's target is not what libmicrohttpd says it is */
    int refused;     /* past a limit: the status that its one request is answered with; or 0 */
    struct limits_peer *peer;    /* NULL: not counted, or refused */
    struct tls_pair *tls;        /* NULL: no TLS */
    struct handshake *handshake; /* NULL: none, or over */
    char from[LIMITS_TEXT];      /* the client's address, for the log */
};

/* The server's connections. Start with zeroes and a secret. */
struct conns {
    struct conn *first;
    struct handshake *handshakes; /* those that libmicrohttpd works on in its next run */
    int n, n_refused;             /* now; those of them that get a refusal */
    int max;                      /* of those that are served */
    uint64_t refused; /* since the start: answered with a refusal, or closed without a word */
    struct limits limits;
};

struct conn *connection_of(struct MHD_Connection *mhd); /* NULL: there was no memory for it */
/* libmicrohttpd's callbacks: may a client connect; it has, or has gone; the target of its request
 * as it was sent. */
enum MHD_Result connection_accept(void *cls, const struct sockaddr *addr, socklen_t n);
void connection_notify(void *cls, struct MHD_Connection *mhd, void **ctx,
                       enum MHD_ConnectionNotificationCode what);
void *connection_target(void *cls, const char *target, struct MHD_Connection *mhd);
/* GnuTLS's: the certificate that the connection began with. */
int connection_certificate(gnutls_session_t session, const gnutls_datum_t *names, int n_names,
                           const gnutls_pk_algorithm_t *algorithms, int n_algorithms,
                           gnutls_pcert_st **chain, unsigned *length, gnutls_privkey_t *key);
/* Hangs up on senders that take too long or have left. */
void connection_sweep(struct server *s, double now);
/* Prometheus text. */
void connection_render(const struct server *s, struct cfg_buf *out);
/* ---- handshake.c */

/* The connection is new; it has gone, or has its first request: from then on others suspend it. */
void handshake_begin(struct conn *c, struct MHD_Connection *mhd);
void handshake_end(struct conn *c);
/* After each run of libmicrohttpd: suspends those that wait for their client. */
void handshake_check(struct server *s);
/* Hangs up on all of them; the caller pumps. */
void handshake_abort(struct server *s);

#endif
