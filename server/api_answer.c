// SPDX-License-Identifier: Apache-2.0
//
// api_answer.c: from scheduler events to what the client sees. Loop thread.
//
// What counts and what shows: a prompt counts once, whatever n is, its start token included. Every
// sampled token up to the end of the answer is a completion token and has its id in token_ids, the
// end token and those of a stop string included. A token's log-probability (and id) travels with
// the chunk that shows the first byte of its text; so none is told of a token whose text a stop
// string cut away, nor of the end token, which has no text. Tokens without text (control tokens) go
// with the next text, or with the last chunk.
#include "server/api_request.h"

#include <string.h>

static bool wants_records(const struct api_request *r)
{
    return r->sampling.n_logprobs >= 0 || r->return_token_ids;
}

/* The first token of a text that starts a reply loses its leading space. */
static size_t skipped_space(const struct api_request *r, const struct api_choice *c, size_t i,
                            const char *text, size_t n)
{
    return c->pushed == 0 && n > 0 && text[0] == ' ' && api_starts_text(r, i);
}

static void hold(struct api_request *r, size_t i, const struct sched_event *ev)
{
    struct api_choice *c = &r->choices[i];
    char text[API_TOKEN_BYTES_MAX];
    size_t n = ev->end ? 0 : api_token_text(r, ev->result.token, text);
    size_t skip = skipped_space(r, c, i, text, n);
    if (wants_records(r)) {
        struct api_held h = {
            .result = ev->result, .start = c->pushed, .offset = c->chars, .end = ev->end};
        cfg_buf_append(&c->held, &h, sizeof h);
    }
    c->pushed += n - skip;
    c->chars += api_count_chars(text + skip, n - skip);
}

/* Moves records out of `held`: those whose text begins before `shown`, or (all) every one, where
 * the answer was cut by a stop string without the log-probabilities of unseen tokens. */
static void release(struct api_request *r, struct api_choice *c, bool all, bool cut)
{
    size_t n = c->held.len / sizeof(struct api_held), i = 0;
    for (; i < n; i++) {
        struct api_held h;
        memcpy(&h, c->held.data + i * sizeof h, sizeof h);
        bool seen = h.start < c->shown;
        if (!seen && !all) break;
        if (r->return_token_ids) api_ids_add(&c->ids, h.result.token);
        if (r->sampling.n_logprobs >= 0 && !h.end && (seen || !cut))
            api_logprobs_add(r, &c->lp, &h.result, h.offset, false);
    }
    if (i == 0) return;
    size_t gone = i * sizeof(struct api_held);
    memmove(c->held.data, c->held.data + gone, c->held.len - gone);
    c->held.len -= gone;
}

void api_put_text(struct api_request *r, size_t i, const char *text, size_t n, struct cfg_buf *out)
{
    struct api_choice *c = &r->choices[i];
    // The last event of a response's stream has all of it once more.
    if (!r->stream || r->response) cfg_buf_append(&c->text, text, n);
    if (r->stream && (n > 0 || !c->detok)) api_render_chunk(r, i, text, n, NULL, out);
}

/* Text on its way to the client, with the records it covers. */
static void show(struct api_request *r, size_t i, const char *text, size_t n, struct cfg_buf *out)
{
    struct api_choice *c = &r->choices[i];
    c->shown += n;
    // A byte that never became a character is shown as U+FFFD, which is longer than the byte.
    if (c->shown > c->pushed) c->shown = c->pushed;
    // Without a tokenizer every id is shown at once; it is all there is.
    release(r, c, !c->detok, false);
    if (r->tools.calls)
        api_calls_show(r, i, text, n, out);
    else
        api_put_text(r, i, text, n, out);
}

/* One token of the prompt: the first is predicted by nothing. */
static void add_prompt_token(struct api_request *r, size_t i, const struct engine_result *result,
                             bool first)
{
    struct api_choice *c = &r->choices[i];
    const struct api_prompt *p = &r->prompts[i / r->n];
    api_logprobs_add(r, &c->lp, result, c->chars, first);
    char text[API_TOKEN_BYTES_MAX];
    size_t n = api_token_bytes(r, result->token, text);
    // The text has no space where the tokenizer puts one in front of the first word.
    size_t skip = c->chars == 0 && n > 0 && text[0] == ' ' && p->text_len > 0 && p->text[0] != ' ';
    c->chars += api_count_chars(text + skip, n - skip);
}

static void add_first_token(struct api_request *r, size_t i)
{
    struct engine_result first = {.token = r->prompts[i / r->n].ids[0]};
    add_prompt_token(r, i, &first, true);
}

static void prompt_score(struct api_request *r, size_t i, const struct sched_event *ev)
{
    struct api_choice *c = &r->choices[i];
    if (api_scores_prompt(r, i)) {
        if (ev->position == 1) api_prompt_logprobs_add(r, c, NULL);
        api_prompt_logprobs_add(r, c, &ev->result);
    }
    if (!api_scores_echo(r) || c->begun) return;
    if (ev->position == 1) add_first_token(r, i);
    add_prompt_token(r, i, &ev->result, false);
}

/* The echo: known from the start, but it goes out with the log-probabilities of the prompt. */
static void begin(struct api_request *r, size_t i, struct cfg_buf *out)
{
    struct api_choice *c = &r->choices[i];
    if (c->begun) return;
    c->begun = true;
    if (!r->echo) return;
    const struct api_prompt *p = &r->prompts[i / r->n];
    if (api_scores_echo(r) && p->n == 1) add_first_token(r, i);
    // What the tokens add up to may differ from the text where the tokenizer normalised it.
    c->chars = api_count_chars(p->text, p->text_len);
    if (r->stream)
        api_render_chunk(r, i, p->text, p->text_len, NULL, out);
    else
        cfg_buf_append(&c->text, p->text, p->text_len);
}

static void finish(struct api_request *r, size_t i, const char *reason, bool cut,
                   struct cfg_buf *out)
{
    struct api_choice *c = &r->choices[i];
    release(r, c, true, cut);
    if (r->tools.calls) reason = api_calls_end(r, i, reason, cut, out);
    c->finish = reason;
    r->n_finished++;
    if (!r->stream) return;
    api_render_chunk(r, i, "", 0, reason, out);
    if (api_finished(r)) api_render_stream_end(r, out);
}

static int token(struct api_request *r, size_t i, const struct sched_event *ev, struct cfg_buf *out,
                 bool *cancel, struct error *why)
{
    struct api_choice *c = &r->choices[i];
    begin(r, i, out);
    c->n_generated++;
    hold(r, i, ev);
    if (ev->end) return 0;
    const char *text = "";
    size_t n = 0;
    bool stopped = false;
    if (c->detok) {
        int rc = engine_detok_push(c->detok, ev->result.token, &text, &n, &stopped, why);
        if (rc) return rc;
    }
    show(r, i, text, n, out);
    if (stopped) {
        finish(r, i, "stop", true, out);
        *cancel = true;
    }
    return 0;
}

static int done(struct api_request *r, size_t i, const struct sched_event *ev, struct cfg_buf *out,
                struct error *why)
{
    struct api_choice *c = &r->choices[i];
    begin(r, i, out);
    const char *text = "";
    size_t n = 0;
    if (c->detok) {
        int rc = engine_detok_finish(c->detok, &text, &n, why);
        if (rc) return rc;
    }
    if (n > 0) show(r, i, text, n, out);
    finish(r, i, ev->finish == SCHED_STOP ? "stop" : "length", false, out);
    return 0;
}

static bool out_of_memory(const struct api_choice *c, const struct cfg_buf *out)
{
    return out->failed || c->held.failed || c->prompt_lp.failed || c->ids.failed ||
           c->text.failed || c->calls.failed || c->lp.tokens.failed || c->lp.values.failed ||
           c->lp.tops.failed || c->lp.offsets.failed || c->lp.bytes.failed;
}

/* A prompt counts once, whatever n: so does what of it was cached. */
static void note_cached(struct api_request *r, size_t i, const struct sched_event *ev)
{
    if (ev->kind == SCHED_PROMPT_SCORE || r->choices[i].cache_noted) return;
    r->choices[i].cache_noted = true;
    if (i % r->n == 0) r->cached_tokens += (size_t)ev->cached_tokens;
}

int api_event(struct api_request *r, size_t i, const struct sched_event *ev, struct cfg_buf *out,
              bool *cancel, struct api_error *err)
{
    struct api_choice *c = &r->choices[i];
    *cancel = false;
    note_cached(r, i, ev);
    // After a stop string the job runs on until its cancellation takes effect.
    if (c->finish) return 0;
    struct error why = {0};
    int rc = 0;
    switch (ev->kind) {
    case SCHED_PROMPT_SCORE:
        prompt_score(r, i, ev);
        break;
    case SCHED_TOKEN:
        rc = token(r, i, ev, out, cancel, &why);
        break;
    case SCHED_DONE:
        if (ev->finish == SCHED_TIMEOUT)
            return api_fail(err, 408, "timeout", "", "%s",
                            ev->message ? ev->message : "The request took too long.");
        if (ev->finish == SCHED_ERROR)
            return api_fail(err, 500, NULL, "", "%s",
                            ev->message ? ev->message : "The model failed.");
        if (ev->finish == SCHED_CANCELLED)
            return api_fail(err, 503, "cancelled", "",
                            "The request was cancelled before it was finished.");
        rc = done(r, i, ev, out, &why);
        break;
    }
    if (rc) return api_fail(err, 500, NULL, "", "%s", why.message);
    return out_of_memory(c, out) ? api_no_memory(err) : 0;
}

bool api_finished(const struct api_request *r)
{
    return r->n_finished == api_n_jobs(r);
}

size_t api_completion_tokens(const struct api_request *r)
{
    size_t n = 0;
    for (size_t i = 0; i < api_n_jobs(r); i++) n += r->choices[i].n_generated;
    return n;
}
