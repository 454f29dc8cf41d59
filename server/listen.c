// SPDX-License-Identifier: Apache-2.0
//
// listen.c: the listening socket. Our own rather than libmicrohttpd's, so that a name, an IPv4 and
// an IPv6 address and a unix socket all do, a busy port is a clear error, and the real port is
// known when 0 was asked. SO_REUSEADDR only: a second daemon on the same port fails, a restart does
// not.
#include "server/connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BACKLOG = 1024,
    SEND_BUFFER = 128 * 1024, /* inherited by every connection: a client that does not read costs
                                 this much of the kernel's memory instead of megabytes */
};

static bool is_loopback(const struct sockaddr *a)
{
    const unsigned char *v4 = NULL;
    if (a->sa_family == AF_INET) {
        v4 = (const unsigned char *)&((const struct sockaddr_in *)a)->sin_addr;
    } else if (a->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)a)->sin6_addr;
        if (!IN6_IS_ADDR_V4MAPPED(v6)) return IN6_IS_ADDR_LOOPBACK(v6);
        v4 = v6->s6_addr + 12;
    }
    return v4 != NULL && v4[0] == 127;
}

static bool may_listen_on(const struct addrinfo *list, const struct cfg_options *opt)
{
    if (opt->api_key != NULL || opt->api_key_file != NULL || opt->insecure_no_auth == CFG_ON)
        return true;
    for (const struct addrinfo *a = list; a != NULL; a = a->ai_next)
        if (!is_loopback(a->ai_addr)) return false;
    return true;
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

static int open_port(struct listener *l, const struct cfg_options *opt, struct error *err)
{
    const char *host = opt->host;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[16];
    snprintf(service, sizeof service, "%d", opt->port);
    int rc = getaddrinfo(host, service, &hints, &list);
    if (rc != 0) return cfg_fail(err, CFG_EINVAL, "--host %s: %s", host, gai_strerror(rc));
    if (!may_listen_on(list, opt)) {
        freeaddrinfo(list);
        return cfg_fail(err, CFG_EINVAL,
                        "--host %s: other machines could ask without a key: set --api-key or "
                        "--api-key-file, or --insecure-no-auth on if everyone may ask",
                        host);
    }
    for (const struct addrinfo *a = list; a != NULL && l->fd < 0; a = a->ai_next) {
        l->fd = bound_socket(a);
        l->loopback = is_loopback(a->ai_addr);
    }
    int saved = errno;
    freeaddrinfo(list);
    if (l->fd < 0)
        return cfg_fail(err, CFG_EIO, "cannot listen on %s port %d: %s%s", host, opt->port,
                        strerror(saved),
                        saved == EADDRINUSE ? " (is another server running? try --port)" : "");

    const bool colon = strchr(host, ':') != NULL;
    struct cfg_buf text = {0};
    cfg_buf_printf(&text, "http%s://%s%s%s:%d", opt->tls_cert != NULL ? "s" : "", colon ? "[" : "",
                   host, colon ? "]" : "", bound_port(l->fd));
    l->url = text.data;
    return text.failed ? cfg_fail(err, CFG_ENOMEM, "out of memory") : CFG_OK;
}

/* A socket that a daemon which was killed left behind refuses connections. */
static int remove_stale(const struct sockaddr_un *a, struct error *err)
{
    struct stat st;
    const char *path = a->sun_path;
    if (lstat(path, &st) != 0) return CFG_OK; /* or bind says why */
    if (!S_ISSOCK(st.st_mode))
        return cfg_fail(err, CFG_EINVAL, "--unix-socket %s: there is a file that is no socket",
                        path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return cfg_fail(err, CFG_EIO, "--unix-socket %s: %s", path, strerror(errno));
    const int rc = connect(fd, (const struct sockaddr *)a, sizeof *a);
    const int saved = errno;
    close(fd);
    if (rc == 0 || saved != ECONNREFUSED)
        return cfg_fail(err, CFG_EIO, "--unix-socket %s: %s", path,
                        rc == 0 || saved == EAGAIN ? "another server listens on it"
                                                   : strerror(saved));
    (void)unlink(path);
    return CFG_OK;
}

/* Nobody can connect before listen, so the permissions are right from the first moment on. */
static int bind_path(struct listener *l, const struct sockaddr_un *a, mode_t mode)
{
    struct stat st;
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || bind(l->fd, (const struct sockaddr *)a, sizeof *a) != 0) return -1;
    l->path = strdup(a->sun_path);
    if (l->path == NULL || lstat(l->path, &st) != 0) return -1;
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    if (chmod(l->path, mode) != 0) return -1;
    return listen(l->fd, BACKLOG);
}

static int open_path(struct listener *l, const struct cfg_options *opt, struct error *err)
{
    static const mode_t modes[] = {
        [CFG_ACCESS_OWNER] = 0600, [CFG_ACCESS_GROUP] = 0660, [CFG_ACCESS_ALL] = 0666};
    const char *path = opt->unix_socket;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct cfg_buf text = {0};
    if (strlen(path) >= sizeof a.sun_path)
        return cfg_fail(err, CFG_EINVAL, "--unix-socket: the path is longer than %zu bytes",
                        sizeof a.sun_path - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    int rc = remove_stale(&a, err);
    if (rc != CFG_OK) return rc;
    if (bind_path(l, &a, modes[opt->unix_socket_access]) != 0)
        return cfg_fail(err, CFG_EIO, "--unix-socket %s: %s", path, strerror(errno));
    l->loopback = true;
    cfg_buf_printf(&text, "unix:%s", path);
    l->url = text.data;
    return text.failed ? cfg_fail(err, CFG_ENOMEM, "out of memory") : CFG_OK;
}

int listen_open(struct listener *l, const struct cfg_options *opt, struct error *err)
{
    *l = (struct listener){.fd = -1};
    int rc = opt->unix_socket != NULL ? open_path(l, opt, err) : open_port(l, opt, err);
    if (rc != CFG_OK) listen_close(l);
    return rc;
}

void listen_close(struct listener *l)
{
    struct stat st;
    if (l->path != NULL && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        (void)unlink(l->path);
    if (l->fd >= 0) close(l->fd);
    free(l->path);
    free(l->url);
    *l = (struct listener){.fd = -1};
}
