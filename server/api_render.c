// SPDX-License-Identifier: Apache-2.0
//
// api_render.c: the JSON of answers, written as prefix, escaped text, suffix: a chunk is made for
// every token of every stream. Buffers latch a failed allocation, which the caller checks once.
// Loop thread.
#include "server/api_request.h"

#include <math.h>
#include <string.h>

size_t api_count_chars(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xC0) != 0x80;
    return count;
}

/* ---- one token ------------------------------------------------------------------------------- */

size_t api_token_bytes(const struct api_request *r, int32_t id, char out[API_TOKEN_BYTES_MAX])
{
    if (!r->env->tokenizer) return 0;
    size_t n = engine_token_bytes(r->env->tokenizer, id, out, API_TOKEN_BYTES_MAX);
    return n < API_TOKEN_BYTES_MAX ? n : API_TOKEN_BYTES_MAX;
}

size_t api_token_text(const struct api_request *r, int32_t id, char out[API_TOKEN_BYTES_MAX])
{
    size_t n = api_token_bytes(r, id, out);
    if (n > 0 || r->skip_special_tokens || !r->env->tokenizer) return n;
    const char *piece = engine_token_piece(r->env->tokenizer, id);
    n = strnlen(piece, API_TOKEN_BYTES_MAX);
    memcpy(out, piece, n);
    return n;
}

/* A token's name: its text; bytes that are no whole characters as \xE2 escapes (a completion says
 * "bytes:" in front, as its keys have no other place for it); the spelling of a control token. */
static void token_name(const struct api_request *r, int32_t id, struct cfg_buf *out)
{
    char bytes[API_TOKEN_BYTES_MAX];
    size_t n = api_token_bytes(r, id, bytes);
    if (r->tokens_as_ids) {
        cfg_buf_printf(out, "\"token_id:%d\"", (int)id);
    } else if (n == 0) {
        const char *piece = r->env->tokenizer ? engine_token_piece(r->env->tokenizer, id) : "";
        if (*piece)
            cfg_buf_json_string(out, piece, strlen(piece));
        else
            cfg_buf_printf(out, "\"token_id:%d\"", (int)id);
    } else if (cfg_utf8_valid(bytes, n)) {
        cfg_buf_json_string(out, bytes, n);
    } else {
        cfg_buf_puts(out, r->kind == API_CHAT ? "\"" : "\"bytes:");
        for (size_t i = 0; i < n; i++)
            cfg_buf_printf(out, "\\\\x%02x", (unsigned)(unsigned char)bytes[i]);
        cfg_buf_puts(out, "\"");
    }
}

static void comma(struct cfg_buf *out)
{
    if (out->len > 0) cfg_buf_puts(out, ",");
}

static void value(struct cfg_buf *out, float logprob)
{
    // JSON has no -inf: -9999.0 is what OpenAI documents for an impossible token.
    if (isfinite(logprob))
        cfg_buf_printf(out, "%.9g", (double)logprob + 0.0); // no negative zero
    else
        cfg_buf_puts(out, "-9999.0");
}

/* [72,105], or null for a token without text. */
static void token_byte_list(const struct api_request *r, int32_t id, struct cfg_buf *out)
{
    char bytes[API_TOKEN_BYTES_MAX];
    size_t n = api_token_bytes(r, id, bytes);
    cfg_buf_puts(out, n ? "[" : "null");
    for (size_t i = 0; i < n; i++)
        cfg_buf_printf(out, i ? ",%u" : "%u", (unsigned)(unsigned char)bytes[i]);
    if (n) cfg_buf_puts(out, "]");
}

/* "token":..,"logprob":..,"bytes":.. */
static void chat_token(const struct api_request *r, int32_t id, float logprob, struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"token\":");
    token_name(r, id, out);
    cfg_buf_puts(out, ",\"logprob\":");
    value(out, logprob);
    cfg_buf_puts(out, ",\"bytes\":");
    token_byte_list(r, id, out);
}

static int n_top(const struct api_request *r, const struct engine_result *res)
{
    return res->n_top < r->sampling.n_logprobs ? res->n_top : r->sampling.n_logprobs;
}

static void add_chat(const struct api_request *r, struct cfg_buf *out,
                     const struct engine_result *res)
{
    comma(out);
    chat_token(r, res->token, res->logprob, out);
    cfg_buf_puts(out, ",\"top_logprobs\":[");
    for (int i = 0; i < n_top(r, res); i++) {
        if (i) cfg_buf_puts(out, ",");
        chat_token(r, res->top[i].id, res->top[i].logprob, out);
        cfg_buf_puts(out, "}");
    }
    cfg_buf_puts(out, "]}");
}

/* A byte piece and an ordinary one may have the same text: an object can't hold both. */
static bool same_name(const struct api_request *r, int32_t a, int32_t b)
{
    char x[API_TOKEN_BYTES_MAX], y[API_TOKEN_BYTES_MAX];
    size_t n = api_token_bytes(r, a, x);
    return a == b || (n > 0 && n == api_token_bytes(r, b, y) && !memcmp(x, y, n));
}

/* The likeliest tokens, and the sampled one where it is not among them. */
static void add_top_object(const struct api_request *r, struct cfg_buf *out,
                           const struct engine_result *res)
{
    struct engine_top all[ENGINE_MAX_TOP + 1];
    int n = 0, candidates = n_top(r, res);
    cfg_buf_puts(out, "{");
    for (int i = 0; i <= candidates; i++) {
        struct engine_top t = i < candidates
                                  ? res->top[i]
                                  : (struct engine_top){.id = res->token, .logprob = res->logprob};
        bool twice = false;
        for (int k = 0; k < n && !twice; k++) twice = same_name(r, all[k].id, t.id);
        if (twice) continue;
        if (n) cfg_buf_puts(out, ",");
        token_name(r, t.id, out);
        cfg_buf_puts(out, ":");
        value(out, t.logprob);
        all[n++] = t;
    }
    cfg_buf_puts(out, "}");
}

void api_logprobs_add(const struct api_request *r, struct api_logprobs *lp,
                      const struct engine_result *result, size_t offset, bool unknown)
{
    if (r->kind == API_CHAT) {
        add_chat(r, &lp->tokens, result);
        return;
    }
    comma(&lp->tokens);
    token_name(r, result->token, &lp->tokens);
    comma(&lp->offsets);
    cfg_buf_printf(&lp->offsets, "%zu", offset);
    comma(&lp->bytes);
    token_byte_list(r, result->token, &lp->bytes);
    comma(&lp->values);
    comma(&lp->tops);
    if (unknown) {
        cfg_buf_puts(&lp->values, "null");
        cfg_buf_puts(&lp->tops, "null");
        return;
    }
    value(&lp->values, result->logprob);
    add_top_object(r, &lp->tops, result);
}

static void prompt_logprob(const struct api_request *r, struct cfg_buf *out, struct engine_top t,
                           int rank)
{
    cfg_buf_printf(out, "\"%d\":{\"logprob\":", (int)t.id);
    value(out, t.logprob);
    cfg_buf_puts(out, ",\"rank\":");
    if (rank > 0)
        cfg_buf_printf(out, "%d", rank);
    else
        cfg_buf_puts(out, "null");
    cfg_buf_puts(out, ",\"decoded_token\":");
    token_name(r, t.id, out);
    cfg_buf_puts(out, "}");
}

/* The prompt's own token first, then the likeliest. Its rank is known where it is one of them. */
void api_prompt_logprobs_add(const struct api_request *r, struct api_choice *c,
                             const struct engine_result *result)
{
    struct cfg_buf *out = &c->prompt_lp;
    comma(out);
    if (!result) {
        cfg_buf_puts(out, "null");
        return;
    }
    int rank = 0;
    for (int i = 0; i < result->n_top; i++)
        if (result->top[i].id == result->token) rank = i + 1;
    cfg_buf_puts(out, "{");
    prompt_logprob(r, out, (struct engine_top){result->token, result->logprob}, rank);
    for (int i = 0; i < result->n_top && i < r->n_prompt_logprobs; i++) {
        if (i + 1 == rank) continue;
        cfg_buf_puts(out, ",");
        prompt_logprob(r, out, result->top[i], i + 1);
    }
    cfg_buf_puts(out, "}");
}

void api_ids_add(struct cfg_buf *ids, int32_t id)
{
    comma(ids);
    cfg_buf_printf(ids, "%d", (int)id);
}

/* ---- parts of a choice ----------------------------------------------------------------------- */

static void list(struct cfg_buf *out, const char *before, const struct cfg_buf *items)
{
    cfg_buf_puts(out, before);
    cfg_buf_puts(out, "[");
    if (items->len) cfg_buf_append(out, items->data, items->len);
    cfg_buf_puts(out, "]");
}

/* ,"logprobs":... ; a chunk that covers no token says null. */
static void logprobs(const struct api_request *r, const struct api_logprobs *lp,
                     struct cfg_buf *out)
{
    if (r->sampling.n_logprobs < 0 || (r->stream && lp->tokens.len == 0)) {
        cfg_buf_puts(out, ",\"logprobs\":null");
        return;
    }
    if (r->kind == API_CHAT) {
        list(out, ",\"logprobs\":{\"content\":", &lp->tokens);
        cfg_buf_puts(out, ",\"refusal\":null}");
        return;
    }
    list(out, ",\"logprobs\":{\"tokens\":", &lp->tokens);
    list(out, ",\"token_logprobs\":", &lp->values);
    if (r->sampling.n_logprobs > 0)
        list(out, ",\"top_logprobs\":", &lp->tops);
    else
        cfg_buf_puts(out, ",\"top_logprobs\":null");
    list(out, ",\"text_offset\":", &lp->offsets);
    list(out, ",\"bytes\":", &lp->bytes);
    cfg_buf_puts(out, "}");
}

static void prompt_ids(const struct api_prompt *p, struct cfg_buf *out)
{
    cfg_buf_puts(out, ",\"prompt_token_ids\":[");
    for (size_t k = 0; k < p->n; k++) cfg_buf_printf(out, k ? ",%d" : "%d", (int)p->ids[k]);
    cfg_buf_puts(out, "]");
}

/* The first token of a prompt is predicted by nothing, so a prompt of one token causes no event. */
static void prompt_logprobs(const struct api_request *r, size_t i, struct cfg_buf *out)
{
    const struct cfg_buf *list_of = &r->choices[i].prompt_lp;
    if (r->n_prompt_logprobs < 0) return;
    if (list_of->len > 0)
        list(out, ",\"prompt_logprobs\":", list_of);
    else
        cfg_buf_puts(out, ",\"prompt_logprobs\":[null]");
}

/* What follows a choice's text or delta. A completion names the prompt's ids per choice, as one
 * request may have several prompts. */
static void choice_end(const struct api_request *r, size_t i, const char *finish, bool first,
                       struct cfg_buf *out)
{
    const struct api_choice *c = &r->choices[i];
    logprobs(r, &c->lp, out);
    if (finish)
        cfg_buf_printf(out, ",\"finish_reason\":\"%s\"", finish);
    else
        cfg_buf_puts(out, ",\"finish_reason\":null");
    if (r->return_token_ids) {
        list(out, ",\"token_ids\":", &c->ids);
        if (first && r->kind == API_COMPLETION) prompt_ids(&r->prompts[i / r->n], out);
    }
    if (r->kind == API_COMPLETION) prompt_logprobs(r, i, out);
    cfg_buf_puts(out, "}");
}

static void usage(const struct api_request *r, struct cfg_buf *out)
{
    size_t prompt = api_prompt_tokens(r), completion = api_completion_tokens(r);
    cfg_buf_printf(out,
                   ",\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,"
                   "\"total_tokens\":%zu,\"prompt_tokens_details\":{\"cached_tokens\":%zu,"
                   "\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0,"
                   "\"audio_tokens\":0,\"accepted_prediction_tokens\":0,"
                   "\"rejected_prediction_tokens\":0}}",
                   prompt, completion, prompt + completion, r->cached_tokens);
}

/* continuous_usage_stats: of one choice, so far. */
static void usage_so_far(const struct api_request *r, size_t i, struct cfg_buf *out)
{
    const size_t prompt = r->prompts[i / r->n].n, completion = r->choices[i].n_generated;
    cfg_buf_printf(out,
                   ",\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,"
                   "\"total_tokens\":%zu}",
                   prompt, completion, prompt + completion);
}

void api_render_head(struct api_request *r)
{
    const char *object = r->kind == API_COMPLETION ? "text_completion"
                         : r->stream               ? "chat.completion.chunk"
                                                   : "chat.completion";
    const char *model = r->env->model_name;
    cfg_buf_printf(&r->head, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", r->id,
                   object, (long long)r->created);
    cfg_buf_json_string(&r->head, model, strlen(model));
    if (r->tier_given) cfg_buf_puts(&r->head, ",\"service_tier\":\"default\"");
    cfg_buf_puts(&r->head,
                 ",\"system_fingerprint\":\"openmoed-" OPENMOED_VERSION "\",\"choices\":[");
}

/* ---- event stream ---------------------------------------------------------------------------- */

static void chunk_begin(const struct api_request *r, struct cfg_buf *out)
{
    cfg_buf_puts(out, "data: ");
    cfg_buf_append(out, r->head.data, r->head.len);
}

static void chunk_end(const struct api_request *r, size_t i, struct cfg_buf *out)
{
    if (r->continuous_usage)
        usage_so_far(r, i, out);
    else if (r->include_usage)
        cfg_buf_puts(out, ",\"usage\":null");
    cfg_buf_puts(out, "}\n\n");
}

void api_begin(struct api_request *r, struct cfg_buf *out)
{
    if (!r->stream || r->kind != API_CHAT) return;
    if (r->response) {
        api_response_begin(r, out);
        return;
    }
    for (size_t i = 0; i < api_n_jobs(r); i++) {
        chunk_begin(r, out);
        cfg_buf_printf(out,
                       "{\"index\":%zu,\"delta\":{\"role\":\"assistant\",\"content\":%s},"
                       "\"logprobs\":null,\"finish_reason\":null}]",
                       i, r->tools.calls ? "null" : "\"\"");
        if (i == 0 && r->return_token_ids) prompt_ids(&r->prompts[0], out);
        chunk_end(r, i, out);
    }
}

/* What follows a delta or a text, with what has gathered since the last chunk. */
static void chunk_rest(struct api_request *r, size_t i, const char *finish, struct cfg_buf *out)
{
    struct api_choice *c = &r->choices[i];
    choice_end(r, i, finish, !c->sent, out);
    cfg_buf_puts(out, "]");
    chunk_end(r, i, out);
    c->sent = true;
    c->lp.tokens.len = c->lp.values.len = c->lp.tops.len = c->lp.offsets.len = 0;
    c->lp.bytes.len = c->ids.len = 0;
}

void api_render_chunk(struct api_request *r, size_t i, const char *text, size_t n,
                      const char *finish, struct cfg_buf *out)
{
    if (r->response && finish)
        api_response_close(r, out);
    else if (r->response)
        api_response_text(r, text, n, out);
    if (r->response) return;
    chunk_begin(r, out);
    cfg_buf_printf(out, "{\"index\":%zu", i);
    if (r->kind == API_CHAT && finish) {
        cfg_buf_puts(out, ",\"delta\":{}");
    } else {
        cfg_buf_puts(out, r->kind == API_CHAT ? ",\"delta\":{\"content\":" : ",\"text\":");
        cfg_buf_json_string(out, text, n);
        if (r->kind == API_CHAT) cfg_buf_puts(out, "}");
    }
    chunk_rest(r, i, finish, out);
}

void api_render_delta(struct api_request *r, size_t i, const struct cfg_buf *delta,
                      struct cfg_buf *out)
{
    chunk_begin(r, out);
    cfg_buf_printf(out, "{\"index\":%zu,\"delta\":{", i);
    cfg_buf_append(out, delta->data, delta->len);
    if (delta->failed) out->failed = true;
    cfg_buf_puts(out, "}");
    chunk_rest(r, i, NULL, out);
}

void api_render_stream_end(struct api_request *r, struct cfg_buf *out)
{
    if (r->response) {
        api_response_end(r, out);
        return;
    }
    if (r->include_usage || r->routing) {
        chunk_begin(r, out);
        cfg_buf_puts(out, "]");
        if (r->include_usage) usage(r, out);
        api_render_routing(r, out);
        cfg_buf_puts(out, "}\n\n");
    }
    cfg_buf_puts(out, "data: [DONE]\n\n");
}

void api_stream_error(struct api_request *r, const struct api_error *err, struct cfg_buf *out)
{
    if (r->response)
        api_response_error(r, err, out);
    else
        api_error_event(err, out);
}

/* ---- whole answer ---------------------------------------------------------------------------- */

void api_body(struct api_request *r, struct cfg_buf *out)
{
    if (r->response) {
        api_response_body(r, out);
        return;
    }
    cfg_buf_append(out, r->head.data, r->head.len);
    for (size_t i = 0; i < api_n_jobs(r); i++) {
        struct api_choice *c = &r->choices[i];
        cfg_buf_printf(out, i ? ",{\"index\":%zu" : "{\"index\":%zu", i);
        cfg_buf_puts(out, r->kind == API_CHAT ? ",\"message\":{\"role\":\"assistant\",\"content\":"
                                              : ",\"text\":");
        if (c->text.len == 0 && api_n_calls(r, i) > 0)
            cfg_buf_puts(out, "null"); // nothing but calls
        else
            cfg_buf_json_string(out, c->text.len ? c->text.data : "", c->text.len);
        if (r->kind == API_CHAT) cfg_buf_puts(out, ",\"refusal\":null");
        api_render_calls(r, i, out);
        if (r->kind == API_CHAT) cfg_buf_puts(out, "}");
        choice_end(r, i, c->finish, true, out);
    }
    cfg_buf_puts(out, "]");
    usage(r, out);
    api_render_routing(r, out);
    if (r->kind == API_CHAT && r->return_token_ids) prompt_ids(&r->prompts[0], out);
    if (r->kind == API_CHAT) prompt_logprobs(r, 0, out);
    if (r->metadata) cfg_buf_printf(out, ",\"metadata\":%s", r->metadata);
    cfg_buf_puts(out, "}");
}
