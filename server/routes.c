// SPDX-License-Identifier: Apache-2.0
//
// routes.c: which handler answers which path, and the handlers that answer at once. The ones that
// generate are in generate.c.
#include "server/api_format.h"
#include "server/embedded.h"
#include "server/http.h"
#include "server/web.h"

#include <stdlib.h>
#include <string.h>

static const char json_type[] = "application/json";

static void reply_json(struct request *r, int status, const char *text)
{
    struct cfg_buf b = {0};
    cfg_buf_puts(&b, text);
    request_reply(r, status, json_type, &b);
}

static void handle_health(struct request *r, const char *url)
{
    (void)url;
    switch (r->server->state) {
    case SERVER_LOADING:
        reply_json(r, 503, "{\"status\":\"loading\"}");
        return;
    case SERVER_DRAINING:
        reply_json(r, 503, "{\"status\":\"draining\"}");
        return;
    case SERVER_READY:
        break;
    }
    struct sched_stats st;
    sched_stats(r->server->sched, &st);
    if (st.state == SCHED_FAILED)
        reply_json(r, 503, "{\"status\":\"failed\"}");
    else
        reply_json(r, 200, "{\"status\":\"ok\"}");
}

static void handle_version(struct request *r, const char *url)
{
    struct cfg_buf b = {0};
    (void)url;
    api_version(&b);
    request_reply(r, 200, json_type, &b);
}

/* What this table and the handlers behind it take and answer, for programs (openapi.json). */
static void handle_openapi(struct request *r, const char *url)
{
    const struct embedded *f = web_file("openapi.json");
    struct cfg_buf b = {0};
    (void)url;
    if (f != NULL) cfg_buf_append(&b, f->data, f->size);
    request_reply(r, 200, json_type, &b);
}

static void add_routing(struct request *r, struct cfg_buf *out)
{
    const struct engine_info *info = r->server->env.info;
    struct sched_layer *layers = calloc((size_t)info->moe_layers + 1, sizeof *layers);
    struct sched_routing *total = sched_routing_total(r->server->sched);
    if (layers != NULL) {
        sched_layers(r->server->sched, layers);
        metrics_render_routing(total, layers, info, out);
    }
    sched_routing_unref(total);
    free(layers);
}

static void handle_metrics(struct request *r, const char *url)
{
    struct sched_stats st;
    struct api_grammars_stats grammars;
    struct cfg_buf b = {0};
    (void)url;
    sched_stats(r->server->sched, &st);
    api_grammars_stats(r->server->env.grammars, &grammars);
    metrics_render(&r->server->metrics, &st, r->server->env.info, &b);
    metrics_render_grammars(&grammars, &b);
    add_routing(r, &b);
    keys_render(r->server->keys, &b);
    connection_render(r->server, &b);
    request_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", &b);
}

static void handle_models(struct request *r, const char *url)
{
    struct cfg_buf b = {0};
    (void)url;
    api_models(r->env, &b);
    request_reply(r, 200, json_type, &b);
}

static void handle_model(struct request *r, const char *url)
{
    struct cfg_buf b = {0};
    if (api_model(url + strlen(r->route->path), r->env, &b, &r->error) == 0) {
        request_reply(r, 200, json_type, &b);
        return;
    }
    cfg_buf_free(&b);
    request_fail(r, &r->error);
}

static void parse_tokenize(struct request *r)
{
    (void)!api_tokenize(r->body.data, r->body.len, r->env, &r->reply, &r->error);
}

static void parse_detokenize(struct request *r)
{
    (void)!api_detokenize(r->body.data, r->body.len, r->env, &r->reply, &r->error);
}

static void handle_parsed(struct request *r, const char *url)
{
    struct cfg_buf b = r->reply;
    (void)url;
    r->reply = (struct cfg_buf){0};
    if (r->error.status == 0) {
        request_reply(r, 200, json_type, &b);
        return;
    }
    cfg_buf_free(&b);
    request_fail(r, &r->error);
}

static const struct route routes[] = {
    {"POST", "/v1/chat/completions", true, generate_parse_chat, generate_start},
    {"POST", "/v1/completions", true, generate_parse_completion, generate_start},
    {"POST", "/v1/responses", true, generate_parse_response, generate_start},
    {"GET", "/v1/responses/*/input_items", true, NULL, responses_get},
    {"GET", "/v1/responses/", true, NULL, responses_get},
    {"DELETE", "/v1/responses/", true, NULL, responses_delete},
    {"POST", "/tokenize", true, parse_tokenize, handle_parsed},
    {"POST", "/detokenize", true, parse_detokenize, handle_parsed},
    {"GET", "/v1/models", true, NULL, handle_models},
    {"GET", "/v1/models/", true, NULL, handle_model},
    {"GET", "/health", false, NULL, handle_health},
    {"GET", "/version", false, NULL, handle_version},
    {"GET", "/metrics", false, NULL, handle_metrics},
    {"GET", "/openapi.json", false, NULL, handle_openapi},
    {"GET", "/", false, NULL, web_handle_page},
    {"GET", "/static/", false, NULL, web_handle_static},
};

bool route_is_probe(const struct route *t)
{
    return t != NULL && (t->handle == handle_health || t->handle == handle_version ||
                         t->handle == handle_metrics);
}

/* A '*' stands for one name, a last slash for all that follows it. */
static bool path_fits(const char *path, const char *url)
{
    const size_t n = strlen(path);
    const char *star = strchr(path, '*');
    if (star != NULL) {
        const size_t before = (size_t)(star - path);
        if (strncmp(url, path, before) != 0) return false;
        const size_t name = strcspn(url + before, "/");
        return name > 0 && strcmp(url + before + name, star + 1) == 0;
    }
    if (n > 1 && path[n - 1] == '/') return strncmp(url, path, n) == 0 && url[n] != '\0';
    return strcmp(url, path) == 0;
}

const struct route *route_find(const char *method, const char *url, const char **allow)
{
    const char *path = NULL; /* the first that fits: what a later one takes is of other paths */
    *allow = NULL;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        const struct route *t = &routes[i];
        if (path != NULL ? strcmp(t->path, path) != 0 : !path_fits(t->path, url)) continue;
        path = t->path;
        const bool get = strcmp(t->method, "GET") == 0;
        if (strcmp(t->method, method) == 0 || (get && strcmp(method, "HEAD") == 0)) return t;
        /* The only other pair of methods that a path has. */
        *allow = get ? "GET, HEAD" : *allow != NULL ? "GET, HEAD, DELETE" : t->method;
    }
    return NULL;
}
