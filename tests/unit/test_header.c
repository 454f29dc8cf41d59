// SPDX-License-Identifier: Apache-2.0
//
// test_header.c: which messages are refused for their header, and which keys are accepted.
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/header.h"

struct line {
    const char *name, *value;
};

/* Adds lines up to the first without a name. */
static struct header read_lines(const struct line *lines)
{
    struct header h = {0};
    for (; lines->name != NULL; lines++) header_add(&h, lines->name, lines->value);
    return h;
}

static int check(const struct line *lines, const char *version)
{
    struct api_error err = {0};
    const struct header h = read_lines(lines);
    const int rc = header_check(&h, version, &err);
    assert_int_equal(err.status, rc == 0 ? 0 : 400);
    return rc;
}

static void sound_messages_pass(void **state)
{
    (void)state;
    static const struct line good[][4] = {
        {{"Host", "localhost:8000"}},
        {{"Host", "[::1]:8000"}, {"X-Any", "a b\"c"}},
        {{"host", ""}, {"content-length", "0"}},
        {{"Host", "a"}, {"Content-Length", "123"}, {"Content-Type", "application/json"}},
        {{"Host", "a"}, {"TRANSFER-ENCODING", "Chunked"}},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(check(good[i], "HTTP/1.1"), 0);
    static const struct line none[1] = {{0}};
    assert_int_equal(check(none, "HTTP/1.0"), 0);
}

static void doubtful_messages_are_refused(void **state)
{
    (void)state;
    static const struct line bad[][4] = {
        {{"X", "no host"}},
        {{"Host", "a"}, {"Host", "a"}},
        {{"Host", "a"}, {"Authorization", "Bearer a"}, {"Authorization", "Bearer b"}},
        {{"Host", "a/b"}},
        {{"Host", "user@a"}},
        {{"Host", "a b"}},
        {{"Host", "a"}, {"Content-Length", "2"}, {"Content-Length", "2"}},
        {{"Host", "a"}, {"Content-Length", ""}},
        {{"Host", "a"}, {"Content-Length", "+2"}},
        {{"Host", "a"}, {"Content-Length", "2, 2"}},
        {{"Host", "a"}, {"Content-Length", "0x2"}},
        {{"Host", "a"}, {"Content-Length", "2"}, {"Transfer-Encoding", "chunked"}},
        {{"Host", "a"}, {"Transfer-Encoding", "gzip, chunked"}},
        {{"Host", "a"}, {"Transfer-Encoding", "identity"}},
        {{"Host", "a"}, {"Transfer-Encoding", ""}},
        {{"Host", "a"}, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}},
        {{"Host", "a"}, {"Content-Length ", "2"}},
        {{"Host", "a"}, {"", "2"}},
        {{"Host", "a"}, {"X\tY", "2"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (check(bad[i], "HTTP/1.1") != -1) fail_msg("message %zu passed", i);
    static const struct line chunked[2] = {{"Transfer-Encoding", "chunked"}};
    assert_int_equal(check(chunked, "HTTP/1.0"), -1);
}

static void lengths_saturate(void **state)
{
    (void)state;
    const struct line small[2] = {{"Content-Length", "102401"}};
    const struct line huge[2] = {{"Content-Length", "99999999999999999999999999"}};
    assert_true(read_lines(small).length == 102401);
    assert_true(read_lines(huge).length == ULLONG_MAX);
}

static bool refused_type(const char *type)
{
    const struct line one[2] = {{"Content-Type", type}};
    return read_lines(one).other_type;
}

static void content_types(void **state)
{
    (void)state;
    static const struct line none[1] = {{0}};
    assert_false(read_lines(none).other_type);
    assert_false(refused_type("application/json"));
    assert_false(refused_type("Application/JSON; charset=utf-8"));
    assert_false(refused_type("application/json ;charset=utf-8"));
    assert_true(refused_type(""));
    assert_true(refused_type("application/jsonp"));
    assert_true(refused_type("application/json+x"));
    assert_true(refused_type("text/plain"));
    static const struct line two[3] = {{"Content-Type", "application/json"},
                                       {"Content-Type", "application/json"}};
    assert_true(read_lines(two).other_type);
}

static const char *id_of(const char *value)
{
    const struct line one[2] = {{"X-Request-ID", value}};
    const struct header h = read_lines(one);
    return header_request_id(&h);
}

static void request_ids(void **state)
{
    (void)state;
    char longest[HEADER_MAX_ID + 2];
    memset(longest, 'a', sizeof longest);
    longest[HEADER_MAX_ID + 1] = '\0';
    assert_null(id_of(longest));
    assert_string_equal(id_of(longest + 1), longest + 1);
    assert_string_equal(id_of("2f1e:A_b.c-9"), "2f1e:A_b.c-9");
    static const char *const bad[] = {"", " ", "a b", "a\"b", "a=b", "a\nb", "a/b", "caf\xC3\xA9"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_null(id_of(bad[i]));
    static const struct line two[3] = {{"x-request-id", "a"}, {"x-request-id", "a"}};
    const struct header h = read_lines(two), none = {0};
    assert_null(header_request_id(&h));
    assert_null(header_request_id(&none));
}

static void lines_of_browsers(void **state)
{
    (void)state;
    static const struct line lines[4] = {{"Origin", "https://a.example"},
                                         {"access-control-request-method", "POST"},
                                         {"Access-Control-Request-Headers", "x-a, x-b"}};
    struct header h = read_lines(lines);
    assert_string_equal(h.origin, "https://a.example");
    assert_string_equal(h.wanted_method, "POST");
    assert_string_equal(h.wanted_headers, "x-a, x-b");
    header_add(&h, "Origin", "https://a.example"); /* whose page is it? */
    assert_null(h.origin);
    header_add(&h, "Origin", "https://a.example");
    assert_null(h.origin);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_messages_pass), cmocka_unit_test(doubtful_messages_are_refused),
        cmocka_unit_test(lengths_saturate),    cmocka_unit_test(content_types),
        cmocka_unit_test(request_ids),         cmocka_unit_test(lines_of_browsers),
    };
    return cmocka_run_group_tests_name("header", tests, NULL, NULL);
}
