// SPDX-License-Identifier: Apache-2.0
//
// sse.c: text/event-stream as the WHATWG specification reads it: lines end with LF, CR or CRLF, an
// empty line ends an event, several data lines are joined by LF, an unfinished event at the end of
// the stream is none. Other fields and comments are skipped. A line that came whole is read where
// it lies; only the tail of a piece is copied to wait for the next one.
#include <string.h>

#include "tests/load/load.h"

static int end_line(struct load_sse *sse, const char *line, size_t n,
                    int (*on_data)(void *ctx, const char *data, size_t n), void *ctx)
{
    if (n == 0) {
        if (!sse->has_data) return CFG_OK;
        sse->has_data = false;
        size_t len = sse->data.len;
        sse->data.len = 0;
        return on_data(ctx, sse->data.data, len);
    }
    if (n < 4 || memcmp(line, "data", 4) != 0 || (n > 4 && line[4] != ':')) return CFG_OK;
    size_t skip = n == 4 ? 4 : n > 5 && line[5] == ' ' ? 6 : 5;
    if (sse->data.len + n > LOAD_EVENT_MAX) return CFG_EFULL;
    if (sse->has_data) cfg_buf_append(&sse->data, "\n", 1);
    cfg_buf_append(&sse->data, line + skip, n - skip);
    sse->has_data = true;
    return sse->data.failed ? CFG_EFULL : CFG_OK;
}

/* Position of the first CR or LF, or n. */
static size_t line_length(const char *s, size_t n)
{
    const char *lf = memchr(s, '\n', n);
    if (lf) n = (size_t)(lf - s);
    const char *cr = memchr(s, '\r', n);
    return cr ? (size_t)(cr - s) : n;
}

int load_sse_feed(struct load_sse *sse, const char *bytes, size_t n,
                  int (*on_data)(void *ctx, const char *data, size_t n), void *ctx)
{
    const char *end = bytes + n;
    while (bytes < end) {
        if (sse->after_cr && *bytes == '\n') bytes++; /* the second half of a CRLF */
        sse->after_cr = false;
        if (bytes == end) break;
        size_t len = line_length(bytes, (size_t)(end - bytes));
        const char *line = bytes;
        size_t line_len = len;
        bool whole = bytes + len < end;
        if (sse->line.len || !whole) {
            if (sse->line.len + len > LOAD_EVENT_MAX) return CFG_EFULL;
            cfg_buf_append(&sse->line, bytes, len);
            if (sse->line.failed) return CFG_EFULL;
            line = sse->line.data;
            line_len = sse->line.len;
        }
        bytes += len;
        if (!whole) break;
        sse->after_cr = *bytes++ == '\r';
        sse->line.len = 0;
        int rc = end_line(sse, line, line_len, on_data, ctx);
        if (rc) return rc;
    }
    return CFG_OK;
}

void load_sse_reset(struct load_sse *sse)
{
    sse->line.len = sse->data.len = 0;
    sse->has_data = sse->after_cr = false;
}

void load_sse_free(struct load_sse *sse)
{
    cfg_buf_free(&sse->line);
    cfg_buf_free(&sse->data);
    *sse = (struct load_sse){0};
}
