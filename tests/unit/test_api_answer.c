// SPDX-License-Identifier: Apache-2.0
//
// test_api_answer.c: scheduler events in, bytes for the client out. The events are made up, of byte
// pieces, so that the text of every token is known whatever the vocabulary; the tokenizer and the
// detokeniser are the real ones. Ids and times are blanked before answers are compared whole.
#include "api_support.h"

#include <math.h>
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

static void start(struct run *run, enum api_kind kind, const struct api_env *env, const char *body)
{
    *run = (struct run){.r = must_parse(kind, env, body)};
    api_begin(run->r, &run->out);
}

/* A completion whose prompt is the byte pieces a and b; `rest` ends the body. */
static void start_ab(struct run *run, const char *rest)
{
    char body[512];
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":[%d,%d],%s", byte_id('a'),
             byte_id('b'), rest);
    start(run, API_COMPLETION, &support.env, body);
}

static void end(struct run *run)
{
    cfg_buf_free(&run->out);
    api_request_free(run->r);
}

static void feed(struct run *run, size_t i, const struct sched_event *ev)
{
    struct api_error err = {0};
    bool cancel = true;
    if (api_event(run->r, i, ev, &run->out, &cancel, &err)) fail_msg("event: %s", err.message);
    run->cancels += cancel;
}

static struct sched_event token_event(int32_t id, float logprob)
{
    return (struct sched_event){.kind = SCHED_TOKEN, .result = {.token = id, .logprob = logprob}};
}

/* One token event for every byte. */
static void feed_bytes(struct run *run, size_t i, const char *bytes)
{
    for (; *bytes; bytes++) {
        struct sched_event ev = token_event(byte_id((unsigned char)*bytes), -0.5f);
        feed(run, i, &ev);
    }
}

static void feed_end(struct run *run, size_t i)
{
    struct sched_event ev = token_event(support.info.eos_id, -0.25f);
    ev.end = true;
    feed(run, i, &ev);
}

static void feed_done(struct run *run, size_t i, enum sched_finish finish)
{
    struct sched_event ev = {.kind = SCHED_DONE, .finish = finish};
    feed(run, i, &ev);
}

/* The output with its ids and times replaced; the caller's to free. */
static char *blanked(const struct run *run)
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

static void drop_output(struct run *run)
{
    run->out.len = 0;
    if (run->out.data) run->out.data[0] = '\0';
}

static void output_is(struct run *run, const char *expected)
{
    char *s = blanked(run);
    assert_string_equal(s, expected);
    free(s);
    drop_output(run);
}

static cJSON *body_of(struct run *run)
{
    assert_true(api_finished(run->r));
    assert_int_equal(run->out.len, 0);
    api_body(run->r, &run->out);
    assert_false(run->out.failed);
    cJSON *o = cJSON_ParseWithOpts(run->out.data, NULL, true);
    assert_non_null(o);
    return o;
}

static const cJSON *choice_of(const cJSON *body, int i)
{
    const cJSON *c = cJSON_GetArrayItem(cJSON_GetObjectItem(body, "choices"), i);
    assert_int_equal(cJSON_GetObjectItem(c, "index")->valueint, i);
    return c;
}

static const char *string_of(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItem(o, name);
    assert_true(cJSON_IsString(v));
    return v->valuestring;
}

static const char *content_of(const cJSON *body, int i)
{
    return string_of(cJSON_GetObjectItem(choice_of(body, i), "message"), "content");
}

/* Compares a part of an answer as JSON text. */
static void json_is(const cJSON *v, const char *expected)
{
    char *s = cJSON_PrintUnformatted(v);
    assert_string_equal(s, expected);
    free(s);
}

#define HEAD(object)                                                                               \
    "{\"id\":\"ID\",\"object\":\"" object "\",\"created\":0,\"model\":\"m\","                      \
    "\"system_fingerprint\":\"openmoed-" OPENMOED_VERSION "\",\"choices\":["
#define CHUNK "data: " HEAD("chat.completion.chunk")
#define TEXT  "data: " HEAD("text_completion")

/* ---- chat ------------------------------------------------------------------------------------ */

static void test_chat_stream(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, STREAM "\"stream_options\":{\"include_usage\":true}}");
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                          "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n");
    // A reply's first piece has a space that is not part of it.
    feed_bytes(&run, 0, " H");
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{\"content\":\"H\"},\"logprobs\":null,"
                          "\"finish_reason\":null}],\"usage\":null}\n\n");
    feed_bytes(&run, 0, "\"\n");
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{\"content\":\"\\\"\"},\"logprobs\":null,"
                          "\"finish_reason\":null}],\"usage\":null}\n\n" CHUNK
                          "{\"index\":0,\"delta\":{\"content\":\"\\n\"},\"logprobs\":null,"
                          "\"finish_reason\":null}],\"usage\":null}\n\n");
    feed_end(&run, 0);
    output_is(&run, "");
    assert_false(api_finished(run.r));
    feed_done(&run, 0, SCHED_STOP);
    assert_true(api_finished(run.r));
    assert_int_equal(run.cancels, 0);
    assert_int_equal(api_completion_tokens(run.r), 5);
    size_t prompt = api_prompt_tokens(run.r);
    char expected[1024];
    snprintf(expected, sizeof expected,
             CHUNK
             "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":null}\n\n" CHUNK
             "],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":5,\"total_tokens\":%zu,"
             "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\ndata: [DONE]\n\n",
             prompt, prompt + 5);
    output_is(&run, expected);
    end(&run);
}

static void test_chat_whole(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, CHAT "\"user\":\"u\"}");
    feed_bytes(&run, 0, " Hi");
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    size_t prompt = api_prompt_tokens(run.r);
    cJSON *body = body_of(&run);
    cJSON_Delete(body);
    char expected[1024];
    snprintf(
        expected, sizeof expected,
        HEAD("chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\","
                                "\"content\":\"Hi\",\"refusal\":null},\"logprobs\":null,"
                                "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%zu,"
                                "\"completion_tokens\":4,\"total_tokens\":%zu,"
                                "\"prompt_tokens_details\":{\"cached_tokens\":0}}}",
        prompt, prompt + 4);
    output_is(&run, expected);
    end(&run);
}

static void test_empty_answer(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, CHAT "\"logprobs\":true}");
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    assert_string_equal(content_of(body, 0), "");
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "logprobs"),
            "{\"content\":[],\"refusal\":null}");
    cJSON_Delete(body);
    end(&run);
}

static void test_stop_string(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env,
          STREAM "\"stop\":[\"STOP\"],\"logprobs\":true,\"return_token_ids\":true}");
    drop_output(&run);
    // A beginning that comes to nothing is shown whole, with its tokens.
    feed_bytes(&run, 0, "ST");
    output_is(&run, "");
    feed_bytes(&run, 0, "x");
    char *s = blanked(&run);
    assert_non_null(strstr(s, "{\"content\":\"STx\"}"));
    assert_non_null(strstr(s,
                           "{\"token\":\"S\",\"logprob\":-0.5,\"bytes\":[83],\"top_logprobs\":[]}"
                           ",{\"token\":\"T\""));
    free(s);
    drop_output(&run);
    // The real one ends the answer; nothing of it shows, and its tokens leave ids alone.
    feed_bytes(&run, 0, "STO");
    assert_int_equal(run.out.len, 0);
    assert_int_equal(run.cancels, 0);
    feed_bytes(&run, 0, "P");
    assert_int_equal(run.cancels, 1);
    assert_true(api_finished(run.r));
    char expected[512];
    snprintf(expected, sizeof expected,
             CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\","
                   "\"token_ids\":[%d,%d,%d,%d]}]}\n\ndata: [DONE]\n\n",
             byte_id('S'), byte_id('T'), byte_id('O'), byte_id('P'));
    output_is(&run, expected);
    // The job runs on until its cancellation takes effect.
    feed_bytes(&run, 0, "more");
    feed_done(&run, 0, SCHED_CANCELLED);
    output_is(&run, "");
    assert_int_equal(run.cancels, 1);
    assert_int_equal(api_completion_tokens(run.r), 7);
    end(&run);
}

static void test_stop_options(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *tokens, *text;
        int cancels;
    } rows[] = {
        {"\"stop\":\"ab\"}", "xaab", "xa", 1},
        {"\"stop\":\"ab\",\"include_stop_str_in_output\":true}", "xaab", "xaab", 1},
        {"\"stop\":[\"zz\",\"b\"]}", "xazb", "xaz", 1},
        {"\"stop\":null}", "xab", "xab", 0},
        // The model's own end marker, spelled out.
        {"\"n\":1}", "x</s>", "x", 1},
        {"\"include_stop_str_in_output\":true}", "x</s>", "x", 1},
        {"\"ignore_eos\":true}", "x</s>y", "x</s>y", 0},
        // What was held back comes when the answer ends in another way.
        {"\"stop\":\"STOP\"}", "xSTO", "xSTO", 0},
        {"\"n\":1}", "x</", "x</", 0},
        {"\"n\":1}", "x\xE2\x82", "x\xEF\xBF\xBD", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[256];
        snprintf(request, sizeof request, CHAT "%s", rows[i].fields);
        struct run run;
        start(&run, API_CHAT, &support.env, request);
        feed_bytes(&run, 0, rows[i].tokens);
        feed_done(&run, 0, SCHED_LENGTH);
        assert_int_equal(run.cancels, rows[i].cancels);
        cJSON *body = body_of(&run);
        assert_string_equal(content_of(body, 0), rows[i].text);
        assert_string_equal(string_of(choice_of(body, 0), "finish_reason"),
                            rows[i].cancels ? "stop" : "length");
        cJSON_Delete(body);
        end(&run);
    }
}

static void test_special_tokens(void **state)
{
    (void)state;
    for (int shown = 0; shown < 2; shown++) {
        struct run run;
        start(&run, API_CHAT, &support.env,
              shown ? CHAT "\"skip_special_tokens\":false}" : CHAT "\"n\":1}");
        feed_bytes(&run, 0, "a");
        struct sched_event ev = token_event(support.info.start_id, -1);
        feed(&run, 0, &ev);
        feed_bytes(&run, 0, "b");
        feed_done(&run, 0, SCHED_LENGTH);
        char expected[64];
        snprintf(expected, sizeof expected, "a%sb",
                 shown ? engine_token_piece(support.tokenizer, support.info.start_id) : "");
        cJSON *body = body_of(&run);
        assert_string_equal(content_of(body, 0), expected);
        cJSON_Delete(body);
        end(&run);
    }
}

static void test_split_character(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, STREAM "\"logprobs\":true,\"top_logprobs\":2}");
    drop_output(&run);
    struct sched_event ev = token_event(byte_id(0xC3), -INFINITY);
    ev.result.n_top = 1;
    ev.result.top[0] = (struct engine_top){.id = byte_id('q'), .logprob = -0.125f};
    feed(&run, 0, &ev);
    assert_int_equal(run.out.len, 0);
    ev = token_event(byte_id(0xA9), -2);
    feed(&run, 0, &ev);
    output_is(&run,
              CHUNK "{\"index\":0,\"delta\":{\"content\":\"\xC3\xA9\"},\"logprobs\":{\"content\":["
                    "{\"token\":\"\\\\xc3\",\"logprob\":-9999.0,\"bytes\":[195],\"top_logprobs\":["
                    "{\"token\":\"q\",\"logprob\":-0.125,\"bytes\":[113]}]},"
                    "{\"token\":\"\\\\xa9\",\"logprob\":-2,\"bytes\":[169],\"top_logprobs\":[]}],"
                    "\"refusal\":null},\"finish_reason\":null}]}\n\n");
    end(&run);
}

static int shown_tokens(struct run *run)
{
    cJSON *body = body_of(run);
    const cJSON *lp = cJSON_GetObjectItem(choice_of(body, 0), "logprobs");
    int n = cJSON_GetArraySize(cJSON_GetObjectItem(lp, "content"));
    cJSON_Delete(body);
    return n;
}

static void test_tokens_shown(void **state)
{
    (void)state;
    // A space that is dropped does not delay the tokens after it.
    struct run run;
    start(&run, API_CHAT, &support.env, STREAM "\"logprobs\":true}");
    drop_output(&run);
    feed_bytes(&run, 0, " H");
    assert_non_null(strstr(run.out.data, "{\"token\":\" \""));
    assert_non_null(strstr(run.out.data, "{\"token\":\"H\""));
    end(&run);

    // Of a token cut by a stop string nothing is told, even after U+FFFD, which is longer than the
    // byte it stands for.
    start(&run, API_CHAT, &support.env, CHAT "\"logprobs\":true,\"stop\":\"xy\"}");
    feed_bytes(&run, 0,
               "\xE2"
               "axy");
    assert_int_equal(run.cancels, 1);
    assert_int_equal(shown_tokens(&run), 2);
    end(&run);
}

static void test_interleaved(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, CHAT "\"n\":3,\"stop\":\"!\"}");
    feed_bytes(&run, 0, "a");
    feed_bytes(&run, 2, "xy");
    feed_bytes(&run, 1, "1");
    feed_bytes(&run, 0, "b!");
    assert_int_equal(run.cancels, 1);
    feed_bytes(&run, 1, "2");
    feed_done(&run, 1, SCHED_LENGTH);
    assert_false(api_finished(run.r));
    feed_done(&run, 0, SCHED_CANCELLED);
    feed_end(&run, 2);
    feed_done(&run, 2, SCHED_STOP);
    assert_int_equal(run.cancels, 1);
    cJSON *body = body_of(&run);
    assert_string_equal(content_of(body, 0), "ab");
    assert_string_equal(content_of(body, 1), "12");
    assert_string_equal(content_of(body, 2), "xy");
    assert_string_equal(string_of(choice_of(body, 0), "finish_reason"), "stop");
    assert_string_equal(string_of(choice_of(body, 1), "finish_reason"), "length");
    assert_string_equal(string_of(choice_of(body, 2), "finish_reason"), "stop");
    // The prompt counts once, each choice's tokens on their own.
    const cJSON *usage = cJSON_GetObjectItem(body, "usage");
    assert_int_equal(cJSON_GetObjectItem(usage, "prompt_tokens")->valueint,
                     api_prompt_tokens(run.r));
    assert_int_equal(cJSON_GetObjectItem(usage, "completion_tokens")->valueint, 3 + 2 + 3);
    cJSON_Delete(body);
    end(&run);
}

static void test_interleaved_stream(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, STREAM "\"n\":2}");
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                          "\"logprobs\":null,\"finish_reason\":null}]}\n\n" CHUNK
                          "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                          "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    feed_bytes(&run, 1, "b");
    feed_done(&run, 1, SCHED_LENGTH);
    output_is(&run, CHUNK "{\"index\":1,\"delta\":{\"content\":\"b\"},\"logprobs\":null,"
                          "\"finish_reason\":null}]}\n\n" CHUNK
                          "{\"index\":1,\"delta\":{},\"logprobs\":null,"
                          "\"finish_reason\":\"length\"}]}\n\n");
    feed_done(&run, 0, SCHED_LENGTH);
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,"
                          "\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n");
    end(&run);
}

static void test_prompt_token_ids(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, STREAM "\"return_token_ids\":true,\"n\":2}");
    struct sched_job job;
    api_job(run.r, 0, 1, &job);
    char first[32];
    snprintf(first, sizeof first, "],\"prompt_token_ids\":[%d,", job.prompt[0]);
    char *found = strstr(run.out.data, first);
    assert_non_null(found);
    assert_null(strstr(found + sizeof "],\"prompt_token_ids\"", "prompt_token_ids"));
    end(&run);

    start(&run, API_CHAT, &support.env, CHAT "\"return_token_ids\":true}");
    feed_bytes(&run, 0, "a");
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    api_job(run.r, 0, 1, &job);
    const cJSON *ids = cJSON_GetObjectItem(body, "prompt_token_ids");
    assert_int_equal(cJSON_GetArraySize(ids), job.n_prompt);
    for (size_t i = 0; i < job.n_prompt; i++)
        assert_int_equal(cJSON_GetArrayItem(ids, (int)i)->valueint, job.prompt[i]);
    char expected[32];
    snprintf(expected, sizeof expected, "[%d,%d]", byte_id('a'), support.info.eos_id);
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "token_ids"), expected);
    cJSON_Delete(body);
    end(&run);
}

/* ---- completions ----------------------------------------------------------------------------- */

static void test_completion_stream(void **state)
{
    (void)state;
    struct run run;
    start_ab(&run, "\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    output_is(&run, "");
    feed_bytes(&run, 0, "1c");
    output_is(&run, TEXT "{\"index\":0,\"text\":\"1\",\"logprobs\":null,\"finish_reason\":null}],"
                         "\"usage\":null}\n\n" TEXT
                         "{\"index\":0,\"text\":\"c\",\"logprobs\":null,\"finish_reason\":null}],"
                         "\"usage\":null}\n\n");
    feed_done(&run, 0, SCHED_LENGTH);
    output_is(&run,
              TEXT "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}],"
                   "\"usage\":null}\n\n" TEXT
                   "],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":2,\"total_tokens\":4,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\ndata: [DONE]\n\n");
    end(&run);
}

static void test_leading_space(void **state)
{
    (void)state;
    // A completion continues its prompt, space and all, unless there is none.
    char empty[96];
    snprintf(empty, sizeof empty, "{\"model\":\"m\",\"prompt\":[%d]}", support.info.start_id);
    const char *const bodies[] = {"{\"model\":\"m\",\"prompt\":\"a\"}",
                                  "{\"model\":\"m\",\"prompt\":\"\"}", empty};
    for (int i = 0; i < 3; i++) {
        struct run run;
        start(&run, API_COMPLETION, &support.env, bodies[i]);
        feed_bytes(&run, 0, " c");
        feed_done(&run, 0, SCHED_LENGTH);
        cJSON *body = body_of(&run);
        assert_string_equal(string_of(choice_of(body, 0), "text"), i == 0 ? " c" : "c");
        cJSON_Delete(body);
        end(&run);
    }
}

static void feed_score(struct run *run, size_t position, int32_t id, float logprob, int32_t top)
{
    struct sched_event ev = {.kind = SCHED_PROMPT_SCORE,
                             .position = position,
                             .result = {.token = id, .logprob = logprob, .n_top = 1}};
    ev.result.top[0] = (struct engine_top){.id = top, .logprob = -0.25f};
    feed(run, 0, &ev);
}

static void test_echo_scores(void **state)
{
    (void)state;
    struct run run;
    start_ab(&run, "\"echo\":true,\"logprobs\":1}");
    struct sched_job job;
    api_job(run.r, 0, 1, &job);
    assert_true(job.score_prompt);
    feed_score(&run, 1, byte_id('b'), -4, byte_id('z'));
    struct sched_event ev = token_event(byte_id('c'), -INFINITY);
    ev.result.n_top = 1;
    ev.result.top[0] = (struct engine_top){.id = byte_id('c'), .logprob = -0.5f};
    feed(&run, 0, &ev);
    ev.result.top[0].id = byte_id('"');
    ev.result.token = byte_id(0xC3);
    feed(&run, 0, &ev);
    ev.result.token = byte_id(0xA9);
    feed(&run, 0, &ev);
    feed_done(&run, 0, SCHED_LENGTH);
    cJSON *body = body_of(&run);
    assert_string_equal(string_of(choice_of(body, 0), "text"), "abc\xC3\xA9");
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "logprobs"),
            "{\"tokens\":[\"a\",\"b\",\"c\",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\"],"
            "\"token_logprobs\":[null,-4,-9999,-9999,-9999],"
            "\"top_logprobs\":[null,{\"z\":-0.25,\"b\":-4},{\"c\":-0.5},"
            "{\"\\\"\":-0.5,\"bytes:\\\\xc3\":-9999},{\"\\\"\":-0.5,\"bytes:\\\\xa9\":-9999}],"
            "\"text_offset\":[0,1,2,3,4]}");
    cJSON_Delete(body);
    end(&run);
}

static void test_echo_only(void **state)
{
    (void)state;
    struct run run;
    start_ab(&run, "\"echo\":true,\"logprobs\":0,\"max_tokens\":0,\"stream\":true}");
    feed_score(&run, 1, byte_id('b'), -4, byte_id('z'));
    output_is(&run, "");
    feed_done(&run, 0, SCHED_LENGTH);
    output_is(&run, TEXT "{\"index\":0,\"text\":\"ab\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],"
                         "\"token_logprobs\":[null,-4],\"top_logprobs\":null,"
                         "\"text_offset\":[0,1]},\"finish_reason\":null}]}\n\n" TEXT
                         "{\"index\":0,\"text\":\"\",\"logprobs\":null,"
                         "\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n");
    end(&run);

    // Without scores, the text alone; a prompt of one token has nothing to score.
    start_ab(&run, "\"echo\":true}");
    feed_bytes(&run, 0, "c");
    feed_done(&run, 0, SCHED_LENGTH);
    cJSON *body = body_of(&run);
    assert_string_equal(string_of(choice_of(body, 0), "text"), "abc");
    cJSON_Delete(body);
    end(&run);

    char request[128];
    snprintf(request, sizeof request,
             "{\"model\":\"m\",\"prompt\":[%d],\"echo\":true,\"logprobs\":1,\"max_tokens\":0}",
             byte_id('q'));
    start(&run, API_COMPLETION, &support.env, request);
    feed_done(&run, 0, SCHED_LENGTH);
    body = body_of(&run);
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "logprobs"),
            "{\"tokens\":[\"q\"],\"token_logprobs\":[null],\"top_logprobs\":[null],"
            "\"text_offset\":[0]}");
    cJSON_Delete(body);
    end(&run);
}

static void test_echo_text(void **state)
{
    (void)state;
    // A text is repeated as it was sent, and offsets count its characters, not those of its pieces:
    // the tokenizer makes one space of two.
    struct run run;
    start(&run, API_COMPLETION, &support.env,
          "{\"model\":\"m\",\"prompt\":\"\xC3\xA9  b\",\"echo\":true,\"logprobs\":0}");
    struct sched_job job;
    api_job(run.r, 0, 1, &job);
    for (size_t i = 1; i < job.n_prompt; i++) feed_score(&run, i, job.prompt[i], -1, job.prompt[i]);
    feed_bytes(&run, 0, "c");
    feed_done(&run, 0, SCHED_LENGTH);
    cJSON *body = body_of(&run);
    assert_string_equal(string_of(choice_of(body, 0), "text"), "\xC3\xA9  bc");
    const cJSON *lp = cJSON_GetObjectItem(choice_of(body, 0), "logprobs");
    const cJSON *offsets = cJSON_GetObjectItem(lp, "text_offset");
    int n = cJSON_GetArraySize(offsets);
    assert_int_equal(n, job.n_prompt + 1);
    assert_int_equal(cJSON_GetArrayItem(offsets, 0)->valueint, 0);
    assert_int_equal(cJSON_GetArrayItem(offsets, n - 1)->valueint, 4);
    cJSON_Delete(body);
    end(&run);
}

static void test_several_prompts(void **state)
{
    (void)state;
    char request[256];
    snprintf(request, sizeof request,
             "{\"model\":\"m\",\"prompt\":[[%d],[%d,%d]],\"n\":2,\"echo\":true,"
             "\"return_token_ids\":true}",
             byte_id('p'), byte_id('q'), byte_id('r'));
    struct run run;
    start(&run, API_COMPLETION, &support.env, request);
    for (size_t i = 4; i-- > 0;) {
        char text[2] = {(char)('0' + i), 0};
        feed_bytes(&run, i, text);
        feed_done(&run, i, SCHED_LENGTH);
    }
    cJSON *body = body_of(&run);
    static const char *const texts[] = {"p0", "p1", "qr2", "qr3"};
    for (int i = 0; i < 4; i++) {
        const cJSON *c = choice_of(body, i);
        assert_string_equal(string_of(c, "text"), texts[i]);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(c, "prompt_token_ids")),
                         i < 2 ? 1 : 2);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(c, "token_ids")), 1);
    }
    const cJSON *usage = cJSON_GetObjectItem(body, "usage");
    assert_int_equal(cJSON_GetObjectItem(usage, "prompt_tokens")->valueint, 3);
    assert_int_equal(cJSON_GetObjectItem(usage, "total_tokens")->valueint, 7);
    cJSON_Delete(body);
    end(&run);
}

static void test_ids_only(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_COMPLETION, &support.ids_only,
          "{\"model\":\"m\",\"prompt\":[3,4],\"logprobs\":1,\"echo\":true}");
    feed_score(&run, 1, 4, -1, 5);
    struct sched_event ev = token_event(9, -2);
    feed(&run, 0, &ev);
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    const cJSON *c = choice_of(body, 0);
    assert_string_equal(string_of(c, "text"), "");
    json_is(cJSON_GetObjectItem(c, "token_ids"), "[9,1]");
    json_is(cJSON_GetObjectItem(c, "prompt_token_ids"), "[3,4]");
    json_is(cJSON_GetObjectItem(c, "logprobs"),
            "{\"tokens\":[\"token_id:3\",\"token_id:4\",\"token_id:9\"],"
            "\"token_logprobs\":[null,-1,-2],\"top_logprobs\":[null,"
            "{\"token_id:5\":-0.25,\"token_id:4\":-1},{\"token_id:9\":-2}],"
            "\"text_offset\":[0,0,0]}");
    cJSON_Delete(body);
    end(&run);

    // Streamed, every token is a chunk.
    start(&run, API_COMPLETION, &support.ids_only,
          "{\"model\":\"m\",\"prompt\":[3,4],\"stream\":true}");
    ev = token_event(9, -2);
    feed(&run, 0, &ev);
    output_is(&run, TEXT "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":null,"
                         "\"token_ids\":[9],\"prompt_token_ids\":[3,4]}]}\n\n");
    feed(&run, 0, &ev);
    output_is(&run, TEXT "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":null,"
                         "\"token_ids\":[9]}]}\n\n");
    end(&run);
}

/* ---- failures -------------------------------------------------------------------------------- */

static void test_failed_jobs(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, CHAT "\"n\":2}");
    struct sched_event ev = {
        .kind = SCHED_DONE, .finish = SCHED_ERROR, .message = "the device is lost"};
    struct api_error err = {0};
    bool cancel = true;
    assert_int_equal(api_event(run.r, 1, &ev, &run.out, &cancel, &err), -1);
    assert_false(cancel);
    assert_int_equal(err.status, 500);
    assert_string_equal(err.type, "server_error");
    assert_string_equal(err.message, "the device is lost");
    ev.finish = SCHED_CANCELLED;
    assert_int_equal(api_event(run.r, 0, &ev, &run.out, &cancel, &err), -1);
    assert_int_equal(err.status, 503);
    assert_false(api_finished(run.r));
    end(&run);
}

/* ---- streamed and whole answers agree -------------------------------------------------------- */

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

/* Text and lists of a streamed chat, put together again by a client that knows only JSON. */
struct gathered {
    struct cfg_buf text;
    cJSON *tokens, *ids;
    char finish[16];
    int done;
};

static void move_all(cJSON *to, const cJSON *list)
{
    const cJSON *v = NULL;
    cJSON_ArrayForEach(v, list) cJSON_AddItemToArray(to, cJSON_Duplicate(v, true));
}

static void gather_chunk(struct gathered *g, const char *json)
{
    if (!strcmp(json, "[DONE]")) {
        g->done++;
        return;
    }
    assert_int_equal(g->done, 0);
    cJSON *o = cJSON_ParseWithOpts(json, NULL, true);
    assert_non_null(o);
    const cJSON *c = cJSON_GetArrayItem(cJSON_GetObjectItem(o, "choices"), 0);
    const cJSON *content = cJSON_GetObjectItem(cJSON_GetObjectItem(c, "delta"), "content");
    if (content) {
        assert_true(cfg_utf8_valid(content->valuestring, strlen(content->valuestring)));
        cfg_buf_puts(&g->text, content->valuestring);
    }
    move_all(g->tokens, cJSON_GetObjectItem(cJSON_GetObjectItem(c, "logprobs"), "content"));
    move_all(g->ids, cJSON_GetObjectItem(c, "token_ids"));
    const cJSON *finish = cJSON_GetObjectItem(c, "finish_reason");
    if (cJSON_IsString(finish)) snprintf(g->finish, sizeof g->finish, "%s", finish->valuestring);
    cJSON_Delete(o);
}

static void gather(struct gathered *g, struct run *run)
{
    char *at = run->out.data;
    while (at && *at) {
        assert_int_equal(strncmp(at, "data: ", 6), 0);
        char *stop = strstr(at, "\n\n");
        assert_non_null(stop);
        *stop = '\0';
        gather_chunk(g, at + 6);
        at = stop + 2;
    }
}

static void same_answer(struct run *stream, struct run *whole)
{
    struct gathered g = {.tokens = cJSON_CreateArray(), .ids = cJSON_CreateArray()};
    gather(&g, stream);
    cJSON *body = body_of(whole);
    const cJSON *c = choice_of(body, 0);
    assert_int_equal(g.done, 1);
    assert_string_equal(g.finish, string_of(c, "finish_reason"));
    assert_string_equal(g.text.data ? g.text.data : "", content_of(body, 0));
    const cJSON *tokens = cJSON_GetObjectItem(cJSON_GetObjectItem(c, "logprobs"), "content");
    const cJSON *ids = cJSON_GetObjectItem(c, "token_ids");
    assert_true(cJSON_Compare(g.tokens, tokens, true));
    assert_true(cJSON_Compare(g.ids, ids, true));
    assert_int_equal(cJSON_GetArraySize(ids), api_completion_tokens(whole->r));
    assert_int_equal(api_completion_tokens(whole->r), api_completion_tokens(stream->r));
    cJSON_Delete(body);
    cJSON_Delete(g.tokens);
    cJSON_Delete(g.ids);
    cfg_buf_free(&g.text);
}

static void test_stream_equals_whole(void **state)
{
    (void)state;
    static const char alphabet[] = "ab  </s>\xC3\xA9\xE2\x82\xAC";
    uint32_t seed = 1;
    for (int round = 0; round < 300; round++) {
        struct run run[2];
        for (int k = 0; k < 2; k++) {
            char body[256];
            snprintf(body, sizeof body,
                     CHAT "\"stop\":[\"aba\",\"bb \"],\"logprobs\":true,\"return_token_ids\":true,"
                          "\"include_stop_str_in_output\":%s,\"stream\":%s}",
                     round % 2 ? "true" : "false", k ? "false" : "true");
            start(&run[k], API_CHAT, &support.env, body);
        }
        int n = (int)(next_random(&seed) % 30);
        for (int i = 0; i < n; i++) {
            size_t at = next_random(&seed) % sizeof alphabet;
            int32_t id =
                alphabet[at] ? byte_id((unsigned char)alphabet[at]) : support.info.start_id;
            struct sched_event ev = token_event(id, -(float)i);
            for (int k = 0; k < 2; k++) feed(&run[k], 0, &ev);
        }
        for (int k = 0; k < 2; k++) feed_done(&run[k], 0, SCHED_LENGTH);
        same_answer(&run[0], &run[1]);
        for (int k = 0; k < 2; k++) end(&run[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_stream),        cmocka_unit_test(test_chat_whole),
        cmocka_unit_test(test_empty_answer),       cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_stop_options),       cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_split_character),    cmocka_unit_test(test_tokens_shown),
        cmocka_unit_test(test_interleaved),        cmocka_unit_test(test_leading_space),
        cmocka_unit_test(test_interleaved_stream), cmocka_unit_test(test_prompt_token_ids),
        cmocka_unit_test(test_completion_stream),  cmocka_unit_test(test_echo_scores),
        cmocka_unit_test(test_echo_only),          cmocka_unit_test(test_echo_text),
        cmocka_unit_test(test_several_prompts),    cmocka_unit_test(test_ids_only),
        cmocka_unit_test(test_failed_jobs),        cmocka_unit_test(test_stream_equals_whole),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
