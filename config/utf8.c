// SPDX-License-Identifier: Apache-2.0
//
// utf8.c: what is valid UTF-8 (RFC 3629: no surrogates, no overlong forms, nothing past U+10FFFF)
// and where a stream of bytes may be cut. Broken sequences are measured as Unicode advises: the
// longest run that could have begun a character counts as one error.
#include "config/utf8.h"

#include "config/config.h"

enum utf8_kind cfg_utf8_next(const char *s, size_t n, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;
    *len = 1;
    if (u[0] < 0x80) return UTF8_VALID;
    if (u[0] < 0xC2 || u[0] > 0xF4) return UTF8_INVALID;

    size_t need = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    /* Only the second byte's range depends on the first: that is where overlong forms,
     * surrogates and values past the last plane are told apart. */
    unsigned char low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < need; i++) {
        *len = i;
        if (i >= n) return UTF8_UNFINISHED;
        if (u[i] < low || u[i] > high) return UTF8_INVALID;
        low = 0x80;
        high = 0xBF;
    }
    *len = need;
    return UTF8_VALID;
}

bool cfg_utf8_valid(const char *s, size_t n)
{
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        if (cfg_utf8_next(s + i, n - i, &len) != UTF8_VALID) return false;
    }
    return true;
}

size_t cfg_utf8_complete(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if (c >= 0x80 && c < 0xC0)
            continue; /* a continuation byte: its first byte is further left */
        size_t len;
        return cfg_utf8_next(s + n - back, back, &len) == UTF8_UNFINISHED ? n - back : n;
    }
    return n;
}
