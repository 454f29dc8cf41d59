// SPDX-License-Identifier: Apache-2.0
//
// run.h (private to tests/load/): what runs and measures the load. run.c owns the event loop, its
// timers and one slot for each chat that can be open at once; chat.c fills a slot's request and
// reads its answer; report.c gathers results. One thread; all times are cfg_now() seconds.
#ifndef OPENMOED_LOAD_RUN_H
#define OPENMOED_LOAD_RUN_H

#include <curl/curl.h>

#include "tests/load/load.h"

/* ---- results --------------------------------------------------------------------------------- */

enum load_outcome { LOAD_OK, LOAD_CANCELLED, LOAD_ERROR };

/* One request. Times are 0 when that did not happen; counts -1 when they are not known. */
struct load_result {
    long chat;
    int turn; /* from 1 */
    enum load_outcome outcome;
    char kind[96];     /* of an error: the same words for the same cause */
    char message[240]; /* of an error: what was said about it */
    int status;        /* HTTP, 0 = none came */
    int sends;         /* 2 when a kept connection was lost and libcurl tried again */
    double start, end; /* handed to libcurl; over */
    double first;      /* first content, or the finish_reason of an empty answer */
    double last;       /* latest content */
    double itl_max;    /* longest gap between two contents */
    long chunks;       /* with content */
    long prompt_tokens, completion_tokens, cached_tokens;
    char finish[24];
};

/* What only the loop knows. */
struct load_totals {
    double began, ended;
    double cpu; /* seconds of this process */
    long chats_started, chats_finished;
    int peak; /* requests open at once */
    bool interrupted;
};

struct load_report;
/* Opens the files of --csv and --json, so that a bad path is known before the load. opt outlives
 * the report. */
int load_report_new(struct load_report **out, const struct load_options *opt,
                    struct error *err) CFG_WARN_UNUSED;
void load_report_free(struct load_report *r); /* may be NULL */
void load_report_gap(struct load_report *r, double seconds);
void load_report_add(struct load_report *r, const struct load_result *result, double run_began);
long load_report_answered(const struct load_report *r);
long load_report_errors(const struct load_report *r);
/* Prints the table on stdout and writes the files. */
int load_report_finish(struct load_report *r, const struct load_totals *totals,
                       struct error *err) CFG_WARN_UNUSED;

/* ---- chats ----------------------------------------------------------------------------------- */

enum load_phase {
    LOAD_IDLE,       /* the slot is free */
    LOAD_WAIT_START, /* a timer begins a chat */
    LOAD_WAIT_TURN,  /* a timer sends the next turn */
    LOAD_RUNNING,    /* a request is with libcurl; a timer may cancel it */
};

struct load_chat {
    const struct load_options *opt;
    const struct load_scripts *scripts;
    struct load_report *report;
    CURL *easy; /* made once, for all the slot's requests */
    char curl_error[CURL_ERROR_SIZE];

    /* the slot; run.c's */
    enum load_phase phase;
    unsigned timer; /* number of the latest timer; older ones are void */

    /* the chat */
    const struct load_script *script; /* NULL: random words */
    int turns;
    struct load_rng rng;
    struct cfg_buf messages; /* rendered history, comma separated */

    /* the request */
    struct cfg_buf body;   /* what libcurl sends from */
    struct cfg_buf answer; /* decoded text */
    struct cfg_buf whole;  /* the body of an answer that is no stream */
    struct load_sse sse;
    bool done;        /* data: [DONE] came */
    long cancel_at;   /* contents after which to hang up; 0 = none */
    double cancel_in; /* seconds after which to hang up; negative = none */
    bool cancelled;
    struct load_result result;
};

/* Sets a slot up; what it points to outlives it. */
int load_chat_init(struct load_chat *c, const struct load_options *opt,
                   const struct load_scripts *scripts, struct load_report *report, const char *url,
                   struct curl_slist *headers, struct error *err) CFG_WARN_UNUSED;
void load_chat_deinit(struct load_chat *c);
/* Begins chat number `number` (from 0): the history is empty. */
void load_chat_begin(struct load_chat *c, long number);
/* Adds the next message of the user and makes the request of it, ready for libcurl. */
int load_chat_request(struct load_chat *c, struct error *err) CFG_WARN_UNUSED;
/* The request is over: completes c->result and the history, and tells the report. */
void load_chat_finish(struct load_chat *c, CURLcode rc, double run_began);
/* Is there a turn after the one that finished? */
bool load_chat_goes_on(const struct load_chat *c);
double load_chat_think(struct load_chat *c); /* seconds before it */

/* ---- the loop -------------------------------------------------------------------------------- */

int load_run(const struct load_options *opt, const struct load_scripts *scripts,
             struct load_report *report, struct load_totals *totals,
             struct error *err) CFG_WARN_UNUSED;

#endif
