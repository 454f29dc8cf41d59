// SPDX-License-Identifier: Apache-2.0
//
// api.h (private to server/): the OpenAI interface without sockets. A body goes in, jobs for the
// scheduler come out; scheduler events go in, bytes for the client come out. The transport (loop.c,
// request.c) knows nothing of JSON fields, and this side knows nothing of connections, so that
// every answer can be tested as a string.
//
// Threads: api_parse may run on any thread (big bodies are parsed on a libuv worker); afterwards a
// request belongs to the loop thread. What a body becomes lives in one capped arena; what gathers
// of the answer is bounded by the tokens asked for. api_request_free frees both.
#ifndef OPENMOED_API_H
#define OPENMOED_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "engine/engine.h"
#include "scheduler/scheduler.h"

/* What becomes {"error":{"message","type","param","code"}} with an HTTP status. */
struct api_error {
    int status;       /* HTTP */
    const char *type; /* static: "invalid_request_error", "server_error", ... */
    const char *code; /* static, or NULL for null */
    char param[64];   /* "" for null */
    char message[480];
};
/* Fills err and returns -1. type follows from the status (400, 401, 404, 405, 413, 415, 429, 5xx).
 */
int api_fail(struct api_error *err, int status, const char *code, const char *param,
             const char *fmt, ...) CFG_PRINTF(5, 6);
void api_error_body(const struct api_error *err, struct cfg_buf *out);
/* The same as an SSE event: "data: {...}\n\n". */
void api_error_event(const struct api_error *err, struct cfg_buf *out);

/* Grammars of earlier requests, at most so many bytes of them. Any thread; NULL: no memory. */
struct api_grammars;
struct api_grammars *api_grammars_new(size_t max_bytes);
void api_grammars_free(struct api_grammars *c); /* c may be NULL */

/* Responses that may be continued, at most so many and so many bytes: of one tenant, and in all.
 * Any thread; NULL: no memory. */
struct api_store;
struct api_store_limits {
    size_t tenant_n, tenant_bytes, n, bytes;
};
struct api_store *api_store_new(const struct api_store_limits *limits);
void api_store_free(struct api_store *s); /* s may be NULL */

/* What parsing needs to know of the daemon. Outlives every request; read-only but for what keeps
 * its own lock. */
struct api_env {
    const struct engine_info *info;
    const struct engine_tokenizer *tokenizer; /* NULL: token-id prompts only */
    const char *model_name;        /* --served-model-name; NULL: none that this caller may use */
    int64_t created;               /* unix seconds: /v1/models */
    uint64_t secret[2];            /* random: keys the hash of cache_salt */
    uint64_t seed;                 /* --seed; 0 = a random one for each request */
    int max_choices;               /* n times prompts, at most */
    int json_depth;                /* of a body: how deep it may be nested, ... */
    int json_values;               /* ... and how many values it may have */
    struct api_grammars *grammars; /* NULL: none are kept */
    struct api_store *store;       /* NULL: likewise */
};

enum api_kind { API_CHAT, API_COMPLETION };

/* Whether parsing the body may take long however small it is, so that it should not happen on the
 * loop thread, nor on many workers at once: a grammar may have to be compiled. */
bool api_is_slow(const char *body, size_t n);

struct api_request;
/* Checks every field by name, type and range; tokenises; refuses a prompt too long for the context.
 * What is kept of it belongs to the tenant (0: there are none). */
int api_parse(struct api_request **out, enum api_kind kind, const char *body, size_t n,
              const struct api_env *env, uint32_t tenant, struct api_error *err) CFG_WARN_UNUSED;
/* The same for /v1/responses. */
int api_parse_response(struct api_request **out, const char *body, size_t n,
                       const struct api_env *env, uint32_t tenant,
                       struct api_error *err) CFG_WARN_UNUSED;
void api_request_free(struct api_request *r); /* r may be NULL */
bool api_is_stream(const struct api_request *r);
const char *api_request_id(const struct api_request *r); /* "chatcmpl-..." or "cmpl-..." */
size_t api_prompt_tokens(const struct api_request *r);

/* One job for every choice: prompts x n. Job i answers choice i. The transport gives the job its
 * id. */
size_t api_n_jobs(const struct api_request *r);
void api_job(const struct api_request *r, size_t i, uint64_t id, struct sched_job *out);

/* ---- the answer ------------------------------------------------------------------------------ */

/* Streaming: what is sent before the first token (role chunks). Nothing for a whole answer. */
void api_begin(struct api_request *r, struct cfg_buf *out);
/* Feeds one event of choice i. Streaming: appends the SSE bytes it causes, and after the last
 * choice the usage chunk and "data: [DONE]". Whole: only gathers. *cancel is set when the choice
 * ended by a stop string while its job still runs: the transport cancels the job (its DONE still
 * comes). A failed job fills err and returns -1: before any byte was sent this is an HTTP error,
 * after it an error event. */
int api_event(struct api_request *r, size_t i, const struct sched_event *ev, struct cfg_buf *out,
              bool *cancel, struct api_error *err) CFG_WARN_UNUSED;
/* The stream ends with this error. */
void api_stream_error(struct api_request *r, const struct api_error *err, struct cfg_buf *out);
bool api_finished(const struct api_request *r);            /* every choice has its finish_reason */
size_t api_completion_tokens(const struct api_request *r); /* so far, all choices */
/* The whole JSON answer, once api_finished. */
void api_body(struct api_request *r, struct cfg_buf *out);

/* ---- small endpoints: body in, JSON out ------------------------------------------------------ */

int api_tokenize(const char *body, size_t n, const struct api_env *env, struct cfg_buf *out,
                 struct api_error *err) CFG_WARN_UNUSED;
int api_detokenize(const char *body, size_t n, const struct api_env *env, struct cfg_buf *out,
                   struct api_error *err) CFG_WARN_UNUSED;
void api_models(const struct api_env *env, struct cfg_buf *out);
/* GET /v1/models/{id} */
int api_model(const char *id, const struct api_env *env, struct cfg_buf *out,
              struct api_error *err) CFG_WARN_UNUSED;
void api_version(struct cfg_buf *out);
/* /v1/responses/{id}: what was kept of it; DELETE; and its input items: limit 1 to 100, those
 * behind the one with the id `after` (NULL: all), the newest first unless `ascending`. */
int api_response_get(const char *id, const struct api_env *env, uint32_t tenant,
                     struct cfg_buf *out, struct api_error *err) CFG_WARN_UNUSED;
int api_response_delete(const char *id, const struct api_env *env, uint32_t tenant,
                        struct cfg_buf *out, struct api_error *err) CFG_WARN_UNUSED;
int api_response_items(const char *id, const struct api_env *env, uint32_t tenant, int limit,
                       const char *after, bool ascending, struct cfg_buf *out,
                       struct api_error *err) CFG_WARN_UNUSED;

#endif
