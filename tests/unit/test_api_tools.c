// SPDX-License-Identifier: Apache-2.0
//
// test_api_tools.c: functions that the model may call: calls found in text, cut at every place;
// what a request with tools becomes (prompt, grammar, refusals); earlier calls and results in the
// prompt; and answers with calls, whole and streamed.
#include "api_run.h"

#include "server/api_calls.h"

#define CALL(name, arguments)                                                                      \
    "<tool_call>{\"name\":\"" name "\",\"arguments\":" arguments "}</tool_call>"

/* ---- calls in text ----------------------------------------------------------------------------
 */

/* What came out, as one text: [text] name(arguments); joined where runs go on. */
struct heard {
    char text[512];
    enum api_call_event last;
};

static void hear(void *arg, enum api_call_event event, const char *text, size_t n)
{
    struct heard *h = arg;
    const size_t len = strlen(h->text);
    assert_true(len + n + 4 < sizeof h->text);
    char *to = h->text + len;
    if (event == API_CALLS_TEXT) {
        assert_true(n > 0);
        if (h->last == API_CALLS_TEXT && len > 0) to--; // drops the ']'
        sprintf(to, "%s%.*s]", h->last == API_CALLS_TEXT && len > 0 ? "" : "[", (int)n, text);
    } else if (event == API_CALLS_NAME) {
        sprintf(to, "%.*s(", (int)n, text);
    } else if (event == API_CALLS_ARGUMENTS) {
        assert_true(n > 0);
        sprintf(to, "%.*s", (int)n, text);
    } else {
        strcpy(to, ")");
    }
    h->last = event;
}

static const struct heard nothing = {"", API_CALLS_DONE};

struct text {
    const char *text, *heard, *cut; /* cut: NULL when the same */
};

static const struct text texts[] = {
    {"", "", NULL},
    {"Hello, world", "[Hello, world]", NULL},
    {CALL("f", "{}"), "f({})", NULL},
    {"Hi. " CALL("get-it", "{\"a\":[1,{\"b\":\"}]\\\"}\"}]}"),
     "[Hi. ]get-it({\"a\":[1,{\"b\":\"}]\\\"}\"}]})", NULL},
    {CALL("f", "{\"x\":\"\\\\\"}") CALL("g", "{}"), "f({\"x\":\"\\\\\"})g({})", NULL},
    {CALL("f", "{\"x\":\"</tool_call>\"}"), "f({\"x\":\"</tool_call>\"})", NULL},
    {CALL("f", "{}") " and then", "f({})[ and then]", NULL},
    // what only looks like a mark
    {"a < b <<tool <tool_call <tool_cal>", "[a < b <<tool <tool_call <tool_cal>]", NULL},
    {"<tool_<tool_call", "[<tool_<tool_call]", "[<tool_]"},
    {"a <", "[a <]", "[a ]"},
    {"<<" CALL("f", "{}") "<", "[<<]f({})[<]", "[<<]f({})"},
    {"</tool_call>", "[</tool_call>]", NULL},
    // a call that ends early
    {"<tool_call>{\"na", "", NULL},
    {"<tool_call>{\"name\":\"f\",\"arguments\":", "", NULL},
    {"<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"b", "f({\"a\":\"b)", NULL},
    {"<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool", "f({})", NULL},
    // no call after all
    {"<tool_call>no", "[<tool_call>no]", NULL},
    {"<tool_call>{\"name\":\"\"", "[<tool_call>{\"name\":\"\"]", NULL},
    {"<tool_call>{\"name\":\"f\",\"arg\":", "[<tool_call>{\"name\":\"f\",\"arg\":]", NULL},
    {"<tool_call>{\"name\":\"f\",\"arguments\":[]", "[<tool_call>{\"name\":\"f\",\"arguments\":[]]",
     NULL},
    {"<tool_call>{\"name\":\"f\",\"arguments\":{}} .", "f({})[} .]", NULL},
    {"<tool_call>" CALL("f", "{}"), "[<tool_call>]f({})", NULL},
};

static void parse(const struct text *t, size_t one, size_t two, bool cut)
{
    struct api_call_parser p = {0};
    struct heard h = nothing;
    const size_t n = strlen(t->text);
    api_calls_push(&p, t->text, one, hear, &h);
    api_calls_push(&p, t->text + one, two - one, hear, &h);
    api_calls_push(&p, t->text + two, n - two, hear, &h);
    api_calls_finish(&p, cut, hear, &h);
    const char *want = cut && t->cut ? t->cut : t->heard;
    if (strcmp(h.text, want) != 0)
        fail_msg("%s (cut at %zu, %zu)\ngives %s\nnot   %s", t->text, one, two, h.text, want);
}

static void test_every_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const size_t n = strlen(texts[i].text);
        for (size_t one = 0; one <= n; one++)
            for (size_t two = one; two <= n; two++) {
                parse(&texts[i], one, two, false);
                parse(&texts[i], one, two, true);
            }
    }
}

/* Byte by byte: no part of a mark is ever shown, and what can be shown is shown at once. */
static void test_nothing_early(void **state)
{
    (void)state;
    static const char text[] = "Hi <b> " CALL("f", "{\"a\":1}");
    struct api_call_parser p = {0};
    struct heard h = nothing;
    const size_t begin = strlen("Hi <b> ");
    for (size_t i = 0; text[i]; i++) {
        api_calls_push(&p, &text[i], 1, hear, &h);
        if (i == 2) assert_string_equal(h.text, "[Hi ]");
        if (i == 3) assert_string_equal(h.text, "[Hi ]"); // may begin a call
        if (i == 4) assert_string_equal(h.text, "[Hi <b]");
        if (i >= begin && !strchr(h.text, '(')) assert_string_equal(h.text, "[Hi <b> ]");
    }
    assert_string_equal(h.text, "[Hi <b> ]f({\"a\":1})");
}

static void test_long_name(void **state)
{
    (void)state;
    char text[256], heard[256], name[80];
    for (int n = 64; n <= 65; n++) {
        memset(name, 'n', (size_t)n);
        name[n] = '\0';
        snprintf(text, sizeof text, CALL("%s", "{}"), name);
        snprintf(heard, sizeof heard,
                 n == 64 ? "%s({})" : "[<tool_call>{\"name\":\"%s\",\"arguments\":{}}</tool_call>]",
                 name);
        parse(&(struct text){text, heard, NULL}, 70, 90, false);
    }
}

/* ---- requests ---------------------------------------------------------------------------------
 */

#define USER "{\"role\":\"user\",\"content\":\"hi\"}"
#define ASK  "{\"model\":\"m\",\"messages\":[" USER "],"
#define ADD                                                                                        \
    "{\"type\":\"function\",\"function\":{\"name\":\"add\",\"description\":\"Adds \\\"two\\\".\"," \
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},"           \
    "\"required\":[\"a\"]},\"strict\":true}}"
#define NOW   "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}"
#define TOOLS "\"tools\":[" ADD "," NOW "]"
#define TOLD                                                                                       \
    "You can call tools. To call one, reply with <tool_call>{\"name\":NAME,\"arguments\":{...}}"   \
    "</tool_call>. The tools:\n{\"name\":\"add\",\"description\":\"Adds \\\"two\\\".\","           \
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},"           \
    "\"required\":[\"a\"]}}\n{\"name\":\"now\"}"

/* The prompt must be that of the plain messages. */
static void prompt_is(const char *body, const char *const *plain)
{
    struct engine_message msgs[8];
    size_t n = 0, n_ids = 0, n_turns = 0;
    for (; plain[2 * n]; n++) {
        const enum engine_role role = *plain[2 * n] == 's'   ? ENGINE_SYSTEM
                                      : *plain[2 * n] == 'u' ? ENGINE_USER
                                                             : ENGINE_ASSISTANT;
        msgs[n] = (struct engine_message){role, plain[2 * n + 1], strlen(plain[2 * n + 1])};
    }
    int32_t *ids = NULL, turns[8];
    struct error why;
    assert_int_equal(
        engine_chat_encode(support.tokenizer, msgs, n, &ids, &n_ids, turns, &n_turns, &why), 0);
    struct api_request *r = must_parse(API_CHAT, &support.env, body);
    struct sched_job job;
    api_job(r, 0, 1, &job);
    bool same = job.n_prompt == n_ids && !memcmp(job.prompt, ids, n_ids * sizeof *ids);
    if (!same) {
        char *text = NULL;
        size_t len = 0;
        assert_int_equal(
            engine_decode(support.tokenizer, job.prompt, job.n_prompt, &text, &len, &why), 0);
        fail_msg("%s\ngives the prompt %.*s", body, (int)len, text);
    }
    free(ids);
    api_request_free(r);
}

static void test_prompts(void **state)
{
    (void)state;
    char usual[2048];
    snprintf(usual, sizeof usual, "%s\n\n%s", engine_default_system, TOLD);
    prompt_is(ASK TOOLS "}", (const char *[]){"s", usual, "u", "hi", NULL});
    prompt_is(ASK TOOLS ",\"tool_choice\":\"none\"}",
              (const char *[]){"s", engine_default_system, "u", "hi", NULL});
    prompt_is(ASK TOOLS ",\"tool_choice\":\"required\"}",
              (const char *[]){"s", usual, "u", "hi", NULL});
    prompt_is("{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"S\"}," USER
              "]," TOOLS "}",
              (const char *[]){"s", "S\n\n" TOLD, "u", "hi", NULL});
    prompt_is("{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"\"}," USER
              "]," TOOLS "}",
              (const char *[]){"s", TOLD, "u", "hi", NULL});
    prompt_is("{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"S\"}," USER
              ",{\"role\":\"system\",\"content\":\"T\"}," USER "]," TOOLS "}",
              (const char *[]){"s", "S\n\nT\n\n" TOLD, "u", "hi", "u", "hi", NULL});
}

#define S "{\"role\":\"system\",\"content\":\"S\"},"
#define CALLS(id)                                                                                  \
    "{\"id\":\"" id "\",\"type\":\"function\",\"function\":{\"name\":\"add\",\"arguments\":"
#define RESULT(id, text) "{\"role\":\"tool\",\"tool_call_id\":\"" id "\",\"content\":\"" text "\"}"
#define ASSISTANT(content, calls)                                                                  \
    "{\"role\":\"assistant\",\"content\":" content ",\"tool_calls\":[" calls "]}"
#define MESSAGES(list) "{\"model\":\"m\",\"messages\":[" S USER "," list "]}"

static void test_history(void **state)
{
    (void)state;
    prompt_is(
        MESSAGES(ASSISTANT("null", CALLS("c1") "\"{ \\\"a\\\" : 1 }\"}}") "," RESULT("c1", "2")),
        (const char *[]){"s", "S", "u", "hi", "a", CALL("add", "{\"a\":1}"), "u",
                         "<tool_response>2</tool_response>", NULL});
    // Two calls after some text; results in any order are one turn, which the user's message joins.
    prompt_is(
        MESSAGES(ASSISTANT("\"Well. \"", CALLS("c1") "\"{}\"}}," CALLS("c2") "\"\"}}") "," RESULT(
            "c2", "two") "," RESULT("c1", "one") "," USER),
        (const char *[]){
            "s", "S", "u", "hi", "a", "Well. " CALL("add", "{}") CALL("add", "{}"), "u",
            "<tool_response>two</tool_response><tool_response>one</tool_response>\nhi", NULL});
    // Arguments that max_tokens cut, and others that are no object, stand as they came.
    prompt_is(
        MESSAGES(
            ASSISTANT("null", CALLS("c1") "\"{ \\\"a\\\":\"}}," CALLS("c2") "\"[]\"}}") "," RESULT(
                "c1", "x") "," RESULT("c2", "y")),
        (const char *[]){"s", "S", "u", "hi", "a", CALL("add", "{ \"a\":") CALL("add", "[]"), "u",
                         "<tool_response>x</tool_response><tool_response>y</tool_response>", NULL});
    // A later turn may use an id again; no calls at all are none.
    prompt_is(MESSAGES(ASSISTANT("null", CALLS("c") "\"{}\"}}") "," RESULT("c", "1") "," ASSISTANT(
                  "null", CALLS("c") "\"{}\"}}") "," RESULT("c", "2") "," ASSISTANT("\"done\"",
                                                                                    "") "," USER),
              (const char *[]){"s", "S", "u", "hi", "a", CALL("add", "{}"), "u",
                               "<tool_response>1</tool_response>", "a", CALL("add", "{}"), "u",
                               "<tool_response>2</tool_response>", "a", "done", "u", "hi", NULL});
}

/* ---- which answers ----------------------------------------------------------------------------
 */

struct form {
    const char *fields, *good, *bad;
};

#define ADDS CALL("add", "{\"a\":1}")
#define NOWS CALL("now", "{}")
#define SCHEMA                                                                                     \
    "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":{"   \
    "\"type\":\"integer\"}}}"

static const struct form forms[] = {
    {TOOLS, "Any <text>", "<tool_call>"},
    {TOOLS, "Text. " ADDS NOWS, ADDS " more"},
    {TOOLS ",\"tool_choice\":\"auto\"", NOWS, CALL("now", "{\"a\":1}")},
    {TOOLS ",\"parallel_tool_calls\":false", "x" ADDS, ADDS NOWS},
    {TOOLS ",\"tool_choice\":\"required\"", ADDS ADDS NOWS, "text"},
    {TOOLS ",\"tool_choice\":\"required\",\"parallel_tool_calls\":false", NOWS, NOWS NOWS},
    {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"now\"}}", NOWS, ADDS},
    {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"add\"}}", ADDS,
     ADDS ADDS},
    {TOOLS
     ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"auto\",\"tools\":["
     "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]}}",
     "well" NOWS NOWS, ADDS},
    {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\","
           "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]}}",
     NOWS, "well" NOWS},
    {TOOLS "," SCHEMA, "12", "twelve"},
    {TOOLS "," SCHEMA, NOWS, "12" NOWS},
    {TOOLS "," SCHEMA ",\"tool_choice\":\"required\"", NOWS, "12"},
    {TOOLS ",\"response_format\":{\"type\":\"json_object\"}", "{\"a\":1}", "[]"},
};

static void test_forms(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        char body[2048];
        snprintf(body, sizeof body, ASK "%s}", forms[i].fields);
        struct api_request *r = must_parse(API_CHAT, &support.env, body);
        struct sched_job job;
        api_job(r, 0, 1, &job);
        assert_non_null(job.sampling.grammar);
        if (!takes(job.sampling.grammar, true, forms[i].good))
            fail_msg("%s\ndoes not take %s", forms[i].fields, forms[i].good);
        if (takes(job.sampling.grammar, true, forms[i].bad))
            fail_msg("%s\ntakes %s", forms[i].fields, forms[i].bad);
        api_request_free(r);
    }
    struct api_request *r =
        must_parse(API_CHAT, &support.env, ASK TOOLS ",\"tool_choice\":\"none\"}");
    struct sched_job job;
    api_job(r, 0, 1, &job);
    assert_null(job.sampling.grammar);
    api_request_free(r);
}

/* ---- refusals ---------------------------------------------------------------------------------
 */

struct bad {
    const char *body, *param, *code;
};

#define FUNCTION(inner) ASK "\"tools\":[{\"type\":\"function\",\"function\":" inner "}]}"

static const struct bad bad_bodies[] = {
    {ASK "\"tools\":{}}", "tools", "invalid_type"},
    {ASK "\"tools\":[5]}", "tools[0]", "invalid_type"},
    {ASK "\"tools\":[{}]}", "tools[0].type", "missing_required_parameter"},
    {ASK "\"tools\":[{\"type\":\"custom\",\"custom\":{}}]}", "tools[0].type",
     "unsupported_parameter"},
    {ASK "\"tools\":[{\"type\":\"function\"}]}", "tools[0].function", "missing_required_parameter"},
    {ASK "\"tools\":[" NOW ",{\"type\":\"function\",\"function\":[]}]}", "tools[1].function",
     "invalid_type"},
    {ASK "\"tools\":[{\"type\":\"function\",\"x\":1}]}", "tools[0].x", "unknown_parameter"},
    {FUNCTION("{}"), "tools[0].function.name", "missing_required_parameter"},
    {FUNCTION("{\"name\":\"a b\"}"), "tools[0].function.name", "invalid_value"},
    {FUNCTION("{\"name\":\"a\",\"y\":1}"), "tools[0].function.y", "unknown_parameter"},
    {FUNCTION("{\"name\":\"a\",\"description\":1}"), "tools[0].function.description",
     "invalid_type"},
    {FUNCTION("{\"name\":\"a\",\"parameters\":[]}"), "tools[0].function.parameters",
     "invalid_type"},
    {FUNCTION("{\"name\":\"a\",\"strict\":\"yes\"}"), "tools[0].function.strict", "invalid_type"},
    {FUNCTION("{\"name\":\"a\",\"parameters\":{\"type\":\"string\"}}"), "tools",
     "invalid_function_parameters"},
    {FUNCTION("{\"name\":\"a\",\"parameters\":{\"type\":\"object\",\"properties\":{\"b\":{\"not\":{"
              "}}}}}"),
     "tools", "invalid_function_parameters"},
    {ASK "\"tools\":[" NOW "," NOW "]}", "tools[1].function.name", "invalid_value"},
    {ASK "\"tool_choice\":\"auto\"}", "tool_choice", "invalid_value"},
    {ASK "\"tools\":[],\"tool_choice\":\"required\"}", "tool_choice", "invalid_value"},
    {ASK TOOLS ",\"tool_choice\":\"any\"}", "tool_choice", "invalid_value"},
    {ASK TOOLS ",\"tool_choice\":1}", "tool_choice", "invalid_type"},
    {ASK TOOLS ",\"tool_choice\":{}}", "tool_choice.type", "missing_required_parameter"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"function\"}}", "tool_choice.function",
     "missing_required_parameter"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"sub\"}}}",
     "tool_choice.function", "invalid_value"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"custom\",\"custom\":{\"name\":\"sub\"}}}",
     "tool_choice.type", "unsupported_parameter"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\"}}", "tool_choice.allowed_tools",
     "missing_required_parameter"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"none\","
               "\"tools\":[]}}}",
     "tool_choice.allowed_tools.mode", "invalid_value"},
    {ASK TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"auto\","
               "\"tools\":[]}}}",
     "tool_choice.allowed_tools.tools", "invalid_value"},
    {ASK TOOLS ",\"parallel_tool_calls\":\"no\"}", "parallel_tool_calls", "invalid_type"},
    {ASK TOOLS ",\"guided_regex\":\"a\"}", "guided_regex", "invalid_value"},
    {ASK TOOLS ",\"ignore_eos\":true}", "ignore_eos", "invalid_value"},
    /* the conversation */
    {MESSAGES(RESULT("c", "1")), "messages[2].tool_call_id", "invalid_value"},
    {MESSAGES("{\"role\":\"tool\",\"content\":\"1\"}"), "messages[2].tool_call_id",
     "missing_required_parameter"},
    {MESSAGES("{\"role\":\"user\",\"content\":\"1\",\"tool_call_id\":\"c\"}"),
     "messages[2].tool_call_id", "invalid_value"},
    {MESSAGES("{\"role\":\"user\",\"content\":\"1\",\"tool_calls\":[]}"), "messages[2].tool_calls",
     "invalid_value"},
    {MESSAGES(ASSISTANT("null", CALLS("c") "\"{}\"}}") "," USER), "messages[3].role",
     "invalid_value"},
    {MESSAGES(ASSISTANT("null", CALLS("c") "\"{}\"}}," CALLS("d") "\"{}\"}}") "," RESULT("d", "1")),
     "messages[3].role", "invalid_value"},
    {MESSAGES(ASSISTANT("null", CALLS("c") "\"{}\"}}") "," RESULT("c", "1") "," RESULT("c", "2")),
     "messages[4].tool_call_id", "invalid_value"},
    {MESSAGES(ASSISTANT("null", CALLS("c") "{}}}") "," RESULT("c", "1")),
     "messages[2].tool_calls[0].function.arguments", "invalid_type"},
    {MESSAGES(ASSISTANT("null", "5")), "messages[2].tool_calls[0]", "invalid_type"},
    {MESSAGES(ASSISTANT("null", "{\"id\":\"c\",\"type\":\"custom\"}")),
     "messages[2].tool_calls[0].type", "unsupported_parameter"},
    {MESSAGES(ASSISTANT("null", "{\"type\":\"function\"}")), "messages[2].tool_calls[0].id",
     "missing_required_parameter"},
    {MESSAGES(ASSISTANT("null", "{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"a/"
                                "b\",\"arguments\":\"\"}}")),
     "messages[2].tool_calls[0].function.name", "invalid_value"},
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
        if (err.status != 400 || strcmp(err.param, b->param) != 0 || !err.code ||
            strcmp(err.code, b->code) != 0)
            fail_msg("%s\n%d %s %s: %s", b->body, err.status, err.param,
                     err.code ? err.code : "null", err.message);
    }
}

/* The message says where in which tool. */
static void test_schema_is_named(void **state)
{
    (void)state;
    static const char body[] = FUNCTION("{\"name\":\"a\",\"parameters\":{\"type\":\"object\","
                                        "\"properties\":{\"b\":{\"not\":{}}}}}");
    struct api_request *r = NULL;
    struct api_error err = {0};
    assert_int_equal(api_parse(&r, API_CHAT, body, strlen(body), &support.env, 0, &err), -1);
    assert_non_null(strstr(err.message, "/a/parameters/properties/b"));
    assert_non_null(strstr(err.message, "\"not\""));
}

/* ---- answers ----------------------------------------------------------------------------------
 */

static const cJSON *message_of(const cJSON *body, int i)
{
    return cJSON_GetObjectItem(choice_of(body, i), "message");
}

static const cJSON *call_of(const cJSON *message, int k)
{
    const cJSON *call = cJSON_GetArrayItem(cJSON_GetObjectItem(message, "tool_calls"), k);
    assert_non_null(call);
    assert_string_equal(string_of(call, "type"), "function");
    assert_int_equal(strncmp(string_of(call, "id"), "call_", 5), 0);
    assert_int_equal(strlen(string_of(call, "id")), 29);
    return call;
}

static void call_is(const cJSON *message, int k, const char *name, const char *arguments)
{
    const cJSON *f = cJSON_GetObjectItem(call_of(message, k), "function");
    assert_string_equal(string_of(f, "name"), name);
    assert_string_equal(string_of(f, "arguments"), arguments);
}

static cJSON *answer(const char *fields, const char *text, enum sched_finish finish, size_t max)
{
    struct run run;
    char body[2048];
    snprintf(body, sizeof body, ASK TOOLS "%s}", fields);
    start(&run, API_CHAT, &support.env, body);
    char cut[512];
    snprintf(cut, sizeof cut, " %.*s", (int)max, text);
    feed_bytes(&run, 0, cut);
    if (!api_finished(run.r)) {
        if (finish == SCHED_STOP) feed_end(&run, 0);
        feed_done(&run, 0, finish);
    }
    cJSON *o = body_of(&run);
    end(&run);
    return o;
}

static void test_whole(void **state)
{
    (void)state;
    cJSON *o = answer("", "Let me see. " ADDS NOWS, SCHED_STOP, 500);
    assert_string_equal(content_of(o, 0), "Let me see. ");
    call_is(message_of(o, 0), 0, "add", "{\"a\":1}");
    call_is(message_of(o, 0), 1, "now", "{}");
    assert_string_not_equal(string_of(call_of(message_of(o, 0), 0), "id"),
                            string_of(call_of(message_of(o, 0), 1), "id"));
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "tool_calls");
    cJSON_Delete(o);

    o = answer("", NOWS, SCHED_STOP, 500);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(message_of(o, 0), "content")));
    call_is(message_of(o, 0), 0, "now", "{}");
    cJSON_Delete(o);

    // Asked for by name, the call is no reason to stop; among several it is.
    o = answer(",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"now\"}}", NOWS,
               SCHED_STOP, 500);
    call_is(message_of(o, 0), 0, "now", "{}");
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "stop");
    cJSON_Delete(o);
    o = answer(",\"tool_choice\":\"required\"", NOWS, SCHED_STOP, 500);
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "tool_calls");
    cJSON_Delete(o);

    o = answer("", "No need for that.", SCHED_STOP, 500);
    assert_string_equal(content_of(o, 0), "No need for that.");
    assert_null(cJSON_GetObjectItem(message_of(o, 0), "tool_calls"));
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "stop");
    cJSON_Delete(o);

    // Cut by length: what there is of the arguments is there.
    o = answer("", ADDS, SCHED_LENGTH, strlen("<tool_call>{\"name\":\"add\",\"arguments\":{\"a\""));
    call_is(message_of(o, 0), 0, "add", "{\"a\"");
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "length");
    cJSON_Delete(o);
    o = answer("", "a" ADDS, SCHED_LENGTH, 8);
    assert_string_equal(content_of(o, 0), "a");
    assert_null(cJSON_GetObjectItem(message_of(o, 0), "tool_calls"));
    cJSON_Delete(o);

    // A stop string holds in calls too.
    o = answer(",\"stop\":[\"\\\"a\\\"\"]", ADDS, SCHED_STOP, 500);
    call_is(message_of(o, 0), 0, "add", "{");
    assert_string_equal(string_of(choice_of(o, 0), "finish_reason"), "stop");
    cJSON_Delete(o);

    // Without calls to come, a mark is text.
    o = answer(",\"tool_choice\":\"none\"", NOWS, SCHED_STOP, 500);
    assert_string_equal(content_of(o, 0), NOWS);
    cJSON_Delete(o);
}

#define DELTA(inner)                                                                               \
    CHUNK "{\"index\":0,\"delta\":{" inner "},\"logprobs\":null,\"finish_reason\":null}]}\n\n"

/* The id of a call is random: its letters become '#'. */
static void blank_call_ids(struct cfg_buf *b)
{
    for (char *s = b->data; s && (s = strstr(s, "call_")); s++)
        if (s[-1] == '"') memset(s + 5, '#', 24);
}

#define ID "call_########################"

static void test_stream(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, ASK TOOLS ",\"stream\":true}");
    output_is(&run, DELTA("\"role\":\"assistant\",\"content\":null"));
    feed_bytes(&run, 0, " A<");
    output_is(&run, DELTA("\"content\":\"A\""));
    feed_bytes(&run, 0, "b");
    output_is(&run, DELTA("\"content\":\"<\"") DELTA("\"content\":\"b\""));
    feed_bytes(&run, 0, "<tool_call>{\"name\":\"add\",\"arguments\":");
    output_is(&run, "");
    feed_bytes(&run, 0, "{");
    blank_call_ids(&run.out);
    output_is(&run,
              DELTA("\"tool_calls\":[{\"index\":0,\"id\":\"" ID
                    "\",\"type\":\"function\",\"function\":{\"name\":\"add\",\"arguments\":\"\"}}]")
                  DELTA("\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\"}}]"));
    feed_bytes(&run, 0, "\"");
    output_is(&run, DELTA("\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\"\"}}]"));
    feed_bytes(&run, 0, "a\":1}");
    drop_output(&run);
    feed_bytes(&run, 0, "}</tool_call><tool_call>{\"name\":\"now\",\"arguments\":");
    output_is(&run, "");
    feed_bytes(&run, 0, "{");
    blank_call_ids(&run.out);
    output_is(&run,
              DELTA("\"tool_calls\":[{\"index\":1,\"id\":\"" ID
                    "\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"\"}}]")
                  DELTA("\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"{\"}}]"));
    feed_bytes(&run, 0, "}}</tool_call>");
    drop_output(&run);
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    output_is(&run, CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":"
                          "\"tool_calls\"}]}\n\ndata: [DONE]\n\n");
    end(&run);
}

/* Choices have their own calls, and what was held back at the end is text. */
static void test_choices(void **state)
{
    (void)state;
    struct run run;
    start(&run, API_CHAT, &support.env, ASK TOOLS ",\"n\":2,\"logprobs\":true}");
    feed_bytes(&run, 0, " x <tool");
    feed_bytes(&run, 1, NOWS);
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    feed_end(&run, 1);
    feed_done(&run, 1, SCHED_STOP);
    cJSON *o = body_of(&run);
    assert_string_equal(content_of(o, 0), "x <tool");
    call_is(message_of(o, 1), 0, "now", "{}");
    const cJSON *logprobs = cJSON_GetObjectItem(choice_of(o, 1), "logprobs");
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(logprobs, "content")), strlen(NOWS));
    cJSON_Delete(o);
    end(&run);
}

static int open_wide(void **state)
{
    const int rc = support_open(state);
    support.info.context = 4096;
    return rc;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut), cmocka_unit_test(test_nothing_early),
        cmocka_unit_test(test_long_name), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_history),   cmocka_unit_test(test_forms),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_schema_is_named),
        cmocka_unit_test(test_whole),     cmocka_unit_test(test_stream),
        cmocka_unit_test(test_choices),
    };
    return cmocka_run_group_tests(tests, open_wide, support_close);
}
