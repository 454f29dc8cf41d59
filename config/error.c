// SPDX-License-Identifier: Apache-2.0
//
// error.c: the one way a message gets into a `struct error`. Formats into a local copy first, so
// that a caller may put its own words around the message that err already holds:
// `cfg_fail(err, rc, "%s: %s", path, err->message)`. Any thread; err belongs to the caller.
#include <stdio.h>
#include <string.h>

#include "config/config.h"

int cfg_fail(struct error *err, int code, const char *fmt, ...)
{
    char text[sizeof err->message];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0) text[0] = '\0';

    size_t len = strlen(text);
    if (n >= (int)sizeof text) len = cfg_utf8_complete(text, len); /* no half character when cut */
    memcpy(err->message, text, len);
    err->message[len] = '\0';
    err->code = code;
    return code;
}
