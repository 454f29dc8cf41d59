// SPDX-License-Identifier: Apache-2.0
//
// options.c: the options of the load generator. One table gives names, help texts and places; every
// bad value is an error that names its option. Strings point into argv.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/load.h"

enum kind { TEXT, COUNT, NUMBER, DIST, FLAG, GOALS, SEED };

struct option {
    const char *name, *value, *help;
    enum kind kind;
    size_t offset;
    double lo, hi; /* NUMBER and COUNT */
};

#define AT(field) offsetof(struct load_options, field)
#define FAR       1e9

/* A COUNT is an int, but for total, which is a long. */
static const struct option table[] = {
    {"url", "URL", "Server, such as http://127.0.0.1:8000 (with or without /v1). Required.", TEXT,
     AT(url), 0, 0},
    {"model", "NAME", "Model to ask for. Required.", TEXT, AT(model), 0, 0},
    {"api-key", "KEY", "Sent as a bearer token.", TEXT, AT(api_key), 0, 0},
    {"cacert", "FILE", "Trust the certificates in this file (PEM) and no others.", TEXT, AT(cacert),
     0, 0},
    {"insecure", NULL, "Take any certificate.", FLAG, AT(insecure), 0, 0},
    {"chats", "N", "Chats at once (default 1). With --rate: the most, default 1000.", COUNT,
     AT(chats), 1, 100000},
    {"rate", "R", "Chats arrive at random (Poisson), R a second, whatever runs.", NUMBER, AT(rate),
     1e-6, 1e6},
    {"total", "N", "Chats in all (default without --seconds: --chats, with --rate 100).", COUNT,
     AT(total), 1, FAR},
    {"seconds", "S", "No new turn starts after S seconds; what runs may finish.", NUMBER,
     AT(seconds), 1e-3, FAR},
    {"ramp", "S", "Spread the start of the first --chats chats over S seconds.", NUMBER, AT(ramp),
     0, FAR},
    {"turns", "K", "Turns of a chat (default 1; with --file all that a line has).", COUNT,
     AT(turns), 1, 10000},
    {"think-ms", "DIST", "Pause before each turn after the first (default fixed:0).", DIST,
     AT(think_ms), 0, 0},
    {"prompt-words", "DIST", "Words of a message (default fixed:20).", DIST, AT(prompt_words), 0,
     0},
    {"max-tokens", "DIST", "max_tokens of a request (default fixed:64).", DIST, AT(max_tokens), 0,
     0},
    {"file", "FILE", "Messages from JSON lines: see below.", TEXT, AT(file), 0, 0},
    {"ignore-eos", NULL, "Send ignore_eos: every answer has all its max_tokens.", FLAG,
     AT(ignore_eos), 0, 0},
    {"temperature", "T", "Sent with each request (default: not sent).", NUMBER, AT(temperature), 0,
     2},
    {"no-stream", NULL, "Ask for whole answers.", FLAG, AT(no_stream), 0, 0},
    {"cancel-share", "P", "Share of requests (0 to 1) closed at a random point.", NUMBER,
     AT(cancel_share), 0, 1},
    {"timeout", "S", "For one request (default 600).", NUMBER, AT(timeout), 1e-3, 1e6},
    {"goodput", "LIMITS", "Such as ttft:500,tpot:50,itl:200,e2e:9000, in milliseconds.", GOALS,
     AT(goals), 0, 0},
    {"seed", "N", "Of prompts, lengths, arrivals, and of each request (default 1).", SEED, AT(seed),
     0, 0},
    {"csv", "FILE", "Write one row for each request.", TEXT, AT(csv), 0, 0},
    {"json", "FILE", "Write the summary.", TEXT, AT(json), 0, 0},
    {"quiet", NULL, "No progress lines on stderr.", FLAG, AT(quiet), 0, 0},
};
enum { N_OPTIONS = sizeof table / sizeof *table };

static void print_help(void)
{
    puts("Usage: chatload --url URL --model NAME [--key value | --key=value]...\n\n"
         "Holds many chats at once with an OpenAI-compatible server and measures them.\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        char left[40];
        snprintf(left, sizeof left, "--%s%s%s", table[i].name, table[i].value ? " " : "",
                 table[i].value ? table[i].value : "");
        printf("  %-22s%s\n", left, table[i].help);
    }
    puts("  --help                Print this text and exit.\n\n"
         "DIST is fixed:N, uniform:LO:HI or lognormal:MU:SIGMA (of the natural logarithm).\n"
         "A line of --file is a JSON string, {\"prompt\": \"...\"} or {\"messages\": [...]}; the\n"
         "user's messages are the turns of a chat, and chat i takes line i, round and round.\n"
         "Exit status: 0 when every request was answered or cancelled on purpose, else 1; 2 for\n"
         "a bad option or when nothing could be run.");
}

static int set_number(const struct option *o, const char *text, double *out, struct error *err)
{
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !(x >= o->lo && x <= o->hi))
        return cfg_fail(err, CFG_EINVAL, "--%s: '%s' is no number from %g to %g", o->name, text,
                        o->lo, o->hi);
    *out = x;
    return CFG_OK;
}

static int set_count(const struct option *o, const char *text, void *at, struct error *err)
{
    double x = 0;
    int rc = set_number(o, text, &x, err);
    if (rc) return rc;
    if (x != floor(x))
        return cfg_fail(err, CFG_EINVAL, "--%s: '%s' is no whole number", o->name, text);
    if (o->offset == AT(total))
        *(long *)at = (long)x;
    else
        *(int *)at = (int)x;
    return CFG_OK;
}

static int set_seed(const struct option *o, const char *text, uint64_t *out, struct error *err)
{
    char *end;
    unsigned long long x = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end)
        return cfg_fail(err, CFG_EINVAL, "--%s: '%s' is no whole number", o->name, text);
    *out = x;
    return CFG_OK;
}

/* ttft:500,tpot:50 */
static int set_goals(const struct option *o, const char *text, struct load_goals *goals,
                     struct error *err)
{
    static const char *const names[] = {"ttft:", "tpot:", "itl:", "e2e:"};
    double *const at[] = {&goals->ttft, &goals->tpot, &goals->itl, &goals->e2e};
    const char *p = text;
    for (;;) {
        int k = 0;
        while (k < 4 && strncmp(p, names[k], strlen(names[k])) != 0) k++;
        if (k == 4) break;
        p += strlen(names[k]);
        char *end;
        double ms = strtod(p, &end);
        if (end == p || !(ms > 0 && ms < FAR)) break;
        *at[k] = ms / 1000;
        if (!*end) return CFG_OK;
        if (*end != ',') break;
        p = end + 1;
    }
    return cfg_fail(
        err, CFG_EINVAL,
        "--%s: '%s' is no list of limits in ms such as ttft:500,tpot:50,itl:200,e2e:9000", o->name,
        text);
}

static int set(const struct option *o, const char *text, struct load_options *opt,
               struct error *err)
{
    void *at = (char *)opt + o->offset;
    int rc = CFG_OK;
    switch (o->kind) {
    case TEXT:
        if (!*text) return cfg_fail(err, CFG_EINVAL, "--%s: an empty value", o->name);
        *(const char **)at = text;
        return CFG_OK;
    case COUNT:
        return set_count(o, text, at, err);
    case NUMBER:
        return set_number(o, text, at, err);
    case DIST:
        rc = load_dist_parse(at, text, err);
        return rc ? cfg_fail(err, rc, "--%s: %s", o->name, err->message) : CFG_OK;
    case FLAG:
        *(bool *)at = true;
        return CFG_OK;
    case GOALS:
        return set_goals(o, text, at, err);
    case SEED:
        return set_seed(o, text, at, err);
    }
    return CFG_OK;
}

static const struct option *find(const char *name, size_t n)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (strlen(table[i].name) == n && memcmp(table[i].name, name, n) == 0) return &table[i];
    return NULL;
}

/* What no single option can tell, and the defaults that depend on others. */
static int complete(struct load_options *opt, struct error *err)
{
    if (!opt->url) return cfg_fail(err, CFG_EINVAL, "--url is required");
    if (!opt->model) return cfg_fail(err, CFG_EINVAL, "--model is required");
    if (strncmp(opt->url, "http://", 7) != 0 && strncmp(opt->url, "https://", 8) != 0)
        return cfg_fail(err, CFG_EINVAL, "--url: '%s' begins with neither http:// nor https://",
                        opt->url);
    if (opt->cacert && opt->insecure)
        return cfg_fail(err, CFG_EINVAL, "--insecure: not beside --cacert");
    if (opt->rate > 0 && opt->ramp > 0)
        return cfg_fail(err, CFG_EINVAL, "--ramp: only without --rate");
    const struct load_goals *g = &opt->goals;
    if (opt->no_stream && (g->ttft > 0 || g->tpot > 0 || g->itl > 0))
        return cfg_fail(err, CFG_EINVAL, "--goodput: without streams only e2e can be measured");
    if (opt->chats == 0) opt->chats = opt->rate > 0 ? 1000 : 1;
    if (opt->total == 0 && !(opt->seconds > 0)) opt->total = opt->rate > 0 ? 100 : opt->chats;
    return CFG_OK;
}

int load_options_parse(struct load_options *opt, int argc, char *const *argv, struct error *err)
{
    *opt = (struct load_options){.think_ms = {LOAD_FIXED, 0, 0},
                                 .prompt_words = {LOAD_FIXED, 20, 0},
                                 .max_tokens = {LOAD_FIXED, 64, 0},
                                 .temperature = -1,
                                 .timeout = 600,
                                 .seed = 1};
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--help") == 0) {
            print_help();
            return CFG_PARSE_EXIT;
        }
        if (strncmp(arg, "--", 2) != 0)
            return cfg_fail(err, CFG_EINVAL, "'%s' is no option: see --help", arg);
        const char *equals = strchr(arg, '=');
        size_t n = equals ? (size_t)(equals - arg) - 2 : strlen(arg) - 2;
        const struct option *o = find(arg + 2, n);
        if (!o) return cfg_fail(err, CFG_EINVAL, "unknown option '%s': see --help", arg);
        const char *value = equals ? equals + 1 : NULL;
        if (o->kind == FLAG && value)
            return cfg_fail(err, CFG_EINVAL, "--%s takes no value", o->name);
        if (o->kind != FLAG && !value) {
            if (i + 1 == argc) return cfg_fail(err, CFG_EINVAL, "--%s needs a value", o->name);
            value = argv[++i];
        }
        int rc = set(o, value, opt, err);
        if (rc) return rc;
    }
    return complete(opt, err);
}
