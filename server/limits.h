// SPDX-License-Identifier: Apache-2.0
//
// limits.h (private to server/): how many connections each address holds. An IPv6 host has a whole
// /64 network to itself, so that network counts as one address. Loop thread only.
#ifndef OPENMOED_LIMITS_H
#define OPENMOED_LIMITS_H

#include <stdint.h>
#include <sys/socket.h>

struct limits_peer {
    struct limits_peer *next;
    uint64_t key[2];
    int connections;
};

enum { LIMITS_BUCKETS = 1024 };

/* Start with zeroes and a secret, without which an attacker could choose addresses that collide. */
struct limits {
    uint64_t secret[2];
    struct limits_peer *buckets[LIMITS_BUCKETS];
};

/* Connections that a's address holds; 0 for what is no IP address. */
int limits_count(struct limits *l, const struct sockaddr *a);
/* Counts one more connection of a's address; *p lives until limits_remove has been called for each.
 * NULL: not counted, since it is no IP address or there is no memory. */
struct limits_peer *limits_add(struct limits *l, const struct sockaddr *a);
void limits_remove(struct limits *l, struct limits_peer *p); /* p may be NULL */

/* The numeric address and port as text; "unix" for another family. */
enum { LIMITS_TEXT = 56 };
void limits_text(const struct sockaddr *a, char out[LIMITS_TEXT]);

#endif
