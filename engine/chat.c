// SPDX-License-Identifier: Apache-2.0
//
// chat.c: a conversation as the prompt the model was tuned on:
//
//   <pad> <<SYS>>\n{system}\n<</SYS>>\n\n  then for each turn  <s> [INST] {user} [/INST]
//   {assistant} </s>
//
// The markers <pad>, <s> and </s> are ids; what stands between two of them is encoded as one
// string, because the pieces at a seam depend on both sides of it. A vocabulary without <s> gets it
// as text. A conversation that ends with the assistant's message ends with its text, so that the
// model goes on with it. Any thread; nothing is kept between calls.
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

const char engine_default_system[] =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.";

/* A prompt that grows: text since the last marker, and the ids before it. */
struct prompt {
    const struct engine_tokenizer *t;
    struct cfg_buf text;
    int32_t *ids;
    size_t n, cap;
    int32_t *turns; /* NULL, or where the turns begin */
    size_t n_turns;
};

static int add_ids(struct prompt *p, const int32_t *ids, size_t n, struct error *err)
{
    if (p->n + n > p->cap) {
        size_t cap = 2 * (p->n + n);
        int32_t *more = realloc(p->ids, cap * sizeof *more);
        if (!more) return cfg_fail(err, CFG_ENOMEM, "no memory for a prompt of %zu tokens", cap);
        p->ids = more;
        p->cap = cap;
    }
    memcpy(p->ids + p->n, ids, n * sizeof *ids);
    p->n += n;
    return CFG_OK;
}

/* Encodes the text gathered so far. */
static int flush(struct prompt *p, struct error *err)
{
    int32_t *ids;
    size_t n;
    if (p->text.failed) return cfg_fail(err, CFG_ENOMEM, "no memory for a prompt");
    if (!p->text.len) return CFG_OK;
    int rc = engine_encode(p->t, p->text.data, p->text.len, false, &ids, &n, err);
    if (rc) return rc;
    rc = add_ids(p, ids, n, err);
    free(ids);
    p->text.len = 0;
    return rc;
}

static int add_marker(struct prompt *p, int32_t id, const char *text, struct error *err)
{
    if (id < 0) {
        cfg_buf_puts(&p->text, text);
        return CFG_OK;
    }
    int rc = flush(p, err);
    return rc ? rc : add_ids(p, &id, 1, err);
}

/* Appends the run of messages from `i` on that have this role, joined by blank lines and passing
 * over system messages, which stand in front. Returns the index after the run. */
static size_t add_run(struct cfg_buf *b, const struct engine_message *msgs, size_t n, size_t i,
                      enum engine_role role)
{
    for (bool first = true; i < n; i++) {
        if (msgs[i].role == ENGINE_SYSTEM) continue;
        if (msgs[i].role != role) break;
        if (!first) cfg_buf_puts(b, "\n\n");
        cfg_buf_append(b, msgs[i].text, msgs[i].n);
        first = false;
    }
    return i;
}

static void add_system(struct cfg_buf *b, const struct engine_message *msgs, size_t n)
{
    bool any = false;
    cfg_buf_puts(b, "<<SYS>>\n");
    for (size_t i = 0; i < n; i++) {
        if (msgs[i].role != ENGINE_SYSTEM) continue;
        if (any) cfg_buf_puts(b, "\n\n");
        cfg_buf_append(b, msgs[i].text, msgs[i].n);
        any = true;
    }
    if (!any) cfg_buf_puts(b, engine_default_system);
    cfg_buf_puts(b, "\n<</SYS>>\n\n");
}

static int check_order(const struct engine_message *msgs, size_t n, struct error *err)
{
    const struct engine_message *first = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!cfg_utf8_valid(msgs[i].text, msgs[i].n))
            return cfg_fail(err, CFG_EINVAL, "message %zu is not valid UTF-8", i);
        if (msgs[i].role == ENGINE_SYSTEM) continue;
        if (!first) first = &msgs[i];
    }
    if (!first) return cfg_fail(err, CFG_EINVAL, "the conversation has no user message");
    if (first->role != ENGINE_USER)
        return cfg_fail(err, CFG_EINVAL, "the conversation must begin with a user message");
    return CFG_OK;
}

static int add_turns(struct prompt *p, const struct engine_message *msgs, size_t n,
                     struct error *err)
{
    for (size_t i = 0;;) {
        if (p->turns) p->turns[p->n_turns++] = i > 0 ? (int32_t)p->n : 0;
        int rc = add_marker(p, tokenizer_bos_id(p->t), "<s>", err);
        if (rc) return rc;
        cfg_buf_puts(&p->text, "[INST] ");
        i = add_run(&p->text, msgs, n, i, ENGINE_USER);
        cfg_buf_puts(&p->text, " [/INST]");
        if (i == n) return flush(p, err);
        cfg_buf_puts(&p->text, " ");
        i = add_run(&p->text, msgs, n, i, ENGINE_ASSISTANT);
        if (i == n) return flush(p, err);
        cfg_buf_puts(&p->text, " ");
        rc = add_marker(p, tokenizer_eos_id(p->t), "</s>", err);
        if (rc) return rc;
    }
}

int engine_chat_encode(const struct engine_tokenizer *t, const struct engine_message *msgs,
                       size_t n_msgs, int32_t **ids, size_t *n_ids, int32_t *turns, size_t *n_turns,
                       struct error *err)
{
    struct prompt p = {.t = t, .turns = turns};
    *ids = NULL;
    *n_ids = 0;
    int rc = check_order(msgs, n_msgs, err);
    if (!rc) rc = add_marker(&p, tokenizer_start_id(t), "<pad>", err);
    if (!rc) {
        add_system(&p.text, msgs, n_msgs);
        rc = add_turns(&p, msgs, n_msgs, err);
    }
    cfg_buf_free(&p.text);
    if (rc) {
        free(p.ids);
        return rc;
    }
    *ids = p.ids;
    *n_ids = p.n;
    if (turns) *n_turns = p.n_turns;
    return CFG_OK;
}
