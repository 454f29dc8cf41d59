// SPDX-License-Identifier: Apache-2.0
//
// test_api_responses.c: /v1/responses without sockets: what is kept and for whom, the prompt that a
// body becomes beside the chat that means the same, and the events of answers with text, with
// calls, with neither and with an end that comes too early.
#include "api_run.h"

#include <pthread.h>

#include "server/api_request.h"

#define CALL(name, arguments)                                                                      \
    "<tool_call>{\"name\":\"" name "\",\"arguments\":" arguments "}</tool_call>"

/* ---- what is kept -----------------------------------------------------------------------------
 */

static void put(struct api_store *s, uint32_t tenant, const char *id, size_t n)
{
    struct cfg_buf body = {0};
    for (size_t i = 0; i < n; i++) cfg_buf_puts(&body, "b");
    api_store_put(s, tenant, id, &body, "[]");
    cfg_buf_free(&body);
}

static bool has(struct api_store *s, uint32_t tenant, const char *id)
{
    struct cfg_buf items = {0};
    const bool found = api_store_get(s, tenant, id, NULL, &items);
    if (found) assert_string_equal(items.data, "[]");
    cfg_buf_free(&items);
    return found;
}

static void test_kept_for_one_tenant(void **state)
{
    (void)state;
    const struct api_store_limits limits = {10, 100000, 100, 1000000};
    struct api_store *s = api_store_new(&limits);
    put(s, 1, "x", 3);
    assert_true(has(s, 1, "x"));
    assert_false(has(s, 2, "x"));
    assert_false(has(s, 0, "x"));
    assert_false(api_store_delete(s, 2, "x"));
    struct cfg_buf body = {0};
    assert_true(api_store_get(s, 1, "x", &body, NULL));
    assert_string_equal(body.data, "bbb");
    cfg_buf_free(&body);
    assert_true(api_store_delete(s, 1, "x"));
    assert_false(has(s, 1, "x"));
    assert_false(api_store_delete(s, 1, "x"));
    api_store_free(s);
}

static void test_number_is_bounded(void **state)
{
    (void)state;
    const struct api_store_limits limits = {3, 100000, 5, 1000000};
    struct api_store *s = api_store_new(&limits);
    put(s, 1, "a", 1);
    put(s, 1, "b", 1);
    put(s, 1, "c", 1);
    assert_true(has(s, 1, "a")); // used: now "b" is the oldest
    put(s, 1, "d", 1);
    assert_false(has(s, 1, "b"));
    assert_true(has(s, 1, "a") && has(s, 1, "c") && has(s, 1, "d"));
    // Others have their own bound, and all together one more: the oldest of anybody goes.
    put(s, 2, "e", 1);
    put(s, 2, "f", 1);
    assert_true(has(s, 1, "a") && has(s, 1, "c") && has(s, 1, "d"));
    put(s, 3, "g", 1);
    assert_false(has(s, 2, "e"));
    assert_true(has(s, 2, "f") && has(s, 3, "g") && has(s, 1, "a"));
    api_store_free(s);
}

static void test_bytes_are_bounded(void **state)
{
    (void)state;
    const struct api_store_limits limits = {100, 3000, 100, 5000};
    struct api_store *s = api_store_new(&limits);
    put(s, 1, "a", 1200);
    put(s, 1, "b", 1200);
    put(s, 1, "c", 1200);
    assert_false(has(s, 1, "a"));
    assert_true(has(s, 1, "b") && has(s, 1, "c"));
    put(s, 1, "huge", 4000);
    assert_false(has(s, 1, "huge"));
    assert_true(has(s, 1, "b") && has(s, 1, "c")); // what cannot be kept pushes nothing out
    put(s, 2, "d", 2500);
    put(s, 3, "e", 2500);
    assert_true(has(s, 3, "e"));
    assert_false(has(s, 1, "b") || has(s, 1, "c"));
    assert_true(!has(s, 2, "d")); // 5000 bytes and what each costs
    api_store_free(s);
}

/* ---- requests ---------------------------------------------------------------------------------
 */

#define HEAD_OF "{\"model\":\"m\","
#define TOOLS                                                                                      \
    ",\"tools\":[{\"type\":\"function\",\"name\":\"add\",\"parameters\":{\"type\":\"object\","     \
    "\"properties\":{\"a\":{\"type\":\"integer\"}}}}]"

static struct api_env env;

static void begin_response(struct run *run, const char *body)
{
    struct api_error err = {0};
    *run = (struct run){0};
    if (api_parse_response(&run->r, body, strlen(body), &env, 1, &err))
        fail_msg("%s\nwas refused: %s: %s", body, err.param, err.message);
    assert_int_equal(err.status, 0);
    api_begin(run->r, &run->out);
}

static void same_prompt(const char *body, const char *chat)
{
    struct run run;
    begin_response(&run, body);
    struct api_request *r = must_parse(API_CHAT, &env, chat);
    struct sched_job a, b;
    api_job(run.r, 0, 1, &a);
    api_job(r, 0, 2, &b);
    assert_int_equal(a.n_prompt, b.n_prompt);
    assert_memory_equal(a.prompt, b.prompt, a.n_prompt * sizeof *a.prompt);
    assert_int_equal(a.max_new, b.max_new);
    assert_int_equal(!a.sampling.grammar, !b.sampling.grammar);
    api_request_free(r);
    end(&run);
}

static void test_prompts(void **state)
{
    (void)state;
    same_prompt(HEAD_OF "\"input\":\"hi\",\"instructions\":\"s\",\"max_output_tokens\":7}",
                CHAT "\"max_tokens\":7}");
    same_prompt(HEAD_OF
                "\"input\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
                "[{\"type\":\"input_text\",\"text\":\"hi\"}]}]}",
                CHAT "\"n\":1}");
    same_prompt(HEAD_OF "\"input\":\"hi\",\"instructions\":\"s\"" TOOLS "}", CHAT
                "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{"
                "\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}}}]}");
    // Calls that follow one another and the text before them are one message of the assistant.
    same_prompt(
        HEAD_OF
        "\"instructions\":\"s\",\"input\":[{\"role\":\"user\",\"content\":\"hi\"},"
        "{\"role\":\"assistant\",\"content\":\"t\"},"
        "{\"type\":\"function_call\",\"call_id\":\"1\",\"name\":\"f\",\"arguments\":\"{}\"},"
        "{\"type\":\"function_call\",\"call_id\":\"2\",\"name\":\"g\",\"arguments\":\"{}\"},"
        "{\"type\":\"function_call_output\",\"call_id\":\"1\",\"output\":\"a\"},"
        "{\"type\":\"function_call_output\",\"call_id\":\"2\",\"output\":["
        "{\"type\":\"input_text\",\"text\":\"b\"}]}]}",
        "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
        "{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"t\",\"tool_"
        "calls\":["
        "{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},"
        "{\"id\":\"2\",\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"a\"},"
        "{\"role\":\"tool\",\"tool_call_id\":\"2\",\"content\":\"b\"}]}");
}

/* ---- answers ----------------------------------------------------------------------------------
 */

#define MAX_EVENTS 64

/* The events of a stream, and that they are numbered from 0 on and named twice alike. */
struct events {
    cJSON *all[MAX_EVENTS];
    int n;
};

static void read_events(struct run *run, struct events *ev)
{
    ev->n = 0;
    for (char *s = run->out.data; s && *s;) {
        char type[80] = "";
        int begin = 0;
        assert_int_equal(sscanf(s, "event: %79s\ndata: %n", type, &begin), 1);
        char *stop = strstr(s, "\n\n");
        assert_non_null(stop);
        cJSON *o = cJSON_ParseWithLength(s + begin, (size_t)(stop - s - begin));
        assert_non_null(o);
        assert_string_equal(string_of(o, "type"), type);
        assert_int_equal(cJSON_GetObjectItem(o, "sequence_number")->valueint, ev->n);
        assert_true(ev->n < MAX_EVENTS);
        ev->all[ev->n++] = o;
        s = stop + 2;
    }
}

/* Short names of the events in a row, each followed by its text. */
static void events_are(struct events *ev, const char *expected)
{
    static const struct {
        const char *type, *name, *text;
    } names[] = {{"response.created", "C", NULL},
                 {"response.in_progress", "P", NULL},
                 {"response.output_item.added", "+", NULL},
                 {"response.content_part.added", "[", NULL},
                 {"response.output_text.delta", "t", "delta"},
                 {"response.output_text.done", "T", "text"},
                 {"response.content_part.done", "]", NULL},
                 {"response.output_item.done", "-", NULL},
                 {"response.function_call_arguments.delta", "a", "delta"},
                 {"response.function_call_arguments.done", "A", "arguments"},
                 {"response.completed", "F", NULL},
                 {"response.incomplete", "I", NULL},
                 {"error", "E", "message"}};
    char text[2048] = "";
    for (int i = 0; i < ev->n; i++) {
        size_t k = 0;
        while (strcmp(names[k].type, string_of(ev->all[i], "type")) != 0) k++;
        strcat(text, names[k].name);
        if (names[k].text)
            sprintf(text + strlen(text), "(%s)", string_of(ev->all[i], names[k].text));
    }
    assert_string_equal(text, expected);
}

static void free_events(struct events *ev)
{
    for (int i = 0; i < ev->n; i++) cJSON_Delete(ev->all[i]);
}

static cJSON *answer(const char *fields, const char *text, enum sched_finish finish)
{
    struct run run;
    char body[1024];
    snprintf(body, sizeof body, HEAD_OF "\"input\":\"hi\",\"instructions\":\"s\"%s}", fields);
    begin_response(&run, body);
    assert_int_equal(run.out.len, 0);
    feed_bytes(&run, 0, text);
    if (finish == SCHED_STOP) feed_end(&run, 0);
    feed_done(&run, 0, finish);
    cJSON *o = body_of(&run);
    end(&run);
    return o;
}

static const cJSON *output_of(const cJSON *o, int i)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItem(o, "output"), i);
}

static void test_whole(void **state)
{
    (void)state;
    cJSON *o = answer("", " Hi", SCHED_STOP);
    assert_string_equal(string_of(o, "status"), "completed");
    const cJSON *part = cJSON_GetArrayItem(cJSON_GetObjectItem(output_of(o, 0), "content"), 0);
    json_is(part, "{\"type\":\"output_text\",\"text\":\"Hi\",\"annotations\":[],\"logprobs\":[]}");
    assert_int_equal(
        cJSON_GetObjectItem(cJSON_GetObjectItem(o, "usage"), "output_tokens")->valueint, 4);
    cJSON_Delete(o);

    o = answer(TOOLS, CALL("add", "{}") CALL("add", "{\"a\":1}"), SCHED_STOP);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(o, "output")), 2);
    assert_string_equal(string_of(output_of(o, 1), "arguments"), "{\"a\":1}");
    assert_string_equal(string_of(output_of(o, 1), "status"), "completed");
    assert_string_equal(string_of(output_of(o, 1), "call_id") + 5,
                        string_of(output_of(o, 1), "id") + 3);
    cJSON_Delete(o);

    o = answer(TOOLS, "a<tool_call>{\"name\":\"add\",\"arguments\":{\"a", SCHED_LENGTH);
    assert_string_equal(string_of(o, "status"), "incomplete");
    json_is(cJSON_GetObjectItem(o, "incomplete_details"), "{\"reason\":\"max_output_tokens\"}");
    assert_string_equal(string_of(output_of(o, 0), "status"), "completed");
    assert_string_equal(string_of(output_of(o, 1), "status"), "incomplete");
    assert_string_equal(string_of(output_of(o, 1), "arguments"), "{\"a");
    cJSON_Delete(o);
}

static void streamed(const char *fields, const char *text, enum sched_finish finish,
                     const char *expected)
{
    struct run run;
    struct events ev;
    char body[1024];
    snprintf(body, sizeof body,
             HEAD_OF "\"input\":\"hi\",\"instructions\":\"s\",\"stream\":true%s}", fields);
    begin_response(&run, body);
    feed_bytes(&run, 0, text);
    if (finish == SCHED_STOP) feed_end(&run, 0);
    feed_done(&run, 0, finish);
    read_events(&run, &ev);
    events_are(&ev, expected);
    free_events(&ev);
    end(&run);
}

static void test_streams(void **state)
{
    (void)state;
    streamed("", " Hi", SCHED_STOP, "CP+[t(H)t(i)T(Hi)]-F");
    streamed("", "", SCHED_STOP, "CP+[T()]-F");
    streamed("", "a\n", SCHED_LENGTH, "CP+[t(a)t(\n)T(a\n)]-I");
    streamed(TOOLS, CALL("add", "{}"), SCHED_STOP, "CP+a({)a(})A({})-F");
    streamed(TOOLS, "x" CALL("add", "{}") CALL("add", "{}"), SCHED_STOP,
             "CP+[t(x)T(x)]-+a({)a(})A({})-+a({)a(})A({})-F");
    streamed(TOOLS, "<tool_call>{\"name\":\"add\",\"arguments\":{", SCHED_LENGTH, "CP+a({)A({)-I");
    streamed(TOOLS, "<tool_call>{\"na", SCHED_LENGTH, "CP+[T()]-I");
    streamed(TOOLS, "no <to", SCHED_STOP, "CP+[t(n)t(o)t( )t(<to)T(no <to)]-F");
}

/* Places in the output, and that every event of an item has its id. */
static void test_stream_places(void **state)
{
    (void)state;
    struct run run;
    struct events ev;
    begin_response(&run, HEAD_OF "\"input\":\"hi\",\"stream\":true,\"top_logprobs\":1" TOOLS "}");
    feed_bytes(&run, 0, "ab" CALL("add", "{}"));
    feed_end(&run, 0);
    feed_done(&run, 0, SCHED_STOP);
    read_events(&run, &ev);
    events_are(&ev, "CP+[t(a)t(b)T(ab)]-+a({)a(})A({})-F");
    const char *item = NULL;
    for (int i = 2; i + 1 < ev.n; i++) {
        const cJSON *o = ev.all[i], *whole = cJSON_GetObjectItem(o, "item");
        assert_int_equal(cJSON_GetObjectItem(o, "output_index")->valueint, i < 9 ? 0 : 1);
        const char *id = whole ? string_of(whole, "id") : string_of(o, "item_id");
        if (i == 2 || i == 9) item = id;
        assert_string_equal(id, item);
    }
    for (int i = 4; i < 6; i++) {
        const cJSON *lp = cJSON_GetObjectItem(ev.all[i], "logprobs");
        assert_int_equal(cJSON_GetArraySize(lp), 1);
        assert_string_equal(string_of(cJSON_GetArrayItem(lp, 0), "token"), i == 4 ? "a" : "b");
    }
    const cJSON *last = cJSON_GetObjectItem(ev.all[ev.n - 1], "response");
    assert_true(
        cJSON_Compare(output_of(last, 1), cJSON_GetObjectItem(ev.all[ev.n - 2], "item"), true));
    free_events(&ev);
    end(&run);
}

static void test_stream_error(void **state)
{
    (void)state;
    struct run run;
    struct events ev;
    struct api_error err = {0};
    begin_response(&run, HEAD_OF "\"input\":\"hi\",\"stream\":true}");
    feed_bytes(&run, 0, "a");
    assert_int_equal(api_fail(&err, 503, NULL, "", "Gone \"away\"."), -1);
    api_stream_error(run.r, &err, &run.out);
    read_events(&run, &ev);
    events_are(&ev, "CP+[t(a)E(Gone \"away\".)");
    const cJSON *error = cJSON_GetObjectItem(ev.all[ev.n - 1], "error");
    assert_string_equal(string_of(error, "message"), "Gone \"away\".");
    free_events(&ev);
    end(&run);
}

/* ---- one after the other ----------------------------------------------------------------------
 */

static char *finish_one(const char *fields, const char *text)
{
    cJSON *o = answer(fields, text, SCHED_STOP);
    char *id = strdup(string_of(o, "id"));
    cJSON_Delete(o);
    return id;
}

static void test_previous(void **state)
{
    (void)state;
    char body[512];
    struct api_request *r = NULL;
    struct api_error err = {0};
    char *id = finish_one("", "yes");
    snprintf(body, sizeof body,
             HEAD_OF "\"input\":\"more\",\"previous_response_id\":\"%s\",\"instructions\":\"s\"}",
             id);
    same_prompt(
        body, "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
              "{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yes\"},"
              "{\"role\":\"user\",\"content\":\"more\"}]}");
    // Another tenant's does not exist.
    assert_int_equal(api_parse_response(&r, body, strlen(body), &env, 2, &err), -1);
    assert_string_equal(err.code, "previous_response_not_found");
    free(id);

    // A call must be answered before anything else; what is blamed is where it came from.
    id = finish_one(TOOLS, CALL("add", "{}"));
    snprintf(body, sizeof body, HEAD_OF "\"input\":\"more\",\"previous_response_id\":\"%s\"}", id);
    assert_int_equal(api_parse_response(&r, body, strlen(body), &env, 1, &err), -1);
    assert_string_equal(err.param, "input");
    free(id);

    // What was said goes on, how likely it was does not.
    id = finish_one(",\"top_logprobs\":1", "yes");
    snprintf(body, sizeof body, HEAD_OF "\"input\":\"more\",\"previous_response_id\":\"%s\"}", id);
    if (api_parse_response(&r, body, strlen(body), &env, 1, &err)) fail_msg("%s", err.message);
    assert_non_null(strstr(r->response->items, "yes"));
    assert_null(strstr(r->response->items, "logprob"));
    api_request_free(r);
    r = NULL;
    free(id);

    id = finish_one(",\"store\":false", "yes");
    assert_int_equal(api_response_get(id, &env, 1, &(struct cfg_buf){0}, &err), -1);
    assert_int_equal(err.status, 404);
    free(id);
}

/* A conversation goes on being kept only up to a size, whatever of it the model is shown. */
static void test_conversation_is_bounded(void **state)
{
    (void)state;
    struct cfg_buf body = {0};
    struct api_request *r = NULL;
    struct api_error err = {0};
    cfg_buf_puts(&body, HEAD_OF "\"truncation\":\"auto\",\"input\":["
                                "{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < API_MAX_CONVERSATION / 8; i++) cfg_buf_puts(&body, "a text. ");
    cfg_buf_puts(&body, "\"},{\"role\":\"user\",\"content\":\"hi\"}]");
    const size_t n = body.len;
    cfg_buf_puts(&body, "}");
    assert_int_equal(api_parse_response(&r, body.data, body.len, &env, 1, &err), -1);
    assert_null(r);
    assert_string_equal(err.param, "store");
    body.len = n;
    cfg_buf_puts(&body, ",\"store\":false}");
    if (api_parse_response(&r, body.data, body.len, &env, 1, &err)) fail_msg("%s", err.message);
    api_request_free(r);
    cfg_buf_free(&body);
}

struct crowd {
    struct api_store *store;
    int number;
};

/* Put, read and deleted by all at once, under names that they share. */
static void *crowd_use(void *arg)
{
    const struct crowd *c = arg;
    for (int i = 0; i < 400; i++) {
        char id[16];
        snprintf(id, sizeof id, "r%d", (i * 7 + c->number) % 20);
        const uint32_t tenant = (uint32_t)(i + c->number) % 3;
        struct cfg_buf body = {0}, items = {0};
        put(c->store, tenant, id, (size_t)(i % 50) + 1);
        if (api_store_get(c->store, tenant, id, &body, &items)) assert_true(body.len > 0);
        if (i % 3 == 0) (void)api_store_delete(c->store, tenant, id);
        cfg_buf_free(&body);
        cfg_buf_free(&items);
    }
    return NULL;
}

static void test_threads_share_the_store(void **state)
{
    (void)state;
    const struct api_store_limits limits = {8, 3000, 16, 6000};
    struct crowd all[4];
    pthread_t threads[4];
    size_t total = 0;
    struct api_store *s = api_store_new(&limits);
    for (int i = 0; i < 4; i++) {
        all[i] = (struct crowd){s, i};
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_use, &all[i]), 0);
    }
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (uint32_t tenant = 0; tenant < 3; tenant++) {
        size_t n = 0;
        for (int i = 0; i < 20; i++) {
            char id[16];
            snprintf(id, sizeof id, "r%d", i);
            while (api_store_delete(s, tenant, id)) n++;
        }
        assert_in_range(n, 0, limits.tenant_n);
        total += n;
    }
    assert_in_range(total, 1, limits.n);
    api_store_free(s);
}

static int open_store(void **state)
{
    static const struct api_store_limits limits = {100, 1 << 20, 100, 1 << 20};
    const int rc = support_open(state);
    support.info.context = 4096;
    env = support.env;
    env.store = api_store_new(&limits);
    return rc;
}

static int close_store(void **state)
{
    api_store_free(env.store);
    return support_close(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kept_for_one_tenant),
        cmocka_unit_test(test_number_is_bounded),
        cmocka_unit_test(test_bytes_are_bounded),
        cmocka_unit_test(test_threads_share_the_store),
        cmocka_unit_test(test_conversation_is_bounded),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_stream_places),
        cmocka_unit_test(test_stream_error),
        cmocka_unit_test(test_previous),
    };
    return cmocka_run_group_tests(tests, open_store, close_store);
}
