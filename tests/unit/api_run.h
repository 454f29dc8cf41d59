// SPDX-License-Identifier: Apache-2.0
//
// api_run.h: one request and what comes out of it, for tests of answers. The events are made up, of
// byte pieces, so that the text of every token is known whatever the vocabulary; the tokenizer and
// the detokeniser are the real ones. Ids and times are blanked before answers are compared whole.
#ifndef OPENMOED_TESTS_API_RUN_H
#define OPENMOED_TESTS_API_RUN_H

#include "api_support.h"

#include <stdlib.h>

#define HI                                                                                         \
    "\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"                                       \
    "{\"role\":\"user\",\"content\":\"hi\"}]"
#define CHAT   "{\"model\":\"m\"," HI ","
#define STREAM CHAT "\"stream\":true,"

/* ---- a request and what came out of it ------------------------------------------------------- */

struct run {
    struct api_request *r;
    struct cfg_buf out;
    int cancels;
};

static inline void start(struct run *run, enum api_kind kind, const struct api_env *env,
                         const char *body)
{
    *run = (struct run){.r = must_parse(kind, env, body)};
    api_begin(run->r, &run->out);
}

static inline void end(struct run *run)
{
    cfg_buf_free(&run->out);
    api_request_free(run->r);
}

static inline void feed(struct run *run, size_t i, const struct sched_event *ev)
{
    struct api_error err = {0};
    bool cancel = true;
    if (api_event(run->r, i, ev, &run->out, &cancel, &err)) fail_msg("event: %s", err.message);
    run->cancels += cancel;
}

static inline struct sched_event token_event(int32_t id, float logprob)
{
    return (struct sched_event){.kind = SCHED_TOKEN, .result = {.token = id, .logprob = logprob}};
}

/* One token event for every byte. */
static inline void feed_bytes(struct run *run, size_t i, const char *bytes)
{
    for (; *bytes; bytes++) {
        struct sched_event ev = token_event(byte_id((unsigned char)*bytes), -0.5f);
        feed(run, i, &ev);
    }
}

static inline void feed_end(struct run *run, size_t i)
{
    struct sched_event ev = token_event(support.info.eos_id, -0.25f);
    ev.end = true;
    feed(run, i, &ev);
}

static inline void feed_done(struct run *run, size_t i, enum sched_finish finish)
{
    struct sched_event ev = {.kind = SCHED_DONE, .finish = finish};
    feed(run, i, &ev);
}

/* The output with its ids and times replaced; the caller's to free. */
static inline char *blanked(const struct run *run)
{
    const char *s = run->out.data ? run->out.data : "", *id = api_request_id(run->r);
    char *copy = malloc(strlen(s) + 1), *to = copy;
    while (*s) {
        if (!strncmp(s, id, strlen(id))) {
            memcpy(to, "ID", 2);
            to += 2;
            s += strlen(id);
        } else if (!strncmp(s, "\"created\":", 10)) {
            memcpy(to, "\"created\":0", 11);
            to += 11;
            s += 10 + strspn(s + 10, "0123456789");
        } else {
            *to++ = *s++;
        }
    }
    *to = '\0';
    return copy;
}

static inline void drop_output(struct run *run)
{
    run->out.len = 0;
    if (run->out.data) run->out.data[0] = '\0';
}

static inline void output_is(struct run *run, const char *expected)
{
    char *s = blanked(run);
    assert_string_equal(s, expected);
    free(s);
    drop_output(run);
}

static inline cJSON *body_of(struct run *run)
{
    assert_true(api_finished(run->r));
    assert_int_equal(run->out.len, 0);
    api_body(run->r, &run->out);
    assert_false(run->out.failed);
    cJSON *o = cJSON_ParseWithOpts(run->out.data, NULL, true);
    assert_non_null(o);
    return o;
}

static inline const cJSON *choice_of(const cJSON *body, int i)
{
    const cJSON *c = cJSON_GetArrayItem(cJSON_GetObjectItem(body, "choices"), i);
    assert_int_equal(cJSON_GetObjectItem(c, "index")->valueint, i);
    return c;
}

static inline const char *string_of(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItem(o, name);
    assert_true(cJSON_IsString(v));
    return v->valuestring;
}

static inline const char *content_of(const cJSON *body, int i)
{
    return string_of(cJSON_GetObjectItem(choice_of(body, i), "message"), "content");
}

/* Compares a part of an answer as JSON text. */
static inline void json_is(const cJSON *v, const char *expected)
{
    char *s = cJSON_PrintUnformatted(v);
    assert_string_equal(s, expected);
    free(s);
}

#define HEAD(object)                                                                               \
    "{\"id\":\"ID\",\"object\":\"" object "\",\"created\":0,\"model\":\"m\","                      \
    "\"system_fingerprint\":\"openmoed-" OPENMOED_VERSION "\",\"choices\":["
#define DETAILS(cached)                                                                            \
    "\"prompt_tokens_details\":{\"cached_tokens\":" cached ",\"audio_tokens\":0},"                 \
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,"                    \
    "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}"
#define CHUNK "data: " HEAD("chat.completion.chunk")
#define TEXT  "data: " HEAD("text_completion")

#endif
