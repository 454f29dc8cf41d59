// SPDX-License-Identifier: Apache-2.0
//
// api_store.c: responses that may be continued or asked for again, in memory. Bounded in number and
// bytes, in all and for each tenant; what was used longest ago goes first, and a tenant that is at
// its own bound loses its own. What alone is past a bound is not kept. Nobody finds what is another
// tenant's. Any thread.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "server/api_request.h"

struct kept {
    uint32_t tenant;
    char *id, *body, *items;
    size_t bytes;
    uint64_t used; /* when last, by the clock of uses */
};

struct api_store {
    pthread_mutex_t lock; /* of all below */
    struct kept *all;     /* [n], in no order, with room for one more than may be kept */
    size_t n;
    uint64_t clock;
    struct api_store_limits limits;
};

struct api_store *api_store_new(const struct api_store_limits *limits)
{
    struct api_store *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->limits = *limits;
    s->all = calloc(limits->n + 1, sizeof *s->all);
    if (!s->all) {
        free(s);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

static void kept_free(struct kept *k)
{
    free(k->id);
    free(k->body);
    free(k->items);
}

void api_store_free(struct api_store *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n; i++) kept_free(&s->all[i]);
    free(s->all);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void drop(struct api_store *s, size_t i)
{
    kept_free(&s->all[i]);
    s->all[i] = s->all[--s->n];
}

/* Drops those used longest ago, of one tenant or of anybody, until the bounds hold. */
static void trim(struct api_store *s, bool all, uint32_t tenant, size_t max_n, size_t max_bytes)
{
    for (;;) {
        size_t n = 0, bytes = 0, oldest = 0;
        for (size_t i = 0; i < s->n; i++) {
            const struct kept *k = &s->all[i];
            if (!all && k->tenant != tenant) continue;
            if (n++ == 0 || k->used < s->all[oldest].used) oldest = i;
            bytes += k->bytes;
        }
        if (n <= max_n && bytes <= max_bytes) return;
        drop(s, oldest);
    }
}

void api_store_put(struct api_store *s, uint32_t tenant, const char *id, const struct cfg_buf *body,
                   const char *items)
{
    const struct api_store_limits *l = &s->limits;
    struct kept k = {
        .tenant = tenant, .id = strdup(id), .body = strdup(body->data), .items = strdup(items)};
    if (!k.id || !k.body || !k.items) {
        kept_free(&k);
        return;
    }
    k.bytes = sizeof k + strlen(id) + body->len + strlen(items);
    if (k.bytes > l->tenant_bytes || k.bytes > l->bytes) {
        kept_free(&k);
        return;
    }
    pthread_mutex_lock(&s->lock);
    k.used = ++s->clock;
    s->all[s->n++] = k;
    trim(s, false, tenant, l->tenant_n, l->tenant_bytes);
    trim(s, true, 0, l->n, l->bytes);
    pthread_mutex_unlock(&s->lock);
}

static struct kept *find(struct api_store *s, uint32_t tenant, const char *id)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->all[i].tenant == tenant && !strcmp(s->all[i].id, id)) return &s->all[i];
    return NULL;
}

bool api_store_get(struct api_store *s, uint32_t tenant, const char *id, struct cfg_buf *body,
                   struct cfg_buf *items)
{
    if (!s) return false;
    pthread_mutex_lock(&s->lock);
    struct kept *k = find(s, tenant, id);
    if (k) {
        k->used = ++s->clock;
        if (body) cfg_buf_puts(body, k->body);
        if (items) cfg_buf_puts(items, k->items);
    }
    pthread_mutex_unlock(&s->lock);
    return k != NULL;
}

bool api_store_delete(struct api_store *s, uint32_t tenant, const char *id)
{
    if (!s) return false;
    pthread_mutex_lock(&s->lock);
    const struct kept *k = find(s, tenant, id);
    if (k) drop(s, (size_t)(k - s->all));
    pthread_mutex_unlock(&s->lock);
    return k != NULL;
}

/* ---- endpoints --------------------------------------------------------------------------------
 */

static int not_found(const char *id, struct api_error *err)
{
    return api_fail(err, 404, "response_not_found", "", "There is no response '%.60s'.", id);
}

int api_response_get(const char *id, const struct api_env *env, uint32_t tenant,
                     struct cfg_buf *out, struct api_error *err)
{
    return api_store_get(env->store, tenant, id, out, NULL) ? 0 : not_found(id, err);
}

int api_response_delete(const char *id, const struct api_env *env, uint32_t tenant,
                        struct cfg_buf *out, struct api_error *err)
{
    if (!api_store_delete(env->store, tenant, id)) return not_found(id, err);
    cfg_buf_puts(out, "{\"id\":");
    cfg_buf_json_string(out, id, strlen(id));
    cfg_buf_puts(out, ",\"object\":\"response\",\"deleted\":true}");
    return 0;
}

static const char *id_of(const cJSON *item)
{
    const cJSON *id = api_field(item, "id");
    return cJSON_IsString(id) ? id->valuestring : "";
}

static void put_items(const cJSON *items, int limit, const char *after, bool ascending,
                      struct cfg_buf *out)
{
    const cJSON *item = ascending || !items->child ? items->child : items->child->prev;
    const cJSON *first = NULL, *last = NULL;
    bool waiting = after != NULL, more = false;
    int taken = 0;
    cfg_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    // The first one's `prev` is the last one.
    for (; item && !more; item = ascending              ? item->next
                                 : item != items->child ? item->prev
                                                        : NULL) {
        if (waiting) {
            waiting = strcmp(id_of(item), after) != 0;
            continue;
        }
        more = taken == limit;
        if (more) break;
        char *text = cJSON_PrintUnformatted(item);
        if (taken++) cfg_buf_puts(out, ",");
        cfg_buf_puts(out, text ? text : "null");
        cJSON_free(text);
        if (!first) first = item;
        last = item;
    }
    cfg_buf_puts(out, "],\"first_id\":");
    cfg_buf_json_string(out, first ? id_of(first) : "", first ? strlen(id_of(first)) : 0);
    cfg_buf_puts(out, ",\"last_id\":");
    cfg_buf_json_string(out, last ? id_of(last) : "", last ? strlen(id_of(last)) : 0);
    cfg_buf_puts(out, more ? ",\"has_more\":true}" : ",\"has_more\":false}");
}

int api_response_items(const char *id, const struct api_env *env, uint32_t tenant, int limit,
                       const char *after, bool ascending, struct cfg_buf *out,
                       struct api_error *err)
{
    struct cfg_buf text = {0};
    if (!api_store_get(env->store, tenant, id, NULL, &text)) return not_found(id, err);
    cJSON *items = text.failed ? NULL : cJSON_ParseWithLength(text.data, text.len);
    cfg_buf_free(&text);
    if (!items) return api_no_memory(err);
    put_items(items, limit, after, ascending, out);
    cJSON_Delete(items);
    return out->failed ? api_no_memory(err) : 0;
}
