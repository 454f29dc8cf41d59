// SPDX-License-Identifier: Apache-2.0
//
// The fields beside OpenAI's sampling ones, from the body to the job and the answer: messages that
// are continued, prompts that are cut or scored, tokens and words an answer may have, and what the
// answer's envelope repeats.
#include "api_run.h"

#include <stdlib.h>

#define TALK(rest)                                                                                 \
    "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"                      \
    "{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"Well, "          \
    "I\"}]," rest
#define IDS "{\"model\":\"m\",\"prompt\":[3,4,5,6],"

struct bad {
    enum api_kind kind;
    const char *body, *param, *code;
};

static const struct bad bad_bodies[] = {
    /* continued messages */
    {API_CHAT, TALK("\"n\":1}"), "messages[2].role", "invalid_value"},
    {API_CHAT, TALK("\"continue_final_message\":false}"), "messages[2].role", "invalid_value"},
    {API_CHAT, TALK("\"continue_final_message\":1}"), "continue_final_message", "invalid_type"},
    {API_CHAT, TALK("\"continue_final_message\":true,\"add_generation_prompt\":true}"),
     "add_generation_prompt", "invalid_value"},
    {API_CHAT, CHAT "\"add_generation_prompt\":false}", "add_generation_prompt", "invalid_value"},
    {API_CHAT, CHAT "\"continue_final_message\":true}", "messages[1].role", "invalid_value"},
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},"
     "{\"role\":\"assistant\",\"content\":\"\"}],\"continue_final_message\":true}",
     "messages[1].content", "invalid_value"},
    {API_CHAT, CHAT "\"echo\":1}", "echo", "invalid_type"},
    /* parts */
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":"
     "[{\"type\":\"refusal\",\"refusal\":\"no\"}]}]}",
     "messages[0].content[0].type", "invalid_value"},
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"content\":"
     "[{\"type\":\"refusal\",\"text\":\"no\"}]}]}",
     "messages[0].content[0].text", "unknown_parameter"},
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"content\":"
     "[{\"type\":\"refusal\"}]}]}",
     "messages[0].content[0].refusal", "missing_required_parameter"},
    {API_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"refusal\":7}]}",
     "messages[0].refusal", "invalid_type"},
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"refusal\":\"y\"}]"
     "}",
     "messages[0].refusal", "invalid_value"},
    {API_CHAT,
     "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\",\"refusal\":\"y\"}]}",
     "messages[0].refusal", "invalid_value"},
    /* cuts and scores of the prompt */
    {API_COMPLETION, IDS "\"truncate_prompt_tokens\":0}", "truncate_prompt_tokens",
     "invalid_value"},
    {API_COMPLETION, IDS "\"truncate_prompt_tokens\":-2}", "truncate_prompt_tokens",
     "integer_below_min_value"},
    {API_COMPLETION, IDS "\"truncation_side\":\"middle\"}", "truncation_side", "invalid_value"},
    {API_COMPLETION, IDS "\"truncation_side\":1}", "truncation_side", "invalid_type"},
    {API_COMPLETION, IDS "\"prompt_logprobs\":21}", "prompt_logprobs", "integer_above_max_value"},
    {API_COMPLETION, IDS "\"prompt_logprobs\":-1}", "prompt_logprobs", "integer_below_min_value"},
    {API_CHAT, STREAM "\"prompt_logprobs\":0}", "prompt_logprobs", "invalid_value"},
    {API_CHAT, CHAT "\"add_special_tokens\":true}", "add_special_tokens", "unsupported_value"},
    {API_COMPLETION, IDS "\"add_special_tokens\":1}", "add_special_tokens", "invalid_type"},
    {API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"\",\"add_special_tokens\":false}", "prompt",
     "invalid_value"},
    /* the answer's tokens */
    {API_CHAT, CHAT "\"allowed_token_ids\":7}", "allowed_token_ids", "invalid_type"},
    {API_CHAT, CHAT "\"allowed_token_ids\":[]}", "allowed_token_ids", "empty_array"},
    {API_CHAT, CHAT "\"allowed_token_ids\":[5,-1]}", "allowed_token_ids[1]",
     "integer_below_min_value"},
    {API_CHAT, CHAT "\"allowed_token_ids\":[99999999]}", "allowed_token_ids[0]",
     "integer_above_max_value"},
    {API_CHAT, CHAT "\"bad_words\":\"x\"}", "bad_words", "invalid_type"},
    {API_CHAT, CHAT "\"bad_words\":[\"x\",3]}", "bad_words[1]", "invalid_type"},
    {API_CHAT, CHAT "\"bad_words\":[\"\"]}", "bad_words[0]", "invalid_value"},
    {API_CHAT, CHAT "\"bad_words\":[\"  \"]}", "bad_words[0]", "invalid_value"},
    {API_CHAT, CHAT "\"return_tokens_as_token_ids\":\"yes\"}", "return_tokens_as_token_ids",
     "invalid_type"},
    /* the envelope */
    {API_CHAT, CHAT "\"request_id\":\"\"}", "request_id", "invalid_value"},
    {API_CHAT, CHAT "\"request_id\":\"a b\"}", "request_id", "invalid_value"},
    {API_CHAT, CHAT "\"request_id\":\"a\\\"b\"}", "request_id", "invalid_value"},
    {API_CHAT, CHAT "\"request_id\":9}", "request_id", "invalid_type"},
    {API_CHAT, CHAT "\"metadata\":[]}", "metadata", "invalid_type"},
    {API_CHAT, CHAT "\"metadata\":{\"a\":1}}", "metadata.a", "invalid_type"},
    {API_CHAT, CHAT "\"service_tier\":\"best\"}", "service_tier", "invalid_value"},
    {API_CHAT, STREAM "\"stream_options\":{\"continuous_usage_stats\":2}}",
     "stream_options.continuous_usage_stats", "invalid_type"},
    /* what another field has replaced, and what would change the answer */
    {API_CHAT, CHAT "\"functions\":[]}", "functions", "unsupported_parameter"},
    {API_CHAT, CHAT "\"moderation\":{\"model\":\"x\"}}", "moderation", "unsupported_parameter"},
    {API_CHAT, CHAT "\"verbosity\":\"low\"}", "verbosity", "unsupported_parameter"},
    {API_CHAT, CHAT "\"chat_template\":\"{{x}}\"}", "chat_template", "unsupported_parameter"},
    {API_CHAT, CHAT "\"use_beam_search\":true}", "use_beam_search", "unsupported_parameter"},
    {API_COMPLETION, IDS "\"rid\":\"x\"}", "rid", "unsupported_parameter"},
    {API_COMPLETION, IDS "\"metadata\":{}}", "metadata", "unknown_parameter"},
};

static void refused(enum api_kind kind, const struct api_env *env, const char *body,
                    const char *param, const char *code)
{
    struct api_request *r = NULL;
    struct api_error err = {0};
    if (api_parse(&r, kind, body, strlen(body), env, 0, &err) == 0)
        fail_msg("%s\nwas accepted", body);
    assert_null(r);
    if (strcmp(err.param, param) != 0 || !err.code || strcmp(err.code, code) != 0)
        fail_msg("%s\n%s %s: %s", body, err.param, err.code ? err.code : "-", err.message);
    assert_int_equal(err.status, 400);
}

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_bodies / sizeof *bad_bodies; i++)
        refused(bad_bodies[i].kind, &support.env, bad_bodies[i].body, bad_bodies[i].param,
                bad_bodies[i].code);
    refused(API_COMPLETION, &support.ids_only, IDS "\"bad_words\":[\"x\"]}", "bad_words",
            "tokenizer_missing");
}

/* What the other servers have, and this one does not: told apart from a slip of the pen. */
static void test_fields_of_others(void **state)
{
    static const char *const both[] = {
        "extra_key",       "routed_dp_rank",         "data_parallel_rank",
        "bootstrap_host",  "bootstrap_port",         "bootstrap_room",
        "images_config",   "disagg_prefill_dp_rank", "return_cached_tokens_details",
        "ngram_corpus_id", "custom_labels",          "routed_experts_start_len"};
    static const char *const chat[] = {"task",
                                       "input_ids",
                                       "max_dynamic_patch",
                                       "min_dynamic_patch",
                                       "use_audio_in_video",
                                       "return_meta_info",
                                       "return_prompt_token_ids",
                                       "return_mm_kwargs"};
    char body[256];
    (void)state;
    for (size_t i = 0; i < sizeof both / sizeof *both; i++) {
        snprintf(body, sizeof body, CHAT "\"%s\":7}", both[i]);
        refused(API_CHAT, &support.env, body, both[i], "unsupported_parameter");
        snprintf(body, sizeof body, IDS "\"%s\":7}", both[i]);
        refused(API_COMPLETION, &support.env, body, both[i], "unsupported_parameter");
    }
    for (size_t i = 0; i < sizeof chat / sizeof *chat; i++) {
        snprintf(body, sizeof body, CHAT "\"%s\":7}", chat[i]);
        refused(API_CHAT, &support.env, body, chat[i], "unsupported_parameter");
    }
}

/* Fields that ask for nothing are as good as absent. */
static void test_harmless(void **state)
{
    (void)state;
    api_request_free(must_parse(
        API_CHAT, &support.env,
        CHAT "\"add_generation_prompt\":true,\"continue_final_message\":false,\"echo\":true,"
             "\"reasoning_effort\":\"none\",\"verbosity\":\"medium\",\"use_beam_search\":false,"
             "\"length_penalty\":1.0,\"spaces_between_special_tokens\":true,\"documents\":[],"
             "\"chat_template_kwargs\":{},\"add_special_tokens\":false,\"bad_words\":[],"
             "\"store\":true,\"safety_identifier\":\"x\",\"prompt_cache_key\":\"x\","
             "\"prompt_cache_options\":{\"mode\":\"implicit\"},\"session_id\":\"s\","
             "\"include_reasoning\":false,\"modalities\":[\"text\"],\"metadata\":null,"
             "\"logprobs\":false,\"top_logprobs\":0,\"return_mm_kwargs\":true,"
             "\"return_cached_tokens_details\":false,\"routed_experts_start_len\":0}"));
    api_request_free(must_parse(API_CHAT, &support.env, CHAT "\"top_logprobs\":0}"));
}

/* ---- messages -------------------------------------------------------------------------------- */

static void ids_are(const struct api_request *r, size_t i, const int32_t *ids, size_t n)
{
    struct sched_job job;
    api_job(r, i, 1, &job);
    assert_int_equal(job.n_prompt, n);
    assert_memory_equal(job.prompt, ids, n * sizeof *ids);
}

static int32_t *encoded(const struct engine_message *msgs, size_t n_msgs, size_t *n)
{
    int32_t *ids = NULL;
    struct error err;
    assert_int_equal(engine_chat_encode(support.tokenizer, msgs, n_msgs, &ids, n, NULL, NULL, &err),
                     CFG_OK);
    return ids;
}

static void test_continued(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {
        {ENGINE_SYSTEM, "s", 1}, {ENGINE_USER, "hi", 2}, {ENGINE_ASSISTANT, "Well, I", 7}};
    size_t n = 0;
    int32_t *ids = encoded(msgs, 3, &n);
    struct run run;
    start(&run, API_CHAT, &support.env,
          TALK("\"continue_final_message\":true,\"add_generation_prompt\":false}"));
    ids_are(run.r, 0, ids, n);
    free(ids);
    feed_bytes(&run, 0, " am"); /* the space belongs to the text that goes on */
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    assert_string_equal(content_of(body, 0), " am");
    cJSON_Delete(body);
    end(&run);

    start(&run, API_CHAT, &support.env, TALK("\"continue_final_message\":true,\"echo\":true}"));
    feed_bytes(&run, 0, " am");
    feed_done(&run, 0, SCHED_STOP);
    body = body_of(&run);
    assert_string_equal(content_of(body, 0), "Well, I am");
    cJSON_Delete(body);
    end(&run);
}

static void test_echo_stream(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env,
          TALK("\"continue_final_message\":true,\"echo\":true,\"logprobs\":true,"
               "\"stream\":true}"));
    drop_output(&run);
    feed_bytes(&run, 0, "x");
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{\"content\":\"Well, I\"},\"logprobs\":null,"
                          "\"finish_reason\":null}]}\n\n" CHUNK
                          "{\"index\":0,\"delta\":{\"content\":\"x\"},\"logprobs\":{\"content\":["
                          "{\"token\":\"x\",\"logprob\":-0.5,\"bytes\":[120],"
                          "\"top_logprobs\":[]}],\"refusal\":null},\"finish_reason\":null}]}\n\n");
    end(&run);
}

/* What the assistant refused stands in the prompt as what it said. */
static void test_refusal_text(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {
        {ENGINE_USER, "hi", 2}, {ENGINE_ASSISTANT, "no", 2}, {ENGINE_USER, "so", 2}};
    size_t n = 0;
    struct support wide = support; /* the default system message is longer than the context */
    wide.info.context = 512;
    wide.env.info = &wide.info;
    int32_t *ids = encoded(msgs, 3, &n);
    static const char *const bodies[] = {
        "{\"role\":\"assistant\",\"content\":[{\"type\":\"refusal\",\"refusal\":\"no\"}]}",
        "{\"role\":\"assistant\",\"refusal\":\"no\"}",
        "{\"role\":\"assistant\",\"content\":null,\"refusal\":\"no\"}",
        "{\"role\":\"assistant\",\"content\":\"no\",\"refusal\":null,\"name\":\"x\"}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        char body[512];
        snprintf(body, sizeof body,
                 "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":"
                 "\"text\",\"text\":\"hi\",\"prompt_cache_breakpoint\":{}}]},%s,"
                 "{\"role\":\"user\",\"content\":\"so\"}]}",
                 bodies[i]);
        struct api_request *r = must_parse(API_CHAT, &wide.env, body);
        ids_are(r, 0, ids, n);
        api_request_free(r);
    }
    free(ids);
}

/* ---- prompts --------------------------------------------------------------------------------- */

static void cut_to(const char *rest, const int32_t *ids, size_t n)
{
    char body[256];
    snprintf(body, sizeof body, IDS "%s}", rest);
    struct api_request *r = must_parse(API_COMPLETION, &support.env, body);
    ids_are(r, 0, ids, n);
    assert_int_equal(api_prompt_tokens(r), n);
    api_request_free(r);
}

static void test_truncation(void **state)
{
    (void)state;
    const int32_t ids[] = {3, 4, 5, 6};
    cut_to("\"truncate_prompt_tokens\":3", ids + 1, 3);
    cut_to("\"truncate_prompt_tokens\":3,\"truncation_side\":\"left\"", ids + 1, 3);
    cut_to("\"truncate_prompt_tokens\":1,\"truncation_side\":\"right\"", ids, 1);
    cut_to("\"truncate_prompt_tokens\":4", ids, 4);
    cut_to("\"truncate_prompt_tokens\":99", ids, 4);
    cut_to("\"truncate_prompt_tokens\":-1", ids, 4);
    cut_to("\"truncate_prompt_tokens\":-1,\"max_tokens\":62", ids + 2, 2);
    cut_to("\"truncation_side\":\"right\"", ids, 4); /* without a length: nothing is cut */
}

/* A prompt longer than the context fits once it is cut; its echo is the text of what is left. */
static void test_truncated_texts(void **state)
{
    (void)state;
    char body[512];
    struct sched_job job;
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"%s\",%s}",
             "0123456789012345678901234567890123456789012345678901234567890123456789xyz",
             "\"truncate_prompt_tokens\":-1,\"max_tokens\":10,\"echo\":true");
    struct run run;
    start(&run, API_COMPLETION, &support.env, body);
    api_job(run.r, 0, 1, &job);
    assert_int_equal(job.n_prompt, CONTEXT - 10);
    char *text = NULL;
    size_t n = 0;
    struct error err;
    assert_int_equal(engine_decode(support.tokenizer, job.prompt, job.n_prompt, &text, &n, &err),
                     CFG_OK);
    assert_string_equal(text + n - 3, "xyz");
    feed_done(&run, 0, SCHED_LENGTH);
    cJSON *answer = body_of(&run);
    assert_string_equal(string_of(choice_of(answer, 0), "text"), text);
    cJSON_Delete(answer);
    free(text);
    end(&run);
}

/* Turns are counted in what is left of a chat. */
static void test_truncated_turns(void **state)
{
    (void)state;
    static const char talk[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
        "{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
        "{\"role\":\"user\",\"content\":\"c\"}]%s}";
    char body[512];
    struct sched_job whole, cut;
    snprintf(body, sizeof body, talk, "");
    struct api_request *a = must_parse(API_CHAT, &support.env, body);
    api_job(a, 0, 1, &whole);
    assert_int_equal(whole.n_turns, 2);
    assert_int_equal(whole.turns[0], 0);
    const int32_t second = whole.turns[1];
    for (size_t keep = 1; keep <= whole.n_prompt; keep++) {
        for (int right = 0; right < 2; right++) {
            char rest[96];
            snprintf(rest, sizeof rest,
                     ",\"truncate_prompt_tokens\":%zu,\"truncation_side\":\"%s\"", keep,
                     right ? "right" : "left");
            snprintf(body, sizeof body, talk, rest);
            struct api_request *b = must_parse(API_CHAT, &support.env, body);
            api_job(b, 0, 1, &cut);
            const int32_t at = second - (right ? 0 : (int32_t)(whole.n_prompt - keep));
            assert_int_equal(cut.n_prompt, keep);
            assert_int_equal(cut.n_turns, at > 0 && at < (int32_t)keep ? 2 : 1);
            assert_int_equal(cut.turns[0], 0);
            if (cut.n_turns == 2) assert_int_equal(cut.turns[1], at);
            api_request_free(b);
        }
    }
    api_request_free(a);
}

static void test_no_start_token(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    size_t n = 0;
    struct error err;
    assert_int_equal(engine_encode(support.tokenizer, "abc", 3, true, &ids, &n, &err), CFG_OK);
    struct api_request *r =
        must_parse(API_COMPLETION, &support.env, "{\"model\":\"m\",\"prompt\":\"abc\"}");
    ids_are(r, 0, ids, n);
    api_request_free(r);
    r = must_parse(API_COMPLETION, &support.env,
                   "{\"model\":\"m\",\"prompt\":\"abc\",\"add_special_tokens\":false}");
    ids_are(r, 0, ids + 1, n - 1);
    api_request_free(r);
    free(ids);
}

static struct sched_event score(size_t position, int32_t id, float logprob, int32_t best)
{
    return (struct sched_event){.kind = SCHED_PROMPT_SCORE,
                                .position = position,
                                .result = {.token = id,
                                           .logprob = logprob,
                                           .n_top = 2,
                                           .top = {{best, -0.25f}, {byte_id('y'), -1.5f}}}};
}

static void test_prompt_logprobs(void **state)
{
    (void)state;
    char request[160], expected[512];
    const int a = byte_id('a'), b = byte_id('b'), y = byte_id('y'), z = byte_id('z');
    snprintf(request, sizeof request,
             "{\"model\":\"m\",\"prompt\":[%d,%d,%d],\"prompt_logprobs\":1,\"logprobs\":0}", a, b,
             z);
    struct run run;
    struct sched_job job;
    start(&run, API_COMPLETION, &support.env, request);
    api_job(run.r, 0, 1, &job);
    assert_true(job.score_prompt);
    assert_int_equal(job.sampling.n_logprobs, 1);
    const struct sched_event first = score(1, b, -4, z), second = score(2, z, -0.25f, z);
    feed(&run, 0, &first);
    feed(&run, 0, &second);
    feed_bytes(&run, 0, "q");
    feed_done(&run, 0, SCHED_LENGTH);
    cJSON *body = body_of(&run);
    snprintf(expected, sizeof expected,
             "[null,{\"%d\":{\"logprob\":-4,\"rank\":null,\"decoded_token\":\"b\"},"
             "\"%d\":{\"logprob\":-0.25,\"rank\":1,\"decoded_token\":\"z\"}},"
             "{\"%d\":{\"logprob\":-0.25,\"rank\":1,\"decoded_token\":\"z\"}}]",
             b, z, z);
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "prompt_logprobs"), expected);
    /* the answer's own have what was asked for: the sampled token alone */
    json_is(cJSON_GetObjectItem(cJSON_GetObjectItem(choice_of(body, 0), "logprobs"), "tokens"),
            "[\"q\"]");
    cJSON_Delete(body);
    end(&run);

    /* a chat has them once, beside its choices */
    start(&run, API_CHAT, &support.env, CHAT "\"prompt_logprobs\":2,\"n\":2}");
    api_job(run.r, 0, 1, &job);
    assert_true(job.score_prompt);
    assert_int_equal(job.sampling.n_logprobs, 2);
    api_job(run.r, 1, 2, &job);
    assert_false(job.score_prompt);
    feed(&run, 0, &first);
    feed_done(&run, 0, SCHED_STOP);
    feed_done(&run, 1, SCHED_STOP);
    body = body_of(&run);
    snprintf(expected, sizeof expected,
             "[null,{\"%d\":{\"logprob\":-4,\"rank\":null,\"decoded_token\":\"b\"},"
             "\"%d\":{\"logprob\":-0.25,\"rank\":1,\"decoded_token\":\"z\"},"
             "\"%d\":{\"logprob\":-1.5,\"rank\":2,\"decoded_token\":\"y\"}}]",
             b, z, y);
    json_is(cJSON_GetObjectItem(body, "prompt_logprobs"), expected);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(choice_of(body, 0), "logprobs")));
    assert_null(cJSON_GetObjectItem(choice_of(body, 0), "prompt_logprobs"));
    cJSON_Delete(body);
    end(&run);

    start(&run, API_COMPLETION, &support.env,
          "{\"model\":\"m\",\"prompt\":[9],\"prompt_logprobs\":0}");
    feed_done(&run, 0, SCHED_LENGTH);
    body = body_of(&run);
    json_is(cJSON_GetObjectItem(choice_of(body, 0), "prompt_logprobs"), "[null]");
    cJSON_Delete(body);
    end(&run);
}

/* ---- the answer's tokens --------------------------------------------------------------------- */

static bool has_word(const struct sched_job *job, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < job->sampling.n_words; i++)
        if (job->sampling.words[i].n == n &&
            !memcmp(job->sampling.words[i].ids, ids, n * sizeof *ids))
            return true;
    return false;
}

/* Ids of a text that follows another one, by comparing what both give together. */
static void test_bad_words(void **state)
{
    (void)state;
    struct sched_job job;
    struct error err;
    struct api_request *r = must_parse(
        API_CHAT, &support.env,
        CHAT "\"bad_words\":[\"name\",\" name\",\"\xC3\xA9\"],\"allowed_token_ids\":[9,8,9]}");
    api_job(r, 0, 1, &job);
    assert_int_equal(job.sampling.n_allowed, 3);
    assert_int_equal(job.sampling.allowed[1], 8);

    int32_t *spaced = NULL;
    size_t n = 0;
    assert_int_equal(engine_encode(support.tokenizer, "name", 4, false, &spaced, &n, &err), CFG_OK);
    assert_true(has_word(&job, spaced, n));
    free(spaced);
    /* inside a word no piece begins with a space */
    bool inside = false;
    for (size_t i = 0; i < job.sampling.n_words; i++) {
        const struct engine_word *w = &job.sampling.words[i];
        char *text = NULL, bytes[64];
        assert_int_equal(engine_decode(support.tokenizer, w->ids, w->n, &text, &n, &err), CFG_OK);
        assert_non_null(strstr("name \xC3\xA9", text[0] == ' ' ? text + 1 : text));
        free(text);
        if (engine_token_bytes(support.tokenizer, w->ids[0], bytes, sizeof bytes) > 0 &&
            bytes[0] == 'n')
            inside = true;
        for (size_t k = 0; k < i; k++) /* and none is there twice */
            assert_false(job.sampling.words[k].n == w->n &&
                         !memcmp(job.sampling.words[k].ids, w->ids, w->n * sizeof *w->ids));
    }
    assert_true(inside);
    assert_in_range(job.sampling.n_words, 3, 5);
    api_request_free(r);
}

static void test_tokens_as_ids(void **state)
{
    (void)state;
    char expected[160];
    struct run run;
    start(&run, API_CHAT, &support.env,
          CHAT "\"logprobs\":true,\"return_tokens_as_token_ids\":true}");
    feed_bytes(&run, 0, "x");
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    snprintf(expected, sizeof expected,
             "[{\"token\":\"token_id:%d\",\"logprob\":-0.5,\"bytes\":[120],\"top_logprobs\":[]}]",
             (int)byte_id('x'));
    json_is(cJSON_GetObjectItem(cJSON_GetObjectItem(choice_of(body, 0), "logprobs"), "content"),
            expected);
    cJSON_Delete(body);
    end(&run);
}

/* ---- the envelope ---------------------------------------------------------------------------- */

static void test_envelope(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env,
          CHAT "\"request_id\":\"a-1_b.c:d\",\"service_tier\":\"flex\",\"store\":true,"
               "\"metadata\":{\"k\":\"v\\\"\",\"\xC3\xA9\":\"\"}}");
    feed_done(&run, 0, SCHED_STOP);
    cJSON *body = body_of(&run);
    assert_string_equal(api_request_id(run.r), "chatcmpl-a-1_b.c:d");
    assert_string_equal(string_of(body, "id"), "chatcmpl-a-1_b.c:d");
    assert_string_equal(string_of(body, "service_tier"), "default");
    json_is(cJSON_GetObjectItem(body, "metadata"), "{\"k\":\"v\\\"\",\"\xC3\xA9\":\"\"}");
    cJSON_Delete(body);
    end(&run);

    start(&run, API_COMPLETION, &support.env, IDS "\"request_id\":\"7\"}");
    feed_done(&run, 0, SCHED_STOP);
    body = body_of(&run);
    assert_string_equal(string_of(body, "id"), "cmpl-7");
    assert_null(cJSON_GetObjectItem(body, "service_tier"));
    assert_null(cJSON_GetObjectItem(body, "metadata"));
    cJSON_Delete(body);
    end(&run);
}

/* The limits of metadata are in characters, and only just too much is refused. */
static void test_metadata_limits(void **state)
{
    (void)state;
    struct cfg_buf ok = {0}, bad = {0};
    for (int pass = 0; pass < 3; pass++) {
        ok.len = bad.len = 0;
        const int keys = pass == 0 ? 16 : 1, key = pass == 1 ? 64 : 4, value = pass == 2 ? 512 : 3;
        for (int over = 0; over < 2; over++) {
            struct cfg_buf *b = over ? &bad : &ok;
            cfg_buf_puts(b, CHAT "\"metadata\":{");
            for (int i = 0; i < keys + (over && pass == 0); i++) {
                cfg_buf_printf(b, i ? ",\"%02d" : "\"%02d", i);
                for (int k = 2; k < key + (over && pass == 1); k++) cfg_buf_puts(b, "\xC3\xA9");
                cfg_buf_puts(b, "\":\"");
                for (int k = 0; k < value + (over && pass == 2); k++) cfg_buf_puts(b, "\xC3\xA9");
                cfg_buf_puts(b, "\"");
            }
            cfg_buf_puts(b, "}}");
        }
        api_request_free(must_parse(API_CHAT, &support.env, ok.data));
        struct api_request *r = NULL;
        struct api_error err = {0};
        assert_int_equal(api_parse(&r, API_CHAT, bad.data, bad.len, &support.env, 0, &err), -1);
        assert_int_equal(err.status, 400);
        assert_string_equal(err.code,
                            pass == 0 ? "object_above_max_properties" : "string_above_max_length");
    }
    cfg_buf_free(&ok);
    cfg_buf_free(&bad);
}

static void test_continuous_usage(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_COMPLETION, &support.env,
          "{\"model\":\"m\",\"prompt\":[[3,4],[5]],\"stream\":true,"
          "\"stream_options\":{\"continuous_usage_stats\":true}}");
    feed_bytes(&run, 1, "x");
    feed_bytes(&run, 0, "yz");
    output_is(&run, TEXT
              "{\"index\":1,\"text\":\"x\",\"logprobs\":null,\"finish_reason\":null}],\"usage\":{"
              "\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\n" TEXT
              "{\"index\":0,\"text\":\"y\",\"logprobs\":null,\"finish_reason\":null}],\"usage\":{"
              "\"prompt_tokens\":2,\"completion_tokens\":1,\"total_tokens\":3}}\n\n" TEXT
              "{\"index\":0,\"text\":\"z\",\"logprobs\":null,\"finish_reason\":null}],\"usage\":{"
              "\"prompt_tokens\":2,\"completion_tokens\":2,\"total_tokens\":4}}\n\n");
    end(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),         cmocka_unit_test(test_harmless),
        cmocka_unit_test(test_continued),        cmocka_unit_test(test_echo_stream),
        cmocka_unit_test(test_refusal_text),     cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_truncated_texts),  cmocka_unit_test(test_truncated_turns),
        cmocka_unit_test(test_no_start_token),   cmocka_unit_test(test_prompt_logprobs),
        cmocka_unit_test(test_bad_words),        cmocka_unit_test(test_tokens_as_ids),
        cmocka_unit_test(test_envelope),         cmocka_unit_test(test_metadata_limits),
        cmocka_unit_test(test_continuous_usage), cmocka_unit_test(test_fields_of_others),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
