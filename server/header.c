// SPDX-License-Identifier: Apache-2.0
//
// header.c: reads and judges header lines. libmicrohttpd accepts two lengths, a length beside a
// transfer coding, several hosts and blanks before the colon without a word; each of them lets a
// second request be hidden in the body of a first, so each is refused.
#include "server/header.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

static bool only(const char *s, const char *allowed)
{
    return s[strspn(s, allowed)] == '\0';
}

/* RFC 9110's token. A blank before the colon becomes part of the name here, which would hide
 * "Content-Length : 5" from us, but perhaps not from a proxy. */
static bool is_token(const char *s)
{
    return *s != '\0' && only(s, ALNUM "!#$%&'*+-.^_`|~");
}

static bool is_json(const char *type)
{
    static const char want[] = "application/json";
    const size_t n = sizeof want - 1;
    if (strncasecmp(type, want, n) != 0) return false;
    return type[n] == '\0' || type[n] == ';' || type[n] == ' ' || type[n] == '\t';
}

/* Those that decide nothing about the message itself. */
static void add_other(struct header *h, const char *name, const char *value)
{
    if (strcasecmp(name, "Origin") == 0) {
        h->origin = h->n_origins++ == 0 ? value : NULL;
    } else if (strcasecmp(name, "x-request-id") == 0) {
        h->n_ids++;
        h->request_id = value;
    } else if (strcasecmp(name, "Access-Control-Request-Method") == 0) {
        h->wanted_method = value;
    } else if (strcasecmp(name, "Access-Control-Request-Headers") == 0) {
        h->wanted_headers = value;
    }
}

void header_add(struct header *h, const char *name, const char *value)
{
    if (!is_token(name)) h->bad_name = true;
    if (strcasecmp(name, "Content-Length") == 0) {
        h->n_lengths++;
        h->length_text = value;
        h->length = strtoull(value, NULL, 10);
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        h->n_codings++;
        h->coding = value;
    } else if (strcasecmp(name, "Host") == 0) {
        h->n_hosts++;
        h->host = value;
    } else if (strcasecmp(name, "Content-Type") == 0) {
        if (h->n_types++ > 0 || !is_json(value)) h->other_type = true;
    } else if (strcasecmp(name, "Authorization") == 0) {
        h->n_authorizations++;
        h->authorization = value;
    } else if (strcasecmp(name, "Expect") == 0) {
        h->expects = true;
    } else {
        add_other(h, name, value);
    }
}

const char *header_request_id(const struct header *h)
{
    if (h->n_ids != 1) return NULL;
    const size_t n = strspn(h->request_id, ALNUM "._:-");
    return n > 0 && n <= HEADER_MAX_ID && h->request_id[n] == '\0' ? h->request_id : NULL;
}

int header_check(const struct header *h, const char *version, struct api_error *err)
{
    const bool old = strcmp(version, "HTTP/1.0") == 0;
    if (h->bad_name) return api_fail(err, 400, NULL, NULL, "A header's name is not a token.");
    if (h->n_lengths > 1) return api_fail(err, 400, NULL, NULL, "More than one Content-Length.");
    if (h->n_lengths == 1 && (*h->length_text == '\0' || !only(h->length_text, "0123456789")))
        return api_fail(err, 400, NULL, NULL, "Content-Length is not a number.");
    if (h->n_codings > 0 && h->n_lengths > 0)
        return api_fail(err, 400, NULL, NULL, "Content-Length beside Transfer-Encoding.");
    if (h->n_codings > 1 || (h->n_codings == 1 && (old || strcasecmp(h->coding, "chunked") != 0)))
        return api_fail(err, 400, NULL, NULL, "The only transfer coding accepted is chunked.");
    if (h->n_authorizations > 1)
        return api_fail(err, 400, NULL, NULL, "More than one Authorization header.");
    if (h->n_hosts > 1 || (h->n_hosts == 0 && !old))
        return api_fail(err, 400, NULL, NULL, "Exactly one Host header is needed.");
    /* A name or an address, perhaps a port: nothing that could end the authority of a URL. */
    if (h->n_hosts == 1 && !only(h->host, ALNUM "-._~!$&'()*+,;=%:[]"))
        return api_fail(err, 400, NULL, NULL, "The Host header is not a host.");
    return 0;
}
