// SPDX-License-Identifier: Apache-2.0
//
// file.c: reads a small file whole. Regular files only: a FIFO or device in a model folder must not
// hang the start. The bytes are read up to the limit, whatever size the file claims.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"

static int too_big(const char *path, size_t max_bytes, struct error *err)
{
    return cfg_fail(err, CFG_EINVAL, "%s: larger than %zu bytes", path, max_bytes);
}

static int read_all(int fd, const char *path, size_t max_bytes, struct cfg_buf *b,
                    struct error *err)
{
    char block[16384];
    for (;;) {
        ssize_t got = read(fd, block, sizeof block);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return cfg_fail(err, CFG_EIO, "%s: %s", path, strerror(errno));
        if ((size_t)got > max_bytes - b->len) return too_big(path, max_bytes, err);
        cfg_buf_append(b, block, (size_t)got);
        if (b->failed) return cfg_fail(err, CFG_ENOMEM, "%s: out of memory", path);
        if (got == 0) return CFG_OK;
    }
}

int cfg_read_file(const char *path, size_t max_bytes, char **data, size_t *n, struct error *err)
{
    /* O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        int code = errno == ENOENT || errno == ENOTDIR ? CFG_ENOTFOUND : CFG_EIO;
        return cfg_fail(err, code, "%s: %s", path, strerror(errno));
    }

    struct cfg_buf b = {0};
    struct stat st;
    int rc;
    if (fstat(fd, &st) != 0)
        rc = cfg_fail(err, CFG_EIO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = cfg_fail(err, CFG_EINVAL, "%s: not a regular file", path);
    else if (st.st_size > 0 && (size_t)st.st_size > max_bytes)
        rc = too_big(path, max_bytes, err);
    else
        rc = read_all(fd, path, max_bytes, &b, err);
    close(fd);

    if (rc != CFG_OK) {
        cfg_buf_free(&b);
        return rc;
    }
    *data = b.data;
    *n = b.len;
    return CFG_OK;
}
