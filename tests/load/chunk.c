// SPDX-License-Identifier: Apache-2.0
//
// chunk.c: reads the few fields that matter from a chat.completion(.chunk) or an error, in one pass
// over the bytes and without a tree: at a thousand streams a parser that allocates would be most of
// the generator's work. Strings are checked and decoded as RFC 8259 has them; what is skipped is
// checked for its strings and brackets' depth only. A key of any other name is skipped.
#include <stdlib.h>
#include <string.h>

#include "tests/load/load.h"

struct scan {
    const char *p, *end;
    struct load_chunk *out;
    struct cfg_buf *text;
    long choice; /* position in choices */
};

struct span {
    const char *p;
    size_t n;
    bool escaped;
};

static void blanks(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t' || *s->p == '\r'))
        s->p++;
}

/* Skips blanks, then takes c if it is next. */
static bool take(struct scan *s, char c)
{
    blanks(s);
    if (s->p == s->end || *s->p != c) return false;
    s->p++;
    return true;
}

/* Value of four hexadecimal digits, or -1. */
static int hex4(const char *p, const char *end)
{
    if (end - p < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = (unsigned char)p[i];
        int digit = c >= '0' && c <= '9'                 ? c - '0'
                    : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                         : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static bool string(struct scan *s, struct span *out)
{
    if (!take(s, '"')) return false;
    *out = (struct span){.p = s->p};
    while (s->p < s->end && *s->p != '"') {
        if ((unsigned char)*s->p < 0x20) return false;
        if (*s->p++ != '\\') continue;
        out->escaped = true;
        if (s->p == s->end || !*s->p || !strchr("\"\\/bfnrtu", *s->p)) return false;
        if (*s->p++ == 'u') {
            if (hex4(s->p, s->end) < 0) return false;
            s->p += 4;
        }
    }
    if (s->p == s->end) return false;
    out->n = (size_t)(s->p++ - out->p);
    return true;
}

static void append_utf8(struct cfg_buf *b, unsigned c)
{
    char bytes[4];
    size_t n = 0;
    if (c < 0x80) {
        bytes[n++] = (char)c;
    } else {
        if (c < 0x800) bytes[n++] = (char)(0xC0 | c >> 6);
        if (c >= 0x800 && c < 0x10000) bytes[n++] = (char)(0xE0 | c >> 12);
        if (c >= 0x10000) {
            bytes[n++] = (char)(0xF0 | c >> 18);
            bytes[n++] = (char)(0x80 | (c >> 12 & 0x3F));
        }
        if (c >= 0x800) bytes[n++] = (char)(0x80 | (c >> 6 & 0x3F));
        bytes[n++] = (char)(0x80 | (c & 0x3F));
    }
    cfg_buf_append(b, bytes, n);
}

/* One \uXXXX or a pair of them; p is behind the first u. A half pair becomes U+FFFD. */
static const char *decode_unicode(const char *p, const char *end, struct cfg_buf *out)
{
    unsigned c = (unsigned)hex4(p, end);
    p += 4;
    if (c >= 0xD800 && c < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
        unsigned low = (unsigned)hex4(p + 2, end);
        if (low >= 0xDC00 && low < 0xE000) {
            append_utf8(out, 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00));
            return p + 6;
        }
    }
    append_utf8(out, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c);
    return p;
}

static void decode(const struct span *in, struct cfg_buf *out)
{
    const char *p = in->p;
    const char *end = p + in->n;
    while (p < end) {
        const char *slash = in->escaped ? memchr(p, '\\', (size_t)(end - p)) : NULL;
        const char *stop = slash ? slash : end;
        cfg_buf_append(out, p, (size_t)(stop - p));
        p = stop;
        if (!slash) break;
        char c = p[1];
        p += 2;
        if (c == 'u') {
            p = decode_unicode(p, end, out);
        } else {
            static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
            const char *known = strchr(from, c);
            cfg_buf_append(out, known ? &to[known - from] : &c, 1);
        }
    }
}

/* Decoded into a small array, cut where it is full. */
static void copy(const struct span *in, char *out, size_t size)
{
    struct cfg_buf b = {0};
    decode(in, &b);
    size_t n = b.len < size - 1 ? b.len : cfg_utf8_complete(b.data, size - 1);
    if (n) memcpy(out, b.data, n);
    out[n] = '\0';
    cfg_buf_free(&b);
}

static bool is(const struct span *key, const char *name)
{
    char plain[32];
    if (key->escaped) {
        copy(key, plain, sizeof plain);
        return strcmp(plain, name) == 0;
    }
    return key->n == strlen(name) && memcmp(key->p, name, key->n) == 0;
}

/* A number, true, false or null, or in a number's place something that is none of them. */
static bool scalar(struct scan *s, struct span *out)
{
    blanks(s);
    *out = (struct span){.p = s->p};
    while (s->p < s->end && *s->p &&
           (strchr("+-.", *s->p) || (*s->p >= '0' && *s->p <= '9') ||
            (*s->p >= 'a' && *s->p <= 'z') || *s->p == 'E'))
        s->p++;
    out->n = (size_t)(s->p - out->p);
    return out->n > 0;
}

static bool skip(struct scan *s)
{
    long depth = 0;
    struct span ignored;
    do {
        if (take(s, '{') || take(s, '[')) {
            depth++;
        } else if (depth > 0 && (take(s, '}') || take(s, ']'))) {
            depth--;
        } else if (depth > 0 && (take(s, ',') || take(s, ':'))) {
            continue;
        } else if (s->p < s->end && *s->p == '"') {
            if (!string(s, &ignored)) return false;
        } else if (!scalar(s, &ignored)) {
            return false;
        }
    } while (depth > 0);
    return true;
}

/* Is a value of the kind that c begins next? */
static bool next_is(struct scan *s, char c)
{
    if (!take(s, c)) return false;
    s->p--;
    return true;
}

static bool object(struct scan *s, bool (*member)(struct scan *s, const struct span *key))
{
    if (!next_is(s, '{')) return skip(s); /* null in most cases */
    take(s, '{');
    if (take(s, '}')) return true;
    do {
        struct span key;
        if (!string(s, &key) || !take(s, ':') || !member(s, &key)) return false;
    } while (take(s, ','));
    return take(s, '}');
}

/* The value as decoded text when it is a string, as written when it is a number; else "". */
static bool short_value(struct scan *s, char *out, size_t size)
{
    struct span span;
    out[0] = '\0';
    if (next_is(s, '"')) {
        if (!string(s, &span)) return false;
        copy(&span, out, size);
        return true;
    }
    if (next_is(s, '{') || next_is(s, '[')) return skip(s);
    if (!scalar(s, &span)) return false;
    if (!is(&span, "null")) copy(&span, out, size);
    return true;
}

static bool count_value(struct scan *s, long *out)
{
    char digits[24];
    if (!short_value(s, digits, sizeof digits)) return false;
    if (digits[0] >= '0' && digits[0] <= '9') *out = strtol(digits, NULL, 10);
    return true;
}

static bool delta_member(struct scan *s, const struct span *key)
{
    struct span content;
    if (!is(key, "content") || !next_is(s, '"')) return skip(s);
    if (!string(s, &content)) return false;
    if (content.n == 0 || s->choice != 0) return true;
    s->out->has_text = true;
    decode(&content, s->text);
    return true;
}

static bool choice_member(struct scan *s, const struct span *key)
{
    if (is(key, "delta") || is(key, "message")) return object(s, delta_member);
    if (is(key, "finish_reason") && s->choice == 0)
        return short_value(s, s->out->finish, sizeof s->out->finish);
    return skip(s);
}

static bool details_member(struct scan *s, const struct span *key)
{
    return is(key, "cached_tokens") ? count_value(s, &s->out->cached_tokens) : skip(s);
}

static bool usage_member(struct scan *s, const struct span *key)
{
    if (is(key, "prompt_tokens")) return count_value(s, &s->out->prompt_tokens);
    if (is(key, "completion_tokens")) return count_value(s, &s->out->completion_tokens);
    if (is(key, "prompt_tokens_details")) return object(s, details_member);
    return skip(s);
}

static bool error_member(struct scan *s, const struct span *key)
{
    struct load_chunk *out = s->out;
    if (is(key, "message")) return short_value(s, out->error_message, sizeof out->error_message);
    bool code = is(key, "code");
    if (!code && !is(key, "type")) return skip(s);
    char value[sizeof out->error_code];
    if (!short_value(s, value, sizeof value)) return false;
    /* The code is the better name: the type only stands in for it. */
    if (value[0] && (code || !out->error_code[0])) memcpy(out->error_code, value, sizeof value);
    return true;
}

static bool choices(struct scan *s)
{
    if (!next_is(s, '[')) return skip(s);
    take(s, '[');
    if (take(s, ']')) return true;
    s->choice = 0;
    do {
        if (!object(s, choice_member)) return false;
        s->choice++;
    } while (take(s, ','));
    return take(s, ']');
}

static bool top_member(struct scan *s, const struct span *key)
{
    if (is(key, "choices")) return choices(s);
    if (is(key, "usage")) return object(s, usage_member);
    if (!is(key, "error") || next_is(s, 'n')) return skip(s);
    s->out->has_error = true;
    if (next_is(s, '"')) return short_value(s, s->out->error_message, sizeof s->out->error_message);
    return object(s, error_member);
}

int load_chunk_scan(const char *json, size_t n, struct load_chunk *out, struct cfg_buf *text)
{
    *out = (struct load_chunk){.prompt_tokens = -1, .completion_tokens = -1, .cached_tokens = -1};
    struct scan s = {.p = json, .end = json + n, .out = out, .text = text};
    if (!next_is(&s, '{') || !object(&s, top_member)) return CFG_EINVAL;
    blanks(&s);
    return s.p == s.end ? CFG_OK : CFG_EINVAL;
}
