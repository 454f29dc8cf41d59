// SPDX-License-Identifier: Apache-2.0
//
// test_cors.c: which lists of origins are taken, what each origin is told, and which header names
// are given back.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/cors.h"

static struct cors opened(const char *list)
{
    struct cors c;
    struct error err = {0};
    if (cors_open(&c, list, &err) != CFG_OK) fail_msg("%s: %s", list, err.message);
    return c;
}

static void off_by_default(void **state)
{
    (void)state;
    struct cors c = opened(NULL);
    assert_null(cors_allow(&c, "https://a.example"));
    assert_null(cors_allow(&c, NULL));
    assert_false(c.by_origin);
    cors_close(&c);
}

static void a_list_allows_its_own(void **state)
{
    (void)state;
    struct cors c = opened("https://a.example,http://localhost:3000,http://[::1]:80");
    assert_true(c.by_origin);
    static const char *const good[] = {"https://a.example", "HTTPS://A.example",
                                       "http://localhost:3000", "http://[::1]:80"};
    for (size_t i = 0; i < 4; i++) assert_ptr_equal(cors_allow(&c, good[i]), good[i]);
    static const char *const bad[] = {
        "",
        "*",
        "null",
        "https://a.example.evil",
        "https://a.exampl",
        "http://a.example",
        "https://a.example:443",
        "http://localhost",
        "https://a.example,http://localhost:3000",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_null(cors_allow(&c, bad[i]));
    assert_null(cors_allow(&c, NULL));
    cors_close(&c);
}

static void a_star_allows_all(void **state)
{
    (void)state;
    struct cors c = opened("*");
    assert_string_equal(cors_allow(&c, "https://a.example"), "*");
    assert_string_equal(cors_allow(&c, "null"), "*");
    assert_null(cors_allow(&c, NULL)); /* no page asks */
    assert_false(c.by_origin);
    cors_close(&c);
}

static void bad_lists(void **state)
{
    (void)state;
    static const struct {
        const char *list, *named;
    } cases[] = {
        {"a.example", "\"a.example\""},
        {"https://", "\"https://\""},
        {"://a", "\"://a\""},
        {"https://a.example/", "\"https://a.example/\""},
        {"https://a.example/x", "\"https://a.example/x\""},
        {"https://user@a.example", "user@"},
        {"https://a.example, https://b.example", "\" https://b.example\""},
        {"https://a.example,", "\"\""},
        {",", "\"\""},
        {"https://a.example,*", "\"*\""},
        {"null", "\"null\""},
        {"https://*.example", "\"https://*.example\""},
        {"https://a.example\r\nX: y", "https://a.example"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cors c;
        struct error err = {0};
        if (cors_open(&c, cases[i].list, &err) != CFG_EINVAL) fail_msg("%s", cases[i].list);
        if (strstr(err.message, cases[i].named) == NULL) fail_msg("%s", err.message);
        assert_null(c.list);
    }
}

static void header_names(void **state)
{
    (void)state;
    assert_true(cors_headers_fit("authorization, content-type,x-stainless-os"));
    assert_false(cors_headers_fit(NULL));
    assert_false(cors_headers_fit(""));
    assert_false(cors_headers_fit("a: b"));
    assert_false(cors_headers_fit("a\r\nb"));
    assert_false(cors_headers_fit("caf\xC3\xA9"));
    char *names = malloc(3000);
    assert_non_null(names);
    memset(names, 'a', 3000);
    names[2048] = '\0';
    assert_true(cors_headers_fit(names));
    names[2048] = 'a';
    names[2049] = '\0';
    assert_false(cors_headers_fit(names));
    free(names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off_by_default),    cmocka_unit_test(a_list_allows_its_own),
        cmocka_unit_test(a_star_allows_all), cmocka_unit_test(bad_lists),
        cmocka_unit_test(header_names),
    };
    return cmocka_run_group_tests_name("cors", tests, NULL, NULL);
}
