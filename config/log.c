// SPDX-License-Identifier: Apache-2.0
//
// log.c: lines to stderr, and the clock. Every line is put together on the stack and leaves in one
// write(2), so that lines of different threads do not interleave and logging works without free
// memory. A message may quote what clients sent: control characters (C1 too: terminals obey them)
// and broken UTF-8 are escaped, long messages are cut. errno is left as it was.
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/config.h"
#include "config/utf8.h"

static atomic_int log_level = CFG_LOG_INFO;
static atomic_int log_format = CFG_LOG_TEXT;

static const char *const text_names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
static const char *const json_names[] = {"debug", "info", "warn", "error"};

enum {
    LINE = 4096,      /* a pipe takes as much at once without mixing writers */
    ROOM = LINE - 16, /* the rest is for what closes the line */
};

struct line {
    size_t len;
    char data[LINE];
};

void cfg_log_setup(enum cfg_log_level level, enum cfg_log_format format)
{
    atomic_store(&log_level, (int)level);
    atomic_store(&log_format, (int)format);
}

bool cfg_log_enabled(enum cfg_log_level level)
{
    return (int)level >= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* Writes the replacement of one character that may not stand in a line as it is. */
static size_t escape(char out[8], const char *s, enum utf8_kind kind, bool json)
{
    unsigned char c = (unsigned char)s[0];
    int n;
    if (kind != UTF8_VALID)
        n = snprintf(out, 8, "\xEF\xBF\xBD");
    else if (c == '"' || c == '\\')
        n = snprintf(out, 8, "\\%c", c);
    else if (c == '\n' || c == '\r' || c == '\t')
        n = snprintf(out, 8, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if (json) /* a C1 control is two bytes: C2 and its code */
        n = snprintf(out, 8, "\\u%04x", c == 0xC2 ? (unsigned char)s[1] : c);
    else
        n = snprintf(out, 8, "\\x%02x", c == 0xC2 ? (unsigned char)s[1] : c);
    return (size_t)n;
}

/* Appends what may hold anything; `quoted`: it stands in quotes. False when it had to be cut. */
static bool add_message(struct line *l, const char *s, size_t n, bool quoted, bool json)
{
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        enum utf8_kind kind = cfg_utf8_next(s + i, n - i, &len);
        unsigned char c = (unsigned char)s[i];
        bool control =
            c < 0x20 || c == 0x7F || (c == 0xC2 && len == 2 && (s[i + 1] & 0xE0) == 0x80);
        char escaped[8];
        const char *add = s + i;
        size_t n_add = len;
        if (kind != UTF8_VALID || control || (quoted && (c == '"' || c == '\\'))) {
            add = escaped;
            n_add = escape(escaped, s + i, kind, json);
        }
        if (l->len + n_add > ROOM) {
            memcpy(l->data + l->len, "...", 3);
            l->len += 3;
            return false;
        }
        memcpy(l->data + l->len, add, n_add);
        l->len += n_add;
    }
    return true;
}

static void add_text(struct line *l, const char *s)
{
    size_t n = strlen(s);
    memcpy(l->data + l->len, s, n);
    l->len += n;
}

static void add_time(struct line *l)
{
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    char stamp[64];
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + n, sizeof stamp - n, ".%03dZ", (int)(now.tv_nsec / 1000000));
    add_text(l, stamp);
}

static void write_line(const struct line *l)
{
    for (size_t done = 0; done < l->len;) {
        ssize_t n = write(STDERR_FILENO, l->data + done, l->len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* nowhere left to complain */
        done += (size_t)n;
    }
}

static bool begin_line(struct line *l, enum cfg_log_level level)
{
    bool json = atomic_load(&log_format) == CFG_LOG_JSON;
    l->len = 0;
    if (json) add_text(l, "{\"time\":\"");
    add_time(l);
    add_text(l, json ? "\",\"level\":\"" : " ");
    add_text(l, (json ? json_names : text_names)[level]);
    add_text(l, json ? "\",\"message\":\"" : " ");
    return json;
}

void cfg_log(enum cfg_log_level level, const char *fmt, ...)
{
    if (!cfg_log_enabled(level)) return;
    int saved_errno = errno;

    char message[3072];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    if (n < 0) message[0] = '\0';
    size_t len = strlen(message);
    bool cut = n >= (int)sizeof message;
    if (cut) len = cfg_utf8_complete(message, len);

    struct line l;
    bool json = begin_line(&l, level);
    if (add_message(&l, message, len, json, json) && cut && l.len < ROOM) add_text(&l, "...");
    add_text(&l, json ? "\"}\n" : "\n");
    write_line(&l);
    errno = saved_errno;
}

/* Could a reader take it for more than one word, or for a key? */
static bool needs_quotes(const char *value)
{
    if (!*value) return true;
    for (const char *c = value; *c; c++) {
        if (*c <= ' ' || *c >= 0x7F || *c == '"' || *c == '=' || *c == '\\') return true;
    }
    return false;
}

static bool add_field(struct line *l, const struct cfg_log_field *f, bool json)
{
    size_t least = strlen(f->key) + 8 + (f->figure ? strlen(f->value) : 0);
    if (l->len + least > ROOM) return false;
    bool quoted = !f->figure && (json || needs_quotes(f->value));
    add_text(l, json ? ",\"" : " ");
    add_text(l, f->key);
    add_text(l, json ? "\":" : "=");
    if (quoted) add_text(l, "\"");
    bool whole = add_message(l, f->value, strlen(f->value), quoted, json);
    if (quoted) add_text(l, "\"");
    return whole;
}

void cfg_log_fields(enum cfg_log_level level, const char *message,
                    const struct cfg_log_field *fields, size_t n)
{
    if (!cfg_log_enabled(level)) return;
    int saved_errno = errno;
    struct line l;
    bool json = begin_line(&l, level);
    bool whole = add_message(&l, message, strlen(message), json, json);
    if (json) add_text(&l, "\"");
    for (size_t i = 0; i < n && whole; i++) whole = add_field(&l, &fields[i], json);
    add_text(&l, json ? "}\n" : "\n");
    write_line(&l);
    errno = saved_errno;
}

double cfg_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
