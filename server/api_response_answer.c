// SPDX-License-Identifier: Apache-2.0
//
// api_response_answer.c: the answer to POST /v1/responses: the response object, whole or as the
// events it grows by. Its output is a message, unless it is calls alone, and then a function_call
// for each call. Loop thread.
#include <string.h>

#include "server/api_request.h"

/* ---- the object -------------------------------------------------------------------------------
 */

static const struct api_choice *choice_of(const struct api_request *r)
{
    return &r->choices[0];
}

static bool is_cut(const struct api_request *r)
{
    return choice_of(r)->finish && !strcmp(choice_of(r)->finish, "length");
}

/* Where calls begin in the output: behind the message, if there is one. */
static size_t first_call(const struct api_request *r)
{
    return choice_of(r)->text.len > 0;
}

/* [..] from the bytes `from` on of the log-probabilities, which are elements with commas between.
 */
static void put_logprobs(const struct api_request *r, size_t from, struct cfg_buf *out)
{
    const struct cfg_buf *lp = &choice_of(r)->lp.tokens;
    if (from > 0 && from < lp->len) from++;
    cfg_buf_puts(out, "[");
    if (from < lp->len) cfg_buf_append(out, lp->data + from, lp->len - from);
    cfg_buf_puts(out, "]");
}

static void put_part(const struct api_request *r, bool filled, struct cfg_buf *out)
{
    const struct cfg_buf *text = &choice_of(r)->text;
    cfg_buf_puts(out, "{\"type\":\"output_text\",\"text\":");
    cfg_buf_json_string(out, text->len ? text->data : "", filled ? text->len : 0);
    cfg_buf_puts(out, ",\"annotations\":[],\"logprobs\":");
    if (filled)
        put_logprobs(r, 0, out);
    else
        cfg_buf_puts(out, "[]");
    cfg_buf_puts(out, "}");
}

static void put_message(const struct api_request *r, const char *status, struct cfg_buf *out)
{
    cfg_buf_printf(out,
                   "{\"id\":\"%s\",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\","
                   "\"content\":[",
                   r->response->message_id, status);
    if (strcmp(status, "in_progress") != 0) put_part(r, true, out);
    cfg_buf_puts(out, "]}");
}

/* The item has an id of its own, beside that of the call: the same letters. */
static void put_call_id(const struct api_call *call, struct cfg_buf *out)
{
    cfg_buf_printf(out, "\"fc_%s\"", call->id + strlen("call_"));
}

static void put_call(const struct api_call *call, const char *status, bool filled,
                     struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"id\":");
    put_call_id(call, out);
    cfg_buf_printf(
        out, ",\"type\":\"function_call\",\"status\":\"%s\",\"call_id\":\"%s\",\"name\":", status,
        call->id);
    cfg_buf_json_string(out, call->name, strlen(call->name));
    cfg_buf_puts(out, ",\"arguments\":");
    cfg_buf_json_string(out, filled ? call->arguments.data : "", filled ? call->arguments.len : 0);
    cfg_buf_puts(out, "}");
}

static const char *message_status(const struct api_request *r)
{
    return is_cut(r) && api_n_calls(r, 0) == 0 ? "incomplete" : "completed";
}

static const char *call_status(const struct api_call *call)
{
    return call->cut ? "incomplete" : "completed";
}

static void put_output(const struct api_request *r, struct cfg_buf *out)
{
    const size_t n = api_n_calls(r, 0);
    const bool message = first_call(r) > 0 || n == 0;
    if (message) put_message(r, message_status(r), out);
    for (size_t k = 0; k < n; k++) {
        const struct api_call *call = api_call_at(r, 0, k);
        if (message || k) cfg_buf_puts(out, ",");
        put_call(call, call_status(call), true, out);
    }
}

static void put_usage(const struct api_request *r, struct cfg_buf *out)
{
    const size_t in = api_prompt_tokens(r), made = api_completion_tokens(r);
    cfg_buf_printf(
        out,
        ",\"usage\":{\"input_tokens\":%zu,\"input_tokens_details\":{\"cached_tokens\":%zu,"
        "\"cache_write_tokens\":0},\"output_tokens\":%zu,\"output_tokens_details\":{"
        "\"reasoning_tokens\":0},\"total_tokens\":%zu}",
        in, r->cached_tokens, made, in + made);
}

static void put_response(const struct api_request *r, struct cfg_buf *out)
{
    const bool over = choice_of(r)->finish != NULL;
    cfg_buf_printf(out,
                   "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\"",
                   r->id, (long long)r->created,
                   !over       ? "in_progress"
                   : is_cut(r) ? "incomplete"
                               : "completed");
    cfg_buf_puts(out, ",\"error\":null,\"incomplete_details\":");
    cfg_buf_puts(out, is_cut(r) ? "{\"reason\":\"max_output_tokens\"}" : "null");
    cfg_buf_puts(out, ",\"output\":[");
    if (over) put_output(r, out);
    cfg_buf_puts(out, "]");
    if (over)
        put_usage(r, out);
    else
        cfg_buf_puts(out, ",\"usage\":null");
    cfg_buf_puts(out, r->response->echo);
    cfg_buf_puts(out, "}");
}

static void keep(const struct api_request *r, const struct cfg_buf *body)
{
    const struct api_response *p = r->response;
    if (p->store && r->env->store && !body->failed)
        api_store_put(r->env->store, r->tenant, r->id, body, p->items);
}

void api_response_body(struct api_request *r, struct cfg_buf *out)
{
    struct cfg_buf body = {0};
    put_response(r, &body);
    keep(r, &body);
    cfg_buf_append(out, body.data, body.len);
    if (body.failed) out->failed = true;
    cfg_buf_free(&body);
}

/* ---- events -----------------------------------------------------------------------------------
 */

static void begin(struct api_request *r, const char *type, struct cfg_buf *out)
{
    cfg_buf_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%d", type, type,
                   r->response->sequence++);
}

static void end(struct cfg_buf *out)
{
    cfg_buf_puts(out, "}\n\n");
}

void api_response_begin(struct api_request *r, struct cfg_buf *out)
{
    static const char *const types[] = {"response.created", "response.in_progress"};
    for (int i = 0; i < 2; i++) {
        begin(r, types[i], out);
        cfg_buf_puts(out, ",\"response\":");
        put_response(r, out);
        end(out);
    }
}

static void begin_of_part(struct api_request *r, const char *type, struct cfg_buf *out)
{
    begin(r, type, out);
    cfg_buf_printf(out, ",\"item_id\":\"%s\",\"output_index\":0,\"content_index\":0",
                   r->response->message_id);
}

static void open_message(struct api_request *r, struct cfg_buf *out)
{
    if (r->response->opened) return;
    r->response->opened = true;
    begin(r, "response.output_item.added", out);
    cfg_buf_puts(out, ",\"output_index\":0,\"item\":");
    put_message(r, "in_progress", out);
    end(out);
    begin_of_part(r, "response.content_part.added", out);
    cfg_buf_puts(out, ",\"part\":");
    put_part(r, false, out);
    end(out);
}

void api_response_text(struct api_request *r, const char *text, size_t n, struct cfg_buf *out)
{
    struct api_response *p = r->response;
    if (n == 0) return;
    open_message(r, out);
    begin_of_part(r, "response.output_text.delta", out);
    cfg_buf_puts(out, ",\"delta\":");
    cfg_buf_json_string(out, text, n);
    cfg_buf_puts(out, ",\"logprobs\":");
    put_logprobs(r, p->lp_sent, out);
    p->lp_sent = choice_of(r)->lp.tokens.len;
    end(out);
}

static void close_message(struct api_request *r, struct cfg_buf *out)
{
    const struct cfg_buf *text = &choice_of(r)->text;
    if (!r->response->opened || r->response->closed) return;
    r->response->closed = true;
    begin_of_part(r, "response.output_text.done", out);
    cfg_buf_puts(out, ",\"text\":");
    cfg_buf_json_string(out, text->len ? text->data : "", text->len);
    cfg_buf_puts(out, ",\"logprobs\":");
    put_logprobs(r, 0, out);
    end(out);
    begin_of_part(r, "response.content_part.done", out);
    cfg_buf_puts(out, ",\"part\":");
    put_part(r, true, out);
    end(out);
    begin(r, "response.output_item.done", out);
    cfg_buf_puts(out, ",\"output_index\":0,\"item\":");
    put_message(r, message_status(r), out);
    end(out);
}

static void begin_of_call(struct api_request *r, const char *type, size_t k, struct cfg_buf *out)
{
    begin(r, type, out);
    cfg_buf_puts(out, ",\"item_id\":");
    put_call_id(api_call_at(r, 0, k), out);
    cfg_buf_printf(out, ",\"output_index\":%zu", first_call(r) + k);
}

void api_response_call(struct api_request *r, size_t k, struct cfg_buf *out)
{
    close_message(r, out);
    begin(r, "response.output_item.added", out);
    cfg_buf_printf(out, ",\"output_index\":%zu,\"item\":", first_call(r) + k);
    put_call(api_call_at(r, 0, k), "in_progress", false, out);
    end(out);
}

void api_response_arguments(struct api_request *r, size_t k, const char *text, size_t n,
                            struct cfg_buf *out)
{
    begin_of_call(r, "response.function_call_arguments.delta", k, out);
    cfg_buf_puts(out, ",\"delta\":");
    cfg_buf_json_string(out, text, n);
    end(out);
}

void api_response_call_end(struct api_request *r, size_t k, struct cfg_buf *out)
{
    const struct api_call *call = api_call_at(r, 0, k);
    begin_of_call(r, "response.function_call_arguments.done", k, out);
    cfg_buf_puts(out, ",\"name\":");
    cfg_buf_json_string(out, call->name, strlen(call->name));
    cfg_buf_puts(out, ",\"arguments\":");
    cfg_buf_json_string(out, call->arguments.data, call->arguments.len);
    end(out);
    begin(r, "response.output_item.done", out);
    cfg_buf_printf(out, ",\"output_index\":%zu,\"item\":", first_call(r) + k);
    put_call(call, call_status(call), true, out);
    end(out);
}

void api_response_close(struct api_request *r, struct cfg_buf *out)
{
    if (api_n_calls(r, 0) == 0) open_message(r, out); // an empty answer has an empty message
    close_message(r, out);
}

void api_response_end(struct api_request *r, struct cfg_buf *out)
{
    struct cfg_buf body = {0};
    put_response(r, &body);
    keep(r, &body);
    begin(r, is_cut(r) ? "response.incomplete" : "response.completed", out);
    cfg_buf_puts(out, ",\"response\":");
    cfg_buf_append(out, body.data, body.len);
    if (body.failed) out->failed = true;
    end(out);
    cfg_buf_free(&body);
}

void api_response_error(struct api_request *r, const struct api_error *err, struct cfg_buf *out)
{
    struct cfg_buf body = {0};
    api_error_body(err, &body); // {"error":{...}}
    begin(r, "error", out);
    cfg_buf_puts(out, ",");
    if (body.len > 2) cfg_buf_append(out, body.data + 1, body.len - 2);
    cfg_buf_puts(out, ",\"code\":");
    cfg_buf_json_string(out, err->code ? err->code : err->type,
                        strlen(err->code ? err->code : err->type));
    cfg_buf_puts(out, ",\"message\":");
    cfg_buf_json_string(out, err->message, strlen(err->message));
    cfg_buf_puts(out, ",\"param\":null");
    end(out);
    cfg_buf_free(&body);
}
