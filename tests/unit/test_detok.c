// SPDX-License-Identifier: Apache-2.0
//
// Streaming detokeniser: single cases, and a property over random streams of ids and random stop
// strings against a plain function of the whole text. Run from the repository's root.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

#define BYTE(b) (4 + (b))
#define MAX     4096

/* Pieces of the test model. */
enum {
    MARKER = 279, /* " </" */
    SPACE = 260,
    THE = 261,
    S = 263,
    DOT = 264,
    A_PIECE = 265, /* " a" */
    GREATER = 270,
    MILL = 299,
    SLASH = 341,
    LESS = 366, /* " <" */
};

static struct engine_tokenizer *tok;

static int setup(void **state)
{
    (void)state;
    struct error err;
    return tokenizer_open(&tok, "tests/golden/tokenizer", 1000, &err) || !tok ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_close(tok);
    return 0;
}

/* One answer: what each call released, separated by '|', and how it ended. */
struct answer {
    char text[MAX]; /* all of it */
    char steps[MAX];
    int matched;
    int pushed; /* ids fed until it stopped */
};

static void add(struct answer *a, const char *text, size_t n)
{
    assert_true(strlen(a->steps) + n + 2 < MAX);
    assert_true(cfg_utf8_valid(text, n));
    strncat(a->text, text, n);
    strncat(a->steps, text, n);
}

static void run(struct answer *a, const struct engine_detok_options *opt, const int32_t *ids,
                int n_ids)
{
    struct engine_detok *d;
    struct error err;
    const char *text;
    size_t n;
    bool stopped = false;
    memset(a, 0, sizeof *a);
    assert_int_equal(engine_detok_new(&d, tok, opt, &err), CFG_OK);
    while (a->pushed < n_ids && !stopped) {
        assert_int_equal(engine_detok_push(d, ids[a->pushed++], &text, &n, &stopped, &err), CFG_OK);
        add(a, text, n);
        strcat(a->steps, "|");
        assert_int_equal(stopped, engine_detok_matched(d) >= 0);
    }
    if (stopped) { /* later ids change nothing */
        assert_int_equal(engine_detok_push(d, THE, &text, &n, &stopped, &err), CFG_OK);
        assert_int_equal(n, 0);
        assert_true(stopped);
    }
    assert_int_equal(engine_detok_finish(d, &text, &n, &err), CFG_OK);
    if (stopped) assert_int_equal(n, 0);
    add(a, text, n);
    a->matched = engine_detok_matched(d);
    engine_detok_free(d);
}

static void check(const struct engine_detok_options *opt, const int32_t *ids, int n_ids,
                  const char *steps, int matched)
{
    struct answer a;
    run(&a, opt, ids, n_ids);
    assert_string_equal(a.steps, steps);
    assert_int_equal(a.matched, matched);
}
#define CHECK(opt, steps, matched, ...)                                                            \
    check(opt, (const int32_t[]){__VA_ARGS__},                                                     \
          (int)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), steps, matched)

/* ---- single cases ---------------------------------------------------------------------------- */

static void test_pieces(void **state)
{
    (void)state;
    struct engine_detok_options opt = {0};
    assert_string_equal(engine_token_piece(tok, SLASH), "/");
    assert_string_equal(engine_token_piece(tok, LESS), "\xe2\x96\x81<");
    CHECK(&opt, " the| mill|.|||", -1, THE, MILL, DOT, 1, 5000);
    opt.strip_space = true;
    CHECK(&opt, "the| mill|.|", -1, THE, MILL, DOT);
    CHECK(&opt, "|| the|", -1, 2, SPACE, THE);
    CHECK(&opt, ".| the|", -1, DOT, THE);
    opt.show_special = true;
    CHECK(&opt, "<s>| the|</s>|", -1, 2, THE, 1);
}

static void test_characters(void **state)
{
    (void)state;
    const struct engine_detok_options opt = {0};
    CHECK(&opt, "||\xe6\x97\xa5|.|", -1, BYTE(0xe6), BYTE(0x97), BYTE(0xa5), DOT);
    CHECK(&opt, "||||\xf0\x9f\x99\x82|", -1, BYTE(0xf0), BYTE(0x9f), 1, BYTE(0x99), BYTE(0x82));
    /* What can't become a character any more is shown at once as U+FFFD... */
    CHECK(&opt, "|\xef\xbf\xbd.|", -1, BYTE(0xe6), DOT);
    CHECK(&opt, "\xef\xbf\xbd|.|", -1, BYTE(0x80), DOT);
    CHECK(&opt, "|\xef\xbf\xbd|\xc3\xa9|", -1, BYTE(0xe6), BYTE(0xc3), BYTE(0xa9));
    CHECK(&opt, "|\xef\xbf\xbd\xef\xbf\xbd|", -1, BYTE(0xed), BYTE(0xa0));
    CHECK(&opt, "\xef\xbf\xbd|", -1, BYTE(0xff));
    /* ...and the rest at the end. */
    CHECK(&opt, " the|||\xef\xbf\xbd", -1, THE, BYTE(0xf0), BYTE(0x9f));
}

static void test_stops(void **state)
{
    (void)state;
    const char *stops[] = {"mill", "e mi", ". ."};
    struct engine_detok_options opt = {.stops = stops, .n_stops = 1};
    CHECK(&opt, " the| |", 0, THE, MILL, DOT);
    stops[0] = "e mi"; /* spans two pieces, ends within one */
    CHECK(&opt, " th||", 0, THE, MILL, DOT);
    CHECK(&opt, " th|e.|", -1, THE, DOT);
    CHECK(&opt, " th|e", -1, THE);
    opt.include_stop = true;
    CHECK(&opt, " th|e mi|", 0, THE, MILL, DOT);
    opt.include_stop = false;
    opt.n_stops = 3;
    stops[0] = "mill";
    CHECK(&opt, " th||", 1, THE, MILL, DOT); /* complete before "mill" is */
    CHECK(&opt, " a| |", 0, A_PIECE, MILL, DOT);
    CHECK(&opt, "|||", 2, DOT, SPACE, DOT);
}

/* Of stops that are complete at the same place, the longest. */
static void test_stop_order(void **state)
{
    (void)state;
    const char *stops[] = {"ll", "mill", "ill"};
    const struct engine_detok_options opt = {.stops = stops, .n_stops = 3};
    CHECK(&opt, " the| |", 1, THE, MILL);
    const char *nested[] = {"the mill.", "mi"};
    const struct engine_detok_options inner = {.stops = nested, .n_stops = 2};
    CHECK(&inner, " |the |", 1, THE, MILL, DOT);
}

static void test_end_marker(void **state)
{
    (void)state;
    const char *stops[] = {"</s>", "s>", "zz"};
    struct engine_detok_options opt = {
        .stops = stops, .end_marker = true, .include_stop = true, .strip_space = true};
    CHECK(&opt, "the|.||||", 0, THE, DOT, MARKER, S, GREATER);
    CHECK(&opt, "the|||||", 0, THE, LESS, SLASH, S, GREATER);
    CHECK(&opt, "the||||||", 0, THE, SPACE, BYTE('<'), SLASH, S, GREATER);
    CHECK(&opt, "|||", 0, MARKER, S, GREATER);
    CHECK(&opt, "the|| </.|", -1, THE, MARKER, DOT);
    CHECK(&opt, "the||| </s", -1, THE, MARKER, S);
    CHECK(&opt, "the|| |||", 0, THE, SPACE, MARKER, S, GREATER);
    opt.n_stops = 3; /* a stop string that is the marker, or its end, does not show it either */
    CHECK(&opt, "the||||", 3, THE, MARKER, S, GREATER);
    CHECK(&opt, "the||s>|", 1, THE, S, GREATER);
    opt.end_marker = false;
    CHECK(&opt, "the| ||</s>|", 0, THE, MARKER, S, GREATER);
}

static void test_bad_options(void **state)
{
    (void)state;
    const char *stops[] = {"ok", "", "\xff"};
    for (size_t n = 2; n <= 3; n++) {
        struct engine_detok_options opt = {.stops = stops, .n_stops = n, .end_marker = true};
        struct engine_detok *d = (struct engine_detok *)stops;
        struct error err = {0};
        assert_int_equal(engine_detok_new(&d, tok, &opt, &err), CFG_EINVAL);
        assert_null(d);
        assert_non_null(strstr(err.message, n == 2 ? "empty" : "UTF-8"));
        stops[1] = "fine";
    }
    engine_detok_free(NULL);
}

/* ---- the property ---------------------------------------------------------------------------- */

static uint32_t random_state;

static int below(int n)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (int)((random_state >> 8) % (uint32_t)n);
}

/* Bytes to characters, U+FFFD for what is none, by the table of well-formed sequences. */
static size_t repair(const unsigned char *s, size_t n, char *out)
{
    size_t m = 0;
    for (size_t i = 0; i < n;) {
        size_t need = s[i] < 0x80                   ? 1
                      : s[i] >= 0xc2 && s[i] < 0xe0 ? 2
                      : s[i] >= 0xe0 && s[i] < 0xf0 ? 3
                      : s[i] >= 0xf0 && s[i] < 0xf5 ? 4
                                                    : 0;
        size_t have = need ? 1 : 0;
        for (; have < need && i + have < n; have++) {
            unsigned char c = s[i + have], low = 0x80, high = 0xbf;
            if (have == 1 && s[i] == 0xe0) low = 0xa0;
            if (have == 1 && s[i] == 0xed) high = 0x9f;
            if (have == 1 && s[i] == 0xf0) low = 0x90;
            if (have == 1 && s[i] == 0xf4) high = 0x8f;
            if (c < low || c > high) break;
        }
        if (need && have == need) {
            memcpy(out + m, s + i, need);
            m += need;
        } else {
            memcpy(out + m, "\xef\xbf\xbd", 3);
            m += 3;
        }
        i += have ? have : 1;
    }
    return m;
}

/* The whole answer at once: the text up to the stop string that ends first. */
static int batch(const struct engine_detok_options *opt, const int32_t *ids, int n_ids, char *out)
{
    static char raw[MAX], text[3 * MAX];
    size_t n = 0;
    for (int i = 0; i < n_ids; i++) n += engine_token_bytes(tok, ids[i], raw + n, sizeof raw - n);
    char *t = text;
    size_t len = repair((unsigned char *)raw, n, text);
    text[len] = 0;
    if (opt->strip_space && *t == ' ') t++, len--;

    int matched = -1;
    size_t best_end = len + 1, best_start = 0;
    for (int i = -2; i < (int)opt->n_stops; i++) {
        const char *stop = i == -2 ? " </s>" : i == -1 ? "</s>" : opt->stops[i];
        if (i < 0 && !opt->end_marker) continue;
        const char *at = strstr(t, stop);
        if (!at) continue;
        size_t start = (size_t)(at - t), end = start + strlen(stop);
        if (end > best_end || (end == best_end && start >= best_start)) continue;
        best_end = end;
        best_start = start;
        matched = i < 0 ? (int)opt->n_stops : i;
    }
    if (matched >= 0)
        len = opt->include_stop && matched < (int)opt->n_stops ? best_end : best_start;
    memcpy(out, t, len);
    out[len] = 0;
    return matched;
}

/* Any kind of id but the NUL byte, which the reference's C strings can't hold. */
static int32_t random_id(void)
{
    static const int32_t marker[] = {MARKER, S, GREATER, LESS, SLASH, SPACE};
    static const unsigned char bytes[] = {0xe6, 0x97, 0xa5, 0xf0, 0x9f, 0x99,
                                          0x82, 0xc3, 0xa9, 'a',  '<',  0xff};
    switch (below(5)) {
    case 0:
        return marker[below(6)];
    case 1:
        return BYTE(bytes[below(12)]);
    case 2:
        return below(5) ? 5 + below(430) : below(4);
    default:
        return 260 + below(40);
    }
}

static void test_random_streams(void **state)
{
    (void)state;
    enum { N_IDS = 40 };
    static char want[3 * MAX];
    static struct answer got;
    int ended = 0, marked = 0, whole = 0;
    for (int round = 0; round < 6000; round++) {
        random_state = (uint32_t)round * 2654435761u;
        int32_t ids[N_IDS];
        int n_ids = 1 + below(N_IDS);
        for (int i = 0; i < n_ids; i++) ids[i] = random_id();
        int at = below(N_IDS);
        if (at + 3 <= n_ids) memcpy(ids + at, (const int32_t[]){MARKER, S, GREATER}, 12);

        /* Stops are cut out of such texts, so that they do occur, if not always here. */
        char stops[4][64];
        const char *list[4];
        struct engine_detok_options opt = {.stops = list, .n_stops = (size_t)below(5)};
        for (size_t i = 0; i < opt.n_stops; i++) {
            const struct engine_detok_options plain = {0};
            int32_t some[3] = {random_id(), below(2) ? ids[below(n_ids)] : random_id(),
                               random_id()};
            batch(&plain, some, 1 + below(3), want);
            size_t from = 0, len = strlen(want);
            while (len > 2 && from < len / 2 && below(2)) from++;
            while (((unsigned char)want[from] & 0xc0) == 0x80) from++;
            snprintf(stops[i], sizeof stops[i], "%s", want[from] ? want + from : "x");
            list[i] = stops[i];
        }
        opt.end_marker = below(2);
        opt.include_stop = below(2);
        opt.strip_space = below(2);

        int matched = batch(&opt, ids, n_ids, want);
        run(&got, &opt, ids, n_ids);
        assert_string_equal(got.text, want); /* pieces of it are prefixes of it */
        assert_int_equal(got.matched, matched);
        ended += matched >= 0 && matched < (int)opt.n_stops;
        marked += matched == (int)opt.n_stops;
        whole += matched < 0;
    }
    assert_true(ended > 500 && marked > 500 && whole > 500); /* every way of ending was tried */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),         cmocka_unit_test(test_characters),
        cmocka_unit_test(test_stops),          cmocka_unit_test(test_stop_order),
        cmocka_unit_test(test_end_marker),     cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_random_streams),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
