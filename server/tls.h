// SPDX-License-Identifier: Apache-2.0
//
// tls.h (private to server/): the certificate and key that new connections get. A pair is read and
// checked as a whole, never changes, and is held by each connection that began with it: reading the
// files again puts another in its place and disturbs nobody. Loop thread only.
#ifndef OPENMOED_TLS_H
#define OPENMOED_TLS_H

#include <gnutls/abstract.h>

#include "config/config.h"

/* What clients may speak; libmicrohttpd hands it to GnuTLS. */
#define TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

enum { TLS_MAX_CHAIN = 16 };

struct tls_pair {
    int refs;
    gnutls_pcert_st chain[TLS_MAX_CHAIN]; /* [length], the server's own first */
    unsigned length;
    gnutls_privkey_t key;
};

struct tls {
    const char *cert_path, *key_path; /* borrowed */
    struct tls_pair *pair;            /* in force */
};

/* Reads and checks both files; a certificate that has expired, or is not valid yet, is a warning.
 * Errors name the file. */
int tls_open(struct tls **out, const char *cert_path, const char *key_path,
             struct error *err) CFG_WARN_UNUSED;
/* Reads the files again. After an error the pair so far stays in force. */
int tls_reload(struct tls *t, struct error *err) CFG_WARN_UNUSED;
void tls_close(struct tls *t); /* t may be NULL */

struct tls_pair *tls_hold(struct tls *t); /* t may be NULL; then so is the pair */
void tls_release(struct tls_pair *p);     /* likewise */

#endif
