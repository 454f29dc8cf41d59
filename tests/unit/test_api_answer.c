// SPDX-License-Identifier: Apache-2.0
//
// test_api_answer.c: scheduler events in, bytes for the client out: chats, streamed and whole, stop
// strings, split characters, several choices, failures; and that a stream put together again is the
// whole answer.
#include "api_run.h"

#include <math.h>

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
    snprintf(
        expected, sizeof expected,
        CHUNK
        "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":null}\n\n" CHUNK
        "],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":5,\"total_tokens\":%zu," DETAILS(
            "0") "}}\n\ndata: [DONE]\n\n",
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
                                "\"completion_tokens\":4,\"total_tokens\":%zu," DETAILS("0") "}}",
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

/* ---- cached tokens -----------------------------------------------------------------------------
 */

/* Told by the first token and again at the end; a prompt counts once, whatever n; a choice that a
 * stop string ended counts too. */
static void test_cached_tokens(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, CHAT "\"n\":2,\"stop\":\"b\"}");
    for (size_t i = 0; i < 2; i++) {
        struct sched_event ev = token_event(byte_id('b'), -0.5f);
        ev.cached_tokens = 32 + 16 * (int)i;
        feed(&run, i, &ev);
        ev = (struct sched_event){
            .kind = SCHED_DONE, .finish = SCHED_CANCELLED, .cached_tokens = 32};
        feed(&run, i, &ev);
    }
    assert_true(api_finished(run.r));
    api_body(run.r, &run.out);
    assert_non_null(strstr(run.out.data, "\"cached_tokens\":32,"));
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
    ev.finish = SCHED_TIMEOUT;
    ev.message = "too late";
    assert_int_equal(api_event(run.r, 0, &ev, &run.out, &cancel, &err), -1);
    assert_int_equal(err.status, 408);
    assert_string_equal(err.code, "timeout");
    assert_string_equal(err.message, "too late");
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
        cmocka_unit_test(test_chat_stream),      cmocka_unit_test(test_chat_whole),
        cmocka_unit_test(test_empty_answer),     cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_stop_options),     cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_split_character),  cmocka_unit_test(test_tokens_shown),
        cmocka_unit_test(test_interleaved),      cmocka_unit_test(test_interleaved_stream),
        cmocka_unit_test(test_prompt_token_ids), cmocka_unit_test(test_cached_tokens),
        cmocka_unit_test(test_failed_jobs),      cmocka_unit_test(test_stream_equals_whole),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
