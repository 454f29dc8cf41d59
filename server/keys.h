// SPDX-License-Identifier: Apache-2.0
//
// keys.h (private to server/): who asks, and how much they may. A tenant is found by its API key;
// the keys themselves are never stored, only their SHA-256. The set comes from --api-key (the
// tenant "default") and --api-key-file, and is replaced as a whole when the file is read again.
//
// Loop thread only. A tenant lives as long as it stands in the set or a request holds it: one that
// is removed serves no new requests, while those that run finish and are charged. By its name a
// tenant keeps its number, its counters and what it has used of its limits when the file changes.
#ifndef OPENMOED_KEYS_H
#define OPENMOED_KEYS_H

#include "server/api.h"

enum {
    KEYS_MAX_TENANTS = 1024,
    KEYS_MAX_KEYS = 4096, /* of all tenants together: each is looked at for every request */
    KEYS_MAX_MODELS = 64, /* of one tenant */
    KEYS_MAX_NAME = 64,
};

/* What the file says of a tenant beside its name and keys; limits are 0 where there is none. */
struct keys_rules {
    float weight;
    int64_t max_concurrent_requests, requests_per_minute, tokens_per_minute;
    char **models; /* [n_models]; none: all */
    size_t n_models;
};

/* A token bucket that holds a minute's worth and refills all the time. */
struct keys_bucket {
    double used; /* and not refilled yet, as of `at` */
    double at;   /* cfg_now() */
};

enum keys_reason { KEYS_CONCURRENT, KEYS_REQUESTS, KEYS_TOKENS, KEYS_REASONS };

struct keys_tenant {
    char name[KEYS_MAX_NAME + 1]; /* letters, digits and . _ - */
    uint32_t number;              /* from 1 on, never given to another; 0 is who needs no key */
    size_t refs;
    size_t place;             /* in the file that was read last */
    struct keys_tenant *kept; /* while a file is taken over: the one of that name so far */
    struct keys_rules rules;
    struct keys_bucket requests, tokens;
    int64_t running;
    uint64_t n_requests, prompt_tokens, generated_tokens; /* of requests that ended */
    uint64_t rejected[KEYS_REASONS];
};

struct keys_key {
    uint64_t hash[4];
    struct keys_tenant *tenant;
    size_t place; /* among the keys of its tenant */
};

/* What one reading of the file gave. Holds each of its tenants once. */
struct keys_set {
    struct keys_tenant **tenants; /* [n_tenants] by name */
    size_t n_tenants;
    struct keys_key *keys; /* [n_keys] by hash */
    size_t n_keys;
};

/* ---- keys_file.c */

int keys_hash(const char *key, uint64_t out[4], struct error *err) CFG_WARN_UNUSED;
/* Reads the file (may be NULL) and adds the key of the tenant "default" (likewise), which may have
 * its limits in the file. An error names the file and the place, and leaves *out empty. */
int keys_set_read(struct keys_set *out, const char *path, const char *api_key,
                  struct error *err) CFG_WARN_UNUSED;
void keys_set_free(struct keys_set *set);
void keys_rules_free(struct keys_rules *rules);

/* ---- keys.c */

struct keys;

/* path and api_key are borrowed until keys_close. *out is NULL when both are: nobody needs a key.
 */
int keys_open(struct keys **out, const char *path, const char *api_key,
              struct error *err) CFG_WARN_UNUSED;
/* Reads the file again. After an error everything is as before. */
int keys_reload(struct keys *k, double now, struct error *err) CFG_WARN_UNUSED;
/* When no request holds a tenant any more. k may be NULL. */
void keys_close(struct keys *k);

/* The tenant whose key an Authorization value (or NULL) carries, held for the caller; or NULL. The
 * time it takes tells nothing of which key was close. */
struct keys_tenant *keys_find(const struct keys *k, const char *authorization);
/* From here on t may be NULL, for a request that needs no key: nothing is limited or counted. */
void keys_release(struct keys_tenant *t);
bool keys_allows(const struct keys_tenant *t, const char *model);

/* Takes a place among the tenant's running requests, one request and so many tokens (prompt and all
 * that may be generated); or fills err with a 429 and *retry_after with the seconds after which it
 * would do, 0 = never. Each one admitted is followed by one keys_undo or keys_settle. */
int keys_admit(struct keys_tenant *t, size_t tokens, double now, int *retry_after,
               struct api_error *err) CFG_WARN_UNUSED;
/* The request was not taken after all: nothing is charged. */
void keys_undo(struct keys_tenant *t, size_t tokens, double now);
/* The request has ended: what it did not use of its tokens is given back. */
void keys_settle(struct keys_tenant *t, size_t tokens, size_t prompt, size_t generated, double now);

/* OpenAI's x-ratelimit-* headers, for the limits that t has. Returns how many. */
struct keys_header {
    const char *name;
    char value[32];
};
enum { KEYS_HEADERS = 6 };
size_t keys_headers(const struct keys_tenant *t, double now, struct keys_header out[KEYS_HEADERS]);
/* Prometheus text: nothing without a key file. k may be NULL. */
void keys_render(const struct keys *k, struct cfg_buf *out);

#endif
