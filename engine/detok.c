// SPDX-License-Identifier: Apache-2.0
//
// detok.c: from ids back to text, one id at a time. A detokeniser belongs to one answer and to the
// thread that feeds it.
//
// Bytes pass three stations: whole characters are put together (what can no longer become one is
// U+FFFD), each character moves every stop string's matcher, and at the end of the id the text is
// released but for the longest suffix that a stop string may still grow from. The matchers work
// byte by byte (Knuth, Morris, Pratt), so how the text was cut into pieces does not show: the stop
// string that is complete first ends the answer, the longest one if several are complete at once.
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

struct pattern {
    char *text; /* [n] */
    size_t n;
    size_t *border;  /* [n] of each prefix: its longest proper prefix that is its suffix too */
    size_t progress; /* bytes of it that the text so far ends with; below n */
    int index;       /* of the stop string; n_stops: the end marker */
};

struct engine_detok {
    const struct engine_tokenizer *t;
    struct pattern *patterns; /* [n_patterns] the end marker's first */
    size_t n_patterns;
    int n_stops;
    bool include_stop, strip_space, show_special;
    bool started; /* a character has been seen */
    int matched;
    char partial[4]; /* an unfinished character */
    size_t n_partial;
    struct cfg_buf piece; /* scratch: the bytes of one id */
    struct cfg_buf text;  /* released by the last call, then held back */
    size_t released;
};

/* ---- life ------------------------------------------------------------------------------------ */

static int add_pattern(struct engine_detok *d, const char *text, int index, struct error *err)
{
    struct pattern *p = &d->patterns[d->n_patterns++];
    p->n = strlen(text);
    p->index = index;
    if (!p->n) return cfg_fail(err, CFG_EINVAL, "a stop string is empty");
    if (!cfg_utf8_valid(text, p->n))
        return cfg_fail(err, CFG_EINVAL, "a stop string is not valid UTF-8");
    p->text = strdup(text);
    p->border = calloc(p->n, sizeof *p->border);
    if (!p->text || !p->border) return cfg_fail(err, CFG_ENOMEM, "no memory for a stop string");
    for (size_t i = 1, k = 0; i < p->n; i++) {
        while (k && p->text[i] != p->text[k]) k = p->border[k - 1];
        if (p->text[i] == p->text[k]) k++;
        p->border[i] = k;
    }
    return CFG_OK;
}

int engine_detok_new(struct engine_detok **out, const struct engine_tokenizer *t,
                     const struct engine_detok_options *opt, struct error *err)
{
    int rc = CFG_OK;
    *out = NULL;
    struct engine_detok *d = calloc(1, sizeof *d);
    if (!d) return cfg_fail(err, CFG_ENOMEM, "no memory for a detokeniser");
    d->t = t;
    d->n_stops = (int)opt->n_stops;
    d->include_stop = opt->include_stop;
    d->strip_space = opt->strip_space;
    d->show_special = opt->show_special;
    d->matched = -1;
    d->patterns = calloc(opt->n_stops + 2, sizeof *d->patterns);
    if (!d->patterns) rc = cfg_fail(err, CFG_ENOMEM, "no memory for a detokeniser");
    /* The marker's first piece is "▁</": its space belongs to it and is not shown either. */
    if (!rc && opt->end_marker) rc = add_pattern(d, " </s>", d->n_stops, err);
    if (!rc && opt->end_marker) rc = add_pattern(d, "</s>", d->n_stops, err);
    for (size_t i = 0; !rc && i < opt->n_stops; i++)
        rc = add_pattern(d, opt->stops[i], (int)i, err);
    if (rc)
        engine_detok_free(d);
    else
        *out = d;
    return rc;
}

void engine_detok_free(struct engine_detok *d)
{
    if (!d) return;
    for (size_t i = 0; i < d->n_patterns; i++) {
        free(d->patterns[i].text);
        free(d->patterns[i].border);
    }
    free(d->patterns);
    cfg_buf_free(&d->piece);
    cfg_buf_free(&d->text);
    free(d);
}

int engine_detok_matched(const struct engine_detok *d)
{
    return d->matched;
}

/* ---- the three stations ---------------------------------------------------------------------- */

static void match_byte(struct engine_detok *d, char c)
{
    const struct pattern *done = NULL;
    for (size_t i = 0; i < d->n_patterns; i++) {
        struct pattern *p = &d->patterns[i];
        while (p->progress && p->text[p->progress] != c) p->progress = p->border[p->progress - 1];
        if (p->text[p->progress] == c) p->progress++;
        if (p->progress == p->n && (!done || p->n > done->n)) done = p;
    }
    if (!done) return;
    d->matched = done->index;
    if (done->index == d->n_stops || !d->include_stop) d->text.len -= done->n;
}

static void take_character(struct engine_detok *d, const char *s, size_t n)
{
    bool strip = d->strip_space && !d->started && s[0] == ' ';
    d->started = true;
    if (strip) return;
    for (size_t i = 0; i < n && d->matched < 0; i++) {
        cfg_buf_append(&d->text, &s[i], 1);
        if (d->text.failed) return;
        match_byte(d, s[i]);
    }
}

static void take_byte(struct engine_detok *d, char c)
{
    d->partial[d->n_partial++] = c;
    if (cfg_utf8_valid(d->partial, d->n_partial)) {
        take_character(d, d->partial, d->n_partial);
        d->n_partial = 0;
    } else if (cfg_utf8_complete(d->partial, d->n_partial) > 0) { /* hopeless */
        bool alone = d->n_partial == 1;
        d->n_partial = 0;
        take_character(d, REPLACEMENT, 3);
        if (!alone) take_byte(d, c); /* c broke the character before it, but may begin another */
    }
}

/* Hands out all text but the last `hold` bytes. */
static int release(struct engine_detok *d, size_t hold, const char **text, size_t *n,
                   struct error *err)
{
    if (d->text.failed || d->piece.failed)
        return cfg_fail(err, CFG_ENOMEM, "no memory for the text of an answer");
    d->released = d->text.len - hold;
    *text = d->released ? d->text.data : "";
    *n = d->released;
    return CFG_OK;
}

static void forget_released(struct engine_detok *d)
{
    d->text.len -= d->released;
    if (d->released && d->text.len) memmove(d->text.data, d->text.data + d->released, d->text.len);
    d->released = 0;
}

static void spell(struct engine_detok *d, int32_t id)
{
    char small[64];
    d->piece.len = 0;
    size_t n = engine_token_bytes(d->t, id, small, sizeof small);
    if (n > sizeof small) { /* longer than pieces are: fetch it again */
        char *big = malloc(n);
        if (big) cfg_buf_append(&d->piece, big, engine_token_bytes(d->t, id, big, n));
        d->piece.failed |= !big;
        free(big);
    } else if (n) {
        cfg_buf_append(&d->piece, small, n);
    } else if (d->show_special) {
        cfg_buf_puts(&d->piece, engine_token_piece(d->t, id));
    }
}

int engine_detok_push(struct engine_detok *d, int32_t id, const char **text, size_t *n,
                      bool *stopped, struct error *err)
{
    size_t hold = 0;
    forget_released(d);
    if (d->matched < 0) spell(d, id);
    for (size_t i = 0; i < d->piece.len && d->matched < 0; i++) take_byte(d, d->piece.data[i]);
    for (size_t i = 0; i < d->n_patterns && d->matched < 0; i++)
        if (d->patterns[i].progress > hold) hold = d->patterns[i].progress;
    *stopped = d->matched >= 0;
    return release(d, hold, text, n, err);
}

int engine_detok_finish(struct engine_detok *d, const char **text, size_t *n, struct error *err)
{
    forget_released(d);
    if (d->n_partial && d->matched < 0) take_character(d, REPLACEMENT, 3);
    d->n_partial = 0;
    return release(d, 0, text, n, err);
}

int engine_decode(const struct engine_tokenizer *t, const int32_t *ids, size_t n_ids, char **text,
                  size_t *n, struct error *err)
{
    const struct engine_detok_options opt = {.strip_space = tokenizer_adds_space(t)};
    struct engine_detok *d;
    struct cfg_buf all = {0};
    const char *part;
    size_t n_part;
    bool stopped;
    *text = NULL;
    *n = 0;
    int rc = engine_detok_new(&d, t, &opt, err);
    if (rc) return rc;
    cfg_buf_puts(&all, "");
    for (size_t i = 0; !rc && i < n_ids; i++) {
        rc = engine_detok_push(d, ids[i], &part, &n_part, &stopped, err);
        if (!rc) cfg_buf_append(&all, part, n_part);
    }
    if (!rc) rc = engine_detok_finish(d, &part, &n_part, err);
    if (!rc) cfg_buf_append(&all, part, n_part);
    if (!rc && all.failed) rc = cfg_fail(err, CFG_ENOMEM, "no memory for a text");
    engine_detok_free(d);
    if (rc) {
        cfg_buf_free(&all);
        return rc;
    }
    *text = all.data;
    *n = all.len;
    return CFG_OK;
}
