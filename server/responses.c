// SPDX-License-Identifier: Apache-2.0
//
// responses.c: GET and DELETE of /v1/responses/{id}, and GET of its input_items.
// Loop thread.
#include "server/http.h"

#include <stdlib.h>
#include <string.h>

static void reply(struct request *r, int rc, struct cfg_buf *b)
{
    if (rc == 0) {
        request_reply(r, 200, "application/json", b);
        return;
    }
    cfg_buf_free(b);
    request_fail(r, &r->error);
}

/* What stands behind '?': NULL when it is not there. */
static const char *argument(const struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_GET_ARGUMENT_KIND, name);
}

static int list_items(struct request *r, const char *id, struct cfg_buf *b)
{
    const char *limit = argument(r, "limit"), *order = argument(r, "order");
    const size_t digits = limit != NULL ? strspn(limit, "0123456789") : 0;
    int n = 20;
    if (limit != NULL) n = digits > 0 && digits < 4 && limit[digits] == '\0' ? atoi(limit) : 0;
    if (n < 1 || n > 100)
        return api_fail(&r->error, 400, "invalid_value", "limit",
                        "'limit' must be a number from 1 to 100.");
    if (order != NULL && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
        return api_fail(&r->error, 400, "invalid_value", "order", "'order' must be asc or desc.");
    return api_response_items(id, r->env, request_tenant(r), n, argument(r, "after"),
                              order != NULL && strcmp(order, "asc") == 0, b, &r->error);
}

void responses_get(struct request *r, const char *url)
{
    static const char ending[] = "/input_items";
    struct cfg_buf b = {0};
    char id[128];
    const char *name = url + strlen("/v1/responses/");
    size_t n = strlen(name);
    const bool items = n > sizeof ending - 1 && strcmp(name + n - (sizeof ending - 1), ending) == 0;
    if (items) n -= sizeof ending - 1;
    if (n >= sizeof id) n = sizeof id - 1; /* no id is so long */
    memcpy(id, name, n);
    id[n] = '\0';
    const char *stream = argument(r, "stream");
    int rc;
    if (items)
        rc = list_items(r, id, &b);
    else if (stream != NULL && strcmp(stream, "false") != 0)
        rc = api_fail(&r->error, 400, "unsupported_parameter", "stream",
                      "'stream' is not supported here: an answer is streamed once.");
    else
        rc = api_response_get(id, r->env, request_tenant(r), &b, &r->error);
    reply(r, rc, &b);
}

void responses_delete(struct request *r, const char *url)
{
    struct cfg_buf b = {0};
    const int rc =
        api_response_delete(url + strlen(r->route->path), r->env, request_tenant(r), &b, &r->error);
    reply(r, rc, &b);
}
