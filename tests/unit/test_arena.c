// SPDX-License-Identifier: Apache-2.0
//
// test_arena.c: the leaf services of config/: arena, buffer, UTF-8, errors, files, and the log,
// whose lines are read back from a file that stands in for stderr.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"

/* ---- arena ----------------------------------------------------------------------------------- */

static void test_arena_pieces(void **state)
{
    (void)state;
    struct cfg_arena *a = cfg_arena_new(1 << 20);
    assert_non_null(a);
    assert_int_equal(cfg_arena_used(a), 0);
    enum { N = 300 };
    unsigned char *pieces[N];
    size_t sizes[N], sum = 0;
    for (size_t i = 0; i < N; i++) { /* small and big ones in turn, over many chunks */
        sizes[i] = i % 10 == 9 ? 5000 + i * 17 : i * 3;
        pieces[i] = cfg_arena_alloc(a, sizes[i]);
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(pieces[i][k], 0);
        memset(pieces[i], (int)(i % 255) + 1, sizes[i]);
        sum += sizes[i];
    }
    for (size_t i = 0; i < N; i++) { /* nobody wrote over anybody */
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(pieces[i][k], (unsigned char)(i % 255 + 1));
    }
    assert_true(cfg_arena_used(a) >= sum && cfg_arena_used(a) <= sum + N * 16);
    cfg_arena_free(a);
    cfg_arena_free(NULL);
}

static void test_arena_cap(void **state)
{
    (void)state;
    struct cfg_arena *a = cfg_arena_new(1000);
    assert_null(cfg_arena_alloc(a, 1001));
    assert_null(cfg_arena_alloc(a, SIZE_MAX));
    assert_null(cfg_arena_alloc(a, SIZE_MAX - 8)); /* rounding up would wrap */
    assert_int_equal(cfg_arena_used(a), 0);
    for (int i = 0; i < 62; i++) assert_non_null(cfg_arena_alloc(a, 16)); /* 992 of 1000 */
    assert_null(cfg_arena_alloc(a, 9));
    assert_null(cfg_arena_alloc(a, 1)); /* takes 16 like any other */
    assert_int_equal(cfg_arena_used(a), 992);
    cfg_arena_free(a);

    a = cfg_arena_new(SIZE_MAX);
    assert_null(cfg_arena_alloc(a, SIZE_MAX - 4));
    assert_null(cfg_arena_strndup(a, "x", SIZE_MAX));
    void *first = cfg_arena_alloc(a, 0);
    assert_non_null(first);
    assert_ptr_not_equal(first, cfg_arena_alloc(a, 0));
    cfg_arena_free(a);
}

static void test_arena_strndup(void **state)
{
    (void)state;
    struct cfg_arena *a = cfg_arena_new(64);
    static const char text[] = {'a', '\0', 'b', 'c'}; /* not terminated */
    char *copy = cfg_arena_strndup(a, text, 4);
    assert_memory_equal(copy, "a\0bc", 5);
    assert_string_equal(cfg_arena_strndup(a, NULL, 0), "");
    assert_null(cfg_arena_strndup(a, "0123456789012345678901234567890123", 34));
    cfg_arena_free(a);
}

/* ---- buffer ---------------------------------------------------------------------------------- */

static void test_buf_grows(void **state)
{
    (void)state;
    struct cfg_buf b = {0};
    cfg_buf_append(&b, NULL, 0);
    assert_string_equal(b.data, "");
    char want[3000] = "";
    size_t n = 0;
    for (int i = 0; i < 200; i++) {
        cfg_buf_printf(&b, "%d,", i);
        n += (size_t)sprintf(want + n, "%d,", i);
        cfg_buf_puts(&b, "xyz");
        n += (size_t)sprintf(want + n, "xyz");
        assert_int_equal(b.len, n);
        assert_int_equal(b.data[b.len], '\0');
    }
    assert_string_equal(b.data, want);
    cfg_buf_append(&b, "\0\1", 2);
    assert_int_equal(b.len, n + 2);
    assert_memory_equal(b.data + n, "\0\1\0", 3);
    assert_false(b.failed);
    cfg_buf_free(&b);
    assert_null(b.data);
    assert_int_equal(b.len + b.cap, 0);

    cfg_buf_printf(&b, "%*d", 5000, 7); /* one piece larger than any room so far */
    assert_int_equal(b.len, 5000);
    assert_int_equal(b.data[4999], '7');
    for (int n_exact = 0; n_exact < 200; n_exact++) { /* at and around the edge of the room */
        b.len = 0;
        cfg_buf_printf(&b, "%0*d", n_exact + 1, 1);
        assert_int_equal(strlen(b.data), n_exact + 1);
    }
    cfg_buf_free(&b);
}

static void test_buf_failure_sticks(void **state)
{
    (void)state;
    struct cfg_buf b = {0};
    cfg_buf_puts(&b, "kept");
    cfg_buf_append(&b, "x", SIZE_MAX - 2); /* refused before a byte is read */
    assert_true(b.failed);
    cfg_buf_puts(&b, "more");
    cfg_buf_printf(&b, "%d", 1);
    cfg_buf_json_string(&b, "s", 1);
    assert_int_equal(b.len, 4);
    assert_string_equal(b.data, "kept");
    cfg_buf_free(&b);
    assert_false(b.failed);
}

static void check_json_string(const char *s, size_t n, const char *want)
{
    struct cfg_buf b = {0};
    cfg_buf_json_string(&b, s, n);
    assert_string_equal(b.data, want);
    cfg_buf_free(&b);
}

static void test_buf_json_string(void **state)
{
    (void)state;
    check_json_string("", 0, "\"\"");
    check_json_string("plain / text", 12, "\"plain / text\"");
    check_json_string("a\"b\\c", 5, "\"a\\\"b\\\\c\"");
    check_json_string("\b\t\n\f\r", 5, "\"\\b\\t\\n\\f\\r\"");
    check_json_string("\0\v\x1F\x7F", 4, "\"\\u0000\\u000b\\u001f\\u007f\"");
    check_json_string("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 9,
                      "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
    check_json_string("a\xFFz", 3, "\"a\xEF\xBF\xBDz\"");
    check_json_string("\xE2\x82", 2, "\"\xEF\xBF\xBD\"");             /* one cut character */
    check_json_string("\xE2\x82\"", 3, "\"\xEF\xBF\xBD\\\"\"");       /* does not eat the quote */
    check_json_string("\xC0\x80", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\""); /* never valid: two errors */
}

/* Whatever the bytes, the result is strict JSON, and valid text comes back unchanged. */
static void test_buf_json_string_is_strict(void **state)
{
    (void)state;
    static const struct cfg_json_limits limits = {4096, 4, 4};
    uint32_t random = 1;
    for (int round = 0; round < 2000; round++) {
        char s[24];
        size_t n = (size_t)round % (sizeof s + 1);
        for (size_t i = 0; i < n; i++) {
            random = random * 1664525 + 1013904223;
            s[i] = (char)(round % 2 ? random >> 24 : 1 + (random >> 25) % 127);
        }
        struct cfg_buf b = {0};
        cfg_buf_json_string(&b, s, n);
        assert_true(cfg_utf8_valid(b.data, b.len));
        if (memchr(s, 0, n) == NULL) { /* the parser refuses \u0000 */
            cJSON *tree;
            struct error err;
            if (cfg_json_parse(&tree, b.data, b.len, &limits, &err) != CFG_OK)
                fail_msg("%s: %s", b.data, err.message);
            if (cfg_utf8_valid(s, n)) {
                assert_int_equal(strlen(tree->valuestring), n);
                assert_memory_equal(tree->valuestring, s, n);
            }
            cJSON_Delete(tree);
        }
        cfg_buf_free(&b);
    }
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* Encodes like UTF-8 without any of its prohibitions. */
static size_t encode(uint32_t c, size_t len, char out[4])
{
    static const unsigned char first[] = {0, 0, 0xC0, 0xE0, 0xF0};
    if (len == 1) {
        out[0] = (char)c;
        return 1;
    }
    for (size_t i = len - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(first[len] | c);
    return len;
}

static void test_utf8_every_code_point(void **state)
{
    (void)state;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    static const uint32_t past[] = {0, 0x80, 0x800, 0x10000, 0x140000};
    for (size_t len = 1; len <= 4; len++) {
        for (uint32_t c = 0; c < past[len]; c++) {
            char s[4];
            size_t n = encode(c, len, s);
            bool good = c >= least[len] && (c < 0xD800 || c > 0xDFFF) && c <= 0x10FFFF;
            if (cfg_utf8_valid(s, n) != good) fail_msg("%zu bytes, U+%04X", n, c);
            for (size_t cut = 1; good && cut < n; cut++) {
                if (cfg_utf8_valid(s, cut) || cfg_utf8_complete(s, cut) != 0)
                    fail_msg("U+%04X cut at %zu", c, cut);
            }
            if (good && cfg_utf8_complete(s, n) != n) fail_msg("U+%04X", c);
        }
    }
}

static void test_utf8_complete(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        size_t n, want;
    } cases[] = {
        {"", 0, 0},
        {"abc", 3, 3},
        {"ab\xC3", 3, 2},
        {"ab\xE2\x82", 4, 2},
        {"ab\xF0\x9F\x98", 5, 2},
        {"ab\xF0\x9F\x98\x80", 6, 6},
        {"\xC3\xA9\xC3", 3, 2},
        {"a\xFF", 2, 2},             /* can never become a character: not held back */
        {"a\xC0", 2, 2},             /* nor can these */
        {"a\xED\xA0", 3, 3},         /* a surrogate */
        {"a\xE0\x80", 3, 3},         /* overlong */
        {"a\xF5\x80\x80", 4, 4},     /* past the last plane */
        {"a\x80\x80\x80\x80", 5, 5}, /* stray continuation bytes */
        {"\x80", 1, 1},
        {"\xC3\xA9\x80", 3, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(cfg_utf8_complete(cases[i].s, cases[i].n), cases[i].want);
    assert_true(cfg_utf8_valid("", 0));
    assert_true(cfg_utf8_valid("a\0b", 3));
    assert_false(cfg_utf8_valid("a\x80", 2));
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void test_errors(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(cfg_fail(&err, CFG_EIO, "disk %d", 7), CFG_EIO);
    assert_int_equal(err.code, CFG_EIO);
    assert_string_equal(err.message, "disk 7");
    /* Words around the message that is already there. */
    assert_int_equal(cfg_fail(&err, CFG_EINVAL, "%s: %s!", "file", err.message), CFG_EINVAL);
    assert_string_equal(err.message, "file: disk 7!");

    char text[1200];
    size_t n = 0;
    for (; n + 2 < sizeof text; n += 2) memcpy(text + n, "\xC3\xA9", 3);
    cfg_fail(&err, CFG_EINVAL, "%s", text);
    assert_int_equal(strlen(err.message), 510); /* of 511: no half character */
    assert_true(cfg_utf8_valid(err.message, strlen(err.message)));
}

/* ---- files ----------------------------------------------------------------------------------- */

static void test_read_file(void **state)
{
    (void)state;
    char folder[] = "/tmp/openmoed-file-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[64], fifo[64];
    snprintf(path, sizeof path, "%s/data", folder);
    snprintf(fifo, sizeof fifo, "%s/fifo", folder);

    enum { N = 40000 }; /* several blocks */
    char *bytes = malloc(N);
    assert_non_null(bytes);
    for (int i = 0; i < N; i++) bytes[i] = (char)(i * 31);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, N, f), N);
    fclose(f);

    char *data = NULL;
    size_t n = 0;
    struct error err;
    assert_int_equal(cfg_read_file(path, N, &data, &n, &err), CFG_OK);
    assert_int_equal(n, N);
    assert_memory_equal(data, bytes, N);
    assert_int_equal(data[N], '\0');
    free(data);
    free(bytes);
    assert_int_equal(cfg_read_file(path, N - 1, &data, &n, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "larger than 39999 bytes"));
    assert_non_null(strstr(err.message, path));

    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(cfg_read_file(path, 0, &data, &n, &err), CFG_OK);
    assert_int_equal(n, 0);
    assert_string_equal(data, "");
    free(data);
    unlink(path);

    assert_int_equal(cfg_read_file(path, 10, &data, &n, &err), CFG_ENOTFOUND);
    assert_non_null(strstr(err.message, "No such file"));
    assert_int_equal(cfg_read_file(folder, 10, &data, &n, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "not a regular file"));
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(cfg_read_file(fifo, 10, &data, &n, &err), CFG_EINVAL); /* does not wait */
    unlink(fifo);
    rmdir(folder);

    /* A file that claims no size is read for what it holds, up to the limit. */
    assert_int_equal(cfg_read_file("/proc/self/status", 1 << 20, &data, &n, &err), CFG_OK);
    assert_true(n > 100);
    free(data);
    assert_int_equal(cfg_read_file("/proc/self/status", 100, &data, &n, &err), CFG_EINVAL);
}

/* ---- log ------------------------------------------------------------------------------------- */

struct capture {
    FILE *file;
    int kept; /* the true stderr */
};

static struct capture capture_begin(void)
{
    struct capture c = {tmpfile(), dup(STDERR_FILENO)};
    assert_non_null(c.file);
    fcntl(fileno(c.file), F_SETFL, O_APPEND);
    dup2(fileno(c.file), STDERR_FILENO);
    return c;
}

/* NUL-terminated, the caller's; back to the defaults. */
static char *capture_end(struct capture c)
{
    dup2(c.kept, STDERR_FILENO);
    close(c.kept);
    cfg_log_setup(CFG_LOG_INFO, CFG_LOG_TEXT);
    long size = lseek(fileno(c.file), 0, SEEK_END);
    char *text = calloc(1, (size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(pread(fileno(c.file), text, (size_t)size, 0), size);
    fclose(c.file);
    return text;
}

/* "2026-11-22T05:12:33.123Z" with any digits. */
static bool is_time(const char *s)
{
    static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ";
    for (size_t i = 0; i < sizeof shape - 1; i++) {
        if (shape[i] == 'd' ? s[i] < '0' || s[i] > '9' : s[i] != shape[i]) return false;
    }
    return true;
}

enum { TIME = 24 };

static void test_log_text(void **state)
{
    (void)state;
    struct capture c = capture_begin();
    cfg_log_setup(CFG_LOG_DEBUG, CFG_LOG_TEXT);
    cfg_log(CFG_LOG_DEBUG, "quiet");
    cfg_log(CFG_LOG_INFO, "port=%d \"quoted\" \\ \xC3\xA9", 8000);
    cfg_log(CFG_LOG_WARN, "forged\n2026-01-01T00:00:00.000Z ERROR\r\t\x1b[31m\x7f");
    cfg_log(CFG_LOG_ERROR, "bad \xFF\xE2\x82 end \xC2\x9B"
                           "1m");
    char *text = capture_end(c);
    static const char *const want[] = {
        " DEBUG quiet",
        " INFO port=8000 \"quoted\" \\ \xC3\xA9",
        " WARN forged\\n2026-01-01T00:00:00.000Z ERROR\\r\\t\\x1b[31m\\x7f",
        " ERROR bad \xEF\xBF\xBD\xEF\xBF\xBD end \\x9b1m",
    };
    const char *at = text;
    for (int i = 0; i < 4; i++) {
        assert_true(is_time(at));
        at += TIME;
        if (strncmp(at, want[i], strlen(want[i])) != 0) fail_msg("%s", at);
        at += strlen(want[i]);
        assert_int_equal(*at++, '\n');
    }
    assert_int_equal(*at, '\0');
    free(text);
}

/* Also where the line can't be written: callers log before they look at errno. */
static void test_log_keeps_errno(void **state)
{
    (void)state;
    int kept = dup(STDERR_FILENO);
    close(STDERR_FILENO);
    errno = EDOM;
    cfg_log(CFG_LOG_ERROR, "lost");
    int after = errno;
    dup2(kept, STDERR_FILENO);
    close(kept);
    assert_int_equal(after, EDOM);
}

static void test_log_json(void **state)
{
    (void)state;
    static const char message[] = "a \"b\" \\ \n\r\t\x01 \xC3\xA9 \xC2\x85 100%";
    struct capture c = capture_begin();
    cfg_log_setup(CFG_LOG_INFO, CFG_LOG_JSON);
    cfg_log(CFG_LOG_WARN, "%s", message);
    char *text = capture_end(c);
    size_t n = strlen(text);
    assert_int_equal(text[n - 1], '\n');
    assert_ptr_equal(strchr(text, '\n'), text + n - 1);
    static const struct cfg_json_limits limits = {8192, 10, 2};
    cJSON *line;
    struct error err;
    if (cfg_json_parse(&line, text, n, &limits, &err) != CFG_OK) fail_msg("%s", err.message);
    assert_int_equal(cJSON_GetArraySize(line), 3);
    assert_true(is_time(cJSON_GetObjectItemCaseSensitive(line, "time")->valuestring));
    assert_string_equal(cJSON_GetObjectItemCaseSensitive(line, "level")->valuestring, "warn");
    assert_string_equal(cJSON_GetObjectItemCaseSensitive(line, "message")->valuestring, message);
    cJSON_Delete(line);
    free(text);
}

static void test_log_levels(void **state)
{
    (void)state;
    for (int level = CFG_LOG_DEBUG; level <= CFG_LOG_ERROR; level++) {
        struct capture c = capture_begin();
        cfg_log_setup((enum cfg_log_level)level, CFG_LOG_TEXT);
        for (int l = CFG_LOG_DEBUG; l <= CFG_LOG_ERROR; l++) {
            cfg_log((enum cfg_log_level)l, "x");
            assert_int_equal(cfg_log_enabled((enum cfg_log_level)l), l >= level);
        }
        char *text = capture_end(c);
        int lines = 0;
        for (const char *s = text; *s; s++) lines += *s == '\n';
        assert_int_equal(lines, CFG_LOG_ERROR - level + 1);
        free(text);
    }
    assert_false(cfg_log_enabled(CFG_LOG_DEBUG)); /* the defaults that capture_end sets */
    assert_true(cfg_log_enabled(CFG_LOG_INFO));
}

/* A long message is cut with a mark, and stays one valid line in both formats. */
static void test_log_long(void **state)
{
    (void)state;
    static char message[20000];
    for (int format = CFG_LOG_TEXT; format <= CFG_LOG_JSON; format++) {
        for (int kind = 0; kind < 3; kind++) {
            for (size_t i = 0; i + 2 < sizeof message; i += 2)
                memcpy(message + i, kind == 0 ? "\xC3\xA9" : kind == 1 ? "\n\x01" : "xy", 2);
            struct capture c = capture_begin();
            cfg_log_setup(CFG_LOG_INFO, (enum cfg_log_format)format);
            cfg_log(CFG_LOG_INFO, "%s", message);
            cfg_log(CFG_LOG_INFO, "next");
            char *text = capture_end(c);
            size_t n = strcspn(text, "\n");
            assert_in_range(n, 3000, 4095);
            assert_true(cfg_utf8_valid(text, n));
            const char *end = format == CFG_LOG_JSON ? "...\"}" : "...";
            assert_memory_equal(text + n - strlen(end), end, strlen(end));
            assert_non_null(strstr(text + n, "next"));
            free(text);
        }
    }
}

enum { THREADS = 4, LINES = 200 };

static void *log_lines(void *arg)
{
    for (int i = 0; i < LINES; i++)
        cfg_log(CFG_LOG_INFO, "thread=%d line=%d %0*d", *(int *)arg, i, 50 + i, 0);
    return NULL;
}

static void test_log_threads(void **state)
{
    (void)state;
    struct capture c = capture_begin();
    pthread_t threads[THREADS];
    int ids[THREADS];
    for (int t = 0; t < THREADS; t++) {
        ids[t] = t;
        assert_int_equal(pthread_create(&threads[t], NULL, log_lines, &ids[t]), 0);
    }
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
    char *text = capture_end(c);
    int next[THREADS] = {0};
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        int thread = -1, number = -1, used = 0;
        assert_true(is_time(line));
        assert_int_equal(sscanf(line + TIME, " INFO thread=%d line=%d %n", &thread, &number, &used),
                         2);
        assert_in_range(thread, 0, THREADS - 1);
        assert_int_equal(number, next[thread]++); /* whole and in order for each thread */
        const char *zeros = line + TIME + used;
        assert_int_equal(strspn(zeros, "0"), 50 + number);
        assert_int_equal(zeros[50 + number], '\0');
    }
    for (int t = 0; t < THREADS; t++) assert_int_equal(next[t], LINES);
    free(text);
}

static void test_clock(void **state)
{
    (void)state;
    double before = cfg_now();
    usleep(2000);
    assert_true(cfg_now() - before >= 0.002);
}

/* SipHash-1-3 of 0, 1, 2 ... under the key 0, 1, ... 15: bytes and words agree, and every input
 * counts. */
static void test_hash(void **state)
{
    (void)state;
    const uint64_t key[2] = {0x0706050403020100u, 0x0f0e0d0c0b0a0908u},
                   other[2] = {key[0], key[1] ^ 1};
    unsigned char bytes[16];
    uint64_t seen[17];
    for (int i = 0; i < 16; i++) bytes[i] = (unsigned char)i;
    for (size_t n = 0; n <= 16; n++) {
        struct cfg_sip s = cfg_sip_start(key), t = cfg_sip_start(other);
        cfg_sip_bytes(&s, bytes, n);
        cfg_sip_bytes(&t, bytes, n);
        seen[n] = cfg_sip_end(&s);
        assert_true(seen[n] != cfg_sip_end(&t));
        for (size_t i = 0; i < n; i++) assert_true(seen[i] != seen[n]);
    }
    struct cfg_sip s = cfg_sip_start(key);
    cfg_sip_word(&s, 0x0706050403020100u);
    cfg_sip_word(&s, (uint64_t)8 << 56);
    assert_true(cfg_sip_end(&s) == seen[8]);
    assert_true(seen[0] == 0xabac0158050fc4dcu); /* the published vector of the empty input */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_pieces),
        cmocka_unit_test(test_arena_cap),
        cmocka_unit_test(test_arena_strndup),
        cmocka_unit_test(test_buf_grows),
        cmocka_unit_test(test_buf_failure_sticks),
        cmocka_unit_test(test_buf_json_string),
        cmocka_unit_test(test_buf_json_string_is_strict),
        cmocka_unit_test(test_utf8_every_code_point),
        cmocka_unit_test(test_utf8_complete),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_read_file),
        cmocka_unit_test(test_log_text),
        cmocka_unit_test(test_log_keeps_errno),
        cmocka_unit_test(test_log_json),
        cmocka_unit_test(test_log_levels),
        cmocka_unit_test(test_log_long),
        cmocka_unit_test(test_log_threads),
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
