// SPDX-License-Identifier: Apache-2.0
//
// test_keys.c: tenants by API key: what a key file may hold and the words of every refusal, who is
// found by which key, the limits against an exact model with a clock of its own, headers, and what
// stays and what goes when the file is read again.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/keys.h"

/* printf KEY | sha256sum */
#define ALPHA_1         "sha256:5b2c711c178a34ab45ccb87cab59c973feb4d75434cea3cc23a5b774a0dc2841"
#define ALPHA_2         "sha256:d1372818d61d68676e19bf65c7eb3c90d6109785d7047997c340df474a594fd3"
#define BETA_1          "sha256:d6c7dc5b78cc668137cf6f70de10168096de1e59b79708b55ebe73c9abac9c5b"
#define BETA_1_CAPITALS "sha256:D6C7DC5B78CC668137CF6F70DE10168096DE1E59B79708B55EBE73C9ABAC9C5B"
#define EMPTY           "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

#define TWO                                                                                        \
    "{\"tenants\":[{\"name\":\"alpha\",\"keys\":[\"" ALPHA_1 "\",\"" ALPHA_2 "\"]}, "              \
    "{\"name\":\"beta\",\"keys\":[\"" BETA_1 "\"]}]}"

static char folder[] = "/tmp/openmoed-keys-XXXXXX";
static char file_path[64];

static int make_folder(void **state)
{
    (void)state;
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    if (!mkdtemp(folder)) return -1;
    snprintf(file_path, sizeof file_path, "%s/keys.json", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(file_path);
    return rmdir(folder);
}

static void write_file(const char *text)
{
    FILE *f = fopen(file_path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static struct keys *opened(const char *text, const char *api_key)
{
    struct keys *k = NULL;
    struct error err = {0};
    if (text) write_file(text);
    if (keys_open(&k, text ? file_path : NULL, api_key, &err)) fail_msg("%s", err.message);
    return k;
}

/* The tenant of a key, let go at once: it stays as long as its file does. */
static struct keys_tenant *who(const struct keys *k, const char *key)
{
    char line[128];
    snprintf(line, sizeof line, "Bearer %s", key);
    struct keys_tenant *t = keys_find(k, line);
    keys_release(t);
    return t;
}

/* One tenant, alpha, with these rules. */
static struct keys *with_rules(const char *rules)
{
    char text[512];
    snprintf(text, sizeof text, "{\"tenants\":[{\"name\":\"alpha\",\"keys\":[\"%s\"],%s}]}",
             ALPHA_1, rules);
    return opened(text, NULL);
}

static void reloaded(struct keys *k, const char *text, double now)
{
    struct error err = {0};
    write_file(text);
    if (keys_reload(k, now, &err)) fail_msg("%s", err.message);
}

/* ---- who asks -------------------------------------------------------------------------------- */

static void test_find(void **state)
{
    (void)state;
    struct keys *k = opened(TWO, NULL);
    struct keys_tenant *alpha = who(k, "alpha-1"), *beta = who(k, "beta-1");
    assert_string_equal(alpha->name, "alpha");
    assert_string_equal(beta->name, "beta");
    assert_ptr_equal(who(k, "alpha-2"), alpha);
    assert_int_not_equal(alpha->number, beta->number);
    assert_true(alpha->number > 0 && beta->number > 0);
    static const char *const good[] = {"Bearer beta-1", "bearer beta-1", "BEARER   beta-1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct keys_tenant *t = keys_find(k, good[i]);
        assert_ptr_equal(t, beta);
        keys_release(t);
    }
    static const char *const bad[] = {"",
                                      "beta-1",
                                      "Bearer",
                                      "Bearer ",
                                      "Bearer  ",
                                      "Basic beta-1",
                                      "Bear",
                                      "Bearerbeta-1",
                                      "Bearer beta-10",
                                      "Bearer beta-",
                                      "Bearer Beta-1",
                                      "Bearer beta-1 ",
                                      BETA_1,
                                      "Bearer " BETA_1};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_null(keys_find(k, bad[i]));
    assert_null(keys_find(k, NULL));
    keys_close(k);
}

static void test_hashes_in_capitals(void **state)
{
    (void)state;
    struct keys *k =
        opened("{\"tenants\":[{\"name\":\"b\",\"keys\":[\"" BETA_1_CAPITALS "\"]}]}", NULL);
    assert_non_null(who(k, "beta-1"));
    keys_close(k);
}

static void test_api_key(void **state)
{
    (void)state;
    assert_null(opened(NULL, NULL));
    keys_close(NULL);

    struct keys *k = opened(NULL, "alone");
    assert_string_equal(who(k, "alone")->name, "default");
    assert_int_equal(who(k, "alone")->number, 1);
    assert_null(who(k, "alpha-1"));
    keys_close(k);

    k = opened(TWO, "alone");
    assert_string_equal(who(k, "alone")->name, "default");
    assert_string_equal(who(k, "alpha-1")->name, "alpha");
    keys_close(k);

    k = opened("{\"tenants\":[{\"name\":\"default\",\"keys\":[\"" ALPHA_1
               "\"],\"requests_per_minute\":7}]}",
               "alone");
    assert_ptr_equal(who(k, "alone"), who(k, "alpha-1"));
    assert_int_equal(who(k, "alone")->rules.requests_per_minute, 7);
    keys_close(k);

    k = opened("{\"tenants\":[]}", NULL);
    assert_non_null(k);
    assert_null(who(k, "alpha-1"));
    keys_close(k);
}

static void test_rules(void **state)
{
    (void)state;
    struct keys *k = opened(
        "{\"tenants\":[{\"models\":[\"m\",\"n\"],\"tokens_per_minute\":100000,\"weight\":2.5,"
        "\"keys\":[\"" ALPHA_1 "\"],\"requests_per_minute\":60,\"max_concurrent_requests\":8,"
        "\"name\":\"a.B_9-\"},{\"name\":\"beta\",\"keys\":[\"" BETA_1
        "\"],\"requests_per_minute\":0}]}",
        NULL);
    const struct keys_tenant *a = who(k, "alpha-1"), *b = who(k, "beta-1");
    assert_string_equal(a->name, "a.B_9-");
    assert_float_equal(a->rules.weight, 2.5, 0);
    assert_int_equal(a->rules.max_concurrent_requests, 8);
    assert_int_equal(a->rules.requests_per_minute, 60);
    assert_int_equal(a->rules.tokens_per_minute, 100000);
    assert_true(keys_allows(a, "m") && keys_allows(a, "n"));
    assert_false(keys_allows(a, "M") || keys_allows(a, "") || keys_allows(a, "o"));
    assert_float_equal(b->rules.weight, 1, 0);
    assert_int_equal(b->rules.max_concurrent_requests, 0);
    assert_int_equal(b->rules.requests_per_minute, 0);
    assert_int_equal(b->rules.tokens_per_minute, 0);
    assert_true(keys_allows(b, "m") && keys_allows(b, "o") && keys_allows(NULL, "o"));
    keys_close(k);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void expect_error(const char *text, const char *api_key, const char *want)
{
    struct keys *k = (struct keys *)&k;
    struct error err = {0};
    char expected[512];
    write_file(text);
    int rc = keys_open(&k, file_path, api_key, &err);
    if (rc == CFG_OK) fail_msg("taken, but expected: %s", want);
    assert_int_equal(rc, err.code);
    assert_null(k);
    snprintf(expected, sizeof expected, "%s: %s", file_path, want);
    assert_string_equal(err.message, expected);
}

#define ONE(fields) "{\"tenants\":[{" fields "}]}"
#define NAMED       "\"name\":\"a\",\"keys\":[]"

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"", "invalid JSON: the text ends too early at line 1, column 1"},
        {"{\"tenants\":[\n],}", "invalid JSON: a key in quotes is expected at line 2, column 3"},
        {ONE(NAMED ",\"name\":\"b\""), "invalid JSON: key \"name\" stands twice in one object"},
        {"{\"tenants\":[[[[[]]]]]}", "invalid JSON: nested too deeply at line 1, column 15"},
        {"[]", "expected one object with one field, the array tenants"},
        {"{}", "expected one object with one field, the array tenants"},
        {"{\"Tenants\":[]}", "expected one object with one field, the array tenants"},
        {"{\"tenants\":{}}", "expected one object with one field, the array tenants"},
        {"{\"tenants\":[],\"x\":1}", "expected one object with one field, the array tenants"},
        {"{\"tenants\":[1]}", "tenants[0]: expected an object"},
        {"{\"tenants\":[{" NAMED "},null]}", "tenants[1]: expected an object"},
        {ONE(""), "tenants[0]: the field name is missing"},
        {ONE("\"keys\":[]"), "tenants[0]: the field name is missing"},
        {ONE("\"name\":\"a\""), "tenants[0]: the field keys is missing"},
        {ONE(NAMED ",\"Weight\":1"), "tenants[0].Weight: unknown field"},
        {ONE(NAMED ",\"\":1"), "tenants[0].: unknown field"},
        {ONE("\"name\":7"), "tenants[0].name: expected a string"},
        {ONE("\"name\":\"\""), "tenants[0].name: expected 1 to 64 letters, digits or . _ -"},
        {ONE("\"name\":\"a b\""), "tenants[0].name: expected 1 to 64 letters, digits or . _ -"},
        {ONE("\"name\":\"a\\\"\""), "tenants[0].name: expected 1 to 64 letters, digits or . _ -"},
        {ONE("\"name\":\"0123456789012345678901234567890123456789012345678901234567890123x\""),
         "tenants[0].name: expected 1 to 64 letters, digits or . _ -"},
        {ONE("\"keys\":\"" ALPHA_1 "\""), "tenants[0].keys: expected an array of hashes"},
        {ONE("\"keys\":[\"" ALPHA_1 "\",1]"),
         "tenants[0].keys: element 1 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"alpha-1\"]"),
         "tenants[0].keys: element 0 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"SHA256:5b2c711c178a34ab45ccb87cab59c973feb4d75434cea3cc23a5b774a0dc2841"
             "\"]"),
         "tenants[0].keys: element 0 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"sha256:5b2c711c178a34ab45ccb87cab59c973feb4d75434cea3cc23a5b774a0dc284"
             "\"]"),
         "tenants[0].keys: element 0 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"sha256:5b2c711c178a34ab45ccb87cab59c973feb4d75434cea3cc23a5b774a0dc2841"
             "0\"]"),
         "tenants[0].keys: element 0 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"sha256:gb2c711c178a34ab45ccb87cab59c973feb4d75434cea3cc23a5b774a0dc2841"
             "\"]"),
         "tenants[0].keys: element 0 is not sha256: and 64 hex digits"},
        {ONE("\"keys\":[\"" EMPTY "\"]"), "tenants[0].keys: element 0 is the hash of an empty key"},
        {ONE(NAMED ",\"weight\":0"), "tenants[0].weight: expected a number between 0.001 and 1000"},
        {ONE(NAMED ",\"weight\":-1"),
         "tenants[0].weight: expected a number between 0.001 and 1000"},
        {ONE(NAMED ",\"weight\":1001"),
         "tenants[0].weight: expected a number between 0.001 and 1000"},
        {ONE(NAMED ",\"weight\":\"1\""),
         "tenants[0].weight: expected a number between 0.001 and 1000"},
        {ONE(NAMED ",\"max_concurrent_requests\":-1"),
         "tenants[0].max_concurrent_requests: expected a whole number between 0 and 1000000000000 "
         "(0: no limit)"},
        {ONE(NAMED ",\"requests_per_minute\":1.5"),
         "tenants[0].requests_per_minute: expected a whole number between 0 and 1000000000000 "
         "(0: no limit)"},
        {ONE(NAMED ",\"tokens_per_minute\":1e13"),
         "tenants[0].tokens_per_minute: expected a whole number between 0 and 1000000000000 "
         "(0: no limit)"},
        {ONE(NAMED ",\"tokens_per_minute\":null"),
         "tenants[0].tokens_per_minute: expected a whole number between 0 and 1000000000000 "
         "(0: no limit)"},
        {ONE(NAMED ",\"models\":[]"),
         "tenants[0].models: expected an array of 1 to 64 names (without it: all models)"},
        {ONE(NAMED ",\"models\":\"m\""),
         "tenants[0].models: expected an array of 1 to 64 names (without it: all models)"},
        {ONE(NAMED ",\"models\":[\"m\",2]"), "tenants[0].models: element 1 is not a name"},
        {ONE(NAMED ",\"models\":[\"\"]"), "tenants[0].models: element 0 is not a name"},
        {"{\"tenants\":[{" NAMED "},{\"name\":\"b\",\"keys\":[]},{" NAMED "}]}",
         "tenants[0] and tenants[2] are both \"a\""},
        {"{\"tenants\":[{\"name\":\"b\",\"keys\":[\"" BETA_1
         "\"]},{\"name\":\"a\",\"keys\":[\"" ALPHA_1 "\",\"" BETA_1_CAPITALS "\"]}]}",
         "tenants[1].keys: element 1 stands before, as element 0 of tenants[0].keys"},
        {ONE("\"name\":\"a\",\"keys\":[\"" ALPHA_1 "\",\"" BETA_1 "\",\"" ALPHA_1 "\"]"),
         "tenants[0].keys: element 2 stands before, as element 0 of tenants[0].keys"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(cases[i].text, NULL, cases[i].want);
    expect_error(TWO, "beta-1", "the key of --api-key stands in the file too");
    unlink(file_path);
    struct keys *k;
    struct error err = {0};
    char want[128];
    assert_int_equal(keys_open(&k, file_path, NULL, &err), CFG_ENOTFOUND);
    snprintf(want, sizeof want, "%s: No such file or directory", file_path);
    assert_string_equal(err.message, want);
}

/* n tenants with `each` keys, whose keys are "0", "1" ... in order. */
static char *many(size_t n, size_t each)
{
    struct cfg_buf b = {0};
    struct error err;
    cfg_buf_puts(&b, "{\"tenants\":[");
    for (size_t i = 0, key = 0; i < n; i++) {
        cfg_buf_printf(&b, "%s{\"name\":\"t%zu\",\"keys\":[", i ? "," : "", i);
        for (size_t j = 0; j < each; j++, key++) {
            union {
                uint64_t words[4];
                unsigned char bytes[32];
            } hash;
            char text[24];
            snprintf(text, sizeof text, "%zu", key);
            assert_int_equal(keys_hash(text, hash.words, &err), CFG_OK);
            cfg_buf_puts(&b, j ? ",\"sha256:" : "\"sha256:");
            for (size_t c = 0; c < 32; c++) cfg_buf_printf(&b, "%02x", hash.bytes[c]);
            cfg_buf_puts(&b, "\"");
        }
        cfg_buf_puts(&b, "]}");
    }
    cfg_buf_puts(&b, "]}");
    assert_false(b.failed);
    return b.data;
}

static void test_as_many_as_allowed(void **state)
{
    (void)state;
    char *text = many(KEYS_MAX_TENANTS, KEYS_MAX_KEYS / KEYS_MAX_TENANTS);
    struct keys *k = opened(text, NULL);
    for (size_t key = 0; key < KEYS_MAX_KEYS; key += key < 8 || key > KEYS_MAX_KEYS - 8 ? 1 : 61) {
        char name[32], given[32];
        snprintf(given, sizeof given, "%zu", key);
        snprintf(name, sizeof name, "t%zu", key / (KEYS_MAX_KEYS / KEYS_MAX_TENANTS));
        const struct keys_tenant *t = who(k, given);
        assert_non_null(t);
        assert_string_equal(t->name, name);
    }
    assert_null(who(k, "4096"));
    expect_error(text, "one more", "more than 4096 keys");
    keys_close(k);
    free(text);

    text = many(KEYS_MAX_TENANTS + 1, 0);
    expect_error(text, NULL, "1025 tenants, at most 1024 are allowed");
    free(text);
    text = many(1, KEYS_MAX_KEYS + 1);
    expect_error(text, NULL, "more than 4096 keys");
    free(text);
    text = many(KEYS_MAX_TENANTS, 1);
    k = opened(text, "one more tenant");
    assert_string_equal(who(k, "one more tenant")->name, "default");
    keys_close(k);
    free(text);
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* Seconds to wait that a refusal names; -1 when it was admitted. */
static int ask(struct keys_tenant *t, size_t tokens, double now, struct api_error *err)
{
    int retry_after = -1;
    *err = (struct api_error){0};
    int rc = keys_admit(t, tokens, now, &retry_after, err);
    if (rc == 0) {
        assert_int_equal(err->status, 0);
        assert_int_equal(retry_after, -1);
        return -1;
    }
    assert_int_equal(err->status, 429);
    assert_string_equal(err->code, "rate_limit_exceeded");
    assert_true(retry_after >= 0);
    return retry_after;
}

static void test_no_limits(void **state)
{
    (void)state;
    struct keys *k = opened(TWO, NULL);
    struct keys_tenant *t = who(k, "alpha-1");
    struct keys_header h[KEYS_HEADERS];
    struct api_error err;
    for (int i = 0; i < 1000; i++) assert_int_equal(ask(t, 1000000, 5, &err), -1);
    for (int i = 0; i < 1000; i++) keys_settle(t, 1000000, 3, 2, 5);
    assert_int_equal(t->running, 0);
    assert_int_equal(t->n_requests, 1000);
    assert_int_equal(t->prompt_tokens, 3000);
    assert_int_equal(t->generated_tokens, 2000);
    assert_int_equal(keys_headers(t, 5, h), 0);
    keys_close(k);

    assert_int_equal(ask(NULL, 1000000, 5, &err), -1);
    keys_settle(NULL, 1000000, 1, 1, 5);
    keys_undo(NULL, 1000000, 5);
    keys_release(NULL);
    assert_int_equal(keys_headers(NULL, 5, h), 0);
}

static void test_concurrent_requests(void **state)
{
    (void)state;
    struct keys *k = with_rules("\"max_concurrent_requests\":2");
    struct keys_tenant *t = who(k, "alpha-1");
    struct api_error err;
    assert_int_equal(ask(t, 10, 0, &err), -1);
    assert_int_equal(ask(t, 10, 0, &err), -1);
    assert_int_equal(ask(t, 10, 0, &err), 1);
    assert_string_equal(err.type, "requests");
    assert_string_equal(err.message, "Your limit is 2 requests at once, and so many are running.");
    assert_int_equal(ask(t, 10, 1e6, &err), 1); /* time alone does not help */
    keys_settle(t, 10, 1, 1, 1e6);
    assert_int_equal(ask(t, 10, 1e6, &err), -1);
    assert_int_equal(ask(t, 10, 1e6, &err), 1);
    keys_undo(t, 10, 1e6);
    assert_int_equal(ask(t, 10, 1e6, &err), -1);
    assert_int_equal(t->rejected[KEYS_CONCURRENT], 3);
    assert_int_equal(t->rejected[KEYS_REQUESTS] + t->rejected[KEYS_TOKENS], 0);
    assert_int_equal(t->n_requests, 1);
    keys_close(k);
}

static void test_requests_per_minute(void **state)
{
    (void)state;
    struct keys *k = with_rules("\"requests_per_minute\":3"); /* one every 20 s */
    struct keys_tenant *t = who(k, "alpha-1");
    struct api_error err;
    double now = 1000;
    for (int i = 0; i < 3; i++) assert_int_equal(ask(t, 10, now, &err), -1);
    assert_int_equal(ask(t, 10, now, &err), 20);
    assert_string_equal(err.type, "requests");
    assert_string_equal(err.message,
                        "Your limit is 3 requests a minute, and 0 are left. Try again in 20s.");
    assert_int_equal(ask(t, 10, now + 0.5, &err), 20);
    assert_non_null(strstr(err.message, "Try again in 19.5s."));
    assert_int_equal(ask(t, 10, now + 19.25, &err), 1);
    assert_non_null(strstr(err.message, "Try again in 750ms."));
    assert_int_equal(ask(t, 10, now + 20, &err), -1);
    assert_int_equal(ask(t, 10, now + 20, &err), 20);
    keys_undo(t, 10, now + 20); /* one that was not taken is given back whole */
    assert_int_equal(ask(t, 10, now + 20, &err), -1);
    keys_settle(t, 10, 1, 0, now + 20); /* one that was is not */
    assert_int_equal(ask(t, 10, now + 20, &err), 20);
    for (int i = 0; i < 3; i++) assert_int_equal(ask(t, 10, now + 5000, &err), -1);
    assert_int_equal(ask(t, 10, now + 5000, &err), 20); /* a minute's worth, never more */
    assert_int_equal(t->rejected[KEYS_REQUESTS], 6);
    keys_close(k);
}

static void test_tokens_per_minute(void **state)
{
    (void)state;
    struct keys *k = with_rules("\"tokens_per_minute\":600,\"requests_per_minute\":100");
    struct keys_tenant *t = who(k, "alpha-1");
    struct api_error err;
    assert_int_equal(ask(t, 601, 0, &err), 0);
    assert_string_equal(err.type, "tokens");
    assert_string_equal(err.message,
                        "Your limit is 600 tokens a minute, and this request alone may "
                        "need 601 (prompt and all it may generate). Shorten it or "
                        "lower max_tokens.");
    assert_int_equal(ask(t, 500, 0, &err), -1);
    assert_int_equal(ask(t, 101, 0, &err), 1);
    assert_string_equal(err.message, "Your limit is 600 tokens a minute, 100 are left, and this "
                                     "request may need 101 (prompt and all it may generate). Try "
                                     "again in 100ms.");
    assert_int_equal(ask(t, 600, 0, &err), 50);
    assert_int_equal(ask(t, 100, 0, &err), -1);
    keys_settle(t, 500, 20, 30, 0); /* 450 come back */
    assert_int_equal(ask(t, 451, 0, &err), 1);
    assert_int_equal(ask(t, 450, 0, &err), -1);
    keys_settle(t, 450, 400, 60, 0); /* used more than was reserved: nothing to give back */
    assert_int_equal(ask(t, 1, 0, &err), 1);
    assert_int_equal(ask(t, 20, 2, &err), -1);
    assert_int_equal(t->rejected[KEYS_TOKENS], 5);
    assert_int_equal(t->rejected[KEYS_REQUESTS], 0);
    /* What was refused for its tokens took no request: 3 had come back before the last one. */
    assert_float_equal(t->requests.used, 1, 1e-9);
    keys_close(k);
}

/* The longer of two waits is the one that is named. */
static void test_both_limits(void **state)
{
    (void)state;
    struct keys *k = with_rules("\"tokens_per_minute\":60,\"requests_per_minute\":1");
    struct keys_tenant *t = who(k, "alpha-1");
    struct api_error err;
    assert_int_equal(ask(t, 60, 0, &err), -1);
    assert_int_equal(ask(t, 30, 0, &err), 60);
    assert_string_equal(err.type, "requests");
    keys_settle(t, 60, 60, 0, 0);
    assert_int_equal(ask(t, 60, 60, &err), -1);
    keys_undo(t, 0, 60); /* the request comes back, its tokens do not */
    assert_int_equal(ask(t, 30, 60, &err), 30);
    assert_string_equal(err.type, "tokens");
    keys_close(k);
}

static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % below;
}

/* Whole numbers on a clock of milliseconds: a minute has 60,000 of them, so in this unit a token is
 * 60,000 and a millisecond gives back the limit. */
static void agrees_with_whole_numbers(uint64_t seed)
{
    random_state = seed;
    const int64_t limit = 1 + (int64_t)draw(5000);
    char rules[64];
    snprintf(rules, sizeof rules, "\"tokens_per_minute\":%lld", (long long)limit);
    struct keys *k = with_rules(rules);
    struct keys_tenant *t = who(k, "alpha-1");
    struct api_error err;
    struct keys_header h[KEYS_HEADERS];
    int64_t used = 0, ms = 0;
    size_t held[32], n_held = 0;
    for (int i = 0; i < 500; i++) {
        const int64_t step = draw(3) ? (int64_t)draw(400) : (int64_t)draw(40000);
        const size_t n = 1 + (size_t)draw((uint64_t)limit + 5);
        ms += step;
        used = used > step * limit ? used - step * limit : 0;
        if (n_held > 0 && (n_held == 32 || draw(2))) {
            const size_t tokens = held[--n_held], spent = (size_t)draw(tokens + 1);
            const int64_t back = (int64_t)(tokens - spent) * 60000;
            keys_settle(t, tokens, spent / 2, spent - spent / 2, (double)ms / 1000);
            used = used > back ? used - back : 0;
        } else {
            const bool fits = used + (int64_t)n * 60000 <= limit * 60000;
            const int wait = ask(t, n, (double)ms / 1000, &err);
            const int64_t over = used + (int64_t)(n - (size_t)limit) * 60000;
            const int64_t seconds = (over + limit * 1000 - 1) / (limit * 1000);
            const int want = fits ? -1 : (int64_t)n > limit ? 0 : (int)seconds;
            if (wait != want)
                fail_msg("seed %llu, step %d: %d, not %d", (unsigned long long)seed, i, wait, want);
            if (fits) used += (int64_t)n * 60000;
            if (fits) held[n_held++] = n;
        }
        assert_int_equal(keys_headers(t, (double)ms / 1000, h), 3);
        const long long left = (limit * 60000 - used) / 60000;
        if (strtoll(h[1].value, NULL, 10) != left)
            fail_msg("seed %llu, step %d: %s left, not %lld", (unsigned long long)seed, i,
                     h[1].value, left);
    }
    keys_close(k);
}

static void test_buckets_against_whole_numbers(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) agrees_with_whole_numbers(seed);
}

static void expect_headers(const struct keys_tenant *t, double now, const char *want)
{
    struct keys_header h[KEYS_HEADERS];
    struct cfg_buf b = {0};
    const size_t n = keys_headers(t, now, h);
    cfg_buf_puts(&b, "");
    for (size_t i = 0; i < n; i++) {
        assert_memory_equal(h[i].name, "x-ratelimit-", 12);
        cfg_buf_printf(&b, "%s=%s ", h[i].name + 12, h[i].value);
    }
    assert_string_equal(b.data, want);
    cfg_buf_free(&b);
}

static void test_headers(void **state)
{
    (void)state;
    struct api_error err;
    struct keys *k = with_rules("\"requests_per_minute\":60");
    struct keys_tenant *t = who(k, "alpha-1");
    expect_headers(t, 0, "limit-requests=60 remaining-requests=60 reset-requests=0s ");
    for (int i = 0; i < 60; i++) assert_int_equal(ask(t, 9, 0, &err), -1);
    expect_headers(t, 0, "limit-requests=60 remaining-requests=0 reset-requests=1m0s ");
    expect_headers(t, 0.001, "limit-requests=60 remaining-requests=0 reset-requests=59.999s ");
    expect_headers(t, 0.5, "limit-requests=60 remaining-requests=0 reset-requests=59.5s ");
    expect_headers(t, 50, "limit-requests=60 remaining-requests=50 reset-requests=10s ");
    expect_headers(t, 59, "limit-requests=60 remaining-requests=59 reset-requests=1s ");
    expect_headers(t, 59.98, "limit-requests=60 remaining-requests=59 reset-requests=20ms ");
    expect_headers(t, 61, "limit-requests=60 remaining-requests=60 reset-requests=0s ");
    /* A limit that is lowered leaves a debt. */
    reloaded(k,
             "{\"tenants\":[{\"name\":\"alpha\",\"keys\":[\"" ALPHA_1
             "\"],\"requests_per_minute\":10,\"tokens_per_minute\":1000000000000}]}",
             0);
    expect_headers(t, 0,
                   "limit-requests=10 remaining-requests=0 reset-requests=6m0s "
                   "limit-tokens=1000000000000 remaining-tokens=1000000000000 reset-tokens=0s ");
    expect_headers(t, 8.5,
                   "limit-requests=10 remaining-requests=0 reset-requests=5m51.5s "
                   "limit-tokens=1000000000000 remaining-tokens=1000000000000 reset-tokens=0s ");
    keys_close(k);
    k = with_rules("\"tokens_per_minute\":120");
    assert_int_equal(ask(who(k, "alpha-1"), 30, 0, &err), -1);
    expect_headers(who(k, "alpha-1"), 0, "limit-tokens=120 remaining-tokens=90 reset-tokens=15s ");
    keys_close(k);
}

/* ---- reading again --------------------------------------------------------------------------- */

#define ONLY(name, key, more)                                                                      \
    "{\"tenants\":[{\"name\":\"" name "\",\"keys\":[\"" key "\"]" more "}]}"

static void test_reload_keeps_who_stays(void **state)
{
    (void)state;
    struct api_error err;
    struct keys *k = opened(ONLY("alpha", ALPHA_1, ",\"requests_per_minute\":2"), "master");
    struct keys_tenant *t = who(k, "alpha-1"), *master = who(k, "master");
    const uint32_t number = t->number;
    assert_int_equal(ask(t, 5, 0, &err), -1);
    assert_int_equal(ask(t, 5, 0, &err), -1);
    keys_settle(t, 5, 2, 1, 0);

    reloaded(k,
             "{\"tenants\":[{\"name\":\"aaa\",\"keys\":[\"" ALPHA_2 "\"]},{\"name\":\"alpha\","
             "\"keys\":[\"" BETA_1 "\"],\"requests_per_minute\":4,\"models\":[\"m\"]}]}",
             30);
    assert_null(who(k, "alpha-1")); /* its key has changed */
    assert_ptr_equal(who(k, "beta-1"), t);
    assert_ptr_equal(who(k, "master"), master);
    assert_int_equal(t->number, number);
    assert_true(who(k, "alpha-2")->number > number && who(k, "alpha-2")->number > master->number);
    assert_int_equal(t->n_requests, 1);
    assert_int_equal(t->prompt_tokens, 2);
    assert_int_equal(t->running, 1);
    assert_false(keys_allows(t, "other"));
    /* 30 s by the old rule gave one request back: one of now 4 is in use. */
    expect_headers(t, 30, "limit-requests=4 remaining-requests=3 reset-requests=15s ");
    keys_settle(t, 5, 2, 1, 30);
    assert_int_equal(t->running, 0);

    reloaded(k, ONLY("alpha", BETA_1, ""), 31);
    assert_true(keys_allows(t, "other"));
    expect_headers(t, 31, "");
    keys_close(k);
}

static void test_reload_lets_go_who_leaves(void **state)
{
    (void)state;
    struct api_error err;
    struct keys *k = opened(TWO, NULL);
    struct keys_tenant *beta = keys_find(k, "Bearer beta-1");
    const uint32_t number = beta->number;
    assert_int_equal(ask(beta, 5, 0, &err), -1);

    reloaded(k, ONLY("alpha", ALPHA_1, ""), 1);
    assert_null(who(k, "beta-1"));
    assert_non_null(who(k, "alpha-1"));
    assert_string_equal(beta->name, "beta"); /* a request still holds it */
    keys_settle(beta, 5, 3, 2, 2);
    assert_int_equal(beta->prompt_tokens, 3);

    /* Back while the request holds the old one: another tenant with another number, so that nothing
     * that is cached under the old one can be reached. */
    reloaded(k, TWO, 3);
    assert_non_null(who(k, "beta-1"));
    assert_ptr_not_equal(who(k, "beta-1"), beta);
    assert_true(who(k, "beta-1")->number > number);
    assert_int_equal(who(k, "beta-1")->n_requests, 0);
    keys_release(beta);
    keys_close(k);
}

static void test_bad_reload_changes_nothing(void **state)
{
    (void)state;
    struct keys *k = opened(TWO, "master");
    struct error err = {0};
    char want[160];
    static const char *const bad[] = {"", "{\"tenants\":[]", ONLY("x", "no hash", ""),
                                      ONLY("x", ALPHA_1, ",\"weight\":-2")};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct keys_tenant *alpha = who(k, "alpha-1");
        write_file(bad[i]);
        assert_int_equal(keys_reload(k, 9, &err), CFG_EINVAL);
        snprintf(want, sizeof want, "%s: ", file_path);
        assert_memory_equal(err.message, want, strlen(want));
        assert_ptr_equal(who(k, "alpha-1"), alpha);
        assert_non_null(who(k, "beta-1"));
        assert_non_null(who(k, "master"));
    }
    unlink(file_path);
    assert_int_equal(keys_reload(k, 9, &err), CFG_ENOTFOUND);
    assert_non_null(who(k, "beta-1"));
    reloaded(k, ONLY("x", ALPHA_1, ""), 10);
    assert_string_equal(who(k, "alpha-1")->name, "x");
    assert_null(who(k, "beta-1"));
    keys_close(k);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static void test_render(void **state)
{
    (void)state;
    struct cfg_buf b = {0};
    struct api_error err;
    keys_render(NULL, &b);
    struct keys *k = opened(NULL, "alone");
    keys_render(k, &b); /* only a file is worth figures by tenant */
    assert_int_equal(b.len, 0);
    keys_close(k);

    k = opened("{\"tenants\":[{\"name\":\"z\",\"keys\":[\"" BETA_1 "\"]},{\"name\":\"a\",\"keys\":["
               "\"" ALPHA_1 "\"],\"requests_per_minute\":1,\"tokens_per_minute\":10}]}",
               NULL);
    struct keys_tenant *a = who(k, "alpha-1");
    assert_int_equal(ask(a, 7, 0, &err), -1);
    assert_int_equal(ask(a, 7, 0, &err), 60);
    assert_int_equal(ask(a, 11, 0, &err), 0);
    assert_int_equal(ask(a, 12, 0, &err), 0);
    keys_settle(a, 7, 5, 2, 0);
    keys_render(k, &b);
    assert_string_equal(
        b.data,
        "# HELP openmoed_tenant_requests_total Generation requests ended, by tenant.\n"
        "# TYPE openmoed_tenant_requests_total counter\n"
        "openmoed_tenant_requests_total{tenant=\"a\"} 1\n"
        "openmoed_tenant_requests_total{tenant=\"z\"} 0\n"
        "# HELP openmoed_tenant_prompt_tokens_total Prompt tokens of ended requests, by tenant.\n"
        "# TYPE openmoed_tenant_prompt_tokens_total counter\n"
        "openmoed_tenant_prompt_tokens_total{tenant=\"a\"} 5\n"
        "openmoed_tenant_prompt_tokens_total{tenant=\"z\"} 0\n"
        "# HELP openmoed_tenant_generated_tokens_total Tokens generated by ended requests, by "
        "tenant.\n"
        "# TYPE openmoed_tenant_generated_tokens_total counter\n"
        "openmoed_tenant_generated_tokens_total{tenant=\"a\"} 2\n"
        "openmoed_tenant_generated_tokens_total{tenant=\"z\"} 0\n"
        "# HELP openmoed_tenant_rejected_total Requests past a limit of their tenant, by limit.\n"
        "# TYPE openmoed_tenant_rejected_total counter\n"
        "openmoed_tenant_rejected_total{tenant=\"a\",reason=\"concurrent_requests\"} 0\n"
        "openmoed_tenant_rejected_total{tenant=\"a\",reason=\"requests_per_minute\"} 1\n"
        "openmoed_tenant_rejected_total{tenant=\"a\",reason=\"tokens_per_minute\"} 2\n"
        "openmoed_tenant_rejected_total{tenant=\"z\",reason=\"concurrent_requests\"} 0\n"
        "openmoed_tenant_rejected_total{tenant=\"z\",reason=\"requests_per_minute\"} 0\n"
        "openmoed_tenant_rejected_total{tenant=\"z\",reason=\"tokens_per_minute\"} 0\n");
    cfg_buf_free(&b);
    keys_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_hashes_in_capitals),
        cmocka_unit_test(test_api_key),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_as_many_as_allowed),
        cmocka_unit_test(test_no_limits),
        cmocka_unit_test(test_concurrent_requests),
        cmocka_unit_test(test_requests_per_minute),
        cmocka_unit_test(test_tokens_per_minute),
        cmocka_unit_test(test_both_limits),
        cmocka_unit_test(test_buckets_against_whole_numbers),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_reload_keeps_who_stays),
        cmocka_unit_test(test_reload_lets_go_who_leaves),
        cmocka_unit_test(test_bad_reload_changes_nothing),
        cmocka_unit_test(test_render),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
