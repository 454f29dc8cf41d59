// SPDX-License-Identifier: Apache-2.0
//
// report.c: gathers results into histograms and counters and shows them: a table on stdout, a row
// for each request (--csv, written as they come) and a summary (--json). Latencies are of answered
// requests; gaps between contents are of all streams. Memory does not grow with the load.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/run.h"

enum { MAX_KINDS = 32 };

struct kind {
    char name[96], message[240];
    long count;
};

enum measure { TTFT, TTFT_1, TTFT_2, TTFT_LATER, TPOT, ITL, E2E, N_MEASURES };
static const struct {
    const char *key, *label;
} measures[N_MEASURES] = {
    {"ttft", "TTFT"},
    {"ttft_turn_1", "  turn 1"},
    {"ttft_turn_2", "  turn 2"},
    {"ttft_later", "  later"},
    {"tpot", "TPOT"},
    {"itl", "ITL"},
    {"e2e", "E2E"},
};

struct load_report {
    const struct load_options *opt;
    FILE *csv, *json;
    struct load_hist hist[N_MEASURES];
    long answered, cancelled, errors, good;
    long without_usage; /* answers whose tokens had to be counted as contents */
    long resent;        /* on another connection, after a kept one was lost */
    double prompt_tokens, cached_tokens, output_tokens;
    struct kind kinds[MAX_KINDS]; /* the last takes what does not fit */
    int n_kinds;
};

static int open_file(FILE **out, const char *path, struct error *err)
{
    if (!path) return CFG_OK;
    *out = fopen(path, "we");
    return *out ? CFG_OK : cfg_fail(err, CFG_EIO, "%s: %s", path, strerror(errno));
}

int load_report_new(struct load_report **out, const struct load_options *opt, struct error *err)
{
    struct load_report *r = calloc(1, sizeof *r);
    if (!r) return cfg_fail(err, CFG_ENOMEM, "no memory for the report");
    r->opt = opt;
    int rc = open_file(&r->csv, opt->csv, err);
    if (!rc) rc = open_file(&r->json, opt->json, err);
    if (rc) {
        load_report_free(r);
        return rc;
    }
    if (r->csv)
        fputs("chat,turn,start_s,outcome,status,error,ttft_ms,tpot_ms,itl_max_ms,e2e_ms,"
              "prompt_tokens,cached_tokens,completion_tokens,contents,finish_reason\n",
              r->csv);
    *out = r;
    return CFG_OK;
}

void load_report_free(struct load_report *r)
{
    if (!r) return;
    if (r->csv) fclose(r->csv);
    if (r->json) fclose(r->json);
    free(r);
}

long load_report_answered(const struct load_report *r)
{
    return r->answered;
}

long load_report_errors(const struct load_report *r)
{
    return r->errors;
}

/* ---- gathering ------------------------------------------------------------------------------- */

void load_report_gap(struct load_report *r, double seconds)
{
    load_hist_add(&r->hist[ITL], seconds);
}

static long tokens_of(const struct load_result *q)
{
    return q->completion_tokens >= 0 ? q->completion_tokens : q->chunks;
}

static double ttft_of(const struct load_result *q)
{
    return q->first > 0 ? q->first - q->start : NAN;
}

/* Between the first content and the last lie the tokens after the first. */
static double tpot_of(const struct load_result *q)
{
    long tokens = tokens_of(q);
    return q->chunks > 0 && tokens > 1 ? (q->last - q->first) / (double)(tokens - 1) : NAN;
}

/* A limit holds too where there is nothing to measure: one token has no TPOT. */
static bool meets(double value, double limit)
{
    return limit <= 0 || !(value > limit);
}

static void add_kind(struct load_report *r, const struct load_result *q)
{
    int i = 0;
    while (i < r->n_kinds && strcmp(r->kinds[i].name, q->kind) != 0) i++;
    if (i == MAX_KINDS) i = MAX_KINDS - 1;
    struct kind *k = &r->kinds[i];
    if (i == r->n_kinds) {
        r->n_kinds++;
        const char *name = i == MAX_KINDS - 1 ? "others" : q->kind;
        snprintf(k->name, sizeof k->name, "%s", name);
        snprintf(k->message, sizeof k->message, "%s", q->message);
    }
    k->count++;
}

static void write_row(const struct load_report *r, const struct load_result *q, double run_began)
{
    static const char *const outcomes[] = {"ok", "cancelled", "error"};
    FILE *f = r->csv;
    fprintf(f, "%ld,%d,%.6f,%s,%d,\"", q->chat, q->turn, q->start - run_began, outcomes[q->outcome],
            q->status);
    for (const char *s = q->kind; *s; s++) fputs(*s == '"' ? "\"\"" : (char[]){*s, '\0'}, f);
    fputs("\"", f);
    double ms[] = {ttft_of(q) * 1e3, tpot_of(q) * 1e3, q->chunks > 1 ? q->itl_max * 1e3 : NAN,
                   (q->end - q->start) * 1e3};
    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++)
        isnan(ms[i]) ? fputs(",", f) : fprintf(f, ",%.3f", ms[i]);
    long counts[] = {q->prompt_tokens, q->cached_tokens, q->completion_tokens, q->chunks};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        counts[i] < 0 ? fputs(",", f) : fprintf(f, ",%ld", counts[i]);
    fprintf(f, ",%s\n", q->finish);
}

void load_report_add(struct load_report *r, const struct load_result *q, double run_began)
{
    if (r->csv) write_row(r, q, run_began);
    if (q->sends > 1) r->resent++;
    if (q->outcome == LOAD_CANCELLED) {
        r->cancelled++;
        return;
    }
    if (q->outcome == LOAD_ERROR) {
        r->errors++;
        add_kind(r, q);
        return;
    }
    r->answered++;
    double ttft = ttft_of(q), tpot = tpot_of(q), e2e = q->end - q->start;
    if (!isnan(ttft)) {
        load_hist_add(&r->hist[TTFT], ttft);
        load_hist_add(&r->hist[q->turn > 2 ? TTFT_LATER : TTFT_1 + q->turn - 1], ttft);
    }
    if (!isnan(tpot)) load_hist_add(&r->hist[TPOT], tpot);
    load_hist_add(&r->hist[E2E], e2e);
    r->output_tokens += (double)tokens_of(q);
    if (q->completion_tokens < 0) r->without_usage++;
    if (q->prompt_tokens > 0) r->prompt_tokens += (double)q->prompt_tokens;
    if (q->cached_tokens > 0) r->cached_tokens += (double)q->cached_tokens;
    const struct load_goals *g = &r->opt->goals;
    r->good += meets(ttft, g->ttft) && meets(tpot, g->tpot) && meets(q->itl_max, g->itl) &&
               meets(e2e, g->e2e);
}

/* ---- showing --------------------------------------------------------------------------------- */

static bool has_goals(const struct load_report *r)
{
    const struct load_goals *g = &r->opt->goals;
    return g->ttft > 0 || g->tpot > 0 || g->itl > 0 || g->e2e > 0;
}

/* Requests that a goal could be asked of: those cancelled on purpose are not. */
static double good_share(const struct load_report *r)
{
    long asked = r->answered + r->errors;
    return asked ? (double)r->good / (double)asked : 0;
}

static void print_latencies(const struct load_report *r)
{
    printf("\n%-10s %9s %10s %10s %10s %10s %10s\n", "ms", "count", "mean", "p50", "p90", "p99",
           "max");
    for (int m = 0; m < N_MEASURES; m++) {
        const struct load_hist *h = &r->hist[m];
        if (h->count == 0 || (m >= TTFT_1 && m <= TTFT_LATER && r->hist[TTFT_2].count == 0))
            continue;
        printf("%-10s %9llu %10.2f %10.2f %10.2f %10.2f %10.2f\n", measures[m].label,
               (unsigned long long)h->count, load_hist_mean(h) * 1e3,
               load_hist_quantile(h, 0.5) * 1e3, load_hist_quantile(h, 0.9) * 1e3,
               load_hist_quantile(h, 0.99) * 1e3, h->max * 1e3);
    }
}

static void print_table(const struct load_report *r, const struct load_totals *t)
{
    double wall = t->ended - t->began;
    printf("%s, model %s\n", r->opt->url, r->opt->model);
    printf("%.2f s%s: %ld chats begun, %ld finished; at most %d requests open\n", wall,
           t->interrupted ? " (interrupted)" : "", t->chats_started, t->chats_finished, t->peak);
    printf("%ld answered, %ld cancelled, %ld errors\n", r->answered, r->cancelled, r->errors);
    printf("%.2f requests/s, %.1f output tokens/s, %.1f prompt tokens/s",
           (double)r->answered / wall, r->output_tokens / wall, r->prompt_tokens / wall);
    if (r->cached_tokens > 0) printf(" (%.1f%% cached)", 100 * r->cached_tokens / r->prompt_tokens);
    putchar('\n');
    if (r->without_usage)
        printf("%ld answers came without usage: a content was counted as a token\n",
               r->without_usage);
    if (r->resent)
        printf("%ld requests were sent twice: the server had closed their kept connection\n",
               r->resent);
    if (r->answered) print_latencies(r);
    if (has_goals(r))
        printf("\ngoodput: %.1f%% of requests met every limit, %.2f/s\n", 100 * good_share(r),
               (double)r->good / wall);
    if (r->n_kinds) printf("\nerrors\n");
    for (int i = 0; i < r->n_kinds; i++)
        printf("%9ld  %s%s%s\n", r->kinds[i].count, r->kinds[i].name,
               r->kinds[i].message[0] ? ": " : "", r->kinds[i].message);
    printf("\ngenerator: %.2f s of CPU, %.0f%% of one core\n", t->cpu, 100 * t->cpu / wall);
}

static void json_measure(struct cfg_buf *b, const char *key, const struct load_hist *h)
{
    cfg_buf_printf(b, ",\n  \"%s_ms\": ", key);
    if (h->count == 0) {
        cfg_buf_puts(b, "null");
        return;
    }
    cfg_buf_printf(b,
                   "{\"count\": %llu, \"mean\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, "
                   "\"max\": %.3f}",
                   (unsigned long long)h->count, load_hist_mean(h) * 1e3,
                   load_hist_quantile(h, 0.5) * 1e3, load_hist_quantile(h, 0.9) * 1e3,
                   load_hist_quantile(h, 0.99) * 1e3, h->max * 1e3);
}

static void render_json(const struct load_report *r, const struct load_totals *t, struct cfg_buf *b)
{
    double wall = t->ended - t->began;
    cfg_buf_puts(b, "{\n  \"url\": ");
    cfg_buf_json_string(b, r->opt->url, strlen(r->opt->url));
    cfg_buf_puts(b, ",\n  \"model\": ");
    cfg_buf_json_string(b, r->opt->model, strlen(r->opt->model));
    cfg_buf_printf(b, ",\n  \"seconds\": %.6f,\n  \"interrupted\": %s", wall,
                   t->interrupted ? "true" : "false");
    cfg_buf_printf(b, ",\n  \"chats\": {\"begun\": %ld, \"finished\": %ld}", t->chats_started,
                   t->chats_finished);
    cfg_buf_printf(b,
                   ",\n  \"requests\": {\"answered\": %ld, \"cancelled\": %ld, \"errors\": %ld, "
                   "\"sent_twice\": %ld, \"without_usage\": %ld, \"most_open\": %d}",
                   r->answered, r->cancelled, r->errors, r->resent, r->without_usage, t->peak);
    cfg_buf_printf(b, ",\n  \"tokens\": {\"prompt\": %.0f, \"cached\": %.0f, \"output\": %.0f}",
                   r->prompt_tokens, r->cached_tokens, r->output_tokens);
    cfg_buf_printf(b,
                   ",\n  \"per_second\": {\"requests\": %.4f, \"prompt_tokens\": %.2f, "
                   "\"output_tokens\": %.2f}",
                   (double)r->answered / wall, r->prompt_tokens / wall, r->output_tokens / wall);
    for (int m = 0; m < N_MEASURES; m++) json_measure(b, measures[m].key, &r->hist[m]);
    cfg_buf_puts(b, ",\n  \"goodput\": ");
    if (has_goals(r))
        cfg_buf_printf(b, "{\"share\": %.6f, \"per_second\": %.4f}", good_share(r),
                       (double)r->good / wall);
    else
        cfg_buf_puts(b, "null");
    cfg_buf_puts(b, ",\n  \"errors\": {");
    for (int i = 0; i < r->n_kinds; i++) {
        cfg_buf_puts(b, i ? ", " : "");
        cfg_buf_json_string(b, r->kinds[i].name, strlen(r->kinds[i].name));
        cfg_buf_printf(b, ": %ld", r->kinds[i].count);
    }
    cfg_buf_printf(b, "},\n  \"generator_cpu_seconds\": %.3f\n}\n", t->cpu);
}

/* Closes *f; a full disk is told here. */
static int close_file(FILE **f, const char *path, struct error *err)
{
    if (!*f) return CFG_OK;
    bool bad = ferror(*f);
    bad = fclose(*f) != 0 || bad;
    *f = NULL;
    return bad ? cfg_fail(err, CFG_EIO, "%s: could not be written whole", path) : CFG_OK;
}

int load_report_finish(struct load_report *r, const struct load_totals *totals, struct error *err)
{
    print_table(r, totals);
    fflush(stdout);
    int rc = close_file(&r->csv, r->opt->csv, err);
    if (rc || !r->json) return rc;
    struct cfg_buf b = {0};
    render_json(r, totals, &b);
    if (b.failed)
        rc = cfg_fail(err, CFG_ENOMEM, "no memory for the summary");
    else
        fwrite(b.data, 1, b.len, r->json);
    cfg_buf_free(&b);
    return rc ? rc : close_file(&r->json, r->opt->json, err);
}
