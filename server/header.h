// SPDX-License-Identifier: Apache-2.0
//
// header.h (private to server/): the header lines that decide how a message is read, who may send
// it and what its answer says. Strings are borrowed from the connection. Start with zeroes, add
// every line, then check.
#ifndef OPENMOED_HEADER_H
#define OPENMOED_HEADER_H

#include "server/api.h"

enum { HEADER_MAX_ID = 128 };

struct header {
    bool bad_name;   /* some line's name is not a token */
    bool other_type; /* Content-Type is there and is not application/json */
    bool expects;    /* Expect: the sender waits for our word before it sends the body */
    int n_lengths, n_codings, n_hosts, n_types;
    int n_authorizations;
    const char *length_text, *coding, *host, *authorization; /* NULL: not there */
    unsigned long long length; /* of the body, saturated; 0 when not given */
    int n_origins, n_ids;
    const char *origin, *request_id;            /* NULL: not there */
    const char *wanted_method, *wanted_headers; /* Access-Control-Request-*; NULL: not there */
};

void header_add(struct header *h, const char *name, const char *value);
/* Refuses (400) what makes the message's end or its addressee doubtful: anything that we and a
 * proxy in front might read in two ways. The connection must not be used after a refusal. */
int header_check(const struct header *h, const char *version,
                 struct api_error *err) CFG_WARN_UNUSED;
/* The client's x-request-id, if it is one word of letters, digits and . _ : - that is not too long
 * to be repeated in answers and logs; else NULL. */
const char *header_request_id(const struct header *h);

#endif
