// SPDX-License-Identifier: Apache-2.0
//
// listen.c: the listening socket. Our own rather than libmicrohttpd's, so that a name, an IPv4 and
// an IPv6 address all do, a busy port is a clear error, and the real port is known when 0 was
// asked. SO_REUSEADDR only: a second daemon on the same port fails, a restart does not.
#include "server/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BACKLOG = 1024,
    SEND_BUFFER = 128 * 1024, /* inherited by every connection: a client that does not read costs
                                 this much of the kernel's memory instead of megabytes */
};

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    return false;
}

static int bound_socket(const struct addrinfo *a)
{
    const int one = 1, room = SEND_BUFFER;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0 &&
        bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static int bound_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a = {.v6 = {0}};
    socklen_t n = sizeof a;
    if (getsockname(fd, &a.any, &n) != 0) return 0;
    return ntohs(a.any.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
}

int listen_open(const char *host, int port, int *fd, char **url, bool *loopback, struct error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &hints, &list);
    if (rc != 0) return cfg_fail(err, CFG_EINVAL, "--host %s: %s", host, gai_strerror(rc));

    *fd = -1;
    for (const struct addrinfo *a = list; a != NULL && *fd < 0; a = a->ai_next) {
        *fd = bound_socket(a);
        *loopback = is_loopback(a->ai_addr);
    }
    int saved = errno;
    freeaddrinfo(list);
    if (*fd < 0)
        return cfg_fail(err, CFG_EIO, "cannot listen on %s port %d: %s%s", host, port,
                        strerror(saved),
                        saved == EADDRINUSE ? " (is another server running? try --port)" : "");

    const bool colon = strchr(host, ':') != NULL;
    struct cfg_buf text = {0};
    cfg_buf_printf(&text, "http://%s%s%s:%d", colon ? "[" : "", host, colon ? "]" : "",
                   bound_port(*fd));
    if (text.failed) {
        cfg_buf_free(&text);
        close(*fd);
        return cfg_fail(err, CFG_ENOMEM, "out of memory");
    }
    *url = text.data;
    return CFG_OK;
}
