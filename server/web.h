// SPDX-License-Identifier: Apache-2.0
//
// web.h (private to server/): the page for people, "/" and "/static/NAME", from the files that the
// binary carries. Loop thread.
#ifndef OPENMOED_WEB_H
#define OPENMOED_WEB_H

#include <microhttpd.h>
#include <stdbool.h>

struct embedded;
struct request;

void web_handle_page(struct request *r, const char *url);
void web_handle_static(struct request *r, const char *url);
/* The file of that name that the binary carries; NULL: it has none. */
const struct embedded *web_file(const char *name);
/* The headers of a reply that carries this file, whole or as 304. */
void web_add_headers(const struct embedded *file, bool gzip, struct MHD_Response *resp);

#endif
