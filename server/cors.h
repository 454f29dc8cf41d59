// SPDX-License-Identifier: Apache-2.0
//
// cors.h (private to server/): which web pages may read our answers (the CORS protocol of the Fetch
// standard). Off unless --allowed-origins is given. Credentials are never allowed: a page sends an
// API key as a header of its own. Loop thread only; read-only once open.
#ifndef OPENMOED_CORS_H
#define OPENMOED_CORS_H

#include "config/config.h"

struct cors {
    bool any;       /* the list is * */
    char *list;     /* the origins, each with a NUL behind it */
    size_t n;       /* origins */
    bool by_origin; /* answers differ by origin: a cache must know */
};

/* list may be NULL: no page may. */
int cors_open(struct cors *c, const char *list, struct error *err) CFG_WARN_UNUSED;
void cors_close(struct cors *c);
/* What Access-Control-Allow-Origin says to this Origin header (may be NULL); NULL: nothing. */
const char *cors_allow(const struct cors *c, const char *origin);
/* Can the value of Access-Control-Request-Headers (may be NULL) be given back as allowed? */
bool cors_headers_fit(const char *names);

/* What a page may read beside the few headers that every page may. */
#define CORS_EXPOSED                                                                               \
    "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "            \
    "x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, "   \
    "x-ratelimit-reset-tokens"

#endif
