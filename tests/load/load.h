// SPDX-License-Identifier: Apache-2.0
//
// load.h (private to tests/load/): the pure parts of the load generator: random numbers and the
// distributions drawn with them, histograms, event streams, the chunks in them, options and
// prompts. Nothing here knows of sockets or libcurl, so that test_chatload.c can test all of it;
// what runs the load stands in run.h. One thread. Strings of options point into argv.
#ifndef OPENMOED_LOAD_H
#define OPENMOED_LOAD_H

#include "config/config.h"

/* ---- random numbers ---------------------------------------------------------------------------
 */

/* Every chat has its own generator, seeded by --seed and its number: what a chat asks does not
 * depend on when it runs. */
struct load_rng {
    uint64_t state;
};
void load_rng_seed(struct load_rng *rng, uint64_t seed, uint64_t stream);
uint64_t load_rng_next(struct load_rng *rng);
double load_rng_unit(struct load_rng *rng);        /* in [0, 1) */
double load_rng_exponential(struct load_rng *rng); /* mean 1 */

enum load_dist_kind { LOAD_FIXED, LOAD_UNIFORM, LOAD_LOGNORMAL };
struct load_dist {
    enum load_dist_kind kind;
    double a, b; /* fixed:a, uniform:a:b (whole numbers, both ends), lognormal:mu:sigma */
};
enum { LOAD_DIST_MAX = 1000000 }; /* largest draw; a lognormal's tail is cut there */

/* text: fixed:N, uniform:LO:HI or lognormal:MU:SIGMA (of the natural logarithm). */
int load_dist_parse(struct load_dist *dist, const char *text, struct error *err) CFG_WARN_UNUSED;
/* A whole number in [lowest, LOAD_DIST_MAX]. */
int load_dist_draw(const struct load_dist *dist, struct load_rng *rng, int lowest);

/* ---- histograms of durations --------------------------------------------------------------------
 */

/* Nanoseconds in 128 buckets for each power of two: a percentile is off by at most 0.4%, whatever
 * the number of samples, and memory is constant however long the load runs. Mean, least and most
 * are exact. Start with zeroes. */
enum { LOAD_HIST_TOP = 44, LOAD_HIST_BUCKETS = (LOAD_HIST_TOP - 7) * 128 + 128 };
struct load_hist {
    uint64_t count;
    double sum, min, max; /* seconds */
    uint64_t buckets[LOAD_HIST_BUCKETS];
};
void load_hist_add(struct load_hist *h, double seconds);
double load_hist_mean(const struct load_hist *h); /* NaN when empty, as the next */
/* The smallest sample that at least the share q (0..1) of all samples does not exceed. */
double load_hist_quantile(const struct load_hist *h, double q);

/* ---- event streams ------------------------------------------------------------------------------
 */

enum { LOAD_EVENT_MAX = 1024 * 1024 }; /* bytes of one event or line */

/* Splits a text/event-stream that comes in pieces of any size into the data of its events. Start
 * with zeroes; load_sse_reset before the next stream. */
struct load_sse {
    struct cfg_buf line; /* an unfinished line */
    struct cfg_buf data; /* of the event at hand */
    bool has_data, after_cr;
};
/* Calls on_data for each event that this piece ends. Returns CFG_OK, or the first nonzero answer of
 * on_data, or CFG_EFULL when an event is longer than LOAD_EVENT_MAX (or memory is out). */
int load_sse_feed(struct load_sse *sse, const char *bytes, size_t n,
                  int (*on_data)(void *ctx, const char *data, size_t n), void *ctx) CFG_WARN_UNUSED;
void load_sse_reset(struct load_sse *sse);
void load_sse_free(struct load_sse *sse);

/* What a chunk or a whole answer says; text itself goes elsewhere. */
struct load_chunk {
    bool has_text;   /* delta or message with content, not "" */
    char finish[24]; /* finish_reason, "" = null or absent */
    long prompt_tokens, completion_tokens, cached_tokens; /* usage; -1 = absent */
    bool has_error;
    char error_code[64]; /* its code, else its type, else "" */
    char error_message[240];
};
/* Reads one JSON text in a single pass, without building a tree, and appends the content of choice
 * 0, decoded, to text. Fields of other names are skipped. CFG_EINVAL: not JSON of that shape. */
int load_chunk_scan(const char *json, size_t n, struct load_chunk *out,
                    struct cfg_buf *text) CFG_WARN_UNUSED;

/* ---- options --------------------------------------------------------------------------------- */

/* Limits that a request must meet to count as good; 0 = none. Seconds. */
struct load_goals {
    double ttft, tpot, itl, e2e;
};

struct load_options {
    const char *url, *model, *api_key, *cacert, *file, *csv, *json;
    int chats;      /* at once */
    double rate;    /* chats a second; 0 = closed loop */
    long total;     /* chats; 0 = no limit */
    double seconds; /* new turns start this long; 0 = no limit */
    int turns;      /* 0 = not given: 1, or with a file all it has */
    double ramp;    /* seconds over which a closed loop starts */
    struct load_dist think_ms, prompt_words, max_tokens;
    bool ignore_eos, no_stream, quiet, insecure;
    double temperature; /* negative = not sent */
    double timeout;     /* seconds for one request */
    double cancel_share;
    struct load_goals goals;
    uint64_t seed;
};
/* CFG_PARSE_RUN; CFG_PARSE_EXIT after --help; or a negative code naming the option. */
int load_options_parse(struct load_options *opt, int argc, char *const *argv,
                       struct error *err) CFG_WARN_UNUSED;

/* ---- prompts --------------------------------------------------------------------------------- */

/* The messages of one line of --file, rendered as JSON objects. */
struct load_script {
    char *system; /* system messages before the first turn, comma separated; NULL = none */
    char **turns; /* [n_turns] */
    int n_turns;
};
struct load_scripts {
    struct load_script *items; /* [n] */
    size_t n, cap;
};
/* A line is a JSON string, {"prompt":"..."} or {"messages":[{"role","content"},...]}; of these the
 * user's messages are the turns, and the assistant's are left out: the server's own replies take
 * their place. */
int load_scripts_read(struct load_scripts *s, const char *path, struct error *err) CFG_WARN_UNUSED;
/* The same for one line, which is appended to s. */
int load_scripts_add(struct load_scripts *s, const char *line, size_t n,
                     struct error *err) CFG_WARN_UNUSED;
void load_scripts_free(struct load_scripts *s);

/* Appends n_words random English words with a capital and a question mark. */
void load_prompt_words(struct cfg_buf *out, struct load_rng *rng, int n_words);

#endif
