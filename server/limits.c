// SPDX-License-Identifier: Apache-2.0
//
// limits.c: a chained hash table of addresses that hold connections (limits.h). An entry is made by
// an address's first connection and freed with its last, so that memory is bounded by connections.
#include "server/limits.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

/* An IPv4 address that came in on an IPv6 socket is the same address. False: no IP address. */
static bool key_of(const struct sockaddr *a, uint64_t key[2])
{
    unsigned char bytes[16] = {[10] = 0xFF, [11] = 0xFF};
    if (a->sa_family == AF_INET) {
        memcpy(bytes + 12, &((const struct sockaddr_in *)a)->sin_addr, 4);
    } else if (a->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)a)->sin6_addr;
        memcpy(bytes, v6, 16);
        if (!IN6_IS_ADDR_V4MAPPED(v6)) memset(bytes + 8, 0, 8);
    } else {
        return false;
    }
    memcpy(key, bytes, 16);
    return true;
}

static struct limits_peer **bucket(struct limits *l, const uint64_t key[2])
{
    struct cfg_sip h = cfg_sip_start(l->secret);
    cfg_sip_word(&h, key[0]);
    cfg_sip_word(&h, key[1]);
    return &l->buckets[cfg_sip_end(&h) % LIMITS_BUCKETS];
}

static struct limits_peer *find(struct limits_peer *p, const uint64_t key[2])
{
    while (p != NULL && (p->key[0] != key[0] || p->key[1] != key[1])) p = p->next;
    return p;
}

int limits_count(struct limits *l, const struct sockaddr *a)
{
    uint64_t key[2];
    const struct limits_peer *p = key_of(a, key) ? find(*bucket(l, key), key) : NULL;
    return p != NULL ? p->connections : 0;
}

struct limits_peer *limits_add(struct limits *l, const struct sockaddr *a)
{
    uint64_t key[2];
    if (!key_of(a, key)) return NULL;
    struct limits_peer **head = bucket(l, key);
    struct limits_peer *p = find(*head, key);
    if (p == NULL) {
        p = calloc(1, sizeof *p);
        if (p == NULL) return NULL;
        memcpy(p->key, key, sizeof p->key);
        p->next = *head;
        *head = p;
    }
    p->connections++;
    return p;
}

void limits_remove(struct limits *l, struct limits_peer *p)
{
    if (p == NULL || --p->connections > 0) return;
    struct limits_peer **at = bucket(l, p->key);
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    free(p);
}

void limits_text(const struct sockaddr *a, char out[LIMITS_TEXT])
{
    char host[INET6_ADDRSTRLEN] = "";
    if (a->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        snprintf(out, LIMITS_TEXT, "%s:%d", host, ntohs(v4->sin_port));
    } else if (a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        snprintf(out, LIMITS_TEXT, "[%s]:%d", host, ntohs(v6->sin6_port));
    } else {
        snprintf(out, LIMITS_TEXT, "unix");
    }
}
