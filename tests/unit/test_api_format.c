// SPDX-License-Identifier: Apache-2.0
//
// test_api_format.c: answers that must have a form: which texts the grammar of a request's job
// takes and which it does not, refusals with the place they are about, what the detokeniser does
// with such a request, and the grammars that are kept: shared, bounded, compiled once.
#include "api_support.h"

#include <pthread.h>

#include "server/api_format.h"

#define HI                                                                                         \
    "\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"                                       \
    "{\"role\":\"user\",\"content\":\"hi\"}]"
#define CHAT "{\"model\":\"m\"," HI ","
#define TEXT "{\"model\":\"m\",\"prompt\":\"a\","
#define OBJECT                                                                                     \
    "{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\"}},\"required\":[\"n\"]}"
#define FORMAT  "\"response_format\":"
#define SCHEMA  FORMAT "{\"type\":\"json_schema\",\"json_schema\":"
#define OUTPUTS "\"structured_outputs\":"

/* ---- which texts ----------------------------------------------------------------------------- */

struct form {
    enum api_kind kind;
    const char *body, *good, *bad;
};

static const struct form forms[] = {
    {API_CHAT, CHAT FORMAT "{\"type\":\"json_object\"}}", "{\"a\":[1,2]}", "[1]"},
    {API_CHAT, CHAT SCHEMA "{\"name\":\"a\",\"schema\":" OBJECT ",\"strict\":true}}}", "{\"n\":12}",
     "{\"n\":\"x\"}"},
    {API_CHAT, CHAT SCHEMA "{\"name\":\"a-_9\",\"description\":\"d\",\"strict\":null}}}", "{}",
     "1"},
    {API_CHAT, CHAT OUTPUTS "{\"json\":" OBJECT "}}", "{\"n\":0}", "{}"},
    {API_CHAT, CHAT OUTPUTS "{\"json\":\"{\\\"type\\\":\\\"boolean\\\"}\"}}", "true", "1"},
    {API_CHAT, CHAT OUTPUTS "{\"regex\":\"[ab]+c\"}}", "abc", "abcc"},
    {API_CHAT, CHAT OUTPUTS "{\"choice\":[\"yes\",\"no\"]}}", "no", "nothing"},
    {API_CHAT, CHAT OUTPUTS "{\"grammar\":\"root ::= \\\"x\\\" root | \\\"y\\\"\"}}", "xxy", "xx"},
    {API_CHAT, CHAT OUTPUTS "{\"json_object\":true,\"regex\":null}}", "{}", "[]"},
    {API_CHAT, CHAT "\"guided_json\":" OBJECT "}", "{\"n\":-1}", "{\"n\":1.5}"},
    {API_CHAT, CHAT "\"guided_regex\":\"a?\"}", "a", "aa"},
    {API_COMPLETION, TEXT "\"guided_choice\":[\"b\"]}", "b", "c"},
    {API_COMPLETION, TEXT "\"guided_grammar\":\"root ::= [0-9]+\"}", "42", "4.2"},
    {API_COMPLETION, TEXT FORMAT "{\"type\":\"json_object\"}}", "{\"a\":null}", "null"},
};

static void test_forms(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i];
        struct api_request *r = must_parse(f->kind, &support.env, f->body);
        struct sched_job job;
        api_job(r, 0, 1, &job);
        assert_non_null(job.sampling.grammar);
        // The leading space of a reply's first piece is not part of the reply.
        assert_int_equal(job.sampling.strip_space, f->kind == API_CHAT);
        if (!takes(job.sampling.grammar, job.sampling.strip_space, f->good))
            fail_msg("%s\ndoes not take %s", f->body, f->good);
        if (takes(job.sampling.grammar, job.sampling.strip_space, f->bad))
            fail_msg("%s\ntakes %s", f->body, f->bad);
        api_request_free(r);
    }
}

static void test_no_form(void **state)
{
    (void)state;
    static const char *const bodies[] = {CHAT FORMAT "{\"type\":\"text\"}}", CHAT FORMAT "null}",
                                         CHAT OUTPUTS "null,\"guided_json\":null}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct api_request *r = must_parse(API_CHAT, &support.env, bodies[i]);
        struct sched_job job;
        api_job(r, 0, 1, &job);
        assert_null(job.sampling.grammar);
        api_request_free(r);
    }
}

/* All choices of a request follow one grammar. */
static void test_choices_share(void **state)
{
    (void)state;
    struct api_request *r =
        must_parse(API_CHAT, &support.env, CHAT "\"n\":3,\"guided_regex\":\"a\"}");
    struct sched_job first, last;
    api_job(r, 0, 1, &first);
    api_job(r, 2, 3, &last);
    assert_ptr_equal(first.sampling.grammar, last.sampling.grammar);
    api_request_free(r);
}

/* In an answer of a given form the text of the end marker is text. */
static void test_end_marker_is_text(void **state)
{
    (void)state;
    struct api_request *r =
        must_parse(API_CHAT, &support.env, CHAT FORMAT "{\"type\":\"json_object\"}}");
    struct cfg_buf out = {0};
    struct api_error err;
    bool cancel = false;
    for (const char *s = "{\"a\":\"</s>\"}"; *s; s++) {
        struct sched_event ev = {.kind = SCHED_TOKEN, .result.token = byte_id((unsigned char)*s)};
        assert_int_equal(api_event(r, 0, &ev, &out, &cancel, &err), 0);
        assert_false(cancel);
    }
    struct sched_event end = {.kind = SCHED_DONE, .finish = SCHED_LENGTH};
    assert_int_equal(api_event(r, 0, &end, &out, &cancel, &err), 0);
    api_body(r, &out);
    assert_non_null(strstr(out.data, "\"content\":\"{\\\"a\\\":\\\"</s>\\\"}\""));
    assert_non_null(strstr(out.data, "\"finish_reason\":\"length\""));
    cfg_buf_free(&out);
    api_request_free(r);
}

/* ---- refusals -------------------------------------------------------------------------------- */

struct bad {
    const char *body, *param, *code, *word; /* the message has the word in it */
};

static const struct bad bad_bodies[] = {
    {CHAT FORMAT "\"json\"}", "response_format", "invalid_type", ""},
    {CHAT FORMAT "{}}", "response_format.type", "missing_required_parameter", ""},
    {CHAT FORMAT "{\"type\":\"yaml\"}}", "response_format.type", "invalid_value", "yaml"},
    {CHAT FORMAT "{\"type\":\"text\",\"x\":1}}", "response_format.x", "unknown_parameter", ""},
    {CHAT FORMAT "{\"type\":\"text\",\"json_schema\":{\"name\":\"a\"}}}",
     "response_format.json_schema", "invalid_value", ""},
    {CHAT FORMAT "{\"type\":\"json_schema\"}}", "response_format.json_schema",
     "missing_required_parameter", ""},
    {CHAT SCHEMA "5}}", "response_format.json_schema", "invalid_type", ""},
    {CHAT SCHEMA "{\"schema\":{}}}}", "response_format.json_schema.name",
     "missing_required_parameter", ""},
    {CHAT SCHEMA "{\"name\":\"a b\"}}}", "response_format.json_schema.name", "invalid_value", ""},
    {CHAT SCHEMA "{\"name\":\"\"}}}", "response_format.json_schema.name", "invalid_value", ""},
    {CHAT SCHEMA "{\"name\":\"a\",\"strict\":1}}}", "response_format.json_schema.strict",
     "invalid_type", ""},
    {CHAT SCHEMA "{\"name\":\"a\",\"schema\":\"{}\"}}}", "response_format.json_schema.schema",
     "invalid_type", ""},
    {CHAT SCHEMA "{\"name\":\"a\",\"schema\":{\"type\":\"object\",\"properties\":{\"b\":"
                 "{\"type\":\"string\",\"contentEncoding\":\"base64\"}}}}}}",
     "response_format.json_schema.schema", "invalid_json_schema", "/properties/b"},
    {CHAT OUTPUTS "[]}", "structured_outputs", "invalid_type", ""},
    {CHAT OUTPUTS "{}}", "structured_outputs", "invalid_value", "one of"},
    {CHAT OUTPUTS "{\"json_object\":false}}", "structured_outputs", "invalid_value", ""},
    {CHAT OUTPUTS "{\"xml\":\"\"}}", "structured_outputs.xml", "unknown_parameter", ""},
    {CHAT OUTPUTS "{\"structural_tag\":\"\"}}", "structured_outputs.structural_tag",
     "unsupported_parameter", ""},
    {CHAT OUTPUTS "{\"whitespace_pattern\":\"\"}}", "structured_outputs.whitespace_pattern",
     "unsupported_parameter", ""},
    {CHAT OUTPUTS "{\"regex\":\"a\",\"choice\":[\"a\"]}}", "structured_outputs.choice",
     "invalid_value", "structured_outputs.regex"},
    {CHAT OUTPUTS "{\"regex\":\"a(\"}}", "structured_outputs.regex", "invalid_value", "regex"},
    {CHAT OUTPUTS "{\"regex\":5}}", "structured_outputs.regex", "invalid_type", ""},
    {CHAT OUTPUTS "{\"choice\":[]}}", "structured_outputs.choice", "invalid_value", ""},
    {CHAT OUTPUTS "{\"choice\":[1]}}", "structured_outputs.choice", "invalid_value", ""},
    {CHAT OUTPUTS "{\"choice\":\"a\"}}", "structured_outputs.choice", "invalid_type", ""},
    {CHAT OUTPUTS "{\"grammar\":\"x ::= y\"}}", "structured_outputs.grammar", "invalid_value", ""},
    {CHAT OUTPUTS "{\"json\":\"{\"}}", "structured_outputs.json", "invalid_json_schema", ""},
    {CHAT OUTPUTS "{\"json\":7}}", "structured_outputs.json", "invalid_type", ""},
    {CHAT "\"guided_regex\":\"a\",\"guided_json\":{}}", "guided_regex", "invalid_value",
     "guided_json"},
    {CHAT "\"guided_regex\":\"a\"," FORMAT "{\"type\":\"json_object\"}}", "guided_regex",
     "invalid_value", "response_format"},
    {CHAT "\"guided_regex\":\"a\",\"ignore_eos\":true}", "ignore_eos", "invalid_value",
     "guided_regex"},
    {CHAT "\"guided_decoding_backend\":\"x\"}", "guided_decoding_backend", "unsupported_parameter",
     ""},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_bodies / sizeof *bad_bodies; i++) {
        const struct bad *b = &bad_bodies[i];
        struct api_request *r = NULL;
        struct api_error err = {0};
        if (!api_parse(&r, API_CHAT, b->body, strlen(b->body), &support.env, 0, &err))
            fail_msg("%s\nwas not refused", b->body);
        assert_null(r);
        if (err.status != 400 || strcmp(err.param, b->param) != 0 || !err.code ||
            strcmp(err.code, b->code) != 0 || !strstr(err.message, b->word))
            fail_msg("%s\n%d %s %s: %s", b->body, err.status, err.param,
                     err.code ? err.code : "null", err.message);
    }
}

static void test_without_tokenizer(void **state)
{
    (void)state;
    static const char body[] = "{\"model\":\"m\",\"prompt\":[3],\"guided_regex\":\"a\"}";
    struct api_request *r = NULL;
    struct api_error err = {0};
    assert_int_equal(api_parse(&r, API_COMPLETION, body, strlen(body), &support.ids_only, 0, &err),
                     -1);
    assert_string_equal(err.code, "tokenizer_missing");
    assert_string_equal(err.param, "guided_regex");
}

/* What may have to be compiled is seen, however it is written. */
static void test_slow(void **state)
{
    (void)state;
    static const char *const slow[] = {CHAT FORMAT "{\"type\":\"json_object\"}}",
                                       CHAT OUTPUTS "{\"regex\":\"a\"}}",
                                       CHAT "\"guided_json\":{}}",
                                       CHAT "\"tools\":[]}",
                                       "{\"text\":{\"format\":{}}}",
                                       CHAT "\"\\u0074ools\":[]}"};
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++)
        assert_true(api_is_slow(slow[i], strlen(slow[i])));
    assert_false(api_is_slow(CHAT "\"n\":1}", strlen(CHAT "\"n\":1}")));
    assert_false(api_is_slow(NULL, 0));
}

/* ---- grammars that are kept ------------------------------------------------------------------ */

/* A regex that is plain text, for a tenant. */
static void get_for(struct api_grammars *c, uint32_t tenant, const char *text)
{
    const struct api_grammars_key key = {tenant, ENGINE_GRAMMAR_REGEX, text, strlen(text)};
    struct engine_grammar *g = NULL;
    struct error err;
    if (api_grammars_get(c, &g, support.tokenizer, support.info.usable_vocab, &key, &err))
        fail_msg("%s", err.message);
    assert_true(takes(g, false, text));
    api_grammars_release(c, g);
}

static void get(struct api_grammars *c, const char *text)
{
    get_for(c, 0, text);
}

static void must_fail(struct api_grammars *c, enum engine_grammar_kind kind, const char *text)
{
    const struct api_grammars_key key = {0, kind, text, strlen(text)};
    struct engine_grammar *g = NULL;
    struct error err;
    assert_int_equal(
        api_grammars_get(c, &g, support.tokenizer, support.info.usable_vocab, &key, &err),
        CFG_EINVAL);
    assert_null(g);
}

static struct api_grammars_stats stats(struct api_grammars *c)
{
    struct api_grammars_stats s;
    api_grammars_stats(c, &s);
    return s;
}

static void test_kept(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    get(c, "abc");
    get(c, "abc");
    assert_int_equal(stats(c).compiled, 1);
    assert_int_equal(stats(c).found, 1);
    // Another kind is another grammar, and a failure is not kept.
    must_fail(c, ENGINE_GRAMMAR_CHOICE, "abc");
    assert_int_equal(stats(c).compiled, 2);
    assert_int_equal(stats(c).n, 1);

    // Many: the oldest go, and what is used stays.
    char text[16];
    for (int i = 0; i < 80; i++) {
        snprintf(text, sizeof text, "x%d", i);
        get(c, text);
        get(c, "abc");
    }
    assert_int_equal(stats(c).compiled, 82);
    assert_int_equal(stats(c).n, 64);
    get(c, "x79");
    assert_int_equal(stats(c).compiled, 82);
    get(c, "x1");
    assert_int_equal(stats(c).compiled, 83);
    api_grammars_free(c);
}

/* Texts that are no grammars push nothing out. */
static void test_failures_cost_nothing(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    char text[16];
    for (int i = 0; i < 64; i++) {
        snprintf(text, sizeof text, "x%d", i);
        get(c, text);
    }
    for (int i = 0; i < 70; i++) {
        snprintf(text, sizeof text, "(%d", i);
        must_fail(c, ENGINE_GRAMMAR_REGEX, text);
    }
    assert_int_equal(stats(c).n, 64);
    get(c, "x0");
    assert_int_equal(stats(c).found, 1);
    api_grammars_free(c);
}

/* A tenant finds its own alone, and can't push out what another uses. */
static void test_tenants_keep_apart(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    char text[16];
    get_for(c, 1, "abc");
    get_for(c, 2, "abc");
    assert_int_equal(stats(c).found, 0);
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof text, "x%d", i);
        get_for(c, 2, text);
    }
    assert_int_equal(stats(c).n, 64);
    get_for(c, 1, "abc");
    assert_int_equal(stats(c).found, 1);
    get_for(c, 2, "x50");
    assert_int_equal(stats(c).found, 2);
    get_for(c, 2, "x0");
    assert_int_equal(stats(c).found, 2);
    api_grammars_free(c);
}

static void test_compilations_are_timed(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    get(c, "abc");
    get(c, "abc");
    must_fail(c, ENGINE_GRAMMAR_REGEX, "(");
    const struct api_grammars_stats s = stats(c);
    uint64_t n = 0;
    for (int i = 0; i <= s.seconds.n_bounds; i++) n += s.seconds.counts[i];
    assert_int_equal(n, 2);
    assert_true(s.seconds.sum > 0);
    api_grammars_free(c);
}

static void test_bytes_are_bounded(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    get(c, "abc");
    const size_t one = stats(c).bytes;
    assert_true(one > 0);
    api_grammars_free(c);

    c = api_grammars_new(2 * one + one / 2);
    static const char *const texts[] = {"abc", "abd", "abe", "abf"};
    for (int i = 0; i < 4; i++) get(c, texts[i]);
    assert_int_equal(stats(c).n, 2);
    assert_true(stats(c).bytes <= 2 * one + one / 2);
    api_grammars_free(c);

    c = api_grammars_new(one / 2);
    get(c, "abc");
    assert_int_equal(stats(c).n, 0);
    assert_int_equal(stats(c).bytes, 0);
    api_grammars_free(c);
}

static void *get_many(void *arg)
{
    char text[16];
    for (int i = 0; i < 40; i++) {
        snprintf(text, sizeof text, "t%d", i % 8);
        get(arg, text);
    }
    return NULL;
}

/* Few fit, so that grammars are dropped while others use them; some texts fail. */
static void *churn(void *arg)
{
    char text[16];
    for (int i = 0; i < 60; i++) {
        snprintf(text, sizeof text, "t%d", i % 7);
        get_for(arg, (uint32_t)i % 3, text);
        if (i % 5 == 0) must_fail(arg, ENGINE_GRAMMAR_REGEX, "(");
    }
    return NULL;
}

static void test_threads_compile_once(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, get_many, c), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(stats(c).compiled, 8);
    assert_int_equal(stats(c).found, 4 * 40 - 8);
    api_grammars_free(c);
}

static void test_threads_churn(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    get(c, "t0");
    const size_t one = stats(c).bytes;
    api_grammars_free(c);
    c = api_grammars_new(4 * one + one / 2);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, churn, c), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(stats(c).n, 4);
    assert_int_equal(stats(c).compiled + stats(c).found, 4 * (60 + 12));
    api_grammars_free(c);
}

/* What is no longer kept counts as long as requests hold it. */
static void test_requests_hold_so_much(void **state)
{
    (void)state;
    struct api_grammars *c = api_grammars_new((size_t)1 << 30);
    get(c, "t0");
    const size_t one = stats(c).bytes;
    api_grammars_free(c);

    struct api_env env = support.env;
    env.grammars = api_grammars_new(one + one / 2);
    struct api_request *all[16];
    struct api_error err = {0};
    char body[256];
    int n = 0, rc = 0;
    while (n < 16 && !rc) {
        snprintf(body, sizeof body, CHAT "\"guided_regex\":\"t%c\"}", 'a' + n);
        rc = api_parse(&all[n], API_CHAT, body, strlen(body), &env, 0, &err);
        if (!rc) n++;
    }
    assert_in_range(n, 5, 8); // four times one and a half, less what the text of each has
    assert_int_equal(err.status, 503);
    assert_int_equal(stats(env.grammars).n, 1);
    while (n > 0) api_request_free(all[--n]);
    assert_int_equal(stats(env.grammars).held, 0);
    api_request_free(must_parse(API_CHAT, &env, body));
    api_grammars_free(env.grammars);
}

/* Requests use the daemon's. */
static void test_request_uses_kept(void **state)
{
    (void)state;
    struct api_env env = support.env;
    env.grammars = api_grammars_new((size_t)1 << 30);
    struct api_request *a = must_parse(API_CHAT, &env, CHAT "\"guided_regex\":\"ab\"}");
    struct api_request *b = must_parse(API_COMPLETION, &env, TEXT "\"guided_regex\":\"ab\"}");
    struct sched_job one, two;
    api_job(a, 0, 1, &one);
    api_job(b, 0, 2, &two);
    assert_ptr_equal(one.sampling.grammar, two.sampling.grammar);
    struct api_grammars_stats now;
    api_grammars_stats(env.grammars, &now);
    const size_t bytes = now.held;
    assert_in_range(bytes, 1, now.bytes);
    api_request_free(a);
    api_grammars_stats(env.grammars, &now);
    assert_int_equal(now.held, bytes);
    assert_true(takes(two.sampling.grammar, false, "ab"));
    api_request_free(b);
    api_grammars_stats(env.grammars, &now);
    assert_int_equal(now.held, 0);
    api_grammars_free(env.grammars);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_no_form),
        cmocka_unit_test(test_choices_share),
        cmocka_unit_test(test_end_marker_is_text),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_without_tokenizer),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_kept),
        cmocka_unit_test(test_failures_cost_nothing),
        cmocka_unit_test(test_tenants_keep_apart),
        cmocka_unit_test(test_compilations_are_timed),
        cmocka_unit_test(test_bytes_are_bounded),
        cmocka_unit_test(test_threads_compile_once),
        cmocka_unit_test(test_threads_churn),
        cmocka_unit_test(test_requests_hold_so_much),
        cmocka_unit_test(test_request_uses_kept),
    };
    return cmocka_run_group_tests(tests, support_open, support_close);
}
