// SPDX-License-Identifier: Apache-2.0
//
// api_call_answer.c: calls in an answer: gathered for a whole one, put out piece by piece in a
// stream. Log-probabilities of the tokens that a call is made of go with the next chunk. Loop
// thread.
#include <string.h>

#include "server/api_request.h"

struct show {
    struct api_request *r;
    size_t i;
    struct cfg_buf *out;
};

size_t api_n_calls(const struct api_request *r, size_t i)
{
    return r->choices[i].calls.len / sizeof(struct api_call);
}

struct api_call *api_call_at(const struct api_request *r, size_t i, size_t k)
{
    return (struct api_call *)(void *)r->choices[i].calls.data + k;
}

static void add_call(struct show *s, const char *name, size_t n)
{
    struct cfg_buf *calls = &s->r->choices[s->i].calls;
    struct api_call call = {0};
    memcpy(call.name, name, n < API_MAX_CALLNAME ? n : API_MAX_CALLNAME);
    if (api_random_id(call.id, sizeof call.id, "call_")) calls->failed = true;
    cfg_buf_append(calls, &call, sizeof call);
}

/* "index":0,"id":...,"type":"function","function":{"name":...,"arguments":... */
static void put_call(const struct api_call *call, struct cfg_buf *out)
{
    cfg_buf_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", call->id);
    cfg_buf_json_string(out, call->name, strlen(call->name));
    cfg_buf_puts(out, ",\"arguments\":");
}

static void show_name(struct show *s)
{
    const size_t k = api_n_calls(s->r, s->i) - 1;
    struct cfg_buf delta = {0};
    if (s->r->response) {
        api_response_call(s->r, k, s->out);
        return;
    }
    cfg_buf_printf(&delta, "\"tool_calls\":[{\"index\":%zu,", k);
    put_call(api_call_at(s->r, s->i, k), &delta);
    cfg_buf_puts(&delta, "\"\"}}]");
    api_render_delta(s->r, s->i, &delta, s->out);
    cfg_buf_free(&delta);
}

static void show_arguments(struct show *s, const char *text, size_t n)
{
    const size_t k = api_n_calls(s->r, s->i) - 1;
    struct cfg_buf delta = {0};
    if (s->r->response) {
        api_response_arguments(s->r, k, text, n, s->out);
        return;
    }
    cfg_buf_printf(&delta, "\"tool_calls\":[{\"index\":%zu,\"function\":{\"arguments\":", k);
    cfg_buf_json_string(&delta, text, n);
    cfg_buf_puts(&delta, "}}]");
    api_render_delta(s->r, s->i, &delta, s->out);
    cfg_buf_free(&delta);
}

static void take(void *arg, enum api_call_event event, const char *text, size_t n)
{
    struct show *s = arg;
    struct api_choice *c = &s->r->choices[s->i];
    struct api_call *call;
    if (c->calls.failed) return;
    switch (event) {
    case API_CALLS_TEXT:
        // A response's text comes before its calls; the grammar sees to that.
        if (!s->r->response || c->calls.len == 0) api_put_text(s->r, s->i, text, n, s->out);
        return;
    case API_CALLS_NAME:
        add_call(s, text, n);
        if (s->r->stream && !c->calls.failed) show_name(s);
        return;
    case API_CALLS_ARGUMENTS:
        call = api_call_at(s->r, s->i, api_n_calls(s->r, s->i) - 1);
        cfg_buf_append(&call->arguments, text, n);
        if (call->arguments.failed) c->calls.failed = true;
        if (s->r->stream) show_arguments(s, text, n);
        return;
    case API_CALLS_DONE:
        if (s->r->stream && s->r->response)
            api_response_call_end(s->r, api_n_calls(s->r, s->i) - 1, s->out);
        return;
    }
}

void api_calls_show(struct api_request *r, size_t i, const char *text, size_t n,
                    struct cfg_buf *out)
{
    struct show s = {r, i, out};
    api_calls_push(&r->choices[i].parser, text, n, take, &s);
}

const char *api_calls_end(struct api_request *r, size_t i, const char *reason, bool cut,
                          struct cfg_buf *out)
{
    struct show s = {r, i, out};
    const bool over = !cut && !strcmp(reason, "stop");
    const size_t n = api_n_calls(r, i);
    if (n > 0) api_call_at(r, i, n - 1)->cut = r->choices[i].parser.state == CALLS_ARGUMENTS;
    api_calls_finish(&r->choices[i].parser, !over, take, &s);
    // The call that was asked for by name is no decision of the model: OpenAI says "stop" there.
    return over && api_n_calls(r, i) > 0 && !r->tools.named ? "tool_calls" : reason;
}

void api_render_calls(const struct api_request *r, size_t i, struct cfg_buf *out)
{
    for (size_t k = 0; k < api_n_calls(r, i); k++) {
        const struct api_call *call = api_call_at(r, i, k);
        cfg_buf_puts(out, k ? ",{" : ",\"tool_calls\":[{");
        put_call(call, out);
        cfg_buf_json_string(out, call->arguments.data, call->arguments.len);
        cfg_buf_puts(out, "}}");
    }
    if (api_n_calls(r, i) > 0) cfg_buf_puts(out, "]");
}

void api_calls_free(struct api_request *r, size_t i)
{
    for (size_t k = 0; k < api_n_calls(r, i); k++) cfg_buf_free(&api_call_at(r, i, k)->arguments);
    cfg_buf_free(&r->choices[i].calls);
}
