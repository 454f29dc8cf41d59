// SPDX-License-Identifier: Apache-2.0
//
// web.c: serves the page's files (web.h). A browser keeps them and asks each time whether they are
// still the same: after an update nobody sees old scripts beside a new page. What the page may do
// is closed by its Content-Security-Policy: it loads from us alone, talks to us alone, runs no
// script that stands in a document, and makes markup of text only through DOMPurify.
#include "server/web.h"
#include "server/embedded.h"
#include "server/http.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify";

static const char *content_type(const char *name)
{
    static const struct {
        const char *ending, *type;
    } types[] = {
        {".html", "text/html; charset=utf-8"}, {".js", "text/javascript; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},   {".svg", "image/svg+xml"},
        {".txt", "text/plain; charset=utf-8"},
    };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot != NULL && i < sizeof types / sizeof types[0]; i++)
        if (strcmp(dot, types[i].ending) == 0) return types[i].type;
    return NULL;
}

/* Does an Accept-Encoding (NULL: none) take gzip? */
static bool takes_gzip(const char *accept_encoding)
{
    const char *at = accept_encoding;
    while (at != NULL) {
        at += strspn(at, " \t,");
        const size_t n = strcspn(at, " \t,;");
        if (n == 4 && strncasecmp(at, "gzip", 4) == 0) {
            at += n + strspn(at + n, " \t;");
            return strncasecmp(at, "q=", 2) != 0 || strtod(at + 2, NULL) > 0;
        }
        at = strchr(at, ',');
    }
    return false;
}

/* Is this tag, in its quotes, among those of an If-None-Match (NULL: none)? */
static bool has_tag(const char *if_none_match, const char *etag)
{
    if (if_none_match == NULL) return false;
    return strcmp(if_none_match, "*") == 0 || strstr(if_none_match, etag) != NULL;
}

void web_add_headers(const struct embedded *file, bool gzip, struct MHD_Response *resp)
{
    char etag[32] = "W/"; /* weak: the same for both encodings */
    strncat(etag, file->etag, sizeof etag - sizeof "W/");
    MHD_add_response_header(resp, "ETag", etag);
    MHD_add_response_header(resp, "Cache-Control", "no-cache");
    MHD_add_response_header(resp, "Vary", "Accept-Encoding");
    MHD_add_response_header(resp, "Content-Security-Policy", policy);
    MHD_add_response_header(resp, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(resp, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(resp, "Cross-Origin-Opener-Policy", "same-origin");
    MHD_add_response_header(resp, "Cross-Origin-Resource-Policy", "same-origin");
    if (gzip) MHD_add_response_header(resp, "Content-Encoding", "gzip");
}

static const char *header_of(struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

const struct embedded *web_file(const char *name)
{
    const struct embedded *f = server_embedded;
    while (f->name != NULL && strcmp(f->name, name) != 0) f++;
    return f->name != NULL ? f : NULL;
}

/* A name that the page does not have is answered as any unknown path. */
static void reply_file(struct request *r, const char *name)
{
    const struct embedded *f = web_file(name);
    const char *type = content_type(name);
    if (f == NULL || type == NULL) {
        (void)!api_fail(&r->error, 404, NULL, NULL, "There is no GET /static/%.200s here.", name);
        request_fail(r, &r->error);
        return;
    }
    struct cfg_buf b = {0};
    r->file = f;
    if (has_tag(header_of(r, "If-None-Match"), f->etag)) {
        request_reply(r, 304, NULL, &b);
        return;
    }
    r->file_gzip = takes_gzip(header_of(r, "Accept-Encoding"));
    cfg_buf_append(&b, r->file_gzip ? f->gzip : f->data, r->file_gzip ? f->gzip_size : f->size);
    request_reply(r, 200, type, &b);
}

void web_handle_page(struct request *r, const char *url)
{
    (void)url;
    reply_file(r, "index.html");
}

void web_handle_static(struct request *r, const char *url)
{
    reply_file(r, url + strlen(r->route->path));
}
