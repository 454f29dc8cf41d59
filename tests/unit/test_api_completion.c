// SPDX-License-Identifier: Apache-2.0
//
// test_api_completion.c: answers of /v1/completions: text chunks, echo and scores of the prompt,
// lists of prompts, models without a tokenizer.
#include "api_run.h"

#include <math.h>

/* A completion whose prompt is the byte pieces a and b; `rest` ends the body. */
static void start_ab(struct run *run, const char *rest)
{
    char body[512];
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":[%d,%d],%s", byte_id('a'),
             byte_id('b'), rest);
    start(run, API_COMPLETION, &support.env, body);
}

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
    output_is(
        &run,
        TEXT "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}],"
             "\"usage\":null}\n\n" TEXT
             "],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":2,\"total_tokens\":4," DETAILS(
                 "0") "}}\n\ndata: [DONE]\n\n");
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
            "\"text_offset\":[0,1,2,3,4],\"bytes\":[[97],[98],[99],[195],[169]]}");
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
    output_is(&run,
              TEXT "{\"index\":0,\"text\":\"ab\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],"
                   "\"token_logprobs\":[null,-4],\"top_logprobs\":null,"
                   "\"text_offset\":[0,1],\"bytes\":[[97],[98]]},\"finish_reason\":null}]}\n\n" TEXT
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
            "\"text_offset\":[0],\"bytes\":[[113]]}");
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
            "\"text_offset\":[0,0,0],\"bytes\":[null,null,null]}");
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completion_stream), cmocka_unit_test(test_leading_space),
        cmocka_unit_test(test_echo_scores),       cmocka_unit_test(test_echo_only),
        cmocka_unit_test(test_echo_text),         cmocka_unit_test(test_several_prompts),
        cmocka_unit_test(test_ids_only),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
