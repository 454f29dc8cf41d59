// SPDX-License-Identifier: Apache-2.0
//
// test_chatload.c: the pure parts of the load generator: that distributions keep their bounds,
// means and seeds; that percentiles are those of the samples; that an event stream means the same
// however it is cut; that the chunk scanner reads what cJSON would read, and refuses what is not
// JSON.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/load.h"

/* ---- distributions --------------------------------------------------------------------------- */

static struct load_dist dist(const char *text)
{
    struct load_dist d = {0};
    struct error err = {0};
    if (load_dist_parse(&d, text, &err)) fail_msg("%s: %s", text, err.message);
    return d;
}

static void test_dist_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "20",
        "fixed",
        "fixed:",
        "fixed:x",
        "fixed:-1",
        "fixed:1.5",
        "fixed:1:2",
        "fixed:1000001",
        "uniform:5",
        "uniform:5:4",
        "uniform:1:2:3",
        "uniform:1:nan",
        "lognormal:3",
        "lognormal:3:-1",
        "lognormal:inf:1",
        "normal:1:2",
        "fixed:20 ",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct load_dist d;
        struct error err = {0};
        if (load_dist_parse(&d, bad[i], &err) != CFG_EINVAL) fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(err.message, bad[i]));
    }
}

static void test_dist_draws(void **state)
{
    (void)state;
    struct load_rng rng;
    load_rng_seed(&rng, 1, 1);
    struct load_dist fixed = dist("fixed:20"), zero = dist("fixed:0");
    assert_int_equal(load_dist_draw(&fixed, &rng, 1), 20);
    assert_int_equal(load_dist_draw(&zero, &rng, 1), 1);
    assert_int_equal(load_dist_draw(&zero, &rng, 0), 0);

    struct load_dist uniform = dist("uniform:5:8");
    int seen[4] = {0};
    for (int i = 0; i < 40000; i++) {
        int x = load_dist_draw(&uniform, &rng, 1);
        assert_in_range(x, 5, 8);
        seen[x - 5]++;
    }
    for (int i = 0; i < 4; i++) assert_in_range(seen[i], 9500, 10500); /* 5 sigma are 433 */

    struct load_dist lognormal = dist("lognormal:3:0.5");
    double sum = 0;
    int below = 0;
    for (int i = 0; i < 40000; i++) {
        int x = load_dist_draw(&lognormal, &rng, 1);
        sum += x;
        below += x <= 20; /* the median is e^3 = 20.09 */
    }
    assert_true(fabs(sum / 40000 - exp(3 + 0.125)) < 0.35); /* 5 sigma are 0.30 */
    assert_in_range(below, 19900, 21400);                   /* 20 is rounded from 19.5 to 20.5 */

    struct load_dist wild = dist("lognormal:50:20");
    for (int i = 0; i < 1000; i++)
        assert_in_range(load_dist_draw(&wild, &rng, 1), 1, LOAD_DIST_MAX);
}

static void test_rng_streams(void **state)
{
    (void)state;
    struct load_rng a, b, c, d;
    load_rng_seed(&a, 7, 3);
    load_rng_seed(&b, 7, 3);
    load_rng_seed(&c, 7, 4);
    load_rng_seed(&d, 8, 3);
    double sum = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = load_rng_next(&a);
        assert_true(x == load_rng_next(&b));
        assert_true(x != load_rng_next(&c));
        assert_true(x != load_rng_next(&d));
    }
    for (int i = 0; i < 40000; i++) {
        double u = load_rng_unit(&a);
        assert_true(u >= 0 && u < 1);
        sum += load_rng_exponential(&a);
    }
    assert_true(fabs(sum / 40000 - 1) < 0.025); /* 5 sigma */
}

/* ---- histograms ------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void test_quantiles(void **state)
{
    (void)state;
    enum { N = 5000 };
    static struct load_hist h;
    static double samples[N];
    struct load_rng rng;
    load_rng_seed(&rng, 5, 0);
    double sum = 0;
    for (int i = 0; i < N; i++) {
        samples[i] = exp(20 * load_rng_unit(&rng) - 14); /* 0.8 us to 400 s */
        sum += samples[i];
        load_hist_add(&h, samples[i]);
    }
    qsort(samples, N, sizeof *samples, by_value);
    assert_true(fabs(load_hist_mean(&h) - sum / N) < 1e-9 * sum);
    static const double q[] = {0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.9999, 1};
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) {
        int rank = (int)fmax(ceil(q[i] * N), 1);
        double want = samples[rank - 1], got = load_hist_quantile(&h, q[i]);
        if (fabs(got - want) > 0.004 * want) fail_msg("q %g: %g, not %g", q[i], got, want);
    }
    assert_true(h.min == samples[0] && h.max == samples[N - 1]);
}

static void test_hist_edges(void **state)
{
    (void)state;
    static struct load_hist h;
    assert_true(isnan(load_hist_mean(&h)) && isnan(load_hist_quantile(&h, 0.5)));
    load_hist_add(&h, 0.0123456);
    assert_true(load_hist_quantile(&h, 0) == 0.0123456); /* one sample is exact */
    assert_true(load_hist_quantile(&h, 1) == 0.0123456);
    load_hist_add(&h, -1);
    load_hist_add(&h, NAN);
    assert_true(h.min == 0 && h.count == 3);
    assert_true(load_hist_quantile(&h, 0.5) == 0);
    load_hist_add(&h, 1e300); /* falls into the last bucket, keeps its value as the maximum */
    assert_true(load_hist_quantile(&h, 1) == 1e300);

    /* Every power of two's first and last value lies where it should. */
    for (int e = 7; e < LOAD_HIST_TOP; e++) {
        static struct load_hist one;
        memset(&one, 0, sizeof one);
        double low = ldexp(1, e) * 1e-9, high = (ldexp(1, e + 1) - 1) * 1e-9;
        for (int i = 0; i < 2; i++) load_hist_add(&one, low * 1.0000001);
        for (int i = 0; i < 2; i++) load_hist_add(&one, high);
        assert_true(fabs(load_hist_quantile(&one, 0.5) / low - 1) < 0.008);
        assert_true(fabs(load_hist_quantile(&one, 0.75) / high - 1) < 0.008);
    }
}

/* ---- event streams --------------------------------------------------------------------------- */

struct heard {
    char text[512]; /* the events, each followed by '|' */
    int stop_at, n;
};

static int hear(void *ctx, const char *data, size_t n)
{
    struct heard *h = ctx;
    size_t len = strlen(h->text);
    assert_true(len + n + 2 < sizeof h->text);
    snprintf(h->text + len, sizeof h->text - len, "%.*s|", (int)n, n ? data : "");
    return ++h->n == h->stop_at ? 77 : 0;
}

/* Feeds the stream in pieces of `step` bytes, each from memory that ends where the piece ends. */
static int feed(struct load_sse *sse, struct heard *h, const char *stream, size_t step)
{
    size_t n = strlen(stream);
    int rc = 0;
    for (size_t at = 0; at < n && !rc; at += step) {
        size_t len = n - at < step ? n - at : step;
        char *piece = malloc(len);
        assert_non_null(piece);
        memcpy(piece, stream + at, len);
        rc = load_sse_feed(sse, piece, len, hear, h);
        free(piece);
    }
    return rc;
}

static void test_sse_cuts(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"data: a\n\ndata: b\n\n", "a|b|"},
        {"data: a\r\n\r\ndata: b\r\n\r\n", "a|b|"},
        {"data: a\r\rdata: b\r\r", "a|b|"},
        {"data:a\n\ndata:  b\n\n", "a| b|"},
        {"data: one\ndata: two\ndata:\ndata\n\n", "one\ntwo\n\n|"},
        {": note\nevent: error\nid: 3\ndata: x\nretry: 9\n\n", "x|"},
        {"\n\n\nevent: nothing\n\ndata: y\n\n", "y|"},
        {"data\n\n", "|"},
        {"datax: no\ndat: no\nDATA: no\ndata : no\n\ndata: yes\n\n", "yes|"},
        {"data: whole\n\ndata: not ended\n", "whole|"},
        {"data: {\"a\":\"b: c\"}\n\n", "{\"a\":\"b: c\"}|"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t step = 1; step <= strlen(cases[i][0]); step++) {
            struct load_sse sse = {0};
            struct heard h = {0};
            assert_int_equal(feed(&sse, &h, cases[i][0], step), CFG_OK);
            if (strcmp(h.text, cases[i][1]) != 0)
                fail_msg("case %zu, pieces of %zu: '%s'", i, step, h.text);
            load_sse_free(&sse);
        }
    }
}

static void test_sse_stops(void **state)
{
    (void)state;
    struct load_sse sse = {0};
    struct heard h = {.stop_at = 2};
    assert_int_equal(feed(&sse, &h, "data: a\n\ndata: b\n\ndata: c\n\n", 1000), 77);
    assert_string_equal(h.text, "a|b|");
    assert_int_equal(feed(&sse, &h, "data: left", 4), 0);
    load_sse_reset(&sse); /* nothing of the old stream in the new one */
    h = (struct heard){0};
    assert_int_equal(feed(&sse, &h, "over\n\ndata: d\n\n", 3), 0);
    assert_string_equal(h.text, "d|");
    load_sse_free(&sse);
}

static void test_sse_bounded(void **state)
{
    (void)state;
    static char block[65536];
    memset(block, 'x', sizeof block);
    for (int lines = 0; lines < 2; lines++) {
        if (lines) memcpy(block, "data:", 5), block[sizeof block - 1] = '\n';
        struct load_sse sse = {0};
        struct heard h = {0};
        int rc = 0, fed = 0;
        while (!rc && fed < 40) {
            rc = load_sse_feed(&sse, block, sizeof block, hear, &h);
            fed++;
        }
        assert_int_equal(rc, CFG_EFULL);
        assert_in_range(fed, 16, 17); /* 1 MiB */
        assert_true(sse.line.cap + sse.data.cap <= 4 * (size_t)LOAD_EVENT_MAX);
        load_sse_free(&sse);
    }
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* Scans a copy that ends where the text ends, so that the sanitizer sees any read past it. */
static int scan(const char *json, size_t n, struct load_chunk *out, struct cfg_buf *text)
{
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, json, n);
    int rc = load_chunk_scan(copy, n, out, text);
    free(copy);
    return rc;
}

static void check_text(const char *literal, const char *want)
{
    char json[512];
    snprintf(json, sizeof json, "{\"choices\":[{\"delta\":{\"content\":%s}}]}", literal);
    struct load_chunk chunk;
    struct cfg_buf text = {0};
    if (scan(json, strlen(json), &chunk, &text)) fail_msg("refused: %s", json);
    assert_int_equal(chunk.has_text, want[0] != '\0');
    assert_string_equal(text.len ? text.data : "", want);
    cfg_buf_free(&text);
}

static void test_chunk_strings(void **state)
{
    (void)state;
    check_text("\"plain\"", "plain");
    check_text("\"\"", "");
    check_text("null", "");
    check_text("\"a\\\"b\\\\c\\/d\"", "a\"b\\c/d");
    check_text("\"\\b\\f\\n\\r\\t\"", "\b\f\n\r\t");
    check_text("\"\\\\\"", "\\");
    check_text("\"\\\\\\\"}\"", "\\\"}");
    check_text("\"]},{[\"", "]},{[");
    check_text("\"\\u0041\\u00e9\\u20AC\\ud83d\\uDE00\"", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
    check_text("\"\\ud83d!\"", "\xEF\xBF\xBD!");
    check_text("\"\\ude00\\ud83d\"", "\xEF\xBF\xBD\xEF\xBF\xBD");
    check_text("\"\\ud83d\\u0041\"", "\xEF\xBF\xBD"
                                     "A");
    check_text("\"\\\\u0041\"", "\\u0041");
    check_text("\"\xF0\x9F\x98\x80\"", "\xF0\x9F\x98\x80");
}

static void test_chunk_fields(void **state)
{
    (void)state;
    static const char json[] =
        " {\"id\":\"c\\\"hoices\", \"created\": -1.5e3, "
        "\"x\":{\"choices\":[{\"delta\":{\"content\":"
        "\"no\"}}],\"usage\":{\"prompt_tokens\":9}}, \"choices\" : [ "
        "{\"index\":0,\"delta\":{\"role\":"
        "\"assistant\",\"tool\":{\"content\":\"no\"},\"con\\u0074ent\":\"yes\"},\"logprobs\":[{"
        "\"content"
        "\":\"no\"}],\"finish_reason\":\"length\"},{\"delta\":{\"content\":\"second\"},"
        "\"finish_reason\":\"stop\"} ], \"error\":null, \"usage\":{\"prompt_tokens\":12,"
        "\"prompt_tokens_details\":{\"cached_tokens\":8},\"completion_tokens\":34,\"total\":46}} ";
    struct load_chunk chunk;
    struct cfg_buf text = {0};
    assert_int_equal(scan(json, sizeof json - 1, &chunk, &text), CFG_OK);
    assert_string_equal(text.data, "yes");
    assert_string_equal(chunk.finish, "length");
    assert_int_equal(chunk.prompt_tokens, 12);
    assert_int_equal(chunk.cached_tokens, 8);
    assert_int_equal(chunk.completion_tokens, 34);
    assert_false(chunk.has_error);

    static const char none[] = "{\"choices\":[],\"usage\":null}";
    assert_int_equal(scan(none, sizeof none - 1, &chunk, &text), CFG_OK);
    assert_int_equal(chunk.prompt_tokens, -1);
    assert_int_equal(chunk.completion_tokens, -1);
    assert_false(chunk.has_text || chunk.finish[0]);

    /* Every cut of it is refused, and nothing is read past it. */
    for (size_t n = 0; n < sizeof json - 2; n++) {
        text.len = 0;
        if (scan(json, n, &chunk, &text) == CFG_OK) fail_msg("%zu bytes were taken", n);
    }
    cfg_buf_free(&text);
}

static void check_error(const char *json, const char *code, const char *message)
{
    struct load_chunk chunk;
    struct cfg_buf text = {0};
    assert_int_equal(scan(json, strlen(json), &chunk, &text), CFG_OK);
    assert_true(chunk.has_error);
    assert_string_equal(chunk.error_code, code);
    assert_string_equal(chunk.error_message, message);
    cfg_buf_free(&text);
}

static void test_chunk_errors(void **state)
{
    (void)state;
    check_error(
        "{\"error\":{\"message\":\"Full\\n\",\"type\":\"t\",\"param\":null,\"code\":\"queue\"}}",
        "queue", "Full\n");
    check_error("{\"error\":{\"code\":\"queue\",\"type\":\"t\"}}", "queue", "");
    check_error("{\"error\":{\"message\":\"m\",\"type\":\"t\",\"code\":null}}", "t", "m");
    check_error("{\"error\":{\"code\":429,\"message\":null}}", "429", "");
    check_error("{\"error\":\"down\"}", "", "down");

    /* Longer than its field: cut on a character's boundary. */
    char json[512] = "{\"error\":{\"message\":\"";
    for (int i = 0; i < 150; i++) strcat(json, "\xC3\xA9");
    strcat(json, "\"}}");
    struct load_chunk chunk;
    struct cfg_buf text = {0};
    assert_int_equal(scan(json, strlen(json), &chunk, &text), CFG_OK);
    assert_int_equal(strlen(chunk.error_message), 238);
    assert_true(cfg_utf8_valid(chunk.error_message, 238));
    cfg_buf_free(&text);
}

static void test_chunk_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        " ",
        "null",
        "[]",
        "\"a\"",
        "{",
        "{}x",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"choices\":[}",
        "{\"choices\":[{}}",
        "{\"choices\":[{\"delta\":{\"content\":\"\\x\"}}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"\\u12g4\"}}]}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\",
        "{\"a\":\"\\u00",
        "{\"a\":{\"b\":1}",
        "{\"usage\":{\"prompt_tokens\":}}",
        "[DONE]",
        "{\"a\":1}{\"b\":2}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct load_chunk chunk;
        struct cfg_buf text = {0};
        if (scan(bad[i], strlen(bad[i]), &chunk, &text) == CFG_OK) fail_msg("taken: %s", bad[i]);
        cfg_buf_free(&text);
    }
    struct load_chunk chunk;
    struct cfg_buf text = {0};
    assert_int_equal(scan("{}\0", 3, &chunk, &text), CFG_EINVAL);
    assert_int_equal(scan("{\"a\":\"\\\0\"}", 10, &chunk, &text), CFG_EINVAL);
    assert_int_equal(scan("{\"a\":\0}", 7, &chunk, &text), CFG_EINVAL);
    cfg_buf_free(&text);
}

/* ---- options --------------------------------------------------------------------------------- */

/* args: separated by blanks, after the two that are required. */
static int parse(struct load_options *opt, const char *args, struct error *err)
{
    /* options borrow their texts, so these outlive the call */
    static char copy[256], name[] = "chatload", flag[] = "--url", url[] = "http://h";
    static char model[] = "--model=m";
    char *argv[32] = {name, flag, url, model};
    int argc = 4;
    snprintf(copy, sizeof copy, "%s", args);
    for (char *s = strtok(copy, " "); s; s = strtok(NULL, " ")) argv[argc++] = s;
    return load_options_parse(opt, argc, argv, err);
}

static void test_options(void **state)
{
    (void)state;
    struct load_options opt;
    struct error err = {0};
    assert_int_equal(parse(&opt, "", &err), CFG_PARSE_RUN);
    assert_string_equal(opt.url, "http://h");
    assert_string_equal(opt.model, "m");
    assert_int_equal(opt.chats, 1);
    assert_int_equal(opt.total, 1);
    assert_true(opt.temperature < 0 && opt.seed == 1 && !opt.no_stream);

    assert_int_equal(
        parse(&opt,
              "--chats 64 --turns=3 --max-tokens uniform:1:9 --goodput tpot:50,ttft:500 "
              "--ignore-eos --seed 18446744073709551615 --cancel-share 0.25",
              &err),
        CFG_PARSE_RUN);
    assert_int_equal(opt.chats, 64);
    assert_int_equal(opt.total, 64);
    assert_int_equal(opt.turns, 3);
    assert_true(opt.max_tokens.kind == LOAD_UNIFORM && opt.max_tokens.b == 9);
    assert_true(opt.goals.ttft == 0.5 && opt.goals.tpot == 0.05 && opt.goals.e2e == 0);
    assert_true(opt.ignore_eos && opt.seed == UINT64_MAX && opt.cancel_share == 0.25);
    assert_true(!opt.insecure && !opt.cacert);

    assert_int_equal(parse(&opt, "--cacert ca.pem", &err), CFG_PARSE_RUN);
    assert_string_equal(opt.cacert, "ca.pem");
    assert_int_equal(parse(&opt, "--insecure", &err), CFG_PARSE_RUN);
    assert_true(opt.insecure);

    assert_int_equal(parse(&opt, "--rate 2.5", &err), CFG_PARSE_RUN);
    assert_int_equal(opt.total, 100);
    assert_int_equal(opt.chats, 1000);
    assert_int_equal(parse(&opt, "--seconds 10", &err), CFG_PARSE_RUN);
    assert_int_equal(opt.total, 0);
}

static void test_options_refused(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"--chats 0", "--chats"},
        {"--chats 1.5", "--chats"},
        {"--chats x", "--chats"},
        {"--chats", "--chats"},
        {"--rate -1", "--rate"},
        {"--rate nan", "--rate"},
        {"--cancel-share 1.01", "--cancel-share"},
        {"--max-tokens normal:1:2", "--max-tokens"},
        {"--goodput ttft", "--goodput"},
        {"--goodput ttft:5,", "--goodput"},
        {"--goodput ttft:-5", "--goodput"},
        {"--goodput tpat:5", "--goodput"},
        {"--no-stream --goodput ttft:5", "--goodput"},
        {"--no-stream=1", "--no-stream"},
        {"--seed -1", "--seed"},
        {"--seed 1x", "--seed"},
        {"--csv=", "--csv"},
        {"--rate 1 --ramp 3", "--ramp"},
        {"--cacert=", "--cacert"},
        {"--cacert ca.pem --insecure", "--insecure"},
        {"--url ftp://h", "--url"},
        {"--speed 3", "--speed"},
        {"-c 3", "-c"},
        {"chats", "chats"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct load_options opt;
        struct error err = {0};
        if (parse(&opt, bad[i][0], &err) != CFG_EINVAL) fail_msg("taken: %s", bad[i][0]);
        if (!strstr(err.message, bad[i][1])) fail_msg("%s: '%s'", bad[i][0], err.message);
    }
    struct load_options opt;
    struct error err = {0};
    char *argv[] = {(char[]){"chatload"}, (char[]){"--url=x"}};
    assert_int_equal(load_options_parse(&opt, 2, argv, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "--model"));
    assert_int_equal(load_options_parse(&opt, 1, argv, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "--url"));
}

/* ---- prompts --------------------------------------------------------------------------------- */

static void test_words(void **state)
{
    (void)state;
    struct load_rng a, b;
    load_rng_seed(&a, 3, 1);
    load_rng_seed(&b, 3, 1);
    struct cfg_buf x = {0}, y = {0};
    load_prompt_words(&x, &a, 12);
    load_prompt_words(&y, &b, 12);
    assert_string_equal(x.data, y.data);
    int blanks = 0;
    for (size_t i = 0; i < x.len; i++) {
        blanks += x.data[i] == ' ';
        /* they go into JSON as they are */
        assert_true(x.data[i] == ' ' || x.data[i] == '?' || (x.data[i] | 32) >= 'a');
    }
    assert_int_equal(blanks, 11);
    assert_true(x.data[0] >= 'A' && x.data[0] <= 'Z' && x.data[x.len - 1] == '?');
    y.len = 0;
    load_prompt_words(&y, &b, 12);
    assert_string_not_equal(x.data, y.data);
    cfg_buf_free(&x);
    cfg_buf_free(&y);
}

static int add(struct load_scripts *s, const char *line, struct error *err)
{
    return load_scripts_add(s, line, strlen(line), err);
}

static void test_scripts(void **state)
{
    (void)state;
    struct load_scripts s = {0};
    struct error err = {0};
    assert_int_equal(add(&s, "\"say \\\"hi\\\"\"", &err), CFG_OK);
    assert_int_equal(add(&s, "{\"prompt\":\"one\",\"id\":4}", &err), CFG_OK);
    assert_int_equal(
        add(&s,
            "{\"messages\":[{\"role\":\"system\",\"content\":\"be\"},{\"role\":\"user\","
            "\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"left out\"},{"
            "\"role\":\"user\",\"content\":\"b\"}]}",
            &err),
        CFG_OK);
    assert_int_equal(s.n, 3);
    assert_string_equal(s.items[0].turns[0], "{\"role\":\"user\",\"content\":\"say \\\"hi\\\"\"}");
    assert_null(s.items[0].system);
    assert_string_equal(s.items[1].turns[0], "{\"role\":\"user\",\"content\":\"one\"}");
    assert_int_equal(s.items[2].n_turns, 2);
    assert_string_equal(s.items[2].system, "{\"role\":\"system\",\"content\":\"be\"}");
    assert_string_equal(s.items[2].turns[1], "{\"role\":\"user\",\"content\":\"b\"}");

    static const char *const bad[] = {
        "7",
        "{}",
        "{\"prompt\":7}",
        "{\"messages\":[]}",
        "{\"messages\":[7]}",
        "{\"prompt\":\"a\"",
        "{\"messages\":[{\"role\":\"user\"}]}",
        "{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"},{\"role\":\"user\",\"content\":"
        "\"b\"}]}",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"a\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":null}]"
        "}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (add(&s, bad[i], &err) != CFG_EINVAL) fail_msg("taken: %s", bad[i]);
    assert_int_equal(s.n, 3);
    load_scripts_free(&s);
}

static void test_script_files(void **state)
{
    (void)state;
    char path[] = "/tmp/test_chatload_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *f = fdopen(fd, "w");
    assert_non_null(f);
    fputs("\"a\"\n\n  \r\n\"b\"", f);
    fflush(f);
    struct load_scripts s = {0};
    struct error err = {0};
    assert_int_equal(load_scripts_read(&s, path, &err), CFG_OK);
    assert_int_equal(s.n, 2);
    assert_string_equal(s.items[1].turns[0], "{\"role\":\"user\",\"content\":\"b\"}");
    load_scripts_free(&s);

    fputs("\n{\"prompt\":}\n", f);
    fclose(f);
    assert_int_equal(load_scripts_read(&s, path, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, "line 5"));
    load_scripts_free(&s);
    remove(path);
    assert_int_equal(load_scripts_read(&s, path, &err), CFG_ENOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dist_refused),  cmocka_unit_test(test_dist_draws),
        cmocka_unit_test(test_rng_streams),   cmocka_unit_test(test_quantiles),
        cmocka_unit_test(test_hist_edges),    cmocka_unit_test(test_sse_cuts),
        cmocka_unit_test(test_sse_stops),     cmocka_unit_test(test_sse_bounded),
        cmocka_unit_test(test_chunk_strings), cmocka_unit_test(test_chunk_fields),
        cmocka_unit_test(test_chunk_errors),  cmocka_unit_test(test_chunk_refused),
        cmocka_unit_test(test_options),       cmocka_unit_test(test_options_refused),
        cmocka_unit_test(test_words),         cmocka_unit_test(test_scripts),
        cmocka_unit_test(test_script_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
