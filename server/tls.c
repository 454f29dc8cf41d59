// SPDX-License-Identifier: Apache-2.0
//
// tls.c: reads a certificate with its chain and the private key (tls.h). Everything that can be
// wrong with them is found here, in words that name the file, before a client meets it: GnuTLS
// itself would only fail the handshake.
#include "server/tls.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { MAX_FILE = 1 << 20 };

void tls_release(struct tls_pair *p)
{
    if (p == NULL || --p->refs > 0) return;
    for (unsigned i = 0; i < p->length; i++) gnutls_pcert_deinit(&p->chain[i]);
    if (p->key != NULL) gnutls_privkey_deinit(p->key);
    free(p);
}

struct tls_pair *tls_hold(struct tls *t)
{
    if (t == NULL) return NULL;
    t->pair->refs++;
    return t->pair;
}

static void warn_of_dates(const char *path, gnutls_x509_crt_t cert)
{
    const time_t now = time(NULL), from = gnutls_x509_crt_get_activation_time(cert),
                 to = gnutls_x509_crt_get_expiration_time(cert);
    char day[32];
    struct tm tm;
    if (now >= from && now <= to) return;
    gmtime_r(now < from ? &from : &to, &tm);
    strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%SZ", &tm);
    cfg_log(CFG_LOG_WARN, "%s: the certificate %s %s", path,
            now < from ? "is not valid before" : "expired on", day);
}

static void warn_of_access(const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0 && (st.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0)
        cfg_log(CFG_LOG_WARN, "%s: other users may read or change this key (mode %o): chmod 600",
                path, (unsigned)(st.st_mode & 0777));
}

/* The server's own certificate comes first; the others are put in order, each before its issuer. */
static int read_chain(struct tls_pair *p, const char *path, struct error *err)
{
    char *text = NULL;
    size_t n = 0;
    gnutls_x509_crt_t *certs = NULL;
    unsigned count = 0;
    int rc = cfg_read_file(path, MAX_FILE, &text, &n, err);
    if (rc != CFG_OK) return rc;
    const gnutls_datum_t pem = {(unsigned char *)text, (unsigned)n};
    rc = gnutls_x509_crt_list_import2(&certs, &count, &pem, GNUTLS_X509_FMT_PEM,
                                      GNUTLS_X509_CRT_LIST_SORT);
    free(text);
    if (rc < 0)
        return cfg_fail(err, CFG_EINVAL, "%s: no certificate in PEM: %s", path,
                        gnutls_strerror(rc));
    rc = CFG_OK;
    if (count > TLS_MAX_CHAIN)
        rc = cfg_fail(err, CFG_EINVAL, "%s: more than %d certificates", path, TLS_MAX_CHAIN);
    for (unsigned i = 0; i < count && rc == CFG_OK; i++) {
        const int bad = gnutls_pcert_import_x509(&p->chain[i], certs[i], 0);
        if (bad < 0)
            rc = cfg_fail(err, CFG_EINVAL, "%s: certificate %u: %s", path, i + 1,
                          gnutls_strerror(bad));
        else
            p->length++;
    }
    if (rc == CFG_OK) warn_of_dates(path, certs[0]);
    for (unsigned i = 0; i < count; i++) gnutls_x509_crt_deinit(certs[i]);
    gnutls_free(certs);
    return rc;
}

static int read_key(struct tls_pair *p, const char *path, struct error *err)
{
    char *text = NULL;
    size_t n = 0;
    int rc = cfg_read_file(path, MAX_FILE, &text, &n, err);
    if (rc != CFG_OK) return rc;
    const gnutls_datum_t pem = {(unsigned char *)text, (unsigned)n};
    rc = gnutls_privkey_init(&p->key);
    if (rc == 0) rc = gnutls_privkey_import_x509_raw(p->key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
    free(text);
    if (rc == GNUTLS_E_DECRYPTION_FAILED)
        return cfg_fail(err, CFG_EINVAL, "%s: the private key is encrypted", path);
    if (rc < 0)
        return cfg_fail(err, CFG_EINVAL, "%s: no private key in PEM: %s", path,
                        gnutls_strerror(rc));
    warn_of_access(path);
    return CFG_OK;
}

/* The public halves must be the same. */
static int check_match(const struct tls_pair *p, const struct tls *t, struct error *err)
{
    unsigned char id[2][64];
    size_t n[2] = {sizeof id[0], sizeof id[1]};
    gnutls_pubkey_t pub = NULL;
    int rc = gnutls_pubkey_init(&pub);
    if (rc == 0) rc = gnutls_pubkey_import_privkey(pub, p->key, 0, 0);
    if (rc == 0) rc = gnutls_pubkey_get_key_id(pub, GNUTLS_KEYID_USE_SHA256, id[0], &n[0]);
    if (rc == 0)
        rc = gnutls_pubkey_get_key_id(p->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, id[1], &n[1]);
    if (pub != NULL) gnutls_pubkey_deinit(pub);
    if (rc < 0)
        return cfg_fail(err, CFG_EINVAL, "%s: the private key cannot be used: %s", t->key_path,
                        gnutls_strerror(rc));
    if (n[0] == n[1] && memcmp(id[0], id[1], n[0]) == 0) return CFG_OK;
    return cfg_fail(err, CFG_EINVAL,
                    "%s: this private key does not belong to the first certificate of %s",
                    t->key_path, t->cert_path);
}

int tls_reload(struct tls *t, struct error *err)
{
    struct tls_pair *p = calloc(1, sizeof *p);
    if (p == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    p->refs = 1;
    int rc = read_chain(p, t->cert_path, err);
    if (rc == CFG_OK) rc = read_key(p, t->key_path, err);
    if (rc == CFG_OK) rc = check_match(p, t, err);
    if (rc != CFG_OK) {
        tls_release(p);
        return rc;
    }
    tls_release(t->pair);
    t->pair = p;
    cfg_log(CFG_LOG_INFO, "tls: certificates=%u", p->length);
    return CFG_OK;
}

int tls_open(struct tls **out, const char *cert_path, const char *key_path, struct error *err)
{
    *out = NULL;
    if (cert_path == NULL && key_path == NULL) return CFG_OK;
    if (cert_path == NULL || key_path == NULL)
        return cfg_fail(err, CFG_EINVAL, "--tls-cert and --tls-key need each other");
    struct tls *t = calloc(1, sizeof *t);
    if (t == NULL) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    t->cert_path = cert_path;
    t->key_path = key_path;
    int rc = tls_reload(t, err);
    if (rc == CFG_OK)
        *out = t;
    else
        free(t);
    return rc;
}

void tls_close(struct tls *t)
{
    if (t == NULL) return;
    tls_release(t->pair);
    free(t);
}
