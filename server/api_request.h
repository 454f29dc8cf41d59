// SPDX-License-Identifier: Apache-2.0
//
// api_request.h (private to server/api_*.c): a checked request and the state of its answer. What
// parsing makes lives in the request's arena, the struct itself included; what grows while tokens
// arrive (text, log-probabilities) lives in buffers that api_request_free frees too, bounded by
// max_new tokens. One thread at a time: the parsing one, then the loop thread.
#ifndef OPENMOED_API_REQUEST_H
#define OPENMOED_API_REQUEST_H

#include "server/api_fields.h"
#include "server/api_format.h"
#include "server/api_responses.h"
#include "server/api_tables.h"
#include "server/api_tools.h"

#define API_MAX_N            16
#define API_MAX_STOPS        16
#define API_MAX_STOP_BYTES   1024
#define API_MAX_STOP_IDS     256
#define API_MAX_SALT_BYTES   256
#define API_MAX_BIAS         4096
#define API_TOKEN_BYTES_MAX  256
#define API_USUAL_COMPLETION 16 /* tokens of a completion that names no limit: OpenAI's */

struct api_prompt {
    const int32_t *ids; /* [n], n >= 1 */
    size_t n;
    int max_new;    /* tokens to generate at most */
    int32_t *turns; /* [n_turns] where a chat's turns begin; completions: none */
    size_t n_turns;
    const char *text; /* echo: the text repeated before the answer; else NULL */
    size_t text_len;
};

/* JSON of log-probabilities: the list elements, without brackets. Chat uses `tokens` alone, for
 * whole entries; a completion has five parallel lists. */
struct api_logprobs {
    struct cfg_buf tokens, values, tops, offsets, bytes;
};

/* A generated token whose text has not been shown yet. */
struct api_held {
    struct engine_result result;
    size_t start;  /* bytes of generated text before it */
    size_t offset; /* characters of the answer's text before it */
    bool end;      /* an end token: an id, but no text and no log-probability */
};

struct api_choice {
    struct engine_detok *detok; /* NULL without a tokenizer */
    struct cfg_buf held;        /* of struct api_held, oldest first */
    struct api_logprobs lp;     /* whole: all so far; streamed: of the next chunk */
    struct cfg_buf ids;         /* the same for token_ids: "1,2,3" */
    struct cfg_buf text;        /* whole only */
    struct cfg_buf calls;       /* of struct api_call, in order */
    struct api_call_parser parser;
    struct cfg_buf prompt_lp; /* prompt_logprobs: the list elements, without brackets */
    size_t pushed, shown;     /* bytes of generated text: made, and released by the detokeniser */
    size_t chars;             /* characters (code points) before the next token */
    size_t n_generated;
    bool cache_noted;   /* its cached prompt tokens are counted */
    bool begun;         /* the echo has been put out */
    bool sent;          /* streamed: a chunk of this choice went out */
    const char *finish; /* static; NULL until the choice is finished */
};

struct api_request {
    struct cfg_arena *arena; /* holds this struct too */
    const struct api_env *env;
    enum api_kind kind;
    uint32_t tenant;
    char id[144];
    int64_t created;
    struct cfg_buf head; /* of every chunk or body: {"id": ... "choices":[ */

    bool stream, include_usage, continuous_usage, echo, return_token_ids;
    bool tokens_as_ids;    /* log-probabilities name tokens by their ids */
    bool continue_message; /* chat: the last message is the assistant's, and goes on */
    bool no_start;         /* completions: no start token in front of a text */
    bool tier_given;       /* the answer has a service_tier */
    const char *metadata;  /* JSON text to repeat in the answer, or NULL */
    int64_t truncate;      /* tokens of a prompt to keep: 0 all, -1 as many as fit */
    bool truncate_right;   /* the first ones are kept, not the last */
    int n_prompt_logprobs; /* -1 none; else alternatives for each token of the prompt */
    bool skip_special_tokens, include_stop, ignore_eos;
    struct sched_routing *routing; /* NULL, or asked for: counters of all its choices */
    bool seed_given, max_given;
    int64_t max_tokens;              /* when max_given */
    const char *max_name;            /* the field it came from */
    int priority;                    /* lower runs earlier */
    float timeout;                   /* seconds; 0 = none */
    uint64_t cache_salt[2];          /* keyed hash of the caller's; zero = none */
    struct engine_sampling sampling; /* all but the seed of a choice; its grammar is a reference */
    struct api_format format;        /* what the answer must be */
    struct api_tools tools;
    struct api_response *response; /* NULL, or what a request to /v1/responses is about */
    const char **stops;            /* [n_stops] */
    size_t n_stops;

    struct api_prompt *prompts; /* [n_prompts] */
    size_t n_prompts;
    size_t n; /* choices of each prompt */

    struct api_choice *choices; /* [n_prompts * n] */
    size_t n_finished;
    size_t cached_tokens; /* prompt tokens that came from the prefix cache, first choices only */
};

/* ---- parsing (api_request.c, api_chat.c, api_completion.c) ----------------------------------- */

/* As api_parse, of a body that is a tree already; what is kept has `size` bytes or so. */
int api_parse_object(struct api_request **out, enum api_kind kind, const cJSON *root, size_t size,
                     const struct api_env *env, uint32_t tenant,
                     struct api_error *err) CFG_WARN_UNUSED;
int api_read_chat(struct api_request *r, const cJSON *root, struct api_error *err) CFG_WARN_UNUSED;
int api_read_completion(struct api_request *r, const cJSON *root,
                        struct api_error *err) CFG_WARN_UNUSED;
/* Room for n prompts, each with r->n choices; `param` is the field to blame for too many. */
int api_new_prompts(struct api_request *r, size_t n, const char *param,
                    struct api_error *err) CFG_WARN_UNUSED;
/* Checks n tokens against the context and sets p->max_new. `param` is the field that holds the
 * prompt. */
int api_fit_prompt(const struct api_request *r, struct api_prompt *p, size_t n, const char *param,
                   struct api_error *err) CFG_WARN_UNUSED;
/* Copies ids into the request. */
int api_keep_ids(struct api_request *r, struct api_prompt *p, const int32_t *ids, size_t n,
                 struct api_error *err) CFG_WARN_UNUSED;
int api_tokenizer_missing(struct api_error *err, const char *param);

/* ---- fields beside the sampling ones (api_extra.c) ---------------------------------------------
 */

int api_read_extra(struct api_request *r, const cJSON *root, struct api_error *err) CFG_WARN_UNUSED;
int api_read_metadata(struct api_request *r, const cJSON *root,
                      struct api_error *err) CFG_WARN_UNUSED;
int api_read_tier(struct api_request *r, const cJSON *root, struct api_error *err) CFG_WARN_UNUSED;
/* How many of a prompt's n tokens stay, and how many in front of them go. */
size_t api_kept_tokens(const struct api_request *r, size_t n, size_t *skip);
/* Moves p->turns to where they are once the prompt is cut. */
void api_cut_turns(struct api_prompt *p, size_t skip, size_t kept);

/* Whether the log-probabilities of the prompt are part of the answer's own. */
static inline bool api_scores_echo(const struct api_request *r)
{
    return r->echo && r->kind == API_COMPLETION && r->sampling.n_logprobs >= 0;
}

/* Whether the prompt of this choice is scored for prompt_logprobs; a chat has them once. */
static inline bool api_scores_prompt(const struct api_request *r, size_t i)
{
    return r->n_prompt_logprobs >= 0 && (r->kind == API_COMPLETION || i == 0);
}

/* Whether the answer of a choice starts a text, and so loses the space of its first piece: a reply
 * does, and a completion of nothing but the start token. */
bool api_starts_text(const struct api_request *r, size_t i);

/* Text of an answer: gathered, or sent (api_answer.c). */
void api_put_text(struct api_request *r, size_t i, const char *text, size_t n, struct cfg_buf *out);

/* ---- rendering (api_render.c) ---------------------------------------------------------------- */

/* The bytes one id stands for: none for control ids or without a tokenizer. Returns how many. */
size_t api_token_bytes(const struct api_request *r, int32_t id, char out[API_TOKEN_BYTES_MAX]);
/* The text one id adds to an answer. Returns its length. */
size_t api_token_text(const struct api_request *r, int32_t id, char out[API_TOKEN_BYTES_MAX]);
size_t api_count_chars(const char *s, size_t n);
/* Adds one token of the prompt to a choice's prompt_logprobs; NULL: the first, which nothing
 * predicts. */
void api_prompt_logprobs_add(const struct api_request *r, struct api_choice *c,
                             const struct engine_result *result);
/* Adds one token; `unknown` for the first of a prompt, which nothing predicts. */
void api_logprobs_add(const struct api_request *r, struct api_logprobs *lp,
                      const struct engine_result *result, size_t offset, bool unknown);
void api_ids_add(struct cfg_buf *ids, int32_t id);
void api_render_head(struct api_request *r);
/* One chunk of choice i with what has gathered in its lp and ids, which it empties. A finish_reason
 * comes with an empty delta. */
void api_render_chunk(struct api_request *r, size_t i, const char *text, size_t n,
                      const char *finish, struct cfg_buf *out);
/* `,"openmoed":{...}`: what the router did with the request's tokens (api_routing.c); nothing when
 * it was not asked for. */
void api_render_routing(const struct api_request *r, struct cfg_buf *out);
/* The same with a chat's delta as it is given, less its braces. */
void api_render_delta(struct api_request *r, size_t i, const struct cfg_buf *delta,
                      struct cfg_buf *out);
void api_render_stream_end(struct api_request *r, struct cfg_buf *out);

#endif
