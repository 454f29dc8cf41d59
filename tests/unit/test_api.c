// SPDX-License-Identifier: Apache-2.0
//
// test_api.c: bodies in, jobs or refusals out: every field of both endpoints with its wrong types
// and ranges (status, param and code of the refusal), the jobs that good bodies make, the error
// envelope and the small endpoints.
#include "api_support.h"

#include <stdio.h>
#include <stdlib.h>

// Bodies that are right but for the fields after the first ones.
#define HI                                                                                         \
    "\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"                                       \
    "{\"role\":\"user\",\"content\":\"hi\"}]"
#define CHAT "{\"model\":\"m\"," HI ","
#define IDS  "{\"model\":\"m\",\"prompt\":[3,4,5],"
#define MSG  "{\"model\":\"m\",\"messages\":"

struct bad {
    enum api_kind kind;
    const char *body;
    int status;
    const char *param, *code; /* "" and NULL: null in the envelope */
};

static const struct bad bad_bodies[] = {
    /* the body itself */
    {API_CHAT, "", 400, "", NULL},
    {API_CHAT, "{", 400, "", NULL},
    {API_CHAT, CHAT "\"n\":1}x", 400, "", NULL},
    {API_CHAT, CHAT "\"n\":1,\"n\":1}", 400, "", NULL},
    {API_CHAT, CHAT "\"n\":01}", 400, "", NULL},
    {API_CHAT, CHAT "\"temperature\":NaN}", 400, "", NULL},
    {API_CHAT, CHAT "\"temperature\":1e999}", 400, "", NULL},
    {API_CHAT, "[]", 400, "", "invalid_type"},
    {API_COMPLETION, "\"prompt\"", 400, "", "invalid_type"},
    /* model */
    {API_CHAT, "{" HI "}", 400, "model", "missing_required_parameter"},
    {API_CHAT, "{\"model\":null," HI "}", 400, "model", "missing_required_parameter"},
    {API_CHAT, "{\"model\":3," HI "}", 400, "model", "invalid_type"},
    {API_CHAT, "{\"model\":\"gpt\"," HI "}", 404, "model", "model_not_found"},
    {API_COMPLETION, "{\"model\":\"M\",\"prompt\":[3]}", 404, "model", "model_not_found"},
    /* unknown and unsupported fields */
    {API_CHAT, CHAT "\"temprature\":1}", 400, "temprature", "unknown_parameter"},
    {API_CHAT, CHAT "\"prompt\":\"x\"}", 400, "prompt", "unknown_parameter"},
    {API_CHAT, CHAT "\"Temperature\":1}", 400, "Temperature", "unknown_parameter"},
    {API_COMPLETION, IDS "\"messages\":[]}", 400, "messages", "unknown_parameter"},
    {API_COMPLETION, IDS "\"top_logprobs\":1}", 400, "top_logprobs", "unknown_parameter"},
    {API_CHAT, CHAT "\"tools\":[{\"type\":\"function\"}]}", 400, "tools[0].function",
     "missing_required_parameter"},
    {API_CHAT, CHAT "\"tool_choice\":\"auto\"}", 400, "tool_choice", "invalid_value"},
    {API_CHAT, CHAT "\"functions\":[{}]}", 400, "functions", "unsupported_parameter"},
    {API_CHAT, CHAT "\"function_call\":\"auto\"}", 400, "function_call", "unsupported_parameter"},
    {API_CHAT, CHAT "\"modalities\":[\"text\",\"audio\"]}", 400, "modalities",
     "unsupported_parameter"},
    {API_CHAT, CHAT "\"audio\":{}}", 400, "audio", "unsupported_parameter"},
    {API_CHAT, CHAT "\"prediction\":{}}", 400, "prediction", "unsupported_parameter"},
    {API_CHAT, CHAT "\"web_search_options\":{}}", 400, "web_search_options",
     "unsupported_parameter"},
    {API_CHAT, CHAT "\"reasoning_effort\":\"low\"}", 400, "reasoning_effort",
     "unsupported_parameter"},
    {API_COMPLETION, IDS "\"suffix\":\"x\"}", 400, "suffix", "unsupported_parameter"},
    /* accepted without effect, but not with any type */
    {API_CHAT, CHAT "\"user\":5}", 400, "user", "invalid_type"},
    {API_CHAT, CHAT "\"store\":\"yes\"}", 400, "store", "invalid_type"},
    {API_CHAT, CHAT "\"metadata\":[]}", 400, "metadata", "invalid_type"},
    {API_CHAT, CHAT "\"service_tier\":1}", 400, "service_tier", "invalid_type"},
    {API_CHAT, CHAT "\"parallel_tool_calls\":1}", 400, "parallel_tool_calls", "invalid_type"},
    /* streaming */
    {API_CHAT, CHAT "\"stream\":1}", 400, "stream", "invalid_type"},
    {API_CHAT, CHAT "\"stream\":\"true\"}", 400, "stream", "invalid_type"},
    {API_CHAT, CHAT "\"stream_options\":{}}", 400, "stream_options", "invalid_value"},
    {API_CHAT, CHAT "\"stream\":false,\"stream_options\":{\"include_usage\":true}}", 400,
     "stream_options", "invalid_value"},
    {API_CHAT, CHAT "\"stream\":true,\"stream_options\":true}", 400, "stream_options",
     "invalid_type"},
    {API_CHAT, CHAT "\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400,
     "stream_options.include_usage", "invalid_type"},
    {API_CHAT, CHAT "\"stream\":true,\"stream_options\":{\"usage\":true}}", 400,
     "stream_options.usage", "unknown_parameter"},
    /* numbers */
    {API_CHAT, CHAT "\"n\":0}", 400, "n", "integer_below_min_value"},
    {API_CHAT, CHAT "\"n\":17}", 400, "n", "integer_above_max_value"},
    {API_CHAT, CHAT "\"n\":1.5}", 400, "n", "invalid_type"},
    {API_CHAT, CHAT "\"n\":\"2\"}", 400, "n", "invalid_type"},
    {API_CHAT, CHAT "\"n\":true}", 400, "n", "invalid_type"},
    {API_CHAT, CHAT "\"temperature\":-0.1}", 400, "temperature", "decimal_below_min_value"},
    {API_CHAT, CHAT "\"temperature\":2.01}", 400, "temperature", "decimal_above_max_value"},
    {API_CHAT, CHAT "\"temperature\":\"hot\"}", 400, "temperature", "invalid_type"},
    {API_CHAT, CHAT "\"temperature\":[1]}", 400, "temperature", "invalid_type"},
    {API_CHAT, CHAT "\"top_p\":1.1}", 400, "top_p", "decimal_above_max_value"},
    {API_CHAT, CHAT "\"top_p\":-1}", 400, "top_p", "decimal_below_min_value"},
    {API_CHAT, CHAT "\"top_k\":-2}", 400, "top_k", "integer_below_min_value"},
    {API_CHAT, CHAT "\"top_k\":3000000000}", 400, "top_k", "integer_above_max_value"},
    {API_CHAT, CHAT "\"top_k\":2.5}", 400, "top_k", "invalid_type"},
    {API_CHAT, CHAT "\"min_p\":1.5}", 400, "min_p", "decimal_above_max_value"},
    {API_CHAT, CHAT "\"presence_penalty\":2.5}", 400, "presence_penalty",
     "decimal_above_max_value"},
    {API_CHAT, CHAT "\"frequency_penalty\":-2.5}", 400, "frequency_penalty",
     "decimal_below_min_value"},
    {API_CHAT, CHAT "\"repetition_penalty\":0}", 400, "repetition_penalty",
     "decimal_below_min_value"},
    {API_CHAT, CHAT "\"repetition_penalty\":1e300}", 400, "repetition_penalty",
     "decimal_above_max_value"},
    {API_CHAT, CHAT "\"seed\":1.5}", 400, "seed", "invalid_type"},
    {API_CHAT, CHAT "\"seed\":\"s\"}", 400, "seed", "invalid_type"},
    {API_CHAT, CHAT "\"seed\":18446744073709551616}", 400, "seed", "integer_above_max_value"},
    {API_CHAT, CHAT "\"seed\":-1e30}", 400, "seed", "integer_below_min_value"},
    /* limits */
    {API_CHAT, CHAT "\"max_tokens\":0}", 400, "max_tokens", "integer_below_min_value"},
    {API_CHAT, CHAT "\"max_tokens\":-1}", 400, "max_tokens", "integer_below_min_value"},
    {API_CHAT, CHAT "\"max_tokens\":\"9\"}", 400, "max_tokens", "invalid_type"},
    {API_CHAT, CHAT "\"max_completion_tokens\":0}", 400, "max_completion_tokens",
     "integer_below_min_value"},
    {API_CHAT, CHAT "\"max_completion_tokens\":4,\"max_tokens\":4}", 400, "max_tokens",
     "invalid_value"},
    {API_CHAT, CHAT "\"max_tokens\":64}", 400, "messages", "context_length_exceeded"},
    {API_COMPLETION, IDS "\"max_tokens\":62}", 400, "prompt", "context_length_exceeded"},
    {API_COMPLETION, IDS "\"max_tokens\":0}", 400, "max_tokens", "integer_below_min_value"},
    {API_COMPLETION, IDS "\"max_completion_tokens\":4}", 400, "max_completion_tokens",
     "unknown_parameter"},
    {API_CHAT, CHAT "\"min_tokens\":-1}", 400, "min_tokens", "integer_below_min_value"},
    {API_CHAT, CHAT "\"min_tokens\":65}", 400, "min_tokens", "integer_above_max_value"},
    {API_CHAT, CHAT "\"min_tokens\":5,\"max_tokens\":4}", 400, "min_tokens", "invalid_value"},
    /* logit_bias */
    {API_CHAT, CHAT "\"logit_bias\":[]}", 400, "logit_bias", "invalid_type"},
    {API_CHAT, CHAT "\"logit_bias\":{\"x\":1}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"\":1}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"-1\":1}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"03\":1}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"99999999999\":1}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"3\":101}}", 400, "logit_bias", "invalid_value"},
    {API_CHAT, CHAT "\"logit_bias\":{\"3\":null}}", 400, "logit_bias", "invalid_value"},
    /* log-probabilities */
    {API_CHAT, CHAT "\"logprobs\":1}", 400, "logprobs", "invalid_type"},
    {API_CHAT, CHAT "\"top_logprobs\":3}", 400, "top_logprobs", "invalid_value"},
    {API_CHAT, CHAT "\"logprobs\":true,\"top_logprobs\":21}", 400, "top_logprobs",
     "integer_above_max_value"},
    {API_COMPLETION, IDS "\"logprobs\":true}", 400, "logprobs", "invalid_type"},
    {API_COMPLETION, IDS "\"logprobs\":6}", 400, "logprobs", "integer_above_max_value"},
    {API_COMPLETION, IDS "\"logprobs\":-1}", 400, "logprobs", "integer_below_min_value"},
    /* ends */
    {API_CHAT, CHAT "\"stop\":5}", 400, "stop", "invalid_type"},
    {API_CHAT, CHAT "\"stop\":{}}", 400, "stop", "invalid_type"},
    {API_CHAT, CHAT "\"stop\":\"\"}", 400, "stop", "invalid_value"},
    {API_CHAT, CHAT "\"stop\":[\"a\",\"\"]}", 400, "stop[1]", "invalid_value"},
    {API_CHAT, CHAT "\"stop\":[\"a\",null]}", 400, "stop[1]", "invalid_type"},
    {API_CHAT,
     CHAT "\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\","
          "\"13\",\"14\",\"15\",\"16\",\"17\"]}",
     400, "stop", "array_above_max_length"},
    {API_CHAT, CHAT "\"stop_token_ids\":5}", 400, "stop_token_ids", "invalid_type"},
    {API_CHAT, CHAT "\"stop_token_ids\":[5,-1]}", 400, "stop_token_ids[1]",
     "integer_below_min_value"},
    {API_CHAT, CHAT "\"stop_token_ids\":[99999999]}", 400, "stop_token_ids[0]",
     "integer_above_max_value"},
    {API_CHAT, CHAT "\"stop_token_ids\":[\"5\"]}", 400, "stop_token_ids[0]", "invalid_type"},
    {API_CHAT, CHAT "\"ignore_eos\":1}", 400, "ignore_eos", "invalid_type"},
    {API_CHAT, CHAT "\"priority\":1.5}", 400, "priority", "invalid_type"},
    {API_CHAT, CHAT "\"timeout\":-1}", 400, "timeout", "decimal_below_min_value"},
    {API_CHAT, CHAT "\"cache_salt\":7}", 400, "cache_salt", "invalid_type"},
    {API_CHAT, CHAT "\"cache_salt\":\"\"}", 400, "cache_salt", "invalid_value"},
    {API_CHAT, CHAT "\"return_token_ids\":1}", 400, "return_token_ids", "invalid_type"},
    {API_CHAT, CHAT "\"skip_special_tokens\":0}", 400, "skip_special_tokens", "invalid_type"},
    {API_CHAT, CHAT "\"include_stop_str_in_output\":\"\"}", 400, "include_stop_str_in_output",
     "invalid_type"},
    /* messages */
    {API_CHAT, "{\"model\":\"m\"}", 400, "messages", "missing_required_parameter"},
    {API_CHAT, MSG "null}", 400, "messages", "missing_required_parameter"},
    {API_CHAT, MSG "\"hi\"}", 400, "messages", "invalid_type"},
    {API_CHAT, MSG "[]}", 400, "messages", "empty_array"},
    {API_CHAT, MSG "[\"hi\"]}", 400, "messages[0]", "invalid_type"},
    {API_CHAT, MSG "[{\"content\":\"hi\"}]}", 400, "messages[0].role",
     "missing_required_parameter"},
    {API_CHAT, MSG "[{\"role\":1,\"content\":\"hi\"}]}", 400, "messages[0].role", "invalid_type"},
    {API_CHAT,
     MSG "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
         "{\"role\":\"tool\",\"tool_call_id\":\"x\",\"content\":\"c\"}]}",
     400, "messages[2].tool_call_id", "invalid_value"},
    {API_CHAT, MSG "[{\"role\":\"user\"}]}", 400, "messages[0].content",
     "missing_required_parameter"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":null}]}", 400, "messages[0].content",
     "missing_required_parameter"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":{}}]}", 400, "messages[0].content",
     "invalid_type"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":[]}]}", 400, "messages[0].content",
     "empty_array"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":[\"x\"]}]}", 400, "messages[0].content[0]",
     "invalid_type"},
    {API_CHAT,
     MSG "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},"
         "{\"type\":\"image_url\",\"image_url\":{\"url\":\"u\"}}]}]}",
     400, "messages[0].content[1].type", "invalid_value"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", 400,
     "messages[0].content[0].text", "missing_required_parameter"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}", 400,
     "messages[0].content[0].text", "invalid_type"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":\"a\",\"colour\":1}]}", 400,
     "messages[0].colour", "unknown_parameter"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":\"a\",\"tool_calls\":[{}]}]}", 400,
     "messages[0].tool_calls", "invalid_value"},
    {API_CHAT, MSG "[{\"role\":\"user\",\"content\":\"a\",\"name\":1}]}", 400, "messages[0].name",
     "invalid_type"},
    {API_CHAT,
     MSG "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", 400,
     "messages[1].role", "invalid_value"},
    {API_CHAT, MSG "[{\"role\":\"system\",\"content\":\"a\"}]}", 400, "messages[0].role",
     "invalid_value"},
    /* prompts */
    {API_COMPLETION, "{\"model\":\"m\"}", 400, "prompt", "missing_required_parameter"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":5}", 400, "prompt", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[]}", 400, "prompt", "empty_array"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[null]}", 400, "prompt[0]", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[3],[]]}", 400, "prompt[1]", "empty_array"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",3]}", 400, "prompt[1]", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[3,\"a\"]}", 400, "prompt[1]", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[3],4]}", 400, "prompt[1]", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[3,-1]}", 400, "prompt[1]",
     "integer_below_min_value"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[3],[4,99999999]]}", 400, "prompt[1][1]",
     "integer_above_max_value"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[3,4.5]}", 400, "prompt[1]", "invalid_type"},
    {API_COMPLETION, IDS "\"echo\":1}", 400, "echo", "invalid_type"},
    {API_COMPLETION, IDS "\"best_of\":2}", 400, "best_of", "unsupported_value"},
    {API_COMPLETION, IDS "\"best_of\":3,\"n\":2}", 400, "best_of", "unsupported_value"},
    {API_COMPLETION, "{\"model\":\"m\",\"n\":16,\"prompt\":[[3],[3],[3],[3],[3]]}", 400, "n",
     "invalid_value"},
};

static void refuses(const struct bad *b, const struct api_env *env)
{
    struct api_request *r = NULL;
    struct api_error err = {0};
    if (api_parse(&r, b->kind, b->body, strlen(b->body), env, 0, &err) == 0) {
        api_request_free(r);
        fail_msg("accepted: %s", b->body);
    }
    assert_null(r);
    if (err.status != b->status || strcmp(err.param, b->param) ||
        strcmp(err.code ? err.code : "-", b->code ? b->code : "-"))
        fail_msg("%s\ngave %d '%s' %s, not %d '%s' %s: %s", b->body, err.status, err.param,
                 err.code ? err.code : "-", b->status, b->param, b->code ? b->code : "-",
                 err.message);
    assert_string_equal(err.type, "invalid_request_error");
    assert_true(err.message[0]);
    // Whoever reads only the message must find the field in it.
    if (err.param[0] && !strstr(err.message, err.param) && strcmp(b->code, "model_not_found") &&
        strcmp(b->code, "context_length_exceeded") && strcmp(b->code, "invalid_value"))
        fail_msg("the message does not name %s: %s", err.param, err.message);
}

static void test_bad_bodies(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_bodies / sizeof *bad_bodies; i++)
        refuses(&bad_bodies[i], &support.env);
}

static void test_no_tokenizer(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        {API_CHAT, "{\"model\":\"m\"," HI "}", 400, "messages", "tokenizer_missing"},
        {API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"hi\"}", 400, "prompt", "tokenizer_missing"},
        {API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"hi\"]}", 400, "prompt[0]",
         "tokenizer_missing"},
        {API_COMPLETION, IDS "\"stop\":\"x\"}", 400, "stop", "tokenizer_missing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refuses(&bad[i], &support.ids_only);

    struct api_request *r = must_parse(API_COMPLETION, &support.ids_only, IDS "\"stop\":[]}");
    assert_int_equal(api_n_jobs(r), 1);
    api_request_free(r);
}

static void test_too_long(void **state)
{
    (void)state;
    // 64 ids fill the context: nothing could follow, unless nothing is asked for.
    char ids[CONTEXT * 2 + 8] = "[3";
    for (int i = 1; i < CONTEXT; i++) strcat(ids, ",3");
    char body[512];
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":%s]}", ids);
    struct api_request *r = NULL;
    struct api_error err = {0};
    assert_int_equal(api_parse(&r, API_COMPLETION, body, strlen(body), &support.env, 0, &err), -1);
    assert_string_equal(err.code, "context_length_exceeded");
    assert_non_null(strstr(err.message, "maximum context length is 64 tokens"));

    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":%s],\"echo\":true,\"max_tokens\":0}",
             ids);
    r = must_parse(API_COMPLETION, &support.env, body);
    struct sched_job job;
    api_job(r, 0, 9, &job);
    assert_int_equal(job.max_new, 0);
    assert_int_equal(job.n_prompt, CONTEXT);
    assert_false(job.score_prompt);
    api_request_free(r);

    // Both figures are named where both count.
    const char *asked = IDS "\"max_tokens\":62}";
    assert_int_equal(api_parse(&r, API_COMPLETION, asked, strlen(asked), &support.env, 0, &err),
                     -1);
    assert_non_null(strstr(err.message, "65 tokens (3 in the prompt, 62 as 'max_tokens')"));

    // A default is cut to what is left: of 16 tokens, 4.
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":[%.*s]}", 2 * 60 - 1, ids + 1);
    r = must_parse(API_COMPLETION, &support.env, body);
    api_job(r, 0, 9, &job);
    assert_int_equal(job.n_prompt, 60);
    assert_int_equal(job.max_new, 4);
    api_request_free(r);
}

static void test_long_lists(void **state)
{
    (void)state;
    // Many values are refused as JSON, before a tree is built; many prompts by count.
    size_t n = 300000, len = 0;
    char *body = malloc(2 * n + 64);
    len = (size_t)sprintf(body, "{\"model\":\"m\",\"prompt\":[3");
    for (size_t i = 0; i < n; i++) len += (size_t)sprintf(body + len, ",3");
    len += (size_t)sprintf(body + len, "]}");
    struct api_request *r = NULL;
    struct api_error err = {0};
    assert_int_equal(api_parse(&r, API_COMPLETION, body, len, &support.env, 0, &err), -1);
    assert_int_equal(err.status, 400);
    free(body);

    char many[1024] = "{\"model\":\"m\",\"prompt\":[[3]";
    for (int i = 1; i < 65; i++) strcat(many, ",[3]");
    strcat(many, "]}");
    assert_int_equal(api_parse(&r, API_COMPLETION, many, strlen(many), &support.env, 0, &err), -1);
    assert_string_equal(err.param, "prompt");
}

static void test_bias_is_bounded(void **state)
{
    (void)state;
    struct cfg_buf body = {0};
    struct api_request *r = NULL;
    struct api_error err = {0};
    cfg_buf_puts(&body, CHAT "\"logit_bias\":{\"0\":1");
    for (int i = 1; i <= 4096; i++) cfg_buf_printf(&body, ",\"%d\":1", i);
    cfg_buf_puts(&body, "}}");
    assert_int_equal(api_parse(&r, API_CHAT, body.data, body.len, &support.env, 0, &err), -1);
    assert_string_equal(err.code, "object_above_max_properties");
    cfg_buf_free(&body);
}

/* ---- good bodies ----------------------------------------------------------------------------- */

static void test_defaults(void **state)
{
    (void)state;
    struct api_request *r = must_parse(API_CHAT, &support.env, "{\"model\":\"m\"," HI "}");
    struct sched_job job;
    api_job(r, 0, 42, &job);
    struct engine_sampling usual;
    engine_sampling_defaults(&usual);
    assert_int_equal(job.id, 42);
    assert_float_equal(job.sampling.temperature, usual.temperature, 0);
    assert_float_equal(job.sampling.top_p, usual.top_p, 0);
    assert_int_equal(job.sampling.top_k, 0);
    assert_int_equal(job.sampling.n_logprobs, -1);
    assert_int_equal(job.sampling.n_bias, 0);
    assert_int_equal(job.sampling.seed, support.env.seed);
    assert_int_equal(job.sampling.n_ends, 1);
    assert_int_equal(job.sampling.ends[0], support.info.eos_id);
    assert_false(job.ignore_ends);
    assert_false(job.score_prompt);
    assert_int_equal(job.prompt[0], support.info.start_id);
    assert_int_equal(job.max_new, CONTEXT - (int)job.n_prompt);
    assert_int_equal(api_prompt_tokens(r), job.n_prompt);
    assert_false(api_is_stream(r));
    assert_false(api_finished(r));
    assert_int_equal(strncmp(api_request_id(r), "chatcmpl-", 9), 0);
    assert_true(strlen(api_request_id(r)) >= 9 + 24);

    // Two requests never have one id.
    struct api_request *other = must_parse(API_CHAT, &support.env, "{\"model\":\"m\"," HI "}");
    assert_string_not_equal(api_request_id(r), api_request_id(other));
    api_request_free(other);
    api_request_free(r);
}

static void test_every_field(void **state)
{
    (void)state;
    struct api_request *r = must_parse(
        API_CHAT, &support.env,
        CHAT "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":7,\"min_p\":0.125,"
             "\"presence_penalty\":-1.5,\"frequency_penalty\":1.5,\"repetition_penalty\":1.25,"
             "\"logit_bias\":{\"0\":-100,\"12\":2.5},\"logprobs\":true,\"top_logprobs\":4,"
             "\"max_completion_tokens\":9,\"min_tokens\":3,\"stop_token_ids\":[20,21],"
             "\"stop\":[\"END\"],\"stream\":true,\"stream_options\":{\"include_usage\":true},"
             "\"user\":\"u\",\"store\":true,\"metadata\":{\"a\":\"b\"},\"service_tier\":\"auto\","
             "\"parallel_tool_calls\":false,\"tools\":[],\"tool_choice\":\"none\","
             "\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"],"
             "\"audio\":null,\"nonsense\":null,\"seed\":-5}");
    struct sched_job job;
    api_job(r, 0, 1, &job);
    const struct engine_sampling *s = &job.sampling;
    assert_float_equal(s->temperature, 0.5, 0);
    assert_float_equal(s->top_p, 0.25, 0);
    assert_int_equal(s->top_k, 7);
    assert_float_equal(s->min_p, 0.125, 0);
    assert_float_equal(s->presence_penalty, -1.5, 0);
    assert_float_equal(s->frequency_penalty, 1.5, 0);
    assert_float_equal(s->repetition_penalty, 1.25, 0);
    assert_int_equal(s->n_bias, 2);
    assert_int_equal(s->bias[0].id, 0);
    assert_float_equal(s->bias[0].bias, -100, 0);
    assert_int_equal(s->bias[1].id, 12);
    assert_float_equal(s->bias[1].bias, 2.5, 0);
    assert_int_equal(s->n_logprobs, 4);
    assert_int_equal(job.max_new, 9);
    assert_int_equal(s->min_tokens, 3);
    assert_int_equal(s->n_ends, 3);
    assert_int_equal(s->ends[0], 20);
    assert_int_equal(s->ends[1], 21);
    assert_int_equal(s->ends[2], support.info.eos_id);
    assert_true(s->seed == (uint64_t)-5);
    assert_true(api_is_stream(r));
    api_request_free(r);
}

/* The job of a chat with the given fields. */
static struct sched_job job_with(const char *fields)
{
    char body[256];
    struct sched_job job;
    snprintf(body, sizeof body, "{\"model\":\"m\"," HI "%s}", fields);
    struct api_request *r = must_parse(API_CHAT, &support.env, body);
    api_job(r, 0, 1, &job);
    api_request_free(r);
    return job;
}

static void test_scheduling_fields(void **state)
{
    (void)state;
    const struct sched_job plain = job_with("");
    assert_int_equal(plain.priority, 0);
    assert_true(plain.timeout_s <= 0);
    assert_true(plain.cache_salt[0] == 0 && plain.cache_salt[1] == 0);
    const struct sched_job a = job_with(",\"priority\":-3,\"timeout\":2.5,\"cache_salt\":\"a\"");
    assert_int_equal(a.priority, -3);
    assert_float_equal(a.timeout_s, 2.5, 1e-6);
    const struct sched_job same = job_with(",\"cache_salt\":\"a\"");
    const struct sched_job other = job_with(",\"cache_salt\":\"b\"");
    assert_memory_equal(a.cache_salt, same.cache_salt, sizeof a.cache_salt);
    assert_true(a.cache_salt[0] != other.cache_salt[0] && a.cache_salt[1] != other.cache_salt[1]);
    assert_true(a.cache_salt[0] != a.cache_salt[1] && a.cache_salt[0] != 0);
    /* keyed: another server's salt for the same text is another */
    support.env.secret[1]++;
    const struct sched_job elsewhere = job_with(",\"cache_salt\":\"a\"");
    support.env.secret[1]--;
    assert_true(a.cache_salt[0] != elsewhere.cache_salt[0]);
}

static void test_edges(void **state)
{
    (void)state;
    struct sched_job job;
    struct api_request *r =
        must_parse(API_COMPLETION, &support.env,
                   IDS "\"top_k\":-1,\"top_p\":0,\"temperature\":0,\"ignore_eos\":true,"
                       "\"stop_token_ids\":[9],\"min_tokens\":40,\"logprobs\":0,\"stop\":\"x\"}");
    api_job(r, 0, 1, &job);
    assert_int_equal(job.sampling.top_k, 0);
    assert_true(job.sampling.top_p > 0 && job.sampling.top_p < 1e-30f);
    assert_float_equal(job.sampling.temperature, 0, 0);
    // ignore_eos takes the end token away, not the caller's own ids.
    assert_int_equal(job.sampling.n_ends, 1);
    assert_int_equal(job.sampling.ends[0], 9);
    assert_int_equal(job.max_new, 16);
    assert_int_equal(job.sampling.min_tokens, 16);
    assert_int_equal(job.sampling.n_logprobs, 0);
    assert_int_equal(job.n_prompt, 3);
    assert_int_equal(job.prompt[0], 3);
    assert_int_equal(job.prompt[2], 5);
    assert_int_equal(strncmp(api_request_id(r), "cmpl-", 5), 0);
    api_request_free(r);
}

static uint64_t seed_of(const struct api_request *r, size_t i)
{
    struct sched_job job;
    api_job(r, i, i + 1, &job);
    return job.sampling.seed;
}

static void test_seeds(void **state)
{
    (void)state;
    struct api_request *a =
        must_parse(API_COMPLETION, &support.env,
                   "{\"model\":\"m\",\"prompt\":[[3,4],[5]],\"n\":3,\"seed\":11}");
    struct api_request *b =
        must_parse(API_COMPLETION, &support.env, "{\"model\":\"m\",\"prompt\":[5],\"seed\":11}");
    assert_int_equal(api_n_jobs(a), 6);
    assert_int_equal(api_prompt_tokens(a), 3);
    assert_true(seed_of(a, 0) == 11);
    assert_true(seed_of(a, 0) != seed_of(a, 1));
    assert_true(seed_of(a, 1) != seed_of(a, 2));
    // The second prompt's answers are those it would get alone.
    assert_true(seed_of(a, 3) == seed_of(b, 0));
    assert_true(seed_of(a, 4) == seed_of(a, 1));
    struct sched_job job;
    api_job(a, 4, 1, &job);
    assert_int_equal(job.n_prompt, 1);
    assert_int_equal(job.prompt[0], 5);
    api_request_free(a);
    api_request_free(b);

    // Without a seed, equal prompts get different ones, and the daemon's seed decides.
    a = must_parse(API_COMPLETION, &support.env, "{\"model\":\"m\",\"prompt\":[[3],[3]]}");
    assert_true(seed_of(a, 0) == support.env.seed);
    assert_true(seed_of(a, 0) != seed_of(a, 1));
    api_request_free(a);

    struct api_env random = support.env;
    random.seed = 0;
    a = must_parse(API_COMPLETION, &random, "{\"model\":\"m\",\"prompt\":[3]}");
    b = must_parse(API_COMPLETION, &random, "{\"model\":\"m\",\"prompt\":[3]}");
    assert_true(seed_of(a, 0) != seed_of(b, 0));
    api_request_free(a);
    api_request_free(b);

    a = must_parse(API_COMPLETION, &random, "{\"model\":\"m\",\"prompt\":[3],\"seed\":0}");
    assert_true(seed_of(a, 0) == 0);
    api_request_free(a);
}

static void prompt_is(const char *body, enum api_kind kind, const int32_t *ids, size_t n)
{
    struct api_request *r = must_parse(kind, &support.env, body);
    struct sched_job job;
    api_job(r, 0, 1, &job);
    assert_int_equal(job.n_prompt, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(job.prompt[i], ids[i]);
    api_request_free(r);
}

static void test_text_prompts(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    size_t n = 0;
    struct error why;
    assert_int_equal(engine_encode(support.tokenizer, "a b", 3, true, &ids, &n, &why), 0);
    prompt_is("{\"model\":\"m\",\"prompt\":\"a b\"}", API_COMPLETION, ids, n);
    prompt_is("{\"model\":\"m\",\"prompt\":[\"a b\"]}", API_COMPLETION, ids, n);
    free(ids);

    int32_t start = support.info.start_id;
    prompt_is("{\"model\":\"m\",\"prompt\":\"\"}", API_COMPLETION, &start, 1);
}

static void test_conversations(void **state)
{
    (void)state;
    static const struct engine_message msgs[] = {
        {ENGINE_SYSTEM, "s", 1}, {ENGINE_USER, "a\nb", 3},  {ENGINE_ASSISTANT, "c", 1},
        {ENGINE_USER, "d", 1},   {ENGINE_ASSISTANT, "", 0}, {ENGINE_USER, "e", 1},
    };
    int32_t *ids = NULL;
    size_t n = 0;
    struct error why;
    assert_int_equal(engine_chat_encode(support.tokenizer, msgs, 6, &ids, &n, NULL, NULL, &why), 0);
    support.info.context = 1024;
    prompt_is(MSG
              "[{\"role\":\"developer\",\"content\":\"s\"},"
              "{\"role\":\"user\",\"name\":\"x\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
              "{\"type\":\"text\",\"text\":\"b\"}]},"
              "{\"role\":\"assistant\",\"content\":\"c\",\"refusal\":null,\"tool_calls\":null},"
              "{\"role\":\"user\",\"content\":\"d\"},{\"role\":\"assistant\",\"content\":null},"
              "{\"role\":\"user\",\"content\":\"e\"}]}",
              API_CHAT, ids, n);
    support.info.context = CONTEXT;
    free(ids);
}

/* ---- errors and small endpoints -------------------------------------------------------------- */

static void test_error_envelope(void **state)
{
    (void)state;
    struct api_error err;
    struct cfg_buf b = {0};
    assert_int_equal(api_fail(&err, 429, NULL, NULL, "say \"%s\"", "x"), -1);
    api_error_body(&err, &b);
    assert_string_equal(b.data, "{\"error\":{\"message\":\"say \\\"x\\\"\","
                                "\"type\":\"rate_limit_error\",\"param\":null,\"code\":null}}");
    b.len = 0;
    assert_int_equal(api_fail(&err, 503, "loading", "a\"b", "m"), -1);
    api_error_event(&err, &b);
    assert_string_equal(b.data, "data: {\"error\":{\"message\":\"m\",\"type\":\"server_error\","
                                "\"param\":\"a\\\"b\",\"code\":\"loading\"}}\n\n");
    cfg_buf_free(&b);

    // A name cut at 63 bytes never ends inside a character.
    char name[80];
    memset(name, 'x', sizeof name);
    memcpy(name + 62, "\xC3\xA9", 3);
    assert_int_equal(api_fail(&err, 400, NULL, name, "%s", name), -1);
    assert_int_equal(strlen(err.param), 62);
    assert_true(cfg_utf8_valid(err.param, strlen(err.param)));
}

typedef int endpoint(const char *, size_t, const struct api_env *, struct cfg_buf *,
                     struct api_error *);

static void refused(endpoint *e, const char *body, const struct api_env *env, const char *param,
                    const char *code)
{
    struct cfg_buf b = {0};
    struct api_error err = {0};
    assert_int_equal(e(body, strlen(body), env, &b, &err), -1);
    assert_string_equal(err.param, param);
    assert_string_equal(err.code, code);
    assert_int_equal(b.len, 0);
    cfg_buf_free(&b);
}

static cJSON *answered(endpoint *e, const char *body)
{
    struct cfg_buf b = {0};
    struct api_error err = {0};
    if (e(body, strlen(body), &support.env, &b, &err)) fail_msg("%s: %s", body, err.message);
    cJSON *o = cJSON_ParseWithOpts(b.data, NULL, true);
    assert_non_null(o);
    cfg_buf_free(&b);
    return o;
}

static void test_tokenize(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    size_t n = 0;
    struct error why;
    assert_int_equal(engine_encode(support.tokenizer, "a b", 3, true, &ids, &n, &why), 0);
    cJSON *o = answered(api_tokenize, "{\"model\":\"m\",\"prompt\":\"a b\"}");
    const cJSON *tokens = cJSON_GetObjectItem(o, "tokens");
    assert_int_equal(cJSON_GetArraySize(tokens), n);
    assert_int_equal(cJSON_GetObjectItem(o, "count")->valueint, n);
    assert_int_equal(cJSON_GetObjectItem(o, "max_model_len")->valueint, CONTEXT);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(cJSON_GetArrayItem(tokens, (int)i)->valueint, ids[i]);
    assert_null(cJSON_GetObjectItem(o, "token_strs"));
    cJSON_Delete(o);

    o = answered(api_tokenize, "{\"prompt\":\"a b\",\"return_token_strs\":true}");
    const cJSON *pieces = cJSON_GetObjectItem(o, "token_strs");
    assert_int_equal(cJSON_GetArraySize(pieces), n);
    for (size_t i = 0; i < n; i++)
        assert_string_equal(cJSON_GetArrayItem(pieces, (int)i)->valuestring,
                            engine_token_piece(support.tokenizer, ids[i]));
    cJSON_Delete(o);

    o = answered(api_tokenize, "{\"prompt\":\"a b\",\"add_special_tokens\":false}");
    tokens = cJSON_GetObjectItem(o, "tokens");
    assert_int_equal(cJSON_GetArraySize(tokens), n - 1);
    assert_int_equal(cJSON_GetArrayItem(tokens, 0)->valueint, ids[1]);

    char *list = cJSON_PrintUnformatted(tokens);
    char body[256];
    snprintf(body, sizeof body, "{\"tokens\":%s}", list);
    cJSON *back = answered(api_detokenize, body);
    assert_string_equal(cJSON_GetObjectItem(back, "prompt")->valuestring, "a b");
    cJSON_Delete(back);
    free(list);
    cJSON_Delete(o);
    free(ids);

    refused(api_tokenize, "{}", &support.env, "prompt", "missing_required_parameter");
    refused(api_tokenize, "{\"prompt\":[3]}", &support.env, "prompt", "invalid_type");
    refused(api_tokenize, "{\"prompt\":\"\",\"return_token_strs\":1}", &support.env,
            "return_token_strs", "invalid_type");
    refused(api_tokenize, "{\"prompt\":\"\",\"x\":1}", &support.env, "x", "unknown_parameter");
    refused(api_tokenize, "{\"prompt\":\"\",\"model\":\"z\"}", &support.env, "model",
            "model_not_found");
    refused(api_tokenize, "{\"prompt\":\"\"}", &support.ids_only, "", "tokenizer_missing");
    refused(api_detokenize, "{\"tokens\":\"a\"}", &support.env, "tokens", "invalid_type");
    refused(api_detokenize, "{\"tokens\":[99999999]}", &support.env, "tokens[0]",
            "integer_above_max_value");
    refused(api_detokenize, "{}", &support.env, "tokens", "missing_required_parameter");
}

static void test_models(void **state)
{
    (void)state;
    struct cfg_buf b = {0};
    api_models(&support.env, &b);
    assert_string_equal(b.data, "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\","
                                "\"created\":1700000000,\"owned_by\":\"openmoed\","
                                "\"root\":\"m\",\"parent\":null,\"max_model_len\":64}]}");
    b.len = 0;
    struct api_error err;
    assert_int_equal(api_model("m", &support.env, &b, &err), 0);
    assert_string_equal(b.data, "{\"id\":\"m\",\"object\":\"model\",\"created\":1700000000,"
                                "\"owned_by\":\"openmoed\",\"root\":\"m\",\"parent\":null,"
                                "\"max_model_len\":64}");
    b.len = 0;
    assert_int_equal(api_model("n", &support.env, &b, &err), -1);
    assert_int_equal(err.status, 404);
    assert_string_equal(err.code, "model_not_found");
    api_version(&b);
    assert_string_equal(b.data, "{\"version\":\"" OPENMOED_VERSION "\"}");
    cfg_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bias_is_bounded), cmocka_unit_test(test_bad_bodies),
        cmocka_unit_test(test_no_tokenizer),    cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_long_lists),      cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_field),     cmocka_unit_test(test_scheduling_fields),
        cmocka_unit_test(test_edges),           cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_text_prompts),    cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_error_envelope),  cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_models),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
