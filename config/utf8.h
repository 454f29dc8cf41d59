// SPDX-License-Identifier: Apache-2.0
//
// utf8.h (private to config/): one step of a UTF-8 decoder, shared by everything here that must
// judge bytes: validation, JSON, the log.
#ifndef OPENMOED_CONFIG_UTF8_H
#define OPENMOED_CONFIG_UTF8_H

#include <stddef.h>

enum utf8_kind {
    UTF8_VALID,
    UTF8_UNFINISHED, /* valid so far, but n bytes are not the whole character */
    UTF8_INVALID,
};

/* Looks at the character that begins at s[0]; n must be at least 1. *len is the length of the
 * character, or of the bytes that one U+FFFD stands for when it is not valid. */
enum utf8_kind cfg_utf8_next(const char *s, size_t n, size_t *len);

#endif
