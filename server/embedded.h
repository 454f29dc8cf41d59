// SPDX-License-Identifier: Apache-2.0
//
// embedded.h (private to server/): the files that the binary carries: those that the Makefile names
// in EMBEDDED. The table is written by embed.sh when the daemon is built; it is constant, and any
// thread may read it.
#ifndef OPENMOED_EMBEDDED_H
#define OPENMOED_EMBEDDED_H

#include <stddef.h>

struct embedded {
    const char *name; /* without its folder; NULL in the entry that ends the table */
    const char *etag; /* quoted, of the contents */
    const char *data;
    size_t size;
    const char *gzip; /* the same compressed */
    size_t gzip_size;
};

extern const struct embedded server_embedded[];

#endif
