// SPDX-License-Identifier: Apache-2.0
//
// api_calls.c: one byte after the other through six states; runs of text and of arguments come out
// whole, as far as they were pushed together. Marks and heads are ASCII, so that a run never ends
// inside a character that was pushed whole.
#include "server/api_calls.h"

#include <string.h>

static const char begin_mark[] = API_CALL_BEGIN;
static const char head[] = "{\"name\":\"";
static const char middle[] = ",\"arguments\":";
static const char tail[] = "}" API_CALL_END;

struct feed {
    struct api_call_parser *p;
    api_call_sink *sink;
    void *arg;
    const char *run; /* the text or arguments that go on here; NULL: none */
};

static void emit(struct feed *f, enum api_call_event event, const char *s, size_t n)
{
    if (n > 0 || event == API_CALLS_DONE) f->sink(f->arg, event, s, n);
}

static void end_run(struct feed *f, enum api_call_event event, const char *end)
{
    if (f->run && end > f->run) emit(f, event, f->run, (size_t)(end - f->run));
    f->run = NULL;
}

static void enter(struct api_call_parser *p, enum api_call_state state)
{
    p->state = state;
    p->matched = 0;
}

/* It was no call: what was swallowed is text, and so is what follows. */
static void give_up(struct feed *f)
{
    struct api_call_parser *p = f->p;
    if (p->state != CALLS_TAIL) {
        emit(f, API_CALLS_TEXT, begin_mark, sizeof begin_mark - 1);
        emit(f, API_CALLS_TEXT, head, p->state == CALLS_HEAD ? p->matched : sizeof head - 1);
    }
    if (p->state == CALLS_NAME || p->state == CALLS_MIDDLE || p->state == CALLS_ARGUMENTS)
        emit(f, API_CALLS_TEXT, p->name, p->n_name);
    if (p->state == CALLS_MIDDLE || p->state == CALLS_ARGUMENTS) emit(f, API_CALLS_TEXT, "\"", 1);
    if (p->state == CALLS_MIDDLE) emit(f, API_CALLS_TEXT, middle, p->matched);
    if (p->state == CALLS_ARGUMENTS) emit(f, API_CALLS_TEXT, middle, sizeof middle - 1);
    if (p->state == CALLS_TAIL) emit(f, API_CALLS_DONE, NULL, 0);
    if (p->state == CALLS_TAIL) emit(f, API_CALLS_TEXT, tail, p->matched);
    enter(p, CALLS_TEXT);
}

/* Text, and a mark that may be beginning in it. The mark has its first character only once. */
static void take_text(struct feed *f, const char *at)
{
    struct api_call_parser *p = f->p;
    if (*at == begin_mark[p->matched]) {
        if (p->matched == 0) end_run(f, API_CALLS_TEXT, at);
        if (++p->matched == sizeof begin_mark - 1) {
            enter(p, CALLS_HEAD);
            p->n_name = 0;
        }
        return;
    }
    emit(f, API_CALLS_TEXT, begin_mark, p->matched);
    p->matched = *at == begin_mark[0];
    if (p->matched == 0 && !f->run) f->run = at;
}

/* Whether the byte continues the literal; sets *whole when that is complete. Gives up otherwise,
 * and the byte is text. */
static bool take_literal(struct feed *f, const char *at, const char *literal, bool *whole)
{
    struct api_call_parser *p = f->p;
    *whole = false;
    if (*at != literal[p->matched]) {
        give_up(f);
        take_text(f, at);
        return false;
    }
    *whole = literal[++p->matched] == '\0';
    return true;
}

static void take_name(struct feed *f, const char *at)
{
    struct api_call_parser *p = f->p;
    if (*at == '"' && p->n_name > 0) {
        p->name[p->n_name] = '\0';
        enter(p, CALLS_MIDDLE);
    } else if (*at == '"' || *at == '\\' || p->n_name == API_MAX_CALLNAME) {
        give_up(f);
        take_text(f, at);
    } else {
        p->name[p->n_name++] = *at;
    }
}

static void take_argument(struct feed *f, const char *at)
{
    struct api_call_parser *p = f->p;
    const char byte = *at;
    if (p->depth == 0 && byte != '{') {
        give_up(f);
        take_text(f, at);
        return;
    }
    if (p->depth == 0) emit(f, API_CALLS_NAME, p->name, p->n_name);
    if (!f->run) f->run = at;
    if (p->in_string) {
        p->in_string = p->escaped || byte != '"';
        p->escaped = !p->escaped && byte == '\\';
    } else if (byte == '"') {
        p->in_string = true;
    } else if (byte == '{' || byte == '[') {
        p->depth++;
    } else if ((byte == '}' || byte == ']') && --p->depth == 0) {
        end_run(f, API_CALLS_ARGUMENTS, at + 1);
        enter(p, CALLS_TAIL);
    }
}

void api_calls_push(struct api_call_parser *p, const char *text, size_t n, api_call_sink *sink,
                    void *arg)
{
    struct feed f = {p, sink, arg, NULL};
    bool whole;
    for (size_t i = 0; i < n; i++) {
        const char *at = &text[i];
        switch (p->state) {
        case CALLS_TEXT:
            take_text(&f, at);
            break;
        case CALLS_HEAD:
            if (take_literal(&f, at, head, &whole) && whole) enter(p, CALLS_NAME);
            break;
        case CALLS_NAME:
            take_name(&f, at);
            break;
        case CALLS_MIDDLE:
            if (!take_literal(&f, at, middle, &whole) || !whole) break;
            enter(p, CALLS_ARGUMENTS);
            p->depth = 0;
            p->in_string = p->escaped = false;
            break;
        case CALLS_ARGUMENTS:
            take_argument(&f, at);
            break;
        case CALLS_TAIL:
            if (!take_literal(&f, at, tail, &whole) || !whole) break;
            emit(&f, API_CALLS_DONE, NULL, 0);
            enter(p, CALLS_TEXT);
            break;
        }
    }
    end_run(&f, p->state == CALLS_ARGUMENTS ? API_CALLS_ARGUMENTS : API_CALLS_TEXT, text + n);
}

void api_calls_finish(struct api_call_parser *p, bool cut, api_call_sink *sink, void *arg)
{
    struct feed f = {p, sink, arg, NULL};
    if (p->state == CALLS_TEXT && !cut) emit(&f, API_CALLS_TEXT, begin_mark, p->matched);
    if (p->state == CALLS_TAIL || (p->state == CALLS_ARGUMENTS && p->depth > 0))
        emit(&f, API_CALLS_DONE, NULL, 0);
    enter(p, CALLS_TEXT);
}
