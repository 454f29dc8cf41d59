// SPDX-License-Identifier: Apache-2.0
//
// test_json.c: which texts cfg_json_parse takes and which it refuses, with what words; that strings
// and numbers arrive as written; that limits hold exactly where they are set.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

static const struct cfg_json_limits wide = {1 << 20, 100000, 900};

/* Parses a copy that ends where the text ends, so that the sanitizer sees any read past it. */
static int parse(cJSON **out, const char *text, size_t n, const struct cfg_json_limits *limits,
                 struct error *err)
{
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    if (n) memcpy(copy, text, n);
    int rc = cfg_json_parse(out, copy, n, limits, err);
    free(copy);
    return rc;
}

struct text {
    const char *s;
    size_t n;
};
#define T(literal)                                                                                 \
    {                                                                                              \
        literal, sizeof(literal) - 1                                                               \
    }

static void test_accepted(void **state)
{
    (void)state;
    static const struct text texts[] = {
        T("null"),
        T("true"),
        T(" false "),
        T("\t\r\n0\n"),
        T("-0"),
        T("12345678901234567890"),
        T("1.5e+3"),
        T("1e308"),
        T("1e-400"),
        T("-0.0e-0"),
        T("123456789012345678901234567890123456789012345678901234567890123"), /* 63 digits */
        T("\"\""),
        T("\"a\\\"b\\\\c\\/d\\b\\f\\n\\r\\t\""),
        T("\"\\u0001\\uFFFF\\uabCD\""),
        T("\"\\ud83d\\ude00\""),
        T("\"\xC2\x80\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\""),
        T("\"\x7F\""),
        T("[]"),
        T("[ ]"),
        T("{}"),
        T("{ }"),
        T("[[],{},[{}]]"),
        T("[1,\"a\",null,true,false,-2.5]"),
        T("{\"a\":1,\"A\":2,\"\":3}"),
        T(" { \"a\" : [ 1 , { \"a\" : 2 } ] , \"b\" : { \"a\" : 3 } } "),
        T("{\"a\":{\"b\":1},\"c\":{\"b\":1}}"),
        T("[\"\\\\u0000\"]"),
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        cJSON *tree = NULL;
        struct error err = {0};
        if (parse(&tree, texts[i].s, texts[i].n, &wide, &err) != CFG_OK)
            fail_msg("%s: %s", texts[i].s, err.message);
        assert_non_null(tree);
        cJSON_Delete(tree);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        struct text text;
        const char *why; /* must stand in the message */
    } cases[] = {
        {T(""), "ends too early"},
        {T("  "), "ends too early"},
        {T("\xEF\xBB\xBF{}"), "a value is expected at line 1, column 1"},
        {T("nul"), "a value is expected"},
        {T("True"), "a value is expected"},
        {T("NaN"), "a value is expected"},
        {T("Infinity"), "a value is expected"},
        {T("-Infinity"), "without digits"},
        {T("'a'"), "a value is expected"},
        {T("/* c */ 1"), "a value is expected"},
        {T("1 // c"), "something follows"},
        {T("1 2"), "something follows"},
        {T("{}x"), "something follows"},
        {T("{}\0"), "something follows"},
        {T("[1]]"), "something follows"},
        {T("nullx"), "something follows"},
        {T("\0"), "a value is expected"},
        {T("\v1"), "a value is expected"},
        {T("007"), "leading zero"},
        {T("-01"), "leading zero"},
        {T("1."), "ends with its point"},
        {T("1.e5"), "ends with its point"},
        {T(".5"), "a value is expected"},
        {T("+1"), "a value is expected"},
        {T("-"), "without digits"},
        {T("1e"), "empty exponent"},
        {T("1e+"), "empty exponent"},
        {T("0x10"), "something follows"},
        {T("1e400"), "beyond a double's range"},
        {T("[-1e999]"), "beyond a double's range"},
        {T("1234567890123456789012345678901234567890123456789012345678901234"), "63 characters"},
        {T("\"abc"), "a string without its end at line 1, column 1"},
        {T("\""), "a string without its end"},
        {T("\"\\\""), "a string without its end"},
        {T("\"\\"), "unknown escape"},
        {T("\"a\nb\""), "raw control character"},
        {T("\"a\tb\""), "raw control character"},
        {T("\"a\0b\""), "raw control character"},
        {T("\"\x1F\""), "raw control character"},
        {T("\"\\x41\""), "unknown escape"},
        {T("\"\\a\""), "unknown escape"},
        {T("\"\\U0041\""), "unknown escape"},
        {T("\"\\\0\""), "unknown escape"},
        {T("\"\\u12\""), "four hex digits"},
        {T("\"\\u12"), "four hex digits"},
        {T("\"\\u"), "four hex digits"},
        {T("\"\\u00G0\""), "four hex digits"},
        {T("\"\\u-001\""), "four hex digits"},
        {T("\"\\u0000\""), "\\u0000 is not allowed"},
        {T("{\"a\\u0000b\":1}"), "\\u0000 is not allowed"},
        {T("\"\\ud800\""), "half a surrogate pair"},
        {T("\"\\udc00\""), "half a surrogate pair"},
        {T("\"\\ud800\\u0041\""), "half a surrogate pair"},
        {T("\"\\ud800\\ud800\""), "half a surrogate pair"},
        {T("\"\\ud800\\ude0"), "half a surrogate pair"},
        {T("\"\\ud800xudc00\""), "half a surrogate pair"},
        {T("\"\x80\""), "invalid UTF-8"},
        {T("\"\xC0\x80\""), "invalid UTF-8"},
        {T("\"\xC1\xBF\""), "invalid UTF-8"},
        {T("\"\xE0\x9F\xBF\""), "invalid UTF-8"},
        {T("\"\xED\xA0\x80\""), "invalid UTF-8"},
        {T("\"\xF0\x8F\xBF\xBF\""), "invalid UTF-8"},
        {T("\"\xF4\x90\x80\x80\""), "invalid UTF-8"},
        {T("\"\xF5\x80\x80\x80\""), "invalid UTF-8"},
        {T("\"\xE2\x82\""), "invalid UTF-8"},
        {T("\"\xE2\x82"), "invalid UTF-8"},
        {T("{\"\xFF\":1}"), "invalid UTF-8"},
        {T("["), "ends too early"},
        {T("[1"), "a comma or ] is expected"},
        {T("[1,"), "ends too early"},
        {T("[1,]"), "a value is expected"},
        {T("[,1]"), "a value is expected"},
        {T("[1 2]"), "a comma or ] is expected"},
        {T("[1}"), "a comma or ] is expected"},
        {T("]"), "a value is expected"},
        {T("{"), "a key in quotes"},
        {T("{\"a\""), "a colon is expected"},
        {T("{\"a\":"), "ends too early"},
        {T("{\"a\":1"), "a comma or } is expected"},
        {T("{\"a\":1,}"), "a key in quotes"},
        {T("{\"a\":1]"), "a comma or } is expected"},
        {T("{\"a\" 1}"), "a colon is expected"},
        {T("{\"a\":}"), "a value is expected"},
        {T("{a:1}"), "a key in quotes"},
        {T("{1:1}"), "a key in quotes"},
        {T("{,}"), "a key in quotes"},
        {T("{\n  \"a\": 1,\n  \"b\": 01\n}"), "at line 3, column 8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *tree = (cJSON *)&tree; /* must be cleared */
        struct error err = {0};
        int rc = parse(&tree, cases[i].text.s, cases[i].text.n, &wide, &err);
        if (rc == CFG_OK) fail_msg("taken: %s", cases[i].text.s);
        assert_int_equal(rc, CFG_EINVAL);
        assert_int_equal(err.code, CFG_EINVAL);
        assert_null(tree);
        if (!strstr(err.message, cases[i].why) || strncmp(err.message, "invalid JSON: ", 14) != 0)
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].text.s, err.message, cases[i].why);
    }
}

static void test_every_prefix_refused(void **state)
{
    (void)state;
    static const char text[] =
        "{\"k\":[1.5e1,\"x\\u00e9\\ud83d\\ude00\xC3\xA9\",{\"t\":true},null]}";
    for (size_t n = 0; n < sizeof text - 1; n++) {
        cJSON *tree;
        struct error err;
        assert_int_equal(parse(&tree, text, n, &wide, &err), CFG_EINVAL);
    }
    cJSON *tree;
    struct error err;
    assert_int_equal(parse(&tree, text, sizeof text - 1, &wide, &err), CFG_OK);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(tree, "k");
    assert_true(cJSON_GetArrayItem(list, 0)->valuedouble == 15.0);
    assert_string_equal(cJSON_GetArrayItem(list, 1)->valuestring,
                        "x\xC3\xA9\xF0\x9F\x98\x80\xC3\xA9");
    cJSON_Delete(tree);
}

static void expect_duplicate(const char *text, const char *quoted)
{
    cJSON *tree;
    struct error err;
    assert_int_equal(parse(&tree, text, strlen(text), &wide, &err), CFG_EINVAL);
    assert_null(tree);
    if (!strstr(err.message, quoted) || !strstr(err.message, "stands twice"))
        fail_msg("%s: %s", text, err.message);
}

static void test_duplicate_keys(void **state)
{
    (void)state;
    expect_duplicate("{\"a\":1,\"a\":2}", "\"a\"");
    expect_duplicate("{\"a\":1,\"b\":2,\"\\u0061\":2}", "\"a\"");
    expect_duplicate("[{\"x\":{\"\":1,\"\":2}}]", "\"\"");
    expect_duplicate("{\"o\":{\"in\":[1,{\"dup\":1,\"dup\":1}]},\"z\":1}", "\"dup\"");

    /* A long key is cut between characters. */
    char long_keys[512] = "{\"";
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 40; i++) strcat(long_keys, i ? "\xC3\xA9" : "x");
        strcat(long_keys, k ? "\":1}" : "\":1,\"");
    }
    cJSON *tree;
    struct error err;
    assert_int_equal(parse(&tree, long_keys, strlen(long_keys), &wide, &err), CFG_EINVAL);
    assert_true(cfg_utf8_valid(err.message, strlen(err.message)));
    assert_non_null(strstr(err.message, "\"... stands twice"));
}

/* Objects on both sides of the bound between comparing pairs and sorting, with the equal keys
 * first, last or absent. */
static void test_duplicates_in_large_objects(void **state)
{
    (void)state;
    static const int sizes[] = {2, 15, 16, 17, 18, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        const int equals[] = {-1, 0, n - 1};
        for (int e = 0; e < 3; e++) {
            int equal = equals[e];
            struct cfg_buf b = {0};
            for (int i = 0; i < n; i++)
                cfg_buf_printf(&b, "%s\"key%d\":0", i ? "," : "{", i * 7919 % 10007);
            if (equal >= 0) cfg_buf_printf(&b, ",\"key%d\":1", equal * 7919 % 10007);
            cfg_buf_puts(&b, "}");
            assert_false(b.failed);
            cJSON *tree;
            struct error err;
            int rc = parse(&tree, b.data, b.len, &wide, &err);
            assert_int_equal(rc, equal >= 0 ? CFG_EINVAL : CFG_OK);
            if (rc == CFG_OK) assert_int_equal(cJSON_GetArraySize(tree), n);
            cJSON_Delete(tree);
            cfg_buf_free(&b);
        }
    }
}

static int parse_with(const char *text, size_t bytes, size_t values, int depth, struct error *err)
{
    struct cfg_json_limits limits = {bytes, values, depth};
    cJSON *tree;
    int rc = parse(&tree, text, strlen(text), &limits, err);
    assert_true((rc == CFG_OK) == (tree != NULL));
    cJSON_Delete(tree);
    return rc;
}

static void test_limits(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(parse_with("[1,2]", 5, 3, 1, &err), CFG_OK);
    assert_int_equal(parse_with("[1,2]", 4, 3, 1, &err), CFG_EINVAL);
    assert_string_equal(err.message, "invalid JSON: longer than 4 bytes");
    assert_int_equal(parse_with("[1,2]", 5, 2, 1, &err), CFG_EINVAL);
    assert_string_equal(err.message, "invalid JSON: too many values at line 1, column 4");
    assert_int_equal(parse_with("[1,2]", 5, 3, 0, &err), CFG_EINVAL);
    assert_string_equal(err.message, "invalid JSON: nested too deeply at line 1, column 1");
    assert_int_equal(parse_with("1", 5, 1, 0, &err), CFG_OK);
    assert_int_equal(parse_with("{\"a\":[]}", 50, 9, 2, &err), CFG_OK);
    assert_int_equal(parse_with("{\"a\":[]}", 50, 9, 1, &err), CFG_EINVAL);
    assert_int_equal(parse_with("[[],[],{}]", 50, 9, 2, &err), CFG_OK); /* side by side */
}

/* No limit that is asked for lets the parser's own depth be reached. */
static void test_depth_is_capped(void **state)
{
    (void)state;
    struct cfg_json_limits limits = {1 << 20, 1 << 20, 100000};
    for (int depth = 900; depth <= 901; depth++) {
        char text[1802];
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        cJSON *tree;
        struct error err;
        int rc = parse(&tree, text, (size_t)depth * 2, &limits, &err);
        assert_int_equal(rc, depth == 900 ? CFG_OK : CFG_EINVAL);
        cJSON_Delete(tree);
    }
}

static void test_numbers_arrive(void **state)
{
    (void)state;
    static const char text[] = "[9007199254740993, 2147483648, -1.25, 1e-400, 0.1]";
    cJSON *tree;
    struct error err;
    assert_int_equal(parse(&tree, text, sizeof text - 1, &wide, &err), CFG_OK);
    static const double want[] = {9007199254740992.0, 2147483648.0, -1.25, 0.0, 0.1};
    for (int i = 0; i < 5; i++) assert_true(cJSON_GetArrayItem(tree, i)->valuedouble == want[i]);
    cJSON_Delete(tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_every_prefix_refused),
        cmocka_unit_test(test_duplicate_keys),
        cmocka_unit_test(test_duplicates_in_large_objects),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_depth_is_capped),
        cmocka_unit_test(test_numbers_arrive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
