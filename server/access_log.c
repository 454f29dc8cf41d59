// SPDX-License-Identifier: Apache-2.0
//
// access_log.c: one line about each request that is over (--log-requests): who asked for what, how
// long it took and how it ended. Never a word of a prompt or an answer, no query of the target and
// no key. Loop thread; the request is complete and still holds its connection.
#include "server/http.h"

#include <stdio.h>
#include <string.h>

enum { MAX_FIELDS = 16 };

struct fields {
    struct cfg_log_field items[MAX_FIELDS];
    char numbers[MAX_FIELDS][24];
    size_t n;
};

static void add_text(struct fields *f, const char *key, const char *value)
{
    f->items[f->n++] = (struct cfg_log_field){key, value, false};
}

static void add_count(struct fields *f, const char *key, size_t value)
{
    char *text = f->numbers[f->n];
    snprintf(text, sizeof f->numbers[0], "%zu", value);
    f->items[f->n++] = (struct cfg_log_field){key, text, true};
}

static void add_seconds(struct fields *f, const char *key, double value)
{
    char *text = f->numbers[f->n];
    snprintf(text, sizeof f->numbers[0], "%.6f", value);
    f->items[f->n++] = (struct cfg_log_field){key, text, true};
}

/* Probes come every few seconds for as long as the daemon lives, and say nothing while all is well.
 */
static enum cfg_log_level level_of(const struct request *r)
{
    return route_is_probe(r->route) && r->status == 200 ? CFG_LOG_DEBUG : CFG_LOG_INFO;
}

void access_log(const struct request *r)
{
    struct fields f = {.n = 0};
    const enum cfg_log_level level = level_of(r);
    if (r->server->opt->log_requests == CFG_OFF || !cfg_log_enabled(level)) return;
    add_text(&f, "method", r->method);
    add_text(&f, "path", r->path);
    if (r->answered) add_count(&f, "status", (size_t)r->status);
    add_seconds(&f, "seconds", cfg_now() - r->began);
    add_text(&f, "peer", r->conn->from);
    add_text(&f, "request_id", r->id);
    if (r->tenant != NULL) add_text(&f, "tenant", r->tenant->name);
    if (r->accepted) {
        add_text(&f, "id", api_request_id(r->api));
        add_count(&f, "prompt_tokens", api_prompt_tokens(r->api));
        add_count(&f, "cached_tokens", r->cached);
        add_count(&f, "completion_tokens", api_completion_tokens(r->api));
        if (r->first_token > 0) add_seconds(&f, "ttft", r->first_token);
        add_text(&f, "finish", r->finish);
    }
    cfg_log_fields(level, "request", f.items, f.n);
}
