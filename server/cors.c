// SPDX-License-Identifier: Apache-2.0
//
// cors.c: reads --allowed-origins and matches origins against it (cors.h). An entry must look as
// browsers write an origin: anything else would never match, and nobody would know why.
#include "server/cors.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS  "0123456789"

enum { MAX_HEADERS = 2048 };

/* scheme://host or scheme://host:port, nothing after it */
static bool is_origin(const char *s)
{
    const size_t scheme = strspn(s, LETTERS DIGITS "+.-");
    if (scheme == 0 || strncmp(s + scheme, "://", 3) != 0) return false;
    const char *host = s + scheme + 3;
    return *host != '\0' && host[strspn(host, LETTERS DIGITS "-._:[]")] == '\0';
}

int cors_open(struct cors *c, const char *list, struct error *err)
{
    *c = (struct cors){0};
    if (list == NULL) return CFG_OK;
    if (strcmp(list, "*") == 0) {
        c->any = true;
        return CFG_OK;
    }
    c->list = strdup(list);
    if (c->list == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    c->by_origin = true;
    for (char *at = c->list; at != NULL; c->n++) {
        char *comma = strchr(at, ',');
        if (comma != NULL) *comma = '\0';
        if (!is_origin(at)) {
            int rc = cfg_fail(err, CFG_EINVAL,
                              "--allowed-origins: \"%.80s\" is no origin such as "
                              "https://chat.example or http://localhost:3000 (or * alone)",
                              at);
            cors_close(c);
            return rc;
        }
        at = comma != NULL ? comma + 1 : NULL;
    }
    return CFG_OK;
}

void cors_close(struct cors *c)
{
    free(c->list);
    *c = (struct cors){0};
}

const char *cors_allow(const struct cors *c, const char *origin)
{
    if (origin == NULL) return NULL;
    if (c->any) return "*";
    const char *at = c->list;
    for (size_t i = 0; i < c->n; i++, at += strlen(at) + 1)
        if (strcasecmp(at, origin) == 0) return origin;
    return NULL;
}

bool cors_headers_fit(const char *names)
{
    if (names == NULL) return false;
    const size_t n = strspn(names, LETTERS DIGITS "!#$%&'*+-.^_`|~, ");
    return n > 0 && n <= MAX_HEADERS && names[n] == '\0';
}
