// SPDX-License-Identifier: Apache-2.0
//
// metrics.c: counters and histograms and their rendering. Plain memory of the loop thread: nothing
// here locks. Prometheus wants the buckets of a histogram cumulative; they are kept apart here and
// summed when rendered.
#include "server/metrics.h"
#include "server/api_format.h"

#include <string.h>

static const double latency_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                        1,     2.5,    5,     10,   30,    60,   120, 300};
static const double token_bounds[] = {0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03,
                                      0.05,  0.075,  0.1,   0.15,   0.25, 0.5,   1,    2.5};
static const double delivery_bounds[] = {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003,
                                         0.005,   0.01,   0.025,   0.05,   0.1,   0.25,  1};
static const double length_bounds[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                       500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

_Static_assert(COUNT(latency_bounds) <= METRICS_MAX_BOUNDS, "latency_bounds");
_Static_assert(COUNT(token_bounds) <= METRICS_MAX_BOUNDS, "token_bounds");
_Static_assert(COUNT(delivery_bounds) <= METRICS_MAX_BOUNDS, "delivery_bounds");
_Static_assert(COUNT(length_bounds) <= METRICS_MAX_BOUNDS, "length_bounds");
_Static_assert(SCHED_STEP_BOUNDS <= METRICS_MAX_BOUNDS, "sched_step_bounds");

static const char *const outcome_names[METRICS_OUTCOMES] = {"stop", "length", "cancelled", "error",
                                                            "rejected"};

static void histogram_init(struct metrics_histogram *h, const double *bounds, int n)
{
    *h = (struct metrics_histogram){.bounds = bounds, .n_bounds = n};
}

void metrics_init(struct metrics *m, double started)
{
    *m = (struct metrics){.started = started};
    histogram_init(&m->first_token, latency_bounds, COUNT(latency_bounds));
    histogram_init(&m->duration, latency_bounds, COUNT(latency_bounds));
    histogram_init(&m->queue, latency_bounds, COUNT(latency_bounds));
    histogram_init(&m->inter_token, token_bounds, COUNT(token_bounds));
    histogram_init(&m->output_token, token_bounds, COUNT(token_bounds));
    histogram_init(&m->delivery, delivery_bounds, COUNT(delivery_bounds));
    histogram_init(&m->prompt_lengths, length_bounds, COUNT(length_bounds));
    histogram_init(&m->generated_lengths, length_bounds, COUNT(length_bounds));
}

void metrics_observe(struct metrics_histogram *h, double value, uint64_t times)
{
    /* Times of two threads are compared: a value below zero is a rounding error, not a duration. */
    if (!(value > 0)) value = 0;
    int i = 0;
    while (i < h->n_bounds && value > h->bounds[i]) i++;
    h->counts[i] += times;
    h->sum += value * (double)times;
}

bool metrics_token(struct metrics *m, struct metrics_pace *pace, double time)
{
    const bool first = pace->tokens++ == 0;
    if (first)
        pace->first = time;
    else
        metrics_observe(&m->inter_token, time - pace->last, 1);
    pace->last = time;
    return first;
}

void metrics_end(struct metrics *m, size_t prompt_tokens, size_t generated_tokens,
                 const struct metrics_pace *paces, size_t n)
{
    metrics_observe(&m->prompt_lengths, (double)prompt_tokens, 1);
    metrics_observe(&m->generated_lengths, (double)generated_tokens, 1);
    for (size_t i = 0; i < n; i++) {
        const struct metrics_pace *p = &paces[i];
        if (p->tokens < 2) continue;
        metrics_observe(&m->output_token, (p->last - p->first) / (double)(p->tokens - 1), 1);
    }
}

void metrics_response(struct metrics *m, int status)
{
    if (status >= 0 && status < COUNT(m->responses)) m->responses[status]++;
}

static void family(struct cfg_buf *out, const char *name, const char *type, const char *help)
{
    cfg_buf_printf(out, "# HELP openmoed_%s %s\n# TYPE openmoed_%s %s\n", name, help, name, type);
}

static void counter(struct cfg_buf *out, const char *name, uint64_t value, const char *help)
{
    family(out, name, "counter", help);
    cfg_buf_printf(out, "openmoed_%s %llu\n", name, (unsigned long long)value);
}

static void gauge(struct cfg_buf *out, const char *name, int value, const char *help)
{
    family(out, name, "gauge", help);
    cfg_buf_printf(out, "openmoed_%s %d\n", name, value);
}

static void histogram(struct cfg_buf *out, const char *name, const struct metrics_histogram *h,
                      const char *help)
{
    family(out, name, "histogram", help);
    uint64_t below = 0;
    for (int i = 0; i < h->n_bounds; i++) {
        below += h->counts[i];
        cfg_buf_printf(out, "openmoed_%s_bucket{le=\"%g\"} %llu\n", name, h->bounds[i],
                       (unsigned long long)below);
    }
    below += h->counts[h->n_bounds];
    cfg_buf_printf(out, "openmoed_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)below);
    cfg_buf_printf(out, "openmoed_%s_sum %.12g\nopenmoed_%s_count %llu\n", name, h->sum, name,
                   (unsigned long long)below);
}

/* A label's value: backslash, quote and line feed are escaped. */
static void label_value(struct cfg_buf *out, const char *s)
{
    for (; *s != '\0'; s++) {
        if (*s == '\n') {
            cfg_buf_puts(out, "\\n");
            continue;
        }
        if (*s == '\\' || *s == '"') cfg_buf_append(out, "\\", 1);
        cfg_buf_append(out, s, 1);
    }
}

static void render_requests(const struct metrics *m, const struct sched_stats *st,
                            struct cfg_buf *out)
{
    gauge(out, "requests_running", st->running, "Sequences that take part in the engine's steps.");
    gauge(out, "requests_waiting", st->waiting, "Sequences that wait to be scheduled.");
    family(out, "tokens_waiting", "gauge", "Prompt tokens of the sequences that wait.");
    cfg_buf_printf(out, "openmoed_tokens_waiting %zu\n", st->waiting_tokens);
    family(out, "requests_total", "counter", "Generation requests ended, by outcome.");
    for (int i = 0; i < METRICS_OUTCOMES; i++)
        cfg_buf_printf(out, "openmoed_requests_total{outcome=\"%s\"} %llu\n", outcome_names[i],
                       (unsigned long long)m->requests[i]);
    family(out, "http_responses_total", "counter", "HTTP responses, by status.");
    for (int i = 0; i < COUNT(m->responses); i++) {
        if (m->responses[i] == 0) continue;
        cfg_buf_printf(out, "openmoed_http_responses_total{code=\"%d\"} %llu\n", i,
                       (unsigned long long)m->responses[i]);
    }
    histogram(out, "time_to_first_token_seconds", &m->first_token,
              "From a request's arrival to the first token of each of its sequences.");
    histogram(out, "inter_token_seconds", &m->inter_token,
              "Between two tokens of one sequence, as the engine made them.");
    histogram(out, "time_per_output_token_seconds", &m->output_token,
              "Mean time of a sequence's tokens after the first.");
    histogram(out, "request_duration_seconds", &m->duration,
              "From a generation request's arrival to its end.");
    histogram(out, "request_prompt_tokens", &m->prompt_lengths,
              "Prompt tokens of a generation request.");
    histogram(out, "request_generated_tokens", &m->generated_lengths,
              "Tokens generated for a request, all its choices together.");
    histogram(out, "queue_seconds", &m->queue, "From submission to a sequence's first step.");
    histogram(out, "token_delivery_seconds", &m->delivery,
              "From a streamed token's making to its bytes being with the socket.");
}

static void render_engine(const struct sched_stats *st, struct cfg_buf *out)
{
    struct metrics_histogram steps = {
        .bounds = sched_step_bounds, .n_bounds = SCHED_STEP_BOUNDS, .sum = st->step_seconds};
    memcpy(steps.counts, st->step_counts, sizeof st->step_counts);
    counter(out, "prompt_tokens_total", st->prompt_tokens, "Prompt tokens computed.");
    counter(out, "generated_tokens_total", st->generated_tokens, "Tokens generated.");
    counter(out, "step_tokens_total", st->step_tokens, "Rows computed by all engine steps.");
    histogram(out, "step_seconds", &steps, "Time of an engine step.");
    counter(out, "preemptions_total", st->preemptions,
            "Sequences that gave up their blocks to others, to be computed again.");
    counter(out, "recomputed_tokens_total", st->recomputed_tokens,
            "Tokens computed again after a preemption.");
    counter(out, "deferrals_total", st->deferrals,
            "Steps in which a prompt waited because its experts were expected to be full.");
    counter(out, "timeouts_total", st->timeouts, "Sequences ended by a time limit.");
    counter(out, "prefix_queried_tokens_total", st->prefix_queried_tokens,
            "Prompt tokens looked up in the prefix cache.");
    counter(out, "prefix_hit_tokens_total", st->prefix_hit_tokens,
            "Prompt tokens that came from the prefix cache.");
    counter(out, "prefix_evictions_total", st->prefix_evictions, "Cached blocks evicted.");
    family(out, "kv_blocks", "gauge", "Blocks of the key and value cache.");
    cfg_buf_printf(out, "openmoed_kv_blocks{state=\"free\"} %d\n", st->kv_blocks_free);
    cfg_buf_printf(out, "openmoed_kv_blocks{state=\"cached\"} %d\n", st->kv_blocks_cached);
    cfg_buf_printf(out, "openmoed_kv_blocks{state=\"total\"} %d\n", st->kv_blocks_total);
}

void metrics_render_grammars(const struct api_grammars_stats *stats, struct cfg_buf *out)
{
    counter(out, "grammar_cache_hits_total", stats->found,
            "Requests whose grammar had been compiled for an earlier one.");
    counter(out, "grammar_cache_misses_total", stats->compiled,
            "Requests whose grammar had to be compiled.");
    histogram(out, "grammar_compile_seconds", &stats->seconds, "Time of a grammar's compilation.");
}

void metrics_render(const struct metrics *m, const struct sched_stats *stats,
                    const struct engine_info *info, struct cfg_buf *out)
{
    render_requests(m, stats, out);
    render_engine(stats, out);
    family(out, "build_info", "gauge", "Always 1; the labels say what runs.");
    cfg_buf_puts(out, "openmoed_build_info{version=\"");
    label_value(out, OPENMOED_VERSION);
    cfg_buf_puts(out, "\",backend=\"");
    label_value(out, info->backend != NULL ? info->backend : "");
    cfg_buf_puts(out, "\"} 1\n");
    cfg_buf_puts(out, "# HELP process_start_time_seconds Unix time at which the process started.\n"
                      "# TYPE process_start_time_seconds gauge\n");
    cfg_buf_printf(out, "process_start_time_seconds %.3f\n", m->started);
}
