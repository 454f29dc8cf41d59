// SPDX-License-Identifier: Apache-2.0
//
// test_metrics.c: the page that /metrics serves: histogram arithmetic, the form of every line, and
// that each figure lands under its own name and label.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/api_format.h"
#include "server/metrics.h"

static const int moe_ids[2] = {3, 7};
static const struct engine_info info = {
    .moe_layers = 2, .moe_layer_ids = moe_ids, .backend = "a\"b\\c\nd"};

static char *render(const struct metrics *m, const struct sched_stats *st)
{
    struct cfg_buf b = {0};
    metrics_render(m, st, &info, &b);
    assert_false(b.failed);
    assert_non_null(b.data);
    return b.data;
}

/* The value of the one line that begins with `series` and a space. */
static double value(const char *page, const char *series)
{
    const size_t n = strlen(series);
    int found = 0;
    double v = -1;
    for (const char *line = page; line != NULL && *line != '\0';) {
        if (strncmp(line, series, n) == 0 && line[n] == ' ') {
            found++;
            v = strtod(line + n, NULL);
        }
        line = strchr(line, '\n');
        if (line != NULL) line++;
    }
    if (found != 1) fail_msg("%s stands %d times on the page", series, found);
    return v;
}

static void buckets_take_their_upper_bound(void **state)
{
    struct metrics m;
    (void)state;
    metrics_init(&m, 0);
    struct metrics_histogram *h = &m.first_token;
    assert_true(h->n_bounds > 2);
    for (int i = 1; i < h->n_bounds; i++) assert_true(h->bounds[i] > h->bounds[i - 1]);

    metrics_observe(h, h->bounds[0], 1);         /* le means at most */
    metrics_observe(h, h->bounds[0] * 1.001, 3); /* just above: the next one */
    metrics_observe(h, h->bounds[h->n_bounds - 1] * 2, 1);
    metrics_observe(h, -5, 1); /* clocks of two threads: counts as nothing */
    assert_int_equal(h->counts[0], 2);
    assert_int_equal(h->counts[1], 3);
    assert_int_equal(h->counts[h->n_bounds], 1);
    const double sum = h->bounds[0] + 3 * h->bounds[0] * 1.001 + 2 * h->bounds[h->n_bounds - 1];
    assert_true(h->sum > sum * 0.999999 && h->sum < sum * 1.000001);
    assert_int_equal(m.duration.counts[0], 0);
}

static void histograms_are_cumulative(void **state)
{
    struct metrics m;
    struct sched_stats st = {0};
    (void)state;
    metrics_init(&m, 0);
    metrics_observe(&m.queue, 0.0005, 2);
    metrics_observe(&m.queue, 0.02, 1);
    metrics_observe(&m.queue, 1e6, 4);
    char *page = render(&m, &st);
    assert_int_equal(value(page, "openmoed_queue_seconds_bucket{le=\"0.001\"}"), 2);
    assert_int_equal(value(page, "openmoed_queue_seconds_bucket{le=\"0.01\"}"), 2);
    assert_int_equal(value(page, "openmoed_queue_seconds_bucket{le=\"0.025\"}"), 3);
    assert_int_equal(value(page, "openmoed_queue_seconds_bucket{le=\"300\"}"), 3);
    assert_int_equal(value(page, "openmoed_queue_seconds_bucket{le=\"+Inf\"}"), 7);
    assert_int_equal(value(page, "openmoed_queue_seconds_count"), 7);
    const double sum = value(page, "openmoed_queue_seconds_sum");
    assert_true(sum > 4000000.02 && sum < 4000000.03);
    assert_int_equal(value(page, "openmoed_inter_token_seconds_count"), 0);
    free(page);
}

/* Gaps go to one histogram as they come, the mean of a sequence to the other at its end. */
static void paces_of_sequences(void **state)
{
    struct metrics m;
    struct sched_stats st = {0};
    struct metrics_pace paces[4] = {0};
    (void)state;
    metrics_init(&m, 0);
    assert_true(metrics_token(&m, &paces[0], 100.0));
    assert_false(metrics_token(&m, &paces[0], 100.25));
    assert_true(metrics_token(&m, &paces[1], 100.25)); /* one token: it has no pace */
    assert_false(metrics_token(&m, &paces[0], 101.0));
    assert_true(metrics_token(&m, &paces[2], 0.0)); /* a clock may start there */
    assert_false(metrics_token(&m, &paces[2], 2.0));
    assert_int_equal(m.output_token.sum, 0);
    metrics_end(&m, 30, 6, paces, 4);
    metrics_end(&m, 0, 0, NULL, 0);
    char *page = render(&m, &st);
    assert_int_equal(value(page, "openmoed_inter_token_seconds_count"), 3);
    assert_true(value(page, "openmoed_inter_token_seconds_sum") == 3);
    assert_int_equal(value(page, "openmoed_time_per_output_token_seconds_count"), 2);
    assert_true(value(page, "openmoed_time_per_output_token_seconds_sum") == 2.5);
    assert_int_equal(value(page, "openmoed_time_per_output_token_seconds_bucket{le=\"0.5\"}"), 1);
    assert_int_equal(value(page, "openmoed_request_prompt_tokens_bucket{le=\"1\"}"), 1);
    assert_int_equal(value(page, "openmoed_request_prompt_tokens_bucket{le=\"20\"}"), 1);
    assert_int_equal(value(page, "openmoed_request_prompt_tokens_bucket{le=\"50\"}"), 2);
    assert_int_equal(value(page, "openmoed_request_prompt_tokens_sum"), 30);
    assert_int_equal(value(page, "openmoed_request_generated_tokens_bucket{le=\"5\"}"), 1);
    assert_int_equal(value(page, "openmoed_request_generated_tokens_bucket{le=\"10\"}"), 2);
    assert_int_equal(value(page, "openmoed_request_generated_tokens_sum"), 6);
    free(page);
}

static void figures_land_under_their_names(void **state)
{
    struct metrics m;
    struct sched_stats st = {
        .running = 3,
        .waiting = 4,
        .kv_blocks_total = 50,
        .kv_blocks_free = 20,
        .kv_blocks_cached = 8,
        .waiting_tokens = 77,
        .deferrals = 13,
        .step_tokens = 7,
        .prompt_tokens = UINT64_C(10000000000000001),
        .generated_tokens = 9,
        .step_seconds = 1.5,
        .step_counts = {[0] = 2, [3] = 3, [SCHED_STEP_BOUNDS] = 1},
    };
    (void)state;
    metrics_init(&m, 1700000000.25);
    m.requests[METRICS_STOP] = 21;
    m.requests[METRICS_LENGTH] = 22;
    m.requests[METRICS_CANCELLED] = 23;
    m.requests[METRICS_ERROR] = 24;
    m.requests[METRICS_REJECTED] = 25;
    metrics_response(&m, 200);
    metrics_response(&m, 200);
    metrics_response(&m, 503);
    metrics_response(&m, -1);
    metrics_response(&m, 100000);
    char *page = render(&m, &st);
    assert_int_equal(value(page, "openmoed_requests_running"), 3);
    assert_int_equal(value(page, "openmoed_requests_waiting"), 4);
    assert_int_equal(value(page, "openmoed_kv_blocks{state=\"free\"}"), 20);
    assert_int_equal(value(page, "openmoed_kv_blocks{state=\"total\"}"), 50);
    assert_int_equal(value(page, "openmoed_kv_blocks{state=\"cached\"}"), 8);
    assert_int_equal(value(page, "openmoed_tokens_waiting"), 77);
    assert_int_equal(value(page, "openmoed_deferrals_total"), 13);
    assert_int_equal(value(page, "openmoed_step_tokens_total"), 7);
    assert_int_equal(value(page, "openmoed_generated_tokens_total"), 9);
    assert_non_null(strstr(page, "\nopenmoed_prompt_tokens_total 10000000000000001\n"));
    assert_true(value(page, "openmoed_step_seconds_sum") == 1.5);
    assert_int_equal(value(page, "openmoed_step_seconds_bucket{le=\"0.0001\"}"), 2);
    assert_int_equal(value(page, "openmoed_step_seconds_bucket{le=\"0.0005\"}"), 2);
    assert_int_equal(value(page, "openmoed_step_seconds_bucket{le=\"0.001\"}"), 5);
    assert_int_equal(value(page, "openmoed_step_seconds_bucket{le=\"30\"}"), 5);
    assert_int_equal(value(page, "openmoed_step_seconds_count"), 6);
    assert_int_equal(value(page, "openmoed_requests_total{outcome=\"stop\"}"), 21);
    assert_int_equal(value(page, "openmoed_requests_total{outcome=\"length\"}"), 22);
    assert_int_equal(value(page, "openmoed_requests_total{outcome=\"cancelled\"}"), 23);
    assert_int_equal(value(page, "openmoed_requests_total{outcome=\"error\"}"), 24);
    assert_int_equal(value(page, "openmoed_requests_total{outcome=\"rejected\"}"), 25);
    assert_int_equal(value(page, "openmoed_http_responses_total{code=\"200\"}"), 2);
    assert_int_equal(value(page, "openmoed_http_responses_total{code=\"503\"}"), 1);
    assert_null(strstr(page, "code=\"404\""));
    assert_true(value(page, "process_start_time_seconds") == 1700000000.25);
    free(page);
}

/* Every sample follows the HELP and TYPE of its own family, and no family is announced twice. */
static void every_line_belongs_to_a_family(void **state)
{
    struct metrics m;
    struct sched_stats st = {0};
    char families[64][80], current[80] = "", type[16] = "";
    int n_families = 0, n_samples = 0;
    (void)state;
    metrics_init(&m, 1);
    metrics_response(&m, 200);
    char *page = render(&m, &st);
    assert_int_equal(page[strlen(page) - 1], '\n');
    char *save = NULL;
    for (char *line = strtok_r(page, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char name[80], text[200];
        if (sscanf(line, "# HELP %79s %199[^\n]", name, text) == 2) {
            for (int i = 0; i < n_families; i++) assert_string_not_equal(families[i], name);
            assert_true(n_families < 64);
            strcpy(families[n_families++], name);
            strcpy(current, name);
            type[0] = '\0';
            continue;
        }
        if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_int_equal(sscanf(line, "# TYPE %79s %15s", name, type), 2);
            assert_string_equal(name, current);
            const bool total = strlen(name) > 6 && strcmp(name + strlen(name) - 6, "_total") == 0;
            assert_int_equal(total, strcmp(type, "counter") == 0);
            continue;
        }
        assert_int_equal(strncmp(line, current, strlen(current)), 0);
        assert_string_not_equal(type, "");
        const char *rest = line + strlen(current);
        if (strcmp(type, "histogram") == 0)
            assert_true(strncmp(rest, "_bucket{le=\"", 12) == 0 || strncmp(rest, "_sum ", 5) == 0 ||
                        strncmp(rest, "_count ", 7) == 0);
        else
            assert_true(rest[0] == ' ' || rest[0] == '{');
        char *end = NULL;
        strtod(strrchr(line, ' ') + 1, &end);
        assert_int_equal(*end, '\0');
        n_samples++;
    }
    assert_true(n_families >= 18);
    assert_true(n_samples > n_families);
    free(page);
}

static void label_values_are_escaped(void **state)
{
    struct metrics m;
    struct sched_stats st = {0};
    (void)state;
    metrics_init(&m, 1);
    char *page = render(&m, &st);
    assert_non_null(strstr(page, "openmoed_build_info{version=\"" OPENMOED_VERSION
                                 "\",backend=\"a\\\"b\\\\c\\nd\"} 1\n"));
    free(page);
}

static void grammars_have_figures(void **state)
{
    (void)state;
    static const double bounds[] = {0.5, 2};
    const struct api_grammars_stats st = {
        .compiled = 3,
        .found = 8,
        .seconds = {.bounds = bounds, .n_bounds = 2, .counts = {1, 0, 2}, .sum = 9.5}};
    struct cfg_buf b = {0};
    metrics_render_grammars(&st, &b);
    assert_true(value(b.data, "openmoed_grammar_cache_hits_total") == 8);
    assert_true(value(b.data, "openmoed_grammar_cache_misses_total") == 3);
    assert_true(value(b.data, "openmoed_grammar_compile_seconds_bucket{le=\"2\"}") == 1);
    assert_true(value(b.data, "openmoed_grammar_compile_seconds_count") == 3);
    assert_true(value(b.data, "openmoed_grammar_compile_seconds_sum") == 9.5);
    cfg_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_take_their_upper_bound),
        cmocka_unit_test(histograms_are_cumulative),
        cmocka_unit_test(paces_of_sequences),
        cmocka_unit_test(figures_land_under_their_names),
        cmocka_unit_test(every_line_belongs_to_a_family),
        cmocka_unit_test(grammars_have_figures),
        cmocka_unit_test(label_values_are_escaped),
    };
    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
