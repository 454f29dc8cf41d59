// SPDX-License-Identifier: Apache-2.0
//
// buf.c: the growing byte buffer that answers are rendered into. It owns one malloc'd block, always
// with room for a final NUL. Once `failed` is set nothing is added any more, so that a text with a
// hole in it is never taken for a whole one. One thread at a time.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "config/utf8.h"

/* Room for n more bytes and the NUL. */
static bool reserve(struct cfg_buf *b, size_t n)
{
    if (b->failed) return false;
    if (n < b->cap - b->len) return true; /* len < cap, or both are 0 */
    if (n > SIZE_MAX / 2 - b->len - 1) {
        b->failed = true;
        return false;
    }
    size_t cap = b->cap ? b->cap : 64;
    while (cap <= b->len + n) cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->cap = cap;
    return true;
}

void cfg_buf_append(struct cfg_buf *b, const void *data, size_t n)
{
    if (!reserve(b, n)) return;
    if (n) memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void cfg_buf_puts(struct cfg_buf *b, const char *s)
{
    cfg_buf_append(b, s, strlen(s));
}

void cfg_buf_printf(struct cfg_buf *b, const char *fmt, ...)
{
    if (!reserve(b, 0)) return;
    for (;;) {
        size_t room = b->cap - b->len;
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(b->data + b->len, room, fmt, args);
        va_end(args);
        if (n >= 0 && (size_t)n < room) {
            b->len += (size_t)n;
            return;
        }
        b->data[b->len] = '\0'; /* take back the cut attempt */
        if (n < 0) b->failed = true;
        if (n < 0 || !reserve(b, (size_t)n)) return;
    }
}

static void append_json_control(struct cfg_buf *b, char c)
{
    static const char letters[] = "btn\0fr"; /* from \b (8) on; 11 has no short form */
    if (c >= 8 && c <= 13 && letters[c - 8]) {
        char two[2] = {'\\', letters[c - 8]};
        cfg_buf_append(b, two, sizeof two);
    } else {
        cfg_buf_printf(b, "\\u%04x", (unsigned)(unsigned char)c);
    }
}

void cfg_buf_json_string(struct cfg_buf *b, const char *s, size_t n)
{
    cfg_buf_append(b, "\"", 1);
    size_t start = 0; /* of the run of bytes that can be copied as they are */
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        enum utf8_kind kind = cfg_utf8_next(s + i, n - i, &len);
        unsigned char c = (unsigned char)s[i];
        if (kind == UTF8_VALID && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) continue;
        cfg_buf_append(b, s + start, i - start);
        start = i + len;
        if (kind != UTF8_VALID) {
            cfg_buf_puts(b, "\xEF\xBF\xBD");
        } else if (c == '"' || c == '\\') {
            char two[2] = {'\\', s[i]};
            cfg_buf_append(b, two, sizeof two);
        } else {
            append_json_control(b, s[i]);
        }
    }
    cfg_buf_append(b, s + start, n - start);
    cfg_buf_append(b, "\"", 1);
}

void cfg_buf_free(struct cfg_buf *b)
{
    free(b->data);
    *b = (struct cfg_buf){0};
}
