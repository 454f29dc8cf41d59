// SPDX-License-Identifier: Apache-2.0
//
// keys.c: finding a request's tenant, its limits and its figures (keys.h). The set of tenants is
// swapped whole when the file is read again: a tenant that stays keeps its struct, so that requests
// that hold it need not know, and takes over the new rules; the others are let go. Loop thread
// only; time comes in as an argument.
#include "server/keys.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct keys {
    const char *path, *api_key; /* borrowed; either may be NULL */
    struct keys_set set;
    uint32_t next_number;
};

/* ---- the set --------------------------------------------------------------------------------- */

void keys_release(struct keys_tenant *t)
{
    if (t == NULL || --t->refs > 0) return;
    keys_rules_free(&t->rules);
    free(t);
}

static void refill(struct keys_bucket *b, int64_t per_minute, double now)
{
    b->used -= (now - b->at) * (double)per_minute / 60;
    if (b->used < 0 || per_minute == 0) b->used = 0;
    b->at = now;
}

static void refill_both(struct keys_tenant *t, double now)
{
    refill(&t->requests, t->rules.requests_per_minute, now);
    refill(&t->tokens, t->rules.tokens_per_minute, now);
}

static struct keys_tenant *find_name(const struct keys_set *set, const char *name)
{
    size_t low = 0, high = set->n_tenants;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const int order = strcmp(set->tenants[middle]->name, name);
        if (order == 0) return set->tenants[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* `old` stands for t from now on: it takes its rules and its reference. */
static void keep(struct keys_tenant *old, struct keys_tenant *t, double now)
{
    const struct keys_rules rules = old->rules;
    refill_both(old, now); /* what has passed, by the rules that held */
    old->rules = t->rules;
    old->place = t->place;
    old->refs++;
    t->rules = rules;
    t->kept = old;
}

static void take_over(struct keys *k, struct keys_set *next, double now)
{
    for (size_t i = 0; i < next->n_tenants; i++) {
        struct keys_tenant *t = next->tenants[i], *old = find_name(&k->set, t->name);
        if (old != NULL)
            keep(old, t, now);
        else
            t->number = k->next_number++;
    }
    for (size_t i = 0; i < next->n_keys; i++)
        if (next->keys[i].tenant->kept != NULL) next->keys[i].tenant = next->keys[i].tenant->kept;
    for (size_t i = 0; i < next->n_tenants; i++) {
        struct keys_tenant *t = next->tenants[i];
        if (t->kept == NULL) continue;
        next->tenants[i] = t->kept;
        keys_release(t);
    }
    keys_set_free(&k->set);
    k->set = *next;
}

int keys_reload(struct keys *k, double now, struct error *err)
{
    struct keys_set next;
    int rc = keys_set_read(&next, k->path, k->api_key, err);
    if (rc != CFG_OK) return rc;
    take_over(k, &next, now);
    cfg_log(CFG_LOG_INFO, "keys: tenants=%zu keys=%zu", k->set.n_tenants, k->set.n_keys);
    return CFG_OK;
}

int keys_open(struct keys **out, const char *path, const char *api_key, struct error *err)
{
    *out = NULL;
    if (path == NULL && api_key == NULL) return CFG_OK;
    struct keys *k = calloc(1, sizeof *k);
    if (k == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    k->path = path;
    k->api_key = api_key;
    k->next_number = 1;
    int rc = keys_reload(k, 0, err);
    if (rc == CFG_OK)
        *out = k;
    else
        free(k);
    return rc;
}

void keys_close(struct keys *k)
{
    if (k == NULL) return;
    keys_set_free(&k->set);
    free(k);
}

/* ---- who asks -------------------------------------------------------------------------------- */

static const char *bearer_key(const char *authorization)
{
    if (authorization == NULL || strncasecmp(authorization, "Bearer ", 7) != 0) return NULL;
    const char *key = authorization + 7;
    while (*key == ' ') key++;
    return *key != '\0' ? key : NULL;
}

/* 1 or 0, without a branch. */
static size_t is_same(const uint64_t a[4], const uint64_t b[4])
{
    const uint64_t diff = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
    return (size_t)(((diff | (0 - diff)) >> 63) ^ 1);
}

struct keys_tenant *keys_find(const struct keys *k, const char *authorization)
{
    uint64_t hash[4];
    struct error err;
    const char *key = bearer_key(authorization);
    if (key == NULL || keys_hash(key, hash, &err) != CFG_OK) return NULL;
    size_t found = 0; /* index + 1 */
    for (size_t i = 0; i < k->set.n_keys; i++)
        found |= (0 - is_same(hash, k->set.keys[i].hash)) & (i + 1);
    if (found == 0) return NULL;
    struct keys_tenant *t = k->set.keys[found - 1].tenant;
    t->refs++;
    return t;
}

bool keys_allows(const struct keys_tenant *t, const char *model)
{
    if (t == NULL || t->rules.n_models == 0) return true;
    for (size_t i = 0; i < t->rules.n_models; i++)
        if (strcmp(t->rules.models[i], model) == 0) return true;
    return false;
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* Rounding errors of a bucket stay far below this, and one unit far above. */
static const double slack = 1e-6;

/* Seconds until the bucket has room for n; 0 = it has; infinite = it never will. */
static double wait_for(const struct keys_bucket *b, int64_t per_minute, double n)
{
    const double limit = (double)per_minute;
    if (per_minute == 0 || b->used + n <= limit + slack) return 0;
    return n > limit ? INFINITY : (b->used + n - limit) * 60 / limit;
}

static int64_t remaining(const struct keys_bucket *b, int64_t per_minute)
{
    const double left = (double)per_minute - b->used + slack;
    return left > 0 ? (int64_t)left : 0;
}

/* As Go prints a duration, which is what OpenAI's headers hold: 12ms, 1.5s, 6m0s. */
static void show_seconds(double seconds, char out[32])
{
    long long ms = (long long)ceil(seconds * 1000 - slack);
    if (ms > 0 && ms < 1000) {
        snprintf(out, 32, "%lldms", ms);
        return;
    }
    int n = ms >= 60000 ? snprintf(out, 32, "%lldm", ms / 60000) : 0;
    ms %= 60000;
    n += snprintf(out + n, 32 - (size_t)n, "%lld.%03lld", ms / 1000, ms % 1000);
    while (out[n - 1] == '0') n--;
    if (out[n - 1] == '.') n--;
    snprintf(out + n, 32 - (size_t)n, "s");
}

/* OpenAI says with the type which limit it was, and with the code that it was one. */
static int past_limit(struct keys_tenant *t, enum keys_reason why, struct api_error *err)
{
    t->rejected[why]++;
    err->type = why == KEYS_TOKENS ? "tokens" : "requests";
    return -1;
}

static int refuse_requests(struct keys_tenant *t, double wait, struct api_error *err)
{
    char text[32];
    show_seconds(wait, text);
    (void)!api_fail(err, 429, "rate_limit_exceeded", NULL,
                    "Your limit is %lld requests a minute, and %lld are left. Try again in %s.",
                    (long long)t->rules.requests_per_minute,
                    (long long)remaining(&t->requests, t->rules.requests_per_minute), text);
    return past_limit(t, KEYS_REQUESTS, err);
}

static int refuse_tokens(struct keys_tenant *t, size_t tokens, double wait, struct api_error *err)
{
    const long long limit = (long long)t->rules.tokens_per_minute;
    char text[32];
    if (isinf(wait)) {
        (void)!api_fail(err, 429, "rate_limit_exceeded", NULL,
                        "Your limit is %lld tokens a minute, and this request alone may need %zu "
                        "(prompt and all it may generate). Shorten it or lower max_tokens.",
                        limit, tokens);
    } else {
        show_seconds(wait, text);
        (void)!api_fail(err, 429, "rate_limit_exceeded", NULL,
                        "Your limit is %lld tokens a minute, %lld are left, and this request may "
                        "need %zu (prompt and all it may generate). Try again in %s.",
                        limit, (long long)remaining(&t->tokens, t->rules.tokens_per_minute), tokens,
                        text);
    }
    return past_limit(t, KEYS_TOKENS, err);
}

int keys_admit(struct keys_tenant *t, size_t tokens, double now, int *retry_after,
               struct api_error *err)
{
    if (t == NULL) return 0;
    const struct keys_rules *rules = &t->rules;
    refill_both(t, now);
    if (rules->max_concurrent_requests > 0 && t->running >= rules->max_concurrent_requests) {
        *retry_after = 1;
        (void)!api_fail(err, 429, "rate_limit_exceeded", NULL,
                        "Your limit is %lld requests at once, and so many are running.",
                        (long long)rules->max_concurrent_requests);
        return past_limit(t, KEYS_CONCURRENT, err);
    }
    const double for_request = wait_for(&t->requests, rules->requests_per_minute, 1);
    const double for_tokens = wait_for(&t->tokens, rules->tokens_per_minute, (double)tokens);
    const double wait = fmax(for_request, for_tokens);
    if (wait > 0) {
        *retry_after = isinf(wait) ? 0 : (int)fmin(ceil(wait - slack), 86400);
        return for_tokens > for_request ? refuse_tokens(t, tokens, for_tokens, err)
                                        : refuse_requests(t, for_request, err);
    }
    if (rules->requests_per_minute > 0) t->requests.used += 1;
    if (rules->tokens_per_minute > 0) t->tokens.used += (double)tokens;
    t->running++;
    return 0;
}

static void give_back(struct keys_bucket *b, double n)
{
    b->used = fmax(0, b->used - n);
}

void keys_undo(struct keys_tenant *t, size_t tokens, double now)
{
    if (t == NULL) return;
    refill_both(t, now);
    give_back(&t->requests, 1);
    give_back(&t->tokens, (double)tokens);
    t->running--;
}

void keys_settle(struct keys_tenant *t, size_t tokens, size_t prompt, size_t generated, double now)
{
    if (t == NULL) return;
    const size_t used = prompt + generated;
    refill_both(t, now);
    if (used < tokens) give_back(&t->tokens, (double)(tokens - used));
    t->running--;
    t->n_requests++;
    t->prompt_tokens += prompt;
    t->generated_tokens += generated;
}

/* ---- figures --------------------------------------------------------------------------------- */

static size_t bucket_headers(const struct keys_bucket *b, int64_t per_minute, double now,
                             const char *const names[3], struct keys_header *out)
{
    struct keys_bucket at = *b;
    if (per_minute == 0) return 0;
    refill(&at, per_minute, now);
    for (size_t i = 0; i < 3; i++) out[i].name = names[i];
    snprintf(out[0].value, sizeof out[0].value, "%lld", (long long)per_minute);
    snprintf(out[1].value, sizeof out[1].value, "%lld", (long long)remaining(&at, per_minute));
    show_seconds(at.used * 60 / (double)per_minute, out[2].value);
    return 3;
}

size_t keys_headers(const struct keys_tenant *t, double now, struct keys_header out[KEYS_HEADERS])
{
    static const char *const requests[3] = {"x-ratelimit-limit-requests",
                                            "x-ratelimit-remaining-requests",
                                            "x-ratelimit-reset-requests"};
    static const char *const tokens[3] = {
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"};
    if (t == NULL) return 0;
    size_t n = bucket_headers(&t->requests, t->rules.requests_per_minute, now, requests, out);
    n += bucket_headers(&t->tokens, t->rules.tokens_per_minute, now, tokens, out + n);
    return n;
}

static void family(struct cfg_buf *out, const char *name, const char *help)
{
    cfg_buf_printf(out, "# HELP openmoed_tenant_%s %s\n# TYPE openmoed_tenant_%s counter\n", name,
                   help, name);
}

/* One counter of every tenant: the uint64_t at `offset`. */
static void counters(const struct keys_set *set, const char *name, const char *help, size_t offset,
                     struct cfg_buf *out)
{
    family(out, name, help);
    for (size_t i = 0; i < set->n_tenants; i++) {
        const struct keys_tenant *t = set->tenants[i];
        uint64_t value;
        memcpy(&value, (const char *)t + offset, sizeof value);
        cfg_buf_printf(out, "openmoed_tenant_%s{tenant=\"%s\"} %llu\n", name, t->name,
                       (unsigned long long)value);
    }
}

/* Names need no escaping: they are letters, digits and a few signs. */
void keys_render(const struct keys *k, struct cfg_buf *out)
{
    static const char *const reasons[KEYS_REASONS] = {"concurrent_requests", "requests_per_minute",
                                                      "tokens_per_minute"};
    if (k == NULL || k->path == NULL) return;
    const struct keys_set *set = &k->set;
    counters(set, "requests_total", "Generation requests ended, by tenant.",
             offsetof(struct keys_tenant, n_requests), out);
    counters(set, "prompt_tokens_total", "Prompt tokens of ended requests, by tenant.",
             offsetof(struct keys_tenant, prompt_tokens), out);
    counters(set, "generated_tokens_total", "Tokens generated by ended requests, by tenant.",
             offsetof(struct keys_tenant, generated_tokens), out);
    family(out, "rejected_total", "Requests past a limit of their tenant, by limit.");
    for (size_t i = 0; i < set->n_tenants; i++)
        for (int why = 0; why < KEYS_REASONS; why++)
            cfg_buf_printf(out,
                           "openmoed_tenant_rejected_total{tenant=\"%s\",reason=\"%s\"} %llu\n",
                           set->tenants[i]->name, reasons[why],
                           (unsigned long long)set->tenants[i]->rejected[why]);
}
