// SPDX-License-Identifier: Apache-2.0
//
// test_log_fields.c: lines with fields: both formats, quotes where they are needed, values that try
// to forge fields or lines, and what is cut when there is too much.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/config.h"

/* What one call writes to stderr; the caller's. */
static char *logged(enum cfg_log_format format, const struct cfg_log_field *fields, size_t n)
{
    FILE *f = tmpfile();
    assert_non_null(f);
    int kept = dup(STDERR_FILENO);
    dup2(fileno(f), STDERR_FILENO);
    cfg_log_setup(CFG_LOG_INFO, format);
    errno = EDOM;
    cfg_log_fields(CFG_LOG_DEBUG, "not this", fields, n);
    cfg_log_fields(CFG_LOG_WARN, "a \"message\"", fields, n);
    int after = errno;
    cfg_log_setup(CFG_LOG_INFO, CFG_LOG_TEXT);
    dup2(kept, STDERR_FILENO);
    close(kept);
    assert_int_equal(after, EDOM);
    long size = lseek(fileno(f), 0, SEEK_END);
    char *text = calloc(1, (size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(pread(fileno(f), text, (size_t)size, 0), size);
    fclose(f);
    assert_ptr_equal(strchr(text, '\n'), text + size - 1);
    return text;
}

static const struct cfg_log_field samples[] = {
    {"path", "/v1/models", false},
    {"count", "12", true},
    {"seconds", "0.250000", true},
    {"empty", "", false},
    {"blank", "a b", false},
    {"forged", "x status=200", false},
    {"quotes", "say \"hi\" \\", false},
    {"lines", "a\n2026-01-01T00:00:00.000Z ERROR\x1b[31m", false},
    {"accent", "caf\xC3\xA9", false},
    {"broken", "a\xFF", false},
};
enum { N_SAMPLES = sizeof samples / sizeof *samples };

static void test_text(void **state)
{
    (void)state;
    char *text = logged(CFG_LOG_TEXT, samples, N_SAMPLES);
    assert_string_equal(text + 24,
                        " WARN a \"message\" path=/v1/models count=12 seconds=0.250000 empty=\"\" "
                        "blank=\"a b\" forged=\"x status=200\" quotes=\"say \\\"hi\\\" \\\\\" "
                        "lines=\"a\\n2026-01-01T00:00:00.000Z ERROR\\x1b[31m\" "
                        "accent=\"caf\xC3\xA9\" broken=\"a\xEF\xBF\xBD\"\n");
    free(text);
}

static cJSON *parsed(const char *text)
{
    static const struct cfg_json_limits limits = {8192, 100, 2};
    cJSON *line = NULL;
    struct error err;
    if (cfg_json_parse(&line, text, strlen(text), &limits, &err) != CFG_OK)
        fail_msg("%s: %s", err.message, text);
    return line;
}

static void test_json(void **state)
{
    (void)state;
    char *text = logged(CFG_LOG_JSON, samples, N_SAMPLES);
    cJSON *line = parsed(text);
    assert_int_equal(cJSON_GetArraySize(line), 3 + N_SAMPLES);
    assert_string_equal(cJSON_GetObjectItemCaseSensitive(line, "message")->valuestring,
                        "a \"message\"");
    for (int i = 0; i < N_SAMPLES; i++) {
        const cJSON *v = cJSON_GetArrayItem(line, 3 + i);
        assert_string_equal(v->string, samples[i].key);
        if (samples[i].figure)
            assert_true(v->valuedouble == strtod(samples[i].value, NULL));
        else if (strcmp(v->string, "broken") == 0)
            assert_string_equal(v->valuestring, "a\xEF\xBF\xBD");
        else
            assert_string_equal(v->valuestring, samples[i].value);
    }
    cJSON_Delete(line);
    free(text);
}

static void test_too_much(void **state)
{
    (void)state;
    static char much[5000];
    memset(much, '\n', sizeof much - 1);
    const struct cfg_log_field fields[] = {
        {"first", "kept", false}, {"much", much, false}, {"last", "left out", false}};
    char *text = logged(CFG_LOG_TEXT, fields, 3);
    assert_non_null(strstr(text, " first=kept much=\"\\n\\n"));
    assert_string_equal(text + strlen(text) - 7, "\\n...\"\n");
    assert_true(strlen(text) <= 4096);
    free(text);
    text = logged(CFG_LOG_JSON, fields, 3);
    cJSON *line = parsed(text);
    assert_int_equal(cJSON_GetArraySize(line), 5);
    cJSON_Delete(line);
    free(text);

    /* many that are small: the line ends where a whole one no longer fits */
    struct cfg_log_field many[400];
    for (size_t i = 0; i < 400; i++) many[i] = (struct cfg_log_field){"a", "123456789", true};
    text = logged(CFG_LOG_JSON, many, 400);
    assert_true(strlen(text) > 4000 && strlen(text) <= 4096);
    assert_string_equal(text + strlen(text) - 16, ",\"a\":123456789}\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_too_much),
    };
    return cmocka_run_group_tests_name("log_fields", tests, NULL, NULL);
}
